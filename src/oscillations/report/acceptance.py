"""Acceptance: are somebody's runs, on another machine say, those of the reference, statistically?

The reference is a study's committed ``measurements.csv``: every variant with at least five seeds. Test accuracy at the
variant's own bits and best epoch are compared, each two-sided, and the means of both over all variants, which show a
shift that is too small to be seen in one.

- *differs*: Student's test at 5 %, corrected by Holm over all tests of the command.
- *same*: not so, and two one-sided tests at 5 % each, that is a 90 % interval inside the margin. All must be shown, so
  none needs a correction (Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982).
- *undecided*: neither, or fewer than three runs, or one that diverged.

The answer is *differs* if one test says so, *same* if all do. The margin is three standard deviations of one reference
run (for the mean over variants: of one seed's mean), and at least one: a point is two standard errors of an accuracy of
one half on 10,000 images. Two standard deviations would leave ten runs of seven variants, against ten, undecided
nearly every second time. Student's test, not Welch's: runs of one distribution have one spread, and for three runs
against ten Welch's p values are too small far out, where Holm reads them. (Both are tests in tests/test_acceptance.py.)

After MLCommons' reference convergence points (github.com/mlcommons/logging, rcp_checker), but two-sided and about
accuracy as well, and no outlier is dropped: on a machine that computes wrongly they are the finding. Nor are runs
paired by seed: equal seeds promise equal numbers on one machine only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from oscillations.core.bits import REQUANTIZE
from oscillations.core.errors import InputError, did_you_mean
from oscillations.core.files import read_json
from oscillations.records.environment import COMPUTING
from oscillations.records.identity import changed_keys, meaning
from oscillations.records.numerics import version_of
from oscillations.report.estimates import LEVEL, MINIMUM_RUNS, holm
from oscillations.report.results import by_rule, standing
from oscillations.study.paths import results

SAME, DIFFERS, UNDECIDED = "same", "differs", "undecided"
REFERENCE_RUNS = 5  # of a variant for which a reference is claimed
SPREADS, LEAST = 3.0, 1.0  # the margin: standard deviations of a reference run; at least a point, an epoch
DRAWS = 2000  # for the error rates: a share of 5 % has a standard error of half a point
ROUNDING = 1e-9  # points and epochs
MEASURES = ["accuracy", "best_epoch"]
RECIPE = ["data", "model", "method", "train_bits", "preset", "reg_reduction", "scale_grad", "lr", "start"]
COLUMNS = [*RECIPE, *MEASURES, "experiment", "variant", "lambda", "seed", "split", "eval_bits", "bn", "status"]
MEAN = "mean over variants"

Runs = Mapping[str, np.ndarray]  # by experiment/variant: [..., runs, measures]


# -- the tests ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Theirs minus the reference's in points and epochs; every array is [..., variants, measures].

    ``low`` and ``high``: the 90 % interval of the difference; ``p``: corrected. Where there are several variants, one
    more row is the mean over them, its freedom after Satterthwaite.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    margin: np.ndarray
    p: np.ndarray

    @property
    def answer(self) -> np.ndarray:
        inside = (-self.margin < self.low) & (self.high < self.margin)
        return np.select([self.p < LEVEL, inside], [DIFFERS, SAME], UNDECIDED)


def compare(reference: Runs, theirs: Runs) -> Comparison:
    """Compare every variant of ``theirs`` with the reference's; leading dimensions are commands of their own."""
    pairs = [_student(reference[name], runs) for name, runs in theirs.items()]
    difference, variance, freedom, single = columns = [np.stack(parts, axis=-2) for parts in zip(*pairs)]
    if (count := len(pairs)) > 1:
        sums = [part.sum(-2, keepdims=True) for part in (*columns, variance**2 / freedom)]
        satterthwaite = np.maximum(sums[1] ** 2 / np.maximum(sums[4], ROUNDING**4), 1)
        means = [sums[0] / count, sums[1] / count**2, satterthwaite, sums[3] / count**2]
        difference, variance, freedom, single = (np.append(part, mean, -2) for part, mean in zip(columns, means))
    error = np.sqrt(variance)
    constant = error < ROUNDING  # all runs are equal: nothing is left to chance
    t = np.abs(difference) / np.where(constant, 1, error)
    p = np.where(constant, np.abs(difference) < ROUNDING, 2 * stats.t.sf(t, freedom))
    corrected = holm(p.reshape(*p.shape[:-2], -1)).reshape(p.shape)  # all tests of one command
    half = error * stats.t.isf(LEVEL, freedom)
    return Comparison(difference, difference - half, difference + half, margin(single), corrected)


def _student(reference: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of [..., runs, measures]: the means' difference, its variance and freedom, the variance of one reference run."""
    m, n = reference.shape[-2], theirs.shape[-2]
    pooled = (m * reference.var(-2) + n * theirs.var(-2)) / (m + n - 2)
    freedom = np.full_like(pooled, m + n - 2)
    return theirs.mean(-2) - reference.mean(-2), pooled * (1 / m + 1 / n), freedom, reference.var(-2, ddof=1)


def margin(variance: np.ndarray) -> np.ndarray:
    """How far two means may lie apart and still be the same, from the variance of one reference run."""
    return np.maximum(SPREADS * np.sqrt(variance), LEAST)


def overall(answers: np.ndarray) -> np.ndarray:
    """One answer for [..., variants, measures]."""
    differ, agree = (answers == DIFFERS).any((-2, -1)), (answers == SAME).all((-2, -1))
    return np.select([differ, agree], [DIFFERS, SAME], UNDECIDED)


# -- how often they err ------------------------------------------------------------------------------------


def error_rates(
    reference: Runs, sizes: Mapping[str, int], strays: Mapping[str, tuple[str, np.ndarray]]
) -> pd.DataFrame:
    """Percentages of the three answers, for what may be true of ``sizes`` runs of some variants.

    Both sides are drawn anew from the reference's runs, as many as there are, and compared as above. ``strays``: by
    label, a variant and the runs of something else, from which that variant's are drawn. Seeded.
    """
    draw = np.random.default_rng(0)
    base = {name: drawn(draw, reference[name], len(reference[name])) for name in sizes}
    again = {name: drawn(draw, reference[name], size) for name, size in sizes.items()}
    accuracy = np.array([1, 0])
    turn = np.arange(DRAWS)[:, None, None] % len(sizes)
    spread = {name: reference[name].std(0, ddof=1) for name in sizes}
    one, every = "one variant's accuracy is lower by its margin", "every variant's accuracy is lower by one deviation"
    truths: dict[str, Runs] = {
        "nothing differs": again,
        one: {n: runs - margin(spread[n] ** 2) * accuracy * (turn == i) for i, (n, runs) in enumerate(again.items())},
        every: {n: runs - spread[n] * accuracy for n, runs in again.items()},
    }
    for label, (name, runs) in strays.items():
        truths[f"{name} is {label} (n = {len(runs)})"] = again | {name: drawn(draw, runs, sizes[name])}
    answers = {truth: overall(compare(base, theirs).answer) for truth, theirs in truths.items()}
    shares = {kind: [100 * (found == kind).mean() for found in answers.values()] for kind in (SAME, DIFFERS, UNDECIDED)}
    return pd.DataFrame({"truth": list(answers)} | shares)


def drawn(draw: np.random.Generator, runs: np.ndarray, size: int) -> np.ndarray:
    """[DRAWS, size, measures]: whole runs of [runs, measures], with replacement, at the runs' unbiased spread."""
    n, mean = len(runs), runs.mean(0)
    return mean + (runs[draw.integers(n, size=(DRAWS, size))] - mean) * np.sqrt(n / (n - 1))


# -- somebody's folder -------------------------------------------------------------------------------------


def accept(study: str, folder: Path, seeds: Collection[int] = (), reference_seeds: Collection[int] = ()) -> str:
    """Print how the runs in a folder compare with a study's own, and return the answer.

    ``seeds``, ``reference_seeds``: of theirs and of the reference's runs, those that count; all if none is named.
    Raises InputError.
    """
    table, given = read_runs(results(study), reference_seeds), read_runs(folder, seeds)
    reference = {path: runs for path, runs in by_variant(table).items() if testable(runs, REFERENCE_RUNS)}
    found = by_variant(given)
    theirs = {path: found[path] for path in reference if path in found}
    if not theirs:
        known = did_you_mean(next(iter(found), ""), reference) if reference else "there is none"
        raise InputError(f"{folder}: no variant with a reference of {REFERENCE_RUNS} runs in {results(study)}; {known}")
    tested = {path: runs for path, runs in theirs.items() if testable(runs, MINIMUM_RUNS)}
    answers = answer_table(reference, theirs, tested)
    answer = str(overall(answers[["answer"]].to_numpy()))
    print(answers.to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    print(f"\nlow, high: {1 - 2 * LEVEL:.0%} interval of the difference; p: two-sided, corrected by Holm for all rows;")
    print(f"margin: {SPREADS:g} standard deviations of one reference run, at least {LEAST:g}")
    for note in notes(study, table, folder, given[given.path.isin(theirs)]):
        print(f"note: {note}")
    if tested:
        sizes = {path: len(runs) for path, runs in tested.items()}
        print(f"\nHow often this command gives each answer, in percent of {DRAWS} draws from the reference's runs:")
        rates = error_rates(reference, sizes, strays(table, tested))
        print(rates.to_string(index=False, float_format="{:.1f}".format))
    print(f"\nanswer: {answer}")
    return answer


def read_runs(folder: Path, seeds: Collection[int] = ()) -> pd.DataFrame:
    """The runs in a folder's measurements, each tested at its own bits; diverged ones without numbers."""
    file = folder / "measurements.csv"
    if not file.exists():
        raise InputError(f"{file}: missing; python -m oscillations collect, where the runs were made, writes it")
    try:
        types = dict.fromkeys(MEASURES, float) | dict.fromkeys(["experiment", "variant"], str) | {"seed": int}
        there = pd.read_csv(file, nrows=0).columns.intersection(["rule", "selection", "run"])
        table = standing(by_rule(pd.read_csv(file, usecols=[*{*COLUMNS, *there}]), REQUANTIZE))[COLUMNS].astype(types)
    except (KeyError, ValueError) as error:
        raise InputError(f"{file}: not what python -m oscillations collect writes: {error}") from None
    runs = table[(table.split == "test") & (table.bn == "keep") & (table.eval_bits == table.train_bits)]
    runs = runs.assign(path=runs.experiment + "/" + runs.variant).drop_duplicates()
    if (twice := runs.duplicated(["path", "seed"])).any():
        one = runs[twice].iloc[0]
        raise InputError(f"{file}: {one.path}/seed{one.seed} stands twice, with different numbers")
    runs.loc[(runs.status != "done") | ~np.isfinite(runs[MEASURES]).all(axis=1), MEASURES] = np.nan
    if absent := sorted(set(seeds) - set(runs.seed)):
        raise InputError(f"{file}: no run has seed {absent[0]}; {did_you_mean(absent[0], sorted(set(runs.seed)))}")
    return runs[runs.seed.isin(seeds)] if seeds else runs


def by_variant(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """[runs, measures] of every variant, in the table's order."""
    return {str(path): group[MEASURES].to_numpy() for path, group in runs.groupby("path", sort=False)}


def testable(runs: np.ndarray, least: int) -> bool:
    """Whether there are enough runs and none diverged."""
    return len(runs) >= least and not np.isnan(runs).any()


def strays(table: pd.DataFrame, names: Collection[str]) -> dict[str, tuple[str, np.ndarray]]:
    """Runs of the study that are like one of some variants but for lambda: by their path, that variant and the runs."""
    recipes = table[[*RECIPE, "lambda"]].astype(object).fillna("")
    runs, found = by_variant(table), dict[str, tuple[str, np.ndarray]]()
    for name in names:
        own = recipes[table.path == name].iloc[0]
        alike = (recipes[RECIPE] == own[RECIPE]).all(axis=1) & (recipes["lambda"] != own["lambda"])
        found |= {path: (name, runs[path]) for path in table.path[alike] if testable(runs[path], MINIMUM_RUNS)}
    return found


def answer_table(reference: Runs, theirs: Runs, tested: Runs) -> pd.DataFrame:
    """One row per variant and measure, and of the means over variants; what is not tested is undecided."""
    comparison = compare(reference, tested) if tested else None
    several = [MEAN] if len(tested) > 1 else []
    place = {name: row for row, name in enumerate([*tested, *several])}
    rows: list[dict[str, Any]] = []
    for column, measure in enumerate(MEASURES):
        for name in [*theirs, *several]:
            row: dict[str, Any] = {"variant": name, "measure": measure}
            parts = list(tested) if name == MEAN else [name]
            for side, runs in (("reference", reference), ("yours", theirs)):
                row[f"n {side}"] = sum(len(runs[part]) for part in parts)
                row[side] = np.mean([runs[part][:, column].mean() for part in parts])
            for key in ("difference", "low", "high", "margin", "p"):
                row[key] = getattr(comparison, key)[place[name], column] if name in place else np.nan
            row["answer"] = comparison.answer[place[name], column] if comparison and name in place else UNDECIDED
            rows.append(row)
    return pd.DataFrame(rows)


# -- what else a reader should know ------------------------------------------------------------------------


def notes(study: str, table: pd.DataFrame, folder: Path, theirs: pd.DataFrame) -> list[str]:
    """Diverged runs, runs equal to the reference's, and what records say of recipes, data and versions."""
    found = []
    absent = sum(
        testable(runs, REFERENCE_RUNS) for path, runs in by_variant(table).items() if path not in set(theirs.path)
    )
    if absent:
        found.append(f"{absent} variants of the reference are not among your runs: nothing is said of them")
    recipes = table.drop_duplicates("path").set_index("path")[[*RECIPE, "lambda"]].astype(object).fillna("")
    own = theirs.set_index("path")[[*RECIPE, "lambda"]].astype(object).fillna("")
    differing = own != recipes.loc[own.index]
    found += [f"{key} is not the reference's in {n} of your runs' rows" for key, n in differing.sum().items() if n]
    if diverged := int(theirs.accuracy.isna().sum()):
        found.append(f"{diverged} of your runs have no numbers (diverged); their variants are undecided")
    if equal := len(theirs.merge(table[["path", "seed", *MEASURES]])):
        found.append(f"{equal} of your {len(theirs)} runs equal the reference's of the same seed in every digit")
    first = table.drop_duplicates("path").set_index("path").seed
    changes: Counter[str] = Counter()
    alike = unknown = 0
    for path, seed in zip(theirs.path, theirs.seed):
        reference = _identity(results(study) / f"runs/{path}/seed{first[path]}/run.json")
        record = _identity(folder / f"runs/{path}/seed{seed}/run.json")
        if reference and record:
            changes.update(changed_keys(reference, record))
            alike += reference == record
        else:
            unknown += 1
    if alike:
        found.append(f"{alike} of your {len(theirs)} runs have the reference's recipe, data, versions and device")
    if unknown:
        found.append(f"{unknown} of your {len(theirs)} runs have no record to compare recipe, data and versions by")
    return found + [f"{key} is not the reference's in {n} of your {len(theirs)} runs" for key, n in changes.items()]


def _identity(file: Path) -> dict[str, Any]:
    """What decides a run's numbers; nothing where there is no record, or none of this form."""
    try:
        record = read_json(file)
        return {
            "recipe": meaning(record["recipe"]),
            "arithmetic": {part: version_of(part, made) for part, made in record["arithmetic"].items()},
            "data": record["data_sha256"],
            "packages": {name: record["environment"]["packages"].get(name) for name in COMPUTING},
            "device": record["environment"]["device"],
        }
    except (OSError, InputError, AttributeError, KeyError, TypeError, ValueError, ModuleNotFoundError):
        return {}
