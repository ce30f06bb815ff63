"""OsciQuant: full-precision training with the oscillation regularizer of Eq. 22-24."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from oscillations.core.errors import did_you_mean
from oscillations.engine.method import Method, Moment, Quantizer, QuantizerT, ScaleGradientOptions, Tensors, regularized
from oscillations.engine.recipe import SignedStrength

if TYPE_CHECKING:
    from torch import Tensor

# The paper's text and its released code disagree about the regularizer; both stand here in full.
PRESETS = {
    "paper_text": {"reg_reduction": "sum", "reg_half": True, "scale_grad": "detach"},
    "official_code": {"reg_reduction": "layer_mean", "reg_half": False, "scale_grad": "flow"},
}


class RegularizerOptions(ScaleGradientOptions):
    """Every choice that the text, the code or this project makes about the regularizer, but for its strength."""

    preset: Literal["paper_text", "official_code", "custom"] = Field(
        "official_code", description="sets reg_reduction, reg_half and scale_grad"
    )
    reg_reduction: Literal["sum", "layer_mean", "global_mean"]
    reg_half: bool
    reg_layers: tuple[str, ...] = Field(("*",), description="patterns of the layers that are regularized")
    reg_when: Literal["train_only", "always"] = Field(
        "train_only", description="whether the validation loss also holds the regularizer"
    )
    train_forward: Literal["fp", "fake_quant"] = "fp"
    reg_curvature: Literal["identity", "fisher_diag"] = "identity"

    @property
    def regularized_layers(self) -> tuple[str, ...]:
        return self.reg_layers

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, options: Any) -> Any:
        options = dict(options)
        preset = options.get("preset", "official_code")
        if preset not in (known := [*PRESETS, "custom"]):
            raise ValueError(f"preset: unknown preset {preset!r}; {did_you_mean(str(preset), known)}")
        for key, value in PRESETS.get(preset, {}).items():
            if options.setdefault(key, value) != value:
                raise ValueError(f"{key}: {options[key]} is not preset {preset}'s ({value}); say preset: custom")
        return options


class OsciQuantOptions(RegularizerOptions):
    """The regularizer and its strength."""

    lambda_: SignedStrength = Field(alias="lambda", description="strength of the regularizer")
    lambda_schedule: Literal["const", "linear_warmup", "cosine"] = "const"


class Regularizer(Method[QuantizerT]):
    """Adds lambda * R, R = [1/2] sum or mean over layers of h (q(w)^2 - w^2), by its gradient.

    Under the straight-through estimator dR/dw = [2 | 1] h (q - w), divided by the number of weights where the
    reduction is a mean (Eq. 24); with ``scale_grad: flow`` the part through max|w| comes on top. h is 1, or
    the running mean square of the gradient scaled to mean 1 per layer (``reg_curvature: fisher_diag``).
    """

    options: RegularizerOptions
    fisher_decay = 0.99

    def __init__(self, options: RegularizerOptions):
        super().__init__(options)
        self._mean_square: dict[int, Tensor] = {}
        self._resumed: dict[int, Tensor] = {}
        self._coefficients: list[float] = []

    def forward_weights(self, quantizer: QuantizerT) -> Tensors | None:
        return quantizer.quantized if self.options.train_forward == "fake_quant" else None

    def after_backward(self, quantizer: QuantizerT, grads: Tensors, moment: Moment) -> None:
        strength = self.strength(moment)
        through_scale = self.options.scale_grad == "flow" and self.options.train_forward == "fake_quant"
        for i, grad in enumerate(grads):
            curvature = self.curvature(i, grad)
            if through_scale:
                quantizer.scale.add_gradient(i, grad, upstream=grad, error=quantizer.error(i))
            self.add_gradient(quantizer, i, grad, strength, curvature)

    def add_gradient(
        self, quantizer: QuantizerT, i: int, grad: Tensor, strength: float, curvature: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Add the gradient of ``strength`` R to ``grad`` of tensor ``i``, under a :meth:`curvature` if there is one.

        ``out``: where the error may be computed, in the weights' shape; new memory costs as much as the rest.
        """
        factor = 2 * strength * self.coefficients(quantizer)[i]
        if factor == 0:
            return
        error = quantizer.error(i, out)
        if curvature is not None:
            error.mul_(curvature)
        if self.options.scale_grad == "flow":
            quantizer.scale.add_gradient(i, grad, quantizer.quantized[i], error, factor)
        grad.add_(error, alpha=factor)

    def penalty(self, quantizer: QuantizerT, moment: Moment) -> Tensor | float | None:
        if self.options.reg_when == "train_only":
            return None
        tensors = zip(self.coefficients(quantizer), quantizer.quantized, quantizer.weights)
        return self.strength(moment) * sum(c * (q.square() - w.square()).sum() for c, q, w in tensors)

    def strength(self, moment: Moment) -> float:
        """lambda at this point of training."""
        raise NotImplementedError

    def coefficients(self, quantizer: Quantizer) -> list[float]:
        """What multiplies sum_i (q_i^2 - w_i^2) of each tensor: 0 where it is not regularized."""
        if not self._coefficients:
            chosen = regularized(quantizer, self.options.reg_layers)
            total = sum(size for size, one in zip(quantizer.sizes, chosen) if one)
            divisors = {
                "sum": [1] * len(chosen),
                "layer_mean": quantizer.sizes,
                "global_mean": [total] * len(chosen),
            }[self.options.reg_reduction]
            half = 0.5 if self.options.reg_half else 1.0
            self._coefficients = [half / divisor if one else 0.0 for divisor, one in zip(divisors, chosen)]
        return self._coefficients

    def curvature(self, i: int, grad: Tensor) -> Tensor | None:
        """h of tensor ``i`` after the task's gradient ``grad`` at this step; None where it is 1 everywhere."""
        if self.options.reg_curvature == "identity":
            return None
        import torch

        if i not in self._mean_square:
            self._mean_square[i] = torch.zeros_like(grad)  # laid out as the gradient, always: the mean below depends
            if i in self._resumed:  # on the order
                self._mean_square[i].copy_(self._resumed[i])
        mean = self._mean_square[i].lerp_(grad.square(), 1 - self.fisher_decay)
        return mean / mean.mean().clamp_min(1e-30)

    def state(self) -> dict[str, Tensor]:
        return {str(i): mean for i, mean in (self._mean_square or self._resumed).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._mean_square, self._resumed = {}, {int(i): mean for i, mean in state.items()}


class OsciQuant(Regularizer[QuantizerT]):
    """The regularizer at one strength: lambda is constant, rises over the first tenth, or half a cosine up."""

    Options: ClassVar[type[OsciQuantOptions]] = OsciQuantOptions
    options: OsciQuantOptions

    def strength(self, moment: Moment) -> float:
        return self.options.lambda_ * self.schedule(moment)

    def schedule(self, moment: Moment) -> float:
        """What multiplies lambda at this point of training."""
        schedules = {
            "const": 1.0,
            "linear_warmup": min(1.0, moment.begun / 0.1),
            "cosine": (1 - math.cos(math.pi * moment.begun)) / 2,
        }
        return schedules[self.options.lambda_schedule]
