"""LSQ: quantization-aware training with learned scales (Esser et al. 2020, arXiv:1902.08153); weights only."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat

from oscillations.engine.method import Method, Moment, QuantizerT, SharedScaleOptions, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from oscillations.core.bits import Grid
    from oscillations.engine.optimizer import Optimizer

SMALLEST_SCALE = 1e-8


class LsqOptions(SharedScaleOptions):
    grid: Literal["sym_odd", "lsq", "lsq_full"] = Field(
        "sym_odd", description="levels of Eq. 1-2, or one more below zero: above 2 bits, or (lsq_full) there too"
    )
    scale_init: Literal["lsq", "mse"] = Field(
        "lsq", description="2 mean|w| / sqrt(largest code), or the least squared error"
    )
    grad_scale: bool = Field(True, description="whether the scales' gradients are divided by sqrt(N p)")
    scale_lr: PositiveFloat = Field(1e-4, description="learning rate of the scales' Adam; constant")
    clip_order: Literal["clip_first", "round_first"] = Field(
        "clip_first", description="whether weights within half a step beyond the last levels receive a gradient"
    )

    @property
    def learns_scales(self) -> bool:
        return True


def initial_scale(weight: Tensor, grid: Grid, per_channel: bool = False) -> Tensor:
    """LSQ's 2 mean|w| / sqrt(p): 0-dim, or ``[C, 1, ...]``."""
    from oscillations.engine.scales import reduced

    mean = weight.abs().mean(reduced(weight, per_channel), keepdim=per_channel)
    return 2 * mean / math.sqrt(grid.high)


def gradients(
    weight: Tensor, scale: Tensor, codes: Tensor, upstream: Tensor, grid: Grid, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """dL/dw and dL/ds of s round(clip(w / s)) for dL/dq = ``upstream``, the latter without LSQ's gradient scale.

    A weight whose code was clipped has gradient 0, and its own code (the grid's end) as dq/ds; all others 1, and
    round(u) - u. ``margin`` widens what counts as inside, in steps.
    """
    from oscillations.engine.scales import reduced

    u = weight / scale
    inside = (u > grid.low - margin) & (u < grid.high + margin)
    per_step = u.mul_(inside).neg_().add_(codes).mul_(upstream)
    return upstream * inside, per_step.sum(reduced(weight, scale.dim() > 0), keepdim=scale.dim() > 0)


class Lsq(Method[QuantizerT]):
    """Forward and backward pass on q(w) with clamped codes; scales follow their gradients by an Adam of their own.

    With ``grad_scale`` a scale's gradient is divided by sqrt(N p), N the weights that share it and p the largest code
    (LSQ section 2.2). What builds on LSQ (dampening, freezing, averaging ...) subclasses this and has its options.
    """

    Options: ClassVar[type[LsqOptions]] = LsqOptions
    options: LsqOptions

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> QuantizerT:
        from oscillations.engine.scales import LearnedScale, mse_scale

        o = self.options
        first = initial_scale if o.scale_init == "lsq" else mse_scale
        scale = partial(LearnedScale, first=first, smallest=SMALLEST_SCALE)
        return self.quantizer_class()(
            parameters, o.bits, scale, tie=o.tie, grid=o.grid, per_channel=o.per_channel, own_bits=own_bits
        )

    def begin(self, quantizer: QuantizerT) -> None:
        from oscillations.engine.optimizer import Adam

        self.scale_optimizer = Adam(quantizer.scales, self.options.scale_lr)

    def forward_weights(self, quantizer: QuantizerT) -> Tensors:
        return quantizer.quantized

    def after_backward(self, quantizer: QuantizerT, grads: Tensors, moment: Moment) -> None:
        self.through_clipping(quantizer, quantizer.weights, grads)

    def through_clipping(self, quantizer: QuantizerT, weights: Tensors, grads: Tensors) -> None:
        """The gradients of LSQ, those of weights in place, with ``weights`` for the latent ones."""
        margin = 0.5 if self.options.clip_order == "round_first" else 0.0
        tensors = zip(weights, quantizer.scales, quantizer.code_views, grads, quantizer.grids)
        for weight, scale, codes, grad, grid in tensors:
            inner, scale_gradient = gradients(weight, scale, codes, grad, grid, margin)
            grad.copy_(inner)
            shared_by = weight.numel() / scale.numel()
            divisor = math.sqrt(shared_by * grid.high) if self.options.grad_scale else 1.0
            scale.grad = scale_gradient / divisor

    def step(self, optimizer: Optimizer, quantizer: QuantizerT, moment: Moment) -> None:
        optimizer.step()
        self.scale_optimizer.step()
        quantizer.scale.bound()

    def state(self) -> dict[str, Tensor]:
        return self.scale_optimizer.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.scale_optimizer.load_state(state)
