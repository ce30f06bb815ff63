"""Claims with a verdict each, and the comparisons behind it.

A claim is made of comparisons (one per model and bit width, say); each has an estimate over seeds and its own
verdict. ``claims.csv`` shows, per claim, the comparison that decided it; ``claims_evidence.csv`` shows all.
"""

from __future__ import annotations

import math

import pandas as pd

from oscillations.core.files import write_text
from oscillations.report.claims import hypotheses, paper
from oscillations.report.claims.evidence import Claim, Comparison, Evidence
from oscillations.report.estimates import DECIDED, NOT_JUDGED, PUBLISHED_RUNS, SUPPORTED, Estimate
from oscillations.report.results import Report
from oscillations.report.table import csv
from oscillations.study.schema import Study

ESTIMATE = ["n", "estimate", "low", "high", "p"]
CLAIMS = [
    "claim", "statement", "verdict", "scope", *ESTIMATE, "supported", "counted", "not_judged", "comparisons",
    "evidence", "reason", "after_runs",
]  # fmt: skip
EVIDENCE = [
    "claim", "role", "subject", "comparison", "verdict", *ESTIMATE, "support", "against", "margin", "turns_at",
    "published", "published_low", "published_high", "published_says", "note", "runs",
]  # fmt: skip


def evaluate(report: Report) -> list[Claim]:
    """The paper's claims, if the study holds any of its tables, and the study's own hypotheses.

    A hypothesis with the name of a claim stands in its place.
    """
    own = {claim.name: claim for claim in hypotheses.claims(report)}
    published = paper.claims(Evidence(report)) if report.study.tables else []
    return [own.pop(claim.name, claim) for claim in published] + list(own.values())


def write_claims(report: Report) -> None:
    """Write ``claims.csv`` and ``claims_evidence.csv``."""
    claims = evaluate(report)
    summary = pd.DataFrame([_summary(report.study, claim) for claim in claims], columns=CLAIMS)
    rows = [_row(claim, comparison) for claim in claims for comparison in claim.comparisons]
    for name, table in (("claims.csv", summary), ("claims_evidence.csv", pd.DataFrame(rows, columns=EVIDENCE))):
        write_text(report.folder / name, csv(table))


def _summary(study: Study, claim: Claim) -> dict[str, object]:
    deciding = claim.deciding()
    verdicts = [comparison.verdict for comparison in claim.main]
    data = {"paper": "", "other-data": f"{study.data}: "}.get(study.published, f"{study.study}: ")
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "verdict": claim.verdict,
        "scope": claim.scope and data + claim.scope,
        **_numbers(deciding.estimate if deciding else Estimate(0)),
        "supported": verdicts.count(SUPPORTED),
        "counted": sum(verdict in DECIDED for verdict in verdicts),
        "not_judged": verdicts.count(NOT_JUDGED),
        "comparisons": len(verdicts),
        "evidence": deciding.text if deciding else "",
        "reason": claim.reason,
        "after_runs": claim.after_runs,
    }


def _row(claim: Claim, comparison: Comparison) -> dict[str, object]:
    result, published = comparison.result, comparison.published
    found = published.estimate(PUBLISHED_RUNS[-1]) if published else Estimate(0)
    return {
        "claim": claim.name,
        "role": "side" if comparison.side else "main",
        "subject": comparison.subject,
        "comparison": comparison.text,
        "verdict": comparison.verdict,
        **_numbers(comparison.estimate),
        "support": result.support if result else math.nan,
        "against": result.against if result else math.nan,
        "margin": result.margin if result else math.nan,
        "turns_at": result.turns_at if result else math.nan,
        "published": found.value,
        "published_low": found.low,
        "published_high": found.high,
        "published_says": comparison.published_says(),
        "note": comparison.notes,
        "runs": " ".join(comparison.runs),
    }


def _numbers(found: Estimate) -> dict[str, float]:
    return dict(zip(ESTIMATE, (found.n, found.value, found.low, found.high, found.p)))
