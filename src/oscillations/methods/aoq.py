"""AOQ: oscillations are allowed, then calmed (Xie et al., ICCV 2025); weights only, cross-entropy only.

Thresholds and levels have spacings of their own. Training has three stages: both spacings shrink together, so that more
weights lie near a threshold; then the thresholds stay and the spacing of the levels is learned; then weights are drawn
to rest, too. The released recipe leaves the first convolution and the classifier unquantized; which layers are
quantized, the projections of a ResNet's shortcuts for instance, is the study's ``quant_layers``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.engine.method import Method, Moment, SharedScaleOptions, Tensors
from oscillations.engine.recipe import Strength

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from oscillations.engine.optimizer import Optimizer
    from oscillations.engine.quantizer import WeightQuantizer
    from oscillations.methods._aoq import Spacings

    AoqQuantizer = WeightQuantizer[Spacings]

STAGE2, STAGE3 = 51 / 250, 151 / 250  # shares of the training before they begin: the released epochs 0-50 and 51-150
SHRINKING, REFRESHES = 0.2, 10  # share of the training with a shrinkage that changes, and how often: every fifth epoch
LARGEST, SMALLEST = 1.0, 0.3  # shrinkage at the start and from stage 2 on
SMALLEST_SPACING = 1e-8


class AoqOptions(SharedScaleOptions):
    tie: Literal["half_even", "half_up"] = Field(
        "half_up", description="half_up: a threshold belongs to the cell above"
    )
    damp_strength: Strength = Field(0.01, description="of the pull towards rest in stage 3")
    damp_target: Literal["cell_centre", "level"] = Field(
        "cell_centre", description="where weights are pulled: between their thresholds (the released code), or to q(w)"
    )
    damp_norm: Literal["l2", "squared"] = Field(
        "l2", description="of the distance from it: the norm of each layer (the released code), or its square"
    )

    @property
    def whole_from(self) -> float:
        return STAGE3


def shrinkage(progress: float) -> float:
    """Factor alpha on the initial spacings: half a cosine wave from 1 to 0.3, in ten steps.

    ``progress`` is the share of the training done. With 250 epochs it is 0.65 + 0.35 cos(2 pi e / 100) at every
    fifth epoch e up to 50.
    """
    refreshes = min(int(progress / SHRINKING * REFRESHES + 1e-9), REFRESHES)
    return (LARGEST + SMALLEST) / 2 + (LARGEST - SMALLEST) / 2 * math.cos(math.pi * refreshes / REFRESHES)


def spacing_gradient(upstream: Tensor, codes: Tensor, shared: Tensor) -> Tensor:
    """dL/d(spacing of the levels) = sum (k + 1/2) dL/dq over the weights that share it, shaped as ``shared``."""
    from oscillations.engine.scales import reduced

    per_channel = shared.dim() > 0
    return (upstream * (codes + 0.5)).sum(reduced(upstream, per_channel), keepdim=per_channel)


class Aoq(Method["AoqQuantizer"]):
    """Forward and backward pass on q(w), whose gradient all weights receive, also beyond the last levels (STE).

    Thresholds receive none; the levels' spacings learn at the run's learning rate.
    """

    Options = AoqOptions
    options: AoqOptions

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> AoqQuantizer:
        from oscillations.engine.quantizer import WeightQuantizer
        from oscillations.methods._aoq import Spacings

        o = self.options
        return WeightQuantizer(
            parameters, o.bits, Spacings, grid="mid_rise", tie=o.tie, per_channel=o.per_channel, own_bits=own_bits
        )

    def begin(self, quantizer: AoqQuantizer) -> None:
        from oscillations.engine.optimizer import Adam

        self.level_optimizer = Adam(quantizer.scale.of_levels, lr=0)  # the run's at every step

    def forward_weights(self, quantizer: AoqQuantizer) -> Tensors:
        return quantizer.quantized

    def after_backward(self, quantizer: AoqQuantizer, grads: Tensors, moment: Moment) -> None:
        for i, grad in enumerate(grads):
            if moment.begun >= STAGE2:
                spacing = quantizer.scale.of_levels[i]
                spacing.grad = spacing_gradient(grad, quantizer.code_views[i], spacing) * quantizer.scale.shrinkage
            if moment.begun >= STAGE3:
                damping = damping_gradient(self.displacement(quantizer, i), self.options.damp_norm)
                grad.add_(damping, alpha=self.options.damp_strength)

    def displacement(self, quantizer: AoqQuantizer, i: int) -> Tensor:
        """How far the weights of tensor ``i`` are from where stage 3 pulls them."""
        if self.options.damp_target == "level":
            return quantizer.weights[i] - quantizer.quantized[i]
        return quantizer.weights[i] - (quantizer.code_views[i] + 0.5) * quantizer.scales[i]

    def step(self, optimizer: Optimizer, quantizer: AoqQuantizer, moment: Moment) -> None:
        optimizer.step()
        quantizer.scale.shrinkage.fill_(shrinkage(moment.ended))
        if moment.begun >= STAGE2:
            self.level_optimizer.lr = optimizer.lr
            self.level_optimizer.step()
            quantizer.scale.bound()

    def penalty(self, quantizer: AoqQuantizer, moment: Moment) -> Tensor | float | None:
        if moment.begun < STAGE3:
            return None
        offsets = [self.displacement(quantizer, i) for i in range(len(quantizer.weights))]
        return self.options.damp_strength * sum(distance(offset, self.options.damp_norm) for offset in offsets)

    def state(self) -> dict[str, Tensor]:
        return self.level_optimizer.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.level_optimizer.load_state(state)


def distance(displacement: Tensor, norm: str) -> Tensor:
    """Its l2 norm, or the square of that; a scalar."""
    return displacement.square().sum() if norm == "squared" else displacement.norm()


def damping_gradient(displacement: Tensor, norm: str) -> Tensor:
    """Gradient of :func:`distance` with respect to the weights, whose target is a constant."""
    if norm == "squared":
        return 2 * displacement
    return displacement / displacement.norm().clamp_min(SMALLEST_SPACING)
