"""Plans: what every run of a study is, what lies on disk of it, and whether that is its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from oscillations import datasets
from oscillations.core.config import parse
from oscillations.core.errors import InputError
from oscillations.core.files import Damaged, FileObject, file_hash, read_json
from oscillations.records.contents import Record, Sidecar, Start
from oscillations.records.damage import damage
from oscillations.records.identity import OTHER_DATA, arithmetic, difference, meaning
from oscillations.records.numerics import versions
from oscillations.study import pretrained
from oscillations.study.paths import DATA, RESULTS, Run, run_files
from oscillations.study.variants import Variant, parents_first

DAMAGED = "its record is damaged"
SHOWN = 10  # damaged runs in a message


@dataclass(frozen=True)
class Plan:
    """One run: its identity, what it starts from, and its record, if there is one in place.

    ``identity`` holds None for data and start weights that are not at hand. ``stale`` says why the record is not
    this run's result; one that cannot be read counts as none.
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
    def absurd(self) -> bool:
        """Whether the record in place is stale because it holds what no run's could."""
        return (self.stale or "").startswith(DAMAGED)

    @property
    def kept(self) -> dict[str, str]:
        """The weights that the run keeps (``best``, ``last``) and their checkpoint's name; the first stand for it."""
        return self.variant.recipe.training.kept

    @property
    def files(self) -> list[Path]:
        """What the run writes: into its folder, and its checkpoints."""
        names = [*self.tables, self.run.record.name]
        return [*(self.run.folder / name for name in names), *self.run.checkpoints(self.kept.values()).values()]

    @property
    def tables(self) -> list[str]:
        """What lies beside its record, which vouches for it."""
        names = run_files(self.variant.recipe.histograms is not None)
        return [name for name in names if name != self.run.record.name]

    @cached_property
    def damage(self) -> str | None:
        """What is wrong with the record in place or the tables beside it; None if nothing, or there is no record."""
        if self.record is not None:
            found = damage(self.run.folder, self.record, self.tables, self.kept)
            return found or (f"{self.run.record}: {self.stale}".replace("its record ", "", 1) if self.absurd else None)
        try:  # to read it: another job may have put it into place since the plan was made
            read_json(self.run.record)
        except FileNotFoundError:
            return None
        except Damaged:
            return f"{self.run.record}: is damaged"
        return None

    @property
    def result(self) -> dict[str, Any]:
        """The record of a current run."""
        assert self.record is not None
        return self.record


def plans(variants: Iterable[Variant]) -> list[Plan]:
    """The plans of all runs, in the variants' order. What starts from a stale run is stale itself."""
    variants = list(variants)
    read, described, refuse = cache(_read), cache(_described), cache(datasets.refuse_other_tensors)
    found: dict[Run | None, Plan] = {}
    for variant in parents_first(variants):
        plain = variant.recipe.plain()
        computed = versions(arithmetic(plain))
        recipe = meaning(plain)
        about = described(variant.recipe.data)
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
            if stale == OTHER_DATA:  # unless what says so is damaged
                refuse(variant.recipe.data, DATA)
            if record is not None and parent and parent.stale and not parent.absurd:
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


def _read(record: Path) -> dict[str, Any] | None:
    """A record; None if there is none, or it cannot be read, or is not as it was written."""
    try:
        found: dict[str, Any] = read_json(record)
        return found
    except (FileNotFoundError, Damaged):
        return None


def _described(data: str) -> dict[str, Any] | None:
    return _whole(datasets.described(data, DATA), Sidecar, datasets.again(data))


def _whole(about: FileObject | None, kind: type[Sidecar | Start], again: str) -> dict[str, Any] | None:
    """A sidecar, None if there is none. Raises Damaged, for nobody can know what a damaged one was."""
    if about is not None:
        try:
            parse(kind, about, f"{about.path}: is damaged")
        except InputError as error:
            raise Damaged(f"{error}; {again}") from None
    return about


def start_of(variant: Variant, run: Run, read: Callable[[Path], Any]) -> dict[str, Any] | None:
    """Where a run's first weights are from, with their hash; None if it starts from scratch or they are not here.

    ``read``: a record, None if there is none. Raises Damaged if the sidecar of public weights is.
    """
    if checkpoint := variant.recipe.pretrained:
        about = _whole(pretrained.described(checkpoint.name), Start, pretrained.again(checkpoint.name))
        return about and {key: about[key] for key in ("name", "trained_on", "verified", "label", "sha256")}
    parent = variant.parent(run.seed)
    record = parent and read(parent.record)
    if not parent or not record or _fault(record):
        return None
    own = {"name": parent.name, "trained_on": record["data"]["name"], "verified": False, "label": parent.experiment}
    return own | {"sha256": record["checkpoint_sha256"]}


def current(found: Iterable[Plan]) -> list[Plan]:
    """Those whose record is their run's. Raises InputError if one that may be, or a table beside it, is damaged."""
    found = [plan for plan in found if plan.absurd or not plan.stale]
    if damaged := [plan for plan in found if plan.damage]:
        mend = "bring it back from git, DVC or an archive, or make it again with:"
        said = [f"{plan.damage}; {mend}\n  {plan.run.command}" for plan in damaged[:SHOWN]]
        more = [f"and {len(damaged) - SHOWN} more runs"] if len(damaged) > SHOWN else []
        raise InputError("\n".join([*said, *more]))
    return [plan for plan in found if plan.current]


def is_result(record: Path, plan: Plan, checkpoints: Mapping[str, Path]) -> bool:
    """Whether files are a plan's run, finished and whole."""
    about = _read(record)
    if about is None or why_stale(about, plan.identity):
        return False
    return vouches_for(record, checkpoints) and not damage(record.parent, about, plan.tables, plan.kept)


def vouches_for(record: Path, checkpoints: Mapping[str, Path]) -> bool:
    """Whether checkpoints, by name, are there, and those that a record was written beside."""
    hashes = _read(record)
    try:
        return hashes is not None and all(
            file_hash(file) == hashes.get(f"{name}_sha256") for name, file in checkpoints.items()
        )
    except FileNotFoundError:
        return False


def made_in_another_study(plan: Plan) -> Run | None:
    """A finished run of another study that is this very run, whole: same name, seed and identity."""
    for record in sorted(RESULTS.glob(f"*/runs/{plan.run.name}/run.json")):
        twin = replace(plan.run, study=record.parts[1])
        if is_result(record, plan, twin.checkpoints(plan.kept.values())):
            return twin
    return None
