"""StatsQ's scale, and its form for products of weights (:mod:`oscillations.methods.statsq`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oscillations.core.bits import Grid, grid_of
from oscillations.engine.quantizer import WeightQuantizer, rounded
from oscillations.engine.scales import Scale, reduced
from oscillations.methods.lsq import SMALLEST_SCALE


def statistic_scale(weight: Tensor, grid: Grid, per_channel: bool = True) -> Tensor:
    """A step of 2 mean|w| / 2^(b-1), with 2^b levels, for each output channel, ``[C, 1, ...]``; above zero."""
    mean = weight.abs().mean(reduced(weight, per_channel), keepdim=True)
    return mean.mul_(4 / grid.levels).clamp_min_(SMALLEST_SCALE)


def straight_through(matrices: Tensor, bits: int, tie: str = "half_even") -> Tensor:
    """q of every row of ``[..., rows, columns]`` with the rows' statistics; its gradient is the identity."""
    grid = grid_of("mid_rise", bits)
    with torch.no_grad():
        rows = matrices.flatten(0, -2)
        scale = statistic_scale(rows, grid)
        codes = rounded(rows / scale, tie, grid.offset).clamp_(grid.low, grid.high)
        error = codes.add_(grid.offset).mul_(scale).sub_(rows).view_as(matrices)
    return matrices + error


class MeanScale(Scale):
    """The statistic of the present weights, one for each output channel.

    The source clips w one part in a million below the range's end before it rounds; clamping the codes is the same.
    """

    kind = "mean"

    @torch.no_grad()
    def compute(self) -> None:
        self.values = self.each(statistic_scale)


class ProductQuantizer(WeightQuantizer[MeanScale]):
    """Leaves query and key weights as they are: their product is quantized in the forward pass."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.latent_rows: dict[int, int] = {}  # how many first rows of a tensor are not quantized

    def update(self) -> None:
        super().update()
        for i, rows in self.latent_rows.items():
            self.quantized[i][:rows] = self.weights[i][:rows]
            self.code_views[i][:rows] = 0  # they have none, so that none is counted
