"""Run records: which files are the results of the study as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oscillations.files import read_json

IDENTITY = ("run", "seed", "recipe", "fingerprint", "data_sha256", "start_sha256")


def is_current(record: Path, identity: dict[str, Any]) -> bool:
    """Whether the file is a record of exactly this run: recipe, code, data and start weights."""
    if not record.exists():
        return False
    found = read_json(record)
    return all(found.get(key) == identity[key] for key in IDENTITY)
