"""Confirming runs after a change of the code: replay their first epochs and compare every logged number.

A changed engine makes every record stale, even if the change was only of form. Training GPU-days again to show
that would be waste: accuracies, losses, oscillation counts and weight statistics of one epoch, equal to the last
digit, show it as well. What is confirmed says so in its record, with the code that made it.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from oscillations import datasets
from oscillations.batches import image_sets
from oscillations.device import set_up_torch
from oscillations.files import read_json, write_json
from oscillations.records import IDENTITY, is_current
from oscillations.runs import DATA, environment, epoch_tables, new_trainer, run_identity
from oscillations.study import Run, Variant
from oscillations.training import Trainer


def confirm(variants: list[Variant], epochs: int, device: str = "auto") -> bool:
    """Replay stale runs and stamp those that agree as made by the present code; False if one did not agree.

    Only the code may have changed, and options may have been added to the recipe that are off: a run whose recipe,
    data or start weights are others has to be trained again. What acts in later epochs only (a schedule, the
    stopping rule) is seen by a replay that long; one to the end compares the best epoch as well.
    """
    agreed = True
    for variant in variants:
        torch_device = set_up_torch(variant.recipe, device)
        about = sets = None
        for run in variant.runs():
            if not run.record.exists():
                continue
            if about is None:
                about, tensors = datasets.read(variant.recipe["data"], DATA)
            record, identity = read_json(run.record), run_identity(variant, run, about)
            if is_current(run.record, identity):
                continue
            changed = [key for key in IDENTITY if key != "fingerprint" and not _holds(identity[key], record[key])]
            if changed:
                print(f"{run.name}: not replayed, another {', '.join(changed)}", flush=True)
                agreed = False
                continue
            sets = sets or image_sets(about, tensors, variant.recipe, torch_device)
            trainer = new_trainer(variant, run, about, sets, torch_device)
            difference = first_difference(trainer, run, record, epochs)
            print(f"{run.name}: {difference or 'confirmed'}", flush=True)
            agreed = agreed and difference is None
            if difference is None:
                earlier = {
                    "fingerprint": record["fingerprint"],
                    "epochs_replayed": trainer.progress.epoch,
                    "environment": environment(torch_device, variant.recipe),
                }
                confirmed = [*record.get("confirmed", []), earlier]
                write_json(run.record, record | identity | {"confirmed": confirmed})
    return agreed


def _holds(new: Any, old: Any) -> bool:
    """Whether ``new`` is ``old``, or a mapping that holds all of it and besides only options that are off."""
    if isinstance(new, dict) and isinstance(old, dict):
        kept = all(key in new and _holds(new[key], value) for key, value in old.items())
        return kept and all(value in (None, False, "none") for key, value in new.items() if key not in old)
    return new == old


def first_difference(trainer: Trainer, run: Run, record: dict[str, Any], epochs: int) -> str | None:
    """Train ``epochs`` epochs and compare with what the run logged; the first number that differs, in words."""
    for epoch_ended in trainer.steps():
        if epoch_ended and trainer.progress.epoch == epochs:
            break
    for name, text in epoch_tables(trainer).items():
        replayed = list(csv.DictReader(io.StringIO(text)))
        with (run.folder / name).open(newline="") as file:
            logged = [row for row in csv.DictReader(file) if int(row["epoch"]) <= trainer.progress.epoch]
        if len(logged) != len(replayed):
            return f"{name}: {len(logged)} rows were logged, the replay gives {len(replayed)}"
        for old, new in zip(logged, replayed):
            for column, value in old.items():
                if new.get(column) != value:
                    return f"{name}, epoch {old['epoch']}: {column} was {value}, the replay gives {new.get(column)}"
    if trainer.progress.status != "running":
        ended = {"best_epoch": trainer.progress.best_epoch, "epochs_run": trainer.progress.epoch}
        for key, value in ended.items():
            if record[key] != value:
                return f"{key} was {record[key]}, the replay gives {value}"
    return None
