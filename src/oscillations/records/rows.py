"""Tables whose rows outlive the call that made them: a key says what a row belongs to, and whether it still does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import REQUANTIZE
from oscillations.core.errors import InputError
from oscillations.core.files import write_text
from oscillations.records import numerics
from oscillations.records.identity import arithmetic, posttraining_key, posttraining_parts
from oscillations.records.plans import Plan
from oscillations.study.paths import posttraining_files
from oscillations.study.schema import Study

EVALUATIONS = ["run", "key", "arithmetic", "eval_bits", "bn", "accuracy", "bn_divergence", "rule", "selection"]
HISTOGRAMS = ["run", "layer", "bits", "scale", "u", "count"]  # of the runs in the evaluations beside them
POSTTRAINED = [
    "run", "key", "arithmetic", "label", "method", "eval_bits", "per_channel", "grid", "levels", "calibration", "bn",
    "accuracy", "calibration_loss", "iterations", "seconds", "oscillation", "largest_loss", "status", "activation_bits",
]  # fmt: skip
RECONSTRUCTED = ["run", "key", "arithmetic", "label", "eval_bits", "place", "unit", "group", "loss"]
#: Columns that a table has only if a row says something else.
IMPLIED = {"rule": REQUANTIZE, "selection": "best", "activation_bits": None}
COUNTS = ("levels", "iterations", "activation_bits")  #: columns of whole numbers that may be empty
#: Columns that tell a table's rows apart.
NAMING = ("run", "key", "selection", "label", "eval_bits", "bn", "place", "layer", "u")


def read_csv(file: Path, columns: Collection[str] = (), **options: Any) -> pd.DataFrame:
    """The table of a file; ``options`` of pandas. Raises InputError if it is none, or lacks one of the columns."""
    try:
        found = pd.read_csv(file, **options)
    except ValueError as error:  # of pandas; no text, no rows, cells of another type
        raise InputError(f"{file}: is damaged: no table ({error})".replace("\n", " ")) from None
    if missing := [name for name in columns if name not in found]:
        raise InputError(f"{file}: is damaged: has no column {missing[0]}")
    return found


def read_rows(files: Iterable[Path], columns: Sequence[str]) -> pd.DataFrame:
    """The rows of those files that are there, each once; a column that none has is empty."""
    named = [name for name in NAMING if name in columns and name not in IMPLIED]
    there = [file for file in files if file.exists()]
    found = [read_csv(file, named, dtype={"key": str}, float_precision="round_trip") for file in there]
    filled = [table.assign(**{name: IMPLIED[name] for name in {*IMPLIED} - {*table}}) for table in found if len(table)]
    whole = pd.concat(filled) if filled else pd.DataFrame(columns=list(columns))
    return whole.reindex(columns=list(columns)).drop_duplicates([name for name in NAMING if name in columns])


def without_implied(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the columns that say nothing but what is implied; None is an empty cell."""

    def silent(cells: pd.Series, implied: str | None) -> bool:
        return bool((cells.isna() if implied is None else cells == implied).all())

    return table.drop(
        columns=[name for name, implied in IMPLIED.items() if name in table and silent(table[name], implied)]
    )


def current_rows(table: pd.DataFrame, key: str, parts: Sequence[str]) -> pd.DataFrame:
    """The rows with that key that the parts made in the version that they have now."""
    found = table[table.key == key]
    return found[[numerics.made_by(text, parts) for text in found.arithmetic]]


def posttrained(study: Study, name: str, finished: Iterable[Plan]) -> Iterator[tuple[Plan, list[pd.DataFrame]]]:
    """The current rows of the study's post-training entry ``name``: of each finished run, label and bit width.

    Accuracies and the losses per unit; empty where there are none.
    """
    entry, files = study.posttraining[name], posttraining_files(study.study, name)
    found = [read_rows([file], columns) for file, columns in zip(files, (POSTTRAINED, RECONSTRUCTED))]
    for plan in (plan for plan in finished if plan.variant.path in entry.of):
        for label, method, options in entry.resolved():
            parts = [*posttraining_parts(method), *arithmetic(plan.result["recipe"])[1:]]
            for bits in entry.bits:
                key = posttraining_key(plan.result, method, options, bits)
                yield plan, [current_rows(rows[rows.label == label], key, parts) for rows in found]


def write_rows(file: Path, frames: Iterable[pd.DataFrame], columns: Sequence[str]) -> None:
    """Write the rows of all frames; a column that a frame lacks is empty, counts stay integers."""
    filled = [frame for frame in frames if len(frame)]  # an empty frame's columns have no type of their own
    whole = pd.concat(filled) if filled else pd.DataFrame()
    whole = whole.reindex(columns=list(columns))
    whole = whole.astype({column: "Int64" for column in COUNTS if column in columns})
    write_text(file, without_implied(whole).to_csv(index=False, lineterminator="\n"))
