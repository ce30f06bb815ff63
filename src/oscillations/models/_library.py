"""Any classifier of timm (``timm/<name>``) or torchvision (``torchvision/<name>``), freshly initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from oscillations.core.config import Strict
from oscillations.core.errors import did_you_mean, shortened

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = ["*"]
HEAD = None  # differs from model to model: see head
# arguments that load weights, or that the data decide
TAKEN = {"weights", "weights_backbone", "pretrained", "checkpoint_path", "num_classes", "in_chans"}


class Options(Strict):
    name: str
    arguments: dict[str, int | float | bool | str] = Field({}, description="keywords of the library's function")

    @model_validator(mode="after")
    def _no_weights(self) -> Options:
        for key in TAKEN & set(self.arguments):
            raise ValueError(
                f"arguments.{key}: is set by this project; for pretrained weights say pretrained: {self.name}"
            )
        return self


def layers(options: Options) -> list[str]:
    from oscillations.engine.layers import is_matrix_layer

    return [name for name, layer in _outline(options).named_modules() if is_matrix_layer(layer)]


def check(options: Options, image_shape: tuple[int, int, int]) -> None:
    import torch

    images = torch.empty(2, *image_shape, device="meta")
    try:
        _outline(options, image_shape).eval()(images)
    except Exception as error:  # whatever a library raises
        shape = "x".join(map(str, image_shape))
        raise ValueError(f"name: {options.name} does not take images of {shape} ({_line(error)})") from error


def _outline(options: Options, image_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """The network without memory for its weights; ValueError that names the option if there is none."""
    import torch

    try:
        with torch.device("meta"):
            return build(options, image_shape, 10)
    except UnknownModel:
        raise
    except Exception as error:  # whatever a library raises
        raise ValueError(f"arguments: {options.name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def head(network: nn.Module) -> str:
    """timm names its classifier; torchvision's is the last layer with a weight matrix."""
    from oscillations.engine.layers import is_matrix_layer

    if (about := getattr(network, "pretrained_cfg", None)) is not None:
        return about["classifier"]
    return [name for name, layer in network.named_modules() if is_matrix_layer(layer)][-1]


class UnknownModel(ValueError):
    """The library has no classifier of that name."""


def build(options: Options, image_shape: tuple[int, int, int] | None, classes: int) -> nn.Module:
    library, name = options.name.split("/", 1)
    if library == "timm":
        import timm

        known, create = timm.list_models(), timm.create_model
    else:
        from torchvision import models

        known, create = models.list_models(models), models.get_model
    if name not in known:
        raise UnknownModel(f"name: {library} has no classifier {shortened(name)}; {did_you_mean(name, known)}")
    keywords: dict[str, Any] = {"num_classes": classes} | options.arguments
    if library == "timm" and image_shape:
        keywords["in_chans"] = image_shape[0]
    return create(name, **keywords)
