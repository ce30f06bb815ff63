"""The paper's weight quantizer (Eq. 1-2), and a form of it that a training loop can afford at every step.

Notation: ``w`` latent weights of one tensor, ``b`` bits, ``Q = 2^(b-1) - 1``, scale ``s = max|w| / Q``,
integer code ``k = round(w / s)``, quantized weight ``q = s k``, error ``e = q - w``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from oscillations.bits import LATENT, largest_code


def max_scale(weight: Tensor, bits: int) -> Tensor:
    """Scale of Eq. 2 (0-dim tensor): the largest |w| sits on the last level. An all-zero tensor gets 1."""
    largest = weight.abs().amax()
    return torch.where(largest > 0, largest / largest_code(bits), torch.ones_like(largest))


def mse_scale(weight: Tensor, bits: int, candidates: int = 80) -> Tensor:
    """The scale among ``candidates`` fractions of Eq. 2's with the least squared error, codes clamped."""
    widest = max_scale(weight, bits)
    scales = widest * torch.linspace(1 / candidates, 1, candidates, device=weight.device, dtype=weight.dtype)
    errors = torch.stack([(clamped_codes(weight, s, bits) * s - weight).square().sum() for s in scales])
    return scales.index_select(0, errors.argmin().view(1)).squeeze(0)  # indexing would read the place on the host


def round_half_up(u: Tensor) -> Tensor:
    return torch.floor(u + 0.5)


ROUNDING = {"half_even": torch.round, "half_up": round_half_up}


def clamped_codes(weight: Tensor, scale: Tensor, bits: int, tie: str = "half_even") -> Tensor:
    """Codes round(w/s) within +-Q, in ``weight``'s floating type. With Eq. 2's scale the clamp never acts."""
    limit = largest_code(bits)
    return ROUNDING[tie](weight / scale).clamp_(-limit, limit)


def quantize(weight: Tensor, bits: int, tie: str = "half_even") -> Tensor:
    """q(w) of Eq. 1-2 for one tensor, scale recomputed; ``bits == 32`` returns the weights as they are."""
    if bits == LATENT:
        return weight
    scale = max_scale(weight, bits)
    return clamped_codes(weight, scale, bits, tie) * scale


class WeightQuantizer:
    """Quantizes all weight tensors of a network at once, into buffers made once.

    ``weights`` are the latent tensors by name, read where they lie. After :meth:`update`, ``codes`` (int8, all
    tensors one after another, each in its memory order), ``quantized`` (one tensor per weight) and ``scales``
    belong to the weights' present values. The engine calls it once after every optimizer step, so that the
    next forward pass, the gradients and the counters all share one pass over the weights.

    ``scale_source``: ``dynamic_max`` (Eq. 2 at every update), ``frozen_max`` (Eq. 2 of the initial weights)
    or ``mse``. The last two clamp the codes.
    """

    def __init__(
        self, weights: dict[str, Tensor], bits: int, *, scale_source: str = "dynamic_max",
        tie: str = "half_even",
    ):  # fmt: skip
        self.names, self.weights = list(weights), [w.detach() for w in weights.values()]
        self.bits, self.scale_source, self.tie = bits, scale_source, tie
        self.limit = largest_code(bits)
        weights = self.weights
        self.sizes = [w.numel() for w in weights]
        self.codes = torch.empty(sum(self.sizes), dtype=torch.int8, device=weights[0].device)
        self._codes = [c.as_strided(w.shape, w.stride()) for c, w in zip(self.codes.split(self.sizes), weights)]
        self.quantized = [torch.empty_like(w) for w in weights]
        self.scales = [max_scale(w, bits) for w in weights]
        self._row_max: list[Tensor] = []
        self.sees_values = self.codes.device.type == "cpu"  #: reading a value here makes no device wait

    @torch.no_grad()
    def update(self) -> None:
        """Recompute scales, codes and quantized weights from the latent weights."""
        if self.scale_source == "dynamic_max":
            self._row_max = [max_of_rows(w) for w in self.weights]
            largest = torch.stack([rows.amax() for rows in self._row_max])
            self.scales = (largest / self.limit).masked_fill_(largest == 0, 1).unbind()
        elif self.scale_source == "mse":
            self.scales = [mse_scale(w, self.bits) for w in self.weights]
        for weight, scale, quantized, codes in zip(self.weights, self.scales, self.quantized, self._codes):
            torch.div(weight, scale, out=quantized)
            if self.tie == "half_even":
                quantized.round_()
            else:
                quantized.add_(0.5).floor_()
            if self.scale_source != "dynamic_max":
                quantized.clamp_(-self.limit, self.limit)
            codes.copy_(quantized)
            quantized.mul_(scale)

    def error(self, i: int, out: Tensor | None = None) -> Tensor:
        """e = q - w of tensor ``i``.

        After the backward pass it may take the place of q (``out=self.quantized[i]``), which is faster.
        """
        return torch.sub(self.quantized[i], self.weights[i], out=out)

    @torch.no_grad()
    def add_scale_gradient(self, i: int, grad: Tensor, upstream: Tensor, error: Tensor, factor: float = 1.0) -> None:
        """Add what reaches ``grad`` through Eq. 2's scale when dL/dq = ``factor * upstream`` ("flow").

        With j = argmax|w| and sigma = sign(w_j), dq_i/dw_j holds an extra sigma (q_i - w_i) / (Q s), so entry
        j receives sigma / (Q s) * sum_i upstream_i e_i.
        """
        product, scale = torch.dot(memory_order(upstream), memory_order(error)), self.scales[i]
        if self.sees_values:
            product, scale = product.item(), scale.item()
        self.add_to_maximum(i, grad, product * factor / (self.limit * scale))

    @torch.no_grad()
    def add_to_maximum(self, i: int, grad: Tensor, amount: Tensor | float) -> None:
        """Add ``amount`` times the gradient of max|w| of tensor ``i``, with a ``dynamic_max`` scale.

        That is the sign of the largest |w|; several equal maxima share it evenly, as autograd's ``amax`` does.
        On the CPU the maxima are looked for only in the rows that hold them, since scanning a tensor costs as
        much as quantizing it; elsewhere choosing rows would make the host wait for the device.
        """
        weight, row_max = self.weights[i], self._row_max[i]
        if self.sees_values:
            add_at_maxima(grad.numpy(), weight.numpy(), row_max.numpy(), amount)
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
