"""Cost of one training step relative to full precision: python benchmarks/steps.py [--threads 1 2]

MLP5 on CIFAR-10's shape, batch 128, counters off unless named; in turn, medians of the ratios of one run.
``naive`` is the same method through autograd and torch.nn.utils.parametrize.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import METHODS, alternate, our_trainer, ratio, report, stand_in
from naive import NaiveTrainer

from oscillations import models

MODEL = {"name": "mlp5"}
STEPS = 10  # per measurement


def ours(trainer, counting=False):
    train = trainer.sets["train"]
    order = train.order(0, 0)

    def run():
        for i in range(STEPS):
            trainer.step(*train.batch(order[i * 128 : (i + 1) * 128]))
            if counting:
                trainer.counters["iteration"].tick(trainer.quantizer.codes)

    return run


def naive(method, data):
    name = METHODS[method]
    torch.manual_seed(0)
    model = models.build(MODEL, (3, 32, 32), 10)
    detach = "detach" in method or "paper_text" in method
    trainer = NaiveTrainer(
        model, {"baseline": "fp"}.get(name["name"], name["name"]), detach=detach, lam=name.get("lambda", 0.0),
        mean="official" in method,
    )  # fmt: skip
    train = our_trainer("fp", data, MODEL).sets["train"]
    order = train.order(0, 0)

    def run():
        for i in range(STEPS):
            trainer.step(*train.batch(order[i * 128 : (i + 1) * 128]))

    return run


def measure(threads: int, rounds: int) -> list[dict]:
    """Rows of all candidates, each round taking them in turn."""
    torch.set_num_threads(threads)
    data = stand_in(20_000)
    candidates = {f"{method}|ours": ours(our_trainer(method, data, MODEL)) for method in METHODS}
    counted = our_trainer("osciquant official_code", data, MODEL)
    candidates["osciquant official_code, counting|ours"] = ours(counted, counting=True)
    candidates |= {f"{method}|naive": naive(method, data) for method in METHODS}
    times = alternate(candidates, rounds)
    return [
        {
            "model": "mlp5",
            "batch_size": 128,
            "threads": threads,
            "method": key.split("|")[0],
            "form": key.split("|")[1],
            "median_ms": round(1e3 * statistics.median(times[key]) / STEPS, 2),
            "ratio_to_fp": round(ratio(times, key, "fp|ours"), 3),
            "rounds": rounds,
        }
        for key in candidates
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = [row for threads in options.threads for row in measure(threads, options.rounds)]
    report("steps.csv", rows)


if __name__ == "__main__":
    main()
