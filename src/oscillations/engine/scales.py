"""Scales: how far apart the thresholds of a grid lie, and its levels.

One object holds the scales of all weight tensors of a network. A scale is 0-dim, or ``[C, 1, ...]`` with one entry for
each output channel. Notation as in :mod:`oscillations.engine.quantizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from oscillations.core.bits import Grid
from oscillations.engine import forms


def reduced(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """The dimensions that share a scale: all, or all but the output channels'."""
    return tuple(range(1 if per_channel else 0, weight.dim()))


def max_scale(weight: Tensor, grid: Grid, per_channel: bool = False) -> Tensor:
    """Scale of Eq. 2: the largest |w| sits on the last level. An all-zero tensor (or channel) gets 1."""
    largest = weight.abs().amax(reduced(weight, per_channel), keepdim=per_channel)
    return torch.where(largest > 0, largest / grid.high, torch.ones_like(largest))


def mse_scale(weight: Tensor, grid: Grid, per_channel: bool = False, candidates: int = 80) -> Tensor:
    """The scale among ``candidates`` fractions of :func:`max_scale`'s with the least squared error, codes clamped."""
    widest = max_scale(weight, grid, per_channel)
    fractions = torch.linspace(1 / candidates, 1, candidates, device=weight.device, dtype=weight.dtype)

    def error(scale: Tensor) -> Tensor:
        codes = (weight / scale).round().clamp_(grid.low, grid.high)
        return (codes * scale - weight).square().sum(reduced(weight, per_channel), keepdim=per_channel)

    if not per_channel:
        scales = widest * fractions
        errors = torch.stack([error(scale) for scale in scales])
        return scales.index_select(0, errors.argmin().view(1)).squeeze(0)  # indexing would read the place on the host
    best, least = widest, torch.full_like(widest, torch.inf)
    for fraction in fractions:
        scale = widest * fraction
        found = error(scale)
        best, least = torch.where(found < least, scale, best), torch.minimum(found, least)
    return best


class Scale:
    """Base: the scales of the weights' present values are in ``values`` after :meth:`compute`.

    ``weights`` are read where they lie, each on its grid. ``clamps``: whether weights may lie beyond the grid's ends.
    ``kind`` is what records and tables call it.
    """

    kind: ClassVar[str]
    clamps: ClassVar[bool] = True

    def __init__(self, weights: list[Tensor], grids: list[Grid], per_channel: bool):
        self.weights, self.grids, self.per_channel = weights, grids, per_channel
        self.values: Sequence[Tensor] = self.each(max_scale)

    def each(self, scale_of: Callable[[Tensor, Grid, bool], Tensor]) -> list[Tensor]:
        """What a function gives for every tensor on its grid."""
        return [scale_of(weight, grid, self.per_channel) for weight, grid in zip(self.weights, self.grids)]

    @property
    def levels(self) -> Sequence[Tensor]:
        """What spaces the levels; the thresholds' ``values`` unless a method sets the two apart."""
        return self.values

    def compute(self) -> None:
        """Follow the weights, if this kind does."""

    def bound(self) -> None:
        """Keep above zero what an optimizer has changed, if this kind is learned."""

    def state(self, names: list[str]) -> dict[str, Tensor]:
        """The scales that do not follow from the weights, for the tensors of these names."""
        return {}


class LeastSquaresScale(Scale):
    """That of :func:`mse_scale`, anew for every update."""

    kind = "mse"

    @torch.no_grad()
    def compute(self) -> None:
        self.values = self.each(mse_scale)


class KeptScale(Scale):
    """Base of those that a checkpoint must hold."""

    def state(self, names: list[str]) -> dict[str, Tensor]:
        return {f"scale/{name}": scale for name, scale in zip(names, self.values)}


class FrozenScale(KeptScale):
    """Eq. 2's of the weights at the start."""

    kind = "frozen_max"


class LearnedScale(KeptScale):
    """Whatever a method puts into ``values``; ``first`` computes the first of a tensor, no less than ``smallest``."""

    kind = "learned"

    def __init__(
        self, weights: list[Tensor], grids: list[Grid], per_channel: bool,
        first: Callable[[Tensor, Grid, bool], Tensor], smallest: float,
    ):  # fmt: skip
        super().__init__(weights, grids, per_channel)
        self.smallest = smallest
        self.values = [scale.clamp_min(smallest) for scale in self.each(first)]

    def bound(self) -> None:
        for scale in self.values:
            scale.clamp_(min=self.smallest)


class MaxScale(Scale):
    """Eq. 2's of the present weights, which it therefore moves with, and which need no clamping.

    Its gradient reaches the largest |w| alone; several equal maxima share it evenly, as autograd's ``amax`` does.
    """

    kind, clamps = "max", False

    def __init__(self, weights: list[Tensor], grids: list[Grid], per_channel: bool):
        super().__init__(weights, grids, per_channel)
        self._row_max: list[Tensor] = []
        self._highs = weights[0].new_tensor([grid.high for grid in grids])

    @torch.no_grad()
    def compute(self) -> None:
        self._row_max = [max_of_rows(weight) for weight in self.weights]
        largest = torch.stack([rows.amax() for rows in self._row_max])
        self.values = (largest / self._highs).masked_fill_(largest == 0, 1).unbind()

    @torch.no_grad()
    def add_gradient(self, i: int, grad: Tensor, upstream: Tensor, error: Tensor, factor: float = 1.0) -> None:
        """Add what reaches ``grad`` of tensor ``i`` through Eq. 2's scale when dL/dq = ``factor * upstream`` ("flow").

        With j = argmax|w| and sigma = sign(w_j), dq_i/dw_j holds an extra sigma (q_i - w_i) / (Q s), so entry
        j receives sigma / (Q s) * sum_i upstream_i e_i; per channel, the sum is over the channel.
        """
        product = self._product(upstream, error)
        self.add_to_maximum(i, grad, product * factor / (self.grids[i].high * self._divisor(i)))

    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        """Add ``amount`` times the gradient of max|w| of tensor ``i``: the sign of the largest |w|.

        Per channel, each has its maximum and its amount (``[C]``, or one for all).
        """
        raise NotImplementedError

    def _product(self, upstream: Tensor, error: Tensor) -> Tensor | float:
        """The sum of the entries' products, over what shares a scale."""
        return torch.dot(memory_order(upstream), memory_order(error))

    def _divisor(self, i: int) -> Tensor | float:
        """The scale of tensor ``i``."""
        return self.values[i]


class SparseMaxScale(MaxScale):
    """On the CPU: a tensor's maxima are looked for only in the rows that hold them, as scanning all costs as much as
    quantizing it.
    """

    def _product(self, upstream: Tensor, error: Tensor) -> float:
        return torch.dot(memory_order(upstream), memory_order(error)).item()

    def _divisor(self, i: int) -> float:
        return self.values[i].item()

    @torch.no_grad()
    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        to, weight, row_max = grad.numpy(), self.weights[i].numpy(), self._row_max[i].numpy()
        largest = row_max.max()
        rows = np.flatnonzero(row_max == largest).tolist()
        maxima = [np.abs(weight[row]) == largest for row in rows]
        share = float(amount) / max(sum(np.count_nonzero(at_max) for at_max in maxima), 1)  # none among NaN
        for row, at_max in zip(rows, maxima):
            to[row] += share * np.sign(weight[row]) * at_max


class DenseMaxScale(MaxScale):
    """On a device: choosing rows would make the host wait."""

    @torch.no_grad()
    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        weight = self.weights[i]
        at_max = weight.abs() == self._row_max[i].amax()
        grad.add_(weight.sgn().mul_(at_max).mul_(amount / at_max.sum()))


class ChannelMaxScale(MaxScale):
    """One for each output channel, in one form for all devices."""

    @torch.no_grad()
    def compute(self) -> None:
        self._row_max = [max_of_rows(weight) for weight in self.weights]
        shaped = [rows.view(-1, *[1] * (weight.dim() - 1)) for rows, weight in zip(self._row_max, self.weights)]
        self.values = [
            (rows / grid.high).masked_fill_(rows == 0, 1) for rows, grid in zip(shaped, self.grids)
        ]  # fmt: skip

    def _product(self, upstream: Tensor, error: Tensor) -> Tensor:
        return (by_rows(upstream) * by_rows(error)).sum(1)

    def _divisor(self, i: int) -> Tensor:
        return self.values[i].flatten()

    @torch.no_grad()
    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        weight, rows = self.weights[i], by_rows(self.weights[i])
        at_max = rows.abs() == self._row_max[i][:, None]
        share = amount / at_max.sum(1).clamp_min(1)
        added = rows.sgn().mul_(at_max).mul_(share[:, None])
        grad.add_(added.view_as(weight.movedim(1, -1)).movedim(-1, 1) if weight.dim() > 2 else added)


def following_max(weights: list[Tensor], grids: list[Grid], per_channel: bool) -> MaxScale:
    """The :class:`MaxScale` for these weights."""
    shared = DenseMaxScale if forms.dense(weights[0]) else SparseMaxScale
    return (ChannelMaxScale if per_channel else shared)(weights, grids, per_channel)


#: What makes the scale of a study's ``scale_source``.
SOURCES: dict[str, Callable[[list[Tensor], list[Grid], bool], Scale]] = {
    "dynamic_max": following_max,
    "frozen_max": FrozenScale,
    "mse": LeastSquaresScale,
}


def max_of_rows(weight: Tensor) -> Tensor:
    """Largest |w| of every row (output channel), ``[C]``, without a copy of the weights."""
    rows = by_rows(weight)
    return torch.maximum(rows.amax(1), rows.amin(1).neg_())


def by_rows(tensor: Tensor) -> Tensor:
    """``[rows, entries]``, each row in the order it lies in, so that a channels-last tensor is not copied."""
    return (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).reshape(len(tensor), -1)


def memory_order(tensor: Tensor) -> Tensor:
    """All entries as one dimension, in the order they lie in."""
    return (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).reshape(-1)
