"""What post-training quantization leaves of a network's outputs, unit by unit."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from oscillations.report.estimates import MINIMUM_RUNS
from oscillations.report.figures.page import WIDTH, plain
from oscillations.report.figures.palette import SERIES
from oscillations.report.figures.panels import model_name, name_of
from oscillations.report.results import Report
from oscillations.report.text import bits_label
from oscillations.study.paths import experiment_of
from oscillations.study.schema import PostTrainingEntry

NOTHING = 1e-6  #: a relative loss below this is none: the unit has no quantized weights
SAME = 1e-2  #: relative difference of losses up to which two labels are drawn as one


def reconstruction(entry: PostTrainingEntry, report: Report) -> Figure | None:
    """A row for every kind of run and bit width: rounding to nearest on the left, what is learned on the right.

    Of what has not run there is no column.
    """
    losses = report.results.reconstruction
    losses = losses[losses.path.isin(entry.of) & losses.eval_bits.isin(entry.bits)]
    columns: dict[str, list[str]] = {}
    for label, method, _ in entry.resolved():
        if label in set(losses.label):
            columns.setdefault("rounding to nearest" if method == "nearest" else "learned rounding", []).append(label)
    rows = [(path, bits) for path in entry.of for bits in entry.bits
            if len(losses[(losses.path == path) & (losses.eval_bits == bits)])]  # fmt: skip
    if not rows:
        return None
    figure, grid = plt.subplots(
        len(rows), len(columns), figsize=(WIDTH, 1.75 * len(rows) + 0.5), squeeze=False, sharex=True, sharey="row"
    )
    for axes, kind in zip(grid[0], columns):
        axes.set_title(kind)
    for (path, bits), panels in zip(rows, grid):
        mine = losses[(losses.path == path) & (losses.eval_bits == bits)]
        for axes, labels in zip(panels, columns.values()):
            _lines(axes, mine[mine.label.isin(labels)], labels)
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panels[0].yaxis.set_major_formatter(plain)
        panels[0].minorticks_off()
        panels[0].set_ylabel(f"{name_of(report.recipes[path])}\nrelative loss, {bits_label(bits)}")
    for axes in grid[-1]:
        axes.set_xlabel("unit, in network order")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    model, experiment = model_name(report.recipes[rows[0][0]]), experiment_of(rows[0][0])
    figure.suptitle(
        f"What post-training loses of a unit's output: {model} of {experiment}, n = {losses.seed.nunique()}"
    )
    return figure


def _lines(axes: Axes, losses: pd.DataFrame, labels: list[str]) -> None:
    """A line for every label; labels with the same losses share one."""
    means = losses.pivot_table(index="place", columns="label", values="loss")
    alike: list[list[str]] = []
    for label in [label for label in labels if label in means]:
        same = next((group for group in alike if np.allclose(means[group[0]], means[label], rtol=SAME)), None)
        if same is None:
            alike.append([label])
        else:
            same.append(label)
    handles = []
    for (color, marker), group in zip(cycle(SERIES), alike):
        _depth(axes, losses[losses.label == group[0]], color, marker)
        handles.append(Line2D([], [], color=color, marker=marker, ms=3.5, label=",\n".join(group)))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.6)


def _depth(axes: Axes, runs: pd.DataFrame, color: str, marker: str) -> None:
    """One label: mean and range over seeds, marks on units; none of units that lose nothing."""
    runs = runs[runs.loss > NOTHING]
    by_place = runs.groupby("place").loss
    mean = by_place.mean()
    axes.plot(mean.index, mean, color=color, marker=marker, ms=3, lw=1.2)
    if runs.seed.nunique() >= MINIMUM_RUNS:
        axes.fill_between(mean.index, by_place.min(), by_place.max(), color=color, alpha=0.15, lw=0)
