"""Freezing of oscillating weights: which of them to freeze where, and a quantizer that keeps them there.

Iterative weight freezing of Nagel et al. 2022 (arXiv:2203.11086, Algorithm 1). A frozen weight keeps its integer
code; its level still moves with the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oscillations.engine.counters import REBASE_AFTER, OscillationCounter, differing
from oscillations.engine.quantizer import WeightQuantizer


class FreezeTracker(OscillationCounter):
    """Every weight's oscillation frequency f, and the moving average psi of its code, with the same momentum m.

    f_t = m o_t + (1 - m) f_{t-1}, psi_t = m k_t + (1 - m) psi_{t-1}, psi_0 = k_0 = ``codes``; both are averages from
    the first step on, unless psi is restarted.
    Positions in all tensors together are int64 ``[n]`` on the CPU, and a mask of all weights on a device.
    """

    _scaled_frequency: Tensor

    def __init__(self, codes: Tensor, sizes: list[int], momentum: float):
        super().__init__(codes, sizes, momentum=momentum)
        # psi_{t-1} - k_t, times (1 - m)^-n after n ticks like the frequency: it changes only where the code does.
        self._scaled_deviation = torch.zeros(codes.shape, device=codes.device)

    def tick(self, codes: Tensor) -> None:
        growth = (1 - self.momentum) ** -(self._since_rebase + 1)
        if self.sees_values:
            new, old = codes.numpy(), self.codes.numpy()
            at = differing(new, old)
            self._scaled_deviation.numpy()[at] += growth * (old.take(at).astype(np.float32) - new.take(at))
        else:
            self._scaled_deviation.add_(self.codes.float() - codes, alpha=growth)
        super().tick(codes)
        if self._since_rebase == 0:
            self._scaled_deviation.mul_((1 - self.momentum) ** REBASE_AFTER)

    def restart_average(self) -> None:
        """psi is the present codes from here on."""
        self._scaled_deviation.zero_()

    def positions(self, threshold: float, above: bool = True) -> Tensor:
        """Weights whose frequency exceeds the threshold; or those whose frequency does not."""
        bound = threshold * (1 - self.momentum) ** -self._since_rebase
        if self.sees_values:
            frequency = self._scaled_frequency.numpy()
            return torch.from_numpy(np.flatnonzero(frequency > bound if above else frequency <= bound))
        return self._scaled_frequency > bound if above else self._scaled_frequency <= bound

    def codes_at(self, at: Tensor, average: bool) -> Tensor:
        """Present codes at the positions (of a mask: all codes), or psi_{t-1} rounded to a code."""
        chosen = slice(None) if at.dtype == torch.bool else at
        codes = self.codes[chosen]
        if not average:
            return codes
        decay = (1 - self.momentum) ** self._since_rebase
        return (codes + decay * self._scaled_deviation[chosen]).round_().to(torch.int8)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"deviation": self._scaled_deviation}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._scaled_deviation.copy_(state["deviation"])


class FreezingQuantizer(WeightQuantizer):
    """A quantizer in which single weights can be frozen at an integer code.

    ``frozen``: bool, all tensors one after another, as ``codes``; ``frozen_codes`` likewise, 0 where not frozen.
    ``free`` is 0.0 where frozen and 1.0 elsewhere, one tensor per weight: a product with it is the cheapest mask.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.frozen = torch.zeros_like(self.codes, dtype=torch.bool)
        self.frozen_codes = torch.zeros_like(self.codes)
        self._free = torch.ones(self.codes.shape, device=self.codes.device)
        self.free, self._frozen_code_views = (
            [part.as_strided(w.shape, w.stride()) for part, w in zip(flat.split(self.sizes), self.weights)]
            for flat in (self._free, self.frozen_codes)
        )
        self.holds = False  #: whether any weight may be frozen

    def still_free(self, at: Tensor) -> Tensor:
        """Those positions (int64, or a mask) whose weights are not frozen yet."""
        return at & ~self.frozen if at.dtype == torch.bool else at[~self.frozen[at]]

    def freeze(self, at: Tensor, codes: Tensor) -> None:
        """Freeze the weights at these positions at ``codes`` (of a mask: all weights' codes)."""
        self.holds = True
        if at.dtype == torch.bool:
            self.frozen |= at
            self.frozen_codes.copy_(torch.where(at, codes, self.frozen_codes))
            self._free.masked_fill_(at, 0)
        else:
            self.frozen[at] = True
            self.frozen_codes[at] = codes
            self._free[at] = 0

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
        self._free.copy_(~self.frozen)
        self.holds = True
