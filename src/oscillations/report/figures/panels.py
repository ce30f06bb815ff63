"""Figures with a column of panels for every kind of run that a study names and that has run."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from oscillations.core.bits import LATENT
from oscillations.engine.recipe import Recipe
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import METHODS, PURPLE
from oscillations.report.results import Report
from oscillations.report.text import METHOD_NAMES, MODEL_NAMES, bits_label
from oscillations.study.paths import experiment_of

WIDEST = 3.2  #: of a panel, in inches
LETTERS = 90  #: of a title, on a line


def name_of(recipe: Recipe) -> str:
    """'OsciQuant 3-bit'."""
    name = METHOD_NAMES.get(recipe.method.name, recipe.method.name)
    return name if recipe.bits == LATENT else f"{name} {bits_label(recipe.bits)}"


def options_of(recipe: Recipe) -> list[str]:
    """'λ = 1', and the form of the regularizer if it is another than the released code's."""
    method = recipe.method
    lam, form = method.get("lambda"), method.get("preset", "official_code").replace("_", " ")
    said = "" if lam is None else f"λ = {lam:g}"
    return [said] if form == "official code" else [said, f"{form}, scale: {method.get('scale_grad')}"]


def model_name(recipe: Recipe) -> str:
    return MODEL_NAMES.get(recipe.model.name, recipe.model.name)


def method_color(recipe: Recipe) -> str:
    return METHODS.get(recipe.method.name, PURPLE)


def columns_of_panels(
    paths: Sequence[str],
    asked: Sequence[str],
    report: Report,
    title: str,
    rows: int,
    height: float,
    sharex: bool = True,
) -> tuple[Figure, np.ndarray]:
    """A figure with a titled column of axes for every path: ``(figure, axes [rows, paths])``.

    ``asked``: what a study wants shown; the title says which of it has not run. ``height``: of a row, in inches.
    """
    width = min(WIDTH, WIDEST * len(paths) + 0.6)
    figure, grid = plt.subplots(
        rows, len(paths), figsize=(width, height * rows + 0.5), squeeze=False, sharex=sharex, sharey="row"
    )
    for letter, heading, axes in zip(string.ascii_lowercase, _headings(paths, report), grid[0]):
        axes.set_title(f"({letter}) {heading}")
    for axes in grid.flat:
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    left_out = ", ".join(path for path in asked if path not in paths)
    note = textwrap.wrap(f"not run: {left_out}", LETTERS) if left_out else []
    figure.suptitle("\n".join([f"{model_name(report.recipes[paths[0]])}: {title}", *note]))
    return figure, grid


def _headings(paths: Sequence[str], report: Report) -> list[str]:
    """What the paths are and of how many runs; their experiments where nothing else tells them apart."""
    said = [(name_of(report.recipes[path]), options_of(report.recipes[path])) for path in paths]
    tests = report.results.tests
    headings = []
    for path, (name, (lam, *form)) in zip(paths, said):
        n = f"n = {tests[tests.path == path].seed.nunique()}"
        last = [experiment_of(path)] if said.count((name, [lam, *form])) > 1 else []
        headings.append("\n".join([name, ", ".join(filter(None, [lam, n])), *form, *last]))
    return headings
