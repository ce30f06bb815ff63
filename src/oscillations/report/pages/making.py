"""How a study was made: every variant, its oscillations and norms, open choices, cost and runs, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from oscillations.records import cost, numerics
from oscillations.records.plans import Plan
from oscillations.report.estimates import spread
from oscillations.report.results import Report
from oscillations.report.table import Missing, Row, Table
from oscillations.report.tables import cross_bit, exports, rate_search
from oscillations.report.tables.published import summarise
from oscillations.report.text import bits_label, count, plus_minus
from oscillations.study.paths import experiment_of
from oscillations.study.schema import Study


@dataclass(frozen=True)
class Section:
    """A table about how results came about, with what a reader must know of it."""

    table: Table
    note: str
    wrap: bool = False  #: its cells hold sentences


def sections(report: Report, costs: Costs, choices: list[tuple[str, str]]) -> list[Section]:
    """All of them, but those that have nothing to say of this study."""
    found = [
        Section(
            cells_table(report),
            f"Test accuracy in percent of the best epoch's weights{_others(report)}: mean ± deviation over n seeds.",
        ),
        Section(
            _oscillations(report),
            "Share of the quantized weights whose integer code changed opposite to its previous change.",
        ),
        Section(_norms(report), "The paper does not mention re-estimation; all tables keep the training's statistics."),
    ]
    searched = [rate_search.NAME] if report.study.rate_searches else []
    sliced = [cross_bit.NAME] if report.study.slices else []
    for name in [*searched, *sliced, *([exports.NAME, exports.WIDTHS] if report.study.exports else [])]:
        table = report.table(name)
        found.append(Section(table, " ".join([*table.notes[1:], table.not_run])))
    if report.study.judged:
        rows = [Row({"Open": item, "Taken": taken}) for item, taken in choices]
        note = "Neither the text nor the official code says; this is what is taken here."
        found.append(Section(Table("open", "What the paper leaves open", [], rows), note, wrap=True))
    found.append(
        Section(
            costs.table(),
            f"Predicted from the measured time of a training step and of an evaluated image ({cost.machines()}), "
            "beside what the finished runs took and how to make those that are left. Evaluation of checkpoints comes "
            "on top, and so do starts of processes.",
        )
    )
    found.append(
        Section(_runs(report), "A variant leads to its page: curves, recipe, environment, provenance and files.")
    )
    found.append(
        Section(
            _arithmetic(plan.result for plan in report.plans if plan.current),
            "A run is not made again when code is rewritten that computes the same: a source that was compared bit for "
            "bit joins the version whose numbers it computes (`python -m oscillations certify`).",
        )
    )
    return [section for section in found if section.table.rows]


def _others(report: Report) -> str:
    """The variants that keep no best epoch."""
    last = [path for path, recipe in report.recipes.items() if recipe.training.keep == "last"]
    return f" ({', '.join(last)}: of the last's)" if last else ""


def cells_table(report: Report) -> Table:
    """Test accuracy of every variant at every evaluation bit, batch-norm statistics kept."""
    rows = []
    for path, cells in summarise(report.results.evaluations).groupby("path", sort=False):
        at = cells.set_index("eval_bits")
        found = {
            bits_label(bits): plus_minus(at["mean"][bits], at["std"][bits]) if bits in at.index else ""
            for bits in report.study.eval_bits
        }
        rows.append(Row({"Variant": str(path)} | found | {"n": str(cells.n.max())}, cells.runs.iloc[0].split()))
    return Table("variants", "Every variant at every bit width", [], rows)


def _oscillations(report: Report) -> Table:
    """Weights and oscillations in each run's last epoch, mean and spread over seeds."""
    last = report.results.last_epochs
    columns = {
        "per_step": ("oscillating per step, %", 3), "per_epoch": ("per epoch, %", 2),
        "near": ("near a threshold, %", 2), "zero": ("quantized to 0, %", 1), "max_over_std": ("max|w| / std", 2),
        "kurtosis": ("kurtosis", 2),
    }  # fmt: skip
    rows = []
    for path, runs in last[last.near.notna()].groupby("path", sort=False):
        cells = {
            name: plus_minus(runs[column].mean(), spread(runs[column]), digits)
            for column, (name, digits) in columns.items()
        }
        rows.append(Row({"Variant": str(path)} | cells | {"n": str(len(runs))}, list(runs.run)))
    return Table("oscillations", "Oscillations and weights in the last epoch", [], rows)


def _norms(report: Report) -> Table:
    """Networks with batch norm, a row each: at every width the statistics kept, and re-estimated."""
    evaluations = report.results.evaluations
    fresh = summarise(evaluations, "reestimate")
    kept = summarise(evaluations[evaluations.path.isin(fresh.path)])
    both = kept.merge(fresh, on=["path", "method", "train_bits", "eval_bits"], suffixes=("", "_fresh"))
    rows = []
    for path, cells in both.groupby("path", sort=False):
        at = {
            bits_label(
                row.eval_bits
            ): f"{plus_minus(row['mean'], row['std'])} → {plus_minus(row.mean_fresh, row.std_fresh)}"
            for _, row in cells.iterrows()
        }
        runs = list(dict.fromkeys(run for named in cells.runs for run in named.split()))
        rows.append(Row({"Variant": str(path)} | at | {"n": str(cells.n.min())}, runs))
    return Table("norms", "Batch-norm statistics: kept → re-estimated at each bit width", [], rows)


# -- cost --------------------------------------------------------------------------------------------------


class Costs:
    """What a study is predicted to cost by experiment, what it took, and what is left."""

    def __init__(self, report: Report):
        self.study: Study = report.study
        self.variants = {path: list(group) for path, group in groupby(report.plans, lambda plan: plan.variant.path)}
        self.predicted = {one.experiment: one for one in cost.predict(report.plans, report.study.judged)}
        self.finished: dict[str, list[dict[str, Any]]] = {name: [] for name in self.predicted}
        for plan in report.plans:
            if plan.current:
                self.finished[plan.run.experiment].append(plan.result)

    def left(self, experiment: str) -> int:
        """Runs."""
        return self.predicted[experiment].runs - len(self.finished[experiment])

    def hours_left(self, paths: Iterable[str]) -> float | None:
        """Core-hours of what has not run of some variants; None where a step of one was not measured."""
        missing = [plan for path in paths for plan in self.variants.get(path, ()) if not plan.current]
        hours = [one.core_hours for one in cost.predict(missing, self.study.judged)]
        return None if None in hours else sum(one for one in hours if one is not None)

    def command(self, name: str) -> str:
        """That makes what is left of an experiment or an entry."""
        return f"snakemake --cores 8 all --config study={self.study.study} only={name}"

    def left_out(self, missing: list[Missing]) -> dict[str, Any] | None:
        """What has not run of a table: one line, and by experiment the reason, the predicted cost and the cells."""
        if not missing:
            return None
        cells = sum(len(one.cells) for one in missing)
        reasons = "; ".join(dict.fromkeys(one.reason for one in missing))
        paths = {path for one in missing for path in one.variants}
        parts = [
            {
                "head": f"{one}{self.predicted_text(one.variants)}.",
                "command": self.command(one.experiment) if one.experiment else "",
                "cells": one.cells,
            }
            for one in missing
        ]
        return {"line": f"{count(cells, 'cell')} ({reasons}){self.predicted_text(paths)}", "parts": parts}

    def predicted_text(self, paths: Iterable[str]) -> str:
        """``, predicted 3.1 core-hours`` of what is left to train of some variants; nothing if nothing is."""
        hours = self.hours_left(paths)
        if hours is None:
            return ", core-hours unmeasured"
        return f", predicted {hours:,.{0 if hours >= 10 else 1 if hours >= 1 else 2}f} core-hours" if hours else ""

    def table(self) -> Table:
        """Predicted hours of every experiment, what its finished runs took, and how to make those that are left."""
        rows = []
        for name, predicted in self.predicted.items():
            spent = ", ".join(f"{value:.2f} {kind}" for kind, value in _hours(self.finished[name]).items() if value)
            row = predicted.row() | {"finished runs": str(len(self.finished[name])), "they took": spent}
            left = self.left(name)
            reason = self.study.not_run.get(name)
            own = [path for path in self.variants if experiment_of(path) == name]
            row["left"] = f"{count(left, 'run')}{self.predicted_text(own)}" if left else ""
            row["left"] += f" ({reason})" if left and reason else ""
            rows.append(Row(row | {"command": f"`{self.command(name)}`" if left else ""}))
        return Table("cost", "Cost", [], rows)


def _hours(records: list[dict[str, Any]]) -> dict[str, float]:
    """Hours of cores and of GPUs that runs took."""
    hours = {"core-hours": 0.0, "GPU-hours": 0.0}
    for record in records:
        environment, timing = record["environment"], record["timing"]
        on_cpu = environment["device"] == "cpu"
        seconds = timing["wall_s"] * (environment["threads"] if on_cpu else 1) / timing["at_once"]
        hours["core-hours" if on_cpu else "GPU-hours"] += seconds / 3600
    return hours


# -- runs --------------------------------------------------------------------------------------------------


def _runs(report: Report) -> Table:
    """Every variant with the state of its seeds; all that have a record lead to their page."""
    rows = []
    for path, group in groupby(report.plans, lambda plan: plan.variant.path):
        seeds = list(group)
        records = [plan.result for plan in seeds if plan.current]
        best = [record["monitored"] for record in records if record["monitored"] is not None]
        mean = sum(best) / len(best) if best else float("nan")
        cells = {
            "Variant": path,
            "Seeds": ", ".join(str(plan.run.seed) for plan in seeds if plan.current) or "-",
            "State": "; ".join(f"{count} {state}" for state, count in Counter(map(state_of, seeds)).items()),
            "Best validation, %": plus_minus(mean, spread(best)),
            "Epochs": f"{sum(record['epochs_run'] for record in records) / len(records):.0f}" if records else "",
            "Seconds a run": f"{sum(record['timing']['wall_s'] for record in records) / len(records):.0f}"
            if records
            else "",
        }
        rows.append(Row(cells, [str(plan.run.folder) for plan in seeds if plan.current]))
    return Table("runs", "Runs", [], rows)


def state_of(plan: Plan) -> str:
    """``done``, ``diverged``, ``not run``, or why its record does not count."""
    return plan.result["status"] if plan.current else plan.stale or "not run"


def _arithmetic(records: Iterable[dict[str, Any]]) -> Table:
    """Versions of the arithmetic that the runs were made with, and how many sources are certified to compute each."""
    counts = Counter((part, version) for record in records for part, version in record["arithmetic"].items())
    rows = [
        Row(
            {
                "Part": part,
                "version": str(version) if isinstance(version, int) else "not certified",
                "runs": str(count),
                "sources certified equal": str(len(numerics.ledger().get(part, {}).get(str(version), []))),
            }
        )
        for (part, version), count in sorted(counts.items(), key=str)
    ]
    return Table("arithmetic", "Versions of the arithmetic", [], rows)
