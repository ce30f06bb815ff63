"""Accuracy at fewer bits by both rules of cross-bit evaluation, side by side, if a study asks for slices."""

from __future__ import annotations

from itertools import groupby

import pandas as pd

from oscillations.core.bits import REQUANTIZE, SLICE, SLICED
from oscillations.report.results import Report, Results
from oscillations.report.table import Missing, Row, Table
from oscillations.report.tables.published import summarise
from oscillations.report.text import bits_label, plus_minus

NAME = "cross-bit-rules"
TITLE = "Two rules of cross-bit evaluation: compare methods within one"
RULES = {REQUANTIZE: "re-quantized", SLICE: "slice"}
COLUMNS = [
    "path", "method", "train_bits", "eval_bits", REQUANTIZE, f"{REQUANTIZE}_std", SLICE, f"{SLICE}_std", "n", "runs",
]  # fmt: skip
NOTES = [
    "Test accuracy in percent of the best epoch's weights, mean ± standard deviation over n seeds; batch-norm "
    "statistics kept. Re-quantized: the latent weights by Eq. 1-2 anew at each width, by a run's own quantizer at the "
    f"bits it was trained for. Slice: the most significant bits of the latent weights' {SLICED}-bit codes of Eq. 1-2, "
    "rounded to nearest, at every width.",
    "Slices look better than Eq. 2 at low widths for a reason that has nothing to do with training: Eq. 2 stretches "
    "its few levels until the largest weight lies on the last one, while those of a slice cover less of the range (88, "
    "76 and 50 % of it at 4, 3 and 2 bits) and clip what lies beyond. Their steps are smaller, and so is the squared "
    "error of weights most of which are small. So methods are to be compared within one rule only; every other table, "
    "figure and claim is of re-quantized weights.",
]


def both_rules(results: Results) -> pd.DataFrame:
    """One row per variant and width of slices: mean and deviation by each rule, over the same runs."""
    evaluations, slices = results.evaluations, results.slices
    requantized = _means(evaluations[evaluations.run.isin(slices.run)], REQUANTIZE)
    same = ["path", "eval_bits"]
    return requantized.merge(_means(slices, SLICE)[[*same, SLICE, f"{SLICE}_std"]], on=same)[COLUMNS]


def _means(evaluations: pd.DataFrame, rule: str) -> pd.DataFrame:
    return summarise(evaluations).rename(columns={"mean": rule, "std": f"{rule}_std"})


def shown(report: Report, rows: pd.DataFrame) -> Table:
    """A row per variant, the rules beside each other at every width; what has not run, by experiment."""
    widths = [bits for bits in report.study.eval_bits if bits < SLICED]
    said = []
    for path, cells in rows.groupby("path", sort=False):
        at = cells.set_index("eval_bits")
        found = {
            f"{bits_label(bits)}, {name}": plus_minus(at[rule][bits], at[f"{rule}_std"][bits])
            for bits in widths for rule, name in RULES.items()
        }  # fmt: skip
        said.append(Row({"Variant": str(path)} | found | {"n": str(cells.n.max())}, cells.runs.iloc[0].split()))
    left = [variant for variant in report.variants if variant.path not in set(rows.path)]
    missing = []
    for experiment, group in groupby(left, lambda variant: variant.experiment):
        paths = [variant.path for variant in group]
        missing.append(Missing(experiment, report.study.not_run.get(experiment, "not evaluated yet"), paths, paths))
    return Table(NAME, TITLE, [report.study.note, *NOTES], said, missing)


def write_cross_bit(report: Report) -> None:
    """Write ``tables/cross-bit-rules.*``, if the study asks for slices."""
    if report.study.slices:
        rows = both_rules(report.results)
        shown(report, rows).write(report.folder / "tables", rows)
