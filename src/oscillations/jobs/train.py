"""Training jobs: all seeds of a variant in one process, each kept, resumed or made; records and checkpoints.

A finished seed stays in the run's work folder, which no rule declares, until every seed of the variant is
there; then all are copied into place. So whatever is interrupted, and whatever Snakemake deletes of a failed
job, no finished seed is trained twice. ``evaluate`` removes the work folders of runs that are in place.
"""

from __future__ import annotations

import csv
import io
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from oscillations import datasets
from oscillations.core.errors import InputError, Interrupted
from oscillations.core.files import file_hash, replacing, sealed, sha256, write_json, write_text
from oscillations.engine.batches import ImageSet, image_sets, images_per_class, split_indices
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.recipe import Recipe
from oscillations.engine.training import Trainer
from oscillations.jobs import resume
from oscillations.jobs.holders import Hold, held, remove_empty
from oscillations.jobs.networks import new_network
from oscillations.jobs.turns import in_turns
from oscillations.records.damage import COUNTED, MEASURED, TABLES
from oscillations.records.environment import environment
from oscillations.records.identity import difference
from oscillations.records.plans import Plan, is_result, made_in_another_study, plans, vouches_for
from oscillations.study import pretrained
from oscillations.study.paths import CHECKPOINTS, DATA, WEIGHTS, Run, run_files
from oscillations.study.variants import Variant


class StopSignal:
    """Remembers SIGTERM and SIGINT, so that training stops after the step in progress, and nothing begins after it."""

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """From here on, whoever did before."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: Any) -> None:
        self.number = number

    def check(self) -> None:
        """Raise Interrupted after a signal."""
        if self.number:
            raise Interrupted("nothing was begun")


def train(
    variant: Variant, stop: StopSignal, *, device: str = "auto", save_every: float = 30.0, at_once: int = 1
) -> None:
    """Make every seed of a variant that is not there yet, then put all into place.

    ``save_every``: seconds between resume files. ``at_once``: runs that take turns, step by step; on a GPU each
    has a stream of its own. Raises Interrupted after SIGTERM or SIGINT. One that comes when no run takes steps any more
    is for the next variant: ``stop`` is the command's.
    """
    stop.listen()
    stop.check()
    torch_device = set_up_torch(variant.recipe.threads, variant.recipe.training.precision, device)
    about, tensors = datasets.read(variant.recipe.data, DATA)
    for plan in plans([variant]):
        _check_start(plan)
    with held([run.work for run in variant.runs()], stop.check) as holds:
        hold_of = {hold.folder: hold for hold in holds}
        wanted = [plan for plan in plans([variant]) if not _kept(plan)]  # whoever held them may have made them
        missing = [plan for plan in wanted if not _finished_elsewhere(plan)]
        if missing:
            at_once = min(at_once, len(missing))
            sets = image_sets(about, tensors, variant.recipe, torch_device)
            if torch_device.type == "cuda":
                torch.cuda.synchronize()  # the runs' own streams do not wait for the copies of the images
            job = Job(about, sets, torch_device, stop, save_every, at_once, hold_of)
            in_turns([_make(job, plan) for plan in missing], at_once, torch_device)
        for plan in wanted:
            hold_of[plan.run.work].check()
            _copy(_work_files(plan.run, plan.variant.recipe), _places(plan.run, plan.variant.recipe))


def _check_start(plan: Plan) -> None:
    """Raise InputError if what a run starts from is not there."""
    if plan.start is not None:
        return
    if checkpoint := plan.variant.recipe.pretrained:
        pretrained.read_about(checkpoint.name)  # says what is missing
    elif parent := plan.variant.parent(plan.run.seed):
        raise InputError(f"{parent.record}: {plan.run.name} starts from {parent.name}, which has not been trained yet")


def _kept(plan: Plan) -> bool:
    """Whether a run is in place, record, tables and weights."""
    run = plan.run
    kept = plan.current and not plan.damage and vouches_for(run.record, run.checkpoints(plan.kept.values()))
    if kept:
        print(f"{run.name}: kept", flush=True)
    return kept


def _finished_elsewhere(plan: Plan) -> bool:
    """Whether a run need not be trained: its work folder holds it, or another study, from which it is copied there."""
    run, recipe = plan.run, plan.variant.recipe

    def in_work() -> bool:
        return is_result(run.work / "run.json", plan, _work_checkpoints(run, recipe))

    if in_work():
        print(f"{run.name}: finished before, not in place yet", flush=True)
        return True
    if not (twin := made_in_another_study(plan)):
        return False
    print(f"{run.name}: the same run as in study {twin.study}", flush=True)
    with suppress(FileNotFoundError):
        _copy(_places(twin, recipe), _work_files(run, recipe))
    return in_work()  # a workflow of that study may have been making it anew


@dataclass(frozen=True)
class Job:
    """What the runs of one training job share."""

    about: dict[str, Any]
    sets: dict[str, ImageSet]
    device: torch.device
    stop: StopSignal
    save_every: float
    at_once: int
    hold_of: dict[Path, Hold]  #: by a run's work folder


def _make(job: Job, plan: Plan) -> Iterator[None]:
    """Train one run, from its resume file if there is a good one, and write its files to the work folder.

    Yields after every step and every epoch, so that several runs can take turns.
    """
    run, hold = plan.run, job.hold_of[plan.run.work]
    network = new_network(plan.variant, run, job.about, job.device)
    trainer = Trainer(plan.variant.recipe, network, job.sets, run.seed)
    (run.work / "run.json").unlink(missing_ok=True)  # of another recipe, or without its checkpoint
    resume_file = run.work / "resume"
    elapsed, interruptions = _resume(trainer, resume_file, plan)
    started = saved = time.monotonic()

    def spent() -> float:
        return elapsed + time.monotonic() - started

    def save() -> None:
        hold.check()
        plain = {"device": job.device.type, "elapsed": spent(), "interruptions": interruptions}
        resume.save(resume_file, trainer.state(), {"identity": plan.identity} | plain)

    for epoch_ended in trainer.steps():
        if epoch_ended:
            _report(trainer, run, spent())
        elif job.stop.number:
            save()
            raise Interrupted(f"{run.name}: saved in epoch {trainer.progress.epoch + 1}")
        elif time.monotonic() - saved >= job.save_every:
            save()
            saved = time.monotonic()
        yield
    timing = {"wall_s": round(spent(), 3), "interruptions": interruptions, "at_once": job.at_once}
    timing["attempt"] = hold.number  # of processes that held the run
    hold.check()
    _write_run(trainer, plan, job.about, timing)
    resume_file.unlink(missing_ok=True)


def _resume(trainer: Trainer, file: Path, plan: Plan) -> tuple[float, int]:
    """Continue from ``file`` if it is whole and of this run; returns seconds spent and interruptions so far."""
    name = plan.run.name
    if not file.exists():
        print(f"{name}: starting", flush=True)
        return 0.0, 0
    loaded = resume.load(file)
    device = trainer.loss_sum.device.type
    if loaded is None or difference(loaded[1]["identity"], plan.identity) or loaded[1]["device"] != device:
        why = "damaged" if loaded is None else "of another recipe, version, data or device"
        print(f"{name}: {file} is {why}; starting again", flush=True)
        return 0.0, 0
    state, plain = loaded
    trainer.load_state(state)
    where = trainer.progress
    print(f"{name}: resuming in epoch {where.epoch + 1} after step {where.step}", flush=True)
    return plain["elapsed"], plain["interruptions"] + 1


def _report(trainer: Trainer, run: Run, spent: float) -> None:
    """One line for the log and a small file for ``status``."""
    progress = trainer.progress
    last = progress.history[-1] if progress.history else {}
    print(
        f"{run.name}: epoch {progress.epoch}/{trainer.epochs} monitored {last.get('monitored', float('nan')):.2f} "
        f"best {progress.best_metric:.2f} in epoch {progress.best_epoch}, {spent / progress.epoch:.2f} s/epoch",
        flush=True,
    )
    state: dict[str, float] = {"epoch": progress.epoch, "epochs": trainer.epochs, "best_epoch": progress.best_epoch}
    state |= {"patience": trainer.patience, "wall_s": round(spent, 3), "written": time.time()}
    write_json(run.work / "progress.json", state)


def _write_run(trainer: Trainer, plan: Plan, about: dict[str, Any], timing: dict[str, Any]) -> None:
    """Checkpoints, history and record into the work folder; the record last, so that it vouches for the rest."""
    progress, run, recipe = trainer.progress, plan.run, plan.variant.recipe
    epochs = {"best": progress.best_epoch, "last": progress.epoch}
    rows = {key: next((row for row in progress.history if row["epoch"] == n), {}) for key, n in epochs.items()}
    measured: dict[str, Any] = {}
    checkpoints = _work_checkpoints(run, recipe)
    for selection, name in plan.kept.items():
        weights, row, file = trainer.weights(selection), rows[selection], checkpoints[name]
        with replacing(file) as part:
            save_file({k: v.detach().contiguous().cpu() for k, v in weights.items()}, part, {"run": run.name})
        accuracies, oscillations = MEASURED[selection]
        measured[accuracies] = {key[8:]: value for key, value in row.items() if key.startswith("val_acc_")}
        measured[oscillations] = {key: value for key, value in row.items() if key.startswith(COUNTED)}
        measured[f"{name}_sha256"] = file_hash(file)
    tables = epoch_tables(trainer)
    for name, text in tables.items():
        write_text(run.work / name, text)
    record = plan.identity | {
        "recipe": recipe.plain(),
        "start": plan.start,
        "data": {"name": about["name"], "source": about["source"], "sha256": about["sha256"]},
        "split": _about_split(trainer, about, recipe),
        "status": progress.status,
        "best_epoch": progress.best_epoch,
        "epochs_run": progress.epoch,
        "steps_per_epoch": trainer.steps_per_epoch,
        "monitored": rows["best"].get("monitored"),
        **measured,
        TABLES: {name: sha256(text.encode()) for name, text in tables.items()},
        "quantizer": trainer.quantizer and _about_quantizer(trainer.quantizer),
        "environment": environment(trainer.loss_sum.device, recipe),
        "timing": timing | {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    write_json(run.work / "run.json", sealed(record))


def _about_split(trainer: Trainer, about: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """How many images each set has, which were held out; and of reduced sets how many of each class were drawn."""
    held_out = split_indices(about["train"], recipe.validation, recipe.split_seed)[1]
    split: dict[str, Any] = {name: len(images) for name, images in trainer.sets.items()}
    if recipe.images:
        classes = len(recipe.classes or about["classes"])
        split["per_class"] = {name: images_per_class(images, classes) for name, images in trainer.sets.items()}
    return split | {"validation_sha256": sha256(np.ascontiguousarray(held_out, dtype="<i8").tobytes())[:16]}


def _about_quantizer(quantizer: WeightQuantizer) -> dict[str, Any]:
    """How the weights are quantized at the target bits."""
    return {
        "grid": quantizer.grid_name,
        "levels": quantizer.grid.levels,
        "calibration": quantizer.scale.kind,
    }


def epoch_tables(trainer: Trainer) -> dict[str, str]:
    """The files of what a run did in every epoch."""
    progress = trainer.progress
    tables = {
        "history.csv": _csv(progress.history, ["epoch"]),
        "layers.csv": _csv(progress.layers, ["epoch", "layer"]),
    }
    return tables | ({WEIGHTS: _csv(progress.histograms, ["epoch"])} if trainer.recipe.histograms else {})


def _csv(rows: list[dict[str, Any]], first: list[str]) -> str:
    columns = first + [key for key in dict.fromkeys(k for row in rows for k in row) if key not in first]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _work_checkpoints(run: Run, recipe: Recipe) -> dict[str, Path]:
    """The checkpoints of a finished run in its work folder, by name."""
    return {name: run.work / f"model{CHECKPOINTS[name]}" for name in recipe.training.kept.values()}


def _work_files(run: Run, recipe: Recipe) -> list[Path]:
    """The files of a finished run in its work folder."""
    files = run_files(recipe.histograms is not None)
    return [*_work_checkpoints(run, recipe).values(), *(run.work / name for name in files)]


def _places(run: Run, recipe: Recipe) -> list[Path]:
    """Where each of them is put."""
    files, checkpoints = run_files(recipe.histograms is not None), run.checkpoints(recipe.training.kept.values())
    return [*checkpoints.values(), *(run.folder / name for name in files)]


def _copy(sources: list[Path], targets: list[Path]) -> None:
    for source, target in zip(sources, targets):
        with replacing(target) as part:
            shutil.copyfile(source, part)


def remove_work(run: Run) -> None:
    """Delete the work folder of a run that is in place."""
    shutil.rmtree(run.work, ignore_errors=True)
    remove_empty(run.work.parent)
