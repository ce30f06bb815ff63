"""Versions of the arithmetic: which sources are known to compute the same numbers.

A *part* (the engine, a method, a model, ...) computes what all places compute that it reaches. Its *source* is their
hash (:mod:`oscillations.records.sources`). The *ledger* holds, for every part, the sources that are known to compute
the numbers of a version. A part whose present source is not in the ledger is *unknown* until ``certify`` has compared
it; its version is then the source itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from oscillations.core.errors import InputError
from oscillations.core.files import read_json, write_json
from oscillations.records.sources import LENGTH, ROOT, Place, hash_of, places, reached, remembered

LEDGER = Path(__file__).with_name("ledger.json")

Version = int | str  #: a number of the ledger, or the source of what is unknown

#: What parts begin with: modules, or single definitions of them. Those of the kinds in FOUND are files.
PARTS = {
    "engine": (
        "engine.training", "engine.recipe:Training", "engine.batches:image_sets", "engine.determinism:set_up_torch",
        "jobs.networks", "jobs.train:train", "datasets:read", "study.pretrained:read",
    ),
    "reduced-splits": ("engine.batches:evenly",),
    "evaluation": (
        "engine.crossbit", "engine.batches:image_sets", "jobs.networks", "jobs.evaluate:evaluate", "datasets:read",
    ),
    "reconstruction": (
        "posttraining._measurement", "posttraining._reconstruction", "posttraining._units", "engine.batches:image_sets",
        "jobs.networks", "jobs.posttrain:posttrain", "datasets:read",
    ),
    "aoq-toy": ("jobs.aoq_toy",),
}  # fmt: skip
FOUND = {"method": "methods", "model": "models", "data": "datasets", "posttraining": "posttraining"}
BESIDE = {"data": ("datasets:write",)}  # what every part of a kind begins with, too
COMMON = {"method": "engine", "model": "engine", "posttraining": "reconstruction"}  # whose definitions are not theirs
ON_REQUEST = "reduced-splits"  # called only for recipes that ask for it, and so no other part's


def parts() -> list[str]:
    """All parts: ``engine``, ``method/qat``, ``model/mlp5``, ... ``model/library`` is timm's and torchvision's."""
    files = {kind: sorted((ROOT / package).glob("*.py")) for kind, package in FOUND.items()}
    found = [
        f"{kind}/{file.stem.replace('_', '-')}"
        for kind, members in files.items()
        for file in members
        if not file.stem.startswith("_")
    ]
    return [*PARTS, *found, "model/library"]


@remembered
def source(part: str) -> str:
    """Hash of what a part computes with."""
    kind = part.partition("/")[0]
    shared = reached(part_roots(COMMON[kind])) if kind in COMMON else set()
    stops = set() if part == ON_REQUEST else part_roots(ON_REQUEST)
    return hash_of(reached(part_roots(part), stops) - shared)


def part_roots(part: str) -> set[Place]:
    """The places that a part begins with."""
    if part in PARTS:
        return places(*PARTS[part])
    kind, name = part.split("/")
    file = "_library" if name == "library" else name.replace("-", "_")
    return places(f"{FOUND[kind]}.{file}", *BESIDE.get(kind, ()))


# -- the ledger --------------------------------------------------------------------------------------------


@cache
def ledger() -> dict[str, dict[str, list[str]]]:
    """Part -> version -> sources that compute its numbers. Raises InputError if the file is damaged."""
    if not LEDGER.exists():
        return {}
    try:
        found = read_json(LEDGER)
        for numbers in found.values():
            for number, sources in numbers.items():
                if int(number) < 1 or not all(isinstance(source, str) for source in sources):
                    raise ValueError(f"version {number}")
    except (InputError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{LEDGER}: damaged ({error}); bring it back with git, then run certify") from None
    return found


def version_of(part: str, found: Version) -> Version:
    """The version that a source of a part has; what is a version already, or unknown, stays."""
    known = ledger().get(part, {})
    return next((int(number) for number, sources in known.items() if found in sources), found)


def version(part: str) -> Version:
    """The version of a part as it is now."""
    return version_of(part, source(part))


def versions(names: Iterable[str]) -> dict[str, Version]:
    """The present versions of some parts."""
    return {part: version(part) for part in names}


def written(names: Iterable[str]) -> str:
    """The present versions of some parts as a table holds them: ``evaluation=1 model/mlp5=1``."""
    return " ".join(f"{part}={number}" for part, number in versions(names).items())


def made_by(text: str, names: Iterable[str]) -> bool:
    """Whether versions that :func:`written` gave, some time ago, are the present ones of these parts."""
    made = dict(entry.split("=") for entry in str(text).split() if "=" in entry)
    found = {
        part: int(number) if len(number) < LENGTH and number.isdecimal() else number for part, number in made.items()
    }
    return all(version_of(part, found.get(part, "unknown")) == version(part) for part in names)


def unknown() -> list[str]:
    """The parts whose source the ledger does not hold."""
    return [part for part in parts() if isinstance(version(part), str)]


def enter(found: Mapping[str, str], compared: Mapping[str, int], opened: Iterable[str]) -> None:
    """Write sources into the ledger: into the version that they were compared with, or into the next one.

    ``compared``: versions of the certified source; a part that it does not have is new.
    """
    known = {part: dict(numbers) for part, numbers in ledger().items()}
    for part, one in found.items():
        numbers = known.setdefault(part, {})
        number = str(max(map(int, numbers), default=0) + 1 if part in opened else compared.get(part, 1))
        numbers[number] = [*numbers.get(number, []), one]
    write_json(LEDGER, known)
    ledger.cache_clear()
