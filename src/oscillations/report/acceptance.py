"""Acceptance: are somebody's runs, on another machine say, those of the reference, statistically?

The reference is a study's committed ``measurements.csv``, of every variant with at least five seeds. Test accuracy at
the variant's own bits and the best epoch are compared, each two-sided, and the means of both over all variants, where a
shift shows that is too small for one.

- *differs*: Welch's test at 5 %, corrected by Holm over all tests of the command. However small: ten runs of a variant
  make nothing certain below about one standard deviation.
- *same*: not so, and two one-sided tests at 5 % each, a 90 % interval inside the margin. All must be shown, so none needs
  a correction (Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982).
- *undecided*: neither, or fewer than three runs, or one that diverged.

The margin is two standard deviations of one reference run: runs as far away on average would still pass one by one for runs
of the reference. It is no less than one: a point is two standard errors of an accuracy of one half on 10,000 images, and
an epoch the unit of the other. The answer is *differs* if one test says so, *same* if all do.

After MLCommons' reference convergence points (github.com/mlcommons/logging, rcp_checker), but two-sided and about accuracy
as well, and with no outlier dropped: on a machine that computes wrongly, the outliers are the finding. Nor are
runs paired by seed: only one machine promises a seed the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from oscillations.core.errors import InputError, did_you_mean
from oscillations.core.files import read_json
from oscillations.records.environment import COMPUTING
from oscillations.records.identity import changed_keys, meaning
from oscillations.records.numerics import version_of
from oscillations.study.paths import results

SAME, DIFFERS, UNDECIDED = "same", "differs", "undecided"
LEVEL = 0.05
REFERENCE_RUNS = 5  # of a variant for which a reference is claimed
MINIMUM_RUNS = 3  # fewer decide nothing
SPREADS, LEAST = 2.0, 1.0  # the margin: standard deviations of a reference run; at least a point, an epoch
DRAWS = 2000  # for the error rates: 0.5 points of standard error at 5 %
TINY = 1e-9  # a spread or a difference below is rounding
MEASURES = ["accuracy", "best_epoch"]
RECIPE = ["data", "model", "method", "train_bits", "preset", "reg_reduction", "scale_grad", "lr", "start"]
COLUMNS = [*RECIPE, *MEASURES, "experiment", "variant", "lambda", "seed", "split", "eval_bits", "bn", "status"]

Runs = Mapping[str, np.ndarray]  #: by experiment/variant: [..., runs, measures]


# -- the tests ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Theirs minus the reference's, in points and epochs; every array is [..., variants, measures].

    ``low`` and ``high`` are the 90 % interval of the difference, ``p`` is corrected. If there are several variants,
    one more row holds the mean over them.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    margin: np.ndarray
    p: np.ndarray

    @property
    def answers(self) -> np.ndarray:
        inside = (-self.margin < self.low) & (self.high < self.margin)
        return np.select([self.p < LEVEL, inside], [DIFFERS, SAME], UNDECIDED)


def compare(reference: Runs, theirs: Runs) -> Comparison:
    """Compare the variants of ``theirs`` with the reference's; leading dimensions are comparisons of their own."""
    pairs = [_welch(reference[name], runs) for name, runs in theirs.items()]
    difference, variance, freedom = (np.stack(parts, axis=-2) for parts in zip(*pairs))
    margin = np.stack([margins(reference[name]) for name in theirs], axis=-2)
    if len(theirs) > 1:
        difference, margin = (_with_row(part, part.mean(-2, keepdims=True)) for part in (difference, margin))
        total = variance.sum(-2, keepdims=True)
        common = total**2 / np.maximum((variance**2 / freedom).sum(-2, keepdims=True), np.finfo(float).tiny)
        variance, freedom = _with_row(variance, total / len(theirs) ** 2), _with_row(freedom, common)
    error = np.sqrt(variance)
    spread = error > TINY
    t = np.abs(difference) / np.where(spread, error, 1)
    p = np.where(spread, 2 * stats.t.sf(t, freedom), np.abs(difference) < TINY)
    half = error * stats.t.isf(LEVEL, freedom)
    return Comparison(difference, difference - half, difference + half, margin, holm(p))


def _with_row(part: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.concatenate([part, row], axis=-2)


def _welch(reference: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of the means of [..., runs, measures], its variance, and Welch's degrees of freedom."""
    samples = (theirs, reference)
    squares = [np.var(runs, axis=-2, ddof=1) / runs.shape[-2] for runs in samples]
    variance = squares[0] + squares[1]
    weights = sum(square**2 / (runs.shape[-2] - 1) for square, runs in zip(squares, samples))
    freedom = np.where(variance > TINY**2, variance**2 / np.maximum(weights, np.finfo(float).tiny), 1)
    return theirs.mean(-2) - reference.mean(-2), variance, freedom


def margins(reference: np.ndarray) -> np.ndarray:
    """What counts as the same: two standard deviations of [..., runs, measures], at least a point and an epoch."""
    return np.maximum(SPREADS * np.std(reference, axis=-2, ddof=1), LEAST)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's corrected p values over the last two dimensions, which are the tests of one command."""
    flat = p.reshape(*p.shape[:-2], -1)
    order = np.argsort(flat, axis=-1)
    factors = flat.shape[-1] - np.arange(flat.shape[-1])
    risen = np.maximum.accumulate(np.take_along_axis(flat, order, -1) * factors, axis=-1)
    corrected = np.empty_like(flat)
    np.put_along_axis(corrected, order, np.minimum(risen, 1), -1)
    return corrected.reshape(p.shape)


def overall(answers: np.ndarray) -> np.ndarray:
    """One answer for [..., variants, measures]."""
    differ, agree = (answers == DIFFERS).any((-2, -1)), (answers == SAME).all((-2, -1))
    return np.select([differ, agree], [DIFFERS, SAME], UNDECIDED)


# -- how often they err ------------------------------------------------------------------------------------


def error_rates(reference: Runs, sizes: Mapping[str, int], strays: Mapping[str, tuple[str, np.ndarray]]) -> pd.DataFrame:
    """Shares of the three answers in percent, for what may be true of ``sizes`` runs of some variants.

    Both sides are drawn anew from the reference's runs, as many as there are, and compared as above. ``strays``: by
    label, a variant and the runs of something else that takes its place. Seeded.
    """
    draw = np.random.default_rng(0)
    base = {name: _drawn(draw, reference[name], len(reference[name])) for name in sizes}
    again = {name: _drawn(draw, reference[name], size) for name, size in sizes.items()}
    shift = {name: np.array([margins(reference[name])[0], 0]) for name in sizes}
    turn = np.arange(DRAWS)[:, None, None] % len(sizes)
    truths = {
        "nothing differs": again,
        "one variant's accuracy lower by its margin": {
            name: runs - shift[name] * (turn == i) for i, (name, runs) in enumerate(again.items())
        },
        "every variant's accuracy lower by half its margin": {n: runs - shift[n] / 2 for n, runs in again.items()},
    }
    for label, (name, runs) in strays.items():
        truths[f"{label} as {name} (n = {len(runs)})"] = again | {name: _drawn(draw, runs, sizes[name])}
    rows = []
    for truth, theirs in truths.items():
        found = overall(compare(base, theirs).answers)
        rows.append({"truth": truth} | {f"{a} %": 100 * (found == a).mean() for a in (SAME, DIFFERS, UNDECIDED)})
    return pd.DataFrame(rows)


def _drawn(draw: np.random.Generator, runs: np.ndarray, size: int) -> np.ndarray:
    """[DRAWS, size, measures] drawn with replacement from [runs, measures]; whole runs, at their unbiased spread."""
    n, mean = len(runs), runs.mean(0)
    return mean + (runs[draw.integers(n, size=(DRAWS, size))] - mean) * np.sqrt(n / (n - 1))


# -- files -------------------------------------------------------------------------------------------------


def accept(study: str, folder: Path, seeds: Collection[int] = (), reference_seeds: Collection[int] = ()) -> str:
    """Print how the runs under a folder compare with a study's own, and return the answer.

    ``seeds``: theirs, and the reference's, that count; all if none are named. Raises InputError.
    """
    table, given = read_runs(results(study), reference_seeds), read_runs(folder, seeds)
    reference = {path: runs for path, runs in by_variant(table).items() if _counts(runs, REFERENCE_RUNS)}
    if not reference:
        raise InputError(f"{results(study)}: no variant has {REFERENCE_RUNS} runs, as a reference needs")
    found = by_variant(given)
    theirs = {path: found[path] for path in reference if path in found}
    if not theirs:
        raise InputError(f"{folder}: none of the reference's variants; {did_you_mean(next(iter(found), ''), reference)}")
    tested = {path: runs for path, runs in theirs.items() if _counts(runs, MINIMUM_RUNS)}
    comparison = compare(reference, tested) if tested else None
    answers = _answers(reference, theirs, tested, comparison)
    answer = str(overall(answers.answer.to_numpy()[:, None]))
    print(answers.to_string(index=False, float_format="{:.2f}".format))
    print(f"margin: {SPREADS:g} standard deviations of a reference run, at least {LEAST:g}; interval: {1 - 2 * LEVEL:.0%}")
    for note in notes(table, given, theirs, folder, study):
        print(f"note: {note}")
    if tested:
        rates = error_rates(reference, {path: len(runs) for path, runs in tested.items()}, strays(table, tested))
        print(f"\nHow often each answer comes, in {DRAWS} draws from the reference's runs, for what may be true:")
        print(rates.to_string(index=False, float_format="{:.1f}".format))
    print(f"\nanswer: {answer}")
    return answer


def read_runs(folder: Path, seeds: Collection[int] = ()) -> pd.DataFrame:
    """Every run in a folder's measurements: its test at its own bits, a diverged one without numbers."""
    file = folder / "measurements.csv"
    if not file.exists():
        raise InputError(f"{file}: missing; where the runs were made, python -m oscillations collect writes it")
    try:
        table = pd.read_csv(file, usecols=COLUMNS).astype({name: float for name in MEASURES})
    except ValueError as error:
        raise InputError(f"{file}: not what python -m oscillations collect writes: {error}") from None
    runs = table[(table.split == "test") & (table.bn == "keep") & (table.eval_bits == table.train_bits)]
    runs = runs.assign(path=runs.experiment + "/" + runs.variant).drop_duplicates(["path", "seed"])
    runs.loc[runs.status != "done", MEASURES] = np.nan
    if missing := sorted(set(seeds) - set(runs.seed)):
        raise InputError(f"{file}: no run has seed {missing[0]}; {did_you_mean(missing[0], sorted(set(runs.seed)))}")
    return runs[runs.seed.isin(seeds)] if seeds else runs


def by_variant(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """[runs, measures] of every variant, in the table's order."""
    return {str(path): group[MEASURES].to_numpy(float) for path, group in runs.groupby("path", sort=False)}


def _counts(runs: np.ndarray, least: int) -> bool:
    """Whether runs can be tested: enough of them, and none that diverged."""
    return len(runs) >= least and not np.isnan(runs).any()


def strays(table: pd.DataFrame, names: Collection[str]) -> dict[str, tuple[str, np.ndarray]]:
    """By label: the runs of the study that differ from one of some variants in lambda, and that variant."""
    recipes = table[[*RECIPE, "lambda"]].fillna("").astype(str)
    every, found = by_variant(table), {}
    for name in names:
        own = recipes[table.path == name].iloc[0]
        other = (recipes[RECIPE] == own[RECIPE]).all(axis=1) & (recipes["lambda"] != own["lambda"])
        for path in table.path[other].unique():
            if _counts(every[path], MINIMUM_RUNS):
                found[path] = (name, every[path])
    return found


def _answers(reference: Runs, theirs: Runs, tested: Runs, comparison: Comparison | None) -> pd.DataFrame:
    """One row per variant and measure; of variants with too few runs only the means."""
    rows = []
    for i, measure in enumerate(MEASURES):
        for path, runs in theirs.items():
            about = {"variant": path, "measure": measure, "n reference": len(reference[path]), "n yours": len(runs)}
            means = {"reference": reference[path][:, i].mean(), "yours": runs[:, i].mean()}
            tests = _row(comparison, list(tested).index(path), i) if comparison and path in tested else {}
            rows.append({"answer": UNDECIDED} | about | means | tests)
        if comparison and len(tested) > 1:
            counts = {f"n {side}": sum(len(some[path]) for path in tested) for side, some in _sides(reference, theirs)}
            means = {side: np.mean([some[p][:, i].mean() for p in tested]) for side, some in _sides(reference, theirs)}
            rows.append({"variant": "mean over variants", "measure": measure} | counts | means | _row(comparison, -1, i))
    table = pd.DataFrame(rows)
    return table[[*(name for name in table if name != "answer"), "answer"]]


def _sides(reference: Runs, theirs: Runs) -> list[tuple[str, Runs]]:
    return [("reference", reference), ("yours", theirs)]


def _row(comparison: Comparison, variant: int, measure: int) -> dict[str, Any]:
    names = ("difference", "low", "high", "margin", "p", "answers")
    values = [getattr(comparison, name)[variant, measure] for name in names]
    return dict(zip(("difference", "low", "high", "margin", "p (Holm)", "answer"), values))


def notes(table: pd.DataFrame, given: pd.DataFrame, theirs: Runs, folder: Path, study: str) -> list[str]:
    """What a reader should know besides the tests: other recipes, data, versions; missing, diverged and equal runs."""
    mine = given[given.path.isin(theirs)]
    both = mine.merge(table, on=["path", "seed"])
    equal = int((both.accuracy_x.eq(both.accuracy_y) & both.best_epoch_x.eq(both.best_epoch_y)).sum())
    diverged = int(mine.accuracy.isna().sum())
    found = []
    if diverged:
        found.append(f"{diverged} of your runs diverged: their variants are undecided")
    if equal:
        found.append(f"{equal} of your {len(mine)} runs equal the reference's of the same seed to the last digit")
    changes: dict[str, None] = {}
    records = 0
    for path, group in mine.groupby("path", sort=False):
        seed = table.seed[table.path == path].iloc[0]
        reference = _identity(results(study) / f"runs/{path}/seed{seed}/run.json")
        for seed in group.seed:
            record = _identity(folder / f"runs/{path}/seed{seed}/run.json")
            records += bool(record)
            changes |= dict.fromkeys(f"{path}: {key}" for key in changed_keys(reference, record) if record and reference)
    if records < len(mine):
        found.append(f"{len(mine) - records} of your runs have no run.json beside them: recipe and versions not compared")
    return found + [f"not the reference's: {change}" for change in changes]


def _identity(file: Path) -> dict[str, Any]:
    """What decides a run's numbers, from its record; nothing where there is no record of this form."""
    try:
        record = read_json(file)
        return {
            "recipe": meaning(record["recipe"]),
            "arithmetic": {part: version_of(part, made) for part, made in record["arithmetic"].items()},
            "data": record["data_sha256"],
            "packages": {name: record["environment"]["packages"].get(name) for name in COMPUTING},
            "device": record["environment"]["device"],
        }
    except (OSError, AttributeError, KeyError, TypeError, ValueError, ModuleNotFoundError):
        return {}
