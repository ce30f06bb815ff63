"""Figures that need no run: the toy models of section 3 and Appendix A.1, and what counting misses (A.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oscillations.report.figures import toy_models as toy
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

BATCH, EPOCHS = 128, 8  # of the sampled two-cycle in figure A5
TIMEOUT = 2  # steps after which figure A5 calls two changes separate


def figure1() -> Figure:
    model, w = toy.FIGURE1, toy.figure1_trajectory()
    epochs = np.arange(len(w))
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    axes.axhline(model.step / 2, color=VERMILION, lw=1.2, label="threshold")
    axes.axhline(model.optimum, color=BLACK, ls=":", lw=1.2, label="target")
    axes.plot(epochs, w, color=GREY, lw=0.8, zorder=2)
    axes.scatter(epochs, w, c=np.where(model.quantize(w) > 0, ORANGE, BLUE), s=26, zorder=3)
    for shift, gradient, color, label in (
        (-0.13, -model.loss_gradient(w), GREEN, "loss gradient (to the target)"),
        (0.13, -model.oscillation_gradient(w, model.curvature), PURPLE, "oscillation term (to the threshold)"),
    ):
        axes.quiver(
            epochs + shift, w, np.zeros_like(w), gradient, angles="xy", scale_units="xy", scale=2.2, width=0.0032,
            color=color, zorder=2,
        )  # fmt: skip
        axes.plot([], [], color=color, marker="^", ms=5, lw=1.6, label=label)
    axes.scatter([], [], c=BLUE, s=26, label="w, quantized to 0")
    axes.scatter([], [], c=ORANGE, s=26, label="w, quantized to 1")
    axes.set(xlabel="Epoch", ylabel="w (steps)", ylim=(0, 1), xlim=(-0.6, 19.6), title="QAT oscillating")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    figure.legend(loc="outside right center")
    return figure


def figure_a1() -> Figure:
    """Both terms of Eq. 32 over the plane of the two weights, and descent with and without the second."""
    model, top = toy.TwoWeights(), 2.0
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.9), sharey=True)
    points = np.arange(0.0625, top, 0.125)
    w = np.stack(np.meshgrid(points, points), axis=-1)
    for axes, field, color, title in (
        (left, -model.oscillation_gradient(w), PURPLE, "(a) oscillation term:\nto the thresholds"),
        (middle, -model.drift_gradient(w), ORANGE, "(b) extra drift:\nthe other weight's error"),
    ):
        root = field / np.sqrt(np.maximum(np.linalg.norm(field, axis=-1, keepdims=True), 1e-12))
        axes.quiver(
            *np.moveaxis(w, -1, 0), *np.moveaxis(root, -1, 0), angles="xy", scale_units="xy", scale=10, width=0.005,
            color=color, pivot="mid",
        )  # fmt: skip
        axes.set_title(title)
    for start in ((1.3, 0.8), (1.75, 1.15), (0.3, 1.75)):
        qat, without = (model.descend(np.array(start), lr=0.02, steps=400, drift=drift) for drift in (True, False))
        right.plot(*qat.T, color=BLUE, lw=1.6)
        right.plot(*without.T, color=VERMILION, lw=1.0)
        right.plot(*start, "o", color=BLACK, ms=4)
    right.plot([], [], color=BLUE, label="QAT")
    right.plot([], [], color=VERMILION, label="QAT without the drift")
    right.plot([], [], "o", color=BLACK, ms=4, label="start")
    right.set_title("(c) gradient descent")
    curve = np.linspace(model.y / top, top)
    for axes in (left, middle, right):
        axes.plot(curve, model.y / model.x / curve, color=BLACK, ls=":", label="target" if axes is right else None)
        for threshold in model.step * (np.arange(top) + 0.5):
            line = {"color": GREY, "ls": "--", "lw": 0.8, "zorder": 0}
            axes.axvline(threshold, **line)
            axes.axhline(threshold, **line)
        axes.set(xlabel="$w_1$ (steps)", xlim=(0, top), ylim=(0, top), aspect="equal")
    right.plot([], [], color=GREY, ls="--", lw=0.8, label="thresholds")
    left.set_ylabel("$w_2$ (steps)")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def figure_a5() -> Figure:
    """Worked sequences of codes with what each counter makes of them."""
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.4))
    _counted(grid[0, 0], "(a) the first crossing of every run is missed", [0, 0, 1, 0, 1, 1, 0, 0, 1, 2, 2, 1, 1])
    _sampled(grid[0, 1], "(b) sampled per epoch: only the parity")
    _counted(grid[1, 0], "(c) two excursions far apart are chained", [0, 1, 0, 0, 0, 0, 0, 1, 0], TIMEOUT)
    _counted(grid[1, 1], "(d) one long excursion is an oscillation", [0, 1, 1, 1, 1, 0], TIMEOUT)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _counted(axes: Axes, title: str, codes: Sequence[int], timeout: int | None = None) -> None:
    """A code over time; its changes by whether Nagel's rule counts them; and the totals."""
    runs = toy.alternating_runs(codes)
    first = {run[0] for run in runs}
    chained = {run[0] for run in toy.alternating_runs(codes, timeout)} - first
    axes.step(range(len(codes)), codes, where="post", color=GREY, lw=1.2, zorder=1)
    kinds: list[tuple[Callable[[int], bool], dict[str, Any], str]] = [
        (lambda t: t not in first | chained, {"c": BLUE}, "counted by Nagel's rule"),
        (lambda t: t in first, {"facecolors": "white", "edgecolors": VERMILION}, "not counted: first of its run"),
        (lambda t: t in chained, {"c": ORANGE, "marker": "D"}, f"counted, more than {TIMEOUT} steps after the last"),
    ]
    for wanted, style, label in kinds:
        times = [t for run in runs for t in run if wanted(t)]
        axes.scatter(times, [codes[t] for t in times], s=48, linewidths=1.8, zorder=2, label=label, **style)
    text = f"crossings {sum(map(len, runs))}, {_totals(runs)}"
    if timeout:
        text += f"\ntimeout {timeout}: {_totals(toy.alternating_runs(codes, timeout))}"
    axes.text(0.02, 1, text, transform=axes.transAxes, va="top")
    axes.set(xlabel="Step", ylabel="code", yticks=range(max(codes) + 1), ylim=(-0.15, max(codes) * 1.55))
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.set_title(title)


def _totals(runs: list[list[int]]) -> str:
    nagel = sum(len(run) - 1 for run in runs)
    corrected = sum(len(run) for run in runs if len(run) > 1)
    return f"Nagel {nagel}, corrected {corrected}, trips {sum(len(run) // 2 for run in runs)}"


def _sampled(axes: Axes, title: str) -> None:
    """A code that changes at every step, seen at the end of each epoch, for three sizes of the training split."""
    labels = []
    for row, (images, color) in enumerate(((40_000, GREEN), (45_000, PURPLE), (50_000, SKY))):
        steps = math.ceil(images / BATCH)
        codes = np.arange(EPOCHS * steps + 1) % 2
        seen = codes[::steps]
        axes.plot(range(EPOCHS + 1), row + 0.5 * seen, "o-", color=color, ms=5, lw=1.2, drawstyle="steps-post")
        counted, happened = (sum(len(run) - 1 for run in toy.alternating_runs(some)) for some in (seen, codes))
        axes.text(EPOCHS + 0.4, row + 0.25, f"{counted} counted\nof {happened:,}", va="center")
        labels.append(f"{steps} steps\n({images:,} images)")
    axes.set(xlabel="Epoch", xlim=(-0.3, EPOCHS + 2.2), ylim=(-0.3, 2.8), xticks=range(EPOCHS + 1))
    axes.set_yticks([0.25, 1.25, 2.25], labels)
    axes.set_title(title)
