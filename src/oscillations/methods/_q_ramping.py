"""Adam that gives every single weight a batch of its own size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from oscillations.engine.optimizer import Adam


class RampedAdam(Adam):
    """Moves a weight of period N in every N-th step, by its mean gradient since the last time and N times the rate.

    ``waited`` counts a weight's steps a since it moved, ``sums`` adds up their gradients. It is due where its N, in
    ``periods``, divides a, so that N may change while it waits. All weights share the count of steps that corrects
    Adam's bias. Weight decay is AdamW's, of all weights in every step. With N = 1 this is Adam, bit for bit, as its
    kernel computes how far a weight would move.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(parameters, lr)
        self.weight_decay = weight_decay
        self.waited, self.sums, self._moves = ([torch.zeros_like(p) for p in self.parameters] for _ in range(3))
        self.periods = [torch.ones_like(p) for p in self.parameters]
        self._moments = [*self.means, *self.mean_squares]
        self._kept = [torch.empty_like(moment) for moment in self._moments]

    @torch.no_grad()
    def step(self) -> None:
        if self.weight_decay:
            torch._foreach_mul_(self.parameters, 1 - self.lr * self.weight_decay)
        grads: list[Tensor] = [p.grad for p in self.parameters]  # type: ignore[misc]  # all have one; spent here
        torch._foreach_add_(self.waited, 1)
        torch._foreach_add_(self.sums, grads)
        torch._foreach_copy_(grads, self.sums)
        torch._foreach_div_(grads, self.waited)
        torch._foreach_copy_(self._kept, self._moments)
        torch._foreach_zero_(self._moves)
        self.update(0.0, self._moves, grads, self.means, self.mean_squares, self.steps)
        torch._foreach_mul_(self._moves, self.waited)
        waiting = [waited.remainder(period) != 0 for waited, period in zip(self.waited, self.periods)]
        for moment, kept, wait in zip(self._moments, self._kept, waiting * 2):
            torch.where(wait, kept, moment, out=moment)
        for wait, move, parameter, waited, total in zip(waiting, self._moves, self.parameters, self.waited, self.sums):
            parameter.add_(move.masked_fill_(wait, 0))
            waited.mul_(wait)
            total.mul_(wait)

    def slots(self) -> dict[str, list[Tensor]]:
        return super().slots() | {"waited": self.waited, "sum": self.sums, "period": self.periods}
