"""MobileNetV2 with a CIFAR or an ImageNet stem; parameters are named as torchvision's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat

from oscillations.core.config import Strict

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = ["*"]  # all convolutions, stem and depthwise ones included, and the classifier; never a norm layer
HEAD = "classifier.1"
STAGES = (  # expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Options(Strict):
    name: Literal["mobilenetv2"]
    width: PositiveFloat = Field(
        1.0,
        le=64,
        description="multiplies all numbers of channels, the last layer's too; each is rounded to a multiple of 8",
    )
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="imagenet: the first layer and the second stage halve the image; cifar: they do not"
    )
    smallest: int = Field(1, ge=1, le=1024, description="side below which no layer halves the image; for small images")


def layers(options: Options) -> list[str]:
    names, block = ["features.0.0"], 1
    for expansion, _, blocks, _ in STAGES:
        for _ in range(blocks):
            inner = ["0.0", "1"] if expansion == 1 else ["0.0", "1.0", "2"]
            names += [f"features.{block}.conv.{layer}" for layer in inner]
            block += 1
    return [*names, f"features.{block}.0", "classifier.1"]


def build(options: Options, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    from oscillations.models._mobilenetv2 import MobileNetV2

    return MobileNetV2(image_shape, classes, options.width, options.stem, options.smallest)
