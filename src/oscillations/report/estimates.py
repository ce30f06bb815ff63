"""Estimates over seeds and what they say of a statement; the arithmetic is scipy's.

A *test* gives two p values: ``support``, of what speaks for the statement if it were false, and ``against``, of what
speaks against it if it were true. Both are read at 5 %: a one-sided bound takes the two-sided p value, an equivalence
two one-sided tests (TOST), each at that level. A claim of several comparisons is supported if each supports it
(an intersection-union test, which needs no correction) and contradicted if one contradicts it after Holm's
correction over all of them. A verdict that a margin decides must survive the uncertainty of the interval's own end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special  # whose functions scipy.stats calls, without the half second of its import

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_RUN = "not run"
NOT_JUDGED = "not judged"  # has run, and counts for nothing: a free choice was fitted to it, or all is chance
DECIDED = (SUPPORTED, CONTRADICTED, INCONCLUSIVE)
LEVEL = 0.05
MINIMUM_RUNS = 3  # fewer have no interval and decide nothing
PUBLISHED_RUNS = (3, 5)  # the paper does not say how many seeds; what is assumed


@dataclass(frozen=True)
class Estimate:
    """A statistic of n values; NaN is what there is not.

    ``low``, ``high``: 95 % interval. ``p``: two-sided p value of what has no interval. ``error``, ``freedom``: standard
    error and degrees of freedom of a mean.
    """

    n: int
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    error: float = math.nan
    freedom: float = math.nan


def mean_interval(values: np.ndarray) -> Estimate:
    """Mean of independent (or paired-difference) values with Student's interval, from three values on."""
    n = len(values)
    value = float(values.mean()) if n else math.nan
    if n < MINIMUM_RUNS:
        return Estimate(n, value)
    return student(n, value, float(values.std(ddof=1)) / math.sqrt(n), n - 1)


def student(n: int, value: float, error: float, freedom: float) -> Estimate:
    """An estimate whose error is Student's with so many degrees of freedom."""
    half = float(special.stdtrit(freedom, 1 - LEVEL / 2)) * error if error else 0.0
    return Estimate(n, value, value - half, value + half, error=error, freedom=freedom)


def welch(n: int, value: float, parts: Sequence[tuple[float, int]]) -> Estimate:
    """A sum or difference of means with (standard deviation, n) each, of unequal variances (Welch, Satterthwaite)."""
    variances = [std**2 / count for std, count in parts]
    total = sum(variances)
    if not total > 0:
        return Estimate(n, value)
    freedom = total**2 / sum(variance**2 / (count - 1) for variance, (_, count) in zip(variances, parts))
    return student(n, value, math.sqrt(total), freedom)


def std_interval(values: np.ndarray) -> Estimate:
    """Standard deviation of normal values with its chi-square interval."""
    n = len(values)
    if n < MINIMUM_RUNS:
        return Estimate(n)
    std = float(values.std(ddof=1))
    tails = 2 * special.gammaincinv((n - 1) / 2, [1 - LEVEL / 2, LEVEL / 2])  # quantiles of chi-square
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
    from scipy import stats  # only here: see above

    rising, falling = (stats.page_trend_test(values[:, ::step]) for step in (1, -1))
    rho = 12 * rising.statistic / (n * levels * (levels**2 - 1)) - 3 * (levels + 1) / (levels - 1)
    return Estimate(n, float(rho), p=float(min(1.0, 2 * min(rising.pvalue, falling.pvalue))))


def spread(values: Sequence[float] | np.ndarray | pd.Series) -> float:
    """Sample standard deviation; NaN for fewer than three values, as there is no interval."""
    values = np.asarray(values, dtype=float)
    return float(values.std(ddof=1)) if len(values) >= MINIMUM_RUNS else math.nan


def variance_ratio(above: Sequence[np.ndarray], below: Sequence[np.ndarray]) -> Estimate:
    """Geometric mean over groups of the ratio of two variances, with interval and p value; n: values on a side.

    Every group counts alike, however large its variances. The logarithm of a variance of normal values has mean
    digamma(f / 2) - log(f / 2) about its truth and variance trigamma(f / 2), at f degrees of freedom; the mean over
    groups is taken as normal. Values of one seed on both sides make the test cautious.
    """
    n = sum(len(group) for group in above)
    if n < MINIMUM_RUNS or any(len(group) < MINIMUM_RUNS or not np.ptp(group) > 0 for group in (*above, *below)):
        return Estimate(n)
    logs, variance = [], 0.0
    for pair in zip(above, below):
        one, other = (math.log(group.var(ddof=1)) - _log_bias(len(group) - 1) for group in pair)
        logs.append(one - other)
        variance += sum(float(special.polygamma(1, (len(group) - 1) / 2)) for group in pair)
    mean, error = float(np.mean(logs)), math.sqrt(variance) / len(logs)
    half = float(special.ndtri(1 - LEVEL / 2)) * error
    low, value, high = (math.exp(mean + step) for step in (-half, 0, half))
    return Estimate(n, value, low, high, p=2 * float(special.ndtr(-abs(mean) / error)))


def _log_bias(freedom: int) -> float:
    return float(special.digamma(freedom / 2)) - math.log(freedom / 2)


# -- tests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a test says. ``margin`` is a chosen bound; the verdict would be another with a bound at ``turns_at``."""

    support: float
    against: float
    margin: float = math.nan
    turns_at: float = math.nan
    note: str = ""


class Above:
    """The statement "greater than ``bound``"; a bound other than 0 is chosen."""

    sign = 1

    def __init__(self, bound: float = 0.0):
        self.bound = bound

    def holds(self, value: float) -> bool:
        """Whether a bare number agrees with the statement."""
        return self.sign * (value - self.bound) > 0

    def __call__(self, found: Estimate) -> Result:
        below, above = _tails(found, self.bound)
        support, against = (above, below) if self.sign > 0 else (below, above)
        chosen = (self.bound, _end(found, self.bound)) if self.bound else ()
        return Result(_doubled(support), _doubled(against), *chosen)


class Below(Above):
    """The statement "less than ``bound``"."""

    sign = -1


class Between:
    """The statement "between ``low`` and ``high``": two one-sided tests; contradicted by what lies outside."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def holds(self, value: float) -> bool:
        return self.low < value < self.high

    def __call__(self, found: Estimate) -> Result:
        (below_low, above_low), (below_high, above_high) = (_tails(found, bound) for bound in (self.low, self.high))
        support, against = max(above_low, below_high), _doubled(min(below_low, above_high))
        near = min((self.low, self.high), key=lambda bound: abs(found.value - bound))
        outwards = 1 if near == self.high else -1
        half = float(special.stdtrit(found.freedom, 1 - LEVEL)) * found.error  # TOST is the 90 % interval's
        inside, outside = found.value + outwards * half, found.value - outwards * (found.high - found.value)
        turns_at = inside if self.holds(found.value) else outside
        return Result(support, against, near, turns_at, self.note(found) if support < LEVEL else "")

    def note(self, found: Estimate) -> str:
        """What more is certain of what lies between."""
        return ""


class Within(Between):
    """The statement "within +-``margin``"."""

    def __init__(self, margin: float):
        super().__init__(-margin, margin)

    def note(self, found: Estimate) -> str:
        side = "above" if found.low > 0 else "below" if found.high < 0 else ""
        return f"within the margin, and {side}" if side else ""


class ByP:
    """The statement "greater (or, ``sign`` -1, less) than ``neutral``" by an estimate's own p value."""

    def __init__(self, neutral: float = 0.0, sign: int = 1):
        self.neutral, self.sign = neutral, sign

    def holds(self, value: float) -> bool:
        return self.sign * (value - self.neutral) > 0

    def __call__(self, found: Estimate) -> Result:
        p = 1.0 if math.isnan(found.p) else found.p
        return Result(p, 1.0) if self.holds(found.value) else Result(1.0, p)


class StdAbove:
    """The statement "a standard deviation greater than ``bound``", of normal values."""

    def __init__(self, bound: float):
        self.bound = bound

    def holds(self, value: float) -> bool:
        return value > self.bound

    def __call__(self, found: Estimate) -> Result:
        scaled = (found.n - 1) * (found.value / self.bound) ** 2
        tails = _doubled(special.chdtrc(found.n - 1, scaled)), _doubled(special.chdtr(found.n - 1, scaled))
        return Result(*tails, self.bound, _end(found, self.bound))


Test = Above | Between | ByP | StdAbove


def _tails(found: Estimate, bound: float) -> tuple[float, float]:
    """p values of "below the bound" and "above the bound", one-sided."""
    if found.error == 0:
        return float(found.value >= bound), float(found.value <= bound)
    t = (found.value - bound) / found.error
    return float(special.stdtr(found.freedom, t)), float(special.stdtr(found.freedom, -t))


def _doubled(p: float) -> float:
    return min(1.0, 2 * float(p))


def _end(found: Estimate, bound: float) -> float:
    """The end of the interval that faces the bound: with a bound beyond it the verdict would be another."""
    return found.low if found.value > bound else found.high


# -- verdicts ----------------------------------------------------------------------------------------------


def holm(values: ArrayLike) -> np.ndarray:
    """p values corrected for their number along the last dimension (Holm, 1979), in their order."""
    p = np.asarray(values, dtype=float)
    order = p.argsort(-1)
    stepped = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(np.maximum.accumulate(stepped, -1), 1), -1)
    return corrected


def too_near(found: Estimate, result: Result) -> bool:
    """Whether a chosen margin decides by less than the interval's own end is known.

    The half width of Student's interval has a relative error of about 1 / sqrt(2 * degrees of freedom); other intervals
    rest on no estimated error.
    """
    uncertain = abs(result.turns_at - found.value) / math.sqrt(2 * found.freedom)
    return abs(result.turns_at - result.margin) < uncertain  # False for NaN: without a margin, or not Student's


def decided(result: Result) -> bool:
    """Whether a comparison would have a verdict if it stood alone."""
    return result.support < LEVEL or result.against < LEVEL


def verdicts(found: Sequence[tuple[Estimate, Result | None]]) -> list[str]:
    """The verdict of every counted comparison of a claim; too few runs have no result."""
    known = [result for _, result in found if result]
    corrected = iter(holm([result.against for result in known]).tolist())
    return [INCONCLUSIVE if result is None else _verdict(one, replace(result, against=next(corrected)))
            for one, result in found]  # fmt: skip


def _verdict(found: Estimate, result: Result) -> str:
    if too_near(found, result):
        return INCONCLUSIVE
    if result.support < LEVEL:
        return SUPPORTED
    return CONTRADICTED if result.against < LEVEL else INCONCLUSIVE


def overall(verdicts: Sequence[str]) -> str:
    """A claim about several comparisons: one contradiction contradicts it, all that count must support it."""
    counted = [verdict for verdict in verdicts if verdict in DECIDED]
    if not counted:
        return NOT_JUDGED if NOT_JUDGED in verdicts else NOT_RUN
    if CONTRADICTED in counted:
        return CONTRADICTED
    return SUPPORTED if all(verdict == SUPPORTED for verdict in counted) else INCONCLUSIVE
