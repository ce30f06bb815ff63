"""Pseudo-quantization noise (Defossez et al. 2021) with Eq. 2's step: noise of a quantizer's size, no thresholds.

The control for "noise without oscillation": nothing attracts weights to thresholds. With ``noise: gaussian``, ``range:
minmax`` and ``min_size`` it is the released one, facebookresearch/diffq@f6182ab (diffq/diffq.py, uniform.py, base.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, model_validator

from oscillations.engine.method import Method, Moment, Quantizer, ScaleGradientOptions, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class PseudoNoiseOptions(ScaleGradientOptions):
    noise: Literal["uniform", "gaussian"] = Field(
        "uniform", description="xi in U(-1/2, 1/2), the variance of rounding, or N(0, 1/4), the released default"
    )
    range: Literal["absmax", "minmax"] = Field(
        "absmax", description="the noise's step is Eq. 2's scale, or (max w - min w) / (2^b - 1), as released"
    )
    min_size: NonNegativeInt = Field(
        0, description="tensors of at most so many entries get no noise (2621 as released)"
    )

    @model_validator(mode="after")
    def _a_range_is_a_tensors(self) -> PseudoNoiseOptions:
        if self.range == "minmax" and self.per_channel:
            raise ValueError("per_channel: the range minmax is that of a whole tensor; leave per_channel out")
        return self


class PseudoNoise(Method):
    """Trains on w + s xi with fresh noise at every step; its evaluation is true quantization, Eq. 1-2's for any range.

    The gradient at the noisy weights is the latent weights' gradient; with ``scale_grad: flow`` the part that
    reaches max|w| through s comes on top, as for the quantizer's own error, or that which reaches max w and min w.
    """

    Options = PseudoNoiseOptions
    options: PseudoNoiseOptions

    def __init__(self, options: PseudoNoiseOptions):
        super().__init__(options)
        self._noised: list[int] = []  # the tensors with noise
        self._errors: list[Tensor] = []
        self._noisy: list[Tensor] = []

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        import torch

        if not self._noisy:
            self._noised = [i for i, size in enumerate(quantizer.sizes) if size > self.options.min_size]
            self._errors = [torch.empty_like(weight) for weight in quantizer.weights]
            self._noisy = [
                torch.empty_like(weight) if i in self._noised else weight for i, weight in enumerate(quantizer.weights)
            ]
        for i in self._noised:
            error = self._errors[i]
            if self.options.noise == "uniform":
                error.uniform_(-0.5, 0.5)
            else:
                error.normal_(0, 0.5)
            torch.add(quantizer.weights[i], error.mul_(self.step_size(quantizer, i)), out=self._noisy[i])
        return self._noisy

    def step_size(self, quantizer: Quantizer, i: int) -> Tensor:
        """s of tensor ``i``: 0-dim, or Eq. 2's for each channel, ``[C, 1, ...]``."""
        if self.options.range == "absmax":
            return quantizer.scales[i]
        low, high = quantizer.weights[i].aminmax()
        return (high - low) / (2 ** quantizer.widths[i] - 1)

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        if self.options.scale_grad == "flow":
            for i in self._noised:
                if self.options.range == "absmax":
                    quantizer.scale.add_gradient(i, grads[i], upstream=grads[i], error=self._errors[i])
                else:
                    add_range_gradient(quantizer.weights[i], grads[i], self._errors[i])


def add_range_gradient(weight: Tensor, grad: Tensor, error: Tensor) -> None:
    """Add to ``grad``, dL/dw of w + error, what reaches the ends of the range that the error is in proportion to.

    With T = sum_i grad_i error_i / (max w - min w) the largest weight receives T and the smallest -T; several equal
    ones share it evenly, as autograd's ``amax`` does. A tensor of one value has no error, and so no T.
    """
    import torch

    from oscillations.engine.scales import memory_order

    low, high = weight.aminmax()
    width = (high - low).clamp_min(torch.finfo(weight.dtype).tiny)
    amount = torch.dot(memory_order(grad), memory_order(error)) / width
    for end, through in ((high, amount), (low, -amount)):
        at_end = weight == end
        grad.add_(at_end * (through / at_end.sum()))
