"""The paper's claims C1-C9, each with a verdict and the comparisons behind it.

A claim is made of comparisons (one per model and bit width); each has an interval over seeds and its own
verdict. ``claims.csv`` shows, per claim, the comparison that decided it; ``claims_evidence.csv`` shows all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from oscillations.bits import LATENT
from oscillations.files import write_text
from oscillations.report.collect import read_measurements, read_oscillations, results
from oscillations.report.stats import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_RUN,
    SUPPORTED,
    Interval,
    above,
    below,
    overall,
    t_interval,
    within,
)
from oscillations.report.tables import MODEL_NAMES, bits_label, read_published
from oscillations.study import Study, figure_number

TOST = 0.90  # a 90 % interval inside the margin is equivalence at the 5 % level
CHANCE = 10.0  # percent, ten classes


@dataclass
class Comparison:
    """One tested statement of a claim."""

    text: str
    interval: Interval
    verdict: str
    runs: list[str]


@dataclass
class Claim:
    name: str
    statement: str
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, text: str, values: pd.Series, judge: Callable[[Interval], str], runs: list[str], level=0.95) -> None:
        interval = t_interval(values.to_numpy(), level)
        self.comparisons.append(Comparison(text, interval, judge(interval), runs))

    @property
    def verdict(self) -> str:
        return overall([comparison.verdict for comparison in self.comparisons])

    def deciding(self) -> Comparison | None:
        """The comparison to show: the first that contradicts, else that is open, else that supports."""
        for verdict in (CONTRADICTED, INCONCLUSIVE, SUPPORTED):
            for comparison in self.comparisons:
                if comparison.verdict == verdict:
                    return comparison
        return None


class Accuracies:
    """Test accuracies by seed, of the experiments that stand for the paper's main tables."""

    def __init__(self, study: Study, measurements: pd.DataFrame):
        main = [name for table in ("table1", "table2") for name in study.tables.get(table, [])]
        tests = measurements[
            (measurements.split == "test") & (measurements.bn == "keep") & (measurements.status == "done")
        ]
        self.table = tests[tests.experiment.isin(main)]
        self.all = tests

    def groups(self) -> list[tuple[str, str, str]]:
        """(experiment, model, setting) of all that tables 1 and 2 publish; no experiment where none has run."""
        published = read_published()
        published = published[published.table.isin(["table1", "table2"])]
        groups = []
        for model, setting in published[["model", "setting"]].drop_duplicates().itertuples(index=False, name=None):
            mine = self.table[(self.table.model == model) & (self.table.setting == setting)]
            groups += [(name, model, setting) for name in mine.experiment.unique()] or [("", model, setting)]
        return groups

    def of(self, experiment: str, method: str, train_bits: int, eval_bits: int) -> pd.DataFrame:
        """accuracy and run by seed; empty if not run."""
        t = self.table
        rows = t[
            (t.experiment == experiment) & (t.method == method)
            & (t.train_bits == train_bits) & (t.eval_bits == eval_bits)
        ]  # fmt: skip
        return rows.set_index("seed")[["accuracy", "run"]]


def _difference(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """Paired differences a - b over the seeds both have, and the runs behind them."""
    seeds = a.index.intersection(b.index)
    return a.accuracy[seeds] - b.accuracy[seeds], sorted({*a.run[seeds], *b.run[seeds]})


def _named(model: str, setting: str) -> str:
    return f"{MODEL_NAMES.get(model, model)} ({setting})"


def evaluate_claims(study: Study, measurements: pd.DataFrame, oscillations: pd.DataFrame) -> list[Claim]:
    """All claims with their comparisons, in order."""
    accuracies = Accuracies(study, measurements)
    return [
        _c1(accuracies),
        _c2(accuracies, study),
        _c3(accuracies),
        _c4(accuracies, study),
        _c5(accuracies, study),
        _c6(accuracies, study),
        _c7(accuracies),
        _c8(study, oscillations),
        _c9(study, accuracies),
    ]


def _c1(accuracies: Accuracies) -> Claim:
    claim = Claim("C1", "OsciQuant is more accurate than PTQ (ViT: at 3 and 4 bits; others: at 2, 3 and 4).")
    for experiment, model, setting in accuracies.groups():
        for bits in (3, 4) if model == "vit-tiny" else (2, 3, 4):
            osci = accuracies.of(experiment, "osciquant", bits, bits)
            values, runs = _difference(osci, accuracies.of(experiment, "ptq", LATENT, bits))
            claim.add(f"{_named(model, setting)}, {bits_label(bits)}: OsciQuant - PTQ > 0", values, above, runs)
    return claim


def _c2(accuracies: Accuracies, study: Study) -> Claim:
    margin = study.claims.match_margin
    claim = Claim("C2", f"OsciQuant matches QAT within {margin:g} points at 3 and 4 bits.")
    for experiment, model, setting in accuracies.groups():
        for bits in (3, 4):
            osci = accuracies.of(experiment, "osciquant", bits, bits)
            values, runs = _difference(osci, accuracies.of(experiment, "qat", bits, bits))
            text = f"{_named(model, setting)}, {bits_label(bits)}: |OsciQuant - QAT| < {margin:g}"
            claim.add(text, values, lambda i: within(i, margin), runs, TOST)
    return claim


def _c3(accuracies: Accuracies) -> Claim:
    claim = Claim("C3", "At ternary, QAT is more accurate than OsciQuant.")
    for experiment, model, setting in accuracies.groups():
        qat = accuracies.of(experiment, "qat", 2, 2)
        values, runs = _difference(qat, accuracies.of(experiment, "osciquant", 2, 2))
        claim.add(f"{_named(model, setting)}, ternary: QAT - OsciQuant > 0", values, above, runs)
    return claim


def _add_near_baseline(
    claim: Claim, accuracies: Accuracies, trained_at: tuple[int, ...], evaluated_at: tuple[int, ...], margin: float
) -> None:
    """OsciQuant loses no more than ``margin`` points to the FP baseline, for every pair of bit widths."""
    for experiment, model, setting in accuracies.groups():
        baseline = accuracies.of(experiment, "baseline", LATENT, LATENT)
        for trained in trained_at:
            for bits in evaluated_at:
                values, runs = _difference(accuracies.of(experiment, "osciquant", trained, bits), baseline)
                text = f"{_named(model, setting)}, trained {bits_label(trained)}, at {bits_label(bits)}: "
                claim.add(f"{text}minus baseline > -{margin:g}", values, lambda i: above(i, -margin), runs)


def _c4(accuracies: Accuracies, study: Study) -> Claim:
    margin = study.claims.near_baseline
    claim = Claim("C4", f"OsciQuant at FP32 and 8 bits stays within {margin:g} points below the FP baseline.")
    _add_near_baseline(claim, accuracies, (2, 3, 4), (LATENT, 8), margin)
    return claim


def _c5(accuracies: Accuracies, study: Study) -> Claim:
    bound = CHANCE + study.claims.chance_margin
    claim = Claim(
        "C5", "ResNet QAT trained at 2 or 3 bits is near chance at every other bit width; ViT QAT at 3 bits is not."
    )
    for experiment, model, setting in accuracies.groups():
        for trained in {"resnet18": (2, 3), "vit-tiny": (3,)}.get(model, ()):
            others = [bits for bits in (LATENT, 2, 3, 4, 8) if bits != trained]
            for bits in others if model == "resnet18" else (LATENT, 4):
                rows = accuracies.of(experiment, "qat", trained, bits)
                text = f"{_named(model, setting)}, trained {bits_label(trained)}, at {bits_label(bits)}: accuracy "
                if model == "resnet18":
                    claim.add(f"{text}< {bound:g}", rows.accuracy, lambda i: below(i, bound), sorted(rows.run))
                else:
                    claim.add(f"{text}> {bound:g}", rows.accuracy, lambda i: above(i, bound), sorted(rows.run))
    return claim


def _c6(accuracies: Accuracies, study: Study) -> Claim:
    margin = study.claims.good_margin
    claim = Claim(
        "C6", f"OsciQuant trained at 3 or 4 bits is good at both (within {margin:g} points below the FP baseline)."
    )
    _add_near_baseline(claim, accuracies, (3, 4), (3, 4), margin)
    return claim


def _c7(accuracies: Accuracies) -> Claim:
    claim = Claim("C7", "ResNet OsciQuant trained at ternary is more accurate at 3 bits than at ternary.")
    for experiment, model, setting in accuracies.groups():
        if model == "resnet18":
            high = accuracies.of(experiment, "osciquant", 2, 3)
            values, runs = _difference(high, accuracies.of(experiment, "osciquant", 2, 2))
            claim.add(f"{_named(model, setting)}: 3-bit - ternary > 0", values, above, runs)
    return claim


def sweep_runs(study: Study, oscillations: pd.DataFrame) -> pd.DataFrame:
    """Runs of figure 3's model, bits and learning rate, whatever their lambda; and its QAT."""
    spec = next((spec for name, spec in study.figures.items() if figure_number(name) == "figure3"), None)
    if spec is None or oscillations.empty:
        return oscillations.iloc[:0]
    first = oscillations[(oscillations.experiment + "/" + oscillations.variant) == spec.panels[0]]
    if first.empty:
        return oscillations.iloc[:0]
    like = first.iloc[0]
    same = oscillations[
        (oscillations.model == like.model) & (oscillations.train_bits == like.train_bits) & (oscillations.lr == like.lr)
    ]
    experiments = {name.split("/")[0] for name in spec.panels}
    return same[same.experiment.isin(experiments) & same.method.isin(["qat", "osciquant"])]


def counts_per_run(runs: pd.DataFrame) -> pd.DataFrame:
    """Oscillations per weight and epoch (nagel, sampled per epoch and per iteration), mean over shared epochs.

    Runs stop at different epochs, and counts fall during training: only epochs that all runs have are averaged.
    The first has no previous change to be opposite to and is left out.
    """
    if runs.empty:
        return pd.DataFrame(columns=["method", "lambda", "seed", "epoch_level", "iteration_level", "run"])
    shared = runs.groupby(["experiment", "variant", "seed"]).epoch.max().min()
    kept = runs[(runs.epoch >= 2) & (runs.epoch <= shared)]
    kept = kept.assign(
        epoch_level=kept.epoch_nagel / kept.weights,
        iteration_level=kept.iteration_nagel / kept.weights / kept.steps_per_epoch,
        run=kept.experiment + "/" + kept.variant,
    )
    keys = ["method", "lambda", "seed"]
    # one run per method, lambda and seed: a sweep may hold the main experiment's point again
    first = kept.groupby(keys, dropna=False).run.transform("first")
    kept = kept[kept.run == first]
    columns = {"epoch_level": "mean", "iteration_level": "mean", "run": "first"}
    return kept.groupby(keys, dropna=False, as_index=False).agg(columns)


def _c8(study: Study, oscillations: pd.DataFrame) -> Claim:
    claim = Claim(
        "C8", "Oscillations grow with lambda; some lambda reaches QAT's count; QAT oscillates more than lambda 0."
    )
    counts = counts_per_run(sweep_runs(study, oscillations))
    for level, name in (("iteration_level", "per iteration"), ("epoch_level", "per epoch")):
        osci = counts[counts.method == "osciquant"].pivot_table(index="seed", columns="lambda", values=level).dropna()
        qat = counts[counts.method == "qat"].set_index("seed")[level]
        names = sorted(set(counts.run))
        lambdas = sorted(osci.columns)
        if len(lambdas) > 1:
            slopes = np.polyfit(lambdas, osci[lambdas].to_numpy(float).T, 1)[0]
            shown = ", ".join(f"{lam:g}" for lam in lambdas)
            claim.add(f"slope of the count over lambda in ({shown}), {name}, > 0", pd.Series(slopes), above, names)
        if 0 in lambdas:
            seeds = osci.index.intersection(qat.index)
            claim.add(f"QAT - lambda 0, {name}, > 0", qat[seeds] - osci[0][seeds], above, names)
            most = osci[lambdas].max(axis=1)
            claim.add(f"largest count over lambda - QAT, {name}, > 0", most[seeds] - qat[seeds], above, names)
    return claim


def _c9(study: Study, accuracies: Accuracies) -> Claim:
    margin = study.claims.flat_margin
    claim = Claim("C9", f"Accuracy at 3 bits is flat in lambda over [0.25, 1.75] (range below {margin:g} points).")
    t = accuracies.all
    chosen = t[
        t.experiment.isin(study.tables.get("table4", [])) & (t.method == "osciquant") & (t.train_bits == 3)
        & (t.eval_bits == 3) & t["lambda"].between(0.25, 1.75)
    ]  # fmt: skip
    for model, group in chosen.groupby("model", sort=False):  # the main experiment's lambda is one of the points
        wide = group.pivot_table(index="seed", columns="lambda", values="accuracy").dropna()
        if len(wide.columns) > 1:
            spread = wide.max(axis=1) - wide.min(axis=1)
            shown = ", ".join(f"{lam:g}" for lam in wide.columns)
            text = f"{MODEL_NAMES.get(model, model)}: range over lambda in ({shown}) < {margin:g}"
            claim.add(text, spread, lambda i: below(i, margin), sorted(set(group.run)))
    return claim


def write_claims(study: Study) -> None:
    """Write ``claims.csv`` and ``claims_evidence.csv``."""
    summary, evidence = [], []
    for claim in evaluate_claims(study, read_measurements(study), read_oscillations(study)):
        deciding = claim.deciding()
        interval = deciding.interval if deciding else Interval(0, math.nan, math.nan, math.nan)
        run = sum(c.verdict != NOT_RUN for c in claim.comparisons)
        agree = sum(c.verdict == SUPPORTED for c in claim.comparisons)
        summary.append(
            {
                "claim": claim.name,
                "statement": claim.statement,
                "verdict": claim.verdict,
                "n": interval.n,
                "estimate": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "supported": agree,
                "run": run,
                "comparisons": len(claim.comparisons),
                "evidence": deciding.text if deciding else "",
            }
        )
        for comparison in claim.comparisons:
            evidence.append(
                {
                    "claim": claim.name,
                    "comparison": comparison.text,
                    "verdict": comparison.verdict,
                    "n": comparison.interval.n,
                    "estimate": comparison.interval.mean,
                    "low": comparison.interval.low,
                    "high": comparison.interval.high,
                    "runs": " ".join(comparison.runs),
                }
            )
    columns = ["claim", "comparison", "verdict", "n", "estimate", "low", "high", "runs"]
    for name, rows in (
        ("claims.csv", pd.DataFrame(summary)),
        ("claims_evidence.csv", pd.DataFrame(evidence, columns=columns)),
    ):
        write_text(results(study) / name, rows.round(6).to_csv(index=False, lineterminator="\n"))
