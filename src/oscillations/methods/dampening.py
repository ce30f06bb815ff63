"""Oscillation dampening (Nagel et al. 2022, arXiv:2203.11086, section 4.2): LSQ that pulls weights to their levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from oscillations.engine.annealing import cosine
from oscillations.engine.recipe import Strength
from oscillations.methods.lsq import Lsq, LsqOptions

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.core.bits import Grid
    from oscillations.engine.method import Moment, Quantizer, Tensors


class NagelOptions(LsqOptions):
    """LSQ with the scales' rate and gradient, the first range and the order of clipping of Nagel et al.'s release.

    As everywhere here the grid is Eq. 1-2's unless a study says otherwise.
    """

    scale_init: Literal["lsq", "mse"] = "mse"
    grad_scale: bool = Field(False, description="whether the scales' gradients are divided by sqrt(N p)")
    scale_lr: PositiveFloat = Field(1e-5, description="learning rate of the scales' Adam; constant")
    clip_order: Literal["clip_first", "round_first"] = Field(
        "round_first", description="whether weights within half a step beyond the last levels receive a gradient"
    )


class DampeningOptions(NagelOptions):
    lambda_: Strength = Field(0.1, alias="lambda", description="strength of the dampening at the end")
    lambda_start: NonNegativeFloat = Field(0.0, description="strength until `start`; then half a cosine to lambda")
    start: float = Field(0.25, ge=0, lt=1, description="share of the steps after which the strength changes")
    aggregation: Literal["sum", "mean", "kernel_mean"] = Field(
        "kernel_mean", description="over a tensor; kernel_mean sums over output channels, means over the rest"
    )

    @property
    def whole_from(self) -> float:
        return 0.0 if self.lambda_start else self.start


def dampening_gradient(weight: Tensor, quantized: Tensor, scale: Tensor, grid: Grid, aggregation: str) -> Tensor:
    """Gradient of sum or mean of (q - clip(w, s n, s p))^2 with q held fixed: 2 (w - q), and 0 beyond the range."""
    divisor = {"sum": 1, "mean": weight.numel(), "kernel_mean": weight.numel() / len(weight)}[aggregation]
    return weight.clamp(grid.low * scale, grid.high * scale).sub_(quantized).mul_(2 / divisor)


class Dampening(Lsq):
    """Adds lambda(t) times the sum over layers of the squared distance to the level, by its gradient.

    Weights beyond the range lie on their last level after clipping: no loss, and no gradient to the scale.
    """

    Options = DampeningOptions
    options: DampeningOptions

    def strength(self, moment: Moment) -> float:
        return cosine(moment.ended, self.options.lambda_start, self.options.lambda_, self.options.start)

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        super().after_backward(quantizer, grads, moment)
        strength = self.strength(moment)
        if strength:
            for weight, quantized, scale, grid, grad in zip(
                quantizer.weights, quantizer.quantized, quantizer.scales, quantizer.grids, grads
            ):  # fmt: skip
                added = dampening_gradient(weight, quantized, scale, grid, self.options.aggregation)
                grad.add_(added, alpha=strength)
