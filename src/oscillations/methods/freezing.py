"""Iterative weight freezing (Nagel et al. 2022, arXiv:2203.11086, section 4.3): LSQ whose oscillating weights stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat

from oscillations.engine.annealing import cosine
from oscillations.engine.method import Method, MethodOptions
from oscillations.methods.dampening import NagelOptions
from oscillations.methods.lsq import Lsq

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.engine.method import Moment, Tensors
    from oscillations.engine.optimizer import Optimizer
    from oscillations.methods._freezing import FreezingQuantizer


TRACKER = "tracker/"  # begins the names of its tensors in a method's state


class ThresholdOptions(MethodOptions):
    """When a weight is frozen, and where."""

    momentum: float = Field(0.001, gt=0, le=0.25, description="of the moving averages of oscillations and codes")
    threshold_start: NonNegativeFloat = Field(0.1, description="oscillation frequency above which weights freeze")
    threshold_final: NonNegativeFloat = Field(0.011, description="that at the end; half a cosine lies between")
    start: float = Field(0.25, ge=0, lt=1, description="share of the steps before anything freezes")
    target: Literal["ema", "current"] = Field(
        "ema", description="the code a weight freezes at: its average code, rounded, or its present one"
    )
    psi_from: Literal["training", "freezing"] = Field(
        "training", description="where the average of the codes starts; freezing: at `start`, as released"
    )
    refreeze: bool = Field(
        True, description="whether a frozen weight's code is set again while its frequency exceeds the threshold"
    )


class FreezingOptions(ThresholdOptions, NagelOptions):
    which: Literal["high", "low"] = Field(
        "high",
        description="freeze weights above the threshold; or, as a control, all others, once, at `start`, by "
        "threshold_start alone",
    )

    @property
    def whole_from(self) -> float:
        return self.start


class Freezes(Method["FreezingQuantizer"]):
    """The part of a method that watches the codes of every forward pass and freezes weights by their frequency.

    What a step freezes acts from the next forward pass on.
    """

    options: ThresholdOptions
    above = True  #: whether it freezes weights above the threshold, again and again, or all others, once

    def quantizer_class(self) -> type[FreezingQuantizer]:
        from oscillations.methods._freezing import FreezingQuantizer

        return FreezingQuantizer

    def begin(self, quantizer: FreezingQuantizer) -> None:
        from oscillations.methods._freezing import freeze_tracker

        super().begin(quantizer)
        self.tracker = freeze_tracker(quantizer.codes, quantizer.sizes, self.options.momentum)
        self.finished = False  # with freezing

    def step(self, optimizer: Optimizer, quantizer: FreezingQuantizer, moment: Moment) -> None:
        if not self.finished:
            self.tracker.tick(quantizer.codes)
            if moment.ended >= self.options.start:
                self._freeze(quantizer, moment)
        super().step(optimizer, quantizer, moment)

    def _freeze(self, quantizer: FreezingQuantizer, moment: Moment) -> None:
        o = self.options
        if o.psi_from == "freezing" and moment.begun < o.start:
            self.tracker.restart_average()
        self.tracker.freeze(
            quantizer, self.threshold(moment), above=self.above, average=o.target == "ema", again=o.refreeze
        )
        self.finished = not self.above

    def threshold(self, moment: Moment) -> float:
        if not self.above:
            return self.options.threshold_start
        return cosine(moment.ended, self.options.threshold_start, self.options.threshold_final, self.options.start)

    def state(self) -> dict[str, Tensor]:
        import torch

        tracker = self.tracker.state() | {"finished": torch.tensor(self.finished)}
        return super().state() | {f"{TRACKER}{key}": value for key, value in tracker.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state({key: value for key, value in state.items() if not key.startswith(TRACKER)})
        self.tracker.load_state({key: state[f"{TRACKER}{key}"] for key in self.tracker.state()})
        self.finished = bool(state[f"{TRACKER}finished"])


class Freezing(Freezes, Lsq["FreezingQuantizer"]):
    """Weights whose oscillation frequency exceeds an annealed threshold keep their integer code for good.

    With ``refreeze`` the code is set again, to the average that by now holds frozen codes, while the frequency is
    still above the threshold: the release does so, and a few weights change their level once more.

    A frozen weight receives no gradient, and gives the scale its code as dq/ds. The control ``which: low`` freezes
    at ``start`` the weights that have not oscillated more often than ``threshold_start`` by then, and leaves the
    oscillating ones free for the rest of the training.
    """

    Options = FreezingOptions
    options: FreezingOptions

    def __init__(self, options: FreezingOptions):
        super().__init__(options)
        self.above = options.which == "high"

    def after_backward(self, quantizer: FreezingQuantizer, grads: Tensors, moment: Moment) -> None:
        weights = quantizer.weights
        if quantizer.holds:  # a frozen latent weight counts no more; as 0 it leaves the scale dq/ds = k
            weights = [weight * free for weight, free in zip(weights, quantizer.free)]
        self.through_clipping(quantizer, weights, grads)
        quantizer.stop(grads)
