"""What was found: five to eight sentences, each with its numbers, n, interval, scope and a link, made from files.

``findings.csv`` holds them, ``findings.md``, the study's page and its README show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np
import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.core.errors import InputError
from oscillations.core.files import write_text
from oscillations.core.text import markdown
from oscillations.report.estimates import (
    CONTRADICTED,
    INCONCLUSIVE,
    MINIMUM_RUNS,
    NOT_JUDGED,
    NOT_RUN,
    SUPPORTED,
    mean_interval,
    spread,
)
from oscillations.report.results import Report
from oscillations.report.table import csv
from oscillations.report.tables import comparison, gain
from oscillations.report.tables.published import AGREEMENTS, DIFFERENT
from oscillations.report.text import METHOD_NAMES, MODEL_NAMES, bits_label, count, plus_minus, with_interval
from oscillations.study.paths import results
from oscillations.study.report_schema import PTQ_BITS, Gain, RatePanels
from oscillations.study.schema import Study

MOST = 8  # sentences
NO_FINDING = "No claim, comparison or published table has enough runs to say anything; the numbers follow."
CHAPTERS = {"variants": "tables"}  # of the README, by anchor of the page
BEGIN, END = "<!-- findings -->\n", "<!-- end of findings -->\n"  # the part of a README that is made by code


@dataclass(frozen=True)
class Finding:
    """A sentence and where its numbers stand: a file or an anchor of the page, in the study's results."""

    text: str
    target: str

    def markdown(self, study: str, folder: str = "") -> str:
        """As a bullet; ``folder``: of the study's results, seen from where it stands."""
        return f"- {markdown(self.text)} [→]({normpath(folder + on_forge(self.target, study))})"


def on_forge(target: str, study: str) -> str:
    """The file that a forge renders in place of an anchor of the page."""
    page, _, anchor = target.partition("#")
    if page != "index.html":
        return target
    if anchor.startswith("figure"):
        return f"../../figures/{study}/{anchor}.png"
    return (
        f"tables/{anchor}.md" if anchor.startswith("comparison-") else f"README.md#{CHAPTERS.get(anchor, 'verdicts')}"
    )


def findings(report: Report) -> list[Finding]:
    """The study's sentences, the most general first. Raises InputError if its tables or claims are not there."""
    return list(islice(_all(report), MOST))


def _all(report: Report) -> Iterator[Finding]:
    study, tests = report.study, report.results.tests
    claims, evidence = report.read("claims.csv", "scope", "evidence"), report.read("claims_evidence.csv")
    agreement, coverage = report.read("agreement.csv"), report.read("coverage.csv")
    if study.judged and len(tests):
        yield from _agreement(study, agreement, coverage)
    yield from _verdicts(study, claims)
    if study.gain is not None:
        yield from _gain(study.gain, gain.read_gain(report))
    yield from _as_written(study, tests)
    yield from _cross_bit(evidence)
    for name, spec in study.figures.items():
        if isinstance(spec, RatePanels) and study.judged:
            yield from _rates(name, spec, tests, report.published)
    for name in study.comparisons:
        yield from _compared(study, name, comparison.read_comparison(report, name))
    yield from _decided(study, claims)


def _number(value: float, low: float, high: float, n: float, sign: str = "+") -> str:
    """``-9.76 [-11.02, -8.50], n = 5``; without an interval where there is none."""
    digits = 2 if np.nanmax(np.abs([value, low, high])) >= 0.1 else 3
    return f"{with_interval(value, low, high, digits, sign)}, n = {int(n)}"


def _agreement(study: Study, cells: pd.DataFrame, coverage: pd.DataFrame) -> Iterator[Finding]:
    """How many published cells have run and agree, and the largest of the differences."""
    count = coverage.set_index("table").loc["all"]
    few = int(count.run - count[[*AGREEMENTS, "fitted"]].sum())
    models = ", ".join(MODEL_NAMES.get(model, model) for model in cells[cells.n > 0].model.unique())
    yield Finding(
        f"**{count.run} of {count.published} published cells have run** ({models}; data {study.data}): "
        f"{count.compatible} compatible with the published mean, {count.different} different, {count.depends} that "
        f"depend on how many seeds the paper had, {count.chance} chance on both sides, {count.fitted} fitted and not "
        f"judged{f', {few} with too few runs' if few else ''}.",
        "agreement.csv",
    )
    apart = cells[(cells.agreement == DIFFERENT) & ~cells.fitted]
    apart = apart.loc[apart.difference.abs().sort_values(ascending=False).index]
    said = [
        f"{METHOD_NAMES[cell.method]}, {MODEL_NAMES.get(cell.model, cell.model)}, {bits_label(cell.eval_bits)}: "
        f"{cell.mean:.2f} against {cell.published_mean:.2f}, "
        f"{_number(cell.difference, cell.low_5, cell.high_5, cell.n)}"
        for cell in apart.itertuples()
    ]
    if said:
        yield Finding(
            f"**What does not reproduce**: {'; '.join(said)} (interval as if the paper had run 5 seeds).",
            "agreement.csv",
        )


def _verdicts(study: Study, claims: pd.DataFrame) -> Iterator[Finding]:
    """All claims by verdict, each with the comparisons that count, of all it has."""
    if claims.empty:
        return

    def named(kind: str) -> str:
        mine = claims[claims.verdict == kind].itertuples()
        return ", ".join(
            f"{one.claim} ({one.counted} of {one.comparisons})" if one.counted else one.claim for one in mine
        )

    kinds = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_JUDGED, NOT_RUN)
    said = "; ".join(f"{kind}: {names}" for kind in kinds if (names := named(kind)))
    what = count(len(claims), "claim of the paper", "claims of the paper")
    what = what if study.tables else count(len(claims), "hypothesis", "hypotheses")
    yield Finding(f"**Of {what}** (in brackets: the comparisons that have run): {said}.", "index.html#claims")


def _gain(spec: Gain, rows: pd.DataFrame) -> Iterator[Finding]:
    """What does as well as the method in question: differences, paired by seed, that an interval tells from 0."""
    mine, ran = rows[(rows.of == spec.against) & rows.difference.isna()], rows[rows.low.notna()]
    if mine.empty or ran.empty:
        return

    def listed(chosen: pd.Series) -> str:
        said = [
            f"{row.text} {_number(row.difference, row.low, row.high, row.pairs)}" for row in ran[chosen].itertuples()
        ]
        return "; ".join(said) or "nothing"

    missing = ", ".join(rows[rows.n == 0].text)
    yield Finding(
        f"**Other ways to {mine.text.iloc[0]}'s {bits_label(spec.bits)} accuracy** ({mine.accuracy.iloc[0]:.2f}, "
        f"n = {int(mine.n.iloc[0])}; differences, paired by seed): above it {listed(ran.low > 0)}. Not told apart: "
        f"{listed((ran.low <= 0) & (ran.high >= 0))}. Below it: {listed(ran.high < 0)}."
        + (f" Not run: {missing}." if missing else ""),
        f"tables/{gain.NAME}.md",
    )


def _as_written(study: Study, tests: pd.DataFrame) -> Iterator[Finding]:
    """The regularizer as the text of the paper writes it."""
    for (experiment, strength), runs in tests[tests.preset == "paper_text"].groupby(["experiment", "lambda"]):
        said = []
        for bits, mine in runs.groupby("train_bits"):
            at = [mean_interval(mine.accuracy[mine.eval_bits == width].to_numpy()) for width in (bits, LATENT)]
            if all(one.n for one in at):
                own, latent = (_number(one.value, one.low, one.high, one.n, sign="") for one in at)
                low = max(one.value for one in at) < study.near_chance
                said.append(f"trained {bits_label(bits)} {own}, as FP32 {latent}{' (both near chance)' if low else ''}")
        if said and study.tables:
            yield Finding(
                f"**Eq. 23 as the text writes it** ({experiment}, λ = {strength:g}): {'; '.join(said)}. All other "
                "numbers are of the released code's form.",
                "making.html#variants",
            )


def _cross_bit(evidence: pd.DataFrame) -> Iterator[Finding]:
    """C17: the difference to QAT as latent weights, for every trained width; all others stand with the claim."""
    latent = evidence.comparison.str.contains(f", at {bits_label(LATENT)}:", regex=False)
    mine = evidence[(evidence.claim == "C17") & latent & (evidence.n >= MINIMUM_RUNS)]
    if len(mine):
        said = [
            f"{row.comparison.split(', at ')[0]}: {_number(row.estimate, row.low, row.high, row.n)} ({row.verdict})"
            for row in mine.itertuples()
        ]
        yield Finding(
            f"**Away from the training width**, OsciQuant - QAT at FP32: {'; '.join(said)}.", "index.html#C17"
        )


def _rates(name: str, spec: RatePanels, tests: pd.DataFrame, published: pd.DataFrame) -> Iterator[Finding]:
    """How near one learning rate and lambda come to two published cells: OsciQuant at the width, and PTQ at 3 bits."""
    mine = tests[tests.experiment == spec.experiment]
    if mine.empty:
        return
    published = published[(published.model == mine.iloc[0].model) & (published.setting == "scratch")]
    cells = published.drop_duplicates(["method", "eval_bits"]).set_index(["method", "eval_bits"])["mean"]
    wanted = {"osciquant": ("osciquant", spec.bits), "ptq": ("ptq", PTQ_BITS)}
    if not set(wanted.values()) <= set(cells.index):
        return
    target = {method: cells[cell] for method, cell in wanted.items()}
    osci = mine[(mine.method == "osciquant") & (mine.eval_bits == spec.bits)].groupby(["lr", "lambda"]).accuracy
    ptq = mine[(mine.method == "ptq") & (mine.eval_bits == PTQ_BITS)].groupby("lr").accuracy.mean()
    both = osci.agg(osci="mean", std=spread).reset_index().merge(ptq.rename("ptq").reset_index(), on="lr")
    if both.empty:
        return
    off = np.maximum((both.osci - target["osciquant"]).abs(), (both.ptq - target["ptq"]).abs())
    near, high, low = (both.loc[place] for place in (off.idxmin(), both.osci.idxmax(), both.osci.idxmin()))

    def said(cell: pd.Series) -> str:
        return f"{plus_minus(cell.osci, cell['std'])} and {cell.ptq:.2f} at {cell.lr:g}, λ = {cell['lambda']:g}"

    yield Finding(
        f"**{bits_label(spec.bits).capitalize()} over the learning rate**: OsciQuant, and {bits_label(PTQ_BITS)} PTQ "
        f"of the baseline of that rate (published {target['osciquant']:.2f} and {target['ptq']:.2f}): of {len(both)} "
        f"rates and strengths the lowest {said(low)}, the highest {said(high)}; nearest to both published, "
        f"{off.min():.1f} points from one: {said(near)} (n = {mine.groupby('variant').seed.nunique().min()}).",
        f"index.html#{name}",
    )


def _compared(study: Study, name: str, rows: pd.DataFrame) -> Iterator[Finding]:
    """The best of every ranking of a comparison, or that there are too few runs for one.

    Rows of one mean are named together.
    """
    ran = rows[rows.n > 0]
    if ran.empty:
        return
    best = ran[comparison.best(ran, "accuracy")].assign(label=lambda rows: [_judged(row) for row in rows.itertuples()])
    said = [_leads(family, rows) for (family, _), rows in best.groupby(["family", "accuracy"], sort=False)]
    few = int((ran.n < MINIMUM_RUNS).sum())
    rest = f"{few} of {len(ran)} rows have fewer than {MINIMUM_RUNS} seeds: no interval, no ranking." if few else ""
    ranked = f"highest mean among those with enough seeds, by family and grid: {'; '.join(said)}. " if said else ""
    title, target = comparison.title(study, study.comparisons[name]), f"index.html#{comparison.compared_name(name)}"
    if ranked or rest:
        yield Finding(f"**{title}**: {ranked}{_one_for_all(ran)}{_cheapest(ran)}{rest}".strip(), target)


def _leads(family: str, rows: pd.DataFrame) -> str:
    """What has the highest mean of a family on its grid, and if it is one row, how far from QAT."""
    first = rows.iloc[0]
    away = with_interval(first.difference, first.difference_low, first.difference_high) if len(rows) == 1 else ""
    less = f", − QAT {away}" if away else ""
    return f"{family}: {' = '.join(rows.label)} {first.accuracy:.2f}{less} (n = {first.n})"


def _cheapest(ran: pd.DataFrame) -> str:
    """Which trained methods have the cheapest steps, where these were measured."""
    known = ran[ran.step_cost.notna() & (ran.method != "baseline")].sort_values("step_cost").drop_duplicates("label")
    said = [f"{row.label} {row.step_cost:.2f}" for row in known.head(3).itertuples()]
    return f"Cheapest steps, in full precision's: {', '.join(said)}. " if len(known) > 3 else ""


def _judged(row: Any) -> str:
    """A row's name, and when it is judged if not at the best epoch."""
    return f"{row.label} (at the end)" if row.at_end is True else row.label


def _one_for_all(ran: pd.DataFrame) -> str:
    """Which method serves several widths best, by its worst; of those with enough seeds."""
    enough = ran[(ran.n >= MINIMUM_RUNS) & ran.worst.notna()].sort_values("worst", ascending=False)
    if len(enough) < 2:
        return ""
    said = [f"{_judged(row)} {plus_minus(row.worst, row.worst_std)} (n = {row.n})" for row in enough.itertuples()]
    widths = " and ".join([", ".join(map(str, comparison.SERVED[:-1])), str(comparison.SERVED[-1])])
    return f"One network for {widths} bits, by its worst width: {', '.join(said[:3])}. "


def _decided(study: Study, claims: pd.DataFrame) -> Iterator[Finding]:
    """Each contradicted claim, then, of hypotheses, each supported one, with the comparison that decided it."""
    kinds = (CONTRADICTED,) if study.tables else (CONTRADICTED, SUPPORTED)
    for kind in kinds:
        for claim in claims[claims.verdict == kind].itertuples():
            numbers = _number(claim.estimate, claim.low, claim.high, claim.n)
            yield Finding(
                f"**{claim.claim} {kind}** ({claim.scope}): {claim.statement} Deciding: {claim.evidence}: {numbers}.",
                f"index.html#{claim.claim}",
            )


# -- files -------------------------------------------------------------------------------------------------


def write_findings(report: Report) -> None:
    """Write ``findings.csv`` and ``findings.md``."""
    found, study = findings(report), report.study
    table = pd.DataFrame([vars(one) for one in found], columns=["text", "target"])
    write_text(report.folder / "findings.csv", csv(table))
    bullets = "\n".join(one.markdown(study.study) for one in found) or NO_FINDING
    write_text(
        report.folder / "findings.md",
        f"# What was found: {markdown(study.title)}\n\n{markdown(study.note)}\n\n{bullets}\n",
    )


def update_readme(report: Report, readme: Path) -> None:
    """Bring the sentences of a README up to date."""
    write_text(readme, with_findings(readme.read_text(), report.study, findings(report)))


def with_findings(text: str, study: Study, found: list[Finding]) -> str:
    """A README with the sentences between its two marks. Raises InputError if they are not there."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"the README needs one line {BEGIN.strip()} and one {END.strip()}")
    folder = f"{results(study.study).as_posix()}/"
    bullets = "\n".join(one.markdown(study.study, folder) for one in found)
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}{bullets}\n{END}", text, flags=re.DOTALL)
