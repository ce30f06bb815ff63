"""Films: how the weights of one layer move over their grid while networks train, as animated GIFs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from oscillations.core.errors import InputError
from oscillations.core.files import replacing
from oscillations.engine.recipe import Recipe
from oscillations.records.plans import current
from oscillations.records.rows import read_csv
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import BLACK, GREY
from oscillations.report.figures.panels import method_color, model_name, name_of, options_of
from oscillations.report.results import Report
from oscillations.study import paths
from oscillations.study.report_schema import Film

FRAME, HELD = 200, 3000  # milliseconds: an epoch, the last one
HEIGHT, DPI = 2.8, 160  # inches, dots per inch
COLORS = 64


@dataclass(frozen=True)
class Training:
    """What a run recorded: ``density`` per step, a row for the start and every epoch, a column for every bin."""

    recipe: Recipe
    near: np.ndarray
    density: np.ndarray
    edges: np.ndarray

    @property
    def epochs(self) -> int:
        return len(self.density) - 1


def write_films(report: Report) -> None:
    """Draw every film of the study of which something has run, and remove what no longer stands."""
    films, folder = report.study.films, paths.figures(report.study.study)
    for file in folder.glob("*.gif"):
        if file.stem not in films:
            file.unlink()
    filmed = {path for spec in films.values() for path in spec.panels}  # other runs may be in the making
    found = current(plan for plan in report.plans if plan.variant.path in filmed)
    first = {plan.variant.path: plan for plan in reversed(found)}  # of several seeds
    for name, spec in films.items():
        file = folder / f"{name}.gif"
        if trainings := [read(first[path].variant.recipe, first[path].run) for path in spec.panels if path in first]:
            _write(file, frames(spec, trainings))
        else:
            file.unlink(missing_ok=True)


def read(recipe: Recipe, run: paths.Run) -> Training:
    file = run.folder / paths.WEIGHTS
    table = read_csv(file, ["epoch", "near_threshold"], dtype=float)
    if table.empty:
        raise InputError(f"{file}: is damaged: has no row, not even of the start")
    counts = table.drop(columns=["epoch", "near_threshold"])
    centres = counts.columns.to_numpy(float)
    width = centres[1] - centres[0]
    density = counts.to_numpy(float) / counts.sum(axis=1).to_numpy()[:, None] / width
    edges = np.append(centres, centres[-1] + width) - width / 2
    return Training(recipe, table.near_threshold.to_numpy(), density, edges)


def frames(spec: Film, trainings: list[Training]) -> list[Image.Image]:
    """A picture of the start and of every epoch, until the last training has stopped."""
    figure, row = plt.subplots(1, len(trainings), figsize=(WIDTH, HEIGHT), dpi=DPI, sharey=True, squeeze=False)
    panels = [Panel(axes, training) for axes, training in zip(row[0], trainings)]
    row[0][0].set_ylabel("density of weights (log scale)")
    density = np.concatenate([training.density[training.density > 0] for training in trainings])
    row[0][0].set(yscale="log", ylim=(density.min() / 1.5, density.max() * 6))
    heading = figure.suptitle(" ", fontsize=11)
    figure.supxlabel(
        "weight in steps of the grid, w / s; dashed: thresholds between levels; near: within 5 % of a step",
        fontsize=8,
    )
    what = f"{spec.layer} of {model_name(trainings[0].recipe)}"
    canvas, pictures = FigureCanvasAgg(figure), []
    for epoch in range(max(training.epochs for training in trainings) + 1):
        heading.set_text(f"{what}: {f'epoch {epoch}' if epoch else 'the start'}")
        for panel in panels:
            panel.show(epoch)
        canvas.draw()
        figure.set_layout_engine("none")  # as the first picture's, so that nothing jumps
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    plt.close(figure)
    return pictures


class Panel:
    """One training, drawn at one epoch after the other."""

    def __init__(self, axes: Axes, training: Training):
        self.axes, self.training = axes, training
        self.bars = axes.stairs(
            training.density[0], training.edges, fill=True, color=method_color(training.recipe), lw=0
        )
        low, high = round(training.edges[0]), round(training.edges[-1])
        for threshold in np.arange(low, high) + 0.5:
            axes.axvline(threshold, color=BLACK, ls="--", lw=0.6, zorder=0)  # behind: peaks there are thin
        axes.set(xlim=(low - 0.15, high + 0.15), xticks=range(low, high + 1))
        box = {"facecolor": "white", "lw": 0, "pad": 2}
        self.note = axes.text(0.5, 0.93, "", transform=axes.transAxes, ha="center", fontsize=8, color=GREY, bbox=box)

    def show(self, epoch: int) -> None:
        """That epoch, or the last one, with a note that the training stopped before its time."""
        last = min(epoch, self.training.epochs)
        self.bars.set_data(self.training.density[last])
        near = f"near a threshold: {100 * self.training.near[last]:.1f} %"
        title = ", ".join(filter(None, [name_of(self.training.recipe), *options_of(self.training.recipe)]))
        self.axes.set_title(f"{title}\n{near}")
        if last == self.training.epochs < self.training.recipe.training.epochs:
            self.note.set_text(f"stopped after epoch {last}")


def _write(file: Path, pictures: list[Image.Image]) -> None:
    palette = pictures[-1].quantize(COLORS, Image.Quantize.FASTOCTREE)  # of its methods that with the whitest white
    first, *rest = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    durations = [FRAME] * len(rest) + [HELD]
    with replacing(file) as part:
        first.save(part, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
