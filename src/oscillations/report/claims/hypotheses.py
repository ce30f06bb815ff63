"""Hypotheses: statements that a study file makes about runs, judged like the paper's claims."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from oscillations.report.claims.evidence import Claim, Sample, combine, per_run, span
from oscillations.report.claims.measures import per_epoch, per_step
from oscillations.report.estimates import Above, Below, Test, Within
from oscillations.report.results import Report
from oscillations.study.paths import study_file
from oscillations.study.reading import load
from oscillations.study.report_schema import Contrast, Side, Tested

TESTS: dict[str, Callable[[float], Test]] = {"above": Above, "below": Below, "within": Within}
AFTER_RUNS = "set after runs had been seen"


def claims(report: Report) -> list[Claim]:
    """All hypotheses of a study, in order, each with its comparisons."""
    if not report.study.hypotheses:
        return []
    found, runs = [], Runs(report)
    for name, hypothesis in report.study.hypotheses.items():
        claim = Claim(name, hypothesis.statement)
        for tested in hypothesis.comparisons:
            sample = runs.contrast(tested, tested)
            if tested.than is not None:
                sample = sample - runs.contrast(tested.than, tested)
            note = AFTER_RUNS if tested.set_after_runs else ""
            claim.add(tested.text, sample, TESTS[tested.expect](tested.bound), side=tested.side, note=note)
        found.append(claim)
    return found


class Runs:
    """What a study and its reference have measured, by ``experiment/variant``."""

    def __init__(self, report: Report):
        study = report.study
        names, self.fitted = [study.study], set(study.fitted)
        if study.reference:
            names.append(study.reference)
            self.fitted |= set(load(study_file(study.reference))[0].fitted)
        self.tests = pd.concat([report.of(name).evaluations for name in names])
        kept = self.tests[["run", "kept_epoch"]].drop_duplicates()
        self.epochs = pd.concat([report.of(name).epochs for name in names]).merge(kept, on="run")

    def contrast(self, contrast: Contrast, tested: Tested) -> Sample:
        """``of - minus``, or ``of`` alone."""
        of = self.side(contrast.of, tested)
        return of if contrast.minus is None else of - self.side(contrast.minus, tested)

    def side(self, side: Side, tested: Tested) -> Sample:
        """A variant's number, or the range over several variants."""
        samples = [self.measured(path, side, tested) for path in side.variants]
        return samples[0] if len(samples) == 1 else combine(samples, span)

    def measured(self, path: str, side: Side, tested: Tested) -> Sample:
        """What one variant measured, by seed."""
        if tested.measure == "accuracy":
            mine = self.tests[(self.tests.path == path) & (self.tests.bn == side.bn)]
            mine = mine[mine.eval_bits == (mine.train_bits if side.bits is None else side.bits)]
            cells = mine[["model", "setting", "method", "eval_bits"]].itertuples(index=False, name=None)
            return Sample.of(mine, "accuracy", any(cell in self.fitted for cell in cells))
        mine = self.epochs[self.epochs.path == path]
        if tested.measure in ("per_step", "per_epoch"):
            # counts fall during training: only epochs that all compared runs have
            compared = self.epochs[self.epochs.path.isin(tested.paths)]
            last = int(compared.groupby(["path", "seed"]).epoch.max().min()) if len(compared) else 0
            measure = per_step(last) if tested.measure == "per_step" else per_epoch(last)
            return per_run(mine, measure)
        if tested.to is not None:  # layer_distance, whole or last
            samples = [self.layer_shares(one, tested.measure) for one in (path, tested.to)]
            return combine(samples, lambda table: (table[0] - table[1]).map(np.abs).map(sum) / 2)
        return Sample.of(mine[mine.epoch == mine.kept_epoch], tested.measure)

    def layer_shares(self, path: str, measure: str) -> Sample:
        """How a run's oscillations, of all epochs or of its last, are spread over its layers: shares by seed, sum 1."""
        mine = self.epochs[self.epochs.path == path]
        last = mine[mine.epoch == mine.groupby("seed").epoch.transform("max")].set_index("seed")
        column = last.layer_shares if measure == "layer_distance" else last.layer_shares_epoch
        shares = column.map(lambda text: np.array([float(share) for share in text.split()]))
        return Sample(shares, last.run.to_dict())
