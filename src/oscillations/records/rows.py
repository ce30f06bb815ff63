"""Tables whose rows outlive the call that made them: a key says what a row belongs to, and whether it still does.

Rows that were made together carry a hash of their text, by which a damaged or missing one is seen. A table from before
they did must at least hold numbers where there are numbers, and name one key for all that was made together.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import REQUANTIZE
from oscillations.core.errors import InputError
from oscillations.core.files import sha256, write_text
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
TOGETHER = ("run", "key")  #: columns, the first ones, of equal cells in rows that were made together
CHECK = "check"  #: column of their hash, the last one
NUMBERS = (
    "eval_bits", "accuracy", "bn_divergence", "bits", "scale", "u", "count", "calibration_loss", "loss", "seconds",
    "oscillation", "largest_loss",
)  # fmt: skip


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
    """The rows of those files that are there, each once; a column that none has is empty.

    Raises InputError if any of them is damaged; :func:`leave_out_damaged` leaves the others.
    """
    found = []
    for file in (file for file in files if file.exists()):
        table, damaged = _read(file, columns)
        if damaged:
            raise InputError(f"{file}: is damaged ({damaged}); bring it back from git, DVC or an archive, or make the "
                             f"damaged rows again with:\n  python -m oscillations {_command(file)}")  # fmt: skip
        found.append(table)
    filled = [table for table in found if len(table)]
    whole = pd.concat(filled) if filled else pd.DataFrame(columns=list(columns))
    return whole.reindex(columns=list(columns)).drop_duplicates([name for name in NAMING if name in columns])


def leave_out_damaged(file: Path, columns: Sequence[str]) -> None:
    """Write a file that holds damaged rows without them, aloud; whoever completes the file makes them again."""
    if not file.exists():
        return
    table, damaged = _read(file, columns)
    if damaged:
        print(f"{file}: is damaged ({damaged}); what is left out is made again", file=sys.stderr)
        write_rows(file, [table], columns)


def _read(file: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The rows of a file that are not damaged, and what is wrong with the others; nothing if there are none."""
    header, *lines = file.read_text(errors="replace").removesuffix("\n").split("\n")
    names = header.split(",")
    if not {*columns} - {*IMPLIED} <= {*names} <= {*columns, CHECK}:
        return pd.DataFrame(columns=list(columns)), "names of columns"
    if names[-1] != CHECK:
        wrong = _implausible(header, lines)
        return _parsed(header, [] if wrong else lines), wrong
    header, found = header.rpartition(",")[0], [line.rpartition(",") for line in lines]
    wanted = _checks(header, [text for text, _, _ in found])
    bad = [number for number, ((_, _, check), right) in enumerate(zip(found, wanted), 2) if check != right]
    good = [text for (text, _, check), right in zip(found, wanted) if check == right]
    try:
        return _parsed(header, good), f"lines {bad[0]} to {bad[-1]}" if bad else ""
    except ValueError as error:  # hashes can be made of anything
        return _parsed(header, []), str(error)


def _parsed(header: str, lines: Sequence[str]) -> pd.DataFrame:
    text = "\n".join([header, *lines])
    table = pd.read_csv(StringIO(text), dtype={"key": str}, float_precision="round_trip")
    return table.assign(**{name: IMPLIED[name] for name in {*IMPLIED} - {*table}})


def _checks(header: str, lines: Sequence[str]) -> list[str]:
    """For every line the hash of the header and of all lines that were made together with it."""
    keys = [tuple(line.split(",")[: len(TOGETHER)]) for line in lines]
    together: dict[tuple[str, ...], list[str]] = {key: [header] for key in keys}
    for key, line in zip(keys, lines):
        together[key].append(line)
    hashes = {key: sha256("\n".join(made).encode())[:8] for key, made in together.items()}
    return [hashes[key] for key in keys]


def _implausible(header: str, lines: Sequence[str]) -> str:
    """What cannot be right in a table without hashes; nothing if all of it can."""
    try:
        table = _parsed(header, lines)
    except ValueError as error:  # pandas' own are such
        return str(error)
    for name in (name for name in NUMBERS if name in table):
        if not (pd.api.types.is_numeric_dtype(table[name]) or table[name].isna().all()):
            return f"{name} is no number"
    if "accuracy" in table and not table.accuracy.dropna().between(0, 100).all():
        return "accuracy is no percentage"
    if "key" in table and len(table):
        names = ("run", "label", "eval_bits") if "label" in table else ("run", "rule", "selection")
        made = table.groupby([name for name in names if name in table], dropna=False)[["key", "arithmetic"]].nunique()
        if (made > 1).any(axis=None) or (table.groupby("key").run.nunique() > 1).any():
            return "rows that do not belong together"
    return ""


def _command(file: Path) -> str:
    """What makes the rows of a file, or what is missing of them."""
    kind, study = file.parts[2], file.parts[1]
    if kind == "posttraining":
        return f"posttrain --study {study} --name {file.stem.removesuffix('-reconstruction')}"
    return f"evaluate --study {study} --experiment {file.parent.name}"


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
    text = without_implied(whole).to_csv(index=False, lineterminator="\n")
    write_text(file, _with_checks(text) if {*TOGETHER} <= {*columns} else text)


def _with_checks(text: str) -> str:
    header, *lines = text.removesuffix("\n").split("\n")
    checks = [CHECK, *_checks(header, lines)]
    return "".join(f"{line},{check}\n" for line, check in zip([header, *lines], checks))
