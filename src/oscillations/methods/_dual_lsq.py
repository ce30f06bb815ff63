"""Dual-LSQ's scale: LSQ's for the thresholds, another for the levels (:mod:`oscillations.methods.dual_lsq`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from oscillations.core.bits import Grid
from oscillations.engine.scales import LearnedScale


class DualScale(LearnedScale):
    """``values`` space the thresholds, ``of_levels`` the levels; both are the same at first."""

    def __init__(
        self, weights: list[Tensor], grids: list[Grid], per_channel: bool,
        first: Callable[[Tensor, Grid, bool], Tensor], smallest: float,
    ):  # fmt: skip
        super().__init__(weights, grids, per_channel, first, smallest)
        self.of_levels = [scale.clone() for scale in self.values]

    @property
    def levels(self) -> Sequence[Tensor]:
        return self.of_levels

    def bound(self) -> None:
        super().bound()
        for scale in self.of_levels:
            scale.clamp_(min=self.smallest)

    def state(self, names: list[str]) -> dict[str, Tensor]:
        return super().state(names) | {f"level/{name}": scale for name, scale in zip(names, self.of_levels)}
