"""Gradient-L1 regularization (Alizadeh et al. 2020, arXiv:2002.07520); full-precision training, no oscillation.

A perturbation of at most delta in every weight changes the loss to first order by at most delta times the gradient's
L1 norm, whatever the bit width that delta is half a step of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from oscillations.engine.method import Method, Moment, QuantizedOptions, Tensors
from oscillations.engine.recipe import Strength

if TYPE_CHECKING:
    from torch import Tensor, nn


class GradientL1Options(QuantizedOptions):
    lambda_: Strength = Field(0.01, alias="lambda", description="strength of the regularizer")
    share: float = Field(0.25, ge=0, le=1, description="share of the training, at its end, with the regularizer on")

    @property
    def whole_from(self) -> float:
        return 1 - self.share


class GradientL1(Method):
    """Adds lambda times the sum of |dL/dw| over the quantized tensors, by differentiating the gradient."""

    Options = GradientL1Options
    options: GradientL1Options

    def attach(self, model: nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm's attention: torch's fused form has no second derivative
                module.fused_attn = False  # type: ignore[assignment]  # to torch's stubs all attributes are modules

    def loss(self, loss: Tensor, parameters: Tensors, moment: Moment) -> Tensor:
        import torch

        if moment.begun < 1 - self.options.share or self.options.lambda_ == 0:
            return loss
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        return loss + self.options.lambda_ * sum(grad.abs().sum() for grad in grads)
