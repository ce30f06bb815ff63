"""AOQ's scale: spacings of thresholds and levels apart (:mod:`oscillations.methods.aoq`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oscillations.core.bits import Grid
from oscillations.engine.scales import Scale, reduced
from oscillations.methods.aoq import SMALLEST_SPACING


def initial_spacing(weight: Tensor, grid: Grid, per_channel: bool = False) -> Tensor:
    """Unbiased std(w) / 2^(b-2), with 2^b levels: 0-dim, or ``[C, 1, ...]``."""
    spread = weight.std(reduced(weight, per_channel), keepdim=per_channel)
    return (spread / (grid.levels // 4)).clamp_min(SMALLEST_SPACING)


class Spacings(Scale):
    """``shrinkage`` times the spacings of the thresholds and of the levels, of which a method learns the latter."""

    kind = "learned"

    def __init__(self, weights: list[Tensor], grids: list[Grid], per_channel: bool):
        super().__init__(weights, grids, per_channel)
        self.shrinkage = torch.ones((), device=weights[0].device)
        self.of_thresholds = self.each(initial_spacing)
        self.of_levels = [spacing.clone() for spacing in self.of_thresholds]
        self._levels: Sequence[Tensor] = self.of_levels

    @property
    def levels(self) -> Sequence[Tensor]:
        return self._levels

    @torch.no_grad()
    def compute(self) -> None:
        self.values = [spacing * self.shrinkage for spacing in self.of_thresholds]
        self._levels = [spacing * self.shrinkage for spacing in self.of_levels]

    def bound(self) -> None:
        for spacing in self.of_levels:
            spacing.clamp_(min=SMALLEST_SPACING)

    def state(self, names: list[str]) -> dict[str, Tensor]:
        kinds = {"threshold": self.of_thresholds, "level": self.of_levels}
        spacings = {f"{kind}/{name}": s for kind in kinds for name, s in zip(names, kinds[kind])}
        return {"shrinkage": self.shrinkage} | spacings
