"""Figures of a comparison: what each method trades, and all accuracies at a glance."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from oscillations.core.bits import LATENT, largest_code
from oscillations.report.figures.palette import BLACK, GREY
from oscillations.report.tables.comparison import other_widths, title
from oscillations.report.tables.published import bits_label
from oscillations.study.report_schema import ComparisonTable
from oscillations.study.schema import Study

MARKERS = "osD^vP"
UNRUN = "#ececec"
SIDES = np.array([(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)])  # of a point, best first
DISTANCES = np.array([0.07, 0.15, 0.25, 0.4, 0.6, 0.9])  # of a name, in inches


def scatter(study: Study, spec: ComparisonTable, rows: pd.DataFrame) -> Figure | None:
    """Accuracy at the target over oscillation, coloured by the mean accuracy at the other quantized widths."""
    rows = rows[rows.accuracy.notna() & rows.per_step.notna()]
    if rows.empty:
        return None
    others = [bits for bits in other_widths(study, spec) if bits != LATENT]
    robustness = rows[[f"at_{bits}" for bits in others]].mean(axis=1, skipna=False)
    colors = Normalize(robustness.min(), robustness.max())
    figure, axes = plt.subplots(figsize=(8.6, 5.2), layout="constrained")
    smallest = rows.per_step[rows.per_step > 0].min()
    if smallest > 0:  # zero, of frozen weights say, stands left of all others
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    for marker, (family, group) in zip(MARKERS, rows.groupby("family", sort=False)):
        points = axes.scatter(
            group.per_step, group.accuracy, c=robustness[group.index], norm=colors, cmap="viridis", marker=marker,
            s=64, edgecolor=BLACK, linewidth=0.6, label=family, zorder=3,
        )  # fmt: skip
    axes.set(
        xlabel="% of weights that oscillate (change back) per step, mean over the training",
        ylabel=f"{bits_label(spec.bits)} test accuracy (%)",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.14, 0.1)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]) if rows.per_step.min() == 0 else smallest / 1.8)
    axes.grid(alpha=0.25)
    figure.colorbar(points, label=f"mean accuracy at {', '.join(bits_label(bits) for bits in others)} (%)")
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set(facecolor="white", array=None)
    axes.set_title(title(study, spec), fontsize="medium")
    place_labels(axes, rows[["per_step", "accuracy"]].to_numpy(dtype=float), names(spec, rows))
    sns.despine(figure)
    return figure


def names(spec: ComparisonTable, rows: pd.DataFrame) -> list[str]:
    """Methods, with their number of levels where it is not Eq. 1-2's."""
    usual = 2 * largest_code(spec.bits) + 1
    levels = rows.levels.fillna(usual)
    return [name if n == usual else f"{name} ({n:.0f} levels)" for name, n in zip(rows.label, levels)]


def place_labels(axes: Axes, points: np.ndarray, names: list[str]) -> list[Annotation]:
    """Name every point at the nearest place around it that covers no point and no other name; a line leads home."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # fixes the layout that pixels are counted in
    figure.set_layout_engine("none")
    homes = axes.transData.transform(points)
    frame = axes.get_window_extent()
    marker = 0.055 * figure.dpi
    taken = [Bbox.from_extents(*(home - marker), *(home + marker)) for home in homes]
    labels = []
    for name, point, home in zip(names, points, homes):
        label = axes.annotate(
            name, point, xytext=(0, 0), textcoords="offset points", fontsize="x-small", ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 4}, zorder=2.5,
        )  # fmt: skip
        extent = label.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + 1
        places = [home + side * (half + distance) for distance in DISTANCES * figure.dpi for side in SIDES]
        boxes = [Bbox.from_extents(*(place - half), *(place + half)) for place in places]
        inside = [box for box in boxes if frame.contains(*box.min) and frame.contains(*box.max)]
        free = [box for box in inside if box.count_overlaps(taken) == 0]
        chosen = (free or boxes)[0]
        taken.append(chosen)
        x, y = (np.add(chosen.min, chosen.max) / 2 - home) * 72 / figure.dpi
        label.xyann = (x, y)
        labels.append(label)
    return labels


def heatmap(study: Study, spec: ComparisonTable, rows: pd.DataFrame) -> Figure | None:
    """Mean accuracy of every method (rows, by family) at every evaluation width; the target's column is framed."""
    if rows.accuracy.notna().sum() == 0:
        return None
    widths = sorted(study.eval_bits, reverse=True)
    table = rows.rename(columns={"accuracy": f"at_{spec.bits}"})[[f"at_{bits}" for bits in widths]].astype(float)
    low, high = np.nanmin(table.to_numpy()), np.nanmax(table.to_numpy())
    families = list(dict.fromkeys(rows.family))
    counts = [int((rows.family == family).sum()) for family in families]
    figure, grid = plt.subplots(
        len(families), 1, figsize=(7.2, 0.27 * len(rows) + 0.42 * len(families) + 0.9), squeeze=False, sharex=True,
        height_ratios=counts, layout="constrained",
    )  # fmt: skip
    for axes, family in zip(grid[:, 0], families):
        mine = rows[rows.family == family]
        axes.set_facecolor(UNRUN)
        sns.heatmap(
            table.loc[mine.index], ax=axes, annot=True, fmt=".1f", cmap="viridis", vmin=low, vmax=high, cbar=False,
            linewidths=0.6, linecolor="white", annot_kws={"fontsize": "small"},
        )  # fmt: skip
        target = widths.index(spec.bits)
        for place, row in enumerate(mine.itertuples()):
            if pd.isna(row.accuracy):
                said = "diverged" if row.diverged else "not run"
                axes.text(target + 0.5, place + 0.5, said, ha="center", va="center", fontsize="small", color=GREY)
        axes.add_patch(plt.Rectangle((target, 0), 1, len(mine), fill=False, ec=BLACK, lw=1.6, clip_on=False, zorder=3))
        axes.set_yticklabels(names(spec, mine), rotation=0, fontsize="small")
        axes.set_xticklabels([bits_label(bits) for bits in widths])
        axes.set_title(family, fontsize="medium", loc="left")
        axes.tick_params(length=0)
    shades = plt.cm.ScalarMappable(Normalize(low, high), "viridis")
    figure.colorbar(shades, ax=grid[:, 0].tolist(), label="test accuracy (%)", aspect=40)
    figure.suptitle(title(study, spec), fontsize="medium")
    return figure
