"""What a trained network does at every bit width, and how its weights lie on their grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oscillations.core.bits import REQUANTIZE, SLICED
from oscillations.engine.accuracy import accuracy, reestimated_norms
from oscillations.engine.batches import ImageSet
from oscillations.engine.network import Network
from oscillations.engine.weight_statistics import histogram

Rows = list[dict[str, Any]]


def accuracies(
    network: Network, sets: dict[str, ImageSet], eval_bits: Sequence[int], done: bool, rule: str = REQUANTIZE
) -> Rows:
    """Test accuracy at every bit width, batch-norm statistics kept and re-estimated.

    ``rule``: one of :meth:`Network.weights`. Slices have rows at the widths below what they are cut from alone.
    A network without batch norm has nothing to re-estimate and gives ``keep`` only; a diverged run no number.
    ``bn_divergence``: how far the kept statistics are from the re-estimated ones (:func:`norm_divergence`).
    """
    model = network.model
    widths = [bits for bits in eval_bits if rule == REQUANTIZE or bits < SLICED]
    rows: Rows = []
    kept = norm_statistics(model)

    def measured() -> float | None:
        return accuracy(model, sets["test"])[0] if done else None

    for bits in widths:
        with network.at(bits, rule):
            rows.append({"eval_bits": bits, "bn": "keep", "accuracy": measured()})
            if kept:
                with reestimated_norms(model, sets["train"]):
                    row = {"eval_bits": bits, "bn": "reestimate", "accuracy": measured()}
                    rows.append(row | {"bn_divergence": norm_divergence(norm_statistics(model), kept)})
    return rows


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


def histograms(network: Network) -> Rows:
    """Counts of weights in steps (levels at integers) at the target bits, per quantized tensor; none for the baseline.

    ``scale``: a step's size, with scales per channel their mean.
    """
    quantizer = network.quantizer
    rows: Rows = []
    if quantizer is None:
        return rows
    for i, name in enumerate(quantizer.names):
        about = {"layer": name, "bits": quantizer.widths[i], "scale": quantizer.scales[i].mean().item()}
        rows += [about | {"u": u, "count": n} for u, n in histogram(quantizer, i).items() if n]
    return rows
