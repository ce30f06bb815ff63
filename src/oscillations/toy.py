"""The one-weight model of section 3: f(x) = w x, quantized f(x) = q(w) x, loss (f(x) - y)^2 / 2 (Eq. 5-20).

Gradient field of both methods: x (x w - y) + strength * (q(w) - w). QAT with the straight-through estimator is
strength = x^2 (Eq. 14); OsciQuant is strength = lambda (Eq. 24). Exact and small: numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OneWeight:
    """Target y at input x, step s between levels; ``curvature`` is x^2 and ``optimum`` y / x."""

    x: float = 1.0
    y: float = 0.75
    step: float = 1.0

    @property
    def curvature(self) -> float:
        return self.x**2

    @property
    def optimum(self) -> float:
        return self.y / self.x

    def quantize(self, w: np.ndarray | float) -> np.ndarray:
        return self.step * np.round(np.asarray(w) / self.step)

    def loss_gradient(self, w: np.ndarray | float) -> np.ndarray:
        """Gradient of the full-precision loss, x (x w - y)."""
        return self.x * (self.x * np.asarray(w) - self.y)

    def oscillation_gradient(self, w: np.ndarray | float, strength: float) -> np.ndarray:
        """The term that pushes a weight away from its level (Eq. 14, 24)."""
        return strength * (self.quantize(w) - np.asarray(w))

    def descend(self, start: np.ndarray | float, strength: float, lr: float, steps: int) -> np.ndarray:
        """Plain gradient descent; returns the ``steps`` states from the start on, ``[steps, ...]``."""
        w = np.asarray(start, dtype=float)
        states = [w]
        for _ in range(steps - 1):
            w = w - lr * (self.loss_gradient(w) + self.oscillation_gradient(w, strength))
            states.append(w)
        return np.stack(states)


FIGURE1 = OneWeight(x=1.0, y=0.75, step=1.0)


def figure1_trajectory() -> np.ndarray:
    """Figure 1: QAT from w = 0.1 with learning rate 0.15, 20 epochs."""
    return FIGURE1.descend(0.1, FIGURE1.curvature, lr=0.15, steps=20)
