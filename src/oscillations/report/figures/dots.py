"""What the dot plots share: rows from top to bottom, the seeds behind a mean, marks of bit widths."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from oscillations.core.bits import LATENT
from oscillations.report.figures.palette import BITS, GREY, LIGHT, MARKERS
from oscillations.report.results import Results, kept
from oscillations.report.text import bits_label

SHIFT = 0.32  # of the seeds below their row, in rows
LEGEND: dict[str, Any] = {"loc": "lower center", "columnspacing": 0.9, "borderaxespad": 0.2}  #: above a panel


def rows_on(axes: Axes, lines: int) -> None:
    """Room for so many rows, the first on top."""
    axes.set_ylim(lines - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LIGHT, lw=0.6)
    axes.set_axisbelow(True)


def seeds_of(found: Results, runs: str, label: str | float | None, bits: int, at_end: bool = False) -> pd.Series:
    """The runs' accuracies (%) at a bit width, as they are or after the post-training method of that label.

    ``at_end``: with the weights at the end of training.
    """
    if isinstance(label, str):
        made = found.posttraining
        table = kept(made[made.label == label])
    else:
        table = found.ends[found.ends.bn == "keep"] if at_end else found.tests
    return table[table.run.isin(runs.split()) & (table.eval_bits == bits)].accuracy


def draw_seeds(axes: Axes, values: pd.Series, place: float, color: str) -> None:
    """One small dot per seed, below the mean."""
    axes.plot(values, [place + SHIFT] * len(values), "o", ms=2, color=color, alpha=0.6, mew=0, zorder=2)


def width_mark(bits: int) -> dict[str, Any]:
    """How a bit width is drawn where it is a mark."""
    line = bits == LATENT
    return {
        "marker": MARKERS.get(bits, "P"), "color": BITS.get(bits, GREY), "ms": 6 if line else 3.5,
        "mew": 1.2 if line else 0, "lw": 0,  "label": bits_label(bits),
    }  # fmt: skip
