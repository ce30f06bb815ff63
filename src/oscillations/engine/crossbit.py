"""What a trained network does at every bit width, and how its weights lie on their grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oscillations.core.bits import LATENT
from oscillations.engine.accuracy import accuracy, reestimated_norms, weights_as
from oscillations.engine.training import Trainer
from oscillations.engine.weight_statistics import histogram


def accuracies(trainer: Trainer, done: bool) -> list[dict[str, Any]]:
    """Test accuracy at every evaluation bit, batch-norm statistics kept and re-estimated.

    A network without batch norm has nothing to re-estimate and gives ``keep`` only; a diverged run no number.
    ``bn_divergence``: how far the kept statistics are from the re-estimated ones (:func:`norm_divergence`).
    """
    model = trainer.model
    rows: list[dict[str, Any]] = []
    kept = norm_statistics(model)
    for bits in trainer.eval_bits:
        values = None if bits == LATENT else trainer.quantized_weights(bits)
        with weights_as(trainer.parameters, values):
            rows.append({"eval_bits": bits, "bn": "keep", "accuracy": _test_accuracy(trainer, done)})
            if kept:
                with reestimated_norms(model, trainer.sets["train"]):
                    row = {"eval_bits": bits, "bn": "reestimate", "accuracy": _test_accuracy(trainer, done)}
                    rows.append(row | {"bn_divergence": norm_divergence(norm_statistics(model), kept)})
    return rows


def _test_accuracy(trainer: Trainer, done: bool) -> float | None:
    return accuracy(trainer.model, trainer.sets["test"])[0] if done else None


def norm_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The mean and the variance (with its epsilon) that every batch-norm layer divides by, each ``[channels]``."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [
        (norm.running_mean.clone(), norm.running_var + norm.eps) for norm in norms
        if norm.running_mean is not None and norm.running_var is not None
    ]  # fmt: skip


def norm_divergence(true: list[tuple[Tensor, Tensor]], assumed: list[tuple[Tensor, Tensor]]) -> float:
    """Mean over all channels of KL(N(true) || N(assumed)), in nats, as Nagel et al. (2022) measure it."""
    divergences = [
        ((assumed_var / var).log() + (var + (mean - assumed_mean).square()) / assumed_var - 1) / 2
        for (mean, var), (assumed_mean, assumed_var) in zip(true, assumed)
    ]
    return torch.cat(divergences).mean().item()


def histograms(trainer: Trainer) -> list[dict[str, Any]]:
    """Counts of weights in steps (levels at integers) at the target bits, per quantized tensor; none for the baseline.

    ``scale``: a step's size, with scales per channel their mean.
    """
    quantizer = trainer.quantizer
    rows: list[dict[str, Any]] = []
    if quantizer is None:
        return rows
    for i, name in enumerate(quantizer.names):
        about = {"layer": name, "bits": quantizer.bits, "scale": quantizer.scales[i].mean().item()}
        rows += [about | {"u": u, "count": n} for u, n in histogram(quantizer, i).items() if n]
    return rows
