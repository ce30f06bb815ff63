"""What the benchmarks share: stand-in data of CIFAR-10's shape, trainers, alternating timing, result tables."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from pathlib import Path

import torch

from oscillations.batches import image_sets
from oscillations.datasets import cifar10
from oscillations.training import Trainer, make_trainer

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results"
MEAN, STD = list(cifar10.MEAN), list(cifar10.STD)
RECIPE = {
    "validation": 10_000, "split_seed": 0, "classes": None, "resize": None, "eval_bits": [32],
    "training": {"lr": 3e-3, "batch_size": 128, "precision": "fp32", "epochs": 100, "patience": 10},
}  # fmt: skip
METHODS = {
    "fp": {"name": "baseline"},
    "qat detach": {"name": "qat", "bits": 3, "scale_grad": "detach"},
    "qat flow": {"name": "qat", "bits": 3},
    "osciquant official_code": {"name": "osciquant", "bits": 3, "lambda": 1.0},
    "osciquant paper_text": {"name": "osciquant", "bits": 3, "lambda": 1e-3, "preset": "paper_text"},
}


def stand_in(images: int = 50_000) -> tuple[dict, dict]:
    """Random images of CIFAR-10's shape: a step costs the same."""
    generator = torch.Generator().manual_seed(0)
    about = {
        "train": images, "test": 100, "classes": cifar10.CLASSES, "image_shape": cifar10.IMAGE_SHAPE,
        "mean": MEAN, "std": STD,
    }  # fmt: skip
    tensors = {
        "train_images": torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "train_labels": torch.randint(0, 10, (images,), generator=generator),
        "test_images": torch.zeros(100, 3, 32, 32, dtype=torch.uint8),
        "test_labels": torch.zeros(100, dtype=torch.int64),
    }
    return about, tensors


def our_trainer(method: str, data: tuple[dict, dict], model: dict, batch_size: int = 128) -> Trainer:
    recipe = RECIPE | {"model": model, "method": METHODS[method], "quant_layers": ["*"]}
    recipe["training"] = recipe["training"] | {"batch_size": batch_size}
    about, tensors = data
    return make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, CPU), CPU)


def alternate(candidates: dict[str, callable], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turn, so that a drift of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + warmup):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if round_ >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base]))


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, torch {torch.__version__}"


def report(file: str, rows: list[dict]) -> None:
    """Print the rows as a table and store them with the machine's description."""
    rows = [row | {"machine": machine()} for row in rows]
    columns = list(rows[0])
    widths = [max(len(c), *(len(str(row[c])) for row in rows)) for c in columns]
    for line in [dict(zip(columns, columns)), *rows]:
        print("  ".join(str(line[c]).ljust(width) for c, width in zip(columns, widths)))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / file).open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
