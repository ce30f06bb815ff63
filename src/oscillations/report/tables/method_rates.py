"""Which learning rate suits each method of an experiment, searched with equal budget: ``tables/method-rates-*``.

Every method is trained at a few rates with the first seed, judged by its validation accuracy at its target bits, and
again with all seeds at the rate that did best. ``method_rates`` of a study names the experiment, and the one that
trains the same methods at other rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from oscillations.report.estimates import MINIMUM_RUNS, spread
from oscillations.report.results import Report
from oscillations.report.table import Missing, Row, Table
from oscillations.report.tables.comparison import AT_END, by_seed, difference_to, is_judged_at_end
from oscillations.report.text import METHOD_NAMES, bits_label, plus_minus, with_interval
from oscillations.study.variants import Variant

COLUMNS = [
    "method", "variant", "bits", "at_end", "rates", "validations", "seed", "chosen", "edge", "usual", "usual_std",
    "usual_n",
    "accuracy", "accuracy_std", "n", "planned", "difference", "difference_low", "difference_high", "difference_n",
    "runs",
]  # fmt: skip
NOTES = [
    "Search: the validation accuracy (%) of one seed at every rate, at the target bits; the highest chooses. Then the "
    "test accuracy at the chosen rate, mean ± standard deviation over n seeds, beside that at the study's own rate. "
    "The strength of a method stays at its source's value. − QAT: difference to QAT at the rate chosen for QAT, paired "
    f"by seed, the end's to QAT's end, with Student's t interval; fewer than {MINIMUM_RUNS} seeds have none.",
    f"{AT_END} Judged by the weights at the end of training, in the search, too; all others by the best epoch's. A "
    "rate at the end of those searched is marked <: a lower or a higher one may suit the method better still.",
]


DIVERGED = float("-inf")  #: below any accuracy


def table_name(experiment: str) -> str:
    return f"method-rates-{experiment}"


def write_method_rates(report: Report) -> None:
    """Write the table of every search that the study names."""
    for main, search in report.study.method_rates.items():
        rows = searched(report, main, search)
        shown(report, main, search, rows).write(report.folder / "tables", rows)


def searched(report: Report, main: str, search: str) -> pd.DataFrame:
    """One row per method that is trained at several rates; accuracies in percent, test but for ``validations``.

    ``rates`` and ``validations`` hold a word for each rate, ascending: a number, ``diverged``, or ``nan`` of what has
    not run. ``chosen`` is the rate that did best with the seed, none while one is missing or if all diverged.
    ``usual``: at the experiment's own rate.
    """
    rows = [_row(report, variants) for variants in _methods(report, main, search)]
    qat = {row["bits"]: row for row in rows if row["method"] == "qat"}
    for row in rows:
        reference = qat.get(row["bits"])
        if reference is not None and reference is not row:
            selected = "end_by_seed" if row["at_end"] else "by_seed"  # the same weights of both
            row |= difference_to("difference", row["by_seed"], reference[selected])
    return pd.DataFrame(rows, columns=COLUMNS)


def _methods(report: Report, main: str, search: str) -> Iterator[list[Variant]]:
    """The variants of every method that both experiments train, the main one's first."""
    for variant in report.variants:
        if variant.experiment == main:
            method = variant.recipe.method
            others = [v for v in report.variants if v.experiment == search and v.recipe.method == method]
            if others:
                yield [variant, *others]


def _row(report: Report, variants: list[Variant]) -> dict[str, Any]:
    own = variants[0]
    seed, at_end = min(own.seeds), is_judged_at_end(own)
    by_rate = {variant.recipe.training.lr: variant for variant in sorted(variants, key=lambda v: v.recipe.training.lr)}
    found = [_searched(report, variant, seed, at_end) for variant in by_rate.values()]
    row: dict[str, Any] = {
        "method": own.recipe.method.name,
        "variant": own.path,
        "bits": own.recipe.bits,
        "at_end": at_end,
        "rates": " ".join(f"{rate:g}" for rate in by_rate),
        "validations": " ".join("diverged" if value == DIVERGED else f"{value:.2f}" for value in found),
        "seed": seed,
        "planned": len(own.seeds),
        "by_seed": pd.Series(dtype=float),
        "end_by_seed": pd.Series(dtype=float),
    }
    usual = _tests(report, own, at_end)
    row |= {"usual": usual.mean(), "usual_std": spread(usual), "usual_n": len(usual)}
    if pd.isna(found).any() or max(found) == DIVERGED:
        return row
    variants = list(by_rate.values())
    best = max(range(len(found)), key=lambda i: (found[i], variants[i] is own))  # of equal ones the study's own
    chosen = variants[best]
    mine = _tests(report, chosen, at_end)
    row |= {"accuracy": mine.mean(), "accuracy_std": spread(mine), "n": len(mine)}
    row |= {"by_seed": mine, "end_by_seed": _tests(report, chosen, at_end=True)}
    row |= {"chosen": chosen.recipe.training.lr, "edge": best in (0, len(found) - 1)}
    return row | {"runs": " ".join(str(run.folder) for run in chosen.runs() if run.seed in mine.index)}


def _searched(report: Report, variant: Variant, seed: int, at_end: bool) -> float:
    """Validation accuracy at the target bits; NaN of what has not run."""
    found = report.results.validation(at_end)
    of_run = (found.path == variant.path) & (found.seed == seed) & (found.eval_bits == variant.recipe.bits)
    if of_run.any():
        return float(found[of_run].accuracy.iloc[0])
    ran = report.results.evaluations
    diverged = (ran.path == variant.path) & (ran.seed == seed) & (ran.status == "diverged")
    return DIVERGED if diverged.any() else float("nan")


def _tests(report: Report, variant: Variant, at_end: bool) -> pd.Series:
    """Test accuracy at the target bits by seed, of the runs that did not diverge."""
    tests = report.results.ends if at_end else report.results.tests
    return by_seed(tests[(tests.path == variant.path) & (tests.eval_bits == variant.recipe.bits)])


def shown(report: Report, main: str, search: str, rows: pd.DataFrame) -> Table:
    """The searches that are complete as people read them."""
    ran, missing = rows[rows.chosen.notna()], rows[rows.chosen.isna()]
    said = []
    for row in ran.itertuples():
        cells = {"Method": METHOD_NAMES.get(row.method, row.method) + (f" {AT_END}" if row.at_end else "")}
        searched = zip(row.rates.split(), row.validations.split())
        cells |= {f"{float(rate):g}": f"**{v}**" if float(rate) == row.chosen else v for rate, v in searched}
        cells |= {
            "chosen": f"{row.chosen:g}{' <' if row.edge else ''}",
            "at the chosen": plus_minus(row.accuracy, row.accuracy_std),
            "n": f"{row.n:.0f}" if row.n == row.planned else f"{row.n:.0f} of {row.planned}",
            "− QAT [95 %]": with_interval(row.difference, row.difference_low, row.difference_high),
            "at the study's": f"{plus_minus(row.usual, row.usual_std)} (n = {row.usual_n})",
        }
        said.append(Row(cells, row.runs.split()))
    methods = [report.recipes[path].method for path in missing.variant]
    paths = [v.path for v in report.variants if v.experiment == search and v.recipe.method in methods]
    left = [Missing(search, report.why_not_run(search), list(missing.method), paths)] if len(missing) else []
    bits = {variant.recipe.bits for variant in report.variants if variant.experiment == search}
    target = ", ".join(bits_label(one) for one in sorted(bits))
    title = f"A learning rate for every method of {main}, {target}"
    first = ["chosen", "at the chosen", "n", "− QAT [95 %]"]
    return Table(table_name(main), title, [report.study.note, *NOTES], said, left, first)
