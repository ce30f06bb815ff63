"""The paper's weight quantizer (Eq. 1-2), and a form of it that a training loop can afford at every step.

Notation: ``w`` latent weights of one tensor, ``b`` bits, ``Q = 2^(b-1) - 1``, scale ``s = max|w| / Q``,
integer code ``k = round(w / s)``, quantized weight ``q = s k``, error ``e = q - w``. Other methods of the field
need other grids and other scales; both are arguments here, so that one pass over the weights serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from oscillations.core.bits import LATENT, Grid, grid_of, largest_code


def reduced(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """The dimensions that share a scale: all, or all but the output channels'."""
    return tuple(range(1 if per_channel else 0, weight.dim()))


def max_scale(weight: Tensor, bits: int, per_channel: bool = False) -> Tensor:
    """Scale of Eq. 2: the largest |w| sits on the last level. An all-zero tensor (or channel) gets 1.

    0-dim, or with ``per_channel`` ``[C, 1, ...]``, one scale for each output channel.
    """
    largest = weight.abs().amax(reduced(weight, per_channel), keepdim=per_channel)
    return torch.where(largest > 0, largest / largest_code(bits), torch.ones_like(largest))


def mse_scale(weight: Tensor, grid: Grid, candidates: int = 80, per_channel: bool = False) -> Tensor:
    """The scale among ``candidates`` fractions of max|w| / (largest code) with the least squared error, codes clamped.

    Shaped as :func:`max_scale`'s.
    """
    largest = weight.abs().amax(reduced(weight, per_channel), keepdim=per_channel)
    widest = torch.where(largest > 0, largest / grid.high, torch.ones_like(largest))
    fractions = torch.linspace(1 / candidates, 1, candidates, device=weight.device, dtype=weight.dtype)
    if not per_channel:
        scales = widest * fractions
        errors = torch.stack([(clamped_codes(weight, s, grid) * s - weight).square().sum() for s in scales])
        return scales.index_select(0, errors.argmin().view(1)).squeeze(0)  # indexing would read the place on the host
    inside = reduced(weight, per_channel)
    best, least = widest, torch.full_like(widest, torch.inf)
    for fraction in fractions:
        scale = widest * fraction
        error = (clamped_codes(weight, scale, grid) * scale - weight).square().sum(inside, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def round_half_up(u: Tensor) -> Tensor:
    return torch.floor(u + 0.5)


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {"half_even": torch.round, "half_up": round_half_up}


def clamped_codes(weight: Tensor, scale: Tensor, grid: Grid, tie: str = "half_even") -> Tensor:
    """Codes round(w/s) within the grid, in ``weight``'s floating type. With Eq. 2's scale the clamp never acts."""
    return ROUNDING[tie](weight / scale).clamp_(grid.low, grid.high)


def quantize(weight: Tensor, bits: int, tie: str = "half_even", per_channel: bool = False) -> Tensor:
    """q(w) of Eq. 1-2 for one tensor, scale recomputed; ``bits == 32`` returns the weights as they are."""
    if bits == LATENT:
        return weight
    scale = max_scale(weight, bits, per_channel)
    return clamped_codes(weight, scale, grid_of("sym_odd", bits), tie) * scale


class WeightQuantizer:
    """Quantizes all weight tensors of a network at once, into buffers made once.

    ``weights`` are the latent tensors by name, read where they lie. After :meth:`update`, ``codes`` (int8, all
    tensors one after another, each in its memory order; ``code_views`` are its parts in the weights' shapes),
    ``quantized`` (one tensor per weight) and ``scales`` belong to the weights' present values. The engine calls it
    once after every optimizer step, so that the next forward pass, the gradients and the counters all share one
    pass over the weights.

    ``scale_source``: ``dynamic_max`` (Eq. 2 at every update), ``frozen_max`` (Eq. 2 of the initial weights),
    ``mse``, or ``learned`` (whatever the method puts into ``scales``). All but the first clamp the codes. A scale is
    0-dim, or ``[C, 1, ...]`` with ``per_channel``. It spaces the thresholds; ``level_scales`` the levels, where they
    differ.
    """

    def __init__(
        self, weights: dict[str, Tensor], bits: int, *, scale_source: str = "dynamic_max",
        tie: str = "half_even", grid: str = "sym_odd", per_channel: bool = False,
    ):  # fmt: skip
        self.names, self.weights = list(weights), [w.detach() for w in weights.values()]
        self.bits, self.scale_source, self.tie, self.per_channel = bits, scale_source, tie, per_channel
        self.grid_name, self.grid = grid, grid_of(grid, bits)
        self.limit = self.grid.high
        latent = self.weights
        self.sizes = [w.numel() for w in latent]
        self.codes = torch.empty(sum(self.sizes), dtype=torch.int8, device=latent[0].device)
        self.code_views = [c.as_strided(w.shape, w.stride()) for c, w in zip(self.codes.split(self.sizes), latent)]
        self.quantized = [torch.empty_like(w) for w in latent]
        self.scales: Sequence[Tensor] = [max_scale(w, bits, per_channel) for w in latent]
        self.level_scales: list[Tensor] | None = None
        self._row_max: list[Tensor] = []
        self.sees_values = self.codes.device.type == "cpu"  #: reading a value here makes no device wait

    @torch.no_grad()
    def rescale(self) -> None:
        """Recompute the scales from the latent weights, where they follow these."""
        if self.scale_source == "dynamic_max":
            self._row_max = [max_of_rows(w) for w in self.weights]
            if self.per_channel:
                channels = [rows.view(-1, *[1] * (w.dim() - 1)) for rows, w in zip(self._row_max, self.weights)]
                self.scales = [(rows / self.limit).masked_fill_(rows == 0, 1) for rows in channels]
            else:
                largest = torch.stack([rows.amax() for rows in self._row_max])
                self.scales = (largest / self.limit).masked_fill_(largest == 0, 1).unbind()
        elif self.scale_source == "mse":
            self.scales = [mse_scale(w, self.grid, per_channel=self.per_channel) for w in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Recompute scales, codes and quantized weights from the latent weights."""
        self.rescale()
        offset = self.grid.offset
        level_scales = self.level_scales or self.scales
        for i, (weight, scale, quantized) in enumerate(zip(self.weights, self.scales, self.quantized)):
            torch.div(weight, scale, out=quantized)
            if self.tie == "half_even":
                if offset:
                    quantized.sub_(offset)
                quantized.round_()
            else:
                if offset != 0.5:  # else the floor is the code: exact also just below the threshold 0
                    quantized.add_(0.5 - offset)
                quantized.floor_()
            if self.scale_source != "dynamic_max":
                quantized.clamp_(self.grid.low, self.grid.high)
            self.code_views[i].copy_(quantized)
            if offset:
                quantized.add_(offset)
            quantized.mul_(level_scales[i])

    def position(self, i: int) -> Tensor:
        """u of tensor ``i``, in steps: codes are the nearest integers, thresholds lie at half-integers."""
        return self.weights[i] / self.scales[i] - self.grid.offset

    def state(self) -> dict[str, Tensor]:
        """What the trained network needs beside its weights, as tensors: scales that do not follow from these."""
        if self.scale_source not in ("learned", "frozen_max"):
            return {}
        return {f"scale/{name}": scale for name, scale in zip(self.names, self.scales)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave; the next update shows it."""
        for key, value in self.state().items():
            value.copy_(state[key])

    def error(self, i: int, out: Tensor | None = None) -> Tensor:
        """e = q - w of tensor ``i``.

        After the backward pass it may take the place of q (``out=self.quantized[i]``), which is faster.
        """
        return torch.sub(self.quantized[i], self.weights[i], out=out)

    @torch.no_grad()
    def add_scale_gradient(self, i: int, grad: Tensor, upstream: Tensor, error: Tensor, factor: float = 1.0) -> None:
        """Add what reaches ``grad`` through Eq. 2's scale when dL/dq = ``factor * upstream`` ("flow").

        With j = argmax|w| and sigma = sign(w_j), dq_i/dw_j holds an extra sigma (q_i - w_i) / (Q s), so entry
        j receives sigma / (Q s) * sum_i upstream_i e_i; per channel, the sum is over the channel.
        """
        product: Tensor | float
        scale: Tensor | float
        if self.per_channel:
            product, scale = (by_rows(upstream) * by_rows(error)).sum(1), self.scales[i].flatten()
        else:
            product, scale = torch.dot(memory_order(upstream), memory_order(error)), self.scales[i]
            if self.sees_values:
                product, scale = product.item(), scale.item()
        self.add_to_maximum(i, grad, product * factor / (self.limit * scale))

    @torch.no_grad()
    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        """Add ``amount`` times the gradient of max|w| of tensor ``i``, with a ``dynamic_max`` scale.

        That is the sign of the largest |w|; several equal maxima share it evenly, as autograd's ``amax`` does.
        Per channel, each has its maximum and its amount (``[C]``, or one for all). On the CPU a tensor's maxima are
        looked for only in the rows that hold them, since scanning a tensor costs as much as quantizing it;
        elsewhere choosing rows would make the host wait for the device.
        """
        weight, row_max = self.weights[i], self._row_max[i]
        if self.per_channel:
            rows = by_rows(weight)
            at_max = rows.abs() == row_max[:, None]
            share = amount / at_max.sum(1).clamp_min(1)
            added = rows.sgn().mul_(at_max).mul_(share[:, None])
            grad.add_(added.view_as(weight.movedim(1, -1)).movedim(-1, 1) if weight.dim() > 2 else added)
        elif self.sees_values:
            add_at_maxima(grad.numpy(), weight.numpy(), row_max.numpy(), float(amount))
        else:
            at_max = weight.abs() == row_max.amax()
            grad.add_(weight.sgn().mul_(at_max).mul_(amount / at_max.sum()))


def add_at_maxima(grad: np.ndarray, weight: np.ndarray, row_max: np.ndarray, amount: float) -> None:
    """Add ``amount`` times the weight's sign where |w| is largest, shared evenly by equal maxima."""
    largest = row_max.max()
    rows = np.flatnonzero(row_max == largest).tolist()
    maxima = [np.abs(weight[row]) == largest for row in rows]
    share = amount / max(sum(np.count_nonzero(at_max) for at_max in maxima), 1)  # none among NaN
    for row, at_max in zip(rows, maxima):
        grad[row] += share * np.sign(weight[row]) * at_max


def max_of_rows(weight: Tensor) -> Tensor:
    """Largest |w| of every row (output channel), without a copy of the weights."""
    rows = by_rows(weight)
    return torch.maximum(rows.amax(1), rows.amin(1).neg_())


def by_rows(tensor: Tensor) -> Tensor:
    """``[rows, entries]``, each row in the order it lies in, so that a channels-last tensor is not copied."""
    return (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).reshape(len(tensor), -1)


def memory_order(tensor: Tensor) -> Tensor:
    """All entries as one dimension, in the order they lie in."""
    return (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).reshape(-1)
