"""AOQ's quantizer: spacings of thresholds and levels apart (:mod:`oscillations.methods.aoq`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oscillations.engine.quantizer import WeightQuantizer, reduced
from oscillations.methods.aoq import SMALLEST_SPACING


def initial_spacing(weight: Tensor, bits: int, per_channel: bool = False) -> Tensor:
    """Unbiased std(w) / 2^(b-2): 0-dim, or ``[C, 1, ...]``."""
    spread = weight.std(reduced(weight, per_channel), keepdim=per_channel)
    return (spread / 2 ** (bits - 2)).clamp_min(SMALLEST_SPACING)


class AoqQuantizer(WeightQuantizer):
    """2^b levels around zero, which is a threshold; spacings are ``shrinkage`` times ``thresholds`` and ``levels``."""

    def __init__(self, weights: dict[str, Tensor], bits: int, **options: Any):
        super().__init__(weights, bits, scale_source="learned", grid="mid_rise", **options)
        self.shrinkage = torch.ones((), device=self.codes.device)
        self.thresholds = [initial_spacing(weight, bits, self.per_channel) for weight in self.weights]
        self.levels = [spacing.clone() for spacing in self.thresholds]

    @torch.no_grad()
    def rescale(self) -> None:
        self.scales = [spacing * self.shrinkage for spacing in self.thresholds]
        self.level_scales = [spacing * self.shrinkage for spacing in self.levels]

    def state(self) -> dict[str, Tensor]:
        kinds = {"threshold": self.thresholds, "level": self.levels}
        spacings = {f"{kind}/{name}": s for kind in kinds for name, s in zip(self.names, kinds[kind])}
        return {"shrinkage": self.shrinkage} | spacings
