"""An epoch of MLP5 on CIFAR-10's shape against obvious loops: python benchmarks/epoch.py [--threads 1 2]

``dataloader``: PIL image, ToTensor, Normalize per item, DataLoader with 2 workers, autograd parametrization;
``one process``: the same without workers; ``preloaded``: normalised float tensors in memory, the same autograd.
Training only. Ours counts oscillations; they do not.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import MEAN, METHODS, STD, alternate, our_trainer, ratio, report, stand_in
from naive import NaiveTrainer, image_loader

from oscillations import models
from oscillations.engine.batches import split_indices
from oscillations.engine.determinism import set_up_torch

MODEL = {"name": "mlp5"}
OURS = {"fp": "fp", "qat": "qat flow", "osciquant": "osciquant official_code"}


def our_epoch(method, data):
    trainer = our_trainer(METHODS[OURS[method]][1], data, MODEL)
    trainer.end_epoch = lambda: None  # training only, as in the other loops

    def run():
        trainer.progress.step = 0
        for epoch_ended in trainer.steps():
            if epoch_ended:
                return

    return run


def naive_epoch(method, batches):
    torch.manual_seed(0)
    trainer = NaiveTrainer(models.build(MODEL, (3, 32, 32), 10), method)

    def run():
        for x, y in batches():
            trainer.step(x, y)

    return run


def measure(threads: int, rounds: int) -> list[dict]:
    """Rows of all loops, each round taking them in turn."""
    set_up_torch(threads, device="cpu")
    about, tensors = stand_in()
    train = split_indices(50_000, 10_000, 0)[0]
    images, labels = tensors["train_images"][train], tensors["train_labels"][train]
    numpy_images = images.permute(0, 2, 3, 1).numpy()
    loaders = {
        form: image_loader(numpy_images, labels.numpy(), MEAN, STD, 128, workers)
        for form, workers in (("dataloader", 2), ("one process", 0))
    }
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    ready = (images.float() / 255 - mean) / std

    def preloaded():
        order = torch.randperm(len(labels))
        for indices in order.split(128):
            yield ready[indices], labels[indices]

    candidates = {}
    for method in OURS:
        candidates[f"{method}|ours"] = our_epoch(method, (about, tensors))
        candidates[f"{method}|preloaded"] = naive_epoch(method, preloaded)
        for form, loader in loaders.items():
            candidates[f"{method}|{form}"] = naive_epoch(method, lambda loader=loader: loader)
    times = alternate(candidates, rounds, warmup=1)
    return [
        {
            "method": method,
            "form": form,
            "threads": threads,
            "median_s": round(statistics.median(times[f"{method}|{form}"]), 2),
            "ratio_to_ours": round(ratio(times, f"{method}|{form}", f"{method}|ours"), 2),
            "rounds": rounds,
        }
        for method, form in (key.split("|") for key in candidates)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    report("epoch.csv", [row for threads in options.threads for row in measure(threads, options.rounds)])


if __name__ == "__main__":
    main()
