"""Intervals and verdicts: t statistics over seeds, paired where both sides share them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
MINIMUM_RUNS = 3  # fewer decide nothing


@dataclass(frozen=True)
class Interval:
    """Mean of n values with a two-sided t interval; low and high are NaN below two values."""

    n: int
    mean: float
    low: float
    high: float


def t_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of the mean of independent (or paired-difference) values."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Interval(n, mean, float(mean - half), float(mean + half))


def above(interval: Interval, bound: float = 0.0) -> str:
    """Verdict on "the mean is greater than ``bound``"."""
    if interval.n == 0:
        return NOT_RUN
    if interval.n < MINIMUM_RUNS:
        return INCONCLUSIVE
    if interval.low > bound:
        return SUPPORTED
    return CONTRADICTED if interval.high < bound else INCONCLUSIVE


def below(interval: Interval, bound: float) -> str:
    """Verdict on "the mean is less than ``bound``"."""
    return above(Interval(interval.n, -interval.mean, -interval.high, -interval.low), -bound)


def within(interval: Interval, margin: float) -> str:
    """Verdict on "the mean is within +-margin" (two one-sided tests: pass the 90 % interval for level 5 %)."""
    if interval.n == 0:
        return NOT_RUN
    if interval.n < MINIMUM_RUNS:
        return INCONCLUSIVE
    if -margin < interval.low and interval.high < margin:
        return SUPPORTED
    return CONTRADICTED if interval.low > margin or interval.high < -margin else INCONCLUSIVE


def overall(verdicts: list[str]) -> str:
    """A claim about several comparisons: one contradiction contradicts it, all must support it."""
    run = [verdict for verdict in verdicts if verdict != NOT_RUN]
    if not run:
        return NOT_RUN
    if CONTRADICTED in run:
        return CONTRADICTED
    return SUPPORTED if all(verdict == SUPPORTED for verdict in run) else INCONCLUSIVE
