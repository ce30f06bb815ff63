"""The paper's toy models, and oscillations counted by hand. Exact and small: numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def nearest_level(w: np.ndarray | float, step: float) -> np.ndarray:
    return step * np.round(np.asarray(w) / step)


@dataclass(frozen=True)
class OneWeight:
    """Section 3: f(x) = w x, quantized f(x) = q(w) x, loss (f(x) - y)^2 / 2 (Eq. 5-20).

    Gradient field of both methods: x (x w - y) + strength * (q(w) - w). QAT with the straight-through estimator
    is strength = x^2 (Eq. 14); OsciQuant is strength = lambda (Eq. 24). Target y at input x, step s between
    levels; ``curvature`` is x^2 and ``optimum`` y / x.
    """

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
        return nearest_level(w, self.step)

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


@dataclass(frozen=True)
class TwoWeights:
    """Appendix A.1: f(x) = w1 w2 x, quantized f(x) = q(w1) q(w2) x, loss (f(x) - y)^2 / 2 (Eq. 25-32).

    With e = q - w, the STE gradient of the quantized loss in w1 is the sum of three terms, and in w2 the same with
    the weights exchanged:

    * ``loss_gradient``         x w2 (x w1 w2 - y), of the full-precision loss
    * ``oscillation_gradient``  x^2 q2^2 e1, towards w1's thresholds as with one weight
    * ``drift_gradient``        x e2 (x w1 (q2 + w2) - y), which the error of the other weight makes

    The last two together are Eq. 32. Weights and gradients are ``[..., 2]``.
    """

    x: float = 1.0
    y: float = 0.75
    step: float = 1.0

    def quantize(self, w: np.ndarray) -> np.ndarray:
        return nearest_level(w, self.step)

    def loss_gradient(self, w: np.ndarray) -> np.ndarray:
        return self.x * _other(w) * (self.x * w * _other(w) - self.y)

    def oscillation_gradient(self, w: np.ndarray) -> np.ndarray:
        q = self.quantize(w)
        return (self.x * _other(q)) ** 2 * (q - w)

    def drift_gradient(self, w: np.ndarray) -> np.ndarray:
        q = self.quantize(w)
        return self.x * _other(q - w) * (self.x * w * _other(q + w) - self.y)

    def descend(self, start: np.ndarray, lr: float, steps: int, drift: bool = True) -> np.ndarray:
        """Gradient descent; ``steps`` states ``[steps, ..., 2]``. QAT, or what it would be without the drift."""
        w = np.asarray(start, dtype=float)
        states = [w]
        for _ in range(steps - 1):
            gradient = self.loss_gradient(w) + self.oscillation_gradient(w)
            w = w - lr * (gradient + self.drift_gradient(w) if drift else gradient)
            states.append(w)
        return np.stack(states)


def _other(w: np.ndarray) -> np.ndarray:
    """The two weights exchanged."""
    return w[..., ::-1]


def alternating_runs(codes: Sequence[int] | np.ndarray, timeout: int | None = None) -> list[list[int]]:
    """Times at which a code changes, cut into maximal runs whose direction alternates.

    A run of n changes is n - 1 oscillations to Nagel's rule, n to the corrected count if n >= 2, n // 2 trips.
    With a ``timeout``, more steps than that since the last change end a run.
    """
    runs: list[list[int]] = []
    previous = 0
    for t, change in enumerate(np.diff(codes).tolist(), 1):
        if change == 0:
            continue
        joins = change * previous < 0 and (timeout is None or t - runs[-1][-1] <= timeout)
        runs = [*runs[:-1], [*runs[-1], t]] if joins else [*runs, [t]]
        previous = change
    return runs
