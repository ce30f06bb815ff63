"""How the learning rate, or a method's knob, changes over training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oscillations.engine.method import Moment
    from oscillations.engine.recipe import Training


def cosine(progress: float, first: float, last: float, start: float) -> float:
    """``first`` up to the share ``start`` of training, then half a cosine to ``last`` (Nagel et al. 2022).

    ``progress`` is the share of the steps already made, in [0, 1].
    """
    if progress <= start:
        return first
    return last + (first - last) / 2 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))


def learning_rate(training: Training, moment: Moment) -> float:
    """Of the step at ``moment``: in the warm-up a line from ``warmup_start`` to ``lr``, then the schedule.

    A step that begins in the warm-up has the line's value where the step ends, so that the first moves and the last
    has ``lr``; timm's schedulers, called at every step, take where it begins. A later one has the schedule's value
    where it begins: the first has ``lr``, and none has 0, which is reached at the end.
    """
    lr, warmup = training.lr, training.warmup / training.epochs
    if moment.begun < warmup:
        risen = min(moment.ended / warmup, 1.0)
        return training.warmup_start * (1 - risen) + lr * risen
    if training.schedule == "cosine":
        return cosine(moment.begun, lr, 0.0, warmup)
    if training.schedule == "linear":
        return lr * ((1 - moment.begun) / (1 - warmup))
    return lr
