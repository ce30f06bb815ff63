"""Layers of any network: which are quantized, and their weights in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from oscillations.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


def quantized_layers(layers: list[str], patterns: Sequence[str]) -> list[str]:
    """Names among ``layers`` that a pattern matches, in their order."""
    return [layer for layer in layers if any(fnmatchcase(layer, pattern) for pattern in patterns)]


def quantized_parameters(model: nn.Module, patterns: Sequence[str], biases: bool = False) -> dict[str, Tensor]:
    """The weight parameters (and biases) of the layers that the patterns match, by parameter name.

    Only layers with a weight matrix count: a pattern ``*`` never takes a norm layer's weight.
    """
    layers = [name for name, layer in model.named_modules() if is_matrix_layer(layer)]
    chosen = quantized_layers(layers, patterns)
    parameters = dict(model.named_parameters())
    kinds = ("weight", "bias") if biases else ("weight",)
    wanted = [f"{layer}.{kind}" for layer in chosen for kind in kinds]
    return {name: parameters[name] for name in wanted if name in parameters}


def first_and_last(model: nn.Module) -> set[str]:
    """Names of the model's first and last layer with a weight matrix."""
    layers = [name for name, layer in model.named_modules() if is_matrix_layer(layer)]
    return {layers[0], layers[-1]}


def layer_of(parameter: str) -> str:
    """The name of the layer that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def is_matrix_layer(layer: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight of two or more dimensions (conv, linear)."""
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dim() >= 2


@contextmanager
def weights_as(parameters: list[Tensor], values: list[Tensor] | None) -> Iterator[None]:
    """Let the parameters hold other values (None: their own) inside the block, without copying any."""
    if values is None:
        yield
        return
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own):
            parameter.data = value


def load_weights(model: nn.Module, weights: dict[str, Tensor], head: str | None = None) -> None:
    """Load a checkpoint, all keys and shapes as they are; ``head`` names a layer that keeps its new weights.

    Raises InputError that lists what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    fresh = {key for key in own if head and key.startswith(f"{head}.")}
    problems = {
        "missing": [key for key in own if key not in weights and key not in fresh],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in weights and key not in fresh and weights[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        lines = [f"  {kind} ({len(found)}): {_first(found)}" for kind, found in problems.items() if found]
        exempt = f" (all but the head {head!r} must be equal)" if head else ""
        raise InputError(f"the checkpoint does not fit the model{exempt}\n" + "\n".join(lines))
    model.load_state_dict({key: own[key] if key in fresh else weights[key] for key in own})


def _first(names: list[str], count: int = 10) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
