"""Tables whose rows outlive the call that made them: a key says what a row belongs to, and whether it still does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from oscillations.core.files import write_text
from oscillations.records import numerics

EVALUATIONS = ["run", "key", "arithmetic", "eval_bits", "bn", "accuracy", "bn_divergence", "selection"]
HISTOGRAMS = ["run", "layer", "bits", "scale", "u", "count"]  # of the runs in the evaluations beside them
POSTTRAINED = [
    "run", "key", "arithmetic", "label", "method", "eval_bits", "per_channel", "grid", "levels", "calibration", "bn",
    "accuracy", "calibration_loss", "iterations", "seconds", "oscillation", "largest_loss", "status",
]  # fmt: skip
RECONSTRUCTED = ["run", "key", "arithmetic", "label", "eval_bits", "place", "unit", "group", "loss"]
COUNTS = ("levels", "iterations")  #: columns of whole numbers that may be empty
BEFORE = {"selection": "best"}  #: what an empty cell means: that of a table from before there was the column
#: columns that tell a table's rows apart
NAMING = ("run", "key", "selection", "label", "eval_bits", "bn", "place", "layer", "u")


def read_rows(files: Iterable[Path], columns: Sequence[str]) -> pd.DataFrame:
    """The rows of those files that are there, each once; a column that none has is empty, or as in :data:`BEFORE`."""
    found = [pd.read_csv(file, dtype={"key": str}, float_precision="round_trip") for file in files if file.exists()]
    filled = [table for table in found if len(table)]
    whole = pd.concat(filled) if filled else pd.DataFrame(columns=list(columns))
    before = {name: value for name, value in BEFORE.items() if name in columns}
    whole = whole.reindex(columns=list(columns)).astype(dict.fromkeys(before, object)).fillna(before)
    return whole.drop_duplicates([name for name in NAMING if name in columns])


def current_rows(table: pd.DataFrame, key: str, parts: Sequence[str]) -> pd.DataFrame:
    """The rows with that key that the parts made in the version that they have now."""
    found = table[table.key == key]
    return found[[numerics.made_by(text, parts) for text in found.arithmetic]]


def write_rows(file: Path, frames: Iterable[pd.DataFrame], columns: Sequence[str]) -> None:
    """Write the rows of all frames; a column that a frame lacks is empty, counts stay integers."""
    filled = [frame for frame in frames if len(frame)]  # an empty frame's columns have no type of their own
    whole = pd.concat(filled) if filled else pd.DataFrame()
    whole = whole.reindex(columns=list(columns))
    whole = whole.astype({column: "Int64" for column in COUNTS if column in columns})
    write_text(file, whole.to_csv(index=False, lineterminator="\n"))
