"""A pure range penalty, lambda * sum over layers of max|w|: the control that shrinks the scale without oscillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors, regularized
from oscillations.engine.recipe import Strength


class RangePenaltyOptions(QuantizedOptions):
    lambda_: Strength = Field(alias="lambda", description="strength of the penalty")
    scale_source: Literal["dynamic_max"] = "dynamic_max"
    reg_layers: tuple[str, ...] = Field(("*",), description="patterns of the layers that are penalised")

    @property
    def regularized_layers(self) -> tuple[str, ...]:
        return self.reg_layers


class RangePenalty(Method):
    """Full-precision training whose only addition acts on each layer's largest weight.

    This is the part of the official code's regularizer that reaches the weights through its scale (methods
    section 3.3), at a constant strength.
    """

    Options = RangePenaltyOptions
    options: RangePenaltyOptions

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        for i, (grad, chosen) in enumerate(zip(grads, regularized(quantizer, self.options.reg_layers))):
            if chosen:
                quantizer.scale.add_to_maximum(i, grad, self.options.lambda_)
