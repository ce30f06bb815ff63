"""Adam, AdamW and SGD as ``torch.optim`` computes them (the first two fused), bit for bit, without those classes' cost.

Their step wrapper imports torch's compiler, over a second of every job's start, and adds a quarter of a
millisecond to every step (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
MOMENTUM = 0.9


class Optimizer:
    """Base. ``lr`` may be changed between steps; ``decays`` holds each parameter's weight decay (None: none decays)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, decays: Sequence[float] | None = None):
        self.parameters, self.lr = list(parameters), lr
        self.decays = [0.0] * len(self.parameters) if decays is None else decays

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for decay in dict.fromkeys(self.decays):
            whole = zip(self.decays, self.parameters, *self.slots().values())
            used = [(p, p.grad, *slots) for own, p, *slots in whole if own == decay and p.grad is not None]
            if used:
                self.update(decay, *map(list, zip(*used)))

    def update(self, decay: float, parameters: list[Tensor], grads: list[Tensor], *slots: list[Tensor]) -> None:
        """Update these parameters, which share a weight decay, and what :meth:`slots` holds of them, in place."""
        raise NotImplementedError

    def slots(self) -> dict[str, list[Tensor]]:
        """What is remembered of every parameter, by name."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors."""
        return {f"{i}/{name}": value for name, values in self.slots().items() for i, value in enumerate(values)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])


class Adam(Optimizer):
    """Adam with torch's defaults; weight decay adds to the gradient: g + decay w."""

    kernel: ClassVar[Callable[..., object]] = staticmethod(torch._fused_adam_)

    def __init__(self, parameters: Iterable[Tensor], lr: float, decays: Sequence[float] | None = None):
        super().__init__(parameters, lr, decays)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.mean_squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def update(self, decay: float, parameters: list[Tensor], grads: list[Tensor], *slots: list[Tensor]) -> None:
        means, mean_squares, steps = slots
        torch._foreach_add_(steps, 1)
        self.kernel(
            parameters, grads, means, mean_squares, [], steps, lr=self.lr, beta1=BETA1, beta2=BETA2,
            weight_decay=decay, eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    def slots(self) -> dict[str, list[Tensor]]:
        return {"mean": self.means, "mean_square": self.mean_squares, "step": self.steps}


class AdamW(Adam):
    """Adam whose weight decay stays out of the gradient: w - lr decay w, then Adam's step (arXiv:1711.05101)."""

    kernel = staticmethod(torch._fused_adamw_)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum 0.9: v <- 0.9 v + g + decay w, w <- w - lr v."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, decays: Sequence[float] | None = None):
        super().__init__(parameters, lr, decays)
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def update(self, decay: float, parameters: list[Tensor], grads: list[Tensor], *slots: list[Tensor]) -> None:
        (velocities,) = slots
        if decay:
            grads = list(torch._foreach_add(grads, parameters, alpha=decay))
        torch._foreach_mul_(velocities, MOMENTUM)
        torch._foreach_add_(velocities, grads)
        torch._foreach_add_(parameters, velocities, alpha=-self.lr)

    def slots(self) -> dict[str, list[Tensor]]:
        return {"velocity": self.velocities}


OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def weight_decays(named: Iterable[tuple[str, Tensor]], weight_decay: float, which: str) -> list[float]:
    """The weight decay of each of a network's parameters, by what ``training.decay`` says.

    ``all``: of every one, as torch does. ``matrices``: of the weights of layers alone, which have two or more
    dimensions; biases and norms have one, and class token and position embedding of a ViT are no ``weight``. Those
    that decay in timm, and so in DeiT (arXiv:2012.12877).
    """
    return [
        weight_decay if which == "all" or (name.endswith("weight") and parameter.dim() > 1) else 0.0
        for name, parameter in named
    ]
