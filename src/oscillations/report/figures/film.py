"""Films: how the weights of one layer move over their grid while networks train, as animated GIFs."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from oscillations.core.files import replacing
from oscillations.engine.recipe import Recipe
from oscillations.records.plans import current, plans
from oscillations.report.figures.palette import BLACK
from oscillations.report.figures.runs import method_color, model_name, panel_title
from oscillations.study import paths
from oscillations.study.report_schema import Film
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

FRAME, HELD = 200, 3000  # milliseconds: an epoch, the last one
WIDTH, HEIGHT, DPI = 7.0, 2.9, 160  # inches, dots per inch
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


def write_films(study: Study, variants: list[Variant]) -> None:
    """Draw every film of the study of which something has run."""
    found = current(plans(variants)) if study.films else []
    first = {plan.variant.path: plan for plan in reversed(found)}  # of several seeds
    for name, spec in study.films.items():
        panels = [first[path] for path in spec.panels if path in first]
        if panels:
            _write(name, study, spec, [read(plan.variant.recipe, plan.run) for plan in panels])


def read(recipe: Recipe, run: paths.Run) -> Training:
    table = pd.read_csv(run.folder / paths.WEIGHTS)
    counts = table.drop(columns=["epoch", "near_threshold"])
    centres = counts.columns.to_numpy(float)
    width = centres[1] - centres[0]
    density = counts.to_numpy(float) / counts.sum(axis=1).to_numpy()[:, None] / width
    edges = np.append(centres, centres[-1] + width) - width / 2
    return Training(recipe, table.near_threshold.to_numpy(), density, edges)


def frames(spec: Film, trainings: list[Training]) -> list[Image.Image]:
    """A picture of the start and of every epoch, until the last training has stopped."""
    sns.set_theme(style="ticks", context="paper", font_scale=1.0)
    figure, row = plt.subplots(
        1, len(trainings), figsize=(WIDTH, HEIGHT), dpi=DPI, sharey=True, squeeze=False, layout="constrained"
    )
    panels = [Panel(axes, training) for axes, training in zip(row[0], trainings)]
    row[0][0].set_ylabel("density of weights (log scale)")
    density = np.concatenate([training.density[training.density > 0] for training in trainings])
    row[0][0].set(yscale="log", ylim=(density.min() / 1.5, density.max() * 6))
    heading = figure.suptitle(" ", fontsize=11)
    figure.supxlabel(
        "weight in steps of the grid, w / s; dashed: thresholds between levels; near: within 5 % of a step",
        fontsize=8,
    )
    sns.despine(figure)
    what = f"{spec.layer} of {model_name(trainings[0].recipe)}"
    pictures = []
    for epoch in range(max(training.epochs for training in trainings) + 1):
        heading.set_text(f"{what}: {f'epoch {epoch}' if epoch else 'the start'}")
        for panel in panels:
            panel.show(epoch)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    plt.close(figure)
    return pictures


class Panel:
    """One training, drawn at one epoch after the other."""

    def __init__(self, axes: Axes, training: Training):
        self.training = training
        self.bars = axes.stairs(
            training.density[0], training.edges, fill=True, color=method_color(training.recipe), lw=0
        )
        low, high = round(training.edges[0]), round(training.edges[-1])
        for threshold in np.arange(low, high) + 0.5:
            axes.axvline(threshold, color=BLACK, ls="--", lw=0.6)
        axes.set(xlim=(low - 0.15, high + 0.15), xticks=range(low, high + 1))
        axes.set_title(panel_title(training.recipe), fontsize=9)
        self.text = axes.text(0.5, 0.98, "", transform=axes.transAxes, ha="center", va="top", fontsize=8)

    def show(self, epoch: int) -> None:
        last = min(epoch, self.training.epochs)
        self.bars.set_data(self.training.density[last])
        stopped = f"\nstopped after epoch {last}" if last == self.training.epochs else "\n"
        self.text.set_text(f"near a threshold: {100 * self.training.near[last]:.1f} %{stopped}")


def _write(name: str, study: Study, spec: Film, trainings: list[Training]) -> None:
    pictures = frames(spec, trainings)
    palette = pictures[-1].quantize(COLORS, dither=Image.Dither.NONE)
    first, *rest = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    durations = [FRAME] * len(rest) + [HELD]
    with replacing(paths.figures(study.study) / f"{name}.gif") as part:
        first.save(part, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
