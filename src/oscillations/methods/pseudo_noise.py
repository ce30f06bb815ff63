"""Pseudo-quantization noise (Defossez et al. 2021) with Eq. 2's step: noise of a quantizer's size, no thresholds.

The control for "noise without oscillation": nothing attracts weights to thresholds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.engine.method import Method, Moment, Quantizer, ScaleGradientOptions, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class PseudoNoiseOptions(ScaleGradientOptions):
    noise: Literal["uniform", "gaussian"] = Field(
        "uniform", description="xi in U(-1/2, 1/2), the variance of rounding, or N(0, 1/4), the released default"
    )


class PseudoNoise(Method):
    """Trains on w + s xi with fresh noise at every step; its evaluation is true quantization.

    The gradient at the noisy weights is the latent weights' gradient; with ``scale_grad: flow`` the part that
    reaches max|w| through s comes on top, as for the quantizer's own error.
    """

    Options = PseudoNoiseOptions
    options: PseudoNoiseOptions

    def __init__(self, options: PseudoNoiseOptions):
        super().__init__(options)
        self._errors: list[Tensor] = []
        self._noisy: list[Tensor] = []

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        import torch

        if not self._noisy:
            self._errors = [torch.empty_like(weight) for weight in quantizer.weights]
            self._noisy = [torch.empty_like(weight) for weight in quantizer.weights]
        for weight, scale, error, noisy in zip(quantizer.weights, quantizer.scales, self._errors, self._noisy):
            if self.options.noise == "uniform":
                error.uniform_(-0.5, 0.5)
            else:
                error.normal_(0, 0.5)
            torch.add(weight, error.mul_(scale), out=noisy)
        return self._noisy

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        if self.options.scale_grad == "flow":
            for i, (grad, error) in enumerate(zip(grads, self._errors)):
                quantizer.scale.add_gradient(i, grad, upstream=grad, error=error)
