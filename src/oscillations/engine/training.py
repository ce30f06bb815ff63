"""The training engine: one loop for every method, early stopping, counters, and a state that resumes.

A method needs no autograd through the quantizer: the forward pass runs on the weights the method names, whose
gradients are the latent weights' gradients up to what the method adds in closed form. One pass over the
weights after each optimizer step serves the next forward pass, the gradients and the counters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from oscillations.core.bits import LATENT
from oscillations.engine.accuracy import accuracy, reestimated_norms
from oscillations.engine.annealing import learning_rate
from oscillations.engine.batches import ImageSet, crop_flip
from oscillations.engine.counters import TOTALS, counter
from oscillations.engine.determinism import random_state, set_random_state
from oscillations.engine.method import Moment, Tensors
from oscillations.engine.network import Network, under
from oscillations.engine.optimizer import OPTIMIZERS, weight_decays
from oscillations.engine.recipe import Recipe
from oscillations.engine.weight_statistics import grid_statistics, histogram, weight_statistics

FREQUENT = (0.005, 0.01, 0.1)  # thresholds on the oscillation frequency that are reported


@dataclass
class Progress:
    """Where a run stands; plain values only, so that it can be written as JSON."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch in progress
    best_epoch: int = 0
    best_metric: float = -1.0
    status: str = "running"  # then done or diverged
    history: list[dict] = field(default_factory=list)  # one row per finished epoch but one that diverges
    layers: list[dict] = field(default_factory=list)  # one row per finished epoch and quantized tensor
    histograms: list[dict] = field(default_factory=list)  # one row at the start and per finished epoch, if asked for


class Trainer:
    """Trains one network with one method; can be stopped and resumed after any step, bit for bit.

    ``recipe`` is that of a run, ``network`` as it starts, ``sets`` holds ``train`` and ``validation``.
    """

    def __init__(self, recipe: Recipe, network: Network, sets: dict[str, ImageSet], seed: int):
        self.recipe, self.network, self.sets, self.seed = recipe, network, sets, seed
        self.model, self.method, self.quantizer = network.model, network.method, network.quantizer
        training = recipe.training
        self.eval_bits = recipe.eval_bits
        apart = network.names if self.method.options.steps_weights else []
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if name not in apart]
        decays = weight_decays(named, training.weight_decay, training.decay)
        self.optimizer = OPTIMIZERS[training.optimizer]([parameter for _, parameter in named], training.lr, decays)
        self.stepped_apart = network.parameters if apart else []  #: what the method has an optimizer of its own for
        self.augment = training.augment == "crop_flip"
        self.half_precision = training.precision == "bf16"
        self.batch_size, self.epochs, self.patience = training.batch_size, training.epochs, training.patience
        self.steps_per_epoch = math.ceil(len(sets["train"]) / self.batch_size)
        self.progress = Progress()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=sets["train"].labels.device)
        self.best: dict[str, Tensor] = {}
        self.inputs = network.inputs
        if self.inputs is not None:
            assert recipe.activations is not None
            self.inputs.begin(recipe.activations.lr)
        if self.quantizer is not None:
            self.method.begin(self.quantizer)
            codes, sizes = self.quantizer.codes, self.quantizer.sizes
            self.counters = {
                "iteration": counter(codes, sizes),
                "epoch": counter(codes, sizes, momentum=None),
            }

    # -- one step ------------------------------------------------------------------------------------------

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step on a batch of normalised images ``x`` and labels ``y``, and the count of what it changed.

        Returns the batch's mean cross-entropy (a 0-dim tensor, so that nothing waits).
        """
        quantizer, method, moment = self.quantizer, self.method, self.moment()
        self.optimizer.lr = learning_rate(self.recipe.training, moment)
        parameters = self.network.parameters
        with self.network.holding(None if quantizer is None else method.forward_weights(quantizer)):
            with torch.autocast(x.device.type, torch.bfloat16) if self.half_precision else nullcontext():
                loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            for parameter in self.stepped_apart:
                parameter.grad = None
            method.loss(loss, parameters, moment).backward()  # dL/dq becomes the gradient of the latent parameter: STE
        if quantizer is None:
            self.optimizer.step()
        else:
            grads: Tensors = [parameter.grad for parameter in parameters]  # type: ignore[misc]  # all have one now
            method.after_backward(quantizer, grads, moment)
            method.step(self.optimizer, quantizer, moment)
            quantizer.update()
            self.counters["iteration"].tick(quantizer.codes)
        if self.inputs is not None:
            self.inputs.learn()
        return loss.detach()

    def moment(self) -> Moment:
        """Of the step that comes next."""
        epoch, step = self.progress.epoch, self.progress.step
        begun, ended = (epoch + steps / self.steps_per_epoch for steps in (step, step + 1))
        return Moment(begun / self.epochs, min(ended / self.epochs, 1.0))

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
        with self.exported():
            row = {"epoch": progress.epoch, "train_loss": loss, **self.validate()}
            metric = self.monitored(row)
            if metric > progress.best_metric:
                progress.best_metric, progress.best_epoch = metric, progress.epoch
                self.best = self._copied()
        row |= {"monitored": metric, **self.log_layers()}
        self.log_histogram()
        progress.history.append(row)
        if progress.epoch - progress.best_epoch >= self.patience or progress.epoch == self.epochs:
            progress.status = "done"

    def exported(self) -> AbstractContextManager[None]:
        """Inside it the network holds the weights that are validated and kept."""
        return nullcontext() if self.quantizer is None else self.method.exported(self.quantizer)

    def weights(self, selection: str) -> dict[str, Tensor]:
        """What a checkpoint holds: the weights of the ``best`` epoch, or the ``last``, as they are exported now.

        Before any epoch has ended the best are those that are trained.
        """
        if selection == "best":
            return self.best or self.network.trained()
        with self.exported():
            return self._copied()

    def _copied(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.network.trained().items()}

    def validate(self) -> dict[str, float]:
        """Validation accuracy (percent) with latent weights and at every evaluation bit, and the FP loss.

        The loss holds the method's penalty, if there is one.
        """
        row: dict[str, float] = {}
        validation = self.sets["validation"]
        with torch.no_grad():
            for bits in self.eval_bits:
                if bits == LATENT:
                    row["val_acc_32"], row["val_loss"] = accuracy(self.model, validation)
                    continue
                reestimated = self.method.options.reestimates_norms
                norms = reestimated_norms(self.model, self.sets["train"]) if reestimated else nullcontext()
                with self.network.at(bits), norms:
                    row[f"val_acc_{bits}"], _ = accuracy(self.model, validation)
            if self.quantizer is not None:
                penalty = self.method.penalty(self.quantizer, self.moment())
                row["val_loss"] += 0.0 if penalty is None else float(penalty)
        return row

    def monitored(self, row: dict[str, float]) -> float:
        """The validation accuracy that picks the best epoch (methods section 5.1)."""
        selection = self.method.options.selection
        if selection == "fp_val":
            return row["val_acc_32"]
        if selection == "quant_val_at_target":
            return row[f"val_acc_{self.method.bits}"]
        accuracies = [row[f"val_acc_{bits}"] for bits in self.eval_bits]
        return sum(accuracies) / len(accuracies)

    def log_layers(self) -> dict[str, float]:
        """Add one row per quantized tensor to ``layers``; return what the counters say of the network.

        Counts since the start of the training, and the shares of weights with a frequency above some thresholds.
        """
        progress = self.progress
        quantizer, rows = self.quantizer, []
        for i, (name, parameter) in enumerate(zip(self.network.names, self.network.parameters)):
            row = {"epoch": progress.epoch, "layer": name, "weights": parameter.numel()}
            row |= weight_statistics(parameter.data)
            if quantizer is not None:
                row |= grid_statistics(quantizer, i)
            rows.append(row)
        sums: dict[str, float] = {}
        if quantizer is not None:
            self.counters["epoch"].tick(quantizer.codes)
            for level, counts in self.counters.items():
                for kind, values in zip(TOTALS, counts.totals.tolist()):
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
        i = self.network.names.index(self.recipe.histograms)
        near = grid_statistics(self.quantizer, i)["near_threshold"]
        row = {"epoch": self.progress.epoch, "near_threshold": near}
        self.progress.histograms.append(row | {f"{u + 0.0:g}": n for u, n in histogram(self.quantizer, i).items()})

    # -- state ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        state = {f"trained/{key}": value for key, value in self.network.trained().items()}
        state |= {f"best/{key}": value for key, value in self.best.items()}
        state |= {f"optimizer/{key}": value for key, value in self.optimizer.state().items()}
        if self.quantizer is not None:
            for level, counts in self.counters.items():
                state |= {f"counter/{level}/{key}": value for key, value in counts.state().items()}
        state |= {f"method/{key}": value for key, value in self.method.state().items()}
        if self.inputs is not None:
            state |= {f"inputs/{key}": value for key, value in self.inputs.optimizer.state().items()}
        state["loss_sum"] = self.loss_sum
        state |= {f"random/{key}": value for key, value in random_state(self.loss_sum.is_cuda).items()}
        text = json.dumps(vars(self.progress)).encode()
        state["progress"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state` was taken."""
        device = self.loss_sum.device
        self.progress = Progress(**json.loads(state["progress"].numpy().tobytes()))
        self.network.load_trained(under(state, "trained/"))
        self.best = {key: value.to(device) for key, value in under(state, "best/").items()}
        self.optimizer.load_state(under(state, "optimizer/"))
        if self.quantizer is not None:
            for level, counts in self.counters.items():
                counts.load_state(under(state, f"counter/{level}/"))
        self.method.load_state({key: value.to(device) for key, value in under(state, "method/").items()})
        if self.inputs is not None:
            self.inputs.optimizer.load_state(under(state, "inputs/"))
        self.loss_sum.copy_(state["loss_sum"])
        set_random_state(under(state, "random/"))
