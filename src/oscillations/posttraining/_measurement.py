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
from oscillations.engine.layers import first_and_last, layer_of, weights_as
from oscillations.engine.network import Network
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import max_scale, mse_scale
from oscillations.posttraining import PostTraining
from oscillations.posttraining._inputs import DroppedInputs
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
    quantized = [calibration.quantized[name] for name in calibration.weights]
    with weights_as(list(calibration.weights.values()), quantized), calibration.with_inputs():
        found["keep"] = accuracy(model, sets["test"])[0]
        if normed:
            with reestimated_norms(model, sets["train"]):
                found["reestimate"] = accuracy(model, sets["test"])[0]
    if calibration.inputs is not None:
        calibration.inputs.remove()
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
    at_ends = {name for name in weights if layer_of(name) in first_and_last(model)}
    own = {name: o.first_last_bits or network.own_bits.get(name, bits) for name in at_ends}
    widths = {name: own.get(name, bits) for name in weights}
    grid, per_channel = "sym_odd", o.per_channel
    if o.scale == "rescaled":
        quantizer = learned_quantizer(network)
        grid, per_channel = quantizer.grid_name, quantizer.scale.per_channel
        scales = rescaled(quantizer, widths)
    grids = {name: grid_of(grid, width) for name, width in widths.items()}
    if o.scale != "rescaled":
        scale_of = mse_scale if o.scale == "mse" else max_scale
        scales = {name: scale_of(weight.data, grids[name], per_channel) for name, weight in weights.items()}
    images, _ = train.batch(slice(0, o.images))
    inputs = None
    if o.activations is not None:
        narrow, wide = o.activations.bits, o.activations.first_last
        inputs = DroppedInputs(model, {layer_of(n): wide if n in at_ends else narrow for n in weights}, images, seed)
    calibration = Calibration(model, weights, scales, bits, grids, images, seed, inputs)
    about = {
        "per_channel": per_channel,
        "grid": grid,
        "levels": grid_of(grid, bits).levels,
        "calibration": o.scale,
        "activation_bits": None if o.activations is None else o.activations.bits,
    }
    return calibration, about


def learned_quantizer(network: Network) -> WeightQuantizer:
    """The network's quantizer; refused unless it learned scales of levels and thresholds together."""
    quantizer = network.quantizer
    if quantizer is None or not network.method.options.learns_scales:
        raise InputError("scale: rescaled: the run learned no scale that stands for all levels; use max or mse")
    return quantizer


def rescaled(quantizer: WeightQuantizer, widths: dict[str, int]) -> dict[str, Tensor]:
    """Learned scales for other bit widths: times the ratio of the largest codes, so that the range stays."""
    learned = dict(zip(quantizer.names, zip(quantizer.scales, quantizer.widths)))
    found = {}
    for name, width in widths.items():
        scale, own = learned[name]
        found[name] = scale * (largest_code(own) / largest_code(width))
    return found
