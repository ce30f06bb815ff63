"""Figures of what happens during training: oscillations (3) and validation accuracies (7, 8)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oscillations.core.bits import LATENT
from oscillations.report.estimates import MINIMUM_RUNS
from oscillations.report.figures.page import signed
from oscillations.report.figures.palette import BITS, GREY, METHODS
from oscillations.report.figures.panels import columns_of_panels, method_color
from oscillations.report.results import Report
from oscillations.report.text import bits_label
from oscillations.study.paths import experiment_of
from oscillations.study.report_schema import Panels

RATES = {"per_epoch": "% of weights\nper epoch", "per_step": "% of weights\nper step"}
LINEAR = 1.0  #: points of difference up to which its axis is linear


def _all_went(runs: pd.DataFrame) -> pd.DataFrame:
    """The epochs that all seeds reached."""
    return runs[runs.epoch <= runs.groupby("seed").epoch.max().min()]


def _mean(axes: Axes, runs: pd.DataFrame, column: str, **style: Any) -> None:
    mean = _all_went(runs).groupby("epoch")[column].mean()
    axes.plot(mean.index, mean, **style)


def _band(axes: Axes, runs: pd.DataFrame, column: str, **style: Any) -> None:
    """Mean over seeds with their range."""
    _mean(axes, runs, column, **style)
    if runs.seed.nunique() >= MINIMUM_RUNS:
        by_epoch = _all_went(runs).groupby("epoch")[column]
        axes.fill_between(
            by_epoch.min().index, by_epoch.min(), by_epoch.max(), color=style["color"], alpha=0.18, lw=0
        )  # fmt: skip


def _rests(axes: Axes, runs: pd.DataFrame, column: str, color: str) -> None:
    """Each seed from where the first one stopped, and a cross where it stopped itself."""
    common = runs.groupby("seed").epoch.max().min()
    for _, run in runs.groupby("seed"):
        rest = run[run.epoch >= common]
        axes.plot(rest.epoch, rest[column], color=color, lw=0.5)
        axes.plot(rest.epoch.iloc[-1:], rest[column].iloc[-1:], "x", color=color, ms=3, mew=0.8)


def _epochs(spec: Panels, report: Report) -> dict[str, pd.DataFrame]:
    """Every epoch of the runs of each panel that has any."""
    epochs = report.results.epochs
    by_panel = {path: epochs[epochs.path == path] for path in spec.panels}
    return {path: runs for path, runs in by_panel.items() if len(runs)}


def figure3(spec: Panels, report: Report) -> Figure | None:
    """Share of the weights that oscillate, sampled per epoch and counted per step, beside QAT's."""
    epochs = _epochs(spec, report)
    if not epochs:
        return None
    weights = int(next(iter(epochs.values())).weights.iloc[0])
    figure, grid = columns_of_panels(
        list(epochs),
        spec.panels,
        report,
        f"how many of {weights:,} weights oscillate",
        rows=len(RATES),
        height=1.45,
    )
    for (path, runs), column in zip(epochs.items(), grid.T):
        color, qat = method_color(report.recipes[path]), _qat_beside(path, epochs, report)
        for axes, rate in zip(column, RATES):
            if qat is not None:
                _mean(axes, qat, rate, color=METHODS["qat"], lw=1.0, ls=":")
            _band(axes, runs, rate, color=color)
            _rests(axes, runs, rate, color)
        column[-1].set_xlabel("epoch")
    for row, label in zip(grid, RATES.values()):
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    figure.legend(
        handles=[
            Line2D([], [], color=GREY, label="mean over seeds, and their range"),
            Line2D([], [], color=GREY, lw=0.5, marker="x", ms=3, label="one seed where others stopped, and its end"),
            *([Line2D([], [], color=METHODS["qat"], lw=1.0, ls=":", label="QAT")] if _has_qat(epochs, report) else []),
        ],
        loc="outside lower center", ncols=3,
    )  # fmt: skip
    return figure


def _qats(epochs: dict[str, pd.DataFrame], report: Report) -> list[str]:
    return [path for path in epochs if report.recipes[path].method.name == "qat"]


def _has_qat(epochs: dict[str, pd.DataFrame], report: Report) -> bool:
    return 0 < len(_qats(epochs, report)) < len(epochs)


def _qat_beside(path: str, epochs: dict[str, pd.DataFrame], report: Report) -> pd.DataFrame | None:
    """The runs of QAT that a panel is compared with: of its own experiment, else of the first panel with QAT."""
    qats = _qats(epochs, report)
    if not qats or path in qats:
        return None
    same = [qat for qat in qats if experiment_of(qat) == experiment_of(path)]
    return epochs[(same or qats)[0]]


def figure7(spec: Panels, report: Report) -> Figure | None:
    return _accuracies(spec, report, report.study.eval_bits, differences=True)


def figure8(spec: Panels, report: Report) -> Figure | None:
    return _accuracies(spec, report, [LATENT], differences=False)


def _accuracies(spec: Panels, report: Report, widths: list[int], differences: bool) -> Figure | None:
    """Validation accuracy over epochs at some bit widths and at the one each panel trains for.

    ``differences``: a second row shows how far each width is from the latent weights.
    """
    epochs = _epochs(spec, report)
    if not epochs:
        return None
    figure, grid = columns_of_panels(
        list(epochs), spec.panels, report, "accuracy while training", rows=1 + differences, height=1.9
    )
    shown: dict[int, Line2D] = {}
    for (path, runs), column in zip(epochs.items(), grid.T):
        target = report.recipes[path].bits
        for bits in sorted({*widths, target}):
            style: dict[str, Any] = {"color": BITS.get(bits, GREY), "ls": "--" if bits == LATENT else "-"}
            width = 2.2 if bits == target else 1.1
            _band(column[0], runs, f"val_acc_{bits}", lw=width, **style)
            shown[bits] = Line2D([], [], label=bits_label(bits), **style)
            if differences:
                less = runs.assign(difference=runs[f"val_acc_{bits}"] - runs[f"val_acc_{LATENT}"])
                _band(column[1], less, "difference", lw=width, **style)
        column[-1].set_xlabel("epoch")
    grid[0][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel("validation accuracy (%)")
    if differences:
        axes = grid[1][0]
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.set_yticks([-50, -10, -3, -1, 0, 1, 3])
        axes.yaxis.set_major_formatter(signed)
        axes.minorticks_off()
        axes.set_ylabel("difference to FP32 (points)")
    figure.legend(handles=[shown[bits] for bits in sorted(shown)], loc="outside right center")
    return figure
