"""CIFAR-10 (Krizhevsky 2009), canonical pixels: the binary archive, or a local copy of it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from oscillations.core.errors import InputError
from oscillations.core.files import file_hash
from oscillations.datasets import Images
from oscillations.datasets._sources import download, entries, image_folder

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGE_SHAPE = (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000

ARCHIVE = "cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
MIRRORS = [
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
    f"https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/{ARCHIVE}",
]
BATCHES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def prepare(source: Path | None, downloads: Path) -> Images:
    """Canonical archive (downloaded if ``source`` is None), its directory, or a lossless image folder."""
    if source is None:
        source = download(MIRRORS, downloads / ARCHIVE, MD5)
    if source.name == ARCHIVE and file_hash(source, "md5") != MD5:
        raise InputError(f"{source}: md5 is {file_hash(source, 'md5')}, that of the canonical archive is {MD5}")
    files = list(entries(source))
    batches = {PurePosixPath(name).name: content for name, content in files}
    if any(name.startswith("data_batch_") and not name.endswith(".bin") for name in batches):
        raise InputError(f"{source}: this is CIFAR-10's Python form, whose pickles are never loaded; take {ARCHIVE}")
    if any(name in batches for name in BATCHES):
        verified = source.is_file() and file_hash(source, "md5") == MD5
        return _binary(batches, source, "canonical archive" if verified else "binary form, not verified by md5")
    splits, suffixes = image_folder(iter(files), source, CLASSES, IMAGE_SHAPE)
    if suffixes & {".jpg", ".jpeg"}:
        raise InputError(f"{source}: JPEG changes the pixels; such a copy is another dataset: data: cifar10-jpeg")
    return complete(splits, source, "image folder, lossless")


def complete(splits: dict[str, tuple[np.ndarray, np.ndarray]], source: Path, kind: str) -> Images:
    """Images of both splits, refused unless all 60,000 are there."""
    for split, expected in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        found = len(splits[split][1])
        if found != expected:
            raise InputError(f"{source}: {split} has {found} images, CIFAR-10 has {expected}")
    return Images(*splits["train"], *splits["test"], kind)


def _binary(batches: dict[str, bytes], source: Path, kind: str) -> Images:
    """Records of 1 label byte and 3,072 pixel bytes, channel by channel."""
    arrays = []
    for name in BATCHES:
        content = batches.get(name, b"")
        if not content or len(content) % 3073:
            raise InputError(f"{source}: {name} is missing or truncated ({len(content)} bytes)")
        rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        if (label := rows[:, 0].max()) >= len(CLASSES):
            raise InputError(f"{source}: {name}: no class has number {label}; 0 to {len(CLASSES) - 1}")
        arrays.append(rows)
    train, test = np.concatenate(arrays[:-1]), arrays[-1]
    splits = {
        split: (np.ascontiguousarray(rows[:, 1:]).reshape(-1, *IMAGE_SHAPE), rows[:, 0].astype(np.int64))
        for split, rows in (("train", train), ("test", test))
    }
    return complete(splits, source, kind)
