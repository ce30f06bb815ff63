"""Hypotheses: statements that a study file makes about runs, judged like the paper's claims."""

from __future__ import annotations

import numpy as np
import pandas as pd

from oscillations.report.claims import TOST, Claim
from oscillations.report.collect import read_measurements, read_oscillations
from oscillations.report.stats import above, below, within
from oscillations.study import Contrast, Side, Study, Tested

JUDGES = {"above": above, "below": below, "within": within}


class Measurements:
    """What the study and its reference have measured, by ``experiment/variant``."""

    def __init__(self, study: Study):
        names = [study.study, *([study.reference] if study.reference else [])]
        tests = pd.concat([read_measurements(name) for name in names])
        epochs = pd.concat([read_oscillations(name) for name in names])
        self.tests = tests[(tests.split == "test") & (tests.status == "done")].assign(
            path=lambda table: table.experiment + "/" + table.variant
        )
        self.epochs = epochs.assign(path=epochs.experiment + "/" + epochs.variant)

    def runs(self, paths: list[str]) -> list[str]:
        return sorted(set(self.tests[self.tests.path.isin(paths)].run))

    def accuracy(self, path: str, side: Side) -> pd.Series:
        """Test accuracy in percent, by seed; at the variant's own training bits unless the side names others."""
        mine = self.tests[(self.tests.path == path) & (self.tests.bn == side.bn)]
        bits = mine.train_bits if side.bits is None else side.bits
        return mine[mine.eval_bits == bits].set_index("seed").accuracy

    def count(self, path: str, measure: str, paths: list[str]) -> pd.Series:
        """Percent of the weights that change back, per step or per epoch, by seed.

        Counts fall during training: the mean is over the epochs that all ``paths`` have, without the first, in
        which no change can be opposite to an earlier one of another epoch.
        """
        compared = self.epochs[self.epochs.path.isin(paths)]
        shared = compared.groupby(["path", "seed"]).epoch.max().groupby("seed").min()
        mine = compared[(compared.path == path) & (compared.epoch >= 2)]
        mine = mine[mine.epoch <= mine.seed.map(shared)]
        steps = mine.steps_per_epoch if measure == "per_step" else 1
        counted = mine.iteration_nagel if measure == "per_step" else mine.epoch_nagel
        return (100 * counted / mine.weights / steps).groupby(mine.seed).mean()

    def at_best(self, path: str, column: str) -> pd.Series:
        """A statistic of the weights in the best epoch, by seed."""
        best = self.tests[self.tests.path == path].groupby("seed").best_epoch.first()
        mine = self.epochs[self.epochs.path == path]
        return mine[mine.epoch == mine.seed.map(best)].set_index("seed")[column]

    def layer_shares(self, path: str) -> pd.Series:
        """How a run's oscillations are spread over its layers (shares that sum to 1), by seed."""
        last = self.epochs[self.epochs.path == path].groupby("seed").layer_shares.last().dropna()
        return last.map(lambda text: np.array([float(share) for share in text.split()]))

    def one(self, path: str, side: Side, tested: Tested) -> pd.Series:
        if tested.measure == "accuracy":
            return self.accuracy(path, side)
        if tested.measure in ("per_step", "per_epoch"):
            return self.count(path, tested.measure, tested.paths)
        if tested.measure == "layer_distance":
            mine, other = self.layer_shares(path), self.layer_shares(tested.to)
            seeds = mine.index.intersection(other.index)
            return pd.Series({seed: np.abs(mine[seed] - other[seed]).sum() / 2 for seed in seeds}, dtype=float)
        return self.at_best(path, tested.measure)

    def side(self, side: Side, tested: Tested) -> pd.Series:
        """One number per seed: a variant's, or the range over several variants (seeds that all have)."""
        values = pd.concat([self.one(path, side, tested) for path in side.variants], axis=1, join="inner")
        return values.iloc[:, 0] if len(side.variants) == 1 else values.max(axis=1) - values.min(axis=1)

    def contrast(self, contrast: Contrast, tested: Tested) -> pd.Series:
        """``of - minus``, or ``of`` alone, by seed."""
        values = self.side(contrast.of, tested)
        return values if contrast.minus is None else (values - self.side(contrast.minus, tested)).dropna()


def judge_hypotheses(study: Study) -> list[Claim]:
    """All hypotheses of a study with their comparisons, in order."""
    if not study.hypotheses:
        return []
    measured, claims = Measurements(study), []
    for name, hypothesis in study.hypotheses.items():
        claim = Claim(name, hypothesis.statement)
        for tested in hypothesis.comparisons:
            values = measured.contrast(tested, tested)
            if tested.than is not None:
                values = (values - measured.contrast(tested.than, tested)).dropna()
            judge = JUDGES[tested.expect]
            level = TOST if tested.expect == "within" else 0.95
            claim.add(
                tested.text, values, lambda i, judge=judge, bound=tested.bound: judge(i, bound),
                measured.runs(tested.paths), level,
            )  # fmt: skip
        claims.append(claim)
    return claims
