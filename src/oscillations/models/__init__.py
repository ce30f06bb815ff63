"""Models, one file per family, found by name; plus any classifier of timm or torchvision.

A model file holds ``Options`` (what a study may say about it), ``layers(options)`` (names of the layers with
weights, in order), ``QUANTIZED`` (patterns of those that are quantized unless a study says otherwise),
``HEAD`` (the layer a fine-tune replaces; None if ``head(network)`` finds it),
``build(options, image_shape, classes)`` and, if it does not take every image, ``check(options, image_shape)``.
Studies are checked before every command, so torch is imported only inside ``build``.
"""

from __future__ import annotations

import importlib
import pkgutil
from fnmatch import fnmatchcase
from types import ModuleType
from typing import TYPE_CHECKING, Any

from oscillations.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARIES = (
    "timm",
    "torchvision",
)  #: ``timm/<name>`` and ``torchvision/<name>`` name any of their classifiers


def names() -> list[str]:
    """All model names: the files of this folder (a leading underscore hides one), dashes for underscores."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_") and name != "library")


def find(name: str) -> ModuleType:
    """The module that builds model ``name``."""
    file = "library" if name.split("/")[0] in LIBRARIES else name.replace("-", "_")
    return importlib.import_module(f"{__name__}.{file}")


def build(spec: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a resolved model spec ``{name, **options}``, freshly initialised."""
    module = find(spec["name"])
    return module.build(module.Options(**spec), tuple(image_shape), classes)


def check(options: Any, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError, naming the option, if the model of these options does not take such images."""
    module = find(options.name)
    if hasattr(module, "check"):
        module.check(options, image_shape)


def head(name: str, network: nn.Module) -> str:
    """The layer of model ``name`` that a fine-tune replaces."""
    module = find(name)
    return module.HEAD or module.head(network)


def quantized_layers(layers: list[str], patterns: list[str]) -> list[str]:
    """Names among ``layers`` that a pattern matches, in their order."""
    return [layer for layer in layers if any(fnmatchcase(layer, pattern) for pattern in patterns)]


def quantized_parameters(model: nn.Module, patterns: list[str], biases: bool = False) -> dict[str, Tensor]:
    """The weight parameters (and biases) of the layers that the patterns match, by parameter name.

    Only layers with a weight matrix count: a pattern ``*`` never takes a norm layer's weight.
    """
    layers = [name for name, layer in model.named_modules() if is_matrix_layer(layer)]
    chosen = quantized_layers(layers, patterns)
    parameters = dict(model.named_parameters())
    kinds = ("weight", "bias") if biases else ("weight",)
    wanted = [f"{layer}.{kind}" for layer in chosen for kind in kinds]
    return {name: parameters[name] for name in wanted if name in parameters}


def is_matrix_layer(layer: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight of two or more dimensions (conv, linear)."""
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dim() >= 2


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
