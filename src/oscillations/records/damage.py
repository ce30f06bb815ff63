"""What is seen to be damaged of a finished run: its record, and the tables that the record was written beside.

A record holds the hashes of these tables and of itself. One from before it did is compared with its tables instead:
they must be numbers, their epochs count up, and the epochs whose weights were kept say what the record says.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oscillations.core.errors import InputError
from oscillations.core.files import file_hash
from oscillations.study.paths import WEIGHTS

TABLES = "tables_sha256"  #: key of a record's hashes of the tables beside it, by their names
COUNTED = ("iteration_", "epoch_", "frequency_")  #: how the columns of an epoch begin that count oscillations
#: what a record calls the validation accuracies and the oscillations of the epoch whose weights are kept
MEASURED = {
    "best": ("validation_accuracy", "oscillations_at_best"),
    "last": ("validation_accuracy_at_end", "oscillations_at_end"),
}
TEXTS = ("layer", "level_shares")  #: columns that hold no number, or several
Rows = list[dict[str, str]]


def damage(folder: Path, record: Mapping[str, Any], tables: Iterable[str], selections: Iterable[str]) -> str | None:
    """What is wrong with a run's tables in a folder, or with the record that was written beside them; None if nothing.

    ``selections``: the weights that the run keeps, ``best`` or ``last``.
    """
    for name in tables:
        if not (folder / name).exists():
            return f"{folder / name}: missing"
    try:
        if hashes := record.get(TABLES):
            different = next((folder / name for name in tables if file_hash(folder / name) != hashes[name]), None)
            return f"{different}: is damaged (not the table that run.json beside it vouches for)" if different else None
        read = {name: _read(folder / name, record["epochs_run"]) for name in tables}
        _compare(read["history.csv"], record, selections)
    except (InputError, FileNotFoundError, AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        return f"{folder}: a table or run.json is damaged ({error})"
    return None


def _read(file: Path, epochs: int) -> Rows:
    """The rows of a table; raises ValueError if they cannot be those of so many epochs."""
    with file.open(newline="") as opened:
        rows: Rows = list(csv.DictReader(opened, strict=True))
    for number, row in enumerate(rows, 2):
        try:
            if None in row or None in row.values():
                raise ValueError("cells")
            for column, cell in row.items():
                if column not in TEXTS and cell:
                    float(cell)
        except (TypeError, ValueError):
            raise ValueError(f"{file.name}: line {number} cannot be read") from None
    found = list(dict.fromkeys(row["epoch"] for row in rows))
    first = 0 if file.name == WEIGHTS else 1
    if rows and (len(found) != epochs + 1 - first or found != [str(epoch) for epoch in range(first, epochs + 1)]):
        raise ValueError(f"{file.name}: epochs are not {first} to {epochs}")
    return rows


def _compare(history: Rows, record: Mapping[str, Any], selections: Iterable[str]) -> None:
    """Raises ValueError if the epochs whose weights were kept are not those that a record tells of."""
    for column in ("train_loss", "val_loss", "monitored"):
        if history and column not in history[0]:
            raise ValueError(f"history.csv: no column {column}")
    epochs = {"best": record["best_epoch"], "last": record["epochs_run"]}
    for selection in selections:
        row = next((row for row in history if row["epoch"] == str(epochs[selection])), {})
        for key, starts in zip(MEASURED[selection], (("val_acc_",), COUNTED)):
            said = record[key]
            cells = {name.removeprefix("val_acc_"): cell for name, cell in row.items() if name.startswith(starts)}
            found = {name: float(cell) for name, cell in cells.items() if cell}
            if found != said:
                names = [name for name in {**said, **found} if said.get(name) != found.get(name)]
                raise ValueError(f"{key}.{names[0]} is {said.get(names[0])}, of history.csv {found.get(names[0])}")
    best = next((row["monitored"] for row in history if row["epoch"] == str(epochs["best"])), None)
    if best is not None and float(best) != record["monitored"]:
        raise ValueError(f"monitored is {record['monitored']}, of history.csv {best}")
