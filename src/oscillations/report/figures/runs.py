"""The paper's figures, as PNG and PDF; what has not run says so in its panel."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oscillations.core.bits import LATENT, largest_code
from oscillations.core.files import replacing
from oscillations.engine.recipe import Recipe
from oscillations.report.estimates import MINIMUM_RUNS
from oscillations.report.figures.comparison import heatmap, scatter
from oscillations.report.figures.exact import figure1, figure_a1, figure_a5
from oscillations.report.figures.palette import BITS, BLACK, BLUE, GREY, METHODS, PURPLE, VERMILION
from oscillations.report.figures.searches import figure5, figure6, figure_rates
from oscillations.report.measurements import (
    oscillation_shares,
    read_measurements,
    read_oscillations,
    read_posttraining,
)
from oscillations.report.tables.comparison import read_comparison
from oscillations.report.tables.published import METHOD_NAMES, MODEL_NAMES, bits_label
from oscillations.study import paths
from oscillations.study.report_schema import Panels, WeightPanels, figure_number
from oscillations.study.schema import PostTrainingEntry, Study
from oscillations.study.variants import Variant

CAPTIONS = {
    "figure1": "One quantized weight under QAT: it cannot rest at its target and oscillates around the threshold "
    "(exact; x = 1, y = 0.75, s = 1, learning rate 0.15).",
    "figure2": "Where the latent weights of one layer lie on their quantization grid at the best epoch (all seeds "
    "together). Dashed lines are thresholds between levels.",
    "figure3": "Oscillations during training. Top: sampled once per epoch, as in the paper; bottom: counted after "
    "every step. Line: mean over seeds, band: their range, as far as all seeds went.",
    "figure5": "Test accuracy over learning rate and λ (mean over seeds; grey: no run).",
    "figure6": "Test accuracy over λ. Points: mean over seeds, bars: their standard deviation.",
    "figure7": "Validation accuracy at every bit width while training; the thick line is the width trained for. "
    "Line: mean over seeds, band: their range, as far as all seeds went.",
    "figure-comparison": "Accuracy at the target bits over oscillation during the training, of every trained method "
    "(means over seeds); colour: mean accuracy at the other quantized widths, marker: family. Where a method has other "
    "levels than Eq. 1-2, their number stands behind its name. Post-training methods do not oscillate over steps and "
    "are not drawn.",
    "figure-heatmap": "Test accuracy of every method at every width (means over seeds), framed at the target's; grey: "
    "no run. Where a method has other levels than Eq. 1-2, their number stands behind its name.",
    "figure8": "Validation accuracy of the latent weights and, thick, at the width trained for. Line: mean over "
    "seeds, band: their range, as far as all seeds went.",
    "figure-aoq": "AOQ's toy experiment: 10,000 weights of -2, -1, 0 or 1 are to be found from 2,000 examples. "
    "Left: where weights end, and how many of these are right (full colour). Right: how many in all. Mean over "
    "seeds; bars and points: single seeds.",
    "figure-rates": "What a learning rate gives: test accuracy at the width trained for, of QAT and of OsciQuant at "
    "every λ, beside 3-bit PTQ of the baseline of the same rate. Points: mean over seeds, bars: standard deviation; "
    "dotted: published.",
    "figure-reconstruction": "Relative reconstruction loss of the network's units along its depth, on the calibration "
    "images, after post-training quantization. Line: mean over seeds, band: their range. Rises are what MRECG calls "
    "oscillation; circles join units that were reconstructed together.",
    "figureA1": "Two weights in series under QAT (exact; x = 1, y = 0.75, s = 1). Beside the oscillation term of one "
    "weight (a) there is a drift that the rounding error of the other weight makes (b); descent ends elsewhere than "
    "oscillation alone would lead (c). The length of an arrow is the root of the strength.",
    "figureA5": "What counting makes of a code (exact). Nagel's rule counts a change opposite to the previous one: it "
    "misses the first crossing of every run (a) and chains changes however far apart (c, d). Sampled once per epoch, "
    "a weight that changes at every step counts always or never, by the parity of the steps (b).",
}
DPI = 160
Recipes = dict[str, Recipe]  # resolved recipe by experiment/variant


def write_figures(study: Study, variants: list[Variant]) -> None:
    """Draw the exact figures and every figure the study asks for; one of which nothing has run says so."""
    recipes = {variant.path: variant.recipe for variant in variants}
    sns.set_theme(style="ticks", context="paper", font_scale=1.05, rc={"pdf.fonttype": 42, "svg.hashsalt": "0"})
    exact = {"figure1": figure1, "figureA1": figure_a1, "figureA5": figure_a5}
    of_runs: dict[str, Callable[[Any, Study, Recipes], Figure | None]] = {
        "figure2": figure2,
        "figure3": figure3,
        "figure5": figure5,
        "figure6": figure6,
        "figure7": figure7,
        "figure8": figure8,
        "figure-rates": figure_rates,
    }
    of_comparisons = {"figure-comparison": scatter, "figure-heatmap": heatmap}
    for name in study.figure_names:
        kind = figure_number(name)
        if name in exact:
            figure = exact[name]()
        elif kind == "figure-reconstruction":
            entry = study.posttraining[name.removeprefix(f"{kind}-")]
            figure = reconstruction(entry, study, recipes) or _nothing_ran(title(name))
        elif name == "figure-aoq-toy":
            figure = toy_regression(study) or _nothing_ran("AOQ's toy experiment")
        elif kind in of_comparisons:
            compared = name.removeprefix(f"{kind}-")
            rows = read_comparison(study, compared)
            figure = of_comparisons[kind](study, study.comparisons[compared], rows) or _nothing_ran(title(name))
        else:
            drawn = of_runs[kind](study.figures[name], study, recipes)
            figure = drawn or _nothing_ran(title(name))
        for suffix in ("png", "pdf"):
            with replacing(paths.figures(study.study) / f"{name}.{suffix}") as part:
                metadata = {"Software": None} if suffix == "png" else {"CreationDate": None}
                figure.savefig(part, dpi=DPI, bbox_inches="tight", format=suffix, metadata=metadata)
        plt.close(figure)


def title(name: str) -> str:
    """'Figure 2' of ``figure2``, 'Figure 2 (mlp5)' of ``figure2-mlp5``, 'Heatmap (mlp5)' of ``figure-heatmap-mlp5``."""
    kind = figure_number(name)
    number, label = kind.removeprefix("figure"), name.removeprefix(kind).removeprefix("-")
    said = f"Figure {number}" if kind.startswith("figure") and number[0] != "-" else number.strip("-").capitalize()
    return f"{said} ({label})" if label else said


def panel_title(recipe: Recipe) -> str:
    """'OsciQuant 3-bit, λ = 1'; another form of the regularizer than the released code's is named."""
    method = recipe.method
    title = METHOD_NAMES.get(method.name, method.name)
    if recipe.bits != LATENT:
        title += f" {bits_label(recipe.bits)}"
    lam = method.get("lambda")
    title += "" if lam is None else f", λ = {lam:g}"
    form = method.get("preset", "official_code").replace("_", " ")
    return title if form == "official code" else f"{title}\n({form}, scale: {method.get('scale_grad')})"


def model_name(recipe: Recipe) -> str:
    return MODEL_NAMES.get(recipe.model.name, recipe.model.name)


def method_color(recipe: Recipe) -> str:
    return METHODS.get(recipe.method.name, PURPLE)


def _nothing_ran(title: str) -> Figure:
    figure = plt.figure(figsize=(4, 0.6))
    figure.text(0.5, 0.5, f"{title}: not run", ha="center", va="center", color=GREY, style="italic")
    return figure


def _not_run(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _panels(
    spec: Panels, recipes: Recipes, rows: int = 1, height: float = 2.5, width: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """A figure with a titled column of axes for every panel: ``(figure, axes [rows, panels])``."""
    count = len(spec.panels)
    figure, grid = plt.subplots(
        rows, count, figsize=(width * count + 0.6, height * rows), squeeze=False, sharex=True, sharey="row",
        layout="constrained",
    )  # fmt: skip
    titles = [panel_title(recipes[path]) for path in spec.panels]
    if len(set(titles)) < count:  # what tells the panels apart is no option that a title holds
        titles = [f"{title}\n{path.split('/')[0]}" for title, path in zip(titles, spec.panels)]
    for letter, title, axes in zip(string.ascii_lowercase, titles, grid[0]):
        axes.set_title(f"({letter}) {title}", fontsize="medium")
    for axes in grid[-1]:
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    return figure, grid


def _label_left(row: np.ndarray, label: str) -> None:
    """Name the shared axis on the first panel that has run."""
    first = next(axes for axes in row if axes.has_data())
    first.set_ylabel(label)
    first.tick_params(labelleft=True)


def figure2(spec: WeightPanels, study: Study, recipes: Recipes) -> Figure | None:
    histograms = {path: _histogram(spec.layer, path, study) for path in spec.panels}
    if all(bins.empty for bins in histograms.values()):
        return None
    figure, grid = _panels(spec, recipes)
    for path, axes in zip(spec.panels, grid[0]):
        bins = histograms[path]
        if bins.empty:
            _not_run(axes)
            continue
        bits, width = int(bins.bits.iloc[0]), 0.05
        counts = bins.groupby("u")["count"].sum()
        density = counts / counts.sum() / width
        axes.bar(counts.index, density, width=width, color=method_color(recipes[path]), lw=0)
        limit = largest_code(bits)
        for threshold in np.arange(-limit, limit) + 0.5:
            axes.axvline(threshold, color=BLACK, ls="--", lw=0.7)
        axes.set(xlabel="w / s", yscale="log", xlim=(-limit - 0.15, limit + 0.15), xticks=range(-limit, limit + 1))
    _label_left(grid[0], "density (log scale)")
    figure.suptitle(f"Weights of {spec.layer} in {model_name(recipes[spec.panels[0]])}", fontsize="medium")
    sns.despine(figure)
    return figure


def _histogram(layer: str, path: str, study: Study) -> pd.DataFrame:
    """Histogram of a layer's ``w / s`` in the current runs of a variant; empty if none has run."""
    experiment, variant = path.split("/")
    _, file = paths.evaluation_files(study.study, experiment)
    if not file.exists():
        return pd.DataFrame()
    runs = read_measurements(study.study)
    runs = runs[(runs.experiment == experiment) & (runs.variant == variant) & (runs.status == "done")].run
    bins = pd.read_csv(file)
    return bins[(bins.layer == layer) & bins.run.isin(runs.str.split("/runs/").str[1])]


def _band(axes: Axes, table: pd.DataFrame, column: str, **style: Any) -> None:
    """Mean over seeds with their range, up to the last epoch that all seeds reached."""
    by_epoch = table[table.epoch <= table.groupby("seed").epoch.max().min()].groupby("epoch")[column]
    mean = by_epoch.mean()
    (line,) = axes.plot(mean.index, mean, **style)
    if table.seed.nunique() >= MINIMUM_RUNS:
        axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=line.get_color(), alpha=0.18, lw=0)


def _epochs(spec: Panels, study: Study) -> dict[str, pd.DataFrame] | None:
    """Every epoch of each panel's runs; None if there is no run at all."""
    epochs = read_oscillations(study.study)
    by_panel = {path: epochs[(epochs.experiment + "/" + epochs.variant) == path] for path in spec.panels}
    return None if all(runs.empty for runs in by_panel.values()) else by_panel


def figure3(spec: Panels, study: Study, recipes: Recipes) -> Figure | None:
    epochs = _epochs(spec, study)
    if epochs is None:
        return None
    figure, grid = _panels(spec, recipes, rows=2, height=2.1)
    for path, column in zip(spec.panels, grid.T):
        runs = epochs[path]
        if runs.empty:
            _not_run(column[0])
            _not_run(column[1])
            continue
        runs = oscillation_shares(runs)
        _band(column[0], runs, "per_epoch", color=method_color(recipes[path]))
        _band(column[1], runs, "per_step", color=method_color(recipes[path]))
        column[1].set(xlabel="Epoch")
        weights = int(runs.weights.iloc[0])
    for row, label in zip(grid, ("% of weights\n(per epoch)", "% of weights\n(per step)")):
        _label_left(row, label)
        row[0].set_ylim(bottom=0)
    model = model_name(recipes[spec.panels[0]])
    figure.suptitle(f"Share of the {weights:,} weights of {model} that oscillate (change back)", fontsize="medium")
    sns.despine(figure)
    return figure


def figure7(spec: Panels, study: Study, recipes: Recipes) -> Figure | None:
    return _accuracies(spec, study, recipes, study.eval_bits)


def figure8(spec: Panels, study: Study, recipes: Recipes) -> Figure | None:
    return _accuracies(spec, study, recipes, [LATENT])


def _accuracies(spec: Panels, study: Study, recipes: Recipes, widths: list[int]) -> Figure | None:
    """Validation accuracy over epochs at some bit widths and at the one each panel trains for."""
    epochs = _epochs(spec, study)
    if epochs is None:
        return None
    figure, grid = _panels(spec, recipes, height=3.0, width=4.0)
    shown: dict[int, Line2D] = {}
    for path, axes in zip(spec.panels, grid[0]):
        runs = epochs[path]
        if runs.empty:
            _not_run(axes)
            continue
        target = int(runs.train_bits.iloc[0])
        for bits in sorted({*widths, target}):  # FP32 last and dashed: 8 bits lie under it
            style: dict[str, Any] = {"color": BITS.get(bits, GREY), "ls": "--" if bits == LATENT else "-"}
            _band(axes, runs, f"val_acc_{bits}", lw=2.4 if bits == target else 1.2, **style)
            shown[bits] = Line2D([], [], label=bits_label(bits), **style)
        axes.set(xlabel="Epoch")
    grid[0][0].set_ylim(0, 100 if grid[0][0].get_ylim()[1] > 60 else None)
    _label_left(grid[0], "validation accuracy (%)")
    figure.legend(handles=[shown[bits] for bits in sorted(shown)], loc="outside right center", frameon=False)
    figure.suptitle(model_name(recipes[spec.panels[0]]), fontsize="medium")
    sns.despine(figure)
    return figure


def toy_regression(study: Study) -> Figure | None:
    """Weights per level and weights found, for the start, LSQ and AOQ."""
    file = paths.toy_file(study.study)
    if not file.exists():
        return None
    rows = pd.read_csv(file)
    named = {"pretrained": ("start, rounded", GREY), "lsq": ("LSQ", BLUE), "aoq": ("AOQ", VERMILION)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=(2, 1), layout="constrained")
    levels, seeds, width = sorted(rows.level.unique()), rows.seed.nunique(), 0.26
    total = rows[(rows.method == "aoq") & (rows.seed == rows.seed.iloc[0])].weights.sum()
    for place, (method, (label, color)) in enumerate(named.items()):
        mine = rows[rows.method == method]
        at = np.arange(len(levels)) + (place - 1) * width
        shares = 100 * mine.pivot(index="level", columns="seed", values="weights") / total
        right_ones = 100 * mine.pivot(index="level", columns="seed", values="right") / total
        spread = (shares.mean(axis=1) - shares.min(axis=1), shares.max(axis=1) - shares.mean(axis=1))
        left.bar(at, shares.mean(axis=1), width, color=color, alpha=0.35, lw=0, yerr=spread, capsize=2)
        left.bar(at, right_ones.mean(axis=1), width, color=color, lw=0, label=label)
        found = mine.drop_duplicates("seed").matches
        right.bar(place, found.mean(), 0.6, color=color, lw=0)
        right.plot([place] * len(found), found, "o", ms=4, color=BLACK, mfc="white")
        right.annotate(
            f"{found.mean():,.0f}", (place, found.max()), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    left.axhline(100 / len(levels), color=BLACK, ls=":", lw=1.2, label="truth; right: chance")
    left.set(xlabel="level", ylabel="% of weights", title="Where the weights end (full colour: rightly)")
    left.set_xticks(range(len(levels)), levels)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    right.axhline(total / len(levels), color=BLACK, ls=":", lw=1.2)
    right.margins(y=0.12)
    right.set(ylabel=f"weights found, of {total:,}", title="On their true level")
    right.set_xticks(range(len(named)), [label.replace(", ", ",\n") for label, _ in named.values()])
    figure.suptitle(f"Linear regression at 2 bits, {rows.epochs.iloc[0]} epochs, n = {seeds}", fontsize="medium")
    sns.despine(figure)
    return figure


def reconstruction(entry: PostTrainingEntry, study: Study, recipes: Recipes) -> Figure | None:
    """A column for every kind of run, a row for every bit width, a line for every label."""
    results, losses = read_posttraining(study.study)
    runs = results.drop_duplicates("run").assign(path=results.experiment + "/" + results.variant)
    losses = losses.merge(runs[["run", "path", "seed"]], on="run")
    labels = list(entry.methods)
    losses = losses[losses.path.isin(entry.of) & losses.eval_bits.isin(entry.bits) & losses.label.isin(labels)]
    if losses.empty:
        return None
    paths, widths = [path for path in entry.of if path in set(losses.path)], sorted(losses.eval_bits.unique())
    colors = dict(zip(labels, [GREY, *sns.color_palette("colorblind")] * 2))
    styles = dict(zip(labels, ["-", "--"] * len(labels)))  # on a chain of single layers BRECQ lies on AdaRound
    figure, grid = plt.subplots(
        len(widths), len(paths), figsize=(2.9 * len(paths) + 1.6, 2.3 * len(widths) + 0.4), squeeze=False,
        sharex="col", layout="constrained",
    )  # fmt: skip
    for path, column in zip(paths, grid.T):
        column[0].set_title(
            f"{model_name(recipes[path])}, {panel_title(recipes[path])}\n{path.split('/')[0]}", fontsize="medium"
        )
        column[-1].set_xlabel("unit, in network order")
        column[-1].xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        for bits, axes in zip(widths, column):
            mine = losses[(losses.path == path) & (losses.eval_bits == bits)]
            for label, runs in mine.groupby("label"):
                _depth(axes, runs, color=colors[label], ls=styles[label])
            axes.set_yscale("log")
    for bits, row in zip(widths, grid):
        row[0].set_ylabel(f"{bits_label(bits)}: $|z_q - z|^2\\,/\\,|z|^2$")
    shown = set(losses.label)
    handles = [Line2D([], [], color=colors[label], ls=styles[label], label=label) for label in labels if label in shown]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    sns.despine(figure)
    return figure


def _depth(axes: Axes, runs: pd.DataFrame, color: Any, ls: str) -> None:
    """One label: mean and range over seeds, and circles on units that share a group."""
    by_place = runs.groupby("place")
    mean = by_place.loss.mean()
    axes.plot(mean.index, mean, color=color, ls=ls, lw=1.3)
    if runs.seed.nunique() >= MINIMUM_RUNS:
        axes.fill_between(mean.index, by_place.loss.min(), by_place.loss.max(), color=color, alpha=0.18, lw=0)
    first = runs[runs.seed == runs.seed.min()].set_index("place").group
    together = first.index[first.duplicated(keep=False)]
    axes.plot(together, mean[together], "o", color=color, ms=3.5)
