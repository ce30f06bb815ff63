"""What counting oscillations adds to a step: python benchmarks/counters.py [--threads 1 2]

MLP5, batch 128, all totals of every step, as the engine counts them. Each method first trains for an epoch, so that
its weights move as often as they do in a run (``changed_percent`` of them per step). Two trainers with the same weights
take turns, one counting. ``bytes_per_weight`` is the counter's state.
"""

from __future__ import annotations

import argparse
import statistics

from common import METHODS, alternate, our_trainer, ratio, report, stand_in
from steps import repeat

from oscillations.engine.determinism import set_up_torch

STEPS = 10  # per measurement


def prepared(method: str, data, warm_up: int, counting: bool):
    """A trainer after some steps."""
    trainer = our_trainer(METHODS[method][1], data, {"name": "mlp5"}, counting=counting)
    repeat(trainer.step, trainer.sets["train"], 128, warm_up)()
    return trainer


def measure(threads: int, rounds: int, warm_up: int) -> list[dict]:
    set_up_torch(threads, device="cpu")
    data, rows = stand_in(10_000 + 128 * warm_up), []
    for method, (about, _) in METHODS.items():
        if about["method"] == "fp":
            continue
        plain, counted = (prepared(method, data, warm_up, counting) for counting in (False, True))
        counter = counted.counters["iteration"]
        train = plain.sets["train"]
        candidates = {
            "off": repeat(plain.step, train, 128, STEPS),
            "on": repeat(counted.step, train, 128, STEPS),
        }
        times = alternate(candidates, rounds)
        off, on = (1e3 * statistics.median(times[name]) / STEPS for name in ("off", "on"))
        weights = len(counter.codes)
        state = sum(value.numel() * value.element_size() for value in counter.state().values() if len(value) == weights)
        rows.append(
            about
            | {
                "preset": method.partition(" ")[2] if about["method"] == "osciquant" else "", "threads": threads,
                "off_ms": round(off, 3), "on_ms": round(on, 3),
                "added_percent": round(100 * (ratio(times, "on", "off") - 1), 1),
                "changed_percent": round(100 * counter.totals[0].sum().item() / weights / counter.ticks, 2),
                "bytes_per_weight": state / weights, "rounds": rounds,
            }
        )  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=313, help="steps before measuring")
    options = parser.parse_args()
    report(
        "counters.csv",
        [row for threads in options.threads for row in measure(threads, options.rounds, options.warm_up)],
    )


if __name__ == "__main__":
    main()
