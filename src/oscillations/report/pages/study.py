"""``results/<study>/``: its page, how it was made, its README, what the landing page says, a page for every variant."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from oscillations.core.files import write_json, write_text
from oscillations.core.text import markdown
from oscillations.records.environment import unlike
from oscillations.report.captions import CAPTIONS, DPI, SCREEN, title
from oscillations.report.estimates import LEVEL, MINIMUM_RUNS, NOT_JUDGED, NOT_RUN, PUBLISHED_RUNS
from oscillations.report.findings import NO_FINDING, Finding
from oscillations.report.pages import links, render
from oscillations.report.pages.landing import RELATION
from oscillations.report.pages.making import Costs, cells_table, sections
from oscillations.report.pages.variant import write_variants
from oscillations.report.results import Report
from oscillations.report.table import Row, Table
from oscillations.report.tables import comparison as methods
from oscillations.report.tables import gain, method_rates
from oscillations.report.tables.published import FITTED_MARK
from oscillations.report.text import count, with_interval
from oscillations.study import paths
from oscillations.study.paths import CHOICES
from oscillations.study.report_schema import Exact, figure_number

OF_TABLES = ("figure-comparison", "figure-gain")  # each stands under its table


def write_site(report: Report) -> None:
    """Write all of it from the tables, claims and findings that stand there, and the run records."""
    study, costs = report.study, Costs(report)
    claims, findings = _claims(report), report.read("findings.csv").to_dict("records")
    beside = [*map(method_rates.table_name, study.method_rates), *([gain.NAME] if study.gain else [])]
    tables = [_table(report, name) for name in (*study.tables, *beside)]
    compared = [_table(report, methods.compared_name(name)) for name in study.comparisons]
    figures, choices = _figures(report), open_choices(CHOICES.read_text())
    made = sections(report, costs, choices)
    render(
        "study.html",
        report.folder / "index.html",
        heading=study.title,
        study=study,
        relation=RELATION[study.published],
        progress=_progress(report),
        warnings=_warnings(report),
        findings=[row | {"target": row["target"].removeprefix("index.html")} for row in findings],
        claims=claims,
        coverage=_coverage(report),
        tables=tables,
        compared=compared,
        left={table.name: costs.left_out(table.missing) for table in (*tables, *compared)},
        figures=[figure for figure in figures if not figure["table"]],
        beside={figure["table"]: figure for figure in figures if figure["table"]},
        figures_folder=f"../../figures/{study.study}",
        figure4=dict(choices)["figure 4"] if study.tables else "",
        sections=made,
        contents=_contents(report, bool(findings), claims, tables, compared, bool(figures or study.tables)),
        links=partial(links, study.study),
        marks=(FITTED_MARK, methods.EARLY, methods.AT_END),
        levels={
            "interval": round(100 * (1 - LEVEL)),
            "level": round(100 * LEVEL),
            "seeds": MINIMUM_RUNS,
            "published": PUBLISHED_RUNS,
        },
    )
    render("making.html", report.folder / "making.html", heading=f"{study.title}: how it was made", study=study,
           sections=made, links=partial(links, study.study))  # fmt: skip
    write_variants(report)
    write_text(report.folder / "README.md", _readme(report, claims, findings, [*tables, *compared], figures))
    write_json(report.folder / "summary.json", _summary(report, claims, findings))


def open_choices(text: str) -> list[tuple[str, str]]:
    """(item, what is taken) of every row of docs/choices.md that the project had to choose."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [(item, taken) for item, taken, tag in rows if "choice" in tag]


def _progress(report: Report) -> str:
    """How much of the study has run."""
    done = sum(plan.current for plan in report.plans)
    seeds = [sum(plan.current for plan in group) for _, group in groupby(report.plans, lambda plan: plan.variant.path)]
    ran = sorted(number for number in seeds if number)
    least = f"{ran[0]} to " if ran and ran[0] < ran[-1] else ""
    return f"{done} of {len(report.plans)} runs done" + (f", {least}{count(ran[-1], 'seed')} each" if ran else "")


def _warnings(report: Report) -> list[str]:
    found = [f"Provenance: {text}." for text in unlike(plan.result for plan in report.plans if plan.current)]
    if stale := sum(plan.stale is not None for plan in report.plans):
        found.append(
            f"{stale} finished runs are not shown, because the study or the code has changed since: `python -m "
            f"oscillations status --study {report.study.study}` says which and why. If only the form of the code has "
            "changed, `python -m oscillations certify` settles it."
        )
    return found


# -- tables and figures ------------------------------------------------------------------------------------


def _table(report: Report, name: str) -> Table:
    """As the tables' step wrote it; the study's own note stands at the top of the page."""
    table = report.table(name)
    return replace(table, notes=[note for note in table.notes if note != report.study.note])


def _coverage(report: Report) -> Table | None:
    """How many published cells have run, by table, and how they agree."""
    counts = report.read("coverage.csv")
    if not report.study.judged or not counts.published.sum():
        return None
    counts["table"] = counts.table.str.replace("table", "Table ").str.replace("all", "All")
    rows = [Row({name.capitalize(): str(value) for name, value in row.items()}) for row in counts.to_dict("records")]
    return Table("coverage", "Published cells", [], rows)


def _figures(report: Report) -> list[dict[str, Any]]:
    """What has been drawn, in the study's order."""
    found = []
    for name in (*report.study.films, *report.study.figure_names):
        file = next((file for suffix in ("png", "gif") if (file := _picture(report, name, suffix)).exists()), None)
        if file is None:
            continue
        kind = figure_number(name)
        width, height = _size(file)
        found.append(
            {
                "name": name,
                "title": title(name),
                "caption": CAPTIONS[kind],
                "suffix": file.suffix[1:],
                "link": "pdf" if file.with_suffix(".pdf").exists() else file.suffix[1:],
                "width": width,
                "height": height,
                "table": name.removeprefix("figure-") if kind in OF_TABLES else "",
                "exact": isinstance(report.study.figures.get(name), Exact),
            }
        )
    return found


def _picture(report: Report, name: str, suffix: str) -> Path:
    return paths.figures(report.study.study) / f"{name}.{suffix}"


def _size(picture: Path) -> tuple[int, int]:
    """CSS pixels on the page, so that all figures have letters of one size."""
    with Image.open(picture) as image:
        scale = SCREEN / DPI if picture.suffix == ".png" else 1
        return round(image.width * scale), round(image.height * scale)


def _contents(
    report: Report,
    findings: bool,
    claims: list[Any],
    tables: list[Table],
    compared: list[Table],
    figures: bool,
) -> list[tuple[str, str, bool]]:
    """(anchor, text, whether it stands under another) of what the page holds."""
    found = [("findings", "What was found", False)] if findings else []
    found += [("claims", "Claims" if report.study.tables else "Hypotheses", False)] if claims else []
    found += [("tables", "Tables", False)] if tables else []
    found += [(table.name, table.title.split(".")[0], True) for table in tables]
    found += [("methods", "Every method", False)] if compared else []
    found += [(table.name, table.title.removeprefix(methods.TITLE), True) for table in compared]
    found += [("figures", "Figures", False)] if figures else []
    return [*found, ("how", "How it was made", False)]


# -- claims ------------------------------------------------------------------------------------------------


def _claims(report: Report) -> list[dict[str, Any]]:
    """Every claim with its comparisons: those that have run as rows, the others as texts."""
    claims = report.read("claims.csv", "evidence", "reason", "scope")
    evidence = report.read("claims_evidence.csv", "runs", "note", "published_says")
    rows = []
    for claim in claims.to_dict("records"):
        comparisons = evidence[evidence.claim == claim["claim"]].to_dict("records")
        for one in comparisons:
            one |= {"interval": _interval(one), "published": _published(one)}
            one["links"] = links(report.study.study, one["runs"].split())
        run = [one for one in comparisons if one["verdict"] != NOT_RUN]
        missing = [
            one["comparison"]
            + (f" (published {one['published']})" if one["published"] else "")
            + (" (beside; decides nothing)" if one["role"] == "side" else "")
            for one in comparisons
            if one["verdict"] == NOT_RUN
        ]
        beside = sum(one["role"] == "side" for one in comparisons if one["verdict"] == NOT_RUN)
        left = count(len(missing), "comparison") + " not run" + (f", {beside} of them beside" if beside else "")
        rows.append(
            claim
            | {
                "interval": _interval(claim),
                "summary": _counts(claim),
                "of": _counted(claim),
                "rows": run,
                "missing": missing,
                "left": left,
            }
        )
    return rows


def _counted(claim: dict[str, Any]) -> str:
    """``3 of 11``: the comparisons that count, of all."""
    return f"{claim['counted']} of {claim['comparisons']}" if claim["counted"] else ""


def _counts(claim: dict[str, Any]) -> str:
    """How many comparisons say what: ``3 of 4 support it; 1 not judged, 7 not run``."""
    missing = claim["comparisons"] - claim["counted"] - claim["not_judged"]
    left_out = [f"{count} {what}" for count, what in ((claim["not_judged"], NOT_JUDGED), (missing, NOT_RUN)) if count]
    said = [f"{claim['supported']} of {claim['counted']} support it"] if claim["counted"] else []
    return "; ".join([*said, *filter(None, [", ".join(left_out)])])


def _interval(row: dict[str, Any]) -> str:
    if pd.isna(row["estimate"]):
        return ""
    largest = max(abs(row[end]) for end in ("estimate", "low", "high") if pd.notna(row[end]))
    digits = 2 if largest >= 0.2 else 4
    if pd.notna(row["p"]) and row["n"] >= MINIMUM_RUNS:
        return f"{row['estimate']:.{digits}f} (p = {row['p']:.2g})"
    return with_interval(row["estimate"], row["low"], row["high"], digits, sign="")


def _published(row: dict[str, Any]) -> str:
    """The published number, its interval if it has one, and what it says under the same test."""
    if pd.isna(row["published"]):
        return ""
    number = with_interval(row["published"], row["published_low"], row["published_high"], sign="")
    return f"{number}: {row['published_says']}"


# -- for a forge -------------------------------------------------------------------------------------------


def _readme(
    report: Report, claims: list[dict[str, Any]], findings: list[dict[str, str]], tables: list[Table],
    figures: list[dict[str, Any]],
) -> str:  # fmt: skip
    """What a forge shows of the folder: findings, verdicts, the tables that have run, and the figures of runs."""
    study = report.study
    parts = [
        f"# {markdown(study.title)}",
        f"{markdown(study.note)} {RELATION[study.published]} {_progress(report)}.",
        "## What was found",
    ]
    bullets = [Finding(**row).markdown(study.study) for row in findings]
    parts.append("\n".join(bullets) or NO_FINDING)
    if claims:
        kind = "Claim" if study.tables else "Hypothesis"
        rows = [
            Row(
                {
                    "": claim["claim"], "Verdict": claim["verdict"], "Of": _counted(claim), kind: claim["statement"],
                    "Number": claim["interval"], "n": str(claim["n"] or ""), "What the number is": claim["evidence"],
                }
            )
            for claim in claims
        ]  # fmt: skip
        parts += ["## Verdicts", Table("", "", [], rows).grid(list(rows[0].cells))]
        parts.append("Of: the comparisons that count, of all. All stand in [claims_evidence.csv](claims_evidence.csv).")
    tables = [*tables, *([] if any(table.rows for table in tables) else [cells_table(report)])]
    parts += ["## Tables"] if any(table.rows for table in tables) else []
    for table in tables:
        if table.rows:
            shown = [name for name in table.columns if not table.first or name in (table.columns[0], *table.first)]
            written = (report.folder / "tables" / f"{table.name}.md").exists()
            heading = f"[{table.title}](tables/{table.name}.md)" if written else table.title
            parts += [markdown(f"### {heading}"), table.grid(shown), markdown(table.not_run)]
    pictures = [figure for figure in figures if not figure["exact"]]
    parts += ["## Figures"] if pictures else []
    for figure in pictures:
        picture = f"../../figures/{study.study}/{figure['name']}.{figure['suffix']}"
        parts += [f"![{figure['title']}]({picture})", f"*{figure['title']}. {figure['caption']}*"]
    parts += [
        "## More",
        "[index.html](index.html) shows all of it, with tables that sort and every run's curves, and opens from disk. "
        "[measurements.csv](measurements.csv) holds every accuracy, [oscillations.csv](oscillations.csv) every epoch, "
        "[runs](runs) every run. [All studies](../README.md).",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _summary(report: Report, claims: list[dict[str, Any]], findings: list[dict[str, str]]) -> dict[str, Any]:
    """What a page over all studies says of this one."""
    study = report.study
    coverage = report.read("coverage.csv").set_index("table").loc["all"]
    return {
        "study": study.study,
        "title": study.title,
        "note": study.note,
        "published": study.published,
        "data": study.data,
        "progress": _progress(report),
        "cells": [int(coverage.run), int(coverage.published)] if study.judged else None,
        "verdicts": dict(Counter(claim["verdict"] for claim in claims)),
        "findings": findings[:2],
    }
