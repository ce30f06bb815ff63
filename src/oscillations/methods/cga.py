"""StatsQ with confidence-guided annealing: at the end, only weights at a threshold move (Liu et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from oscillations.methods.statsq import Statsq, StatsqOptions

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.engine.method import Moment, Tensors
    from oscillations.engine.optimizer import Optimizer
    from oscillations.engine.quantizer import WeightQuantizer
    from oscillations.methods.statsq import StatsQuantizer


class CgaOptions(StatsqOptions):
    # no option here, for a product has no latent weights of its own that could stay
    qkr: ClassVar[bool] = False  # type: ignore[misc]  # hence no field
    start: float = Field(0.75, ge=0, le=1, description="share of the training before the annealing")
    boundary: float = Field(
        0.005, ge=0, le=0.5, description="distance from a threshold, in steps, within which to move"
    )

    @property
    def whole_from(self) -> float:
        return self.start


def near_threshold(quantizer: WeightQuantizer, i: int, boundary: float) -> Tensor:
    """Whether each weight of tensor ``i`` lies within ``boundary`` steps of a threshold."""
    position = quantizer.position(i)
    below = position.floor().clamp_(quantizer.grids[i].low, quantizer.grids[i].high - 1)
    return position.sub_(below).sub_(0.5).abs_() <= boundary


class Cga(Statsq):
    """StatsQ until ``start``; then weights far from every threshold keep their value, whatever the optimizer's
    momentum. Which are near is asked anew in every step.
    """

    Options = CgaOptions
    options: CgaOptions

    def __init__(self, options: CgaOptions):
        super().__init__(options)
        self._free: list[Tensor] = []  # of the step in progress

    def after_backward(self, quantizer: StatsQuantizer, grads: Tensors, moment: Moment) -> None:
        if moment.begun >= self.options.start:
            self._free = [near_threshold(quantizer, i, self.options.boundary) for i in range(len(grads))]
            for grad, free in zip(grads, self._free):
                grad.mul_(free)

    def step(self, optimizer: Optimizer, quantizer: StatsQuantizer, moment: Moment) -> None:
        kept = [weight.clone() for weight in quantizer.weights] if self._free else []
        optimizer.step()
        for weight, before, free in zip(quantizer.weights, kept, self._free):
            weight.copy_(before.where(~free, weight))
