"""The quantizer of Q-EMA (:mod:`oscillations.methods.q_ema`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oscillations.engine.quantizer import WeightQuantizer, rounded
from oscillations.engine.scales import Scale
from oscillations.methods.ema import average

ON_LEVEL = 1e-5  # steps; a weight so near to a level has no other, as the largest, which lies on one but for rounding


class AveragingQuantizer(WeightQuantizer[Scale]):
    """Rounds a weight u = w / s to one of its two neighbouring codes: to that which is nearer to its average e / s.

    k = clip(round(e / s), floor(u), ceil(u)), within the grid. ``averages``, shaped as the weights, are e, and start
    as the weights; ``steps`` were averaged. Both belong to a checkpoint, as codes depend on them. Before
    ``warmup_steps`` of them codes are the nearest.
    """

    warmup_steps: int  # the method's

    def __init__(self, weights: dict[str, Tensor], *args: Any, **options: Any):
        super().__init__(weights, *args, **options)
        self.averages = [weight.clone() for weight in self.weights]
        self.steps = 0
        scratch = self.weights[0].new_empty(2, max(self.sizes))  # for one tensor after another
        self._below, self._above = (
            [flat[:size].as_strided(w.shape, w.stride()) for size, w in zip(self.sizes, self.weights)]
            for flat in scratch
        )

    def follow(self, decay: float) -> None:
        """The weights have made a step; the next update shows it."""
        average(self.averages, self.weights, decay)
        self.steps += 1

    @torch.no_grad()
    def update(self) -> None:
        if self.steps < self.warmup_steps:
            super().update()
            return
        self.scale.compute()
        clamps = self.scale.clamps
        tensors = zip(
            self.weights, self.averages, self.grids, self.scales, self.code_views, self.quantized, self._below,
            self._above,
        )  # fmt: skip
        for weight, mean, grid, scale, codes, quantized, below, above in tensors:
            torch.div(weight, scale, out=above)
            torch.add(above, ON_LEVEL, out=below).floor_()
            above.sub_(ON_LEVEL).ceil_()
            torch.div(mean, scale, out=quantized)
            rounded(quantized, self.tie, out=quantized)
            quantized.clamp_(below, above)
            if clamps:
                quantized.clamp_(grid.low, grid.high)
            codes.copy_(quantized)
            quantized.mul_(scale)

    def state(self) -> dict[str, Tensor]:
        averages = {f"ema/{name}": mean for name, mean in zip(self.names, self.averages)}
        return super().state() | averages | {"steps": torch.tensor(self.steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.steps = int(state["steps"])
