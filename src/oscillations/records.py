"""Run records: which files are results of the study as it is now, and why others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oscillations import weights
from oscillations.files import canonical_json, read_json, sha256
from oscillations.fingerprint import fingerprint
from oscillations.study import Run, Variant

OTHER_DATA = "made from other data"
OTHER_WEIGHTS = "started from other pretrained weights"
IDENTITY = ("run", "seed", "recipe", "fingerprint", "data_sha256", "start_sha256")


def is_current(record: Path, identity: dict[str, Any]) -> bool:
    """Whether the file is a record of exactly this run: recipe, code, data and start weights."""
    return record.exists() and all(read_json(record).get(key) == identity[key] for key in IDENTITY)


def evaluation_key(record: dict[str, Any]) -> str:
    """Names what an evaluation belongs to: the run's identity, its checkpoint, and the code that evaluates."""
    about = {key: record[key] for key in (*IDENTITY, "checkpoint_sha256")} | {"code": fingerprint("crossbit")}
    return sha256(canonical_json(about).encode())[:16]


def posttraining_key(record: dict[str, Any], method: str, options: dict[str, Any], bits: int) -> str:
    """Names what a post-training result belongs to: the run, its checkpoint, the method's options and code."""
    about = {key: record[key] for key in (*IDENTITY, "checkpoint_sha256")}
    about |= {"method": method, "options": options, "bits": bits, "code": posttraining_code(method)}
    return sha256(canonical_json(about).encode())[:16]


def posttraining_code(*methods: str) -> str:
    """Fingerprint of the code that decides the numbers of these post-training methods."""
    modules = [f"posttraining.{method.replace('-', '_')}" for method in methods]
    return fingerprint("posttraining.measurement", "posttraining.reconstruction", *modules)


def stale_because(record: dict[str, Any], variant: Variant, run: Run) -> str | None:
    """Why a record is not the study's result, or None if it is. Works without data and weights."""
    if record["recipe"] != variant.recipe:
        return f"made with another recipe ({', '.join(changed_keys(record['recipe'], variant.recipe))})"
    if record["fingerprint"] != variant.fingerprint:
        return "made by other code"
    about = Path("data", f"{variant.recipe['data']}.json")
    if about.exists() and read_json(about)["sha256"] != record["data_sha256"]:
        return OTHER_DATA
    pretrained = variant.recipe["pretrained"]
    sidecar = pretrained and weights.files(pretrained["name"])[0]
    if sidecar and sidecar.exists() and read_json(sidecar)["sha256"] != record["start_sha256"]:
        return OTHER_WEIGHTS
    parent = variant.parent(run.seed)
    if parent is not None and parent.record.exists():
        start = read_json(parent.record)["checkpoint_sha256"]
        if start != record["start_sha256"]:
            return f"started from other weights than {parent.name} has now"
    return None


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the options that differ, those inside a mapping one by one."""
    changed = []
    for key in sorted(old | new):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after or (key in old) != (key in new):
            changed.append(prefix + key)
    return changed


def sort_runs(variants: list[Variant]) -> tuple[list[tuple[Variant, Run, dict]], dict[Run, str]]:
    """All current runs of a study with their records, and the stale ones with the reason."""
    current, stale = [], {}
    for variant in sorted(variants, key=lambda variant: variant.recipe["start_from"] is not None):  # parents first
        for run in variant.runs():
            if not run.record.exists():
                continue
            record = read_json(run.record)
            parent = variant.parent(run.seed)
            why = stale_because(record, variant, run)
            if why is None and parent in stale:
                why = f"started from {parent.name}, which is stale"
            if why is None:
                current.append((variant, run, record))
            else:
                stale[run] = why
    order = {run: place for place, run in enumerate(run for variant in variants for run in variant.runs())}
    return sorted(current, key=lambda entry: order[entry[1]]), stale
