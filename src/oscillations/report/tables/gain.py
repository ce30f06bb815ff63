"""What explains the gain over PTQ: several ways to quantize one network, in one table.

Rows come from the study and its companions; a row that stands in two is taken from the first that has run it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.report.estimates import MINIMUM_RUNS, mean_interval, spread
from oscillations.report.results import Report, Results, kept
from oscillations.report.table import Missing, Row, Table
from oscillations.report.text import bits_label, plus_minus, with_interval
from oscillations.study.paths import experiment_of
from oscillations.study.report_schema import Gain, GainRow

NAME = "gain"
COLUMNS = ["text", "of", "study", "n", "accuracy", "std", "fp", "difference", "low", "high", "pairs", "runs"]


def title(gain: Gain) -> str:
    return f"What explains the gain over PTQ at {bits_label(gain.bits)}"


def gain_rows(report: Report, gain: Gain) -> pd.DataFrame:
    """One row per way: accuracy at the table's width and of the latent weights, difference paired by seed."""
    against = _trained(report.results, gain.against, gain.bits).set_index("seed").accuracy
    rows = [_row(row, *_first(report, row, gain.bits), against, _is_against(gain, row)) for row in gain.rows]
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_against(gain: Gain, row: GainRow) -> bool:
    return row.of == gain.against and not row.posttraining


def read_gain(report: Report) -> pd.DataFrame:
    """The rows that :func:`write_gain` wrote."""
    return report.read(f"tables/{NAME}.csv", "study", "runs")


def _first(report: Report, row: GainRow, bits: int) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The first study that has run a row, with its runs at the width and as latent weights."""
    nothing = pd.DataFrame(columns=["seed", "accuracy", "run"])
    for name in (report.study.study, *report.study.companions):
        found = report.of(name)
        runs = _trained(found, row.of, bits) if row.posttraining is None else _posttrained(found, row, bits)
        if len(runs):
            return name, runs, _trained(found, row.of, LATENT)
    return "", nothing, nothing


def _trained(found: Results, path: str, bits: int) -> pd.DataFrame:
    return found.tests[(found.tests.eval_bits == bits) & (found.tests.path == path)]


def _posttrained(found: Results, row: GainRow, bits: int) -> pd.DataFrame:
    made = kept(found.posttraining)
    return made[(made.label == row.posttraining) & (made.eval_bits == bits) & (made.path == row.of)]


def _row(
    row: GainRow, study: str, runs: pd.DataFrame, latent: pd.DataFrame, against: pd.Series, compared: bool
) -> dict[str, Any]:
    differences = (runs.set_index("seed").accuracy - against).dropna().to_numpy(dtype=float)
    paired = mean_interval(differences[: 0 if compared else None])  # a row has no difference to itself
    return {
        "text": row.text,
        "of": row.of,
        "study": study,
        "n": len(runs),
        "accuracy": runs.accuracy.mean(),
        "std": spread(runs.accuracy),
        "fp": latent[latent.seed.isin(runs.seed)].accuracy.mean(),
        "difference": paired.value,
        "low": paired.low,
        "high": paired.high,
        "pairs": paired.n,
        "runs": " ".join(sorted(runs.run)),
    }


def shown(report: Report, gain: Gain, rows: pd.DataFrame) -> Table:
    """The rows that have run as people read them, in the study's order."""
    against = next((row.text for row in gain.rows if _is_against(gain, row)), gain.against)
    ran = [
        Row(
            {
                "What is done": row.text,
                bits_label(gain.bits): plus_minus(row.accuracy, row.std),
                f"− {against} [95 %]": with_interval(row.difference, row.low, row.high),
                "n": str(row.n),
                bits_label(LATENT): plus_minus(row.fp, float("nan")),
                "Study": row.study,
            },
            row.runs.split(),
        )
        for row in rows[rows.n > 0].itertuples()
    ]
    empty = rows[rows.n == 0]
    left = [
        Missing(name, report.why_not_run(name), list(group.text), list(dict.fromkeys(group.of)))
        for name, group in empty.groupby(empty.of.map(experiment_of), sort=False)
    ]
    notes = [
        report.study.note,
        "Test accuracy in percent, mean ± standard deviation over n seeds. Differences are paired by the seeds that "
        f"both have; fewer than {MINIMUM_RUNS} have no interval.",
    ]
    return Table(NAME, title(gain), notes, ran, left)


def write_gain(report: Report) -> None:
    """Write ``tables/gain.*``, if the study has that table."""
    if (gain := report.study.gain) is not None:
        rows = gain_rows(report, gain)
        shown(report, gain, rows).write(report.folder / "tables", rows)
