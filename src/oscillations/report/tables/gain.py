"""What explains the gain over PTQ: several ways to quantize one network, in one table.

Rows come from the study and its companions; a row that stands in two is taken from the first that has run it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.report.estimates import MINIMUM_RUNS, mean_interval, spread
from oscillations.report.measurements import read_posttraining, read_table, read_tests
from oscillations.report.tables.published import bits_label, plus_minus, with_interval, write_formats
from oscillations.study.paths import results
from oscillations.study.report_schema import Gain, GainRow
from oscillations.study.schema import Study

NAME = "gain"
COLUMNS = ["text", "of", "study", "n", "accuracy", "std", "fp", "difference", "low", "high", "pairs", "runs"]


def title(gain: Gain) -> str:
    return f"What explains the gain over PTQ at {bits_label(gain.bits)}"


def gain_rows(study: Study, gain: Gain) -> pd.DataFrame:
    """One row per way: accuracy at the table's width and of the latent weights, difference paired by seed."""
    against = _trained(study.study, gain.against, gain.bits).set_index("seed").accuracy
    rows = [_row(row, *_first(study, row, gain.bits), against, _is_against(gain, row)) for row in gain.rows]
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_against(gain: Gain, row: GainRow) -> bool:
    return row.of == gain.against and not row.posttraining


def read_gain(study: Study) -> pd.DataFrame:
    """The rows that :func:`write_gain` wrote."""
    return read_table(results(study.study) / "tables" / f"{NAME}.csv", "study", "runs")


def _first(study: Study, row: GainRow, bits: int) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The first study that has run a row, with its runs at the width and as latent weights."""
    nothing = pd.DataFrame(columns=["seed", "accuracy", "run"])
    for name in (study.study, *study.companions):
        runs = _trained(name, row.of, bits) if row.posttraining is None else _posttrained(name, row, bits)
        if len(runs):
            return name, runs, _trained(name, row.of, LATENT)
    return "", nothing, nothing


def _trained(study: str, path: str, bits: int) -> pd.DataFrame:
    tests = read_tests(study)
    return tests[(tests.eval_bits == bits) & (tests.experiment + "/" + tests.variant == path)]


def _posttrained(study: str, row: GainRow, bits: int) -> pd.DataFrame:
    made, _ = read_posttraining(study)
    made = made[(made.label == row.posttraining) & (made.eval_bits == bits) & (made.bn == "keep")]
    return made[(made.status == "done") & (made.experiment + "/" + made.variant == row.of)]


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


def shown(gain: Gain, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as people read them, in the study's order."""
    against = next((row.text for row in gain.rows if _is_against(gain, row)), gain.against)
    return pd.DataFrame(
        {
            "What is done": rows.text,
            bits_label(gain.bits): [plus_minus(row.accuracy, row.std) or "not run" for row in rows.itertuples()],
            bits_label(LATENT): [plus_minus(value, float("nan")) for value in rows.fp],
            f"− {against} [95 %]": [with_interval(row.difference, row.low, row.high) for row in rows.itertuples()],
            "n": rows.n.astype(str),
            "Study": rows.study,
        }
    )


def notes(study: Study) -> list[str]:
    return [
        study.note,
        "Test accuracy in percent, mean ± standard deviation over n seeds. Differences are paired by the seeds that "
        f"both have; fewer than {MINIMUM_RUNS} have no interval.",
    ]


def write_gain(study: Study) -> None:
    """Write ``tables/gain.{csv,md,tex}``, if the study has that table."""
    if study.gain is not None:
        rows = gain_rows(study, study.gain)
        path = results(study.study) / "tables" / NAME
        write_formats(path, title(study.gain), notes(study), rows, shown(study.gain, rows))
