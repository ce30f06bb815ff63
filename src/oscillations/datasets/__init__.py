"""Datasets, one per file, found by name; each becomes one checked tensor file.

A dataset file holds ``CLASSES``, ``IMAGE_SHAPE`` (channels, height, width), ``MEAN`` and ``STD`` per channel
(of pixels in [0, 1]), ``TRAIN_IMAGES`` (their number) and ``prepare(source, downloads)``, which returns
``Images``. ``write`` turns them into ``data/<name>.safetensors`` and a sidecar ``data/<name>.json`` with the
content's hash; training reads only these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from oscillations.core import registry
from oscillations.core.errors import InputError
from oscillations.core.files import Damaged, FileObject, file_hash, read_json, replacing, write_json

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Images:
    """uint8 images ``[n, channels, height, width]`` and int64 labels ``[n]`` of both splits."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str
    classes: list[str] | None = None  # where only the source knows their names


def names() -> list[str]:
    """All dataset names."""
    return registry.names(__path__)


def find(name: str) -> ModuleType:
    """The file of dataset ``name``."""
    return registry.module(__name__, name)


def write(name: str, folder: Path, source: Path | None = None) -> None:
    """Prepare dataset ``name`` (from ``source`` if given) and write its tensor file and sidecar."""
    import numpy as np
    from safetensors.numpy import save_file

    dataset = find(name)
    images = dataset.prepare(source, folder / "downloads")
    tensors = {key: value for key, value in vars(images).items() if isinstance(value, np.ndarray)}
    tensor_file = folder / f"{name}.safetensors"
    with replacing(tensor_file) as part:
        save_file(tensors, part)
    write_json(
        folder / f"{name}.json",
        {
            "name": name,
            "sha256": file_hash(tensor_file),
            "source": images.source,
            "classes": images.classes or dataset.CLASSES,
            "image_shape": dataset.IMAGE_SHAPE,
            "mean": dataset.MEAN,
            "std": dataset.STD,
            "train": len(images.train_labels),
            "test": len(images.test_labels),
        },
    )


def read(name: str, folder: Path) -> tuple[dict, dict]:
    """The sidecar and the tensors (as torch tensors) of a dataset, checked against the sidecar's hash."""
    from safetensors.torch import load_file

    sidecar, tensor_file = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not (sidecar.exists() and tensor_file.exists()):
        raise InputError(
            f"{tensor_file}: no such dataset yet; make it with: python -m oscillations fetch --data {name}"
        )
    about = read_json(sidecar)
    if file_hash(tensor_file) != about["sha256"]:
        raise InputError(f"{tensor_file}: content differs from the hash in {sidecar}; {again(name)}")
    return about, load_file(tensor_file)


def described(name: str, folder: Path) -> FileObject | None:
    """The sidecar of a dataset, None if there is none. Raises Damaged if it is not what :func:`write` writes.

    Its hash of the tensors is compared with them where they are read.
    """
    sidecar = folder / f"{name}.json"
    if not sidecar.exists():
        return None
    dataset = find(name)
    told = {"name": name, "image_shape": [*dataset.IMAGE_SHAPE], "mean": [*dataset.MEAN], "std": [*dataset.STD]}
    try:
        found: FileObject = read_json(sidecar)
    except Damaged as error:
        raise Damaged(f"{error}; {again(name)}") from None
    other = [key for key, value in told.items() if found.get(key) != value]
    classes = found.get("classes")
    if not isinstance(classes, list) or len(classes) != len(dataset.CLASSES):
        other.append("classes")
    if other or "sha256" not in found:
        raise Damaged(f"{sidecar}: is damaged: {', '.join(other or ['sha256'])}; {again(name)}")
    return found


def refuse_other_tensors(name: str, folder: Path) -> None:
    """Raise Damaged if the tensors of a dataset are here, and not those that its sidecar is about."""
    sidecar, tensor_file = folder / f"{name}.json", folder / f"{name}.safetensors"
    if tensor_file.exists() and file_hash(tensor_file) != read_json(sidecar)["sha256"]:
        raise Damaged(f"{tensor_file}: content differs from the hash in {sidecar}; {again(name)}")


def again(name: str) -> str:
    """What makes damaged data and its sidecar again."""
    return f"make both again with: python -m oscillations fetch --data {name}"
