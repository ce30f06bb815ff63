"""Estimates over seeds and verdicts on them; the arithmetic is scipy's.

Verdicts are at the 5 % level, two-sided: an interval or a p value must exclude the opposite. Equivalence is two
one-sided tests at that level, which is a 90 % interval inside the margin, and contradicted by one outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_RUN = "not run"
FITTED = "fitted"  # rests on a number that a free choice was fitted to: counts for nothing
LEVEL = 0.05
MINIMUM_RUNS = 3  # fewer decide nothing
BOOTSTRAP_FROM = 8  # values from which on the bootstrap stands instead of Student's t


@dataclass(frozen=True)
class Estimate:
    """A statistic of n values: with an interval, or with a two-sided p value; NaN is what there is not."""

    n: int
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


Judge = Callable[[Estimate], str]


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean of independent (or paired-difference) values: t interval, from 8 values on BCa bootstrap, seeded."""
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Estimate(n, mean)
    if np.ptp(values) == 0:  # neither method has a width to find
        return Estimate(n, mean, mean, mean)
    if n < BOOTSTRAP_FROM:
        low, high = stats.t.interval(confidence, n - 1, loc=mean, scale=stats.sem(values))
    else:
        found = stats.bootstrap((values,), np.mean, confidence_level=confidence, rng=0)
        low, high = found.confidence_interval
    return Estimate(n, mean, float(low), float(high))


def tost_interval(values: np.ndarray) -> Estimate:
    """The interval whose lying inside +-margin is two one-sided tests at the 5 % level."""
    return mean_interval(values, 1 - 2 * LEVEL)


def std_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Standard deviation of normal values with its chi-square interval."""
    n = len(values)
    if n < 2:
        return Estimate(n)
    std = float(values.std(ddof=1))
    tails = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], n - 1)
    low, high = std * np.sqrt((n - 1) / tails)
    return Estimate(n, std, float(low), float(high))


def trend(values: np.ndarray) -> Estimate:
    """Page's trend test of [seeds, levels]: mean rank correlation with the level, and its p value.

    Page's L is the mean over seeds of Spearman's coefficient in other units. Two levels are no trend and one
    seed is no test. Page, "Ordered hypotheses for multiple treatments" (1963).
    """
    n, levels = values.shape
    if n < 2 or levels < 3:
        return Estimate(n)
    rising, falling = (stats.page_trend_test(values[:, ::step]) for step in (1, -1))
    rho = 12 * rising.statistic / (n * levels * (levels**2 - 1)) - 3 * (levels + 1) / (levels - 1)
    return Estimate(n, float(rho), p=float(min(1.0, 2 * min(rising.pvalue, falling.pvalue))))


def sign_test(values: np.ndarray) -> Estimate:
    """Share of values below zero, with the p value of its being one half; zero and NaN say nothing."""
    signed = values[(values != 0) & ~np.isnan(values)]
    if not len(signed):
        return Estimate(len(values))
    below_zero = int((signed < 0).sum())
    return Estimate(len(signed), below_zero / len(signed), p=float(stats.binomtest(below_zero, len(signed)).pvalue))


def above(estimate: Estimate, bound: float = 0.0) -> str:
    """Verdict on "greater than ``bound``", by the interval."""
    if estimate.low > bound:
        return SUPPORTED
    return CONTRADICTED if estimate.high < bound else INCONCLUSIVE


def below(estimate: Estimate, bound: float) -> str:
    """Verdict on "less than ``bound``", by the interval."""
    if estimate.high < bound:
        return SUPPORTED
    return CONTRADICTED if estimate.low > bound else INCONCLUSIVE


def within(estimate: Estimate, margin: float) -> str:
    """Verdict on "within +-margin", by the interval of :func:`tost_interval`."""
    if -margin < estimate.low and estimate.high < margin:
        return SUPPORTED
    return CONTRADICTED if estimate.low > margin or estimate.high < -margin else INCONCLUSIVE


def significant(estimate: Estimate, neutral: float = 0.0) -> str:
    """Verdict on "greater than ``neutral``", by the p value."""
    if not estimate.p < LEVEL:
        return INCONCLUSIVE
    return SUPPORTED if estimate.value > neutral else CONTRADICTED


def verdict(estimate: Estimate, judge: Judge, fitted: bool = False, diverged: int = 0) -> str:
    """What ``judge`` says, where there are runs, enough of them, and none that a choice was fitted to."""
    if estimate.n == 0 and not diverged:
        return NOT_RUN
    if fitted:
        return FITTED
    return INCONCLUSIVE if estimate.n < MINIMUM_RUNS else judge(estimate)


def overall(verdicts: list[str]) -> str:
    """A claim about several comparisons: one contradiction contradicts it, all must support it.

    What has not run or counts for nothing is left out.
    """
    counted = [verdict for verdict in verdicts if verdict not in (NOT_RUN, FITTED)]
    if not counted:
        return NOT_RUN
    if CONTRADICTED in counted:
        return CONTRADICTED
    return SUPPORTED if all(verdict == SUPPORTED for verdict in counted) else INCONCLUSIVE
