"""What two sources made of the same study, compared number by number."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oscillations.core.files import read_json
from oscillations.records.damage import MEASURED
from oscillations.records.identity import arithmetic, posttraining_parts
from oscillations.records.rows import CHECK
from oscillations.study.paths import Run, evaluation_files, posttraining_files, run_files, toy_file
from oscillations.study.schema import Study
from oscillations.study.variants import Variant, parents_first

UNCOMPARED = ("key", "arithmetic", "seconds", CHECK)  #: columns that say what a row belongs to, or how long it took


@dataclass(frozen=True)
class Compared:
    """Something made under both sources: the parts that decide it, general ones first, and what differs, if anything.

    ``difference``: the first number that does, in words.
    """

    parts: tuple[str, ...]
    difference: str | None


def compared(projects: list[Path], study: Study, variants: list[Variant]) -> Iterator[Compared]:
    """All that was made; what follows from a run that differs says nothing more."""
    differing = set()
    for variant in parents_first(variants):
        for run in variant.runs():
            if not (projects[1] / run.record).exists() or variant.parent(run.seed) in differing:
                continue
            trained = _training(projects, variant, run)
            yield trained
            if trained.difference:
                differing.add(run)
            else:
                yield _evaluation(projects, variant, run)
                yield from _posttraining(projects, study, variant, run)
    toy = toy_file("certify")
    if (projects[1] / toy).exists():
        yield Compared(("aoq-toy",), _table(projects, toy))
    for sidecar in (projects[1] / "data").glob("*.json"):
        before, after = (read_json(project / "data" / sidecar.name) for project in projects)
        same = before == after
        yield Compared((f"data/{sidecar.stem}",), None if same else f"{sidecar.name} or its content differs")


def _training(projects: list[Path], variant: Variant, run: Run) -> Compared:
    tables = [name for name in run_files(variant.recipe.histograms is not None) if name.endswith(".csv")]
    epochs = (_table(projects, run.folder / name) for name in tables)
    checkpoints = run.checkpoints(variant.recipe.training.kept.values())
    whole = (_record(projects, run.record), *(_weights(projects, file) for file in checkpoints.values()))
    return Compared(tuple(arithmetic(variant.recipe.plain())), _first((*epochs, *whole)))


def _evaluation(projects: list[Path], variant: Variant, run: Run) -> Compared:
    tables = (_table(projects, file, run=run.name) for file in evaluation_files("certify", variant.experiment))
    return Compared((*arithmetic(variant.recipe.plain()), "evaluation"), _first(tables))


def _posttraining(projects: list[Path], study: Study, variant: Variant, run: Run) -> Iterator[Compared]:
    for name, entry in study.posttraining.items():
        files = posttraining_files("certify", name)
        if variant.path in entry.of and (projects[1] / files[0]).exists():
            for label, method, _ in entry.resolved():
                made = _first(_table(projects, file, run=run.name, label=label) for file in files)
                yield Compared(("engine", *posttraining_parts(method)), made)


def _first(differences: Iterable[str | None]) -> str | None:
    return next((difference for difference in differences if difference), None)


def _table(projects: list[Path], file: Path, **chosen: str) -> str | None:
    """The first number of a table, or of its ``chosen`` rows, that differs.

    Columns may have been added, and empty ones left out.
    """
    tables: list[list[dict[str, str]]] = []
    for project in projects:
        if not (project / file).exists():
            tables.append([])
            continue
        with (project / file).open(newline="") as rows:
            tables.append([row for row in csv.DictReader(rows) if all(row[k] == v for k, v in chosen.items())])
    before, after = tables
    if len(before) != len(after):
        return f"{file}: {len(before)} rows before, {len(after)} now"
    for number, (old, new) in enumerate(zip(before, after), 1):
        for column, value in old.items():
            if column not in UNCOMPARED and new.get(column, "") != value:
                where = " ".join([*chosen.values(), f"row {number}"])
                return f"{file}, {where}: {column} was {value}, is {new.get(column)}"
    return None


def _record(projects: list[Path], file: Path) -> str | None:
    """The first measured value of a record that differs."""
    before, after = (read_json(project / file) for project in projects)
    accuracies = [key for key, _ in MEASURED.values() if key in before]
    for key in ("status", "best_epoch", "epochs_run", "monitored", *accuracies, "quantizer", "split"):
        values = before[key], after[key]
        if isinstance(values[0], dict):  # something may have been added
            values = values[0], {name: values[1].get(name) for name in values[0]}
        if values[0] != values[1]:
            return f"{file}: {key} was {values[0]}, is {values[1]}"
    return None


def _weights(projects: list[Path], file: Path) -> str | None:
    """The first tensor of a checkpoint that differs."""
    from safetensors.torch import load_file

    before, after = (load_file(project / file) for project in projects)
    for name, tensor in before.items():
        if name not in after or tensor.numpy().tobytes() != after[name].numpy().tobytes():  # NaN is what it was
            return f"{file}: {name} differs"
    return None
