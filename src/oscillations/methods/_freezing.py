"""Freezing of oscillating weights: which of them to freeze where, and a quantizer that keeps them there.

Iterative weight freezing of Nagel et al. 2022 (arXiv:2203.11086, Algorithm 1). A frozen weight keeps its integer
code; its level still moves with the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oscillations.engine import forms
from oscillations.engine.counters import REBASE_AFTER, DenseCounter, OscillationCounter, SparseCounter, differing
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import Scale


class FreezingQuantizer(WeightQuantizer[Scale]):
    """A quantizer in which single weights can be frozen at an integer code.

    ``frozen``: bool, all tensors one after another, as ``codes``; ``frozen_codes`` likewise, 0 where not frozen.
    ``free`` is 0.0 where frozen and 1.0 elsewhere, one tensor per weight (a product with it is the cheapest mask), and
    ``flat_free`` all of them one after another. ``holds``: whether any weight may be frozen.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.frozen = torch.zeros_like(self.codes, dtype=torch.bool)
        self.frozen_codes = torch.zeros_like(self.codes)
        self.flat_free = torch.ones(self.codes.shape, device=self.codes.device)
        self.free, self._frozen_code_views = (
            [part.as_strided(w.shape, w.stride()) for part, w in zip(flat.split(self.sizes), self.weights)]
            for flat in (self.flat_free, self.frozen_codes)
        )
        self.holds = False

    @torch.no_grad()
    def update(self) -> None:
        super().update()
        if self.holds:
            self.codes.mul_((~self.frozen).view(torch.int8)).add_(self.frozen_codes)
            self.to_levels(self.quantized)

    @torch.no_grad()
    def to_levels(self, tensors: list[Tensor]) -> None:
        """Set the frozen entries of tensors shaped as the weights to their present levels, in place."""
        if self.holds:
            for tensor, free, codes, scale in zip(tensors, self.free, self._frozen_code_views, self.scales):
                tensor.mul_(free).add_(codes * scale)

    def stop(self, grads: list[Tensor]) -> None:
        """Set the frozen entries of the weights' gradients to 0, in place."""
        if self.holds:
            for grad, free in zip(grads, self.free):
                grad.mul_(free)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"frozen": self.frozen, "frozen_codes": self.frozen_codes}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.flat_free.copy_(~self.frozen)
        self.holds = True


class FreezeTracker(OscillationCounter):
    """Every weight's oscillation frequency f, and the moving average psi of its code, with the same momentum m.

    f_t = m o_t + (1 - m) f_{t-1}, psi_t = m k_t + (1 - m) psi_{t-1}, psi_0 = k_0 = ``codes``; both are averages from
    the first step on, unless psi is restarted. :func:`freeze_tracker` makes the form for a device.
    """

    _scaled_frequency: Tensor

    def __init__(self, codes: Tensor, sizes: list[int], momentum: float):
        super().__init__(codes, sizes, momentum=momentum)
        # psi_{t-1} - k_t, times (1 - m)^-n after n ticks like the frequency: it changes only where the code does.
        self._scaled_deviation = torch.zeros(codes.shape, device=codes.device)

    def tick(self, codes: Tensor) -> None:
        self._deviate(codes, (1 - self.momentum) ** -(self._since_rebase + 1))
        super().tick(codes)
        if self._since_rebase == 0:
            self._scaled_deviation.mul_((1 - self.momentum) ** REBASE_AFTER)

    def restart_average(self) -> None:
        """psi is the present codes from here on."""
        self._scaled_deviation.zero_()

    def freeze(
        self, quantizer: FreezingQuantizer, threshold: float, *, above: bool = True, average: bool = True,
        again: bool = True,
    ) -> None:  # fmt: skip
        """Freeze the weights whose frequency exceeds the threshold (or, not ``above``, does not).

        At psi_{t-1} rounded to a code (``average``), or at the present code; ``again``: also those that are frozen.
        """
        raise NotImplementedError

    def _deviate(self, codes: Tensor, growth: float) -> None:
        """Follow with the stored deviation, which grows by ``growth``, the step from the last codes to these."""
        raise NotImplementedError

    def _bound(self, threshold: float) -> float:
        """The threshold of the stored frequency."""
        return threshold * (1 - self.momentum) ** -self._since_rebase

    def _decay(self) -> float:
        """From the stored deviation to psi_{t-1} - k_t."""
        return (1 - self.momentum) ** self._since_rebase

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"deviation": self._scaled_deviation}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._scaled_deviation.copy_(state["deviation"])


class SparseFreezeTracker(FreezeTracker, SparseCounter):
    """On the CPU: by the positions of the few weights that matter."""

    def _deviate(self, codes: Tensor, growth: float) -> None:
        new, old = codes.numpy(), self.codes.numpy()
        at = differing(new, old)
        self._scaled_deviation.numpy()[at] += growth * (old.take(at).astype(np.float32) - new.take(at))

    def freeze(
        self, quantizer: FreezingQuantizer, threshold: float, *, above: bool = True, average: bool = True,
        again: bool = True,
    ) -> None:  # fmt: skip
        frequency, bound = self._scaled_frequency.numpy(), self._bound(threshold)
        at = torch.from_numpy(np.flatnonzero(frequency > bound if above else frequency <= bound))
        if not again:
            at = at[~quantizer.frozen[at]]
        codes = self.codes[at]
        if average:
            codes = (codes + self._decay() * self._scaled_deviation[at]).round_().to(torch.int8)
        quantizer.holds = True
        quantizer.frozen[at] = True
        quantizer.frozen_codes[at] = codes
        quantizer.flat_free[at] = 0


class DenseFreezeTracker(FreezeTracker, DenseCounter):
    """On a device: by masks of all weights, so that nothing waits."""

    def _deviate(self, codes: Tensor, growth: float) -> None:
        self._scaled_deviation.add_(self.codes.float() - codes, alpha=growth)

    def freeze(
        self, quantizer: FreezingQuantizer, threshold: float, *, above: bool = True, average: bool = True,
        again: bool = True,
    ) -> None:  # fmt: skip
        bound = self._bound(threshold)
        chosen = self._scaled_frequency > bound if above else self._scaled_frequency <= bound
        if not again:
            chosen &= ~quantizer.frozen
        codes = self.codes
        if average:
            codes = (codes + self._decay() * self._scaled_deviation).round_().to(torch.int8)
        quantizer.holds = True
        quantizer.frozen |= chosen
        quantizer.frozen_codes.copy_(torch.where(chosen, codes, quantizer.frozen_codes))
        quantizer.flat_free.masked_fill_(chosen, 0)


def freeze_tracker(codes: Tensor, sizes: list[int], momentum: float) -> FreezeTracker:
    """The :class:`FreezeTracker` in the form for where the codes lie."""
    return (DenseFreezeTracker if forms.dense(codes) else SparseFreezeTracker)(codes, sizes, momentum)
