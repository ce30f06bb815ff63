"""Claims with a verdict each, and the comparisons behind it.

A claim is made of comparisons (one per model and bit width, say); each has an estimate over seeds and its own
verdict. ``claims.csv`` shows, per claim, the comparison that decided it; ``claims_evidence.csv`` shows all.
"""

from __future__ import annotations

import pandas as pd

from oscillations.core.files import write_text
from oscillations.report.claims import hypotheses, paper
from oscillations.report.claims.evidence import Claim, Comparison, Evidence
from oscillations.report.estimates import FITTED, NOT_RUN, SUPPORTED, Estimate
from oscillations.report.measurements import read_measurements, read_oscillations
from oscillations.study.paths import results
from oscillations.study.schema import Study

ESTIMATE = ["n", "estimate", "low", "high", "p"]
CLAIMS = [
    "claim", "statement", "verdict", *ESTIMATE, "supported", "counted", "fitted", "comparisons", "evidence", "reason",
]  # fmt: skip
EVIDENCE = ["claim", "comparison", "verdict", *ESTIMATE, "runs"]


def evaluate(study: Study, measurements: pd.DataFrame, oscillations: pd.DataFrame) -> list[Claim]:
    """The paper's claims, if the study holds any of its tables, and the study's own hypotheses."""
    evidence = Evidence(study, measurements, oscillations)
    return (paper.claims(evidence) if study.tables else []) + hypotheses.claims(study)


def write_claims(study: Study) -> None:
    """Write ``claims.csv`` and ``claims_evidence.csv``."""
    claims = evaluate(study, read_measurements(study.study), read_oscillations(study.study))
    summary = pd.DataFrame([_summary(claim) for claim in claims], columns=CLAIMS)
    rows = [_row(claim, comparison) for claim in claims for comparison in claim.comparisons]
    for name, table in (("claims.csv", summary), ("claims_evidence.csv", pd.DataFrame(rows, columns=EVIDENCE))):
        write_text(results(study.study) / name, table.round(6).to_csv(index=False, lineterminator="\n"))


def _summary(claim: Claim) -> dict[str, object]:
    deciding = claim.deciding()
    verdicts = [comparison.verdict for comparison in claim.comparisons]
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "verdict": claim.verdict,
        **_numbers(deciding.estimate if deciding else Estimate(0)),
        "supported": verdicts.count(SUPPORTED),
        "counted": sum(verdict not in (NOT_RUN, FITTED) for verdict in verdicts),
        "fitted": verdicts.count(FITTED),
        "comparisons": len(verdicts),
        "evidence": deciding.text if deciding else "",
        "reason": claim.reason,
    }


def _row(claim: Claim, comparison: Comparison) -> dict[str, object]:
    about: dict[str, object] = {"claim": claim.name, "comparison": comparison.text, "verdict": comparison.verdict}
    return about | _numbers(comparison.estimate) | {"runs": " ".join(comparison.runs)}


def _numbers(found: Estimate) -> dict[str, float]:
    return dict(zip(ESTIMATE, (found.n, found.value, found.low, found.high, found.p)))
