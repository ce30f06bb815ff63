"""Post-training quantization of finished runs: every label and bit width of one entry of a study.

Rows whose run, checkpoint, options and code are unchanged are kept. Tables are written after every label and bit
width into a work folder that no rule declares, and put into place at the end: an interruption loses only what was
in progress.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import Any

import pandas as pd

from oscillations import datasets, posttraining
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.training import Trainer
from oscillations.jobs.trainers import trained
from oscillations.posttraining._measurement import measure
from oscillations.records.identity import posttraining_key
from oscillations.records.plans import current, plans
from oscillations.records.rows import POSTTRAINED, RECONSTRUCTED, read_rows, write_rows
from oscillations.study.paths import DATA, Run, posttraining_files, posttraining_work
from oscillations.study.schema import Study
from oscillations.study.variants import Variant


def posttrain(study: Study, variants: list[Variant], name: str, device: str = "auto") -> None:
    """Write the accuracies and the losses per unit of all current parents of the study's entry ``name``."""
    entry = study.posttraining[name]
    folder = posttraining_work(study.study, name)
    targets = posttraining_files(study.study, name)
    parts = [folder / target.name for target in targets]
    columns = (POSTTRAINED, RECONSTRUCTED)
    known = [read_rows([target, part], which) for target, part, which in zip(targets, parts, columns)]
    kept: list[list[pd.DataFrame]] = [[], []]
    made = 0
    for plan in current(plans([variant for variant in variants if variant.path in entry.of])):
        variant, run, record, trainer = plan.variant, plan.run, plan.result, None
        for label, method, options in entry.resolved():
            for bits in entry.bits:
                key = posttraining_key(record, method, options, bits)
                mine = [table[(table.key == key) & (table.label == label)] for table in known]
                if mine[0].empty or (mine[1].empty and record["status"] == "done"):
                    about = {"run": run.name, "key": key, "label": label, "eval_bits": bits}
                    if record["status"] == "done":
                        trainer = trainer or _trainer(variant, run, device)
                        found = posttraining.find(method)
                        rows, places = measure(trainer, found(found.Options(**options)), bits)
                    else:
                        rows, places = [{"bn": "keep"}], []
                    rest = about | {"method": method, "status": record["status"]}
                    mine = [
                        pd.DataFrame([rest | row for row in rows], columns=POSTTRAINED),
                        pd.DataFrame([about | place for place in places], columns=RECONSTRUCTED),
                    ]
                    made += 1
                    print(f"{run.name}: {label} at {bits} bits", flush=True)
                for tables, table in zip(kept, mine):
                    tables.append(table)
                if made:
                    _write(reversed(parts), reversed(kept), reversed(columns))  # the accuracies last
    _write(targets, kept, columns)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        with suppress(OSError):  # not empty: other jobs are at work
            parent.rmdir()
    print(f"{name}: {made} made, {len(kept[0]) - made} kept")


def _trainer(variant: Variant, run: Run, device: str) -> Trainer:
    """The run's network with its checkpoint and images."""
    torch_device = set_up_torch(variant.recipe.threads, variant.recipe.training.precision, device)
    about, tensors = datasets.read(variant.recipe.data, DATA)
    return trained(variant, run, about, image_sets(about, tensors, variant.recipe, torch_device), torch_device)


def _write(files: Any, tables: Any, columns: Any) -> None:
    for file, frames, which in zip(files, tables, columns):
        write_rows(file, frames, which)
