"""Snakemake's own records of a study travel with its results.

Snakemake decides what is stale from ``.snakemake/metadata``, without which it cannot tell after a clone. One
file, ``results/<study>/provenance.json``, holds those of the study's outputs, so that git or DVC, whichever
carries the results, carries them too.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from oscillations.core.errors import InputError
from oscillations.core.files import SEAL, Damaged, read_json, sealed, write_json
from oscillations.study.paths import checkpoints, figures, provenance_file, results

METADATA = Path(".snakemake/metadata")
LONGEST = 254  # characters of a file name before Snakemake splits it over folders whose names begin with @


def _folders(study: str) -> tuple[str, ...]:
    return tuple(f"{folder(study).as_posix()}/" for folder in (results, figures, checkpoints))


def _record_path(output: str) -> Path:
    """Where Snakemake 9 keeps the record of an output file."""
    name = urlsafe_b64encode(output.encode()).decode()
    parts = [name[i : i + LONGEST] for i in range(0, len(name), LONGEST)]
    return METADATA.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])


def _output(record: Path) -> str:
    parts = record.relative_to(METADATA).parts
    return urlsafe_b64decode("".join(part.removeprefix("@") for part in parts)).decode()


def _read(study: str) -> dict[str, Any]:
    """What is recorded with a study's results; nothing where there is none. Raises InputError if it is damaged."""
    file = provenance_file(study)
    try:
        found = dict(read_json(file)) if file.exists() else {}
        found.pop(SEAL, None)  # one that was written before there were seals has none
        if all(isinstance(record, dict) for record in found.values()):
            return found
        raise Damaged(f"{file}: is damaged")
    except Damaged as error:
        raise InputError(
            f"{error}; bring it back (git checkout -- {file}, or dvc checkout --force {file.parent} where that keeps "
            f"it), or delete it where the study was made (rm {file}): it is written anew"
        ) from None


def save(study: str, since: float = -1.0) -> None:
    """Copy the records of the study's outputs into its results, those that were written since a moment.

    What is recorded there already stays, also of outputs that are not here: a clone may lack the weights.
    """
    if new := dict(_recorded(study, since)):
        known = _read(study)
        if known | new != known:
            write_json(provenance_file(study), sealed(known | new))


def _recorded(study: str, since: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """A study's outputs that are here and their records, of those that were written since a moment and are whole."""
    for file in METADATA.rglob("*"):
        with suppress(FileNotFoundError, ValueError, Damaged):  # another process is at work here, or was killed
            about = file.stat()
            new = S_ISREG(about.st_mode) and about.st_mtime > since
            if new and (output := _output(file)).startswith(_folders(study)) and Path(output).exists():
                yield output, read_json(file)


def save_unsaved(study: str) -> None:
    """Save what a workflow killed at its very end has not: the next one may have nothing to do, and so no end."""
    file = provenance_file(study)
    if results(study).exists():
        with suppress(OSError):  # a folder that is not this user's, or another process that does the same
            save(study, file.stat().st_mtime if file.exists() else -1.0)


def restore(study: str, stale: Iterable[Iterable[Path]] = ()) -> None:
    """Put the records that came with the results where Snakemake looks for them.

    ``stale``: the files of each run whose recipe has changed. Snakemake asks whether it has only if every file has a
    record: one that the change adds (the weights at the end of training, say) gets that of a file beside it.
    """
    file = provenance_file(study)
    written = file.stat().st_mtime_ns if file.exists() else 0
    for output, record in _read(study).items():
        target = _record_path(output)
        if not target.exists():  # a record that is there may be newer
            write_json(target, record)
            os.utime(target, ns=(written, written))  # no newer than what it is from
    for outputs in stale:
        records = [_record_path(output.as_posix()) for output in outputs]
        known = next((record for record in records if record.exists()), None)
        for record in records:
            if known and not record.exists():
                write_json(record, read_json(known))
