"""Seconds per training step and per evaluated image of a study's workloads.

    python benchmarks/cost.py [--study NAME ...] [--only EXPERIMENTS] [--steps N] [--images N]
    python benchmarks/cost.py --check STUDY

``check``, ``status`` and the site predict core-hours from them. Runs with equal workloads
(``oscillations.records.cost``) are measured once, counters on, evenly over the parts of a training, taking turns within
a model; the image time is that of one evaluation bit, and ``ratio_to_fp`` a step's cost beside the model's
full-precision step in the same turns.
Workloads measured before keep their rows until they are measured again. The second form sets the prediction against
the wall times of the study's finished runs (benchmarks/results/cost_check.csv).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace

import torch
from common import RESULTS, alternate, make_trainer, ratio, report, stand_in

from oscillations import datasets
from oscillations.engine.accuracy import accuracy
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.records import cost
from oscillations.records.plans import current, plans
from oscillations.study.paths import study_file
from oscillations.study.reading import load
from oscillations.study.variants import Variant, select


def measure(variants: list, rounds: int, steps: int, images: int) -> list[dict]:
    """Rows of the distinct workloads of one model."""
    candidates, abouts = {}, {}
    for variant in variants:
        recipe = variant.recipe
        device = set_up_torch(recipe.threads, recipe.training.precision)
        batch_size, module = recipe.training.batch_size, datasets.find(recipe.data)
        about, tensors = stand_in(images + steps * batch_size, module)
        recipe = replace(recipe, validation=images, classes=None)
        trainer = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, device), device)
        key = cost.workload(variant.recipe)
        candidates |= {
            f"step {key}": whole_training(trainer, batch_size, steps),
            f"image {key}": evaluating(trainer),
        }
        abouts[key] = {
            "model": recipe.model.name, "image": "x".join(map(str, about["image_shape"])),
            "batch_size": batch_size, "method": recipe.method.name,
            "scale_gradient": recipe.method.get("scale_grad", ""), "threads": recipe.threads,
            "device_kind": device.type,
        }  # fmt: skip
    alone = device.type == "cpu" and recipe.threads == 1  # then its processor time, whatever else the machine does
    times = alternate(candidates, rounds, clock=time.process_time if alone else time.perf_counter)
    baseline = next((f"step {key}" for key, about in abouts.items() if about["method"] == "baseline"), None)
    return [
        about
        | {
            "ratio_to_fp": round(ratio(times, f"step {key}", baseline), 3) if baseline else "",
            "step_ms": round(1e3 * statistics.median(times[f"step {key}"]) / steps, 3),
            "image_ms": round(1e3 * statistics.median(times[f"image {key}"]) / images, 4),
            "rounds": rounds,
            "workload": key,
        }
        for key, about in abouts.items()
    ]


def ended(trainer):
    """A step as the engine makes it, ended on the device."""

    def step(x, y):
        trainer.model.train()
        trainer.step(x, y)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def whole_training(trainer, batch_size: int, steps: int):
    """A function that makes steps of every part of a training, evenly: what begins late counts by its share."""
    start = {key: value.clone() for key, value in trainer.state().items()}
    train, step = trainer.sets["train"], ended(trainer)
    order = train.order(0, 0)

    def run():
        trainer.load_state(start)
        for i in range(steps):
            trainer.progress.epoch = int((i + 0.5) / steps * trainer.epochs)
            step(*train.batch(order[i * batch_size : (i + 1) * batch_size]))

    return run


def evaluating(trainer):
    return lambda: accuracy(trainer.model, trainer.sets["validation"])


def check(name: str) -> list[dict]:
    """Predicted against real seconds of the finished runs of a study, per variant."""
    _, variants = load(study_file(name))
    speeds, rows = cost.read_speeds(cost.COST), []
    finished = current(plans(variants))
    for variant in variants:
        records = [plan.record for plan in finished if plan.variant.path == variant.path]
        records = [record for record in records if record["timing"]["at_once"] == 1]
        kind = "cpu" if records and records[0]["environment"]["device"] == "cpu" else "cuda"
        speed = speeds.get((cost.workload(variant.recipe), kind))
        if not records or speed is None:
            continue
        epochs = sum(record["epochs_run"] for record in records)
        predicted = epochs * cost.epoch_seconds(variant.recipe, speed)
        real = sum(record["timing"]["wall_s"] for record in records)
        rows.append(
            {
                "study": name, "variant": variant.path, "runs": len(records), "epochs": epochs,
                "predicted_s": round(predicted, 1), "real_s": round(real, 1), "ratio": round(predicted / real, 3),
            }
        )  # fmt: skip
    if not rows:
        sys.exit(f"{name}: no run that trained alone is current and has a measured workload: nothing to compare")
    total = {key: round(sum(row[key] for row in rows), 1) for key in ("runs", "epochs", "predicted_s", "real_s")}
    ratio = round(total["predicted_s"] / total["real_s"], 3)
    return [*rows, {"study": name, "variant": "all"} | total | {"ratio": ratio}]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", nargs="+", default=["paper", "quick"])
    parser.add_argument("--only", help="experiments (or experiment/variant), comma-separated")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12, help="of a round; fewer for methods without phases, if long")
    parser.add_argument("--images", type=int, default=500, help="evaluated at once")
    parser.add_argument("--check", metavar="STUDY", help="only compare with the finished runs of this study")
    options = parser.parse_args()
    os.chdir(RESULTS.parent.parent)  # studies and records are found from the project's root
    if options.check:
        report("cost_check.csv", check(options.check))
        return
    models: dict[str, dict[str, Variant]] = {}
    for name in options.study:
        for variant in select(*load(study_file(name)), options.only or "all").variants:
            of_model = models.setdefault(f"{name} {variant.recipe.model.plain()}", {})
            of_model.setdefault(cost.workload(variant.recipe), variant)
    rows = [
        row
        for found in models.values()
        for row in measure(list(found.values()), options.rounds, options.steps, options.images)
    ]
    report("cost.csv", rows, key=("workload", "device_kind"))


if __name__ == "__main__":
    main()
