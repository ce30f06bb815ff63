"""What a post-training method makes of a trained network: accuracy, and the reconstruction loss along the depth."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from oscillations.core.bits import grid_of, largest_code
from oscillations.core.errors import InputError
from oscillations.engine.accuracy import accuracy, reestimated_norms
from oscillations.engine.batches import ImageSet
from oscillations.engine.layers import weights_as
from oscillations.engine.network import Network
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import max_scale, mse_scale
from oscillations.posttraining import PostTraining
from oscillations.posttraining._reconstruction import Calibration

Rows = list[dict[str, Any]]


def measure(
    network: Network, sets: dict[str, ImageSet], method: PostTraining, bits: int, seed: int
) -> tuple[Rows, Rows]:
    """Rows of test accuracy (batch norm kept, and re-estimated where there is any) and rows of the loss per unit.

    The network holds a finished run's checkpoint; ``seed``, the run's, draws the calibration batches. Biases stay as
    they are.
    """
    started = time.monotonic()
    calibration, about = calibrate(network, sets["train"], method, bits, seed)
    groups = method.quantize(calibration)
    seconds = time.monotonic() - started
    losses = calibration.losses()
    about |= {
        "calibration_loss": losses[-1],
        "iterations": calibration.steps,
        "seconds": round(seconds, 3),
        "oscillation": rises(losses),
        "largest_loss": max(losses),
    }
    model = network.model
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    found = {}
    with weights_as(list(calibration.weights.values()), [calibration.quantized[name] for name in calibration.weights]):
        found["keep"] = accuracy(model, sets["test"])[0]
        if normed:
            with reestimated_norms(model, sets["train"]):
                found["reestimate"] = accuracy(model, sets["test"])[0]
    rows = [about | {"bn": bn, "accuracy": value} for bn, value in found.items()]
    grouped = [(number, unit) for number, group in enumerate(groups, 1) for unit in group]
    places = [
        {"place": place, "unit": unit.name, "group": group, "loss": loss}
        for place, ((group, unit), loss) in enumerate(zip(grouped, losses), 1)
    ]
    return rows, places


def rises(losses: list[float]) -> float:
    """The oscillation of a post-training method: the sum of all rises of the loss along the depth."""
    return sum(max(0.0, after - before) for before, after in pairwise(losses))


def calibrate(
    network: Network, train: ImageSet, method: PostTraining, bits: int, seed: int
) -> tuple[Calibration, dict[str, Any]]:
    """The network with its scales and calibration images, and how it is going to be quantized."""
    o, model = method.options, network.model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights = {n: w for n, w in zip(network.names, network.parameters) if w.dim() > 1}
    grid, per_channel = "sym_odd", o.per_channel
    if o.scale == "rescaled":
        quantizer = learned_quantizer(network)
        grid, per_channel = quantizer.grid_name, quantizer.scale.per_channel
        scales = rescaled(quantizer, list(weights), bits)
    else:
        scales = {
            name: mse_scale(weight.data, grid_of(grid, bits), per_channel) if o.scale == "mse"
            else max_scale(weight.data, grid_of(grid, bits), per_channel)
            for name, weight in weights.items()
        }  # fmt: skip
    images, _ = train.batch(slice(0, o.images))
    calibration = Calibration(model, weights, scales, bits, grid_of(grid, bits), images, seed)
    about = {
        "per_channel": per_channel,
        "grid": grid,
        "levels": grid_of(grid, bits).levels,
        "calibration": o.scale,
    }
    return calibration, about


def learned_quantizer(network: Network) -> WeightQuantizer:
    """The network's quantizer; refused unless it learned scales of levels and thresholds together."""
    quantizer = network.quantizer
    if quantizer is None or not network.method.options.learns_scales:
        raise InputError("scale: rescaled: the run learned no scale that stands for all levels; use max or mse")
    return quantizer


def rescaled(quantizer: WeightQuantizer, names: list[str], bits: int) -> dict[str, Tensor]:
    """Learned scales for another bit width: times the ratio of the largest codes, so that the range stays."""
    ratio = largest_code(quantizer.bits) / largest_code(bits)
    learned = dict(zip(quantizer.names, quantizer.scales))
    return {name: learned[name] * ratio for name in names}
