"""How a method's knob changes over training."""

from __future__ import annotations

import math


def cosine(progress: float, first: float, last: float, start: float) -> float:
    """``first`` up to the share ``start`` of training, then half a cosine to ``last`` (Nagel et al. 2022).

    ``progress`` is the share of the steps already made, in [0, 1].
    """
    if progress <= start:
        return first
    return last + (first - last) / 2 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))
