"""Figures of the searches over learning rate and lambda: figures 5 and 6, and what one rate gives."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oscillations.core.bits import LATENT
from oscillations.report.estimates import spread
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import BLACK, BLUE, DIVERGING, GREEN, GREY, METHODS, ORANGE, PURPLE
from oscillations.report.results import Report
from oscillations.report.text import MODEL_NAMES, bits_label
from oscillations.study.report_schema import PTQ_BITS, RatePanels, SweepPanels

NOTICED = 5.0  # points of difference that have a full colour, or more if there are larger ones


def _sweep(spec: SweepPanels, report: Report) -> pd.DataFrame:
    """Test accuracy of OsciQuant at the sweep's bit width, one row per run."""
    tests = report.results.tests
    return tests[
        tests.experiment.isin(spec.experiments) & (tests.method == "osciquant")
        & (tests.train_bits == spec.bits) & (tests.eval_bits == spec.bits)
    ]  # fmt: skip


def _beside(spec: SweepPanels, report: Report, trained: int, bits: int) -> pd.DataFrame:
    """Test accuracy, at some bits, of the baseline (trained at 32) or of QAT in the sweep's experiments."""
    tests = report.results.tests
    return tests[
        tests.experiment.isin(spec.experiments) & (tests.method.eq("qat") | (tests.train_bits == LATENT))
        & (tests.train_bits == trained) & (tests.eval_bits == bits)
    ]  # fmt: skip


def _sweep_title(spec: SweepPanels, tests: pd.DataFrame) -> str:
    seeds = tests.groupby(["lr", "lambda"]).seed.nunique()
    n = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    model = MODEL_NAMES.get(tests.iloc[0].model, tests.iloc[0].model)
    return f"OsciQuant, {model}, {bits_label(spec.bits)}, n = {n}"


def figure5(spec: SweepPanels, report: Report) -> Figure | None:
    """Accuracy over rate and λ, beside QAT at the same rate; colours by the difference to the best QAT."""
    tests = _sweep(spec, report)
    tests = tests[tests["lambda"] > 0]
    if tests.empty:
        return None
    cells = tests.pivot_table(index="lr", columns="lambda", values="accuracy").sort_index(ascending=False)
    cells.columns = [f"λ = {lam:g}" for lam in cells.columns]
    qat = _beside(spec, report, spec.bits, spec.bits).groupby("lr").accuracy.mean().reindex(cells.index).dropna()
    if len(qat):
        cells = cells.assign(QAT=qat)
    best, of = (qat.max(), "QAT") if len(qat) else (cells.max(axis=None), "OsciQuant")
    differences = cells - best
    reach = max(NOTICED, differences.abs().max(axis=None))
    size = (min(WIDTH, 0.62 * len(cells.columns) + 2.2), 0.3 * len(cells) + 0.95)
    figure, axes = plt.subplots(figsize=size)
    sns.heatmap(
        differences, annot=cells, fmt=".1f", cmap=DIVERGING, vmin=-reach, vmax=reach, ax=axes, linewidths=0.5,
        annot_kws={"fontsize": 7.5}, cbar_kws={"label": f"difference to the\nbest {of} (points)"},
    )  # fmt: skip
    axes.set(xlabel="", ylabel="learning rate")
    axes.tick_params(length=0)
    axes.set_yticklabels([f"{rate:g}" for rate in cells.index], rotation=0)
    axes.set_title(f"{_sweep_title(spec, tests)}: accuracy (%)")
    return figure


def figure6(spec: SweepPanels, report: Report) -> Figure | None:
    tests = _sweep(spec, report)
    if tests.empty:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    for color, (rate, group) in zip(cycle((METHODS["osciquant"], BLUE, GREEN, PURPLE)), tests.groupby("lr")):
        accuracy = group.groupby("lambda").accuracy.agg(mean="mean", std=spread)
        axes.errorbar(
            accuracy.index, accuracy["mean"], accuracy["std"], fmt="o-", ms=4, capsize=3, color=color,
            label=f"OsciQuant, learning rate {rate:g}",
        )  # fmt: skip
        for lam, mean in accuracy["mean"].items():
            axes.annotate(f"{mean:.1f}", (lam, mean), xytext=(0, -12), textcoords="offset points", ha="center")
    lines = {"FP32": (LATENT, LATENT, BLACK, "-"), "QAT": (spec.bits, spec.bits, METHODS["qat"], "-"),
             f"PTQ, {bits_label(spec.bits)}": (LATENT, spec.bits, GREY, "--")}  # fmt: skip
    for name, (trained, bits, color, style) in lines.items():
        accuracy = _beside(spec, report, trained, bits).accuracy
        if len(accuracy):
            mean = accuracy.mean()
            axes.axhline(mean, color=color, ls=style, lw=1, zorder=1, label=f"{name}: {mean:.1f}")
    published = report.published
    published = published[
        (published.setting == "sweep") & (published.model == tests.iloc[0].model) & (published.eval_bits == spec.bits)
    ]
    if report.study.judged and len(published):
        table = published.table.iloc[0].removeprefix("table")
        axes.errorbar(
            published["lambda"], published["mean"], published["std"], fmt="D", ms=4, mfc="white", color=BLACK,
            capsize=3, label=f"published (Table {table})",
        )  # fmt: skip
    lambdas = sorted(tests["lambda"].unique())
    axes.set_xticks(lambdas, [f"{lam:g}" for lam in lambdas])
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set(xlabel="λ", ylabel="accuracy (%)")
    axes.set_title(_sweep_title(spec, tests))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def figure_rates(spec: RatePanels, report: Report) -> Figure | None:
    tests = report.results.tests
    tests = tests[tests.experiment == spec.experiment]
    if tests.empty:
        return None
    at_target = tests[(tests.train_bits == spec.bits) & (tests.eval_bits == spec.bits)]
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    for color, (lam, runs) in zip(cycle((ORANGE, METHODS["osciquant"], PURPLE, GREEN)), at_target.groupby("lambda")):
        _over_rates(axes, runs, color, f"OsciQuant, λ = {lam:g}, {bits_label(spec.bits)}")
    _over_rates(axes, at_target[at_target.method == "qat"], METHODS["qat"], f"QAT, {bits_label(spec.bits)}")
    ptq = tests[(tests.train_bits == LATENT) & (tests.eval_bits == PTQ_BITS)]
    _over_rates(axes, ptq, GREY, f"PTQ of the baseline, {bits_label(PTQ_BITS)}")
    published, model = report.published, tests.iloc[0].model
    published = published[(published.model == model) & (published.setting == "scratch")]
    lines = (("osciquant", spec.bits, METHODS["osciquant"]), ("qat", spec.bits, BLUE), ("ptq", PTQ_BITS, GREY))
    for method, bits, color in lines if report.study.judged else ():
        for mean in published[(published.method == method) & (published.eval_bits == bits)]["mean"]:
            axes.axhline(mean, color=color, ls=":", lw=1.2)
    axes.set(xscale="log", xlabel="learning rate (logarithmic)", ylabel="accuracy (%)")
    axes.set_ylim(bottom=0)
    rates = sorted(tests.lr.unique())
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    seeds = tests.groupby(["variant"]).seed.nunique()
    axes.set_title(f"{MODEL_NAMES.get(model, model)}, n = {seeds.min()}")
    figure.legend(loc="outside right center")
    return figure


def _over_rates(axes: Axes, runs: pd.DataFrame, color: str, label: str) -> None:
    accuracy = runs.groupby("lr").accuracy.agg(mean="mean", std=spread)
    if len(accuracy):
        axes.errorbar(
            accuracy.index, accuracy["mean"], accuracy["std"], fmt="o-", ms=4, capsize=3, color=color, label=label
        )  # fmt: skip
