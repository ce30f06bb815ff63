"""The paper's tables, published beside reproduced, as CSV, Markdown and LaTeX.

``agreement.csv`` holds every published cell, ``coverage.csv`` counts them by table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.core.files import write_text
from oscillations.report.estimates import MINIMUM_RUNS, PUBLISHED_RUNS, spread, welch
from oscillations.report.measurements import read_measurements
from oscillations.study.paths import PUBLISHED, results
from oscillations.study.pretrained import IMAGENET_LABELS
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

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
COMPARED = ["difference", "ratio", *(f"{end}_{n}" for n in PUBLISHED_RUNS for end in ("low", "high")), "agreement"]
FINE_TUNED = ("table2", "table3", "table5")
METHOD_NAMES = {
    "baseline": "FP32 baseline", "ptq": "PTQ", "qat": "QAT", "osciquant": "OsciQuant", "kure": "KURE",
    "range-penalty": "Range penalty", "pseudo-noise": "Pseudo-noise", "signed": "Signed schedule", "lsq": "LSQ",
    "dampening": "Dampening", "freezing": "Freezing", "osciquant-freezing": "OsciQuant + freezing", "aoq": "AOQ",
    "bin-regularization": "Bin regularization", "statsq": "StatsQ", "cga": "StatsQ + CGA",
    "gradient-l1": "Gradient-L1", "ema": "EMA", "qc": "QC", "nearest": "Nearest", "adaround": "AdaRound",
    "brecq": "BRECQ", "qdrop": "QDrop (input mix)", "mrecg": "MRECG",
}  # fmt: skip
MODEL_NAMES = {"mlp5": "MLP5", "resnet18": "ResNet-18", "vit-tiny": "ViT-Tiny", "mobilenetv2": "MobileNetV2"}


def read_published() -> pd.DataFrame:
    """The published cells; ``table`` is ``table1`` to ``table5``."""
    published = pd.read_csv(PUBLISHED)
    published["table"] = "table" + published["table"].str[1:]
    return published


def summarise(measurements: pd.DataFrame, bn: str = "keep") -> pd.DataFrame:
    """Mean, sample standard deviation (of three runs or more) and n over seeds of every cell on the test split.

    A diverged run never enters a mean; it is counted in ``diverged``.
    """
    tests = measurements[(measurements.split == "test") & (measurements.bn == bn)]
    keys = ["experiment", "variant", *CELL, "lr", "start"]
    rows = []
    for key, group in tests.groupby(keys, dropna=False, sort=False):
        done = group[(group.status == "done") & group.accuracy.notna()]
        rows.append(
            dict(zip(keys, key))
            | {
                "mean": done.accuracy.mean(),
                "std": spread(done.accuracy),
                "n": len(done),
                "diverged": len(group) - len(done),
                "epochs": done.best_epoch.mean(),
                "runs": " ".join(sorted(group.run)),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "std", "n", "diverged", "epochs", "runs"])


def table_cells(study: Study, variants: list[Variant], table: str, measurements: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of a table: all published cells, then those of the study that have no published twin.

    Cells are matched on model, method, bits and, in sweeps, lambda. Outside sweeps lambda is a choice of the
    study and stays out of the match, because the published tables name none. The columns of :func:`_compared` say how
    they agree. ``fitted``: a free choice was fitted to the published cell. ``missing``: what has not run, and why if
    the study says so.
    """
    published = read_published()
    published = published[(published.table == table) & (study.published != "none")].rename(
        columns={"mean": "published_mean", "std": "published_std", "epochs": "published_epochs"}
    )
    # pandas matches NaN with NaN here, which is what a cell without lambda needs
    columns = [*CELL, "published_mean", "published_std", "published_epochs"]
    merged = published[columns].merge(_own_cells(study, table, measurements, published), on=CELL, how="outer")
    merged.insert(0, "table", table)
    merged = merged.join(pd.DataFrame([_compared(study, cell) for _, cell in merged.iterrows()], columns=COMPARED))
    cells = merged[["model", "setting", "method", "eval_bits"]].itertuples(index=False, name=None)
    merged["fitted"] = merged.published_mean.notna() & pd.Series([cell in study.fitted for cell in cells], dtype=bool)
    merged["missing"] = [
        _missing(study, variants, table, cell) if pd.isna(cell.n) else "" for _, cell in merged.iterrows()
    ]
    return merged.loc[_order(merged, table)].reset_index(drop=True)


def _own_cells(study: Study, table: str, measurements: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The study's cells that stand in a table."""
    found = summarise(measurements).astype({"lambda": float, "train_bits": int, "eval_bits": int})  # also if empty
    found = found[found.experiment.isin(study.shown_in(table))]
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


def _missing(study: Study, variants: list[Variant], table: str, cell: pd.Series) -> str:
    """The variant that would fill an empty cell, with the study's reason for not running it."""
    method = "baseline" if cell.method == "ptq" else cell.method
    for variant in variants:
        recipe = variant.recipe
        about = (recipe.model.name, recipe.method.name, recipe.bits)
        at_lambda = pd.isna(cell["lambda"]) or recipe.method.get("lambda") == cell["lambda"]
        named = variant.experiment in study.shown_in(table)
        if named and at_lambda and about == (cell.model, method, cell.train_bits):
            return f"{variant.path}: {study.not_run.get(variant.experiment, 'not trained yet')}"
    return "not in this study"


def _starts(table: str) -> frozenset[str]:
    """The starts that the table's numbers may be compared with."""
    return IMAGENET_LABELS if table in FINE_TUNED else IMAGENET_LABELS | {""}


def bits_label(bits: int) -> str:
    return {LATENT: "FP32", 2: "ternary"}.get(bits, f"{bits}-bit")


def plus_minus(mean: float, std: float, digits: int = 2) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.{digits}f}" if pd.isna(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def with_interval(value: float, low: float, high: float, digits: int = 2, sign: str = "+") -> str:
    """``+1.00 [-1.48, +3.48]``; without an interval where there is none, nothing without a value."""
    if pd.isna(value):
        return ""
    text = f"{value:{sign}.{digits}f}"
    return text if pd.isna(low) else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def reproduced_text(row: pd.Series) -> str:
    """What a table shows of the study's own cell."""
    if pd.isna(row.n):
        return "not run"
    text = plus_minus(row["mean"], row["std"])
    if row.diverged:
        text = f"{text} ({int(row.diverged)} diverged)" if text else "diverged"
    return f"{text} {FITTED_MARK}" if row.fitted else text


def shown(table: str, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells as people read them: strings, one row per cell."""
    rows = []
    for _, cell in cells.iterrows():
        row = {"Model": MODEL_NAMES.get(cell.model, cell.model), "Method": METHOD_NAMES.get(cell.method, cell.method)}
        if SETTINGS.get(table) == "sweep":
            row["λ"] = f"{cell['lambda']:g}"
        if table == "table3":
            row["Trained"] = bits_label(cell.train_bits)
        row["Evaluated" if table == "table3" else "Bits"] = bits_label(cell.eval_bits)
        if table in FINE_TUNED:
            row["Fine-tuned from"] = "" if pd.isna(cell.start) else cell.start
        row["Published"] = plus_minus(cell.published_mean, cell.published_std)
        row["Reproduced"] = reproduced_text(cell)
        row["n"] = "" if pd.isna(cell.n) else str(int(cell.n))
        row["Difference"] = "" if pd.isna(cell.difference) else f"{cell.difference:+.2f}"
        for runs in PUBLISHED_RUNS:
            low, high = cell[f"low_{runs}"], cell[f"high_{runs}"]
            row[f"95 % if n = {runs}"] = "" if pd.isna(low) else f"[{low:+.2f}, {high:+.2f}]"
        row["/ published std"] = "" if pd.isna(cell.ratio) else f"{cell.ratio:+.1f}"
        if table in ("table1", "table2"):
            row["Epochs (published)"] = "" if pd.isna(cell.published_epochs) else f"{cell.published_epochs:.0f}"
            row["Epochs"] = "" if pd.isna(cell.epochs) else f"{cell.epochs:.1f}"
        rows.append(row)
    text = pd.DataFrame(rows)
    intervals = [f"95 % if n = {runs}" for runs in PUBLISHED_RUNS]
    without = ["Published", "Difference", "Epochs (published)"] if cells.published_mean.isna().all() else []
    without += [column for column in ("/ published std", *intervals) if column not in text or not text[column].any()]
    return text.drop(columns=without, errors="ignore")


def notes(study: Study, cells: pd.DataFrame) -> list[str]:
    """What a reader of a table must know: about the study, its marks, and why cells are empty."""
    found = [study.note]
    if (cells.fitted & cells.n.notna()).any():
        found.append(FITTED_NOTE)
    if cells.agreement.notna().any():
        found.append(AGREEMENT_NOTE)
    empty = [name.split("/")[0] for name in cells.missing if "/" in name]
    found += [f"Not run: {name}, {study.not_run[name]}." for name in dict.fromkeys(empty) if name in study.not_run]
    return found


def write_tables(study: Study, variants: list[Variant]) -> None:
    """Write every table of the study, ``agreement.csv`` (all published cells) and ``coverage.csv`` (their counts)."""
    measurements = read_measurements(study.study)
    folder = results(study.study) / "tables"
    for table in study.tables:
        cells = table_cells(study, variants, table, measurements)
        write_formats(folder / table, TITLES[table], notes(study, cells), cells, shown(table, cells))
    agreement = agreement_cells(study, variants, measurements)
    write_text(results(study.study) / "agreement.csv", _csv(agreement))
    write_text(results(study.study) / "coverage.csv", _csv(coverage(agreement)))


def _csv(table: pd.DataFrame) -> str:
    return table.round(6).to_csv(index=False, lineterminator="\n")


def agreement_cells(study: Study, variants: list[Variant], measurements: pd.DataFrame) -> pd.DataFrame:
    """Each published cell once, beside the study's, and how they agree.

    Where two experiments fill one cell, the one that the study's table names first stands here.
    """
    tables = []
    for table in sorted(read_published().table.unique()):
        cells = table_cells(study, variants, table, measurements)
        named = {name: place for place, name in enumerate(study.shown_in(table))}
        cells = cells[cells.published_mean.notna()]
        cells = cells.assign(place=cells.experiment.map(named))
        tables.append(cells.loc[cells.sort_values("place", kind="stable").drop_duplicates(CELL).index.sort_values()])
    cells = pd.concat(tables, ignore_index=True)
    cells["n"] = cells.n.fillna(0).astype(int)
    cells["relation"] = study.published
    columns = ["published_mean", "published_std", "mean", "std", "n", *COMPARED, "fitted", "relation"]
    return cells[["table", *CELL, *columns, "missing", "runs", "start"]]


def coverage(agreement: pd.DataFrame) -> pd.DataFrame:
    """By table and for all: published cells, those that have run, and how these agree; a fitted one is not judged."""
    said = agreement.agreement.where(~agreement.fitted)
    counted = pd.DataFrame({"table": agreement.table, "published": 1, "run": agreement.n > 0})
    counted = counted.assign(**{kind: said == kind for kind in AGREEMENTS})
    counted["fitted"] = agreement.fitted & (agreement.n > 0)
    by_table = counted.groupby("table").sum().astype(int)
    by_table.loc["all"] = by_table.sum()
    return by_table.reset_index()


def write_formats(path: Path, title: str, notes: list[str], cells: pd.DataFrame, text: pd.DataFrame) -> None:
    """``cells`` as CSV, and ``text`` (strings for people; ``**bold**``) as Markdown and LaTeX."""
    write_text(path.with_suffix(".csv"), _csv(cells))
    write_text(path.with_suffix(".md"), _markdown(title, notes, text))
    write_text(path.with_suffix(".tex"), _latex(title, notes, text))


def _markdown(title: str, notes: list[str], text: pd.DataFrame) -> str:
    header = " | ".join(text.columns)
    rules = " | ".join("---" for _ in text.columns)
    body = "\n".join("| " + " | ".join(row) + " |" for row in text.itertuples(index=False))
    return f"### {title}\n\n" + "\n\n".join(notes) + f"\n\n| {header} |\n| {rules} |\n{body}\n"


def _latex(title: str, notes: list[str], text: pd.DataFrame) -> str:
    def escape(value: str) -> str:
        signs = {"_": r"\_", "%": r"\%", "±": r"$\pm$", "−": "$-$", "λ": r"$\lambda$", FITTED_MARK: r"\dag{}"}
        for plain, tex in signs.items():
            value = value.replace(plain, tex)
        return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", value)

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(title)}. {escape(' '.join(notes))}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(text.columns)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, text.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in text.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
