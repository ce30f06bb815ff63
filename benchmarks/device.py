"""One run and many at once on a GPU: python benchmarks/device.py [--runs 1 2 4 8] [--graphs]

Milliseconds per optimizer step of ResNet-18 and MLP5 at batch 128, counters on, in every precision: ours with so many
runs taking turns on streams of their own (time per run and step), the obvious autograd form, and the bare network
(forward and backward pass with one fused Adam step). ``--graphs``: a step on a batch that lies ready, launched as ever
and replayed as a CUDA graph (in which the clock of schedules and counters stands still: it measures what a graph would
save, and trains nothing); where it cannot be one, with the network's passes through torch.compile. The rest of a step
cannot go through it: ``backward()`` breaks its tracing off inside the block that exchanges the weights, and Adam's
fused kernel, called by itself, is an internal error of torch 2.11. ``floor_ms``: the step's multiplications at the
speed of this device's large matrix products, or the optimizer's traffic at the speed of its large copies, whichever is
more. Each candidate is measured by itself; where one cannot be, ``note`` says why. Writes
benchmarks/results/device.csv, row by row; ``--device cpu`` tries the benchmark itself.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import textwrap
import time

import torch
import torch.nn.functional as F
from common import METHODS, RECIPE, alternate, make_trainer, report, stand_in
from naive import NaiveTrainer
from steps import repeat
from torch.utils.flop_counter import FlopCounterMode

from oscillations import models
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.jobs.turns import in_turns
from oscillations.study.variants import recipe_of

KEY = ("model", "batch_size", "device", "precision", "method", "form", "runs")  # of a row
COMPARED = ("fp", "qat flow", "osciquant official_code")
TRAFFIC = 8  #: float32 numbers that a step moves per weight: weight, gradient, Adam's averages, each read and written


def together(trainers, batch_size: int, steps: int, device: torch.device, ready: bool = False):
    """All trainers take ``steps`` steps in turn, as the runs of a job do; ``ready``: on a batch that lies there."""

    def task(trainer):
        train = trainer.sets["train"]
        order, batch = train.order(0, 0), train.batch(slice(0, batch_size))
        for i in range(steps):
            trainer.step(*batch if ready else train.batch(order[i * batch_size : (i + 1) * batch_size]))
            yield

    return lambda: in_turns([task(trainer) for trainer in trainers], len(trainers), device)


def replayed(trainers, batch_size: int, steps: int, device: torch.device):
    """As :func:`together` on a ready batch, each step one CUDA graph. Raises RuntimeError if it cannot be one."""

    def step_without_waiting(trainer, batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.step(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def captured(trainer):
        batch = trainer.sets["train"].batch(slice(0, batch_size))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, and memory is at hand
            for _ in range(3):
                trainer.step(*batch)
            step_without_waiting(trainer, batch)  # or it fails here: a failed capture leaves torch in disorder
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                trainer.step(*batch)
        except RuntimeError as error:  # the end of a failed capture fails, too, and says less
            raise (error.__context__ or error) from None
        return graph

    def task(graph):
        for _ in range(steps):
            graph.replay()
            yield

    graphs = [captured(trainer) for trainer in trainers]
    return lambda: in_turns([task(graph) for graph in graphs], len(graphs), device)


def compiled(trainers, batch_size: int, steps: int, device: torch.device):
    """As :func:`together` on a ready batch, forward and backward pass of every network through torch.compile."""
    torch.compiler.reset()  # what other candidates have compiled
    for trainer in trainers:
        trainer.model = torch.compile(trainer.model, fullgraph=True)
    return together(trainers, batch_size, steps, device, ready=True)


def fastest(run, device: torch.device) -> float:
    """Seconds of the fastest of ten."""
    times = []
    for _ in range(11):
        start = time.perf_counter()
        complete(run, device)()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def speeds(precision: str, device: torch.device) -> tuple[float, float]:
    """Operations per second of large matrix products in the precision, and bytes per second of a large copy."""
    size, numbers = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.rand(size, size).to(device, dtype) for _ in range(2))  # a failed capture stops the GPU's generator
    source, target = (torch.zeros(numbers, device=device) for _ in range(2))
    operations = 2 * size**3 / fastest(lambda: a @ b, device)
    return operations, 2 * 4 * numbers / fastest(lambda: target.copy_(source), device)


def floor(network, x, y, operations: float, bandwidth: float) -> float:
    """Seconds of a step's multiplications at a speed of operations, or of the optimizer's traffic at a bandwidth."""
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(network(x), y).backward()
    weights = sum(parameter.numel() for parameter in network.parameters())
    return max(counted.get_total_flops() / operations, 4 * TRAFFIC * weights / bandwidth)


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


def said(error: Exception) -> str:
    """What a row says of an error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return textwrap.shorten(str(error).partition("\n")[0], 100) or type(error).__name__


def measured(make, rounds: int, device: torch.device) -> tuple[list[float], str]:
    """Seconds of what ``make`` returns; or none, and why. The rest of a benchmark goes on, whatever it was."""
    if device.type == "cuda":  # room: what was measured before may lie in cycles
        gc.collect()
        torch.cuda.empty_cache()
    try:
        return alternate({"": complete(make(), device)}, rounds)[""], ""
    except Exception as error:
        return [], said(error)


def measure(
    model: dict, precision: str, runs: list[int], kind: str, rounds: int, steps: int, batch_size: int, graphs: bool
):
    """A row of every candidate as soon as it is measured, one after another: few runs lie in the device's memory."""
    training = RECIPE["training"] | {"precision": precision, "batch_size": batch_size}
    base = RECIPE | {"training": training, "model": model, "quant_layers": ["*"]}
    device = set_up_torch(1, precision, kind)
    about, tensors = stand_in(10_000 + steps * batch_size)
    sets = image_sets(about, tensors, recipe_of(base | {"method": {"name": "baseline"}}), device)
    batch = sets["train"].batch(slice(0, batch_size))

    def network():
        return models.build(model, (3, 32, 32), 10).to(device, memory_format=torch.channels_last)

    least = floor(network(), *batch, *speeds(precision, device))

    def row(method, form, count, make):
        times, note = measured(make, rounds, device)
        ms = round(1e3 * statistics.median(times) / steps / count, 3) if times else ""
        return {
            "model": model["name"], "batch_size": batch_size, "device": kind, "precision": precision,
            "method": method, "form": form, "runs": count, "ms_per_run_and_step": ms,
            "floor_ms": round(1e3 * least, 4), "rounds": rounds, "note": note,
        }  # fmt: skip

    def ours(method, form, count, take_steps, **options):
        recipe = recipe_of(base | {"method": METHODS[method][1]})

        def make():
            trainers = [make_trainer(recipe, seed, about, sets, device) for seed in range(count)]
            return take_steps(trainers, batch_size, steps, device, **options)

        return row(method, form, count, make)

    def naive(method):
        def make():
            trainer = NaiveTrainer(network(), METHODS[method][0]["method"])
            return repeat(in_precision(trainer.step, precision, device), sets["train"], batch_size, steps)

        return row(method, "naive", 1, make)

    def bare_steps():
        step = in_precision(bare(network(), *batch), precision, device)
        return lambda: [step() for _ in range(steps)]

    for method in COMPARED:
        for count in runs:
            if graphs:
                yield ours(method, "ours, one batch", count, together, ready=True)
                yield (graph := ours(method, "ours, one batch, as a graph", count, replayed))
                if graph["note"]:
                    yield ours(method, "ours, one batch, compiled", count, compiled)
            else:
                yield ours(method, "ours", count, together)
        if not graphs:
            yield naive(method)
        if not graphs and method == "fp":
            yield row(method, "bare", 1, bare_steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=["mlp5", "resnet18"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--graphs", action="store_true", help="measure CUDA graphs, and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    sizes = (options.rounds, options.steps, options.batch_size)
    for model in options.models:
        for precision in options.precision:
            for row in measure({"name": model}, precision, options.runs, options.device, *sizes, options.graphs):
                report("device.csv", [row], key=KEY)  # at once: the device may be lent for minutes


if __name__ == "__main__":
    main()
