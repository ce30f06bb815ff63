"""Reading datasets from archives, directories and the network, without trusting any of them.

Archives are read in memory, member by member: nothing is unpacked to disk, and a member whose path leaves
the archive's folder is refused.
"""

from __future__ import annotations

import http.client
import io
import lzma
import re
import struct
import tarfile
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from oscillations.core.errors import InputError
from oscillations.core.files import NoRoom, file_hash, replacing

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
SILENCE = 60.0  #: seconds without a byte after which a server is given up
FORMATS = ("PNG", "JPEG", "BMP")  # of images, whatever their suffix: other readers of Pillow start programs
BROKEN_ARCHIVE = (  # RuntimeError: an encrypted member, or a compression that is not known
    tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, struct.error, OSError, RuntimeError,
    ValueError, IndexError,
)  # fmt: skip
# What a source may hold, several times what any dataset here does; a small archive may stand for any number of bytes.
MOST_FILES, MOST_BYTES = 1_000_000, 2**32
BLOCK = 2**20  # bytes
LONGEST_HEADER = 2**16  # bytes of a tar header's extension, which is read whole before its file is known


def entries(source: Path) -> Iterator[tuple[str, bytes]]:
    """(relative path, content) of every file in a directory, a zip or a tar archive of any compression."""
    folder = source.is_dir()
    try:
        read = _folder_entries if folder else _zip_entries if zipfile.is_zipfile(source) else _tar_entries
        left = MOST_BYTES
        for number, (name, file) in enumerate(read(source)):
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise InputError(f"{source}: member {name!r} lies outside the archive's folder; nothing was read")
            content = b"".join(_blocks(file, left + 1))
            left -= len(content)
            if left < 0 or number >= MOST_FILES:
                raise InputError(
                    f"{source}: member {name!r}: more than {MOST_FILES:,} files or {MOST_BYTES:,} bytes with it"
                )
            yield inside.as_posix(), content
    except BROKEN_ARCHIVE as error:
        kind = "a folder whose files can be read" if folder else "a whole zip or tar archive"
        raise InputError(f"{source}: not {kind} ({error})") from error


def _blocks(file: IO[bytes], most: int) -> Iterator[bytes]:
    """At most so many bytes of a file; asked for at once they would be made room for at once."""
    while most > 0 and (block := file.read(min(BLOCK, most))):
        most -= len(block)
        yield block


def _folder_entries(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            yield path.relative_to(source).as_posix(), file


def _zip_entries(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as file:
                    yield member.filename, file


def _tar_entries(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(source, "r|*", tarinfo=_Member) as archive:
        for member in archive:
            if file := archive.extractfile(member) if member.isfile() else None:
                yield member.name, file
            elif not member.isdir():
                raise InputError(f"{source}: member {member.name!r} is a link or a device; nothing was read")


class _Member(tarfile.TarInfo):
    """A header whose size is that of something."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (not member.isfile() and member.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def image_folder(
    files: Iterator[tuple[str, bytes]], source: Path, classes: list[str], image_shape: tuple[int, int, int]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], set[str]]:
    """Images of a ``{train,test}/<class>/<file>`` layout, by split, and the suffixes of their files.

    Order is that of the sorted paths, whatever the archive's. A missing class, an unknown class and an
    image that cannot be read or has another size are errors that name it.
    """
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for name, content in files:
        path = PurePosixPath(name)
        if path.suffix.lower() not in IMAGE_SUFFIXES or len(path.parts) < 3:
            continue
        split, label = path.parts[-3:-1]
        if split not in ("train", "test"):
            continue
        if label not in classes:
            raise InputError(f"{source}: {name}: unknown class {label!r}; known: {', '.join(classes)}")
        found[split, label, path.name] = decode(content, image_shape, f"{source}: {name}")
    splits = {}
    for split in ("train", "test"):
        keys = sorted(key for key in found if key[0] == split)
        missing = [label for label in classes if not any(key[1] == label for key in keys)]
        if missing:
            raise InputError(f"{source}: {split}/ has no image of class {', '.join(missing)}")
        labels = np.array([classes.index(key[1]) for key in keys], dtype=np.int64)
        splits[split] = np.stack([found[key] for key in keys]), labels
    return splits, {PurePosixPath(key[2]).suffix.lower() for key in found}


def decode(content: bytes, image_shape: tuple[int, int, int], where: str) -> np.ndarray:
    """uint8 pixels ``image_shape`` of an encoded image; an unreadable one or another size is an error at ``where``."""
    from PIL import Image

    channels, height, width = image_shape
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.size != (width, height):  # before any pixel is decoded: a small file may stand for billions
                found = "x".join(map(str, image.size))
                raise InputError(f"{where}: image is {found}, expected {width}x{height}")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: unreadable image ({error})") from error
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


def download(
    mirrors: list[str], target: Path, digits: str, algorithm: str = "md5", key: str = "source", tries: int = 3,
    most: int | None = MOST_BYTES,
) -> Path:  # fmt: skip
    """Fetch ``target`` from the first mirror that gives it whole; a file that is there already is checked.

    ``digits``: the first hex digits of its published hash; none, if none is published. ``key``: the option that
    takes a local copy. ``most``: bytes that it may have. Raises NoRoom at once on a full disk: no other mirror helps.
    """
    if target.exists() and file_hash(target, algorithm).startswith(digits):
        return target
    failures = []
    for url in mirrors:
        for attempt in range(tries):
            try:
                with replacing(target) as part:
                    _fetch(url, part, most)
                    found = file_hash(part, algorithm)
                    if not found.startswith(digits):
                        raise InputError(f"{algorithm} is {found}, published is {digits}")
                return target
            except NoRoom:
                raise
            except (OSError, ValueError, http.client.HTTPException, InputError) as error:  # whatever a server says
                said = "no address" if isinstance(error, http.client.InvalidURL) else error  # which would be quoted
                failures.append(f"{unsigned(url)} (try {attempt + 1}): {said}")
                if attempt + 1 < tries:
                    time.sleep(2**attempt)
    raise InputError(
        f"download failed; give a local copy with --config {key}=PATH (or --source PATH)\n  " + "\n  ".join(failures)
    )


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows an address only to http or https, and never from https to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = (urllib.parse.urlsplit(url).scheme.lower() for url in (req.full_url, newurl))
        if new not in (("https",) if old == "https" else ("http", "https")):
            raise InputError(f"redirects from {old} to {unsigned(newurl)}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def unsigned(url: str) -> str:
    """An address as it may stand in a log: without a name and password before it and a signature after it."""
    plain = re.split("[?#]", url, maxsplit=1)[0]
    return re.sub("//[^/]*@", "//", plain)


def _fetch(url: str, part: Path, most: int | None) -> None:
    from tqdm import tqdm

    opener = urllib.request.build_opener(SafeRedirects)
    with opener.open(url, timeout=SILENCE) as response, part.open("wb") as out:
        total = int(response.headers.get("Content-Length") or 0) or None
        if total and most is not None and total > most:
            raise InputError(f"announces {total:,} bytes, more than {most:,}")
        with tqdm(total=total, unit="B", unit_scale=True, desc=unsigned(url).rsplit("/", 1)[-1]) as bar:
            while block := response.read(BLOCK):
                out.write(block)
                bar.update(len(block))
                if most is not None and out.tell() > most:
                    raise InputError(f"sends more than {most:,} bytes")
        if total and out.tell() != total:
            raise InputError(f"ended after {out.tell():,} of {total:,} bytes")
