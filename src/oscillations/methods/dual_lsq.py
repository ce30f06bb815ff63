"""Dual-LSQ: LSQ with one learned scale for the thresholds and one for the levels.

As released: NVIDIA/Model-Optimizer@a2fbac7, PR #1884 (modelopt/torch/quantization/tensor_quant.py); weights only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.methods.lsq import SMALLEST_SCALE, Lsq, LsqOptions, initial_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from oscillations.core.bits import Grid
    from oscillations.engine.method import Moment, Tensors
    from oscillations.engine.quantizer import WeightQuantizer
    from oscillations.methods._dual_lsq import DualScale

    DualQuantizer = WeightQuantizer[DualScale]


class DualLsqOptions(LsqOptions):
    """LSQ with the first range and the scales' gradients of the release."""

    scale_init: Literal["lsq", "mse"] = "mse"
    grad_scale: bool = Field(False, description="whether the scales' gradients are divided by sqrt(N p)")
    learnable: Literal["both", "post", "pre", "none"] = Field(
        "both", description="the scales that learn: of the levels (post), of the thresholds (pre); others stay"
    )

    @property
    def learns_scales(self) -> bool:
        return False  # no single one stands for thresholds and levels


def gradients(
    weight: Tensor, pre: Tensor, post: Tensor, codes: Tensor, upstream: Tensor, grid: Grid, margin: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dw, dL/d(pre) and dL/d(post) of post round(clip(w / pre)) for dL/dq = ``upstream``.

    A weight whose code was clipped has dq/dw = 0 and dq/d(pre) = 0, all others post / pre and -post w / pre^2, also
    those on the grid's ends, unlike LSQ's; dq/d(post) is the code. ``pre`` and ``post``: 0-dim or ``[C, 1, ...]``, as
    are their gradients. ``margin`` widens what counts as inside, in steps.
    """
    from oscillations.engine.scales import reduced

    per_channel = pre.dim() > 0
    shared = reduced(weight, per_channel)
    u = weight / pre
    inner = upstream * (post / pre) * ((u >= grid.low - margin) & (u <= grid.high + margin))
    of_thresholds = u.mul_(inner).sum(shared, keepdim=per_channel).neg_()
    return inner, of_thresholds, (upstream * codes).sum(shared, keepdim=per_channel)


class DualLsq(Lsq["DualQuantizer"]):
    """Forward and backward pass on q(w) = s_post clip(round(w / s_pre)); only s_pre moves codes.

    The two scales, the same at first, follow their gradients by LSQ's Adam. Tied, they would be LSQ's one.
    """

    Options = DualLsqOptions
    options: DualLsqOptions

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> DualQuantizer:
        from oscillations.engine.quantizer import WeightQuantizer
        from oscillations.engine.scales import mse_scale
        from oscillations.methods._dual_lsq import DualScale

        o = self.options
        first = initial_scale if o.scale_init == "lsq" else mse_scale
        scale = partial(DualScale, first=first, smallest=SMALLEST_SCALE)
        return WeightQuantizer(
            parameters, o.bits, scale, tie=o.tie, grid=o.grid, per_channel=o.per_channel, own_bits=own_bits
        )

    def begin(self, quantizer: DualQuantizer) -> None:
        from oscillations.engine.optimizer import Adam

        pre, post = list(quantizer.scales), quantizer.scale.of_levels
        learned = {"both": pre + post, "post": post, "pre": pre, "none": []}[self.options.learnable]
        self.scale_optimizer = Adam(learned, self.options.scale_lr)

    def after_backward(self, quantizer: DualQuantizer, grads: Tensors, moment: Moment) -> None:
        margin = 0.5 if self.options.clip_order == "round_first" else 0.0
        for i, (weight, grad, grid) in enumerate(zip(quantizer.weights, grads, quantizer.grids)):
            pre, post = quantizer.scales[i], quantizer.scale.of_levels[i]
            inner, *of_scales = gradients(weight, pre, post, quantizer.code_views[i], grad, grid, margin)
            grad.copy_(inner)
            divisor = math.sqrt(weight.numel() / pre.numel() * grid.high) if self.options.grad_scale else 1.0
            pre.grad, post.grad = (gradient / divisor for gradient in of_scales)
