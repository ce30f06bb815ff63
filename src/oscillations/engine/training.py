"""The training engine: one loop for every method, early stopping, counters, and a state that resumes.

A method needs no autograd through the quantizer: the forward pass runs on the weights the method names, whose
gradients are the latent weights' gradients up to what the method adds in closed form. One pass over the
weights after each optimizer step serves the next forward pass, the gradients and the counters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oscillations.core.bits import LATENT
from oscillations.engine.accuracy import accuracy, reestimated_norms, weights_as
from oscillations.engine.batches import ImageSet, crop_flip
from oscillations.engine.counters import TOTALS, OscillationCounter
from oscillations.engine.determinism import random_state, set_random_state
from oscillations.engine.method import Method, Moment, Tensors
from oscillations.engine.optimizer import OPTIMIZERS
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.engine.recipe import Recipe
from oscillations.engine.weight_statistics import grid_statistics, histogram, weight_statistics

QUANTIZER = "quantizer/"  # begins the names of the quantizer's tensors in a checkpoint
FREQUENT = (0.005, 0.01, 0.1)  # thresholds on the oscillation frequency that are reported


@dataclass
class Progress:
    """Where a run stands; plain values only, so that it can be written as JSON."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch in progress
    best_epoch: int = 0
    best_metric: float = -1.0
    status: str = "running"  # then done or diverged
    history: list[dict] = field(default_factory=list)  # one row per finished epoch
    layers: list[dict] = field(default_factory=list)  # one row per finished epoch and quantized tensor
    histograms: list[dict] = field(default_factory=list)  # one row at the start and per finished epoch, if asked for


class Trainer:
    """Trains one network with one method; can be stopped and resumed after any step, bit for bit.

    ``recipe`` is that of a run; ``sets`` holds ``train`` and ``validation``;
    ``parameters`` are the quantized parameters by name. The model must be freshly built (or hold its
    pretrained weights).
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, method: Method, parameters: dict[str, Tensor],
        sets: dict[str, ImageSet], seed: int,
    ):  # fmt: skip
        self.recipe, self.model, self.method, self.sets, self.seed = recipe, model, method, sets, seed
        options, training = method.options, recipe.training
        self.eval_bits = recipe.eval_bits
        self.parameters = list(parameters.values())
        self.names = list(parameters)
        self.optimizer = OPTIMIZERS[training.optimizer](model.parameters(), lr=training.lr)
        self.lr, self.cosine = training.lr, training.schedule == "cosine"
        self.augment = training.augment == "crop_flip"
        self.half_precision = training.precision == "bf16"
        self.batch_size, self.epochs, self.patience = training.batch_size, training.epochs, training.patience
        self.steps_per_epoch = math.ceil(len(sets["train"]) / self.batch_size)
        self.metric = getattr(options, "select_metric", "fp_val")
        self.reestimate = getattr(options, "bn_eval", "keep") == "reestimate"
        self.tie, self.per_channel = getattr(options, "tie", "half_even"), getattr(options, "per_channel", False)
        self.progress = Progress()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=sets["train"].labels.device)
        self.best: dict[str, Tensor] = {}
        self.quantizer: WeightQuantizer | None = None
        if method.bits is not None:
            self.quantizer = method.make_quantizer(parameters)
            self.quantizer.update()
            codes, sizes = self.quantizer.codes, self.quantizer.sizes
            self.counters = {
                "iteration": OscillationCounter(codes, sizes),
                "epoch": OscillationCounter(codes, sizes, momentum=None),
            }

    # -- one step ------------------------------------------------------------------------------------------

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step on a batch; returns its cross-entropy (a tensor, so that nothing waits)."""
        quantizer, method, moment = self.quantizer, self.method, self.moment()
        if self.cosine:
            self.optimizer.lr = self.lr * (1 + math.cos(math.pi * moment.begun)) / 2
        values = None if quantizer is None else method.forward_weights(quantizer)
        with weights_as(self.parameters, values):
            with torch.autocast(x.device.type, torch.bfloat16) if self.half_precision else nullcontext():
                loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            method.loss(loss, self.parameters, moment).backward()
        if quantizer is None:
            self.optimizer.step()
        else:
            grads: Tensors = [parameter.grad for parameter in self.parameters]  # type: ignore[misc]  # all have one now
            method.after_backward(quantizer, grads, moment)
            method.step(self.optimizer, quantizer, moment)
            quantizer.update()
        return loss.detach()

    def moment(self) -> Moment:
        """Of the step that comes next."""
        epoch, step = self.progress.epoch, self.progress.step
        begun, ended = (epoch + steps / self.steps_per_epoch for steps in (step, step + 1))
        return Moment(begun / self.epochs, ended / self.epochs)

    # -- the run -------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[bool]:
        """Train until early stopping, the last epoch or divergence.

        Yields False after every optimizer step and True after every epoch's evaluation; between any two, the
        run can be saved and left.
        """
        progress, train = self.progress, self.sets["train"]
        if not progress.histograms:
            self.log_histogram()
        while progress.status == "running":
            order = train.order(self.seed, progress.epoch)
            self.model.train()
            while progress.step < self.steps_per_epoch:
                start = progress.step * self.batch_size
                x, y = train.batch(order[start : start + self.batch_size])
                self.loss_sum += self.step(crop_flip(x) if self.augment else x, y)
                if self.quantizer is not None:
                    self.counters["iteration"].tick(self.quantizer.codes)
                progress.step += 1
                yield False
            self.end_epoch()
            yield True

    def end_epoch(self) -> None:
        """Evaluate, log, keep the best weights, and decide whether to go on."""
        progress = self.progress
        loss = self.loss_sum.item() / self.steps_per_epoch
        progress.epoch, progress.step = progress.epoch + 1, 0
        self.loss_sum.zero_()
        if not math.isfinite(loss) or not all(p.isfinite().all() for p in self.model.parameters()):
            progress.status = "diverged"
            return
        with nullcontext() if self.quantizer is None else self.method.exported(self.quantizer):
            row = {"epoch": progress.epoch, "train_loss": loss, **self.validate()}
            metric = self.monitored(row)
            if metric > progress.best_metric:
                progress.best_metric, progress.best_epoch = metric, progress.epoch
                self.best = {key: value.clone() for key, value in self.trained().items()}
        row |= {"monitored": metric, **self.log_layers()}
        self.log_histogram()
        progress.history.append(row)
        if progress.epoch - progress.best_epoch >= self.patience or progress.epoch == self.epochs:
            progress.status = "done"

    def validate(self) -> dict[str, float]:
        """Validation accuracy (percent) with latent weights and at every evaluation bit, and the FP loss."""
        row: dict[str, float] = {}
        validation = self.sets["validation"]
        with torch.no_grad():
            for bits in self.eval_bits:
                if bits == LATENT:
                    row["val_acc_32"], row["val_loss"] = accuracy(self.model, validation)
                    continue
                with weights_as(self.parameters, self.quantized_weights(bits)):
                    if self.reestimate:
                        with reestimated_norms(self.model, self.sets["train"]):
                            row[f"val_acc_{bits}"], _ = accuracy(self.model, validation)
                    else:
                        row[f"val_acc_{bits}"], _ = accuracy(self.model, validation)
            if self.quantizer is not None:
                penalty = self.method.penalty(self.quantizer, self.moment())
                row["val_loss"] += 0.0 if penalty is None else float(penalty)
        return row

    def quantized_weights(self, bits: int) -> list[Tensor]:
        """q(w) at ``bits``: the method's own quantizer at its target, Eq. 2 everywhere else."""
        if self.quantizer is not None and bits == self.quantizer.bits:
            return self.quantizer.quantized
        return [quantize(parameter.data, bits, self.tie, self.per_channel) for parameter in self.parameters]

    def monitored(self, row: dict[str, float]) -> float:
        """The validation accuracy that picks the best epoch (methods section 5.1)."""
        if self.metric == "fp_val":
            return row["val_acc_32"]
        if self.metric == "quant_val_at_target":
            return row[f"val_acc_{self.method.bits}"]
        accuracies = [row[f"val_acc_{bits}"] for bits in self.eval_bits]
        return sum(accuracies) / len(accuracies)

    def log_layers(self) -> dict[str, float]:
        """Add one row per quantized tensor to ``layers``; return the counters' sums over the network."""
        progress = self.progress
        quantizer, rows = self.quantizer, []
        for i, (name, parameter) in enumerate(zip(self.names, self.parameters)):
            row = {"epoch": progress.epoch, "layer": name, "weights": parameter.numel()}
            row |= weight_statistics(parameter.data)
            if quantizer is not None:
                row |= grid_statistics(quantizer, i)
            rows.append(row)
        sums: dict[str, float] = {}
        if quantizer is not None:
            self.counters["epoch"].tick(quantizer.codes)
            for level, counter in self.counters.items():
                for kind, values in zip(TOTALS, counter.totals.tolist()):
                    for row, value in zip(rows, values):
                        row[f"{level}_{kind}"] = value
                    sums[f"{level}_{kind}"] = sum(values)
            frequency = self.counters["iteration"].frequency()
            per_layer = frequency.split(quantizer.sizes)
            for threshold in FREQUENT:
                key = f"frequency_above_{threshold}"
                for row, values in zip(rows, per_layer):
                    row[key] = (values > threshold).double().mean().item()
                sums[key] = (frequency > threshold).double().mean().item()
        progress.layers += rows
        return sums

    def log_histogram(self) -> None:
        """Add how the weights that the recipe names lie on their grid to ``histograms``, if it names any.

        A column for the centre of every bin, in steps (-0.0 is written 0), counts in it.
        """
        if self.recipe.histograms is None or self.quantizer is None:
            return
        i = self.names.index(self.recipe.histograms)
        near = grid_statistics(self.quantizer, i)["near_threshold"]
        row = {"epoch": self.progress.epoch, "near_threshold": near}
        self.progress.histograms.append(row | {f"{u + 0.0:g}": n for u, n in histogram(self.quantizer, i).items()})

    # -- state ---------------------------------------------------------------------------------------------

    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the network's state dict, and under ``quantizer/`` what its quantizer needs."""
        quantizer = {} if self.quantizer is None else self.quantizer.state()
        return self.model.state_dict() | {f"{QUANTIZER}{key}": value for key, value in quantizer.items()}

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Hold what :meth:`trained` gave, in place: the quantizer reads the weights where they lie."""
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                value.copy_(tensors[key])
        if self.quantizer is not None:
            self.quantizer.load_state(_under(tensors, QUANTIZER))
            self.quantizer.update()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        state = {f"trained/{key}": value for key, value in self.trained().items()}
        state |= {f"best/{key}": value for key, value in self.best.items()}
        state |= {f"optimizer/{key}": value for key, value in self.optimizer.state().items()}
        if self.quantizer is not None:
            for level, counter in self.counters.items():
                state |= {f"counter/{level}/{key}": value for key, value in counter.state().items()}
        state |= {f"method/{key}": value for key, value in self.method.state().items()}
        state["loss_sum"] = self.loss_sum
        state |= {f"random/{key}": value for key, value in random_state(self.loss_sum.is_cuda).items()}
        text = json.dumps(vars(self.progress)).encode()
        state["progress"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state` was taken."""

        device = self.loss_sum.device
        self.progress = Progress(**json.loads(state["progress"].numpy().tobytes()))
        self.load_trained(_under(state, "trained/"))
        self.best = {key: value.to(device) for key, value in _under(state, "best/").items()}
        self.optimizer.load_state(_under(state, "optimizer/"))
        if self.quantizer is not None:
            for level, counter in self.counters.items():
                counter.load_state(_under(state, f"counter/{level}/"))
        self.method.load_state({key: value.to(device) for key, value in _under(state, "method/").items()})
        self.loss_sum.copy_(state["loss_sum"])
        set_random_state(_under(state, "random/"))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
