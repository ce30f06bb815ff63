"""What explains the gain over PTQ: several ways to quantize one network."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oscillations.core.bits import LATENT
from oscillations.report.figures.dots import LEGEND, draw_seeds, rows_on, seeds_of, width_mark
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import BLACK, GREY, METHODS
from oscillations.report.results import Report
from oscillations.report.tables.gain import read_gain, title
from oscillations.report.text import bits_label
from oscillations.study.report_schema import Gain

LINE = 0.25  # inches from one row to the next
LETTERS = 34  # of a row's name, on a line


def gain(wanted: Gain, report: Report) -> Figure | None:
    """Left: accuracy at the table's width, beside full precision's. Right: difference to what all are compared with."""
    rows = read_gain(report)
    rows = rows[rows.n > 0]
    against = [row.text for row in wanted.rows if row.of == wanted.against and not row.posttraining]
    if not rows.text.isin(against).any():
        return None
    rows = rows.assign(
        place=range(len(rows)),
        label=rows.text.map({row.text: row.posttraining for row in wanted.rows}),
        color=[METHODS["osciquant"] if text in against else BLACK for text in rows.text],
        difference=rows.difference.mask(rows.text.isin(against), 0),
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, LINE * len(rows) + 1.1))
    for axes in (left, right):
        rows_on(axes, len(rows))
    _accuracies(left, rows, report, wanted.bits)
    for row in rows.itertuples():
        right.plot([row.low, row.high], [row.place] * 2, color=row.color, lw=1.1)
        right.plot(row.difference, row.place, "o", ms=4.5, color=row.color)
    left.set_yticks(rows.place, ["\n".join(textwrap.wrap(text, LETTERS)) for text in rows.text])
    right.axvline(0, color=METHODS["osciquant"], lw=0.8, zorder=1)
    right.set_yticks(rows.place, [f"n = {n}" for n in rows.n])
    right.yaxis.tick_right()
    right.spines.left.set_visible(False)
    right.set_xlabel(f"difference to {against[0]} (points), 95 %")
    figure.suptitle(title(wanted))
    return figure


def _accuracies(axes: Axes, rows: pd.DataFrame, report: Report, bits: int) -> None:
    full = width_mark(LATENT)
    for row in rows.itertuples():
        draw_seeds(axes, seeds_of(report.of(row.study), row.runs, row.label, bits), row.place, GREY)
        axes.plot(row.accuracy, row.place, "o", ms=4.5, color=row.color)
    axes.plot(rows.fp, rows.place, **full)
    axes.set_xlim(left=0)
    axes.set_xlabel("accuracy (%)")
    handles = [
        Line2D([], [], color=BLACK, marker="o", ms=4.5, lw=0, label=bits_label(bits)),
        Line2D([], [], color=GREY, marker="o", ms=2, lw=0, label="seed"),
        Line2D([], [], **full),
    ]
    axes.legend(handles=handles, bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1, **LEGEND)
