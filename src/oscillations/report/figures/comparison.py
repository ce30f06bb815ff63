"""Every method of a comparison beside the others, by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oscillations.core.bits import LATENT
from oscillations.report.figures.dots import LEGEND, draw_seeds, rows_on, seeds_of, width_mark
from oscillations.report.figures.page import SMALL, WIDTH
from oscillations.report.figures.palette import BLACK, GREY, LIGHT, METHODS
from oscillations.report.results import Report
from oscillations.report.tables.comparison import AT_END, EARLY, other_widths, read_comparison, title
from oscillations.report.text import bits_label
from oscillations.study.report_schema import ComparisonTable

MOST = 150  # rows: two pages of them; a picture of 2,400 is too large for its format
REFERENCES = ("qat", "baseline")  # what all others of a family are compared with
LINE = 0.138  # inches from one row to the next
FAILED = 0.12  # so many of the rows, the worst, do not set the axis of differences
LEAST = 2.0  # points that the axis of differences reaches to the left
TEXT: dict[str, Any] = {"fontsize": SMALL, "va": "center_baseline"}
FULL: dict[str, Any] = {"color": BLACK, "lw": 0.9}  # lines of full precision and of PTQ
PTQ: dict[str, Any] = {"color": GREY, "lw": 0.9, "ls": "--"}


def comparison(name: str, report: Report) -> Figure | None:
    """Left: how far each method is from its family's QAT. Right: its accuracy at every width."""
    spec, ran = report.study.comparisons[name], _ran(read_comparison(report, name))
    if ran.empty:
        return None
    rows = _placed(ran)
    lines, compared = rows.place.max() + 1, _reference(rows).notna().any()
    figure, grid = plt.subplots(1, 1 + compared, figsize=(WIDTH, LINE * lines + 0.95), squeeze=False)
    first, last = grid[0][0], grid[0][-1]
    for axes in grid[0]:
        rows_on(axes, lines)
    if compared:
        _differences(first, rows, report, spec)
        last.spines.left.set_visible(False)
    _widths(last, rows, report, spec)
    _headings(grid[0], rows)
    marks = {row.Index: AT_END if row.at_end is True else EARLY if row.early > 0 else "" for row in rows.itertuples()}
    labels = [f"{row.label} {marks[row.Index]}".strip() for row in rows.itertuples()]
    first.set_yticks(rows.place, labels, fontsize=SMALL)
    for row in rows.itertuples():
        last.text(1.02, row.place, f"n = {row.n}", transform=last.get_yaxis_transform(), **TEXT)
    left_out = f" (the best of {len(ran):,} rows)" if len(rows) < len(ran) else ""
    figure.suptitle(title(report.study, spec) + left_out)
    return figure


def _ran(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have run, each family's best first."""
    rows = rows[(rows.n > 0) | (rows.diverged > 0)]
    families = {family: number for number, family in enumerate(dict.fromkeys(rows.family))}
    rows = rows.assign(family_number=rows.family.map(families))
    return rows.sort_values(["family_number", "accuracy"], ascending=[True, False], kind="stable")


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their line, below their family's heading; of more than :data:`MOST` the best of every family."""
    if len(rows) > MOST:
        best = rows.groupby("family_number").cumcount() < MOST // rows.family.nunique()
        compared_with = rows.method.isin(REFERENCES) & ~rows.duplicated(["family", "method"])
        rows = rows[best | compared_with]
    return rows.assign(place=np.arange(len(rows)) + rows.family_number + 1)


def _reference(rows: pd.DataFrame) -> pd.Series:
    """Accuracy of the QAT that each row is compared with, over the same seeds; none where there is no such QAT."""
    return rows.accuracy - rows.difference.mask((rows.method == "qat") & rows.difference.isna(), 0)


def _headings(panels: Sequence[Axes], rows: pd.DataFrame) -> None:
    """A band with the family's name above its rows."""
    first = panels[0]
    first.set_zorder(1)  # a name may reach into the next panel
    first.patch.set_visible(False)
    for family, places in rows.groupby("family", sort=False).place:
        place = places.min() - 1
        for axes, end in zip(panels, [1.4] * (len(panels) - 1) + [1.0]):  # over the gap, to the next one's own band
            band = axes.axhspan(place - 0.45, place + 0.45, 0, end, color=LIGHT, lw=0, zorder=3, clip_on=False)
            band.set_in_layout(False)
        name = first.text(0.01, place, family, transform=first.get_yaxis_transform(), weight="bold", zorder=4, **TEXT)
        name.set_in_layout(False)


def _differences(axes: Axes, rows: pd.DataFrame, report: Report, spec: ComparisonTable) -> None:
    """Dots with intervals; what lies beyond the axis stands at its edge with its number."""
    reference = _reference(rows)
    rows = rows.assign(zero=reference, away=rows.accuracy - reference)
    families = rows.family
    starts = (rows.method == "baseline") | rows.posttraining.notna()  # rows whose latent weights the family starts from
    full = (rows[f"at_{LATENT}"] - rows.zero).where(starts).groupby(families, sort=False).first()
    ptq = rows.away.where(rows.method == "baseline").groupby(families, sort=False).first()
    low = min(-LEAST, rows.away.quantile(FAILED)) * 1.15
    axes.set_xlim(low, max(0.5, rows.away.max(), full.max()) - 0.08 * low)
    for row in rows.itertuples():
        _difference(axes, row, low, seeds_of(report.results, row.runs, row.posttraining, spec.bits, row.at_end is True))
    axes.axvline(0, color=METHODS["qat"], lw=0.8, zorder=1)
    for found, style in ((full, FULL), (ptq, PTQ)):
        for family, at in found[found > low].items():
            places = rows.place[families == family]
            axes.plot([at, at], [places.min() - 0.5, places.max() + 0.5], zorder=1, **style)
    axes.set_xlabel(f"accuracy at {bits_label(spec.bits)} − QAT's (points)")
    handles = [
        Line2D([], [], color=METHODS["qat"], lw=0.8, label="QAT"),
        Line2D([], [], label="FP32", **FULL),
        Line2D([], [], label="PTQ", **PTQ),
        Line2D([], [], color=BLACK, marker="o", ms=4, lw=0.9, label="mean, 95 %"),
        Line2D([], [], color=BLACK, marker="o", ms=2, lw=0, alpha=0.6, label="seed"),
    ]
    axes.legend(handles=handles, bbox_to_anchor=(0.4, 1), ncols=5, handlelength=1.2, **LEGEND)


def _difference(axes: Axes, row: Any, low: float, seeds: pd.Series) -> None:
    """One row: ``away`` points from its QAT, whose accuracy is ``zero``; ``low`` is where the axis begins."""
    color = METHODS.get(row.method, BLACK)
    if pd.isna(row.away):
        text = " diverged" if pd.isna(row.accuracy) else " no QAT beside"
        axes.text(low, row.place, text, color=GREY, **TEXT)
    elif row.away < low:
        axes.plot(low, row.place, "<", color=color, ms=4, clip_on=False)
        axes.annotate(
            f"{row.away:.1f}".replace("-", "−"), (low, row.place), xytext=(7, 0), textcoords="offset points",
            color=color, bbox={"fc": "white", "lw": 0, "pad": 0.5}, **TEXT,
        )  # fmt: skip
    else:
        draw_seeds(axes, seeds - row.zero, row.place, color)
        axes.plot([row.difference_low, row.difference_high], [row.place] * 2, color=color, lw=0.9, zorder=1)
        face = "white" if row.early > 0 else color
        axes.plot(row.away, row.place, "o", ms=4, color=color, mfc=face, mew=0.9, zorder=3)


def _widths(axes: Axes, rows: pd.DataFrame, report: Report, spec: ComparisonTable) -> None:
    """Accuracy of every row at every width."""
    widths = sorted({spec.bits, *other_widths(report.study, spec)}, reverse=True)
    for bits in widths:
        axes.plot(rows["accuracy" if bits == spec.bits else f"at_{bits}"], rows.place, **width_mark(bits))
    axes.set_xlim(left=0)
    axes.set_xlabel("accuracy (%) at every width")
    axes.legend(bbox_to_anchor=(0.5, 1), ncols=len(widths), handlelength=0.8, **LEGEND)
