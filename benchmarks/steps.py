"""Cost of one training step relative to full precision: python benchmarks/steps.py [--threads 1 2]

Counters off. In turn, medians of the ratios of one run. ``ours`` against the same method through autograd and
torch.nn.utils.parametrize (``naive``), and against the fake quantizers of torchao and Brevitas where they are
installed (``pip install -e .[bench]``). The rows of method ``floor`` are parts timed alone at the same shapes, ``ours,
quantization alone`` is what a method adds: a whole ResNet-18 step on a CPU varies by more than that.
"""

from __future__ import annotations

import argparse
import statistics
from importlib.util import find_spec

import torch
from common import METHODS, alternate, input_pipeline, our_trainer, ratio, report, stand_in
from naive import NaiveTrainer

from oscillations import models
from oscillations.core.bits import largest_code
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.method import Moment

LIBRARIES = [library for library in ("torchao", "brevitas") if find_spec(library)]


def repeat(step, train, batch_size: int, steps: int):
    """A function that makes ``steps`` steps on batches of ``train``."""
    order = train.order(0, 0)

    def run():
        for i in range(steps):
            step(*train.batch(order[i * batch_size : (i + 1) * batch_size]))

    return run


def naive_step(method: str, model: dict, form: str):
    about, options = METHODS[method]
    torch.manual_seed(0)
    network = models.build(model, (3, 32, 32), 10)
    return NaiveTrainer(
        network, about["method"], form=form, detach=about["scale_gradient"] == "detach",
        lam=options.get("lambda", 0.0), mean="official" in method,
    ).step  # fmt: skip


def quantization(trainer):
    """What a method adds to a step, alone: its gradient terms and the pass over the weights."""
    grads = [torch.randn_like(weight) for weight in trainer.quantizer.weights]

    def part(x, y):
        trainer.method.after_backward(trainer.quantizer, grads, Moment(0.0, 0.0))
        trainer.quantizer.update()

    return part


def floors(trainer, batch_size: int):
    """Parts of an MLP's step timed alone: its matrix products, a fused Adam step, and one quantizing pass."""
    layers = [module for module in trainer.model if isinstance(module, torch.nn.Linear)]
    weights = [layer.weight.detach().clone() for layer in layers]
    inputs = [torch.randn(batch_size, w.shape[1]) for w in weights]
    grads = [torch.randn(batch_size, w.shape[0]) for w in weights]
    parameters = [p.detach().clone().requires_grad_() for p in trainer.model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    codes = [torch.empty(w.shape, dtype=torch.int8) for w in weights]
    quantized = [torch.empty_like(w) for w in weights]

    def products():
        for i, (x, w, grad) in enumerate(zip(inputs, weights, grads)):
            x @ w.t()
            grad.t() @ x
            if i:  # the images need no gradient
                grad @ w

    def quantize():
        for w, q, c in zip(weights, quantized, codes):
            low, high = torch.aminmax(w)
            scale = torch.maximum(high, -low) / largest_code(3)
            c.copy_(torch.div(w, scale, out=q).round_())
            q.mul_(scale)

    return {"matrix products": products, "fused adam": adam.step, "aminmax and one quantizing pass": quantize}


def whole_step(about: dict) -> bool:
    return about["method"] != "floor" and "alone" not in about["form"]


def measure(model: dict, batch_size: int, threads: int, rounds: int, steps: int) -> list[dict]:
    """Rows of all candidates, each round taking them in turn."""
    set_up_torch(threads, device="cpu")
    data = stand_in(10_000 + steps * batch_size)
    candidates, abouts = {}, {}

    def add(about: dict, form: str, run) -> None:
        key = len(candidates)
        candidates[key], abouts[key] = run, about | {"form": form}

    for method, (about, options) in METHODS.items():
        trainer = our_trainer(options, data, model, batch_size)
        about = about | {"preset": method.partition(" ")[2] if "osci" in method else ""}
        add(about, "ours", repeat(trainer.step, trainer.sets["train"], batch_size, steps))
        if about["method"] != "fp":
            add(about, "ours, quantization alone", repeat(quantization(trainer), trainer.sets["train"], 0, steps))
        step = naive_step(method, model, "naive")
        add(about, "naive", repeat(step, trainer.sets["train"], batch_size, steps))
    for library in LIBRARIES:
        about = METHODS["qat detach" if library == "torchao" else "qat flow"][0] | {"preset": ""}
        step = naive_step("qat flow", model, library)
        add(about, library, repeat(step, trainer.sets["train"], batch_size, steps))
    alone = {"input pipeline": input_pipeline(trainer.sets["train"], batch_size)}
    if model["name"] == "mlp5":
        alone |= floors(our_trainer(METHODS["fp"][1], data, model, batch_size), batch_size)
    for name, part in alone.items():
        add(
            {"method": "floor", "scale_gradient": "", "preset": ""},
            name,
            lambda part=part: [part() for _ in range(steps)],
        )
    times = alternate(candidates, rounds, warmup=2 if steps > 1 else 1)
    fp = 1e3 * statistics.median(times[0]) / steps
    rows = []
    for key, about in abouts.items():
        median = 1e3 * statistics.median(times[key]) / steps
        rows.append(
            {"model": model["name"], "batch_size": batch_size, "threads": threads} | about
            | {
                "median_ms": round(median, 3), "ratio_to_fp": round(ratio(times, key, 0), 3),
                "overhead_ms": round(median - fp, 3) if whole_step(about) else "", "rounds": rounds,
            }
        )  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        rows += measure({"name": "mlp5"}, 128, threads, options.rounds, steps=10)
    rows += measure({"name": "resnet18"}, 128, max(options.threads), max(options.rounds // 7, 3), steps=1)
    report("steps.csv", rows)


if __name__ == "__main__":
    main()
