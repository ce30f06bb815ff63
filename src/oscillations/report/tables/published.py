"""The paper's tables, published beside reproduced, as CSV, Markdown, LaTeX and JSON.

``agreement.csv`` holds every published cell, ``coverage.csv`` counts them by table.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.core.files import write_text
from oscillations.report.estimates import MINIMUM_RUNS, PUBLISHED_RUNS, spread, welch
from oscillations.report.results import Report
from oscillations.report.table import Missing, Row, Table, csv
from oscillations.report.text import METHOD_NAMES, MODEL_NAMES, bits_label, plus_minus
from oscillations.study.paths import experiment_of
from oscillations.study.pretrained import IMAGENET_LABELS
from oscillations.study.schema import Study

CELL = ["model", "setting", "method", "lambda", "train_bits", "eval_bits"]
TITLES = {
    "table1": "Table 1. Training from scratch: accuracy at the target bits",
    "table2": "Table 2. Fine-tuning: accuracy at the target bits",
    "table3": "Table 3. Cross-bit accuracy of the fine-tuned models",
    "table4": "Table 4. Sensitivity to lambda",
    "table5": "Table 5. Sensitivity to lambda, ViT-Tiny",
}
SETTINGS = {"table1": "scratch", "table4": "sweep", "table5": "sweep"}  # the others: finetune
FITTED_MARK = "†"
FITTED_NOTE = f"{FITTED_MARK} A free choice was fitted to this published cell; it counts for no claim."
COMPATIBLE, DIFFERENT, DEPENDS, CHANCE = AGREEMENTS = ("compatible", "different", "depends", "chance")
AGREEMENT_NOTE = (
    "The difference to the published mean has the 95 % interval of Welch's test, once as if the paper had run "
    f"{PUBLISHED_RUNS[0]} seeds and once as if it had run {PUBLISHED_RUNS[1]}: it does not say."
)
FIRST = [
    "Model", "Method", "λ", "Trained", "Evaluated", "Bits", "Reproduced", "Published", "Difference", "Agreement", "n",
    *(f"95 % if n = {n}" for n in PUBLISHED_RUNS),
]  # fmt: skip
COMPARED = ["difference", "ratio", *(f"{end}_{n}" for n in PUBLISHED_RUNS for end in ("low", "high")), "agreement"]
FINE_TUNED = ("table2", "table3", "table5")


def summarise(evaluations: pd.DataFrame, bn: str = "keep") -> pd.DataFrame:
    """Mean, sample standard deviation (of three runs or more) and n over seeds of every cell on the test split.

    ``evaluations``: as in :class:`Results`. A diverged run never enters a mean; it is counted in ``diverged``.
    """
    keys = ["experiment", "variant", "path", *CELL, "lr", "start"]
    rows, used = [], evaluations.loc[evaluations.bn == bn, [*keys, "accuracy", "best_epoch", "run"]]
    for key, group in used.groupby(keys, dropna=False, sort=False):
        done = group.accuracy.notna()
        accuracies = group.accuracy[done]
        rows.append(
            dict(zip(keys, key))
            | {
                "mean": accuracies.mean(),
                "std": spread(accuracies),
                "n": len(accuracies),
                "diverged": len(group) - len(accuracies),
                "epochs": group.best_epoch[done].mean(),
                "runs": " ".join(sorted(group.run)),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "std", "n", "diverged", "epochs", "runs"])


def table_cells(report: Report, table: str) -> pd.DataFrame:
    """One row per cell of a table: all published cells, then those of the study that have no published twin.

    Cells are matched on model, method, bits and, in sweeps, lambda. Outside sweeps lambda is a choice of the
    study and stays out of the match, because the published tables name none. The columns of :func:`_compared` say how
    they agree. ``fitted``: a free choice was fitted to the published cell. ``missing``: the variant that would fill an
    empty cell.
    """
    study, published = report.study, report.published
    published = published[(published.table == table) & (study.published != "none")].rename(
        columns={"mean": "published_mean", "std": "published_std", "epochs": "published_epochs"}
    )
    # pandas matches NaN with NaN here, which is what a cell without lambda needs
    columns = [*CELL, "published_mean", "published_std", "published_epochs"]
    merged = published[columns].merge(_own_cells(report, table, published), on=CELL, how="outer")
    merged.insert(0, "table", table)
    merged = merged.join(pd.DataFrame([_compared(study, cell) for _, cell in merged.iterrows()], columns=COMPARED))
    cells = merged[["model", "setting", "method", "eval_bits"]].itertuples(index=False, name=None)
    merged["fitted"] = merged.published_mean.notna() & pd.Series([cell in study.fitted for cell in cells], dtype=bool)
    merged["missing"] = [_missing(report, table, cell) if pd.isna(cell.n) else "" for _, cell in merged.iterrows()]
    return merged.loc[_order(merged, table)].reset_index(drop=True)


def _own_cells(report: Report, table: str, published: pd.DataFrame) -> pd.DataFrame:
    """The study's cells that stand in a table."""
    evaluations = report.results.evaluations
    found = summarise(evaluations[evaluations.experiment.isin(report.study.shown_in(table))])
    found = found.astype({"lambda": float, "train_bits": int, "eval_bits": int})  # also if empty
    if table != "table3":  # each model at the bits it was made for
        own = (found.eval_bits == found.train_bits) | (found.train_bits == LATENT)
        found = found[own & ~((found.method == "ptq") & (found.eval_bits == 8))]
    if SETTINGS.get(table) == "sweep":  # the main experiment's lambda is one point of the sweep
        widths = published.train_bits if len(published) else found.train_bits
        found = found[(found.method == "osciquant") & found.train_bits.isin(widths)]
    else:
        found = found.assign(**{"lambda": float("nan")})
    return found.assign(setting=SETTINGS.get(table, "finetune")).drop(columns=["lr"])


def _compared(study: Study, cell: pd.Series) -> dict[str, Any]:
    """How a cell agrees with the published one.

    ``difference`` of the means, by itself and as a ``ratio`` to the published std; its 95 % interval (Welch) for each
    assumed number of published runs, ``low_3`` say. ``agreement``: compatible where no interval excludes 0, different
    where all do, depends where only some do, chance where both are near chance. Nothing is said of fewer than three
    runs, and of networks that do not start as the paper's: from a verified ImageNet checkpoint where it fine-tunes.
    """
    found: dict[str, Any] = {"difference": cell["mean"] - cell.published_mean}
    if study.judged and cell.published_std > 0:
        found["ratio"] = found["difference"] / cell.published_std
    if not (study.judged and cell.n >= MINIMUM_RUNS and cell.published_std > 0 and cell.start in _starts(cell.table)):
        return found
    intervals = []
    for runs in PUBLISHED_RUNS:
        parts = [(cell["std"], int(cell.n)), (cell.published_std, runs)]
        intervals.append(welch(int(cell.n), found["difference"], parts))
        found |= {f"low_{runs}": intervals[-1].low, f"high_{runs}": intervals[-1].high}
    if max(cell["mean"], cell.published_mean) < study.near_chance:
        return found | {"agreement": CHANCE}
    apart = {not one.low <= 0 <= one.high for one in intervals}
    return found | {"agreement": DEPENDS if len(apart) > 1 else DIFFERENT if apart.pop() else COMPATIBLE}


def _order(merged: pd.DataFrame, table: str) -> pd.Index:
    """The index in the order of the paper's tables."""
    order = {name: place for place, name in enumerate(METHOD_NAMES)}
    models = {name: place for place, name in enumerate(MODEL_NAMES)}
    keys = pd.DataFrame(
        {
            "own": merged.published_mean.isna(),
            "model": merged.model.map(models).fillna(len(models)),
            "lambda": merged["lambda"].fillna(-1) if SETTINGS.get(table) == "sweep" else 0,
            "train": merged.train_bits if table == "table3" else merged.eval_bits,
            "method": merged.method.map(order).fillna(len(order)),
            "eval": merged.eval_bits,
        }
    )
    keys.loc[merged.method.isin(["baseline", "ptq"]) & (table == "table3"), "train"] = 0
    keys.loc[merged.method == "baseline", ["train", "eval"]] = -1
    return keys.sort_values(list(keys)).index


def _missing(report: Report, table: str, cell: pd.Series) -> str:
    """The variant that would fill an empty cell; nothing if the study has none."""
    method = "baseline" if cell.method == "ptq" else cell.method
    for variant in report.variants:
        recipe = variant.recipe
        about = (recipe.model.name, recipe.method.name, recipe.bits)
        at_lambda = pd.isna(cell["lambda"]) or recipe.method.get("lambda") == cell["lambda"]
        named = variant.experiment in report.study.shown_in(table)
        if named and at_lambda and about == (cell.model, method, cell.train_bits):
            return variant.path
    return ""


def _starts(table: str) -> frozenset[str]:
    """The starts that the table's numbers may be compared with."""
    return IMAGENET_LABELS if table in FINE_TUNED else IMAGENET_LABELS | {""}


def reproduced_text(cell: pd.Series) -> str:
    """What a table shows of the study's own cell."""
    text = plus_minus(cell["mean"], cell["std"])
    if cell.diverged:
        text = f"{text} ({int(cell.diverged)} diverged)" if text else "diverged"
    return f"{text} {FITTED_MARK}" if cell.fitted else text


def published_table(report: Report, table: str, cells: pd.DataFrame) -> Table:
    """The cells that have run as people read them, and what has not run, by experiment."""
    ran = cells[cells.n.notna()]
    several = ran.model.nunique() > 1
    rows = [Row(_texts(table, cell, several), cell.runs.split(), _kind(cell)) for _, cell in ran.iterrows()]
    empty = cells[cells.n.isna()]
    left = [
        Missing(
            name, report.why_not_run(name), [_named(table, cell) for _, cell in group.iterrows()],
            list(dict.fromkeys(filter(None, group.missing))),
        )
        for name, group in empty.groupby(empty.missing.map(lambda path: path and experiment_of(path)), sort=False)
    ]  # fmt: skip
    return Table(table, TITLES[table], notes(report.study, ran), rows, left, FIRST, "Reproduced")


def _kind(cell: pd.Series) -> str:
    """Agreement with the published cell; a miniature's and a fitted one are never judged."""
    return "" if cell.fitted or pd.isna(cell.agreement) else cell.agreement


def _named(table: str, cell: pd.Series) -> str:
    """A cell in words: ``ResNet-18, QAT, trained 3-bit, at ternary: published 10.49 ± 0.37``."""
    said = [MODEL_NAMES.get(cell.model, cell.model), METHOD_NAMES.get(cell.method, cell.method)]
    said += [f"λ = {cell['lambda']:g}"] if SETTINGS.get(table) == "sweep" else []
    said += [f"trained {bits_label(cell.train_bits)}, at {bits_label(cell.eval_bits)}"] if table == "table3" else []
    said += [bits_label(cell.eval_bits)] if table != "table3" else []
    return f"{', '.join(said)}: published {plus_minus(cell.published_mean, cell.published_std)}"


def _texts(table: str, cell: pd.Series, several: bool) -> dict[str, str]:
    """``several``: whether the table has rows of more than one model."""
    row = {"Model": MODEL_NAMES.get(cell.model, cell.model)} if several else {}
    row["Method"] = METHOD_NAMES.get(cell.method, cell.method)
    if SETTINGS.get(table) == "sweep":
        row["λ"] = f"{cell['lambda']:g}"
    if table == "table3":
        row["Trained"] = bits_label(cell.train_bits)
    row["Evaluated" if table == "table3" else "Bits"] = bits_label(cell.eval_bits)
    row["Reproduced"] = reproduced_text(cell)
    row["Published"] = plus_minus(cell.published_mean, cell.published_std)
    row["Difference"] = "" if pd.isna(cell.difference) else f"{cell.difference:+.2f}"
    row["Agreement"] = _kind(cell)
    row["n"] = str(int(cell.n))
    for runs in PUBLISHED_RUNS:
        low, high = cell[f"low_{runs}"], cell[f"high_{runs}"]
        row[f"95 % if n = {runs}"] = "" if pd.isna(low) else f"[{low:+.2f}, {high:+.2f}]"
    row["/ published std"] = "" if pd.isna(cell.ratio) else f"{cell.ratio:+.1f}"
    if table in ("table1", "table2"):
        row["Epochs (published)"] = "" if pd.isna(cell.published_epochs) else f"{cell.published_epochs:.0f}"
        row["Epochs"] = "" if pd.isna(cell.epochs) else f"{cell.epochs:.1f}"
    if table in FINE_TUNED:
        row["Fine-tuned from"] = cell.start
    return row if several else row | {"Model": MODEL_NAMES.get(cell.model, cell.model)}


def notes(study: Study, ran: pd.DataFrame) -> list[str]:
    """What a reader of a table must know: about the study, and its marks."""
    found = [study.note]
    if ran.fitted.any():
        found.append(FITTED_NOTE)
    if ran.agreement.notna().any():
        found.append(AGREEMENT_NOTE)
    return found


def write_tables(report: Report) -> None:
    """Write every table of the study, ``agreement.csv`` (all published cells) and ``coverage.csv`` (their counts)."""
    for table in report.study.tables:
        cells = table_cells(report, table)
        published_table(report, table, cells).write(report.folder / "tables", cells)
    agreement = agreement_cells(report)
    write_text(report.folder / "agreement.csv", csv(agreement))
    write_text(report.folder / "coverage.csv", csv(coverage(agreement)))


def agreement_cells(report: Report) -> pd.DataFrame:
    """Each published cell once, beside the study's, and how they agree.

    Where two experiments fill one cell, the one that the study's table names first stands here.
    """
    tables = []
    for table in sorted(report.published.table.unique()):
        cells = table_cells(report, table)
        named = {name: place for place, name in enumerate(report.study.shown_in(table))}
        cells = cells[cells.published_mean.notna()]
        cells = cells.assign(place=cells.experiment.map(named))
        tables.append(cells.loc[cells.sort_values("place", kind="stable").drop_duplicates(CELL).index.sort_values()])
    cells = pd.concat(tables, ignore_index=True)
    cells["n"] = cells.n.fillna(0).astype(int)
    cells["relation"] = report.study.published
    cells["why"] = [
        report.why_not_run(path and experiment_of(path)) if not n else "" for path, n in zip(cells.missing, cells.n)
    ]
    columns = ["published_mean", "published_std", "mean", "std", "n", *COMPARED, "fitted", "relation"]
    return cells[["table", *CELL, *columns, "missing", "why", "runs", "start"]]


def coverage(agreement: pd.DataFrame) -> pd.DataFrame:
    """By table and for all: published cells, those that have run, and how these agree; a fitted one is not judged."""
    said = agreement.agreement.where(~agreement.fitted)
    counted = pd.DataFrame({"table": agreement.table, "published": 1, "run": agreement.n > 0})
    counted = counted.assign(**{kind: said == kind for kind in AGREEMENTS})
    counted["fitted"] = agreement.fitted & (agreement.n > 0)
    by_table = counted.groupby("table").sum().astype(int)
    by_table.loc["all"] = by_table.sum()
    return by_table.reset_index()
