"""Adam and SGD as ``torch.optim`` computes them (fused Adam), bit for bit, without those classes' cost.

Their step wrapper imports torch's compiler, over a second of every job's start, and adds a quarter of a
millisecond to every step (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
MOMENTUM = 0.9


class Optimizer:
    """Base: no weight decay; ``lr`` may be changed between steps."""

    def __init__(self, parameters: Iterable[Tensor], lr: float):
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])


class Adam(Optimizer):
    """Adam with torch's defaults."""

    def __init__(self, parameters: Iterable[Tensor], lr: float):
        super().__init__(parameters, lr)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.mean_squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        slots = zip(self.parameters, self.means, self.mean_squares, self.steps)
        used = [(p, p.grad, *rest) for p, *rest in slots if p.grad is not None]
        parameters, grads, means, mean_squares, steps = map(list, zip(*used))
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters, grads, means, mean_squares, [], steps, lr=self.lr, beta1=BETA1, beta2=BETA2,
            weight_decay=0, eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        slots = {"mean": self.means, "mean_square": self.mean_squares, "step": self.steps}
        return {f"{i}/{name}": value for name, values in slots.items() for i, value in enumerate(values)}


class SGD(Optimizer):
    """Stochastic gradient descent with momentum 0.9: v <- 0.9 v + g, w <- w - lr v."""

    def __init__(self, parameters: Iterable[Tensor], lr: float):
        super().__init__(parameters, lr)
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        used = [(p, p.grad, v) for p, v in zip(self.parameters, self.velocities) if p.grad is not None]
        parameters, grads, velocities = map(list, zip(*used))
        torch._foreach_mul_(velocities, MOMENTUM)
        torch._foreach_add_(velocities, grads)
        torch._foreach_add_(parameters, velocities, alpha=-self.lr)

    def state(self) -> dict[str, Tensor]:
        return {f"{i}/velocity": velocity for i, velocity in enumerate(self.velocities)}


OPTIMIZERS = {"adam": Adam, "sgd": SGD}
