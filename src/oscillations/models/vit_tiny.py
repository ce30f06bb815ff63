"""ViT-Tiny through timm, at any image and patch size.

The paper says "Tiny ViT" and cites TinyViT, but its parameter count (5.5M) and quantized share (97.18 %) are
those of ViT-Tiny/16 with qkv, proj, fc1 and fc2 of the twelve blocks quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from oscillations.core.config import Strict

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = ["blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"]
HEAD = "head"


class Options(Strict):
    name: Literal["vit-tiny"]
    patch_size: int = Field(16, ge=1, le=1024, description="side of a patch in pixels; it must divide the image's")
    width: int = Field(192, ge=1, le=16_384, description="embedding dimension, a multiple of the heads")
    depth: int = Field(12, ge=1, le=1000, description="transformer blocks")
    heads: int = Field(3, ge=1, le=16_384, description="attention heads")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Options:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide a width of {self.width}")
        return self


def layers(options: Options) -> list[str]:
    inside = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    blocks = [f"blocks.{block}.{layer}" for block in range(options.depth) for layer in inside]
    return ["patch_embed.proj", *blocks, "head"]


def check(options: Options, image_shape: tuple[int, int, int]) -> None:
    _, height, width = image_shape
    fitting = [size for size in range(1, min(height, width) + 1) if height % size == width % size == 0]
    if (size := options.patch_size) not in fitting:
        nearest = min(fitting, key=lambda other: abs(other - size))
        raise ValueError(f"patch_size: {size} does not divide images of {height}x{width}; nearest: {nearest}")


def build(options: Options, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    channels, height, width = image_shape
    return VisionTransformer(
        img_size=(height, width), patch_size=options.patch_size, in_chans=channels, num_classes=classes,
        embed_dim=options.width, depth=options.depth, num_heads=options.heads,
    )  # fmt: skip
