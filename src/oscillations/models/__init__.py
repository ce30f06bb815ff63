"""Models, one file per family, found by name; plus any classifier of timm or torchvision.

A model file holds ``Options`` (what a study may say about it), ``layers(options)`` (names of the layers with
weights, in order), ``QUANTIZED`` (patterns of those that are quantized unless a study says otherwise),
``HEAD`` (the layer a fine-tune replaces; None if ``head(network)`` finds it),
``build(options, image_shape, classes)`` and, if it does not take every image, ``check(options, image_shape)``.
What needs torch when it is imported stands in a file with an underscore beside it, since studies are checked without
torch.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from oscillations.core import registry

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "torchvision")  #: ``timm/<name>`` and ``torchvision/<name>`` name any of their classifiers


def names() -> list[str]:
    """All model names."""
    return registry.names(__path__)


def find(name: str) -> ModuleType:
    """The module that builds model ``name``; one serves all of timm and torchvision."""
    return registry.module(__name__, "_library" if name.split("/")[0] in LIBRARIES else name)


def build(spec: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a model spec ``{name, **options}``, freshly initialised."""
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
