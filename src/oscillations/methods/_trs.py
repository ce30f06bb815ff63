"""An optimizer for TRS."""

from __future__ import annotations

import torch
from torch import Tensor

from oscillations.engine.optimizer import MOMENTUM, SGD


class TensorRateSGD(SGD):
    """SGD whose learning rate is a 0-dim tensor, which no step reads on the host."""

    def update(self, decay: float, parameters: list[Tensor], grads: list[Tensor], *slots: list[Tensor]) -> None:
        (velocities,) = slots
        torch._foreach_mul_(velocities, MOMENTUM)
        torch._foreach_add_(velocities, grads)
        for parameter, velocity in zip(parameters, velocities):
            parameter.addcmul_(velocity, self.lr, value=-1)  # type: ignore[arg-type]  # lr is the tensor
