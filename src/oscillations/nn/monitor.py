"""Counting oscillations in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oscillations.core.bits import Grid, grid_of
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.engine import forms
from oscillations.engine.counters import TOTALS, OscillationCounter, counter
from oscillations.engine.layers import layer_of
from oscillations.engine.quantizer import WeightQuantizer, rounded
from oscillations.engine.scales import Scale, max_scale
from oscillations.engine.weight_statistics import grid_statistics, histogram
from oscillations.nn.fake_quantize import fake_quantizers
from oscillations.nn.latent import check_bits, check_weight, latent_weights, refuse_changed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

IN_CACHE = 262_144  #: weights whose codes a CPU computes at a time
AT_ONCE = 2_097_152  #: weights that are counted at once, of several tensors; of one they all are
FREQUENT = (0.005, 0.01, 0.1)  #: frequencies of oscillation, per step, above which the table tells the share


class OscillationMonitor:
    """Counts how often weights change their code, and how often back: ``monitor.step()`` after every optimizer step.

    Weights of fake-quantized layers are counted on their own grid and width, all others on Eq. 1-2's at ``bits``,
    whether or not anything quantizes them. ``layers`` and ``exclude`` are patterns of layer names; ``momentum`` and
    ``timeout`` are the counters' (methods.md section 4): the weight of a step in the frequency, and the quiet steps
    that end a run. State: 6 bytes a weight, where the weights lie. Raises InputError.

    >>> model = torch.nn.Linear(4, 2)
    >>> monitor = OscillationMonitor(model, bits=3)
    >>> monitor.step()
    >>> monitor.table().crossings.tolist()
    [0]
    """

    def __init__(
        self, model: nn.Module, bits: int = 3, *, layers: Sequence[str] = ("*",), exclude: Sequence[str] = (),
        per_channel: bool = False, momentum: float = 0.01, timeout: int | None = None,
    ):  # fmt: skip
        check_bits(bits)
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 < momentum < 1:
            raise InputError(f"momentum: {shortened(momentum)} is not between 0 and 1")
        if timeout is not None and (type(timeout) is not int or timeout < 1):
            raise InputError(f"timeout: {shortened(timeout)} is no number of steps")
        self._model = model
        self.bits, self.per_channel = bits, per_channel
        self._grid = grid_of("sym_odd", bits)
        self._options: dict[str, Any] = {"momentum": momentum, "timeout": timeout}
        self._weights = latent_weights(model, layers, exclude)
        quantizers = fake_quantizers(model)
        self._own = {name: quantizers.get(layer_of(name)) for name in self._weights}
        self._groups = grouped({name: weight.numel() for name, weight in self._weights.items()})
        self._counters: list[OscillationCounter] = []
        self._place()

    def _place(self) -> None:
        """Make buffers and counters where the weights lie now; what was counted is kept."""
        for name, weight in self._weights.items():
            check_weight(weight, name)
        self._at = [weight.data_ptr() for weight in self._weights.values()]
        self._latent: dict[str, Tensor] = {name: weight.data for name, weight in self._weights.items()}
        one, sizes = next(iter(self._latent.values())), [list(group.values()) for group in self._groups]
        self._codes = torch.empty(max(map(sum, sizes)), dtype=torch.int8, device=one.device)  # of one group at a time
        largest = max(map(max, sizes))
        self._steps = steps = one.new_empty(largest if forms.dense(one) else min(largest, IN_CACHE))
        # weights, buffer, codes: views made once, since each call between matrix products costs microseconds
        self._pieces: dict[str, list[tuple[Tensor, Tensor | None, Tensor]]] = {}
        for group, sizes_of_group in zip(self._groups, sizes):
            for name, codes in zip(group, self._codes[: sum(sizes_of_group)].split(sizes_of_group)):
                latent, scale = self._latent[name], self._scale(name)
                if latent.is_contiguous() and (isinstance(scale, float) or not scale.dim()):
                    parts = zip(latent.view(-1).split(len(steps)), codes.split(len(steps)))
                    self._pieces[name] = [(some, steps[: len(some)], their_codes) for some, their_codes in parts]
                else:
                    self._pieces[name] = [(latent, None, codes.view(latent.shape))]
        before = self._counters
        self._counters = [
            counter(self._codes_of(group), sizes, **self._options) for group, sizes in zip(self._groups, sizes)
        ]
        for counts, kept in zip(self._counters, before):
            counts.load_state(kept.state())

    def _codes_of(self, group: dict[str, int]) -> Tensor:
        """Codes of a group's weights, int8, one tensor after another; the next group takes the buffer over."""
        for name in group:
            own, scale = self._own[name], self._scale(name)
            for weights, steps, codes in self._pieces[name]:
                if own is None:
                    steps = torch.div(weights, scale, out=steps)
                    codes.copy_(rounded(steps, "half_even", out=steps))
                else:
                    codes.copy_(own.codes(weights, scale, out=steps))
        return self._codes[: sum(group.values())]

    def _scale(self, name: str) -> Tensor | float:
        """What spaces a tensor's thresholds; Eq. 2's of a whole tensor on the CPU as a number, in half the time."""
        own, weight = self._own[name], self._latent[name]
        if own is not None:
            return own.thresholds(weight)
        if self.per_channel or forms.dense(weight):
            return max_scale(weight, self._grid, self.per_channel)
        low, high = torch.aminmax(weight)
        return max(high.item(), -low.item()) / self._grid.high or 1.0

    @torch.inference_mode(False)
    def step(self) -> None:
        """Count what the optimizer's step has changed."""
        refuse_changed(self._model, self._weights, "OscillationMonitor", self._own)
        if self._at != [weight.data_ptr() for weight in self._weights.values()]:  # moved to a device, say
            self._place()
        for group, counts in zip(self._groups, self._counters):
            counts.tick(self._codes_of(group))

    def table(self) -> pd.DataFrame:
        """One row per tensor: what was counted since the start, and how its weights lie on their grid now.

        The totals of :class:`~oscillations.engine.counters.OscillationCounter` (``corrected`` is the number of
        oscillations), the mean ``frequency`` and the shares of weights above some, and what
        :func:`~oscillations.engine.weight_statistics.grid_statistics` says.
        """
        import pandas as pd

        rows = []
        for group, counts in zip(self._groups, self._counters):
            of_each = zip(group.items(), counts.totals.T.tolist(), counts.frequency().split(counts.sizes))
            for (name, weights), totals, frequency in of_each:
                quantizer = self._quantizer(name)
                row = {"layer": name, "bits": quantizer.bits, "weights": weights, "steps": counts.ticks}
                row |= dict(zip(TOTALS, totals)) | {"frequency": frequency.double().mean().item()}
                row |= {f"frequency_above_{f}": (frequency > f).double().mean().item() for f in FREQUENT}
                rows.append(row | grid_statistics(quantizer, 0))
        return pd.DataFrame(rows)

    def histogram(self, layer: str) -> dict[float, int]:
        """Counts of a layer's weights over their grid: centre of a bin, in steps (levels at integers) -> weights."""
        if (name := f"{layer}.weight".removeprefix(".")) not in self._weights:
            known = [layer_of(name) for name in self._weights]
            raise InputError(f"OscillationMonitor: {layer!r} is not watched; {did_you_mean(layer, known)}")
        return histogram(self._quantizer(name), 0)

    def plot(self, layers: Sequence[str] | None = None) -> Figure:
        """The weights of the layers (the first four, if not named) on their grids, thresholds dashed."""
        from matplotlib.figure import Figure

        chosen = list(layers) if layers else [layer_of(name) for name in self._weights][:4]
        figure = Figure(figsize=(3.2 * len(chosen), 2.8), layout="constrained")
        for axes, layer in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen):
            counts, quantizer = self.histogram(layer), self._quantizer(f"{layer}.weight".removeprefix("."))
            axes.fill_between(list(counts), list(counts.values()), step="mid", color="#4477aa", linewidth=0)
            grid = quantizer.grids[0]
            for code in range(grid.low, grid.high):
                axes.axvline(code + 0.5, color="0.6", linewidth=0.8, linestyle="--")
            near = float(grid_statistics(quantizer, 0)["near_threshold"])
            axes.set(title=f"layer {layer}, {quantizer.bits} bits\n{near:.1%} near a threshold", xlabel="w / s")
            axes.set_yticks([])
        return figure

    def _quantizer(self, name: str) -> WeightQuantizer:
        """A quantizer of one tensor on the grid it is counted on, up to date."""
        weight, own = self._weights[name].data, self._own[name]
        if own is None:
            quantizer: WeightQuantizer = WeightQuantizer({name: weight}, self.bits, per_channel=self.per_channel)
        else:
            scale = partial(GivenScale, given=(own.thresholds(weight), own.levels(weight)))
            quantizer = WeightQuantizer(
                {name: weight}, own.bits, scale, grid=own.grid_name, tie=own.options.tie,
                per_channel=own.options.scales_per_channel,
            )  # fmt: skip
        quantizer.update()
        return quantizer

    def state_dict(self) -> dict[str, Tensor]:
        """All that was counted, as tensors over all weights, to go on after an interruption."""
        states = [counts.state() for counts in self._counters]
        together = {key: torch.cat([state[key] for state in states], dim=-1) for key in states[0]}
        return together | {"ticks": states[0]["ticks"]}  # they are of the steps, and the same for all

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave; InputError if it is that of another model or of other options."""
        own = self.state_dict()
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
            raise InputError("OscillationMonitor: the state is that of another model, or of other options")
        weights, tensors = [sum(group.values()) for group in self._groups], [len(group) for group in self._groups]
        parts = {
            key: value.split(tensors if key == "totals" else weights, -1)
            for key, value in state.items()
            if key != "ticks"
        }
        for i, counts in enumerate(self._counters):
            counts.load_state({key: part[i] for key, part in parts.items()} | {"ticks": state["ticks"]})


def grouped(sizes: dict[str, int]) -> list[dict[str, int]]:
    """Tensors, by name, in groups counted at once, none larger than ``AT_ONCE`` or the largest tensor."""
    groups: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if sum(groups[-1].values()) + size > max(AT_ONCE, *sizes.values()):
            groups.append({})
        groups[-1][name] = size
    return [group for group in groups if group]


class GivenScale(Scale):
    """The scales of thresholds and levels that a layer's own quantizer has."""

    kind = "given"

    def __init__(
        self, weights: list[Tensor], grids: list[Grid], per_channel: bool, given: tuple[Tensor, Tensor]
    ):  # fmt: skip
        super().__init__(weights, grids, per_channel)
        self.values, self.of_levels = [given[0]], [given[1]]

    @property
    def levels(self) -> Sequence[Tensor]:
        return self.of_levels
