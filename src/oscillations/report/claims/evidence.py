"""What a study's runs say, as numbers by seed, and claims made of comparisons of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from oscillations import datasets
from oscillations.report.estimates import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    Estimate,
    Judge,
    mean_interval,
    overall,
    verdict,
)
from oscillations.report.measurements import with_all_columns
from oscillations.report.tables.published import MODEL_NAMES, bits_label, read_published
from oscillations.study.schema import Study

Measure = Callable[[pd.DataFrame], float]  # of one run's rows


@dataclass(frozen=True)
class Sample:
    """One number per seed (or one row of numbers), the runs behind each, and whether a choice was fitted to it."""

    values: pd.Series | pd.DataFrame
    runs: Mapping[Any, str] = field(default_factory=dict)
    fitted: bool = False
    diverged: int = 0  # runs that ended without a number

    @classmethod
    def of(cls, rows: pd.DataFrame, column: str, fitted: bool = False) -> Sample:
        """From rows with ``seed`` and ``run``, one per seed; a seed without a number has none."""
        diverged = int((rows.status == "diverged").sum()) if "status" in rows else 0
        rows = rows[rows[column].notna()].set_index("seed")
        return cls(rows[column].astype(float), rows.run.to_dict(), fitted, diverged)

    @classmethod
    def none(cls) -> Sample:
        """What has not run."""
        return cls(pd.Series(dtype=float))

    def __sub__(self, other: Sample) -> Sample:
        """Paired differences."""
        return combine([self, other], lambda table: table[0] - table[1])


def combine(samples: Sequence[Sample], function: Callable[[pd.DataFrame], pd.Series | pd.DataFrame]) -> Sample:
    """``function`` of a table with one column per sample (0, 1, ...) and the seeds that all samples have."""
    if not samples:
        return Sample.none()
    table = pd.concat([sample.values for sample in samples], axis=1, join="inner", keys=range(len(samples)))
    runs = {seed: " ".join(sample.runs[seed] for sample in samples) for seed in table.index}
    diverged = sum(sample.diverged for sample in samples)
    return Sample(function(table), runs, any(sample.fitted for sample in samples), diverged)


def side_by_side(samples: Sequence[Sample]) -> Sample:
    """A row per seed and a column per sample, as :func:`stats.trend` wants them."""
    return combine(samples, lambda table: table) if samples else Sample(pd.DataFrame())


def per_run(rows: pd.DataFrame, measure: Measure, fitted: bool = False) -> Sample:
    """``measure`` of every run's rows; NaN means that the run says nothing."""
    found = [(seed, run, measure(mine)) for (seed, run), mine in rows.groupby(["seed", "run"])]
    return Sample.of(pd.DataFrame(found, columns=["seed", "run", "value"]), "value", fitted)


def without_diverged_numbers(measurements: pd.DataFrame) -> pd.DataFrame:
    """The table in which a diverged run has neither an accuracy nor a best epoch."""
    done = measurements.status == "done"
    return measurements.assign(**{column: measurements[column].where(done) for column in ("accuracy", "best_epoch")})


@dataclass(frozen=True)
class Comparison:
    """One tested statement of a claim."""

    text: str
    estimate: Estimate
    verdict: str
    runs: list[str]


@dataclass
class Claim:
    """A statement with the comparisons that decide it; ``reason`` says why there is none."""

    name: str
    statement: str
    comparisons: list[Comparison] = field(default_factory=list)
    reason: str = ""

    def add(
        self, text: str, sample: Sample, judge: Judge, measure: Callable[[np.ndarray], Estimate] = mean_interval
    ) -> None:
        """Judge what ``measure`` makes of the numbers of all seeds."""
        estimate = measure(sample.values.to_numpy(dtype=float))
        runs = sorted({run for names in sample.runs.values() for run in names.split()})
        text += f" ({sample.diverged} runs diverged)" if sample.diverged else ""
        found = verdict(estimate, judge, sample.fitted, sample.diverged)
        self.comparisons.append(Comparison(text, estimate, found, runs))

    @property
    def verdict(self) -> str:
        return overall([comparison.verdict for comparison in self.comparisons])

    def deciding(self) -> Comparison | None:
        """The comparison to show: the first that contradicts, else that is open, else that supports."""
        for kind in (CONTRADICTED, INCONCLUSIVE, SUPPORTED):
            for comparison in self.comparisons:
                if comparison.verdict == kind:
                    return comparison
        return None


@dataclass(frozen=True)
class Group:
    """An experiment behind a main table; its name is empty where a published model and setting has not run."""

    experiment: str
    model: str
    setting: str
    start: str = ""  # what it was fine-tuned from

    def __str__(self) -> str:
        setting = f"{self.setting} from {self.start}" if self.start else self.setting
        return f"{MODEL_NAMES.get(self.model, self.model)} ({setting})"


@dataclass(frozen=True)
class Sweep:
    """Rows of QAT and OsciQuant of one model at one bit width and learning rate, whatever lambda; none if not run."""

    model: str
    bits: int
    rows: pd.DataFrame
    fitted: Sequence[tuple[str, str, str, int]]  # as in the study

    def __str__(self) -> str:
        return f"{MODEL_NAMES.get(self.model, self.model)}, {bits_label(self.bits)}"

    def osciquant(self, measure: Measure, low: float = 0.0, high: float = math.inf) -> dict[float, Sample]:
        """A number per run, by lambda in rising order."""
        chosen = self.rows[(self.rows.method == "osciquant") & self.rows["lambda"].between(low, high)]
        fitted = (self.model, "sweep", "osciquant", self.bits) in self.fitted
        return {lam: per_run(rows, measure, fitted) for lam, rows in chosen.groupby("lambda")}

    def qat(self, measure: Measure) -> Sample:
        fitted = (self.model, "sweep", "qat", self.bits) in self.fitted
        return per_run(self.rows[self.rows.method == "qat"], measure, fitted)


class Evidence:
    """Test accuracies and histories of a study's finished runs."""

    def __init__(self, study: Study, measurements: pd.DataFrame, oscillations: pd.DataFrame):
        """The tables of :mod:`oscillations.report.collect`."""
        self.study = study
        tests = without_diverged_numbers(measurements)
        self.tests = tests[(tests.split == "test") & (tests.bn == "keep")]
        epochs = with_all_columns(oscillations)
        names = [epochs[column].astype(str) for column in ("experiment", "variant", "seed")]
        run = f"results/{study.study}/runs/" + names[0] + "/" + names[1] + "/seed" + names[2]
        self.epochs = epochs.assign(run=run)

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in percent."""
        return 100 / len(datasets.find(self.study.data).CLASSES)

    def groups(self, *models: str) -> list[Group]:
        """All that tables 1 and 2 publish (of some models), with the study's experiments that have run."""
        published = read_published()
        published = published[published.table.isin(["table1", "table2"])]
        main = self._experiments("table1", "table2")
        groups = []
        for model, setting in published[["model", "setting"]].drop_duplicates().itertuples(index=False, name=None):
            if models and model not in models:
                continue
            t = self.tests[(self.tests.model == model) & (self.tests.setting == setting)]
            starts = t.groupby("experiment").start.first()
            found = [Group(name, model, setting, starts[name]) for name in main if name in starts]
            groups += found or [Group("", model, setting)]
        return groups

    def _experiments(self, *tables: str) -> list[str]:
        return list(dict.fromkeys(name for table in tables for name in self.study.shown_in(table)))

    def accuracy(self, group: Group, method: str, train_bits: int, eval_bits: int) -> Sample:
        """Test accuracy in percent."""
        return self._sample("accuracy", group, method, train_bits, eval_bits)

    def best_epoch(self, group: Group, method: str, train_bits: int) -> Sample:
        """The epoch of the weights that are reported: as fitted as the accuracy beside it."""
        return self._sample("best_epoch", group, method, train_bits, train_bits)

    def _sample(self, column: str, group: Group, method: str, train_bits: int, eval_bits: int) -> Sample:
        t = self.tests
        rows = t[
            (t.experiment == group.experiment) & (t.method == method)
            & (t.train_bits == train_bits) & (t.eval_bits == eval_bits)
        ]  # fmt: skip
        return Sample.of(rows, column, (group.model, group.setting, method, eval_bits) in self.study.fitted)

    def history(self, group: Group, method: str, train_bits: int, measure: Measure) -> Sample:
        """A number per seed from its run's epochs."""
        e = self.epochs
        rows = e[(e.experiment == group.experiment) & (e.method == method) & (e.train_bits == train_bits)]
        return per_run(rows, measure, (group.model, group.setting, method, train_bits) in self.study.fitted)

    def sweeps(self, rows: pd.DataFrame, *tables: str) -> list[Sweep]:
        """The lambda sweeps of some tables among ``rows`` (``tests`` or ``epochs``), published ones first.

        A point that stands in two experiments, the main one and the sweep say, is taken from the first.
        """
        rows = rows[rows.experiment.isin(self._experiments(*tables)) & rows.method.isin(["qat", "osciquant"])]
        found: dict[tuple[str, int], list[Sweep]] = {}
        for (model, bits, _), group in rows.groupby(["model", "train_bits", "lr"], sort=False):
            if group["lambda"].nunique() > 1:
                variant = group.experiment + "/" + group.variant
                first = variant.groupby([group.method, group["lambda"]], dropna=False).transform("first")
                found.setdefault((model, bits), []).append(self._sweep(model, bits, group[variant == first]))
        published = read_published()
        published = published[published.table.isin(tables)]
        keys: list[tuple[str, int]]
        keys = [*published[["model", "train_bits"]].drop_duplicates().itertuples(index=False, name=None), *found]
        return [sweep for key in dict.fromkeys(keys) for sweep in found.get(key, [self._sweep(*key, rows.iloc[:0])])]

    def _sweep(self, model: str, bits: int, rows: pd.DataFrame) -> Sweep:
        return Sweep(model, bits, rows, self.study.fitted)
