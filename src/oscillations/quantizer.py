"""The paper's weight quantizer (Eq. 1-2), and a form of it that a training loop can afford at every step.

Notation: ``w`` latent weights of one tensor, ``b`` bits, ``Q = 2^(b-1) - 1``, scale ``s = max|w| / Q``,
integer code ``k = round(w / s)``, quantized weight ``q = s k``, error ``e = q - w``.
"""

from __future__ import annotations

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
    return scales[errors.argmin()]


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
    tensors flattened one after another), ``quantized`` (one tensor per weight) and ``scales`` belong to the
    weights' present values. The engine calls it once after every optimizer step, so that the next forward
    pass, the gradients and the counters all share one pass over the weights.

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
        self._codes = [c.view(w.shape) for c, w in zip(self.codes.split(self.sizes), weights)]
        self.quantized = [torch.empty_like(w) for w in weights]
        self._scratch = [torch.empty_like(w) for w in weights]
        self.scales: list[Tensor] = [torch.ones((), device=w.device, dtype=w.dtype) for w in weights]
        self._row_max: list[Tensor] = [w.new_zeros(len(w)) for w in weights]
        if scale_source == "frozen_max":
            self.scales = [max_scale(w, bits) for w in weights]

    @torch.no_grad()
    def update(self) -> None:
        """Recompute scales, codes and quantized weights from the latent weights."""
        for i, weight in enumerate(self.weights):
            if self.scale_source == "dynamic_max":
                rows = torch.abs(weight, out=self._scratch[i]).view(len(weight), -1)
                self._row_max[i] = torch.amax(rows, dim=1)
                largest = self._row_max[i].amax()
                self.scales[i] = torch.where(largest > 0, largest / self.limit, torch.ones_like(largest))
            elif self.scale_source == "mse":
                self.scales[i] = mse_scale(weight, self.bits)
            code = torch.div(weight, self.scales[i], out=self.quantized[i])
            if self.tie == "half_even":
                code.round_()
            else:
                code.add_(0.5).floor_()
            if self.scale_source != "dynamic_max":
                code.clamp_(-self.limit, self.limit)
            self._codes[i].copy_(code)
            code.mul_(self.scales[i])

    def error(self, i: int) -> Tensor:
        """e = q - w of tensor ``i``, in a buffer that the next call for ``i`` overwrites."""
        return torch.sub(self.quantized[i], self.weights[i], out=self._scratch[i])

    @torch.no_grad()
    def add_scale_gradient(self, i: int, grad: Tensor, upstream: Tensor, error: Tensor, factor: float = 1.0) -> None:
        """Add what reaches ``grad`` through Eq. 2's scale when dL/dq = ``factor * upstream`` ("flow").

        With j = argmax|w| and sigma = sign(w_j), dq_i/dw_j holds an extra sigma (q_i - w_i) / (Q s), so entry
        j receives sigma / (Q s) * sum_i upstream_i e_i; several equal maxima share it evenly, as autograd's
        ``amax`` does. The maxima are looked for only in the rows that hold them: scanning the whole tensor
        would cost as much as quantizing it.
        """
        product = torch.dot(upstream.reshape(-1), error.view(-1))
        through_scale = product * (factor / self.limit) / self.scales[i]
        weight, grad = self.weights[i].view(len(error), -1), grad.view(len(error), -1)
        largest = self._row_max[i].amax()
        rows = torch.nonzero(self._row_max[i] == largest).flatten()
        peaks = weight[rows] * (weight[rows].abs() == largest)  # +-max|w| at the maxima, 0 elsewhere
        signs = peaks.sign()
        grad.index_add_(0, rows, signs * (through_scale / signs.abs().sum().clamp_min(1)))
