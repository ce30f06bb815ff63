"""MLP5: five hidden layers of 256 (paper section 6.1); ReLU, biases, no norm, no dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.core.config import Strict

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = ["fc*"]
HEAD = "fc6"
HIDDEN_LAYERS = 5


class Options(Strict):
    name: Literal["mlp5"]
    width: int = Field(256, ge=1, le=65_536, description="units of each hidden layer")


def layers(options: Options) -> list[str]:
    return [f"fc{i + 1}" for i in range(HIDDEN_LAYERS + 1)]


def build(options: Options, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    from collections import OrderedDict
    from math import prod

    from torch import nn

    widths = [prod(image_shape), *[options.width] * HIDDEN_LAYERS, classes]
    network: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:]), start=1):
        network[f"fc{i}"] = nn.Linear(inputs, outputs)
        if i <= HIDDEN_LAYERS:
            network[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(network)
