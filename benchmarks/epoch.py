"""An epoch of MLP5 on CIFAR-10's shape against other loops: python benchmarks/epoch.py [--threads 1 2]

``dataloader``: PIL image, ToTensor, Normalize per item, DataLoader with 2 workers, autograd parametrization;
``one process``: the same without workers; ``preloaded``: normalised float tensors in memory, the same autograd;
``official``: the authors' package in the loop of its notebook, on the images of ``one process``, where a checkout of
saintslab/OsciQuant is on PYTHONPATH. Training only. Ours counts oscillations; they do not.
"""

from __future__ import annotations

import argparse
import statistics
from importlib.util import find_spec

import torch
from common import MEAN, METHODS, STD, alternate, our_trainer, ratio, report, stand_in
from naive import NaiveTrainer, OfficialTrainer, image_loader

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


def other_epoch(make_trainer, method, batches):
    torch.manual_seed(0)
    trainer = make_trainer(models.build(MODEL, (3, 32, 32), 10), method)

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
    with_workers, one_process = (image_loader(numpy_images, labels.numpy(), MEAN, STD, 128, count) for count in (2, 0))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    ready = (images.float() / 255 - mean) / std

    def preloaded():
        order = torch.randperm(len(labels))
        for indices in order.split(128):
            yield ready[indices], labels[indices]

    others = {
        "preloaded": (NaiveTrainer, preloaded),
        "dataloader": (NaiveTrainer, lambda: with_workers),
        "one process": (NaiveTrainer, lambda: one_process),
    }
    if find_spec("osciquant"):
        others["official"] = (OfficialTrainer, lambda: one_process)
    candidates = {}
    for method in OURS:
        candidates[f"{method}|ours"] = our_epoch(method, (about, tensors))
        for form, (make_trainer, batches) in others.items():
            candidates[f"{method}|{form}"] = other_epoch(make_trainer, method, batches)
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
    rows = [row for threads in options.threads for row in measure(threads, options.rounds)]
    report("epoch.csv", rows, key=("method", "form", "threads"))


if __name__ == "__main__":
    main()
