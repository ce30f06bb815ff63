"""Adam as ``torch.optim.Adam(fused=True)`` computes it, bit for bit, without that class's cost.

Its step wrapper imports torch's compiler, over a second of every job's start, and adds a quarter of a millisecond
to every step (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class Adam:
    """Adam with a constant learning rate, no weight decay, and torch's defaults for the rest."""

    def __init__(self, parameters: Iterable[Tensor], lr: float):
        self.parameters, self.lr = list(parameters), lr
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.mean_squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        slots = zip(self.parameters, self.means, self.mean_squares, self.steps)
        used = [(p, p.grad, *rest) for p, *rest in slots if p.grad is not None]
        parameters, grads, means, mean_squares, steps = map(list, zip(*used))
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters, grads, means, mean_squares, [], steps, lr=self.lr, beta1=BETA1, beta2=BETA2,
            weight_decay=0, eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors."""
        slots = {"mean": self.means, "mean_square": self.mean_squares, "step": self.steps}
        return {f"{i}/{name}": value for name, values in slots.items() for i, value in enumerate(values)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])
