"""Any classifier of timm (``timm/<name>``) or torchvision (``torchvision/<name>``), freshly initialised."""

from __future__ import annotations

import difflib

from pydantic import Field

from oscillations.core.config import Strict

QUANTIZED = ["*"]
HEAD = None  # differs from model to model: see head


class Options(Strict):
    name: str
    arguments: dict[str, int | float | bool | str] = Field({}, description="keywords of the library's function")


def layers(options: Options) -> list[str]:
    import torch

    from oscillations.engine.layers import is_matrix_layer

    with torch.device("meta"):
        network = build(options, None, 10)
    return [name for name, layer in network.named_modules() if is_matrix_layer(layer)]


def head(network) -> str:
    """timm names its classifier; torchvision's is the last layer with a weight matrix."""
    from oscillations.engine.layers import is_matrix_layer

    if hasattr(network, "pretrained_cfg"):
        return network.pretrained_cfg["classifier"]
    return [name for name, layer in network.named_modules() if is_matrix_layer(layer)][-1]


def build(options: Options, image_shape: tuple[int, int, int] | None, classes: int):
    library, name = options.name.split("/", 1)
    if library == "timm":
        import timm

        known, create = timm.list_models(), timm.create_model
    else:
        from torchvision import models

        known, create = models.list_models(models), models.get_model
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(f"{library} has no classifier {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    channels = {"in_chans": image_shape[0]} if library == "timm" and image_shape else {}
    return create(name, num_classes=classes, **channels, **options.arguments)
