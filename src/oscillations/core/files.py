"""Atomic writes, hashes and canonical JSON: whatever lies under its name is whole, or is seen not to be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from oscillations.core.errors import InputError

SEAL = "record_sha256"  #: key of a JSON file's hash of everything else in it
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(InputError):
    """The disk is full, or a quota is used up."""

    def __init__(self, what: object):
        super().__init__(
            f"{what}: no room left to write it; make room and give the same command again: "
            "what was finished stays, a training goes on from where it was saved last"
        )


class Damaged(InputError, ValueError):
    """A file is not as it was written."""


def no_room(error: BaseException) -> bool:
    """Whether an error says that there is no room, or comes of one that does, as a library's that closes its file.

    Also in the words of safetensors, which has a class of its own.
    """
    if isinstance(error, OSError):
        said = error.errno in FULL
    else:
        said = any(f"(os error {number})" in str(error) for number in FULL)
    return said or (error.__context__ is not None and no_room(error.__context__))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Its name is fixed, so what a killed process left is overwritten by the next attempt. Raises NoRoom on a full disk.
    """
    path = Path(path)
    with _room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            yield part
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Raises NoRoom, which names the file, for whatever error says so inside, also of a part of it."""
    try:
        yield
    except Exception as error:
        if no_room(error):
            raise NoRoom(path) from error
        raise


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
    """The object that a JSON file holds. Raises InputError if it is asked for what it lacks.

    Raises Damaged if it holds none, or not what it was sealed with.
    """
    found = read_unsealed(path)
    if not as_sealed(found):
        raise Damaged(f"{path}: is damaged (its content is not the one that {SEAL} in it is the hash of)")
    return found


def read_unsealed(path: Path) -> Any:
    """As :func:`read_json`, also of what is not as it was sealed."""
    try:
        found = json.loads(Path(path).read_text(), object_hook=partial(FileObject, path))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: is damaged: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path}: is damaged: no JSON object")
    return found


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with a hash of the rest of it, by which :func:`read_json` sees that it is as it was written."""
    rest: dict[str, Any] = json.loads(json.dumps(record))  # keys as a file has them
    return rest | {SEAL: _seal(rest)}


def _seal(record: dict[str, Any]) -> str:
    return sha256(canonical_json({key: value for key, value in record.items() if key != SEAL}).encode())


def as_sealed(value: Any) -> bool:
    """Whether a value is what :func:`sealed` made, if it says that it is that."""
    try:
        return not isinstance(value, dict) or SEAL not in value or value[SEAL] == _seal(value)
    except RecursionError:  # nested as deep as can just be read
        return False


def canonical_json(value: Any) -> str:
    """One string per value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
