"""Tiny-ImageNet (Le and Yang 2015): 200 classes, 64x64 pixels; its labelled validation images are the test split.

No hash of the archive is published beside it: the md5 found is recorded, never a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from oscillations.core.errors import InputError
from oscillations.core.files import file_hash
from oscillations.datasets import Images
from oscillations.datasets._sources import decode, download, entries

CLASSES = [str(number) for number in range(200)]  # in the order of wnids.txt; the sidecar holds its WordNet ids
IMAGE_SHAPE = (3, 64, 64)
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # as widely used; pretrained weights bring their own
TRAIN_IMAGES, TEST_IMAGES = 100_000, 10_000

ARCHIVE = "tiny-imagenet-200.zip"
MIRRORS = [f"http://cs231n.stanford.edu/{ARCHIVE}"]
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # as widely given, by no official source


def prepare(source: Path | None, downloads: Path) -> Images:
    """The official archive (downloaded if ``source`` is None), or its directory."""
    source = source or download(MIRRORS, downloads / ARCHIVE, digits="")
    splits, classes = read_layout(entries(source), source, len(CLASSES), TRAIN_IMAGES, TEST_IMAGES)
    return Images(*splits["train"], *splits["test"], f"official layout, {_md5(source)}", classes)


def _md5(source: Path) -> str:
    if source.is_dir():
        return "a folder, not verified by md5"
    found = file_hash(source, "md5")
    return f"md5 {found}, {'as' if found == MD5 else 'not the one'} widely given, not verified by an official source"


def read_layout(
    files: Iterator[tuple[str, bytes]], source: Path, classes: int, train: int, test: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Images and labels of both splits, and the classes' WordNet ids; the numbers are those it must have.

    Layout: ``wnids.txt``, ``train/<wnid>/images/*.JPEG``, ``val/images/*.JPEG`` and ``val/val_annotations.txt``
    (file and wnid in its first two columns). Order is that of the sorted paths, by class.
    """
    images: dict[str, dict[tuple[str, str], np.ndarray]] = {"train": {}, "test": {}}
    texts: dict[str, str] = {}
    for name, content in files:
        path = PurePosixPath(name)
        match path.parts[-4:]:
            case [*_, "train", wnid, "images", file]:
                images["train"][wnid, file] = decode(content, IMAGE_SHAPE, f"{source}: {name}")
            case [*_, "val", "images", file]:
                images["test"]["", file] = decode(content, IMAGE_SHAPE, f"{source}: {name}")
            case [*_, "wnids.txt" | "val_annotations.txt"]:
                texts[path.name] = content.decode(errors="replace")
    missing = {"wnids.txt", "val_annotations.txt"} - set(texts)
    if missing:
        raise InputError(f"{source}: {sorted(missing)[0]} is missing; this is not the layout of {ARCHIVE}")
    wnids = texts["wnids.txt"].split()
    rows = [line.split() for line in texts["val_annotations.txt"].splitlines()]
    labelled = {row[0]: row[1] for row in rows if len(row) > 1}
    images["test"] = {(labelled.get(file, "no annotation"), file): image for (_, file), image in images["test"].items()}
    if (len(wnids), len(set(wnids))) != (classes, classes):
        raise InputError(f"{source}: wnids.txt has {len(set(wnids))} classes, Tiny-ImageNet has {classes}")
    splits = {}
    for split, expected in (("train", train), ("test", test)):
        unknown = sorted(key for key in images[split] if key[0] not in wnids)
        if unknown:
            raise InputError(f"{source}: {split}: {unknown[0][1]} is of class {unknown[0][0]!r}, not in wnids.txt")
        if len(images[split]) != expected:
            raise InputError(f"{source}: {split} has {len(images[split])} images, Tiny-ImageNet has {expected}")
        absent = set(wnids) - {wnid for wnid, _ in images[split]}
        if absent:
            raise InputError(f"{source}: {split} has no image of class {sorted(absent)[0]}")
        keys = sorted(images[split], key=lambda key: (wnids.index(key[0]), key[1]))
        labels = np.array([wnids.index(wnid) for wnid, _ in keys], dtype=np.int64)
        splits[split] = np.stack([images[split].pop(key) for key in keys]), labels
    return splits, wnids
