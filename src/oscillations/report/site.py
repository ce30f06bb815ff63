"""``results/<study>/index.html``: everything a study has shown, on one page that opens from disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from oscillations.core.files import write_text
from oscillations.records import cost, numerics
from oscillations.records.environment import unlike
from oscillations.records.plans import Plan, plans
from oscillations.report.estimates import LEVEL, MINIMUM_RUNS, NOT_JUDGED, NOT_RUN, PUBLISHED_RUNS, spread
from oscillations.report.figures.runs import CAPTIONS, DPI, title
from oscillations.report.measurements import (
    last_epochs,
    read_measurements,
    read_oscillations,
    read_table,
    refuse_missing,
    start_label,
)
from oscillations.report.tables import comparison as methods
from oscillations.report.tables import gain, rate_search
from oscillations.report.tables.published import (
    METHOD_NAMES,
    MODEL_NAMES,
    TITLES,
    bits_label,
    notes,
    plus_minus,
    shown,
    summarise,
    table_cells,
    with_interval,
)
from oscillations.study import paths
from oscillations.study.paths import CHOICES, Run, results
from oscillations.study.report_schema import FIGURES, figure_number
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

TEMPLATE = Path(__file__).with_name("template.html")
RELATION = {
    "paper": "Same data as the paper: distances to the published numbers are meaningful.",
    "other-data": "Other data than the paper's: distances to the published numbers also hold the change of data.",
    "miniature": "A miniature: published numbers stand beside for orientation only and are never coloured.",
    "none": "No published numbers are set beside these.",
}


def anchor(experiment: str, variant: str) -> str:
    return f"run-{experiment}-{variant}".replace(".", "_")


def write_site(study: Study, variants: list[Variant]) -> None:
    """Render the page from the collected files and the run records."""
    files = [results(study.study) / name for name in ("claims.csv", "coverage.csv", "findings.csv")]
    refuse_missing([*files, *(paths.figures(study.study) / f"{name}.png" for name in study.figure_names)], study)
    measurements, oscillations = read_measurements(study.study), read_oscillations(study.study)
    choices = open_choices(CHOICES.read_text())
    found = plans(variants)
    records = {plan.run: plan.result for plan in found if plan.current}
    stale = {plan.run: plan.stale for plan in found if plan.stale}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text()).render(
        study=study,
        relation=RELATION[study.published],
        findings=_findings(study),
        claims=_claims(study),
        tables=[_table(study, variants, table, measurements) for table in study.tables],
        coverage=_coverage(study),
        levels={
            "interval": round(100 * (1 - LEVEL)),
            "level": round(100 * LEVEL),
            "seeds": MINIMUM_RUNS,
            "published": PUBLISHED_RUNS,
        },
        cells=_cells(study, measurements),
        norms=_norms(measurements),
        statistics=_statistics(oscillations),
        compared=[_comparison(study, name) for name in study.comparisons],
        searches=_searches(study, variants, measurements),
        gain=_gain(study),
        figures=_figures(study, dict(choices)["figure 4"]),
        method_figures=[_figure(study, name) for name in study.figure_names if not _of_paper(name)],
        figures_folder=f"../../figures/{study.study}",
        choices=choices,
        costs=_costs(study, found),
        machines=cost.machines(),
        runs=_runs(variants, records, stale),
        arithmetic=_arithmetic(records.values()),
        stale=len(stale),
        mixed=unlike(records.values()),
        anchor=anchor,
    )
    write_text(results(study.study) / "index.html", page)


def open_choices(text: str) -> list[tuple[str, Markup]]:
    """(item, what is taken) of every row of docs/choices.md that the project had to choose, as HTML."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [(item, _code(taken)) for item, taken, tag in rows if "choice" in tag]


def _code(text: str) -> Markup:
    """Markdown's `code` as HTML."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _figures(study: Study, figure4: Markup) -> list[dict[str, Any]]:
    """The paper's figures in their order; where it is its figures, a note stands in place of figure 4."""
    figures = [_figure(study, name) for name in study.figure_names if _of_paper(name)]
    if not study.tables:
        return figures
    place = sum("figure1" <= figure_number(figure["name"]) < "figure4" for figure in figures)
    return [*figures[:place], {"name": "figure4", "title": title("figure4"), "caption": figure4}, *figures[place:]]


def _of_paper(figure: str) -> bool:
    return figure_number(figure) in FIGURES or not figure.startswith("figure-")


def _figure(study: Study, name: str) -> dict[str, Any]:
    caption = CAPTIONS[figure_number(name)]
    return {"name": name, "title": title(name), "caption": caption, "width": _width(study, name)}


def _comparison(study: Study, name: str) -> dict[str, Any]:
    """Every method of a comparison, by family, as its table shows them."""
    spec, rows = study.comparisons[name], methods.read_comparison(study, name)
    text = methods.shown(study, spec, rows)
    families: dict[str, list[dict[str, Any]]] = {family: [] for family in text.Family}
    for row, cells in zip(rows.itertuples(), text.drop(columns="Family").to_dict("records")):
        links = [target for target, _ in _links(study, "" if pd.isna(row.runs) else row.runs)]
        cells = {header: _bold(cell) for header, cell in cells.items()}
        families[row.family].append({"cells": cells, "link": links[0] if links else ""})
    return {
        "name": methods.compared_name(name),
        "title": methods.title(study, spec),
        "columns": list(text.columns.drop("Family")),
        "families": families,
        "notes": methods.notes(study, spec, rows),
    }


def _bold(text: str) -> Markup:
    """Markdown's **bold** as HTML."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text))))


def _searches(study: Study, variants: list[Variant], measurements: pd.DataFrame) -> dict[str, Any] | None:
    """The learning-rate searches as a table with what it says."""
    if not study.rate_searches:
        return None
    rows = rate_search.searched(study, variants, measurements)
    return {
        "title": rate_search.TITLE,
        "rows": rate_search.shown(rows).to_dict("records"),
        "sentences": rate_search.sentences(rows),
    }


def _findings(study: Study) -> list[dict[str, Any]]:
    """The sentences, their anchors on this page."""
    rows = pd.read_csv(results(study.study) / "findings.csv").to_dict("records")
    return [{"text": _bold(row["text"]), "target": row["target"].removeprefix("index.html")} for row in rows]


def _gain(study: Study) -> dict[str, Any] | None:
    """What explains the gain over PTQ, as its table shows it."""
    if study.gain is None:
        return None
    rows = gain.shown(study.gain, gain.read_gain(study))
    return {"title": gain.title(study.gain), "rows": rows.to_dict("records"), "note": gain.notes(study)[1]}


def _width(study: Study, name: str) -> int:
    """Pixels on the page, so that all figures have letters of one size (a PNG's width stands in its header)."""
    header = (paths.figures(study.study) / f"{name}.png").read_bytes()[:24]
    return round(int.from_bytes(header[16:20], "big") * 100 / DPI)


def _claims(study: Study) -> list[dict[str, Any]]:
    folder = results(study.study)
    claims = read_table(folder / "claims.csv", "evidence", "reason", "scope")
    evidence = read_table(folder / "claims_evidence.csv", "runs", "note", "published_says")
    rows = []
    for claim in claims.to_dict("records"):
        comparisons = evidence[evidence.claim == claim["claim"]].to_dict("records")
        for comparison in comparisons:
            comparison["interval"] = _interval(comparison)
            comparison["links"] = _links(study, comparison["runs"])
            comparison["published"] = _published(comparison)
        run = [row for row in comparisons if row["verdict"] != NOT_RUN]
        missing = [
            row["comparison"] + (f" (published {row['published']})" if row["published"] else "")
            for row in comparisons
            if row["verdict"] == NOT_RUN
        ]
        rows.append(claim | {"interval": _interval(claim), "summary": _summary(claim), "rows": run, "missing": missing})
    return rows


def _summary(claim: dict[str, Any]) -> str:
    """How many comparisons say what: ``3 of 4 support it; 1 not judged, 7 not run``."""
    missing = claim["comparisons"] - claim["counted"] - claim["not_judged"]
    left_out = [f"{count} {what}" for count, what in ((claim["not_judged"], NOT_JUDGED), (missing, NOT_RUN)) if count]
    said = [f"{claim['supported']} of {claim['counted']} support it"] if claim["counted"] else []
    return "; ".join([*said, *filter(None, [", ".join(left_out)])])


def _interval(row: dict[str, Any]) -> str:
    if pd.isna(row["estimate"]):
        return ""
    largest = max(abs(row[end]) for end in ("estimate", "low", "high") if pd.notna(row[end]))
    digits = 2 if largest >= 0.2 else 5
    if pd.notna(row["p"]) and row["n"] >= MINIMUM_RUNS:
        return f"{row['estimate']:.{digits}f} (p = {row['p']:.2g})"
    return with_interval(row["estimate"], row["low"], row["high"], digits, sign="")


def _published(row: dict[str, Any]) -> str:
    """The published number, its interval if it has one, and what it says under the same test."""
    if pd.isna(row["published"]):
        return ""
    number = with_interval(row["published"], row["published_low"], row["published_high"], sign="")
    return f"{number}: {row['published_says']}"


def _links(study: Study, runs: str) -> list[tuple[str, str]]:
    """(address, experiment/variant) of run folders, each variant once; another study's on its own page."""
    found = {}
    for run in str(runs).split():
        _, name, _, experiment, variant, _ = run.split("/")
        own = name == study.study
        page = "" if own else f"../{name}/index.html"
        found[f"{page}#{anchor(experiment, variant)}"] = f"{'' if own else f'{name}: '}{experiment}/{variant}"
    return list(found.items())


def _table(study: Study, variants: list[Variant], table: str, measurements: pd.DataFrame) -> dict[str, Any]:
    cells = table_cells(study, variants, table, measurements)
    text = shown(table, cells)
    rows = []
    for (_, cell), strings in zip(cells.iterrows(), text.to_dict("records")):
        links = _links(study, cell.runs) if cell.n > 0 else []
        rows.append({"cells": strings, "color": _color(cell), "links": links, "missing": cell.missing})
    return {
        "name": table,
        "title": TITLES[table],
        "columns": list(text.columns),
        "rows": rows,
        "notes": notes(study, cells)[1:],  # the study's own stands at the top of the page
    }


def _coverage(study: Study) -> dict[str, dict[str, Any]]:
    """Rows of ``coverage.csv`` by table, and their sum as ``all``."""
    table = pd.read_csv(results(study.study) / "coverage.csv")
    return {row["table"]: row for row in table.to_dict("records")}


def _color(cell: pd.Series) -> str:
    """Agreement of a cell with the published one; a miniature's and a fitted one are never judged."""
    if pd.isna(cell.n):
        return "missing"
    return "plain" if cell.fitted or pd.isna(cell.agreement) else cell.agreement


def _norms(measurements: pd.DataFrame) -> list[dict[str, str]]:
    """Cells of networks with batch norm, statistics kept beside re-estimated."""
    kept, fresh = summarise(measurements, "keep"), summarise(measurements, "reestimate")
    keys = ["experiment", "variant", "method", "train_bits", "eval_bits"]
    both = kept.merge(fresh, on=keys, suffixes=("", "_fresh"))
    return [
        {
            "Run": f"{row.experiment}/{row.variant}",
            "Method": METHOD_NAMES.get(row.method, row.method),
            "Evaluated": bits_label(row.eval_bits),
            "BN kept": plus_minus(row["mean"], row["std"]),
            "BN re-estimated": plus_minus(row.mean_fresh, row.std_fresh),
            "Change": f"{row.mean_fresh - row['mean']:+.2f}",
            "n": str(row.n),
        }
        for _, row in both.iterrows()
    ]


def _statistics(oscillations: pd.DataFrame) -> list[dict[str, str]]:
    """Weights and oscillations in each run's last epoch, mean and spread over seeds."""
    if oscillations.empty or "near_threshold" not in oscillations:
        return []
    rows = []
    for (experiment, variant), group in last_epochs(oscillations).groupby(["experiment", "variant"], sort=False):

        def text(column: str, digits: int = 2, group: pd.DataFrame = group) -> str:
            return plus_minus(group[column].mean(), spread(group[column]), digits)

        rows.append(
            {
                "Run": f"{experiment}/{variant}",
                "oscillating per step, %": text("per_step", 3),
                "per epoch, %": text("per_epoch"),
                "near a threshold, %": text("near"),
                "quantized to 0, %": text("zero", 1),
                "max|w| / std": text("max_over_std"),
                "kurtosis": text("kurtosis"),
                "n": str(len(group)),
            }
        )
    return rows


def _costs(study: Study, found: list[Plan]) -> list[dict[str, str]]:
    """Predicted hours of every experiment, what its finished runs took, and how to make those that are left."""
    rows = []
    for predicted in cost.predict(found, study.judged):
        finished = [plan.result for plan in found if plan.current and plan.run.experiment == predicted.experiment]
        hours = _hours(finished)
        spent = ", ".join(f"{value:.2f} {kind}" for kind, value in hours.items() if value)
        row = predicted.row() | {"finished runs": str(len(finished)), "they took": spent, "left": "", "command": ""}
        left = predicted.runs - len(finished)
        if left:
            reason = study.not_run.get(predicted.experiment)
            row["left"] = f"{left} runs, {_hours_left(predicted, left, hours['core-hours'], len(finished))}"
            row["left"] += f" ({reason})" if reason else ""
            row["command"] = f"snakemake --cores 8 all --config study={study.study} only={predicted.experiment}"
        rows.append(row)
    empty = [column for column in ("they took", "left", "command") if not any(row[column] for row in rows)]
    return [{column: text for column, text in row.items() if column not in empty} for row in rows]


def _hours(records: list[dict[str, Any]]) -> dict[str, float]:
    """Hours of cores and of GPUs that runs took."""
    hours = {"core-hours": 0.0, "GPU-hours": 0.0}
    for record in records:
        environment, timing = record["environment"], record["timing"]
        on_cpu = environment["device"] == "cpu"
        seconds = timing["wall_s"] * (environment["threads"] if on_cpu else 1) / timing["at_once"]
        hours["core-hours" if on_cpu else "GPU-hours"] += seconds / 3600
    return hours


def _hours_left(predicted: cost.Cost, left: int, spent: float, finished: int) -> str:
    """Core-hours of the runs left: as predicted from measured steps, else as the finished runs took."""
    if predicted.core_hours is not None:
        return f"{predicted.core_hours * left / predicted.runs:.2f} core-hours"
    return f"{spent * left / finished:.2f} core-hours" if spent else "core-hours unmeasured"


def _cells(study: Study, measurements: pd.DataFrame) -> list[dict[str, str]]:
    """Test accuracy of every variant at every evaluation bit, batch-norm statistics kept."""
    found = summarise(measurements)
    rows = []
    for (experiment, variant), cells in found.groupby(["experiment", "variant"], sort=False):
        by_bits = cells.set_index("eval_bits")
        accuracies = {
            bits_label(bits): plus_minus(by_bits["mean"][bits], by_bits["std"][bits])
            for bits in study.eval_bits
            if bits in by_bits.index
        }
        rows.append({"Run": f"{experiment}/{variant}"} | accuracies | {"n": str(cells.n.max())})
    return rows


def _runs(variants: list[Variant], records: dict[Run, dict], stale: dict[Run, str]) -> list[dict[str, Any]]:
    """Every variant of the study with the state of its seeds."""
    rows = []
    for variant in variants:
        seeds = []
        for run in variant.runs():
            record = records.get(run)
            folder = f"runs/{run.name}"
            empty = dict.fromkeys(("best", "best_epoch", "epochs", "wall", "where", "tree", "arithmetic"), "")
            seed = empty | {"seed": run.seed, "folder": folder, "state": stale.get(run) or "not run"}
            if record:
                seed |= {
                    "state": record["status"],
                    "best": f"{record['monitored']:.2f}" if record["monitored"] is not None else "",
                    "best_epoch": record["best_epoch"],
                    "epochs": record["epochs_run"],
                    "wall": f"{record['timing']['wall_s']:.0f}",
                    "where": _where(record),
                    "tree": _tree(record),
                    "arithmetic": _versions(record),
                }
            seeds.append(seed)
        model = MODEL_NAMES.get(variant.recipe.model.name, variant.recipe.model.name)
        recipe = variant.recipe
        starts = {start_label(recipe, records[run]) for run in variant.runs() if run in records}
        model += "".join(f", fine-tuned from {start}" for start in sorted(starts - {""}))
        options = recipe.training.model_dump() | recipe.method.options.model_dump(mode="json", by_alias=True)
        rows.append(
            {
                "experiment": variant.experiment,
                "variant": variant.name,
                "model": model,
                "recipe": ", ".join(f"{k} {v}" for k, v in options.items()),
                "seeds": seeds,
            }
        )
    return rows


def _where(record: dict[str, Any]) -> str:
    found = record["environment"]
    return f"{found['device']}, torch {found['packages'].get('torch', '?')}, {found['threads']} thread(s)"


def _tree(record: dict[str, Any]) -> str:
    """The commit that a run was made in."""
    git = record["environment"]["git"]
    commit = git.get("commit", "no repository")[: numerics.LENGTH // 2]
    return f"{commit}, with uncommitted changes" if git.get("dirty") else commit


def _versions(record: dict[str, Any]) -> str:
    """The versions that made a run, and whether it stands by certification: another source computes them, too."""
    made = record["arithmetic"]
    sources = [numerics.ledger().get(part, {}).get(str(version), []) for part, version in made.items()]
    text = ", ".join(f"{part} {version}" for part, version in made.items())
    return f"{text} (certified)" if any(len(known) > 1 for known in sources) else text


def _arithmetic(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Versions of the arithmetic that the runs were made with, and how many sources are certified to compute each."""
    counts = Counter((part, version) for record in records for part, version in record["arithmetic"].items())
    return [
        {
            "Part": part,
            "version": str(version) if isinstance(version, int) else "not certified",
            "runs": str(count),
            "sources certified equal": str(len(numerics.ledger().get(part, {}).get(str(version), []))),
        }
        for (part, version), count in sorted(counts.items(), key=str)
    ]
