"""Figures of the searches over learning rate and lambda: figures 5 and 6, and what one rate gives."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oscillations.core.bits import LATENT
from oscillations.engine.recipe import Recipe
from oscillations.report.estimates import spread
from oscillations.report.figures.palette import BLACK, BLUE, GREEN, GREY, METHODS, ORANGE, PURPLE
from oscillations.report.measurements import read_tests
from oscillations.report.tables.published import MODEL_NAMES, bits_label, read_published
from oscillations.study.report_schema import RatePanels, SweepPanels
from oscillations.study.schema import Study

Recipes = dict[str, Recipe]  # resolved recipe by experiment/variant
PTQ_BITS = 3  # at 2, PTQ of a plain network is at chance; at 4, it hardly loses


def _sweep(spec: SweepPanels, study: Study) -> pd.DataFrame:
    """Test accuracy of OsciQuant at the sweep's bit width, one row per run."""
    tests = read_tests(study.study)
    return tests[
        tests.experiment.isin(spec.experiments) & (tests.method == "osciquant")
        & (tests.train_bits == spec.bits) & (tests.eval_bits == spec.bits)
    ]  # fmt: skip


def _sweep_title(spec: SweepPanels, tests: pd.DataFrame) -> str:
    seeds = tests.groupby(["lr", "lambda"]).seed.nunique()
    n = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    model = MODEL_NAMES.get(tests.iloc[0].model, tests.iloc[0].model)
    return f"OsciQuant, {model}, {bits_label(spec.bits)}, n = {n}"


def figure5(spec: SweepPanels, study: Study, recipes: Recipes) -> Figure | None:
    tests = _sweep(spec, study)
    tests = tests[tests["lambda"] > 0]
    if tests.empty:
        return None
    planned = [
        recipe
        for path, recipe in recipes.items()
        if path.split("/")[0] in spec.experiments
        and (recipe.method.name, recipe.method.get("bits")) == ("osciquant", spec.bits)
    ]
    rates = sorted({recipe.training.lr for recipe in planned}, reverse=True)
    lambdas = sorted({recipe.method.get("lambda") for recipe in planned} - {0})
    wide = tests.pivot_table(index="lr", columns="lambda", values="accuracy").reindex(index=rates, columns=lambdas)
    size = (0.62 * len(lambdas) + 2.2, 0.42 * len(rates) + 1.2)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_facecolor("#e4e4e4")
    sns.heatmap(wide, annot=True, fmt=".1f", cmap="viridis", ax=axes, cbar_kws={"label": "accuracy (%)"})
    axes.set(xlabel="λ", ylabel="learning rate", xticklabels=[f"{lam:g}" for lam in lambdas])
    axes.set_yticklabels([f"{rate:g}" for rate in rates], rotation=0)
    axes.set_title(_sweep_title(spec, tests), fontsize="medium")
    return figure


def figure6(spec: SweepPanels, study: Study, recipes: Recipes) -> Figure | None:
    tests = _sweep(spec, study)
    if tests.empty:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    for color, (rate, group) in zip((METHODS["osciquant"], BLUE, GREEN, PURPLE), tests.groupby("lr")):
        accuracy = group.groupby("lambda").accuracy.agg(mean="mean", std=spread)
        axes.errorbar(
            accuracy.index, accuracy["mean"], accuracy["std"], fmt="o-", capsize=3, color=color,
            label=f"learning rate {rate:g}",
        )  # fmt: skip
    published = read_published()
    published = published[
        (published.setting == "sweep") & (published.model == tests.iloc[0].model) & (published.eval_bits == spec.bits)
    ]
    if study.judged and len(published):
        table = published.table.iloc[0].removeprefix("table")
        axes.errorbar(
            published["lambda"], published["mean"], published["std"], fmt="D", mfc="white", color=BLACK, capsize=3,
            label=f"published (Table {table})",
        )  # fmt: skip
    axes.set(xlabel="λ", ylabel="accuracy (%)")
    axes.set_title(_sweep_title(spec, tests), fontsize="medium")
    figure.legend(loc="outside right center", frameon=False)
    sns.despine(figure)
    return figure


def figure_rates(spec: RatePanels, study: Study, recipes: Recipes) -> Figure | None:
    tests = read_tests(study.study)
    tests = tests[tests.experiment == spec.experiment]
    if tests.empty:
        return None
    at_target = tests[(tests.train_bits == spec.bits) & (tests.eval_bits == spec.bits)]
    figure, axes = plt.subplots(figsize=(6.8, 3.4), layout="constrained")
    for color, (lam, runs) in zip((ORANGE, METHODS["osciquant"], PURPLE, GREEN), at_target.groupby("lambda")):
        _over_rates(axes, runs, color, f"OsciQuant, λ = {lam:g}, {bits_label(spec.bits)}")
    _over_rates(axes, at_target[at_target.method == "qat"], METHODS["qat"], f"QAT, {bits_label(spec.bits)}")
    ptq = tests[(tests.train_bits == LATENT) & (tests.eval_bits == PTQ_BITS)]
    _over_rates(axes, ptq, GREY, f"PTQ of the baseline, {bits_label(PTQ_BITS)}")
    published, model = read_published(), tests.iloc[0].model
    published = published[(published.model == model) & (published.setting == "scratch")]
    lines = (("osciquant", spec.bits, METHODS["osciquant"]), ("qat", spec.bits, BLUE), ("ptq", PTQ_BITS, GREY))
    for method, bits, color in lines if study.judged else ():
        for mean in published[(published.method == method) & (published.eval_bits == bits)]["mean"]:
            axes.axhline(mean, color=color, ls=":", lw=1.2)
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy (%)")
    rates = sorted(tests.lr.unique())
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    seeds = tests.groupby(["variant"]).seed.nunique()
    axes.set_title(f"{MODEL_NAMES.get(model, model)}, n = {seeds.min()}", fontsize="medium")
    figure.legend(loc="outside right center", frameon=False)
    sns.despine(figure)
    return figure


def _over_rates(axes: Axes, runs: pd.DataFrame, color: str, label: str) -> None:
    accuracy = runs.groupby("lr").accuracy.agg(mean="mean", std=spread)
    if len(accuracy):
        axes.errorbar(accuracy.index, accuracy["mean"], accuracy["std"], fmt="o-", capsize=3, color=color, label=label)
