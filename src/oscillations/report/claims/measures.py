"""What is measured of a run: one number from its rows in ``measurements.csv`` or ``oscillations.csv``."""

from __future__ import annotations

import math

import pandas as pd

from oscillations.report.claims.evidence import Measure


def per_epoch(last: int) -> Measure:
    """% of the weights that oscillate from one epoch to the next, mean over epochs 2 to ``last``."""
    return lambda run: run.per_epoch[run.epoch.between(2, last)].mean()


def per_step(last: int) -> Measure:
    """% of the weights that oscillate from one optimizer step to the next, mean over epochs 2 to ``last``."""
    return lambda run: run.per_step[run.epoch.between(2, last)].mean()


def own_accuracy(run: pd.DataFrame) -> float:
    """Test accuracy at the bits trained for, of a run's rows in ``measurements.csv``."""
    return run.accuracy[run.eval_bits == run.train_bits].iloc[0]


def rise_elsewhere(run: pd.DataFrame) -> float:
    """How the mean accuracy at 3, 4 and 8 bits (but for the target) changes from first to last third of epochs."""
    third = len(run) // 3
    if not third:
        return math.nan
    others = _evaluated(run, (3, 4, 8))
    accuracy = run[others].mean(axis=1, skipna=False)
    return accuracy.iloc[-third:].mean() - accuracy.iloc[:third].mean()


def later_elsewhere(near: float) -> Measure:
    """By how many epochs 4 and 8 bits (but for the target) come within ``near`` points of their best later than it."""

    def measure(run: pd.DataFrame) -> float:
        def converged(column: str) -> float:
            return run.epoch[run[column] >= run[column].max() - near].min()

        others = [converged(column) for column in _evaluated(run, (4, 8))]
        return sum(others) / len(others) - converged(f"val_acc_{run.train_bits.iloc[0]:.0f}") if others else math.nan

    return measure


def _evaluated(run: pd.DataFrame, widths: tuple[int, ...]) -> list[str]:
    """The columns of validation accuracy at some widths, but for the target, as far as the study evaluates there."""
    return [column for bits in widths if (column := f"val_acc_{bits}") in run and bits != run.train_bits.iloc[0]]


def near_at_best(run: pd.DataFrame) -> float:
    """Share of the weights near a threshold at the epoch whose weights are reported."""
    return run.near_threshold[run.monitored.idxmax()]


def deepest_recovered(run: pd.DataFrame) -> float:
    """Deepest drop of FP or target validation accuracy that ended at the maximum before it or above; 0 if none."""
    deepest = 0.0
    for column in ("val_acc_32", f"val_acc_{run.train_bits.iloc[0]:.0f}"):
        highest, fall = -math.inf, 0.0
        for accuracy in run[column]:
            if accuracy >= highest:
                deepest, highest, fall = max(deepest, fall), accuracy, 0.0
            fall = max(fall, highest - accuracy)
    return deepest
