"""Post-training quantization of finished runs: every label and bit width of one entry of a study.

Rows whose checkpoint, options and arithmetic are the same are kept. Tables are written after every label and bit
width into a work folder that no rule declares, and put into place at the end: an interruption loses only what was
in progress.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from oscillations import datasets, posttraining
from oscillations.engine.batches import ImageSet, image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.network import Network
from oscillations.jobs.holders import held
from oscillations.jobs.networks import trained
from oscillations.posttraining import PostTrainingOptions
from oscillations.posttraining._measurement import measure
from oscillations.records.identity import arithmetic, posttraining_key, posttraining_parts
from oscillations.records.numerics import written
from oscillations.records.plans import Plan, current, plans
from oscillations.records.rows import POSTTRAINED, RECONSTRUCTED, current_rows, read_rows, write_rows
from oscillations.study.paths import DATA, Run, posttraining_files, posttraining_work
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

COLUMNS = (POSTTRAINED, RECONSTRUCTED)
Tables = tuple[list[pd.DataFrame], list[pd.DataFrame]]


def posttrain(study: Study, variants: list[Variant], name: str, device: str = "auto") -> None:
    """Write the accuracies and the losses per unit of all current parents of the study's entry ``name``.

    ``variants``: all of the study.
    """
    with held([posttraining_work(study.study, name)]):
        _posttrain(study, variants, name, device)


def _posttrain(study: Study, variants: list[Variant], name: str, device: str) -> None:
    entry, folder = study.posttraining[name], posttraining_work(study.study, name)
    targets = posttraining_files(study.study, name)
    parts = (folder / targets[0].name, folder / targets[1].name)
    known = [read_rows([target, part], which) for target, part, which in zip(targets, parts, COLUMNS)]
    kept: Tables = ([], [])
    made = 0
    for plan in current(plan for plan in plans(variants) if plan.variant.path in entry.of):
        network = None
        for label, method, options in entry.resolved():
            for bits in entry.bits:
                about = _about(plan, label, method, options, bits)
                mine = [current_rows(table[table.label == label], about["key"], about["parts"]) for table in known]
                done = plan.result["status"] == "done"
                whole = len(mine[0]) and (len(mine[1]) or not done)
                if not whole:
                    network = network or (_network(plan.variant, plan.run, device) if done else None)
                    mine = _rows(about, network, options, plan.run.seed)
                    made += 1
                    print(f"{plan.run.name}: {label} at {bits} bits", flush=True)
                for tables, table in zip(kept, mine):
                    tables.append(table)
                if not whole:
                    _write(parts, kept)
    _write(targets, kept)
    for part in parts:
        part.unlink(missing_ok=True)
    print(f"{name}: {made} made, {len(kept[0]) - made} kept")


def _about(plan: Plan, label: str, method: str, options: PostTrainingOptions, bits: int) -> dict[str, Any]:
    """What a result belongs to, and the parts that make it."""
    parts = [*posttraining_parts(method), *arithmetic(plan.result["recipe"])[1:]]
    key = posttraining_key(plan.result, method, options, bits)
    status = plan.result["status"]
    about = {"run": plan.run.name, "key": key, "arithmetic": written(parts), "label": label, "method": method}
    return about | {"eval_bits": bits, "status": status, "parts": parts}


def _rows(
    about: dict[str, Any],
    made: tuple[Network, dict[str, ImageSet]] | None,
    options: PostTrainingOptions,
    seed: int,
) -> list[pd.DataFrame]:
    """The accuracies and the losses per unit of one method at one bit width; of a diverged run without numbers."""
    rows: list[dict[str, Any]] = [{"bn": "keep"}]
    places: list[dict[str, Any]] = []
    if made is not None:
        rows, places = measure(*made, posttraining.find(about["method"])(options), about["eval_bits"], seed)
    return [
        pd.DataFrame([about | row for row in table], columns=columns) for table, columns in zip((rows, places), COLUMNS)
    ]


def _network(variant: Variant, run: Run, device: str) -> tuple[Network, dict[str, ImageSet]]:
    """The network that the run's checkpoint holds, and its images."""
    torch_device = set_up_torch(variant.recipe.threads, variant.recipe.training.precision, device)
    about, tensors = datasets.read(variant.recipe.data, DATA)
    return trained(variant, run, about, torch_device), image_sets(about, tensors, variant.recipe, torch_device)


def _write(files: tuple[Path, Path], tables: Tables) -> None:
    """The accuracies last: they vouch for the losses."""
    for file, frames, columns in reversed(list(zip(files, tables, COLUMNS))):
        write_rows(file, frames, columns)
