"""What a report is made of: the tables of a study and of its neighbours, each read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT, REQUANTIZE, SLICE
from oscillations.core.errors import InputError
from oscillations.engine.recipe import Recipe
from oscillations.records.plans import Plan, plans
from oscillations.records.rows import read_csv
from oscillations.report.table import Table
from oscillations.study.paths import PUBLISHED, Run, measurements_file, results
from oscillations.study.reading import load
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

MEASUREMENTS = [
    "study", "data", "experiment", "model", "setting", "method", "variant", "train_bits", "eval_bits", "grid",
    "levels", "calibration", "bn", "preset", "reg_reduction", "scale_grad", "lambda", "lr", "seed", "split",
    "accuracy", "best_epoch", "epochs_run", "status", "run",
    "start", "bn_divergence", "rule", "selection", "activation_bits",
]  # fmt: skip
OSCILLATIONS = [
    "experiment", "variant", "model", "method", "train_bits", "lambda", "lr", "seed", "status", "steps_per_epoch",
    "epoch", "train_loss", "val_loss", "monitored", "val_acc_32", "val_acc_2", "val_acc_3", "val_acc_4", "weights",
    "max_over_std", "kurtosis", "iteration_nagel", "epoch_nagel", "near_threshold", "share_zero", "layer_shares",
    "layer_shares_epoch",
]  # fmt: skip
POSTTRAINING = [
    "study", "data", "experiment", "variant", "model", "start_method", "train_bits", "label", "method", "eval_bits",
    "per_channel", "grid", "levels", "calibration", "bn", "seed", "accuracy", "calibration_loss", "iterations",
    "seconds", "oscillation", "largest_loss", "status", "run", "activation_bits",
]  # fmt: skip
IDENTIFYING = {  #: columns that say what a row of a collected table belongs to
    "measurements": ["run", "experiment", "variant", "seed", "split"],
    "oscillations": ["experiment", "variant", "seed", "epoch"],
    "made_after": ["run", "experiment", "variant", "seed", "label"],
    "losses": ["run", "label", "place"],
}
RECONSTRUCTION = ["run", "label", "eval_bits", "place", "unit", "group", "loss"]


def _none(columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=columns)


@dataclass(frozen=True)
class Results:
    """What one study has measured, as its tables hold it, and what all that is written of it takes from them.

    In every table ``path`` is ``experiment/variant``. A diverged run has no numbers.
    """

    study: str
    measurements: pd.DataFrame = field(default_factory=lambda: _none(MEASUREMENTS))
    oscillations: pd.DataFrame = field(default_factory=lambda: _none(OSCILLATIONS))
    made_after: pd.DataFrame = field(default_factory=lambda: _none(POSTTRAINING))
    losses: pd.DataFrame = field(default_factory=lambda: _none(RECONSTRUCTION))

    @classmethod
    def read(cls, study: str) -> Results:
        """From the study's files; nothing of what has not run."""
        files = {"measurements": measurements_file(study)} | {
            table: results(study) / f"{name}.csv" for table, name in COLLECTED.items()
        }
        found = {table: read_table(file, "start") for table, file in files.items() if file.exists()}
        for table, rows in found.items():
            if missing := [name for name in IDENTIFYING[table] if name not in rows]:
                raise InputError(f"{files[table]}: is damaged: has no column {missing[0]}")
        return cls(study, **found)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Accuracies on the test split by re-quantization, of what stands for a run, batch norm kept or re-estimated.

        ``kept_epoch``: the one whose weights these are.
        """
        return self._evaluations(standing(by_rule(self.measurements, REQUANTIZE)))

    @cached_property
    def slices(self) -> pd.DataFrame:
        """As :attr:`evaluations`, by slices; nothing that is made of those holds any."""
        return self._evaluations(standing(by_rule(self.measurements, SLICE)))

    @cached_property
    def ends(self) -> pd.DataFrame:
        """As :attr:`evaluations`, of the weights at the end of training, of every run that keeps these."""
        return self._evaluations(last(by_rule(self.measurements, REQUANTIZE)))

    @cached_property
    def end_slices(self) -> pd.DataFrame:
        """As :attr:`ends`, by slices."""
        return self._evaluations(last(by_rule(self.measurements, SLICE)))

    def _evaluations(self, measurements: pd.DataFrame) -> pd.DataFrame:
        tests = measurements[measurements.split == "test"]
        kept_epoch = tests.best_epoch.where(selections(tests) == "best", tests.epochs_run)
        tests = tests.assign(path=_path(tests), kept_epoch=kept_epoch)
        done = tests.status == "done"
        return tests.assign(**{name: tests[name].where(done) for name in ("accuracy", "best_epoch", "kept_epoch")})

    def validation(self, at_end: bool) -> pd.DataFrame:
        """Validation accuracies of runs that did not diverge, of what stands for one or of the end of training."""
        measurements = by_rule(self.measurements, REQUANTIZE)
        chosen = last(measurements) if at_end else standing(measurements)
        chosen = chosen[(chosen.split == "validation") & (chosen.status == "done")]
        return chosen.assign(path=_path(chosen))

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Accuracies on the test split of the runs that did not diverge, batch-norm statistics kept."""
        return kept(self.evaluations)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Every epoch of the runs that did not diverge, as in :attr:`all_epochs`."""
        return self.all_epochs[self.all_epochs.status == "done"]

    @cached_property
    def all_epochs(self) -> pd.DataFrame:
        """Every epoch of every run, with shares of the quantized weights in percent.

        ``per_step`` and ``per_epoch`` (changed back), ``near`` (a threshold) and ``zero`` (quantized to it); none of
        runs that quantize nothing. A rule that looks back one epoch says nothing of the first.
        """
        table = self.oscillations
        missing = [column for column in OSCILLATIONS if column not in table]  # nothing in it has logged them
        table = table.reindex(columns=[*table.columns, *missing])
        cells = table[["experiment", "variant", "seed"]].itertuples(index=False, name=None)
        runs = [str(Run(self.study, *cell).folder) for cell in cells]
        return table.assign(
            path=_path(table),
            run=pd.Series(runs, table.index, dtype=object),
            per_epoch=(100 * table.epoch_nagel / table.weights).where(table.epoch > 1),
            per_step=100 * table.iteration_nagel / table.weights / table.steps_per_epoch,
            near=100 * table.near_threshold,
            zero=100 * table.share_zero,
        )

    @cached_property
    def last_epochs(self) -> pd.DataFrame:
        """Each quantized run's last epoch."""
        quantized = self.epochs[self.epochs.train_bits != LATENT]
        return quantized.groupby("run", sort=False).tail(1)  # epochs stand in their order

    @cached_property
    def posttraining(self) -> pd.DataFrame:
        """Every post-training result; diverged ones without numbers."""
        table = self.made_after
        return table.assign(path=_path(table), accuracy=table.accuracy.where(table.status == "done"))

    @cached_property
    def reconstruction(self) -> pd.DataFrame:
        """The reconstruction loss of every unit, with the run's path and seed."""
        runs = self.posttraining.drop_duplicates("run")[["run", "path", "seed"]]
        return self.losses.merge(runs, on="run")


COLLECTED = {"oscillations": "oscillations", "made_after": "posttraining", "losses": "reconstruction"}  # field: file


def by_rule(measurements: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows of one rule of cross-bit evaluation; what names none is re-quantized."""
    named = measurements.reindex(columns=["rule"])["rule"].astype(object)
    return measurements[named.fillna(REQUANTIZE) == rule]


def standing(measurements: pd.DataFrame) -> pd.DataFrame:
    """The rows of the weights that stand for their run: the best epoch's, where it keeps these."""
    best = selections(measurements) == "best"
    return measurements[best | ~measurements["run"].isin(measurements["run"][best])]


def last(measurements: pd.DataFrame) -> pd.DataFrame:
    """The rows of the weights at the end of training."""
    return measurements[selections(measurements) == "last"]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that did not diverge, batch-norm statistics kept."""
    return table[(table.bn == "keep") & table.accuracy.notna()]


def selections(measurements: pd.DataFrame) -> pd.Series:
    """Which weights a row is about, ``best`` or ``last``; a table from before there was the column has the best."""
    return measurements.reindex(columns=["selection"]).selection.astype(object).fillna("best")


def lookup(table: pd.DataFrame, column: str | list[str] = "path") -> Callable[[Any], pd.DataFrame]:
    """What gives the rows with a value in a column (or values in several), in their order, however many there are."""
    places = table.groupby(column, sort=False).indices
    return lambda value: table.iloc[places.get(value, [])]


def _path(table: pd.DataFrame) -> pd.Series:
    return table.experiment.astype(str) + "/" + table.variant.astype(str)


class Report:
    """A study and all that its report is made of, each file read once and when it is wanted."""

    def __init__(self, study: Study, variants: list[Variant], *known: Results):
        """``known``: results that are at hand, instead of those in files."""
        self.study, self.variants = study, variants
        self._read = {results.study: results for results in known}

    @classmethod
    def load(cls, file: Path) -> Report:
        """Of a study file."""
        return cls(*load(file))

    def of(self, study: str) -> Results:
        """What this study or a neighbour of it has measured."""
        if study not in self._read:
            self._read[study] = Results.read(study)
        return self._read[study]

    @property
    def results(self) -> Results:
        """What this study has measured."""
        return self.of(self.study.study)

    @property
    def folder(self) -> Path:
        """Where its tables and pages lie."""
        return results(self.study.study)

    @cached_property
    def plans(self) -> list[Plan]:
        """Every run with its state."""
        return plans(self.variants)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Resolved recipe by ``experiment/variant``."""
        return {variant.path: variant.recipe for variant in self.variants}

    def why_not_run(self, experiment: str) -> str:
        """As far as the study says; no experiment is none of this study."""
        return self.study.not_run.get(experiment, "not trained yet") if experiment else "not in this study"

    @cached_property
    def published(self) -> pd.DataFrame:
        """The published cells; ``table`` is ``table1`` to ``table5``."""
        return read_published()

    def read(self, name: str, *texts: str) -> pd.DataFrame:
        """A table that an earlier step of the report wrote. Raises InputError if it is not there."""
        self.refuse_missing([self.folder / name])
        return read_table(self.folder / name, *texts)

    def table(self, name: str) -> Table:
        """A table as people see it. Raises InputError if the tables' step has not written it."""
        file = self.folder / "tables" / f"{name}.json"
        self.refuse_missing([file])
        return Table.read(file)

    def refuse_missing(self, files: Iterable[Path]) -> None:
        """Raise InputError if a file that an earlier step of the report writes is not there."""
        for file in files:
            if not file.exists():
                name = self.study.study
                raise InputError(f"{file}: not there; python -m oscillations report --study {name} makes it")


def read_published() -> pd.DataFrame:
    """The published cells; ``table`` is ``table1`` to ``table5``."""
    published = read_csv(PUBLISHED, ["table"])
    published["table"] = "table" + published["table"].str[1:]
    return published


def read_table(file: Path, *texts: str) -> pd.DataFrame:
    """A table some of whose columns are texts, empty where there is none."""
    return read_csv(file, dtype=dict.fromkeys(texts, str)).fillna(dict.fromkeys(texts, ""))
