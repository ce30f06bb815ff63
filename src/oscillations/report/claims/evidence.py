"""What a study's runs say, as numbers by seed, and claims made of comparisons of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from oscillations.report.estimates import (
    CONTRADICTED,
    DECIDED,
    INCONCLUSIVE,
    MINIMUM_RUNS,
    NOT_JUDGED,
    NOT_RUN,
    PUBLISHED_RUNS,
    SUPPORTED,
    Estimate,
    Result,
    Test,
    decided,
    mean_interval,
    overall,
    too_near,
    verdicts,
    welch,
)
from oscillations.report.results import Report, lookup
from oscillations.report.text import MODEL_NAMES, bits_label
from oscillations.study.report_schema import SweepPanels, figure_number

FITTED = "a free choice was fitted to a number of it"
Measure = Callable[[pd.DataFrame], float]  # of one run's rows


@dataclass(frozen=True)
class Published:
    """A published number, or what is computed of several: their sum of ``parts`` is a mean each, with its std.

    Without parts nothing is published of its spread. The paper does not say how many seeds stand behind it.
    """

    value: float
    parts: tuple[float, ...] = ()

    def __sub__(self, other: Published) -> Published:
        whole = bool(self.parts and other.parts)
        return Published(self.value - other.value, (*self.parts, *other.parts) if whole else ())

    def estimate(self, runs: int) -> Estimate:
        """With the interval that the number would have, had it so many seeds."""
        return welch(runs, self.value, [(std, runs) for std in self.parts])


@dataclass(frozen=True)
class Sample:
    """One number per seed (or one row of numbers), the runs behind each, and what is published beside them.

    ``fitted``: a choice was fitted to a number of it. ``diverged``: runs that ended without a number.
    """

    values: pd.Series | pd.DataFrame
    runs: Mapping[Any, str] = field(default_factory=dict)
    fitted: bool = False
    diverged: int = 0
    published: Published | None = None

    @classmethod
    def of(cls, rows: pd.DataFrame, column: str, fitted: bool = False, published: Published | None = None) -> Sample:
        """From rows with ``seed`` and ``run``, one per seed; a seed without a number has none."""
        diverged = int((rows.status == "diverged").sum()) if "status" in rows else 0
        rows = rows[rows[column].notna()].set_index("seed")
        return cls(rows[column].astype(float), rows.run.to_dict(), fitted, diverged, published)

    @classmethod
    def none(cls) -> Sample:
        """What has not run."""
        return cls(pd.Series(dtype=float))

    def __sub__(self, other: Sample) -> Sample:
        """Paired differences."""
        published = self.published - other.published if self.published and other.published else None
        return replace(combine([self, other], lambda table: table[0] - table[1]), published=published)


def combine(samples: Sequence[Sample], function: Callable[[pd.DataFrame], pd.Series | pd.DataFrame]) -> Sample:
    """``function`` of a table with one column per sample (0, 1, ...) and the seeds that all samples have.

    Of the published means, if there are any, it is the same function.
    """
    if not samples:
        return Sample.none()
    table = pd.concat([sample.values for sample in samples], axis=1, join="inner", keys=range(len(samples)))
    runs = {seed: " ".join(sample.runs[seed] for sample in samples) for seed in table.index}
    diverged = sum(sample.diverged for sample in samples)
    known = [sample.published.value for sample in samples if sample.published]
    found = function(pd.DataFrame([known])) if len(known) == len(samples) else None
    published = Published(float(found.iloc[0])) if isinstance(found, pd.Series) else None
    return Sample(function(table), runs, any(sample.fitted for sample in samples), diverged, published)


def span(table: pd.DataFrame) -> pd.Series:
    """The range over the columns of each row."""
    return table.max(axis=1) - table.min(axis=1)


def side_by_side(samples: Sequence[Sample]) -> Sample:
    """A row per seed and a column per sample, as :func:`stats.trend` wants them."""
    return combine(samples, lambda table: table) if samples else Sample(pd.DataFrame())


def per_run(rows: pd.DataFrame, measure: Measure, fitted: bool = False) -> Sample:
    """``measure`` of every run's rows; NaN means that the run says nothing."""
    found = [(seed, run, measure(mine)) for (seed, run), mine in rows.groupby(["seed", "run"])]
    return Sample.of(pd.DataFrame(found, columns=["seed", "run", "value"]), "value", fitted)


@dataclass(frozen=True)
class Comparison:
    """One tested statement of a claim.

    ``subject``: what it is about, a model in a setting say. ``side``: it is shown, and decides nothing. ``excluded``:
    why it counts for nothing although it has run. ``limits``: why it cannot have some verdicts. ``verdict`` stands only
    when the claim has all its comparisons, for Holm's correction is over them.
    """

    text: str
    estimate: Estimate
    test: Test
    runs: list[str]
    subject: str = ""
    side: bool = False
    excluded: str = ""
    diverged: int = 0
    published: Published | None = None
    note: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)
    verdict: str = NOT_RUN

    @property
    def result(self) -> Result | None:
        """What the test says of the runs."""
        return self.test(self.estimate) if self.estimate.n >= MINIMUM_RUNS and self._has_spread else None

    @property
    def _has_spread(self) -> bool:
        return not (math.isnan(self.estimate.low) and math.isnan(self.estimate.p))

    @property
    def ran(self) -> bool:
        return self.estimate.n > 0 or self.diverged > 0

    @property
    def notes(self) -> str:
        """What a reader must know of it."""
        result, found = self.result, [self.excluded, *self.limits.values(), self.note]
        if result and not self.excluded:
            found.append(result.note)
            if decided(result) and too_near(self.estimate, result):
                found.append(f"decided by less than its uncertainty: turns at {result.turns_at:.4g}")
        return "; ".join(filter(None, found))

    def published_says(self) -> str:
        """Whether the published numbers hold by themselves, and what the same test says of them."""
        if self.published is None:
            return ""
        if self.excluded and not self.ran:
            return self.excluded
        says = "holds" if self.test.holds(self.published.value) else "fails"
        found = self.published.estimate(PUBLISHED_RUNS[-1])
        if math.isnan(found.error):
            return says
        return f"{says}; {verdicts([(found, self.test(found))])[0]} if n = {found.n}"


@dataclass
class Claim:
    """A statement with the comparisons that decide it.

    ``reason`` says why there is none; ``after_runs``: what is tested was chosen when runs had been seen.
    """

    name: str
    statement: str
    reason: str = ""
    after_runs: bool = False
    added: list[Comparison] = field(default_factory=list)

    def add(
        self, text: str, sample: Sample, test: Test, measure: Callable[[np.ndarray], Estimate] = mean_interval, *,
        subject: str = "", side: bool = False, excluded: str = "", note: str = "",
        limits: Mapping[str, str] | None = None, published: Published | None = None,
    ) -> None:  # fmt: skip
        """Test what ``measure`` makes of the numbers of all seeds; ``published``: instead of the sample's."""
        estimate = measure(sample.values.to_numpy(dtype=float))
        runs = sorted({run for names in sample.runs.values() for run in names.split()})
        text += f" ({sample.diverged} runs diverged)" if sample.diverged else ""
        excluded = FITTED if sample.fitted else excluded
        beside = published or sample.published
        self.added.append(
            Comparison(text, estimate, test, runs, subject, side, excluded, sample.diverged, beside, note, limits or {})
        )

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All that were added, with their verdicts."""
        said: dict[int, str] = {}
        for side in (False, True):  # Holm's correction is over what decides
            counted = [one for one in self.added if one.ran and not one.excluded and one.side == side]
            for one, verdict in zip(counted, verdicts([(one.estimate, one.result) for one in counted])):
                said[id(one)] = INCONCLUSIVE if verdict in one.limits else verdict
        ran = {True: NOT_JUDGED, False: NOT_RUN}
        return [replace(one, verdict=said.get(id(one), ran[one.ran])) for one in self.added]

    @property
    def main(self) -> list[Comparison]:
        """Those that decide."""
        return [one for one in self.comparisons if not one.side]

    @property
    def verdict(self) -> str:
        return overall([one.verdict for one in self.main])

    @property
    def scope(self) -> str:
        """What the verdict is about: ``MLP5 (scratch): 3 of 11 comparisons``."""
        counted = [one for one in self.main if one.verdict in DECIDED]
        if not counted:
            return ""
        subjects = ", ".join(filter(None, dict.fromkeys(one.subject for one in counted)))
        text = f"{subjects}: " * bool(subjects) + f"{len(counted)} of {len(self.main)} comparisons"
        own = any(one.published for one in self.main) and not any(one.published for one in counted)
        return f"{text}, none with a published number" if own else text

    def deciding(self) -> Comparison | None:
        """The comparison to show: what contradicts most clearly, else the first that is open, else that supports."""
        for kind in (CONTRADICTED, INCONCLUSIVE, SUPPORTED):
            if found := [one for one in self.main if one.verdict == kind]:
                return min(found, key=_against) if kind == CONTRADICTED else found[0]
        return None


def _against(comparison: Comparison) -> float:
    return comparison.result.against if comparison.result else math.nan


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
    published: Mapping[float, float]  # mean accuracy by lambda

    def __str__(self) -> str:
        return f"{self.subject}, {bits_label(self.bits)}"

    @property
    def subject(self) -> str:
        return MODEL_NAMES.get(self.model, self.model)

    def osciquant(self, measure: Measure, low: float = 0.0, high: float = math.inf) -> dict[float, Sample]:
        """A number per run, by lambda in rising order."""
        chosen = self.rows[(self.rows.method == "osciquant") & self.rows["lambda"].between(low, high)]
        fitted = (self.model, "sweep", "osciquant", self.bits) in self.fitted
        return {lam: per_run(rows, measure, fitted) for lam, rows in chosen.groupby("lambda")}

    def qat(self, measure: Measure) -> Sample:
        fitted = (self.model, "sweep", "qat", self.bits) in self.fitted
        return per_run(self.rows[self.rows.method == "qat"], measure, fitted)


class Evidence:
    """Test accuracies (batch-norm statistics kept) and histories of a study's finished runs."""

    def __init__(self, report: Report):
        self.study, self._published = report.study, report.published
        evaluations = report.results.evaluations
        self.tests, self.epochs = evaluations[evaluations.bn == "keep"], report.results.epochs
        self._cells = lookup(self.tests, ["experiment", "method", "train_bits", "eval_bits"])
        outside = self._published[self._published["lambda"].isna()]  # of sweeps
        self._published_cells = lookup(outside, ["model", "setting", "method", "train_bits", "eval_bits"])

    def both_near_chance(self, *samples: Sample) -> str:
        """Why a comparison says nothing: all its means, or if it has not run the published, are near chance."""
        means = [sample.values.mean() for sample in samples]
        if all(map(math.isnan, means)):
            means = [sample.published.value for sample in samples if sample.published]
        return "all near chance" if means and all(mean < self.study.near_chance for mean in means) else ""

    def groups(self, *models: str) -> list[Group]:
        """All that tables 1 and 2 publish (of some models), with the study's experiments that have run."""
        published = self._published
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

    def published_lambdas(self, table: str) -> list[float]:
        """The lambdas of a published table."""
        return list(self._published[self._published.table == table]["lambda"].unique())

    def accuracy(self, group: Group, method: str, train_bits: int, eval_bits: int) -> Sample:
        """Test accuracy in percent."""
        return self._sample("accuracy", group, method, train_bits, eval_bits)

    def best_epoch(self, group: Group, method: str, train_bits: int) -> Sample:
        """The epoch of the weights that are reported: as fitted as the accuracy beside it."""
        return self._sample("best_epoch", group, method, train_bits, train_bits)

    def _sample(self, column: str, group: Group, method: str, train_bits: int, eval_bits: int) -> Sample:
        rows = self._cells((group.experiment, method, train_bits, eval_bits))
        fitted = (group.model, group.setting, method, eval_bits) in self.study.fitted
        published = self.published(group.model, group.setting, method, train_bits, eval_bits, column)
        if rows.empty:
            return replace(Sample.none(), fitted=fitted, published=published)
        return Sample.of(rows, column, fitted, published)

    def published(
        self, model: str, setting: str, method: str, train_bits: int, eval_bits: int, column: str = "accuracy"
    ) -> Published | None:
        """What tables 1 to 3 say: a mean accuracy with its spread, or a mean ``best_epoch`` without one."""
        rows = self._published_cells((model, setting, method, train_bits, eval_bits))
        values = (rows["mean"] if column == "accuracy" else rows.epochs).dropna()
        if values.empty:
            return None
        stds = rows["std"].dropna() if column == "accuracy" else rows["std"].iloc[:0]
        return Published(float(values.iloc[0]), tuple(stds.iloc[:1]))

    def rate_searches(self) -> dict[tuple[str, int], pd.DataFrame]:
        """Accuracy at the target of OsciQuant's runs behind every figure 5, by model and bits."""
        found: dict[tuple[str, int], pd.DataFrame] = {}
        for name, spec in self.study.figures.items():
            if isinstance(spec, SweepPanels) and figure_number(name) == "figure5":
                model = self.study.experiments[spec.experiments[0]].model["name"]
                t = self.tests[self.tests.experiment.isin(spec.experiments) & (self.tests.method == "osciquant")]
                found[model, spec.bits] = t[(t.train_bits == spec.bits) & (t.eval_bits == spec.bits)]
        return found

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
                first = group.path.groupby([group.method, group["lambda"]], dropna=False).transform("first")
                found.setdefault((model, bits), []).append(self._sweep(model, bits, group[group.path == first]))
        published = self._published
        published = published[published.table.isin(tables)]
        keys: list[tuple[str, int]]
        keys = [*published[["model", "train_bits"]].drop_duplicates().itertuples(index=False, name=None), *found]
        return [sweep for key in dict.fromkeys(keys) for sweep in found.get(key, [self._sweep(*key, rows.iloc[:0])])]

    def _sweep(self, model: str, bits: int, rows: pd.DataFrame) -> Sweep:
        p = self._published
        known = p[(p.model == model) & (p.setting == "sweep") & (p.train_bits == bits)]
        return Sweep(model, bits, rows, self.study.fitted, dict(zip(known["lambda"], known["mean"])))
