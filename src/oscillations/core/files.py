"""Atomic writes, hashes and canonical JSON: whatever lies under its name is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from oscillations.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Its name is fixed, so what a killed process left is overwritten by the next attempt.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


class FileObject(dict[str, Any]):
    """An object of a JSON file: a key that it lacks is a fault of the file."""

    def __init__(self, path: Path, content: dict[str, Any]):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self.path}: is damaged: has no {key}")


def read_json(path: Path) -> Any:
    """The object that a JSON file holds. Raises InputError if it holds none, or is asked for what it lacks."""
    try:
        found = json.loads(Path(path).read_text(), object_hook=partial(FileObject, path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is damaged: no JSON object")
    return found


def canonical_json(value: Any) -> str:
    """One string per value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
