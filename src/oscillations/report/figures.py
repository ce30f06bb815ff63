"""The paper's figures, as PNG and PDF; what has not run says so in its panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oscillations import toy
from oscillations.bits import LATENT, largest_code
from oscillations.files import replacing
from oscillations.report.collect import read_measurements, read_oscillations, results
from oscillations.report.tables import METHOD_NAMES, MODEL_NAMES, bits_label
from oscillations.study import Study, Variant

CAPTIONS = {
    "figure1": "One quantized weight under QAT: it cannot rest at its target and oscillates around the threshold "
    "(exact; x = 1, y = 0.75, s = 1, learning rate 0.15).",
    "figure2": "Where the latent weights of one layer lie on their quantization grid at the best epoch (all seeds "
    "together). Dashed lines are thresholds between levels.",
    "figure3": "Oscillations during training. Top: sampled once per epoch, as in the paper; bottom: counted after "
    "every step. Line: mean over seeds, band: their range.",
    "figure5": "Test accuracy over learning rate and λ (mean over seeds).",
    "figure7": "Validation accuracy at every bit width while training. Line: mean over seeds, band: their range.",
}
DPI = 160
Recipes = dict[str, dict[str, Any]]  # resolved recipe by experiment/variant
RED, GREY = "#c0392b", "#7f8c8d"


def write_figures(study: Study, variants: list[Variant]) -> None:
    """Draw figure 1 and every figure the study asks for."""
    recipes = {variant.path: variant.recipe for variant in variants}
    sns.set_theme(style="ticks", context="paper", font_scale=1.05, rc={"pdf.fonttype": 42, "svg.hashsalt": "0"})
    makers: dict[str, Callable[[Study, Recipes], Figure]] = {
        "figure1": figure1,
        "figure2": figure2,
        "figure3": figure3,
        "figure5": figure5,
        "figure7": figure7,
    }
    for name in study.figure_names:
        figure = makers[name](study, recipes)
        for suffix in ("png", "pdf"):
            with replacing(figures_folder(study) / f"{name}.{suffix}") as part:
                metadata = {"Software": None} if suffix == "png" else {"CreationDate": None}
                figure.savefig(part, dpi=DPI, bbox_inches="tight", format=suffix, metadata=metadata)
        plt.close(figure)


def figures_folder(study: Study) -> Path:
    return Path("figures", study.study)


def panel_title(recipe: dict[str, Any]) -> str:
    """'OsciQuant 3-bit, λ = 1'."""
    method = recipe["method"]
    title = METHOD_NAMES.get(method["name"], method["name"])
    if "bits" in method:
        title += f" {bits_label(method['bits'])}"
    return f"{title}, λ = {method['lambda']:g}" if "lambda" in method else title


def model_name(recipe: dict[str, Any]) -> str:
    return MODEL_NAMES.get(recipe["model"]["name"], recipe["model"]["name"])


def not_run(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")
    axes.axis("off")


def figure1(study: Study, recipes: Recipes) -> Figure:
    model, w = toy.FIGURE1, toy.figure1_trajectory()
    epochs = np.arange(len(w))
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.axhline(model.step / 2, color=RED, lw=1.2, label="threshold")
    axes.axhline(model.optimum, color="black", ls=":", lw=1.2, label="target")
    axes.plot(epochs, w, color="#2c3e50", lw=0.8, alpha=0.5, zorder=2)
    axes.scatter(epochs, w, c=np.where(model.quantize(w) > 0, "#e67e22", "#2980b9"), s=26, zorder=3)
    for shift, gradient, color, label in (
        (-0.13, -model.loss_gradient(w), "#27ae60", "loss gradient (to the target)"),
        (0.13, -model.oscillation_gradient(w, model.curvature), "#8e44ad", "oscillation term (to the threshold)"),
    ):
        axes.quiver(
            epochs + shift, w, np.zeros_like(w), gradient, angles="xy", scale_units="xy", scale=2.2, width=0.0032,
            color=color, zorder=2,
        )  # fmt: skip
        axes.plot([], [], color=color, marker="^", ms=5, lw=1.6, label=label)
    axes.scatter([], [], c="#2980b9", s=26, label="w, quantized to 0")
    axes.scatter([], [], c="#e67e22", s=26, label="w, quantized to 1")
    axes.set(xlabel="Epoch", ylabel="W value", ylim=(0, 1), xlim=(-0.6, 19.6), title="QAT oscillating")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    sns.despine(figure)
    return figure


def _panels(count: int, rows: int = 1, height: float = 2.5, width: float = 2.6) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(
        rows, count, figsize=(width * count + 0.6, height * rows), squeeze=False, sharex="col", sharey="row",
        layout="constrained",
    )  # fmt: skip
    return figure, axes


def figure2(study: Study, recipes: Recipes) -> Figure:
    spec, measurements = study.figures.figure2, read_measurements(study)
    figure, grid = _panels(len(spec.panels))
    for letter, path, axes in zip("abcdefgh", spec.panels, grid[0]):
        axes.set_title(f"({letter}) {panel_title(recipes[path])}", fontsize="medium")
        experiment = path.split("/")[0]
        bins = pd.read_csv(file) if (file := _histograms(study, experiment)).exists() else pd.DataFrame()
        known = set(
            measurements[(measurements.experiment == experiment) & (measurements.status == "done")]
            .run.str.split("/runs/")
            .str[1]
        )
        if len(bins):
            bins = bins[(bins.layer == spec.layer) & bins.run.str.startswith(f"{path}/") & bins.run.isin(known)]
        if bins.empty:
            not_run(axes)
            continue
        bits, width = int(bins.bits.iloc[0]), 0.05
        counts = bins.groupby("u")["count"].sum()
        density = counts / counts.sum() / width
        axes.bar(counts.index, density, width=width, color="#2980b9", lw=0)
        limit = largest_code(bits)
        for threshold in np.arange(-limit, limit) + 0.5:
            axes.axvline(threshold, color=RED, ls="--", lw=0.7)
        axes.set(xlabel="w / s", yscale="log", xlim=(-limit - 0.15, limit + 0.15), xticks=range(-limit, limit + 1))
    grid[0][0].set_ylabel("density (log scale)")
    figure.suptitle(f"Weights of {spec.layer} in {model_name(recipes[spec.panels[0]])}", fontsize="medium")
    sns.despine(figure)
    return figure


def _histograms(study: Study, experiment: str) -> Path:
    return results(study) / "runs" / experiment / "histograms.csv"


def _band(axes: Axes, table: pd.DataFrame, column: str, **style) -> None:
    """Mean over seeds with their range; epochs that only some seeds reached are drawn for those."""
    by_epoch = table.groupby("epoch")[column]
    mean = by_epoch.mean()
    (line,) = axes.plot(mean.index, mean, **style)
    axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=line.get_color(), alpha=0.18, lw=0)


def _runs(oscillations: pd.DataFrame, path: str) -> pd.DataFrame:
    return oscillations[(oscillations.experiment + "/" + oscillations.variant) == path]


def figure3(study: Study, recipes: Recipes) -> Figure:
    spec, oscillations = study.figures.figure3, read_oscillations(study)
    figure, grid = _panels(len(spec.panels), rows=2, height=2.1)
    for letter, path, column in zip("abcdefgh", spec.panels, grid.T):
        column[0].set_title(f"({letter}) {panel_title(recipes[path])}", fontsize="medium")
        runs = _runs(oscillations, path)
        if runs.empty:
            not_run(column[0])
            not_run(column[1])
            continue
        runs = runs.assign(
            per_epoch=100 * runs.epoch_nagel / runs.weights,
            per_step=100 * runs.iteration_nagel / runs.weights / runs.steps_per_epoch,
        )
        _band(column[0], runs, "per_epoch", color="#2980b9")
        _band(column[1], runs, "per_step", color="#8e44ad")
        column[1].set(xlabel="Epoch")
    for row, label in zip(grid, ("% of weights\n(per epoch)", "% of weights\n(per step)")):
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    model = model_name(recipes[spec.panels[0]])
    figure.suptitle(f"Weights of {model} that oscillate (change back)", fontsize="medium")
    sns.despine(figure)
    return figure


def figure5(study: Study, recipes: Recipes) -> Figure:
    spec, measurements = study.figures.figure5, read_measurements(study)
    tests = measurements[
        measurements.experiment.isin(spec.experiments) & (measurements.split == "test") & (measurements.bn == "keep")
        & (measurements.method == "osciquant") & (measurements.train_bits == spec.bits)
        & (measurements.eval_bits == spec.bits) & (measurements.status == "done") & (measurements["lambda"] > 0)
    ]  # fmt: skip
    figure, axes = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
    if tests.empty:
        not_run(axes)
        return figure
    wide = tests.pivot_table(index="lr", columns="lambda", values="accuracy").sort_index(ascending=False)
    seeds = tests.groupby(["lr", "lambda"]).seed.nunique()
    sns.heatmap(wide, annot=True, fmt=".1f", cmap="viridis", ax=axes, cbar_kws={"label": "accuracy (%)"})
    axes.set(
        xlabel="λ", ylabel="learning rate", yticklabels=[f"{lr:g}" for lr in wide.index],
        xticklabels=[f"{lam:g}" for lam in wide.columns],
    )  # fmt: skip
    name = MODEL_NAMES.get(tests.iloc[0].model, tests.iloc[0].model)
    n = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()}-{seeds.max()}"
    axes.set_title(f"OsciQuant, {name}, {bits_label(spec.bits)}, n = {n}", fontsize="medium")
    return figure


def figure7(study: Study, recipes: Recipes) -> Figure:
    spec, oscillations = study.figures.figure7, read_oscillations(study)
    figure, grid = _panels(len(spec.panels), height=3.0, width=4.0)
    colors = dict(zip(study.eval_bits, sns.color_palette("colorblind", len(study.eval_bits))))
    for letter, path, axes in zip("abcdefgh", spec.panels, grid[0]):
        axes.set_title(f"({letter}) {panel_title(recipes[path])}", fontsize="medium")
        runs = _runs(oscillations, path)
        if runs.empty:
            not_run(axes)
            continue
        for bits, color in sorted(colors.items()):  # FP32 last and dashed: 8 bits lie under it
            target = bits == runs.train_bits.iloc[0]
            style = {"lw": 2.2 if target else 1.1, "label": bits_label(bits) + (" (target)" if target else "")}
            style["ls"] = "--" if bits == LATENT else "-"
            _band(axes, runs, f"val_acc_{bits}", color=color, **style)
        axes.set(xlabel="Epoch", ylim=(0, 100) if runs.val_acc_32.max() > 60 else (0, None))
    grid[0][0].set_ylabel("validation accuracy (%)")
    handles = next((axes.get_legend_handles_labels() for axes in grid[0] if axes.lines), ([], []))
    if handles[0]:
        figure.legend(*handles, loc="outside right center", frameon=False)
    figure.suptitle(model_name(recipes[spec.panels[0]]), fontsize="medium")
    sns.despine(figure)
    return figure
