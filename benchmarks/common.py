"""What the benchmarks share: stand-in data of CIFAR-10's shape, trainers, alternating timing, result tables."""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path

import torch

from oscillations.datasets import cifar10
from oscillations.engine.batches import ImageSet, image_sets
from oscillations.engine.training import Trainer
from oscillations.jobs.networks import make_network
from oscillations.records.environment import processor
from oscillations.study.variants import recipe_of

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parent / "results"
MEAN, STD = list(cifar10.MEAN), list(cifar10.STD)
RECIPE = {
    "data": "cifar10", "validation": 10_000, "eval_bits": [32],
    "training": {
        "optimizer": "adam", "lr": 3e-3, "schedule": "none", "batch_size": 128, "precision": "fp32", "epochs": 100,
        "patience": 10, "augment": "none",
    },
}  # fmt: skip

#: name -> what a table says of it, and its options in a study
METHODS = {
    "fp": ({"method": "fp", "scale_gradient": ""}, {"name": "baseline"}),
    "qat detach": ({"method": "qat", "scale_gradient": "detach"}, {"name": "qat", "bits": 3, "scale_grad": "detach"}),
    "qat flow": ({"method": "qat", "scale_gradient": "flow"}, {"name": "qat", "bits": 3}),
    "osciquant official_code": (
        {"method": "osciquant", "scale_gradient": "flow"}, {"name": "osciquant", "bits": 3, "lambda": 1.0},
    ),
    "osciquant paper_text": (
        {"method": "osciquant", "scale_gradient": "detach"},
        {"name": "osciquant", "bits": 3, "lambda": 1e-3, "preset": "paper_text"},
    ),
}  # fmt: skip


def stand_in(images: int = 50_000, dataset=cifar10) -> tuple[dict, dict]:
    """Random images of a dataset's shape: a step costs the same."""
    generator = torch.Generator().manual_seed(0)
    shape, classes = tuple(dataset.IMAGE_SHAPE), len(dataset.CLASSES)
    about = {
        "train": images, "test": 100, "classes": dataset.CLASSES, "image_shape": shape,
        "mean": list(dataset.MEAN), "std": list(dataset.STD),
    }  # fmt: skip
    tensors = {
        "train_images": torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator),
        "train_labels": torch.randint(0, classes, (images,), generator=generator),
        "test_images": torch.zeros(100, *shape, dtype=torch.uint8),
        "test_labels": torch.zeros(100, dtype=torch.int64),
    }
    return about, tensors


def make_trainer(recipe, seed: int, about: dict, sets: dict, device: torch.device) -> Trainer:
    """The trainer of a recipe, from new weights."""
    return Trainer(recipe, make_network(recipe, seed, about, device), sets, seed)


class Uncounted:
    """In the place of a counter: counts nothing."""

    def tick(self, codes: torch.Tensor) -> None:
        pass


def our_trainer(
    method: dict, data: tuple[dict, dict], model: dict, batch_size: int = 128, counting: bool = False
) -> Trainer:
    """A trainer of this project, that need not count oscillations; ``method`` holds its name and options."""
    training = RECIPE["training"] | {"batch_size": batch_size}
    recipe = recipe_of(RECIPE | {"model": model, "method": method, "quant_layers": ["*"], "training": training})
    about, tensors = data
    trainer = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, CPU), CPU)
    if trainer.quantizer is not None and not counting:
        trainer.counters["iteration"] = Uncounted()
    return trainer


def input_pipeline(images: ImageSet, batch_size: int):
    """Gathering and normalising one batch."""
    order = images.order(0, 0)
    return lambda: images.batch(order[:batch_size])


def alternate(
    candidates: dict[str, callable], rounds: int, warmup: int = 2, clock: callable = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turn, so that a drift of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + warmup):
        for name, run in candidates.items():
            start = clock()
            run()
            if round_ >= warmup:
                times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base]))


def machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}{gpu}, torch {torch.__version__}"


def report(file: str, rows: list[dict], key: tuple[str, ...] = ()) -> None:
    """Print the rows as a table and store them with the machine's description.

    With a ``key``, rows of the stored table whose key is not among the new ones stay.
    """
    rows = [row | {"machine": machine()} for row in rows]
    columns = list(rows[0])
    widths = [max(len(c), *(len(str(row[c])) for row in rows)) for c in columns]
    for line in [dict(zip(columns, columns)), *rows]:
        print("  ".join(str(line[c]).ljust(width) for c, width in zip(columns, widths)))
    RESULTS.mkdir(exist_ok=True)
    if key and (RESULTS / file).exists():
        with (RESULTS / file).open(newline="") as stored:
            new = {tuple(str(row[name]) for name in key) for row in rows}
            rows = [row for row in csv.DictReader(stored) if tuple(row[name] for name in key) not in new] + rows
    with (RESULTS / file).open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
