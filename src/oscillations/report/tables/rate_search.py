"""Which learning rate and split fit the published baseline best: ``tables/rate-search.*``.

The paper gives neither. A search trains the FP baseline at several learning rates, perhaps with another split, and
each is scored by how far it is from what the paper publishes of its baseline (tables 1 and 2).
"""

from __future__ import annotations

import pandas as pd

from oscillations import datasets
from oscillations.core.bits import LATENT
from oscillations.engine.recipe import Recipe
from oscillations.report.estimates import MINIMUM_RUNS
from oscillations.report.results import Report
from oscillations.report.table import Missing, Row, Table
from oscillations.report.tables.published import summarise
from oscillations.report.text import MODEL_NAMES
from oscillations.study.schema import Study

NAME = "rate-search"
TITLE = "Search of the learning rate and the validation split"
POINTS = 1.0  # least tolerance of an accuracy: a published standard deviation of few runs may be tiny by chance
EPOCHS = 0.2  # tolerance of the best epoch, as a share of the published one
CELLS = {"fp32": LATENT, "ptq_2": 2, "ptq_3": 3, "ptq_4": 4}  # accuracy columns and their evaluation bits
SCORED = ["fp32", "epoch", "ptq_3", "ptq_4"]  # ternary PTQ is at chance wherever one looks


def write_searches(report: Report) -> None:
    """Write the table of all searches of the study, if it has any."""
    if report.study.rate_searches:
        rows = searched(report)
        shown(report.study, rows).write(report.folder / "tables", rows)


def searched(report: Report) -> pd.DataFrame:
    """One row per searched experiment and learning rate, under a row with the published values (experiment "").

    ``fp32``, ``ptq_2``, ``ptq_3`` and ``ptq_4`` are test accuracies in percent, ``epoch`` the best epoch, all means
    over seeds. ``score`` is the mean over :data:`SCORED` of |difference| / tolerance, where the tolerance is the
    published standard deviation but at least 1 point for accuracies, and 20 % of the published epoch for the epoch:
    1 means within tolerance on average. ``rank`` 1 fits best, of three seeds or more; ``chosen`` is the main
    experiment's own choice.
    """
    study, variants, found = report.study, report.variants, summarise(report.results.evaluations)
    groups = []
    for main, searches in study.rate_searches.items():
        own = next(variant.recipe for variant in variants if (variant.experiment, variant.name) == (main, "baseline"))
        published, tolerance = _published(report.published, own.model.name, own.setting)
        rows = []
        for variant in variants:
            recipe = variant.recipe
            if variant.experiment not in searches or recipe.method.name != "baseline":
                continue
            mine = found[found.path == variant.path]
            values = _values(mine)
            differences = [abs(values[cell] - published[cell]) / tolerance[cell] for cell in SCORED]
            rows.append(
                _about(main, variant.experiment, recipe)
                | {"n": int(mine.n.max()) if len(mine) else 0}
                | {"diverged": int(mine.diverged.max()) if len(mine) else 0}
                | values
                | {"score": sum(differences) / len(differences)}
                | {"chosen": _choice(recipe) == _choice(own)}
                | {"runs": " ".join(sorted({run for runs in mine.runs for run in runs.split()}))}
            )
        group = pd.DataFrame(rows)
        enough = group.score.where(group.n >= MINIMUM_RUNS)
        group["rank"] = enough.rank(method="min").astype("Int64")
        head = _about(main, "", own) | {"train_images": None, "validation": None, "lr": None} | published
        groups.append(pd.concat([pd.DataFrame([head]).astype(object), group.astype(object)], ignore_index=True))
    return pd.concat(groups, ignore_index=True)[
        ["main", "model", "setting", "experiment", "train_images", "validation", "lr", "n", "diverged", "fp32", "epoch",
         "ptq_2", "ptq_3", "ptq_4", "score", "rank", "chosen", "runs"]
    ]  # fmt: skip


def _about(main: str, experiment: str, recipe: Recipe) -> dict:
    return {
        "main": main,
        "model": recipe.model.name,
        "setting": recipe.setting,
        "experiment": experiment,
        "train_images": datasets.find(recipe.data).TRAIN_IMAGES - recipe.validation,
        "validation": recipe.validation,
        "lr": recipe.training.lr,
    }


def _choice(recipe: Recipe) -> tuple[float, int]:
    return recipe.training.lr, recipe.validation


def _values(cells: pd.DataFrame) -> dict[str, float]:
    """Means over seeds from summarised cells of one variant; NaN where nothing has run."""
    accuracy = cells.set_index("eval_bits")["mean"]
    epoch = cells.epochs.mean() if len(cells) else float("nan")
    return {name: accuracy.get(bits, float("nan")) for name, bits in CELLS.items()} | {"epoch": epoch}


def _published(cells: pd.DataFrame, model: str, setting: str) -> tuple[dict[str, float], dict[str, float]]:
    """Published values of a model's baseline and their tolerances; NaN where nothing is published."""
    cells = cells[
        (cells.model == model) & (cells.setting == setting) & cells.method.isin(["baseline", "ptq"])
        & cells.table.isin(["table1", "table2"])
    ]  # fmt: skip
    values = _values(cells)
    spread = cells.set_index("eval_bits")["std"]
    tolerance = {name: max(POINTS, spread.get(bits, POINTS)) for name, bits in CELLS.items()}
    return values, tolerance | {"epoch": EPOCHS * values["epoch"]}


def _split(row: pd.Series) -> str:
    return f"{row.train_images:,} / {row.validation:,}"


def sentences(rows: pd.DataFrame) -> list[str]:
    """What the rows say, one sentence per main experiment."""
    return [verdict(group) for _, group in rows.groupby("main", sort=False)]


def verdict(group: pd.DataFrame) -> str:
    """What the rows of one main experiment say, as a sentence."""
    head, rows = group.iloc[0], group.iloc[1:]
    name = f"{MODEL_NAMES.get(head.model, head.model)} ({head.setting})"
    ranked = rows[rows.score.notna()].sort_values("score", key=lambda scores: scores.astype(float))
    if ranked.empty:
        return f"{name}: none of the {len(rows)} learning rates and splits has run."
    best, own = ranked.iloc[0], ranked[ranked.chosen.astype(bool)]
    text = (
        f"{name}: of {len(ranked)} learning rates and splits that ran (of {len(rows)}), {best.lr:g} with "
        f"{_split(best)} images has the lowest score, {best.score:.2f}{_few(ranked)}"
    )
    if len(own) and own.index[0] == ranked.index[0]:
        return f"{text}; it is this study's choice."
    if len(own):
        row = own.iloc[0]
        return f"{text}; this study's choice, {row.lr:g} with {_split(row)}, has {row.score:.2f}."
    return f"{text}; this study's own choice is not among them."


def _few(rows: pd.DataFrame) -> str:
    few = int((rows.n < MINIMUM_RUNS).sum())
    return f" ({few} of them with fewer than {MINIMUM_RUNS} seeds, which rank nothing)" if few else ""


def shown(study: Study, rows: pd.DataFrame) -> Table:
    """The rows that have run as people read them, and the published ones."""

    def number(value: float, digits: int = 2) -> str:
        return "" if pd.isna(value) else f"{value:.{digits}f}"

    ran: list[Row] = []
    left: dict[str, list[str]] = {}
    for _, row in rows.iterrows():
        published = row.experiment == ""
        if not published and not row.n and not row.diverged:
            left.setdefault(row.experiment, []).append(f"{row.lr:g}, {_split(row)}")
            continue
        cells = {
            "Model": MODEL_NAMES.get(row.model, row.model),
            "Learning rate": "published" if published else f"{row.lr:g}",
            "FP32": number(row.fp32) or ("" if published or row.n else "diverged"),
            "Best epoch": number(row.epoch, 1),
            "PTQ ternary": number(row.ptq_2),
            "PTQ 3-bit": number(row.ptq_3),
            "PTQ 4-bit": number(row.ptq_4),
            "Score": number(row.score),
            "Rank": "" if pd.isna(row["rank"]) else str(row["rank"]),
            "n": "" if published else str(row.n),
            "Training / validation": "" if published else _split(row),
            "Choice": "this study" if row.chosen is True else "",
        }
        ran.append(Row(cells, row.runs.split() if isinstance(row.runs, str) else []))
    missing = [Missing(name, study.not_run.get(name, "not trained yet"), cells) for name, cells in left.items()]
    return Table(NAME, TITLE, [study.note, *sentences(rows)], ran, missing)
