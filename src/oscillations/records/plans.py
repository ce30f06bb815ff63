"""Plans: what every run of a study is, what lies on disk of it, and whether that is its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from oscillations.core.config import parse
from oscillations.core.errors import InputError
from oscillations.core.files import file_hash, read_json
from oscillations.records.contents import Record, Sidecar, Start
from oscillations.records.identity import arithmetic, difference, meaning
from oscillations.records.numerics import versions
from oscillations.study import pretrained
from oscillations.study.paths import RESULTS, Run, dataset_files, run_files
from oscillations.study.variants import Variant, parents_first

DAMAGED = "its record is damaged"
#: what a record calls the validation accuracies and the oscillations of the epoch whose weights are kept
MEASURED = {
    "best": ("validation_accuracy", "oscillations_at_best"),
    "last": ("validation_accuracy_at_end", "oscillations_at_end"),
}


@dataclass(frozen=True)
class Plan:
    """One run: its identity, what it starts from, and its record, if there is one in place.

    ``identity`` holds None for data and start weights that are not at hand. ``stale`` says why the record is not
    this run's result.
    """

    variant: Variant
    run: Run
    identity: dict[str, Any]
    start: dict[str, Any] | None
    record: dict[str, Any] | None
    stale: str | None

    @property
    def current(self) -> bool:
        """Whether the record in place is this run's."""
        return self.record is not None and self.stale is None

    @property
    def kept(self) -> dict[str, str]:
        """The weights that the run keeps (``best``, ``last``) and their checkpoint's name; the first stand for it."""
        return self.variant.recipe.training.kept

    @property
    def files(self) -> list[Path]:
        """What the run writes: into its folder, and its checkpoints."""
        names = run_files(self.variant.recipe.histograms is not None)
        return [*(self.run.folder / name for name in names), *self.run.checkpoints(self.kept.values()).values()]

    @property
    def result(self) -> dict[str, Any]:
        """The record of a current run."""
        assert self.record is not None
        return self.record


def plans(variants: Iterable[Variant]) -> list[Plan]:
    """The plans of all runs, in the variants' order. What starts from a stale run is stale itself."""
    variants = list(variants)
    read = cache(_read)
    found: dict[Run | None, Plan] = {}
    for variant in parents_first(variants):
        plain = variant.recipe.plain()
        computed = versions(arithmetic(plain))
        recipe = meaning(plain)
        about = _sidecar(dataset_files(variant.recipe.data)[0], Sidecar, read)
        for run in variant.runs():
            start, record = start_of(variant, run, read), read(run.record)
            identity = {
                "run": run.name,
                "seed": run.seed,
                "recipe": recipe,
                "arithmetic": computed,
                "data_sha256": about and about["sha256"],
                "start_sha256": start and start["sha256"],
            }
            parent = found.get(variant.parent(run.seed))
            stale = None if record is None else why_stale(record, identity)
            if record is not None and parent and parent.stale:
                stale = stale or f"started from {parent.run.name}, which is stale"
            found[run] = Plan(variant, run, identity, start, record, stale)
    return [found[run] for variant in variants for run in variant.runs()]


def why_stale(record: dict[str, Any], identity: dict[str, Any]) -> str | None:
    """Why a record is not of the run with this identity, or not whole; None if it is both."""
    try:
        return difference(record, identity) or _fault(record)
    except (InputError, AttributeError, KeyError, TypeError):
        return _fault(record) or DAMAGED


def _fault(record: dict[str, Any]) -> str | None:
    """What a record lacks, or has that no run could have."""
    try:
        parse(Record, record, DAMAGED)
    except InputError as error:
        return str(error)
    return None


def _read(file: Path) -> Any:
    """The content of a JSON file, None if there is none; of a damaged one nothing that any run could be."""
    try:
        return read_json(file) if file.exists() else None
    except InputError:
        return {"damaged": True}


def _sidecar(file: Path, kind: type[Sidecar | Start], read: Callable[[Path], Any]) -> dict[str, Any] | None:
    """What a sidecar says, None if there is none. Raises InputError, for nobody can know what a damaged one was."""
    about: dict[str, Any] | None = read(file)
    if about is not None:
        parse(kind, about, f"{file}: is damaged; delete it and its data, and make them again")
    return about


def start_of(variant: Variant, run: Run, read: Callable[[Path], Any]) -> dict[str, Any] | None:
    """Where a run's first weights are from, with their hash; None if it starts from scratch or they are not here.

    ``read``: the content of a JSON file, None if there is none.
    """
    if checkpoint := variant.recipe.pretrained:
        about = _sidecar(pretrained.files(checkpoint.name)[0], Start, read)
        return about and {key: about[key] for key in ("name", "trained_on", "verified", "label", "sha256")}
    parent = variant.parent(run.seed)
    record = parent and read(parent.record)
    if not parent or not record or _fault(record):
        return None
    own = {"name": parent.name, "trained_on": record["data"]["name"], "verified": False, "label": parent.experiment}
    return own | {"sha256": record["checkpoint_sha256"]}


def current(found: Iterable[Plan]) -> list[Plan]:
    """Those whose record is their run's."""
    return [plan for plan in found if plan.current]


def is_result(record: Path, identity: dict[str, Any], checkpoints: Mapping[str, Path]) -> bool:
    """Whether files are a finished run with this identity, whole."""
    return vouches_for(record, checkpoints) and why_stale(_read(record), identity) is None


def vouches_for(record: Path, checkpoints: Mapping[str, Path]) -> bool:
    """Whether checkpoints, by name, are there, and those that a record was written beside."""
    if not all(file.exists() for file in (record, *checkpoints.values())):
        return False
    hashes = _read(record)
    return all(file_hash(file) == hashes.get(f"{name}_sha256") for name, file in checkpoints.items())


def made_in_another_study(run: Run, identity: dict[str, Any], checkpoints: Iterable[str]) -> Run | None:
    """A finished run of another study that is this very run, with these checkpoints: same name, seed and identity."""
    for record in sorted(RESULTS.glob(f"*/runs/{run.name}/run.json")):
        twin = replace(run, study=record.parts[1])
        if is_result(record, identity, twin.checkpoints(checkpoints)):
            return twin
    return None
