"""What a trained network does at every bit width, and how its weights lie on their grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from oscillations.accuracy import accuracy, reestimated_norms, weights_as
from oscillations.bits import LATENT
from oscillations.training import Trainer

BINS_PER_STEP = 20


def accuracies(trainer: Trainer, done: bool) -> list[dict[str, Any]]:
    """Test accuracy at every evaluation bit, batch-norm statistics kept and re-estimated.

    A network without batch norm has nothing to re-estimate and gives ``keep`` only; a diverged run no number.
    """
    model, rows = trainer.model, []
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    for bits in trainer.eval_bits:
        values = None if bits == LATENT else trainer.quantized_weights(bits)
        with weights_as(trainer.parameters, values):
            found = {"keep": accuracy(model, trainer.sets["test"])[0] if done else None}
            if normed:
                with reestimated_norms(model, trainer.sets["train"]):
                    found["reestimate"] = accuracy(model, trainer.sets["test"])[0] if done else None
        rows += [{"eval_bits": bits, "bn": bn, "accuracy": value} for bn, value in found.items()]
    return rows


def histograms(trainer: Trainer) -> list[dict[str, Any]]:
    """Counts of weights in steps (levels at integers) at the target bits, per quantized tensor; none for the baseline.

    ``scale``: a step's size, with scales per channel their mean.
    """
    quantizer, rows = trainer.quantizer, []
    if quantizer is None:
        return rows
    low, high, _ = quantizer.grid
    half = 0.5 / BINS_PER_STEP
    centres = torch.linspace(low, high, (high - low) * BINS_PER_STEP + 1)
    for i, name in enumerate(quantizer.names):
        u = quantizer.position(i).float().cpu()
        counts = torch.histc(u, bins=len(centres), min=low - half, max=high + half)
        scale = quantizer.scales[i].mean().item()
        rows += [
            {"layer": name, "bits": quantizer.bits, "scale": scale, "u": round(u, 4), "count": int(n)}
            for u, n in zip(centres.tolist(), counts.tolist())
            if n
        ]
    return rows
