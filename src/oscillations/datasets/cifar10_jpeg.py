"""CIFAR-10 re-encoded as JPEG: near the canonical pixels, not equal, and so another dataset."""

from __future__ import annotations

from pathlib import Path

from oscillations.core.errors import InputError
from oscillations.datasets import Images
from oscillations.datasets._sources import entries, image_folder
from oscillations.datasets.cifar10 import CLASSES, IMAGE_SHAPE, MEAN, STD, TRAIN_IMAGES, complete

__all__ = ["CLASSES", "IMAGE_SHAPE", "MEAN", "STD", "TRAIN_IMAGES", "prepare"]


def prepare(source: Path | None, downloads: Path) -> Images:
    """An image folder ``{train,test}/<class>/*.jpg``, as a directory or archive."""
    if source is None:
        raise InputError(
            "data: cifar10-jpeg has no download; give its image folder or archive with --config source=PATH "
            "(or --source PATH)"
        )
    splits, _ = image_folder(entries(source), source, CLASSES, IMAGE_SHAPE)
    return complete(splits, source, "image folder, JPEG")
