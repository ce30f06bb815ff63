"""Synthetic sources of datasets, complete in form, so that their readers can be compared without a download."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def make(name: str, folder: Path) -> Path | None:
    """A source of dataset ``name``; None for one that needs none, or that nobody has written a source for."""
    if name not in SOURCES:
        return None
    folder.mkdir(exist_ok=True)
    return SOURCES[name](folder)


def _encoded(side: int, count: int) -> list[bytes]:
    """Some JPEG images of noise."""
    from PIL import Image

    random, found = np.random.RandomState(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.randint(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def _cifar10(folder: Path) -> Path:
    """The binary form: six files of 10,000 records, a label and 3,072 pixels each."""
    target = folder / "cifar10"
    target.mkdir()
    random = np.random.RandomState(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = random.randint(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (target / name).write_bytes(records.tobytes())
    return target


def _cifar10_jpeg(folder: Path) -> Path:
    """An archive of ``{train,test}/<class>/<file>``: one image for each class, under many names."""
    from oscillations.datasets.cifar10 import CLASSES

    target = folder / "cifar10.tar"
    with tarfile.open(target, "w") as archive:
        for label, content in zip(CLASSES, _encoded(32, len(CLASSES))):
            for split, count in (("train", 5000), ("test", 1000)):
                for number in range(count):
                    member = tarfile.TarInfo(f"{split}/{label}/{number:04}.jpg")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return target


def _tiny_imagenet(folder: Path) -> Path:
    """The archive's layout: 200 classes, one image for each, under many names."""
    target = folder / "tiny-imagenet-200.zip"
    wnids = [f"n{number:08}" for number in range(200)]
    images = _encoded(64, len(wnids))
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "\n".join(wnids))
        labels = []
        for wnid, content in zip(wnids, images):
            for number in range(500):
                archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{number}.JPEG", content)
            for number in range(50):
                name = f"val_{wnid}_{number}.JPEG"
                archive.writestr(f"tiny-imagenet-200/val/images/{name}", content)
                labels.append(f"{name}\t{wnid}\t0\t0\t63\t63")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(labels))
    return target


SOURCES: dict[str, Callable[[Path], Path]] = {
    "cifar10": _cifar10,
    "cifar10-jpeg": _cifar10_jpeg,
    "tiny-imagenet": _tiny_imagenet,
}
