"""The figures of a study, as PNG and PDF: those of the paper, and those of all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oscillations.core.files import replacing
from oscillations.report.captions import DPI, title
from oscillations.report.figures.comparison import comparison
from oscillations.report.figures.exact import figure1, figure_a1, figure_a5
from oscillations.report.figures.gain import gain
from oscillations.report.figures.histories import figure3, figure7, figure8
from oscillations.report.figures.reconstruction import reconstruction
from oscillations.report.figures.searches import figure5, figure6, figure_rates
from oscillations.report.figures.toy_regression import toy_regression
from oscillations.report.figures.weights import figure2
from oscillations.report.results import Report
from oscillations.study import paths
from oscillations.study.drawing import drawn
from oscillations.study.report_schema import figure_number

OF_RUNS: dict[str, Callable[[Any, Report], Figure | None]] = {  #: what a study file must tell of, in its figures
    "figure2": figure2,
    "figure3": figure3,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
    "figure8": figure8,
    "figure-rates": figure_rates,
}
EXACT: dict[str, Callable[[], Figure]] = {"figure1": figure1, "figureA1": figure_a1, "figureA5": figure_a5}


def write_figures(report: Report) -> None:
    """Draw every figure of which something has run, and remove what was drawn of what no longer stands."""
    expected, folder, made = _expected(report), paths.figures(report.study.study), set()
    for name in report.study.figure_names:
        figure = draw(name, report)
        if figure is None and name in expected:
            figure = _all_diverged(name)
        if figure is None:
            continue
        made.add(name)
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            with replacing(folder / f"{name}.{suffix}") as part:
                figure.savefig(part, dpi=DPI, format=suffix, metadata=metadata)
        plt.close(figure)
    for file in [*folder.glob("*.png"), *folder.glob("*.pdf")]:
        if file.stem not in made:
            file.unlink()


def draw(name: str, report: Report) -> Figure | None:
    """One figure; None if nothing of it has run, or all that has run diverged."""
    kind = figure_number(name)
    label = name.removeprefix(f"{kind}-")
    if kind in EXACT:
        return EXACT[kind]()
    if name == "figure-aoq-toy":
        return toy_regression(report)
    if kind == "figure-reconstruction":
        return reconstruction(report.study.posttraining[label], report)
    if kind == "figure-comparison":
        return comparison(label, report)
    if kind == "figure-gain" and report.study.gain:
        return gain(report.study.gain, report)
    return OF_RUNS[kind](report.study.figures[name], report)


def _expected(report: Report) -> list[str]:
    """The figures that are promised, of runs that have been made, diverged or not."""
    made = report.results.posttraining
    entries = [
        name
        for name, entry in report.study.posttraining.items()
        if (made.path.isin(entry.of) & made.label.isin(entry.methods) & made.eval_bits.isin(entry.bits)).any()
    ]
    return drawn(report.study, report.variants, set(report.results.evaluations.path), entries)


def _all_diverged(name: str) -> Figure:
    """What stands for a figure that was promised before its runs had been made."""
    figure = plt.figure(figsize=(3, 0.5))
    figure.text(0.5, 0.5, f"{title(name)}: all runs diverged", ha="center", va="center")
    return figure
