"""Post-training quantization of finished runs: every label and bit width of one entry of a study.

Rows whose run, checkpoint, options and code are unchanged are kept. Tables are written after every label and bit
width into a work folder that no rule declares, and put into place at the end: an interruption loses only what was
in progress.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations import datasets, posttraining
from oscillations.batches import image_sets
from oscillations.device import set_up_torch
from oscillations.evaluation import trained
from oscillations.files import write_table
from oscillations.posttraining.measurement import measure
from oscillations.records import posttraining_key, sort_runs
from oscillations.runs import DATA
from oscillations.study import Run, Study, Variant, posttraining_files

COLUMNS = [
    "run", "key", "label", "method", "eval_bits", "per_channel", "grid", "levels", "calibration", "bn", "accuracy",
    "calibration_loss", "iterations", "seconds", "oscillation", "largest_loss", "status",
]  # fmt: skip
RECONSTRUCTION_COLUMNS = ["run", "key", "label", "eval_bits", "place", "unit", "group", "loss"]


def posttrain(study: Study, variants: list[Variant], name: str, device: str = "auto") -> None:
    """Write the accuracies and the losses per unit of all current parents of the study's entry ``name``."""
    entry = study.posttraining[name]
    folder = Path("work", study.study, "posttraining", name)
    targets = posttraining_files(study.study, name)
    parts = [folder / target.name for target in targets]
    columns = (COLUMNS, RECONSTRUCTION_COLUMNS)
    known = [_read([target, part], which) for target, part, which in zip(targets, parts, columns)]
    kept: list[list[pd.DataFrame]] = [[], []]
    made = 0
    for variant, run, record in sort_runs([variant for variant in variants if variant.path in entry.of])[0]:
        trainer = None
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
                        pd.DataFrame([rest | row for row in rows], columns=COLUMNS),
                        pd.DataFrame([about | place for place in places], columns=RECONSTRUCTION_COLUMNS),
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


def _trainer(variant: Variant, run: Run, device: str):
    """The run's network with its checkpoint and images."""
    torch_device = set_up_torch(variant.recipe, device)
    about, tensors = datasets.read(variant.recipe["data"], DATA)
    return trained(variant, run, about, image_sets(about, tensors, variant.recipe, torch_device), torch_device)


def _write(files: Any, tables: Any, columns: Any) -> None:
    for file, frames, which in zip(files, tables, columns):
        write_table(file, frames, which)


def _read(files: list[Path], columns: list[str]) -> pd.DataFrame:
    """The rows of earlier calls, also of one that was interrupted, each once."""
    found = [pd.read_csv(file, dtype={"key": str}, float_precision="round_trip") for file in files if file.exists()]
    filled = [table for table in found if len(table)]
    whole = pd.concat(filled) if filled else pd.DataFrame(columns=columns)
    return whole.drop_duplicates([c for c in ("key", "label", "bn", "place") if c in columns])
