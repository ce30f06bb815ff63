"""Streaming oscillation counters on integer codes (methods: Nagel et al. 2022, and its corrected forms).

A change of a weight's code is an *oscillation* if its direction is opposite to the weight's previous change.
Per weight the state is 6 bytes: the last code, the place in the present alternating run (with its direction
as sign) and the running frequency. What a change means depends on the run's state and the change's direction
alone, so it is looked up: seven states, two directions, fourteen transitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oscillations.engine import forms

TOTALS = ("crossings", "levels", "nagel", "corrected", "trips")
RUN_STATES = range(-3, 4)  # place in an alternating run: 0 before any change, 1 first change, then 2, 3, 2, 3 ...
REBASE_AFTER = 256  # ticks between rescalings of the frequency, before (1 - m)^-n can overflow float32


def transition(run: int, direction: int) -> tuple[int, dict[str, int]]:
    """The next state of a run after a change, and what the change adds to each total but ``levels``."""
    opposite = direction * run < 0
    place = (3 if abs(run) == 2 else 2) if opposite else 1
    corrected = 2 if opposite and abs(run) == 1 else int(opposite)  # the run's first crossing counts too
    return direction * place, {"crossings": 1, "nagel": opposite, "corrected": corrected, "trips": place == 2}


_TRANSITIONS = [transition(run, direction) for run in RUN_STATES for direction in (-1, 1)]
NEXT_RUN = np.array([run for run, _ in _TRANSITIONS], dtype=np.int8)
COUNTS = np.array([[adds.get(total, 0) for total in TOTALS] for _, adds in _TRANSITIONS], dtype=np.int16)
LEVELS, NAGEL = TOTALS.index("levels"), TOTALS.index("nagel")
OSCILLATES = COUNTS[:, NAGEL].copy()


class OscillationCounter:
    """Counts code changes of many weights at once; one :meth:`tick` per optimizer step (or per epoch).

    ``codes``: int8, all tensors flattened one after another, with lengths ``sizes``. Totals are kept per
    tensor, from the first tick on, in the order of :data:`TOTALS`:

    * ``crossings`` changes; ``levels`` sum of |change|
    * ``nagel`` changes opposite in direction to the previous change
    * ``corrected`` = sum of lengths of alternating runs of at least two changes (first crossing included)
    * ``trips`` = there-and-back pairs, sum of floor(length / 2)

    ``momentum`` is m of f_t = m o_t + (1 - m) f_{t-1}; None keeps no frequency. ``timeout`` ends a run after
    that many quiet ticks. :func:`counter` makes the form for a device.
    """

    def __init__(
        self, codes: Tensor, sizes: list[int], *, momentum: float | None = 0.01, timeout: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        device = codes.device
        self.sizes, self.momentum, self.timeout = sizes, momentum or 0.0, timeout or 0
        self.codes = codes.clone()
        self.run = torch.zeros_like(codes)
        self.totals = torch.zeros(len(TOTALS), len(sizes), dtype=torch.int64, device=device)
        self.ticks = 0
        self._scaled_frequency = None if momentum is None else torch.zeros(codes.shape, dtype=dtype, device=device)
        self._since_rebase = 0
        self._last_change = torch.zeros(codes.shape, dtype=torch.int32, device=device) if timeout else None

    def tick(self, codes: Tensor) -> None:
        """Compare with the codes of the previous tick and count."""
        self.ticks += 1
        self._since_rebase += 1
        self._count(codes, self.momentum * (1 - self.momentum) ** -self._since_rebase)
        if self._since_rebase == REBASE_AFTER:
            if self._scaled_frequency is not None:
                self._scaled_frequency.mul_((1 - self.momentum) ** self._since_rebase)
            self._since_rebase = 0

    def _count(self, codes: Tensor, weight: float) -> None:
        """Count the changes, of which each adds ``weight`` to the stored frequency if it is an oscillation."""
        raise NotImplementedError

    def frequency(self) -> Tensor:
        """Exponential moving average of oscillations per tick, for every weight; there must be a momentum."""
        assert self._scaled_frequency is not None
        return self._scaled_frequency * (1 - self.momentum) ** self._since_rebase

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors."""
        state = {
            "codes": self.codes, "run": self.run, "totals": self.totals,
            "ticks": torch.tensor([self.ticks, self._since_rebase]),
        }  # fmt: skip
        if self._scaled_frequency is not None:
            state["frequency"] = self._scaled_frequency
        if self._last_change is not None:
            state["last_change"] = self._last_change
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.codes.copy_(state["codes"])
        self.run.copy_(state["run"])
        self.totals.copy_(state["totals"])
        self.ticks, self._since_rebase = state["ticks"].tolist()
        if self._scaled_frequency is not None:
            self._scaled_frequency.copy_(state["frequency"])
        if self._last_change is not None:
            self._last_change.copy_(state["last_change"])


class SparseCounter(OscillationCounter):
    """On the CPU, by numpy: on the few weights that changed its calls cost a third of torch's."""

    def __init__(self, codes: Tensor, sizes: list[int], **options: Any):
        super().__init__(codes, sizes, **options)
        self._ends = np.cumsum(sizes)

    def _count(self, codes: Tensor, weight: float) -> None:
        old, run = self.codes.numpy(), self.run.numpy()
        at = differing(codes.numpy(), old)
        new = codes.numpy().take(at)
        change = new.astype(np.int16) - old.take(at)
        if self._last_change is not None:
            last_change = self._last_change.numpy()
            run[at[self.ticks - last_change[at] > self.timeout]] = 0
            last_change[at] = self.ticks
        kind = 2 * (run.take(at) + 3) + (change > 0)
        old[at] = new
        run[at] = NEXT_RUN.take(kind)
        if self._scaled_frequency is not None:
            frequency = self._scaled_frequency.numpy()
            frequency[at] += frequency.dtype.type(weight) * OSCILLATES.take(kind)
        tensors, changes = len(self.sizes), np.searchsorted(at, self._ends)
        changes[1:] -= changes[:-1].copy()
        tensor = np.arange(tensors).repeat(changes)
        happened = np.bincount(len(COUNTS) * tensor + kind, minlength=len(COUNTS) * tensors)
        counted = happened.reshape(tensors, -1) @ COUNTS
        counted[:, LEVELS] = np.bincount(tensor, np.abs(change), minlength=tensors)
        self.totals.numpy()[:] += counted.T


class DenseCounter(OscillationCounter):
    """On a device, without reading any value on the host: the same table, looked up for every weight."""

    def __init__(self, codes: Tensor, sizes: list[int], **options: Any):
        super().__init__(codes, sizes, **options)
        self._next_run, self._counts = (torch.from_numpy(table).to(codes.device) for table in (NEXT_RUN, COUNTS))

    def _count(self, codes: Tensor, weight: float) -> None:
        change = codes.short() - self.codes
        moved = change != 0
        if self._last_change is not None:
            self.run.masked_fill_(moved & (self.ticks - self._last_change > self.timeout), 0)
            self._last_change.masked_fill_(moved, self.ticks)
        kind = (2 * (self.run + 3) + (change > 0)).int()
        counts = self._counts[kind].mul_(moved[:, None])
        counts[:, LEVELS] = change.abs()
        if self._scaled_frequency is not None:
            self._scaled_frequency.add_(counts[:, NAGEL], alpha=weight)
        self.run.copy_(torch.where(moved, self._next_run[kind], self.run))
        self.codes.copy_(codes)
        self.totals += torch.stack([part.sum(0) for part in counts.split(self.sizes)]).T


def counter(codes: Tensor, sizes: list[int], **options: Any) -> OscillationCounter:
    """The :class:`OscillationCounter` in the form for where the codes lie."""
    return (DenseCounter if forms.dense(codes) else SparseCounter)(codes, sizes, **options)


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two int8 arrays differ, in order: where their 8-byte words differ, then which bytes do.

    Most words agree, so this takes two thirds of the time of comparing every byte.
    """
    whole = len(a) // 8 * 8
    words_a, words_b = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
    words = np.flatnonzero(words_a != words_b)
    bytes_ = np.flatnonzero((words_a.take(words) ^ words_b.take(words)).view(np.int8).astype(bool))
    at = 8 * words.take(bytes_ >> 3) + (bytes_ & 7)
    return at if whole == len(a) else np.concatenate([at, whole + np.flatnonzero(a[whole:] != b[whole:])])
