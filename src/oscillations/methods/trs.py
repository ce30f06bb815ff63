"""TRS: the rate at which codes change follows a schedule, not the learning rate (Lee, Jeon, Kim, Ham; ICCV 2025).

"Scheduling Weight Transitions for Quantization-Aware Training", arXiv:2404.19248, sections 3 to 5. Numbers that are
not in the text, and the order inside a step, are second-hand: the code could not be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.engine.annealing import cosine
from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors
from oscillations.engine.recipe import Strength

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.engine.optimizer import Optimizer

ROUNDING = 1e-6  # relative; the weight that a scale comes from lies on the last level but for rounding


class TrsOptions(QuantizedOptions):
    lambda_: Strength = Field(
        5e-3, alias="lambda", description="share of codes to change per step, at first, over sqrt(bits)"
    )
    momentum: float = Field(0.99, ge=0, lt=1, description="weight of the past in the average share that changes")
    eta: float | None = Field(
        None, ge=0, description="how fast the weights' rate follows; left out: the run's rate at its first step"
    )
    scope: Literal["network", "layer"] = Field(
        "network", description="what has one rate: all quantized weights, or each tensor"
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="of the quantized weights; without weight decay")
    scale_source: Literal["dynamic_max", "frozen_max", "mse"] = Field(
        "frozen_max", description="the source's scale is fixed: one that moves changes codes without any update"
    )

    @property
    def steps_weights(self) -> bool:
        return True


def follow(rates: Tensor, averages: Tensor, shares: Tensor, targets: Tensor, eta: float, momentum: float) -> None:
    """K <- m K + (1 - m) k and U <- max(0, U + eta (R - K)), in place; one entry for each rate.

    ``rates`` U, ``averages`` K, ``shares`` k of the codes that have changed, ``targets`` R.
    """
    averages.lerp_(shares, 1 - momentum)
    rates.add_(targets - averages, alpha=eta).clamp_(min=0)


class Trs(Method):
    """Forward and backward pass on q(w); the weights' learning rate U is what makes their codes change as scheduled.

    The target falls from lambda sqrt(b) to 0 by half a cosine, counted where a step begins. U starts as the run's rate
    at its first step, whose schedule is that of all other parameters alone. Codes are those of the forward passes. A
    weight beyond the last levels receives no gradient (the clipping of Eq. 13).
    """

    Options = TrsOptions
    options: TrsOptions

    def begin(self, quantizer: Quantizer) -> None:
        import torch

        from oscillations.engine.optimizer import Adam
        from oscillations.methods._trs import TensorRateSGD

        by_layer = self.options.scope == "layer"
        self.previous, self._changed = quantizer.codes.clone(), torch.empty_like(quantizer.codes, dtype=torch.bool)
        sizes = quantizer.sizes if by_layer else [len(quantizer.codes)]
        widths = quantizer.widths if by_layer else [quantizer.bits]
        self._parts, self._sizes = self._changed.split(sizes), self._changed.new_tensor(sizes, dtype=torch.float32)
        self._roots = torch.sqrt(torch.tensor(widths, dtype=torch.float32)).to(self._sizes.device)
        self.rates, self.averages = torch.zeros_like(self._sizes), torch.zeros_like(self._sizes)
        self.first = 0.0  # the run's rate at its first step, once that has begun
        weights = [[weight] for weight in quantizer.weights] if by_layer else [quantizer.weights]
        kind = Adam if self.options.optimizer == "adam" else TensorRateSGD
        rates = self.rates.unbind()  # parts of it, which both optimizers take for a number
        self.optimizers = [kind(tensors, rate) for tensors, rate in zip(weights, rates)]  # type: ignore[arg-type]

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        return quantizer.quantized

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        import torch

        tensors = zip(quantizer.weights, quantizer.scales, quantizer.grids, quantizer.quantized, grads)
        for weight, scale, grid, spent, grad in tensors:
            if quantizer.scale.clamps:
                torch.abs(weight, out=spent)  # q is not needed again before the next update
                grad.mul_(spent <= scale * (grid.high * (1 + ROUNDING)))
            weight.grad = grad  # what the weights' own optimizer steps is this tensor, not the parameter

    def step(self, optimizer: Optimizer, quantizer: Quantizer, moment: Moment) -> None:
        import torch

        o = self.options
        if not self.first:
            self.first = optimizer.lr
            self.rates.fill_(self.first)
        torch.ne(quantizer.codes, self.previous, out=self._changed)
        self.previous.copy_(quantizer.codes)
        shares = torch.stack([part.count_nonzero() for part in self._parts]) / self._sizes
        targets = self._roots * cosine(moment.begun, o.lambda_, 0.0, 0.0)
        follow(self.rates, self.averages, shares, targets, self.first if o.eta is None else o.eta, o.momentum)
        for own in self.optimizers:
            own.step()
            own.zero_grad()
        optimizer.step()

    def state(self) -> dict[str, Tensor]:
        import torch

        own = {f"{i}/{key}": value for i, kept in enumerate(self.optimizers) for key, value in kept.state().items()}
        first = torch.tensor(self.first, dtype=torch.float64)
        return own | {"previous": self.previous, "rates": self.rates, "averages": self.averages, "first": first}

    def load_state(self, state: dict[str, Tensor]) -> None:
        from oscillations.engine.network import under

        for i, own in enumerate(self.optimizers):
            own.load_state(under(state, f"{i}/"))
        for key in ("previous", "rates", "averages"):
            getattr(self, key).copy_(state[key])
        self.first = float(state["first"])
