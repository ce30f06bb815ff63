"""What a study costs: measured seconds per step and per evaluated image, times how many it needs.

``benchmarks/cost.py`` measures the steps of a study's workloads on a machine. A workload that was not measured has
no prediction, and GPU-hours come from a measured GPU step only.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from oscillations import datasets
from oscillations.core.files import canonical_json
from oscillations.engine.recipe import Recipe
from oscillations.posttraining import ReconstructionOptions
from oscillations.records.identity import meaning
from oscillations.records.plans import Plan
from oscillations.study.paths import COST, MEMORY, PUBLISHED
from oscillations.study.schema import ExportEntry, PostTrainingEntry
from oscillations.study.variants import Variant

UNMEASURED_MB, UNMEASURED_MINUTES = 4000, 720  #: of a job, and of a training, of which nothing was measured
UNMEASURED_SHORT = 240  #: minutes of another job
LONGEST_MINUTES = 1440  #: what any job asks for at most: a training that takes longer goes on in its next attempt
START_MINUTES = 10  #: that every job asks for, however little it does
RECONSTRUCTION = 4  #: steps of training for an iteration of all units: the dearest method's mean, of MLP5 at 32 x 32
EXPORT_PASSES, EXPORT_SECONDS = 3, 60  #: an export's over the training images for a width, and beside them for a run
COST_NOTHING = ("bits", "lambda", "preset", "reg_reduction", "reg_half", "reg_when", "select_metric")


def workload(recipe: Recipe) -> str:
    """What decides the time of a step, as one string: runs with equal workloads take equally long steps.

    By meaning: an option that is added later leaves the others' names as they are.
    """
    whole = meaning(recipe.plain())
    decisive: dict[str, Any] = {
        key: whole[key] for key in ("resize", "model", "quant_layers", "threads") if key in whole
    }
    decisive |= {"activations": True} if "activations" in whole else {}
    decisive |= {"images": list(datasets.find(recipe.data).IMAGE_SHAPE)}
    decisive |= {key: whole["training"][key] for key in ("batch_size", "precision") if key in whole["training"]}
    decisive |= {key: value for key, value in whole["method"].items() if key not in COST_NOTHING}
    return canonical_json(decisive | ({"regularized": True} if recipe.method.get("lambda") else {}))


def footprint(recipe: Recipe, **job: Any) -> str:
    """What decides the memory of a training, as one string; ``job``: what decides that of another job."""
    whole = meaning(recipe.plain())
    images = [*map(round, _images(recipe)), *datasets.find(recipe.data).IMAGE_SHAPE]
    decisive = {"images": images, "model": whole["model"], "batch_size": recipe.training.batch_size}
    return canonical_json(decisive | {key: whole[key] for key in ("resize", "activations") if key in whole} | job)


def posttraining_footprint(recipe: Recipe, entry: PostTrainingEntry) -> str:
    """What decides the memory of an entry's job on runs of a recipe."""
    options = [options for _, _, options in entry.resolved()]
    images, inputs = max(one.images for one in options), any(one.activations for one in options)
    about = {"images": images, "inputs": inputs, "reconstructs": entry.reconstructs}
    return footprint(recipe, posttraining=about)


def export_footprint(recipe: Recipe) -> str:
    """What decides the memory of an export of a recipe's runs."""
    return footprint(recipe, exports=True)


def read_memory(file: Path = MEMORY) -> dict[str, int]:
    """Measured peak megabytes of a process by :func:`footprint`; empty if nothing was measured."""
    if not file.exists():
        return {}
    with file.open(newline="") as rows:
        return {row["footprint"]: int(row["peak_mb"]) for row in csv.DictReader(rows)}


@dataclass(frozen=True)
class Speed:
    """Seconds of one training step (counters on) and of one evaluated image, on some machine."""

    machine: str
    step: float
    image: float
    ratio_to_fp: float | None = None  # of the step, where both were measured in turn


def read_speeds(file: Path = COST) -> dict[tuple[str, str], Speed]:
    """Measured speeds by workload and kind of device (``cpu`` or ``cuda``); empty if nothing was measured."""
    if not file.exists():
        return {}
    with file.open(newline="") as rows:
        return {
            (row["workload"], row["device_kind"]): Speed(
                row["machine"],
                float(row["step_ms"]) / 1e3,
                float(row["image_ms"]) / 1e3,
                float(row["ratio_to_fp"]) if row.get("ratio_to_fp") else None,
            )
            for row in csv.DictReader(rows)
        }


def epoch_seconds(recipe: Recipe, speed: Speed) -> float:
    """Seconds of one epoch: its training steps, and the validation at every evaluation bit."""
    train, validation = _images(recipe)
    steps = math.ceil(train / recipe.training.batch_size)
    return steps * speed.step + validation * len(recipe.eval_bits) * speed.image


def _images(recipe: Recipe) -> tuple[float, float]:
    """Training and validation images of a recipe, where every class has equally many."""
    module = datasets.find(recipe.data)
    share = 1 if recipe.classes is None else len(recipe.classes) / len(module.CLASSES)
    train, validation = (module.TRAIN_IMAGES - recipe.validation) * share, recipe.validation * share
    if (images := recipe.images) is None:
        return train, validation
    return min(train, images.train), min(validation, images.validation)


def expected_epochs(variant: Variant, finished: Iterable[int], published: dict[tuple, float]) -> tuple[float, str]:
    """Epochs of one run, and where the number is from: this variant's finished runs, the paper, or the limit."""
    training, method = variant.recipe.training, variant.recipe.method
    if finished := list(finished):
        return mean(finished), "finished runs"
    setting = {"sweep": "scratch"}.get(variant.recipe.setting, variant.recipe.setting)
    key = variant.recipe.model.name, setting, method.name, variant.recipe.bits
    if key in published:
        return min(published[key] + training.patience, training.epochs), "paper + patience"
    return training.epochs, "limit"


def published_epochs(file: Path = PUBLISHED) -> dict[tuple, float]:
    """Mean best epoch in the paper by model, setting, method and train bits."""
    found: dict[tuple, float] = {}
    with file.open(newline="") as rows:
        for row in csv.DictReader(rows):
            if row["epochs"] and not row["lambda"]:
                key = row["model"], row["setting"], row["method"], int(row["train_bits"])
                found.setdefault(key, float(row["epochs"]))
    return found


@dataclass
class Cost:
    """Predicted cost of one experiment; hours are None where a workload was not measured."""

    experiment: str
    runs: int = 0
    epochs: float = 0.0  # of all runs
    core_hours: float | None = 0.0
    gpu_hours: float | None = 0.0
    sources: tuple[str, ...] = ()

    def row(self) -> dict[str, str]:
        """For people."""
        return {
            "Experiment": self.experiment,
            "runs": str(self.runs),
            "epochs a run": f"{self.epochs / self.runs:.0f} ({', '.join(self.sources)})",
            "core-hours": "unmeasured" if self.core_hours is None else f"{self.core_hours:.2f}",
            "GPU-hours": "unmeasured" if self.gpu_hours is None else f"{self.gpu_hours:.2f}",
        }


def predict(plans: list[Plan], judged: bool) -> list[Cost]:
    """Cost of every experiment among the planned runs, all from their start.

    ``judged``: whether the study's networks are the paper's, whose published epochs then count.
    """
    costs: dict[str, Cost] = {}
    speeds = read_speeds()
    published = published_epochs() if judged else {}
    by_variant: dict[str, list[Plan]] = {}
    for plan in plans:
        by_variant.setdefault(plan.variant.path, []).append(plan)
    for runs in by_variant.values():
        variant = runs[0].variant
        cost = costs.setdefault(variant.experiment, Cost(variant.experiment))
        finished = [plan.result["epochs_run"] for plan in runs if plan.current]
        epochs, source = expected_epochs(variant, finished, published)
        cost.runs += len(runs)
        cost.epochs += len(runs) * epochs
        cost.sources = tuple(dict.fromkeys((*cost.sources, source)))
        work = workload(variant.recipe)
        for hours, kind, units in (("core_hours", "cpu", variant.recipe.threads), ("gpu_hours", "cuda", 1)):
            speed = speeds.get((work, kind))
            before = getattr(cost, hours)
            if speed is None or before is None:
                setattr(cost, hours, None)
            else:
                seconds = len(runs) * epochs * epoch_seconds(variant.recipe, speed)
                setattr(cost, hours, before + seconds * units / 3600)
    return list(costs.values())


def job_memory_mb(recipes: Iterable[Recipe], of: Callable[[Recipe], str] = footprint) -> int:
    """What a job over these recipes asks a cluster for: half as much again as was measured, 4 GB where nothing was.

    ``of``: the job's footprint. A job that was not measured itself counts for twice a training. Measured on the CPU: a
    job on a GPU needs more beside its device, and asks for what was not measured.
    """
    measured = read_memory()
    peaks = [measured.get(of(recipe)) or 2 * measured.get(footprint(recipe), 0) for recipe in recipes]
    return max(round(1.5 * peak) if peak else UNMEASURED_MB for peak in peaks)


def job_minutes(cost: Cost, runs: int, threads: int, gpu: bool) -> int:
    """Minutes that a job of some runs asks for: three times what is predicted; half a day if unknown.

    Too few lose nothing: a training that meets its limit saves itself and goes on in the next attempt.
    """
    hours = cost.gpu_hours if gpu else cost.core_hours
    if hours is None:
        return UNMEASURED_MINUTES
    return _asked(3 * 3600 * hours / (1 if gpu else threads) * runs / cost.runs)


def evaluation_minutes(variants: Iterable[Variant], rules: int, gpu: bool) -> int:
    """Minutes that a job asks for which evaluates all runs of some variants; four hours if a speed is unknown.

    For every width and rule as many images as the dataset has to train on, whatever part of them a recipe takes: of
    CIFAR-10 twice what is looked at where batch norm is re-estimated, too.
    """
    weights = [(variant.recipe, len(variant.seeds) * len(variant.recipe.training.kept)) for variant in variants]
    return _minutes([(recipe, n * len(recipe.eval_bits) * rules, 0) for recipe, n in weights], gpu)


def posttraining_minutes(entry: PostTrainingEntry, variants: Iterable[Variant], gpu: bool) -> int:
    """Minutes that a job asks for which quantizes all runs of an entry's variants; four hours if a speed is unknown.

    For every method and width what an evaluation looks at, and :data:`RECONSTRUCTION` steps for every iteration.
    """
    options = [options for _, _, options in entry.resolved()]
    iterations = sum(one.iterations for one in options if isinstance(one, ReconstructionOptions))
    results = [(variant.recipe, len(variant.seeds) * len(entry.bits)) for variant in variants]
    return _minutes([(recipe, n * len(options), n * RECONSTRUCTION * iterations) for recipe, n in results], gpu)


def export_minutes(entry: ExportEntry, variants: Iterable[Variant]) -> int:
    """Minutes that a job asks for which writes and measures an entry's files, on the CPU; four hours if unknown."""
    runs = [(one.recipe, sum(entry.takes(one.path, seed) for seed in one.seeds)) for one in variants]
    passes = [(recipe, n * EXPORT_PASSES * (1 + len(entry.bits)), 0) for recipe, n in runs]
    return _minutes(passes, gpu=False, beside=EXPORT_SECONDS * sum(n for _, n in runs))


def _minutes(work: list[tuple[Recipe, int, int]], gpu: bool, beside: float = 0.0) -> int:
    """Minutes for recipes' passes over the dataset's training images and steps, by measured speeds."""
    speeds, seconds = read_speeds(), beside
    for recipe, passes, steps in work:
        speed = speeds.get((workload(recipe), "cuda" if gpu else "cpu"))
        if speed is None:
            return UNMEASURED_SHORT
        seconds += passes * datasets.find(recipe.data).TRAIN_IMAGES * speed.image + steps * speed.step
    return _asked(seconds)


def _asked(seconds: float) -> int:
    return min(LONGEST_MINUTES, START_MINUTES + math.ceil(seconds / 60))


def machines() -> str:
    """Where the speeds were measured."""
    found = sorted({speed.machine for speed in read_speeds().values()})
    return "; ".join(found) or "nothing measured yet (python benchmarks/cost.py)"
