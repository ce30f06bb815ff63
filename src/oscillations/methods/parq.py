"""PARQ: forward weights that go from the latent ones to rounded ones by a map that hardens.

As released: torchao.prototype.parq, pytorch/ao@36027d8 (optim/parq.py, binarelax.py, quantopt.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.core.bits import Grid
    from oscillations.engine.optimizer import Optimizer

SMALLEST = 2.0**-126  # float32's smallest normal number, whose inverse is finite: the least rho of a stair


class ParqOptions(QuantizedOptions):
    map: Literal["parq", "binary_relax"] = Field(
        "parq", description="a stair that grows steeper between levels, or a mean of w and q(w)"
    )
    anneal_start: float = Field(0.0, ge=0, le=1, description="share of the training before which weights are latent")
    anneal_end: float = Field(0.9, ge=0, le=1, description="share of the training after which they are rounded")
    steepness: float = Field(
        10.0, ge=0.01, le=100, description="of the sigmoid that leads from one to the other; below 1 almost a line"
    )
    centre: float = Field(0.5, ge=0, le=1, description="share of the annealing at which the sigmoid is steepest")

    @model_validator(mode="after")
    def _anneals_forwards(self) -> ParqOptions:
        if self.anneal_start > self.anneal_end:
            raise ValueError(f"anneal_end: {self.anneal_end:g} is before anneal_start {self.anneal_start:g}; say more")
        for key in ("steepness", "centre"):
            if self.map == "binary_relax" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: binary_relax follows a line, not a sigmoid; leave {key} out")
        return self

    @property
    def whole_from(self) -> float:
        return self.anneal_end

    def rho(self, progress: float) -> float:
        """How latent the weights still are at this share of the training: from 1, w itself, to 0, q(w).

        A sigmoid, normalised to go from 1 to 0 if its centre is 1/2; other centres would lead beyond. It is held above
        0, as released, and at most 1, beyond which the stair would jump at the levels. For binary_relax a line.
        """
        if progress < self.anneal_start:
            return 1.0
        if progress >= self.anneal_end:
            return 0.0
        x = (progress - self.anneal_start) / (self.anneal_end - self.anneal_start)
        if self.map == "binary_relax":
            return 1 - x
        here, first, last = (1 / (1 + math.exp(self.steepness * y)) for y in (x - self.centre, -0.5, 0.5))
        return min(max((here - last) / (first - last), SMALLEST), 1.0)


def stair(weight: Tensor, scale: Tensor, grid: Grid, rho: float, out: Tensor, below: Tensor) -> Tensor:
    """clip(c + (w - c) / rho, L, R) in ``out``, with c halfway between the neighbouring levels L and R of a weight.

    Weights beyond the outer levels lie on them. ``scale``: 0-dim or ``[C, 1, ...]``; ``below``: room for the codes of
    L, shaped as the weights.
    """
    import torch

    torch.div(weight, scale, out=out)
    torch.floor(out, out=below).clamp_(grid.low, grid.high - 1)
    return out.sub_(below).sub_(0.5).mul_(1 / rho).add_(0.5).clamp_(0, 1).add_(below).mul_(scale)


class Parq(Method):
    """Trains on f_rho(w), whose gradient is the latent weights', without a factor 1 / rho and none through the levels.

    Its evaluation is rounding, as the forward pass is at the end. After a step rho is that of the steps made before it,
    as released; the first forward pass, there with latent weights, has that of the training's start.
    The schedule is that of the maximal number of steps: give such runs as much patience as epochs.
    """

    Options = ParqOptions
    options: ParqOptions

    def begin(self, quantizer: Quantizer) -> None:
        import torch

        self.rho = self.options.rho(0.0)
        self._mapped, self._below = ([torch.empty_like(weight) for weight in quantizer.weights] for _ in range(2))

    def forward_weights(self, quantizer: Quantizer) -> Tensors | None:
        import torch

        if self.rho == 1:
            return None
        if self.rho == 0:
            return quantizer.quantized
        for i, mapped in enumerate(self._mapped):
            weight, scale, grid = quantizer.weights[i], quantizer.scales[i], quantizer.grids[i]
            if self.options.map == "parq":
                stair(weight, scale, grid, self.rho, mapped, self._below[i])
            else:
                torch.lerp(quantizer.quantized[i], weight, self.rho, out=mapped)
        return self._mapped

    def step(self, optimizer: Optimizer, quantizer: Quantizer, moment: Moment) -> None:
        optimizer.step()
        self.rho = self.options.rho(moment.begun)  # the release counts steps from 0

    def state(self) -> dict[str, Tensor]:
        import torch

        return {"rho": torch.tensor(self.rho, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.rho = float(state["rho"])
