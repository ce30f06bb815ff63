"""StatsQ's quantizer, and its form for products of weights (:mod:`oscillations.methods.statsq`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oscillations.core.bits import grid_of
from oscillations.engine.quantizer import ROUNDING, WeightQuantizer, reduced
from oscillations.methods.lsq import SMALLEST_SCALE


def statistic_scale(weight: Tensor, bits: int) -> Tensor:
    """A step of 2 mean|w| / 2^(b-1) for each output channel, ``[C, 1, ...]``; above zero."""
    mean = weight.abs().mean(reduced(weight, per_channel=True), keepdim=True)
    return mean.mul_(2 ** (2 - bits)).clamp_min_(SMALLEST_SCALE)


def straight_through(matrices: Tensor, bits: int, tie: str = "half_even") -> Tensor:
    """q of every row of ``[..., rows, columns]`` with the rows' statistics; its gradient is the identity."""
    grid = grid_of("mid_rise", bits)
    with torch.no_grad():
        rows = matrices.flatten(0, -2)
        scale = statistic_scale(rows, bits)
        codes = ROUNDING[tie](rows / scale - grid.offset).clamp_(grid.low, grid.high)
        error = codes.add_(grid.offset).mul_(scale).sub_(rows).view_as(matrices)
    return matrices + error


class StatsqQuantizer(WeightQuantizer):
    """2^b levels around zero, which is a threshold, with the statistic of the present weights as step.

    The source clips w one part in a million below the range's end before it rounds; clamping the codes is the same.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.latent_rows: dict[int, int] = {}  # how many first rows of a tensor are not quantized: query, key

    @torch.no_grad()
    def rescale(self) -> None:
        self.scales = [statistic_scale(weight, self.bits) for weight in self.weights]

    def update(self) -> None:
        super().update()
        for i, rows in self.latent_rows.items():
            self.quantized[i][:rows] = self.weights[i][:rows]
            self.code_views[i][:rows] = 0  # they have none, so that none is counted
