"""ResNet-18 with a CIFAR or an ImageNet stem; parameters are named as torchvision's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.core.config import Strict

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = ["*"]  # all convolutions, stem and shortcuts included, and fc; never a norm layer
HEAD = "fc"


class Options(Strict):
    name: Literal["resnet18"]
    width: int = Field(64, ge=1, le=4096, description="channels of the first stage; each further stage doubles them")
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="3x3 stride 1, or 7x7 stride 2")
    stem_maxpool: bool = Field(False, description="3x3 stride-2 max-pool after the stem")


def layers(options: Options) -> list[str]:
    names = ["conv1"]
    for stage in range(1, 5):
        for block in range(2):
            names += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"]
            if stage > 1 and block == 0:
                names.append(f"layer{stage}.0.downsample.0")
    return [*names, "fc"]


def build(options: Options, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    from oscillations.models._resnet import ResNet18

    return ResNet18(image_shape[0], classes, options.width, options.stem, options.stem_maxpool)
