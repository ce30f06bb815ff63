"""KURE: pull every layer's kurtosis to that of a uniform distribution (Chmiel et al. 2020); no oscillation.

Full-precision training; the shape it gives the weights is robust to the choice of the quantizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors, regularized
from oscillations.engine.recipe import Strength

if TYPE_CHECKING:
    from torch import Tensor


class KureOptions(QuantizedOptions):
    lambda_: Strength = Field(1.0, alias="lambda", description="strength of the regularizer")
    target: float = Field(1.8, description="kurtosis to reach; 9/5 is that of a uniform distribution")
    reg_layers: tuple[str, ...] = Field(("*",), description="patterns of the layers that are regularized")

    @property
    def regularized_layers(self) -> tuple[str, ...]:
        return self.reg_layers


def kurtosis_and_gradient(weight: Tensor) -> tuple[Tensor, Tensor]:
    """K(w) = mean(z^4) with z = (w - mean) / std, std unbiased; and dK/dw.

    dK/dw_i = 4 / (n std) * (z_i^3 - mean(z^3) - z_i K n / (n - 1)).
    """
    n = weight.numel()
    std = weight.std()
    z = (weight - weight.mean()) / std
    cubes = z.pow(3)
    kurtosis = (cubes * z).mean()
    gradient = (cubes - cubes.mean()).sub_(z.mul_(kurtosis * n / (n - 1))).mul_(4 / (n * std))
    return kurtosis, gradient


class Kure(Method):
    """Adds lambda / L * sum over the L layers of (K(w) - target)^2, by its gradient."""

    Options = KureOptions
    options: KureOptions

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        chosen = regularized(quantizer, self.options.reg_layers)
        for weight, grad, one in zip(quantizer.weights, grads, chosen):
            if one:
                kurtosis, gradient = kurtosis_and_gradient(weight)
                strength = 2 * self.options.lambda_ / sum(chosen)
                grad.add_(gradient.mul_((kurtosis - self.options.target) * strength))
