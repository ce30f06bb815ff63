"""StatsQ: the scale is a statistic of the weights, one for each output row (Liu et al. 2023, arXiv:2302.02210)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from oscillations.methods import Method, TargetOptions
from oscillations.methods.lsq import SMALLEST_SCALE

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.quantizer import WeightQuantizer


class StatsqOptions(TargetOptions):
    per_channel: ClassVar[bool] = True  # the statistic is a row's: no choices here, hence no options
    quantize_bias: ClassVar[bool] = False


def statistic_scale(weight: Tensor, bits: int) -> Tensor:
    """A step of 2 mean|w| / 2^(b-1) for each output channel, ``[C, 1, ...]``; above zero."""
    from oscillations.quantizer import reduced

    mean = weight.abs().mean(reduced(weight, per_channel=True), keepdim=True)
    return mean.mul_(2 ** (2 - bits)).clamp_min_(SMALLEST_SCALE)


def quantizer_class() -> type[WeightQuantizer]:
    """2^b levels around zero, which is a threshold, with the statistic of the present weights as step.

    The source clips w one part in a million below the range's end before it rounds; clamping the codes is the same.
    """
    import torch

    from oscillations.quantizer import WeightQuantizer

    class StatsqQuantizer(WeightQuantizer):
        @torch.no_grad()
        def rescale(self):
            self.scales = [statistic_scale(weight, self.bits) for weight in self.weights]

    return StatsqQuantizer


class Statsq(Method):
    """Forward and backward pass on q(w); its gradient is the weights', also beyond the last levels (STE).

    None flows through the scale.
    """

    Options = StatsqOptions

    def make_quantizer(self, parameters):
        o = self.options
        return quantizer_class()(
            parameters, o.bits, scale_source="mean", tie=o.tie, grid="mid_rise", per_channel=o.per_channel
        )

    def forward_weights(self, quantizer):
        return quantizer.quantized
