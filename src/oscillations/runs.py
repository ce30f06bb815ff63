"""Training jobs: all seeds of a variant in one process, each kept, resumed or made; records and checkpoints.

A finished seed stays in the run's work folder, which no rule declares, until every seed of the variant is
there; then all are copied into place. So whatever is interrupted, and whatever Snakemake deletes of a failed
job, no finished seed is trained twice. ``evaluate`` removes the work folders of runs that are in place.
"""

from __future__ import annotations

import csv
import io
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from oscillations import datasets, resume
from oscillations import weights as pretrained
from oscillations.batches import ImageSet, image_sets, split_indices
from oscillations.device import in_turns, set_up_torch
from oscillations.errors import InputError, Interrupted
from oscillations.files import file_hash, read_json, replacing, sha256, write_json, write_text
from oscillations.quantizer import WeightQuantizer
from oscillations.records import is_current
from oscillations.study import Run, Variant
from oscillations.training import Trainer, make_trainer

DATA = Path("data")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "snakemake", "dvc")
FILES = ("history.csv", "layers.csv", "run.json")  # the record last: it vouches for the rest


class StopSignal:
    """Remembers SIGTERM and SIGINT, so that training stops after the step in progress."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: Any) -> None:
        self.number = number


def train(variant: Variant, *, device: str = "auto", save_every: float = 30.0, at_once: int = 1) -> None:
    """Make every seed of a variant that is not there yet, then put all into place.

    ``save_every``: seconds between resume files. ``at_once``: runs that take turns, step by step; on a GPU each
    has a stream of its own. Raises Interrupted after SIGTERM or SIGINT.
    """
    stop = StopSignal()
    torch_device = set_up_torch(variant.recipe, device)
    about, tensors = datasets.read(variant.recipe["data"], DATA)
    missing: list[tuple[Run, dict[str, Any]]] = []
    for run in variant.runs():
        identity = run_identity(variant, run, about)
        if is_current(run.record, identity) and _whole(run.checkpoint, run.record):
            print(f"{run.name}: kept", flush=True)
        elif is_current(run.work / "run.json", identity) and _whole(
            run.work / "model.safetensors", run.work / "run.json"
        ):
            print(f"{run.name}: finished before, not in place yet", flush=True)
        elif twin := made_in_another_study(run, identity):
            print(f"{run.name}: the same run as in study {twin.study}", flush=True)
            _copy(_places(twin), _work_files(run))
        else:
            missing.append((run, identity))
    if missing:
        at_once = min(at_once, len(missing))
        sets = image_sets(about, tensors, variant.recipe, torch_device)
        if torch_device.type == "cuda":
            torch.cuda.synchronize()  # the runs' own streams do not wait for the copies of the images
        job = Job(variant, about, sets, torch_device, stop, save_every, at_once)
        in_turns([_make(job, run, identity) for run, identity in missing], at_once, torch_device)
    for run in variant.runs():
        if is_current(run.work / "run.json", run_identity(variant, run, about)):
            _put_in_place(run)


def run_identity(variant: Variant, run: Run, about: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this run: a record with another identity is not its result."""
    start = start_of(variant, run)
    return {
        "run": run.name,
        "seed": run.seed,
        "recipe": variant.recipe,
        "fingerprint": variant.fingerprint,
        "data_sha256": about["sha256"],
        "start_sha256": start and start["sha256"],
    }


def made_in_another_study(run: Run, identity: dict[str, Any]) -> Run | None:
    """A finished run of another study that is this very run: same name, recipe, code, data and seed."""
    for record in sorted(Path("results").glob(f"*/runs/{run.name}/run.json")):
        twin = replace(run, study=record.parts[1])
        if is_current(record, identity) and _whole(twin.checkpoint, record):
            return twin
    return None


def start_of(variant: Variant, run: Run) -> dict[str, Any] | None:
    """Where a run's first weights are from, with their hash; None if it starts from scratch."""
    if checkpoint := variant.recipe["pretrained"]:
        about = pretrained.read_about(checkpoint["name"])
        return {key: about[key] for key in ("name", "trained_on", "verified", "label", "sha256")}
    parent = variant.parent(run.seed)
    if parent is None:
        return None
    if not parent.record.exists():
        raise InputError(f"{parent.record}: {run.name} starts from {parent.name}, which has not been trained yet")
    record = read_json(parent.record)
    own = {"name": parent.name, "trained_on": record["data"]["name"], "verified": False, "label": parent.experiment}
    return own | {"sha256": record["checkpoint_sha256"]}


def _whole(checkpoint: Path, record: Path) -> bool:
    return checkpoint.exists() and file_hash(checkpoint) == read_json(record)["checkpoint_sha256"]


@dataclass(frozen=True)
class Job:
    """What the runs of one training job share."""

    variant: Variant
    about: dict[str, Any]
    sets: dict[str, ImageSet]
    device: torch.device
    stop: StopSignal
    save_every: float
    at_once: int


def _make(job: Job, run: Run, identity: dict[str, Any]) -> Iterator[None]:
    """Train one run, from its resume file if there is a good one, and write its files to the work folder.

    Yields after every step and every epoch, so that several runs can take turns.
    """
    trainer = new_trainer(job.variant, run, job.about, job.sets, job.device)
    run.work.mkdir(parents=True, exist_ok=True)
    (run.work / "run.json").unlink(missing_ok=True)  # of another recipe, or without its checkpoint
    resume_file = run.work / "resume"
    elapsed, interruptions = _resume(trainer, resume_file, identity, run.name)
    started = saved = time.monotonic()

    def spent() -> float:
        return elapsed + time.monotonic() - started

    def save() -> None:
        plain = {"device": job.device.type, "elapsed": spent(), "interruptions": interruptions}
        resume.save(resume_file, trainer.state(), {"identity": identity} | plain)

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
    _write_run(trainer, run, identity | {"start": start_of(job.variant, run)}, job.about, timing)
    resume_file.unlink(missing_ok=True)


def new_trainer(
    variant: Variant, run: Run, about: dict[str, Any], sets: dict[str, ImageSet], device: torch.device
) -> Trainer:
    """The trainer of a run at its start, filled from the weights it starts from."""
    start = None
    if checkpoint := variant.recipe["pretrained"]:
        start = pretrained.read(checkpoint["name"])
    elif parent := variant.parent(run.seed):
        start = load_checkpoint(parent)
    return make_trainer(variant.recipe, run.seed, about, sets, device, start)


def _resume(trainer: Trainer, file: Path, identity: dict[str, Any], name: str) -> tuple[float, int]:
    """Continue from ``file`` if it is whole and of this run; returns seconds spent and interruptions so far."""
    if not file.exists():
        print(f"{name}: starting", flush=True)
        return 0.0, 0
    loaded = resume.load(file)
    device = trainer.loss_sum.device.type
    if loaded is None or loaded[1]["identity"] != identity or loaded[1]["device"] != device:
        why = "damaged" if loaded is None else "of another recipe, code, data or device"
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
    state = {"epoch": progress.epoch, "epochs": trainer.epochs, "best_epoch": progress.best_epoch}
    state |= {"patience": trainer.patience, "wall_s": round(spent, 3), "written": time.time()}
    write_json(run.work / "progress.json", state)


def _write_run(
    trainer: Trainer, run: Run, identity: dict[str, Any], about: dict[str, Any], timing: dict[str, Any]
) -> None:
    """Checkpoint, history and record into the work folder; the record last, so that it vouches for the rest."""
    progress, work = trainer.progress, run.work
    weights = trainer.best or trainer.trained()
    with replacing(work / "model.safetensors") as part:
        save_file({k: v.detach().contiguous().cpu() for k, v in weights.items()}, part, {"run": run.name})
    for name, rows in epoch_tables(trainer).items():
        write_text(work / name, rows)
    recipe = identity["recipe"]
    held_out = split_indices(about["train"], recipe["validation"], recipe["split_seed"])[1]
    best = next((row for row in progress.history if row["epoch"] == progress.best_epoch), {})
    kinds = ("iteration_", "epoch_", "frequency_")
    record = identity | {
        "data": {"name": about["name"], "source": about["source"], "sha256": about["sha256"]},
        "split": {
            "train": len(trainer.sets["train"]),
            "validation": len(trainer.sets["validation"]),
            "test": len(trainer.sets["test"]),
            "validation_sha256": sha256(np.ascontiguousarray(held_out, dtype="<i8").tobytes())[:16],
        },
        "status": progress.status,
        "best_epoch": progress.best_epoch,
        "epochs_run": progress.epoch,
        "steps_per_epoch": trainer.steps_per_epoch,
        "monitored": best.get("monitored"),
        "validation_accuracy": {key[8:]: value for key, value in best.items() if key.startswith("val_acc_")},
        "oscillations_at_best": {key: value for key, value in best.items() if key.startswith(kinds)},
        "quantizer": trainer.quantizer and _about_quantizer(trainer.quantizer),
        "checkpoint_sha256": file_hash(work / "model.safetensors"),
        "environment": environment(trainer.loss_sum.device, recipe),
        "timing": timing | {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    write_json(work / "run.json", record)


def _about_quantizer(quantizer: WeightQuantizer) -> dict[str, Any]:
    """How the weights are quantized at the target bits."""
    return {
        "grid": quantizer.grid_name,
        "levels": quantizer.grid.levels,
        "calibration": quantizer.scale_source.removeprefix("dynamic_"),
    }


def epoch_tables(trainer: Trainer) -> dict[str, str]:
    """The files of what a run did in every epoch."""
    progress = trainer.progress
    return {
        "history.csv": _csv(progress.history, ["epoch"]),
        "layers.csv": _csv(progress.layers, ["epoch", "layer"]),
    }


def _csv(rows: list[dict[str, Any]], first: list[str]) -> str:
    columns = first + [key for key in dict.fromkeys(k for row in rows for k in row) if key not in first]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _put_in_place(run: Run) -> None:
    """Copy a finished run from its work folder to its declared paths."""
    _copy(_work_files(run), _places(run))


def _work_files(run: Run) -> list[Path]:
    """The files of a finished run in its work folder."""
    return [run.work / "model.safetensors", *(run.work / name for name in FILES)]


def _places(run: Run) -> list[Path]:
    """Where each of them is put."""
    return [run.checkpoint, *(run.folder / name for name in FILES)]


def _copy(sources: list[Path], targets: list[Path]) -> None:
    for source, target in zip(sources, targets):
        with replacing(target) as part:
            shutil.copyfile(source, part)


def load_checkpoint(run: Run) -> dict[str, torch.Tensor]:
    """The weights of a finished run, checked against its record."""
    if not _whole(run.checkpoint, run.record):
        raise InputError(
            f"{run.checkpoint}: missing, or not the checkpoint that {run.record} vouches for; "
            "bring it back with dvc checkout (or dvc pull), or delete the record and train again"
        )
    return load_file(run.checkpoint)


def remove_work(run: Run) -> None:
    """Delete the work folder of a run that is in place."""
    shutil.rmtree(run.work, ignore_errors=True)
    for parent in list(run.work.parents)[:3]:
        with suppress(OSError):  # not empty: other runs are at work
            parent.rmdir()


def environment(device: torch.device, recipe: dict[str, Any]) -> dict[str, Any]:
    """Where and with what a run was made."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "dtype": _dtype(recipe["training"]["precision"], device),
        "threads": recipe["threads"],
        "platform": platform.platform(),
        "git": git_state(),
    }


def _dtype(precision: str, device: torch.device) -> str:
    """What matrix products were computed in; a CPU has no TF32."""
    if precision == "tf32" and device.type == "cpu":
        return "float32"
    return {"fp32": "float32", "tf32": "float32 (TF32)", "bf16": "bfloat16"}[precision]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "params", "workflow", "Snakefile")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}
