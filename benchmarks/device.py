"""One run and many at once on a GPU: python benchmarks/device.py [--runs 1 4 7]

Milliseconds per optimizer step of ResNet-18 and MLP5 at batch 128, counters on, in every precision: ours with so many
runs taking turns on streams of their own (time per run and step), the obvious autograd form, and the bare floor
(forward and backward pass of the network with one fused Adam step). Writes benchmarks/results/device.csv;
``--device cpu`` tries the benchmark itself.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from common import METHODS, RECIPE, alternate, make_trainer, report, stand_in
from naive import NaiveTrainer
from steps import repeat

from oscillations import models
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.jobs.turns import in_turns
from oscillations.study.variants import recipe_of

COMPARED = ("fp", "qat flow", "osciquant official_code")


def together(trainers, batch_size: int, steps: int, device: torch.device):
    """All trainers take ``steps`` steps in turn, as the runs of a training job do."""

    def task(trainer):
        train = trainer.sets["train"]
        order = train.order(0, 0)
        for i in range(steps):
            trainer.step(*train.batch(order[i * batch_size : (i + 1) * batch_size]))
            yield

    return lambda: in_turns([task(trainer) for trainer in trainers], len(trainers), device)


def bare(network, x, y):
    """Forward, backward and a fused Adam step on one batch that lies ready."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def run():
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return run


def in_precision(step, precision: str, device: torch.device):
    """One step with its products in the precision (ours does that itself)."""

    def run(*batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            step(*batch)

    return run


def complete(run, device: torch.device):
    """``run``, ended on the device."""

    def completed():
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return completed


def measure(model: dict, precision: str, runs: list[int], kind: str, rounds: int, steps: int, batch_size: int) -> list:
    training = RECIPE["training"] | {"precision": precision, "batch_size": batch_size}
    base = RECIPE | {"training": training, "model": model, "quant_layers": ["*"]}
    device = set_up_torch(1, precision, kind)
    about, tensors = stand_in(10_000 + steps * batch_size)
    sets = image_sets(about, tensors, recipe_of(base | {"method": {"name": "baseline"}}), device)
    candidates, abouts = {}, []

    def add(method: str, form: str, count: int, run) -> None:
        candidates[len(candidates)] = complete(run, device)
        abouts.append({"method": method, "form": form, "runs": count})

    def network():
        return models.build(model, (3, 32, 32), 10).to(device, memory_format=torch.channels_last)

    for method in COMPARED:
        recipe = recipe_of(base | {"method": METHODS[method][1]})
        for count in runs:
            trainers = [make_trainer(recipe, seed, about, sets, device) for seed in range(count)]
            add(method, "ours", count, together(trainers, batch_size, steps, device))
        naive = NaiveTrainer(network(), METHODS[method][0]["method"])
        add(method, "naive", 1, repeat(in_precision(naive.step, precision, device), sets["train"], batch_size, steps))
    step = in_precision(bare(network(), *sets["train"].batch(slice(0, batch_size))), precision, device)
    add("fp", "bare", 1, lambda: [step() for _ in range(steps)])
    times = alternate(candidates, rounds)
    return [
        {"model": model["name"], "batch_size": batch_size, "device": kind, "precision": precision}
        | about
        | {"ms_per_run_and_step": round(1e3 * statistics.median(times[i]) / steps / about["runs"], 3), "rounds": rounds}
        for i, about in enumerate(abouts)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 7])
    parser.add_argument("--models", nargs="+", default=["mlp5", "resnet18"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    rows = [
        row
        for model in options.models
        for precision in options.precision
        for row in measure(
            {"name": model}, precision, options.runs, options.device, options.rounds, options.steps, options.batch_size
        )
    ]
    report("device.csv", rows)


if __name__ == "__main__":
    main()
