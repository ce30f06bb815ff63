"""AOQ's toy experiment: linear regression on weights that a 2-bit grid can hold exactly (Xie et al., ICCV 2025).

10,000 weights of -2, -1, 0 or 1 are to be found from 2,000 examples, by LSQ and by AOQ, both from the same
full-precision weights that fit the examples. With so few equations these stay near their random start: a method finds
the true weights only as far as it lets weights move from level to level.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from oscillations.core.bits import Grid
from oscillations.core.files import write_text
from oscillations.engine.optimizer import Adam
from oscillations.engine.quantizer import rounded
from oscillations.methods.lsq import gradients

LEVELS = Grid(-2, 1)
EXAMPLES, WEIGHTS, BATCH, LR = 2_000, 10_000, 20, 1e-3
LSQ_STEP, AOQ_SPACING = 1.8, 1.0  # at the start
PULLED_IN = (
    0.2  # LSQ: weights beyond the outer levels are put so many steps inside them, or they would never move again
)
LEARNS_LEVELS = 151 / 200  # AOQ: share of the training after which its levels are learned: epoch 150 is the last


def shrinkage(progress: float) -> float:
    """Factor on AOQ's spacings: 1 to 0.3 in the first quarter, and up to 0.65 before the half, as released.

    That is 0.65 + 0.35 cos(2 pi e / 100) at every fifth of 200 epochs up to 50, and with e - 25 from 85 to 100.
    """
    epoch = min(int(200 * progress / 5 + 1e-9) * 5, 100)
    phase = min(epoch, 50) if epoch < 85 else epoch - 25
    return 0.65 + 0.35 * math.cos(2 * math.pi * phase / 100)


class FullPrecision:
    """The weights as they are; a method's other tensors are ``learned``."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.learned: list[Tensor] = []

    def quantized(self, progress: float) -> Tensor:
        """The weights of the forward pass."""
        return self.weight

    def backward(self, upstream: Tensor, progress: float) -> None:
        """Set all gradients, given dL/dq."""
        self.weight.grad = upstream

    def codes(self) -> Tensor:
        return rounded(self.weight, "half_up").clamp(LEVELS.low, LEVELS.high)


class Lsq(FullPrecision):
    """s round(clip(w / s)) with learned s, its gradient as it is."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.step = torch.tensor(LSQ_STEP)
        self.learned = [self.step]

    def quantized(self, progress: float) -> Tensor:
        low, high = ((end + inwards) * self.step for end, inwards in zip(LEVELS[:2], (PULLED_IN, -PULLED_IN)))
        outside = self.weight / self.step
        self.weight.copy_(
            torch.where(outside <= LEVELS.low, low, torch.where(outside >= LEVELS.high, high, self.weight))
        )
        return self.codes() * self.step

    def backward(self, upstream: Tensor, progress: float) -> None:
        self.weight.grad, self.step.grad = gradients(self.weight, self.step, self.codes(), upstream, LEVELS)

    def codes(self) -> Tensor:
        return (self.weight / self.step).round().clamp(LEVELS.low, LEVELS.high)


class Aoq(FullPrecision):
    """Thresholds and levels on one spacing that follows a schedule; late in training the levels' is learned."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.spacing, self.level = AOQ_SPACING, torch.tensor(1.0)  # of the thresholds; of the levels, in these
        self.learned = [self.level]

    def quantized(self, progress: float) -> Tensor:
        self.spacing = AOQ_SPACING * shrinkage(progress)
        return self.codes() * self.level * self.spacing

    def backward(self, upstream: Tensor, progress: float) -> None:
        self.weight.grad = upstream
        if progress >= LEARNS_LEVELS:
            self.level.grad = (upstream * self.codes()).sum() * self.spacing

    def codes(self) -> Tensor:
        return rounded(self.weight / self.spacing, "half_up").clamp(LEVELS.low, LEVELS.high)


def train(method: FullPrecision, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> float:
    """Adam on the mean squared error of ``x q - y``, ``x [examples, weights]``; returns the last epoch's mean loss."""
    optimizer = Adam([method.weight, *method.learned], LR)
    steps = len(x) // BATCH
    for epoch in range(epochs):
        loss = 0.0
        for step, chosen in enumerate(torch.randperm(len(x), generator=generator).split(BATCH)):
            progress = (epoch + step / steps) / epochs
            inputs = x[chosen]
            residual = inputs @ method.quantized(progress) - y[chosen]
            method.backward(inputs.T @ residual * (2 / len(chosen)), progress)
            optimizer.step()
            loss += residual.square().mean().item() / steps
    return loss


def experiment(seed: int, epochs: int) -> pd.DataFrame:
    """One row per method and level: how many weights end there, and how many of all equal the truth.

    ``matches`` counts codes, ``rounded_matches`` latent weights rounded to integers (the released measure);
    ``pretrained`` is the full-precision start, rounded.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(LEVELS.low, LEVELS.high + 1, (WEIGHTS,), generator=generator).float()
    x = torch.randn(EXAMPLES, WEIGHTS, generator=generator)
    start = FullPrecision(torch.randn(WEIGHTS, generator=generator))
    rows = []
    for name in ("pretrained", "lsq", "aoq"):
        method = start if name == "pretrained" else {"lsq": Lsq, "aoq": Aoq}[name](start.weight.clone())
        loss = train(method, x, x @ truth, epochs, generator)
        codes = method.codes()
        row = {
            "method": name, "seed": seed, "epochs": epochs, "loss": loss, "matches": int((codes == truth).sum()),
            "rounded_matches": int((method.weight.round() == truth).sum()),
        }  # fmt: skip
        for level in range(LEVELS.low, LEVELS.high + 1):
            ended = codes == level
            rows.append(
                row | {"level": level, "weights": int(ended.sum()), "right": int((truth[ended] == level).sum())}
            )
    return pd.DataFrame(rows)


def write(path: Path, seeds: list[int], epochs: int) -> None:
    """Run the experiment with every seed and write its table."""
    torch.set_num_threads(1)
    table = pd.concat([experiment(seed, epochs) for seed in seeds])
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
