"""The paper's tables, published beside reproduced, as CSV, Markdown and LaTeX; and ``agreement.csv``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from oscillations.bits import LATENT
from oscillations.files import write_text
from oscillations.report.collect import read_measurements, results
from oscillations.study import Study

PUBLISHED = Path("params/published.csv")
CELL = ["model", "setting", "method", "lambda", "train_bits", "eval_bits"]
TITLES = {
    "table1": "Table 1. Training from scratch: accuracy at the target bits",
    "table2": "Table 2. Fine-tuning: accuracy at the target bits",
    "table3": "Table 3. Cross-bit accuracy of the fine-tuned models",
    "table4": "Table 4. Sensitivity to lambda",
}
METHOD_NAMES = {"baseline": "FP32 baseline", "ptq": "PTQ", "qat": "QAT", "osciquant": "OsciQuant"}
MODEL_NAMES = {"mlp5": "MLP5", "resnet18": "ResNet-18", "vit-tiny": "ViT-Tiny"}


def read_published() -> pd.DataFrame:
    """The published cells; ``table`` is ``table1`` to ``table5``."""
    published = pd.read_csv(PUBLISHED)
    published["table"] = "table" + published["table"].str[1:]
    return published


def summarise(measurements: pd.DataFrame, bn: str = "keep") -> pd.DataFrame:
    """Mean, sample standard deviation and n over seeds of every cell on the test split.

    A diverged run never enters a mean; it is counted in ``diverged``.
    """
    tests = measurements[(measurements.split == "test") & (measurements.bn == bn)]
    keys = ["experiment", "variant", *CELL, "lr"]
    rows = []
    for key, group in tests.groupby(keys, dropna=False, sort=False):
        done = group[group.status == "done"]
        rows.append(
            dict(zip(keys, key))
            | {
                "mean": done.accuracy.mean(),
                "std": done.accuracy.std(ddof=1),
                "n": len(done),
                "diverged": len(group) - len(done),
                "epochs": done.best_epoch.mean(),
                "runs": " ".join(sorted(group.run)),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "std", "n", "diverged", "epochs", "runs"])


def table_cells(study: Study, table: str, measurements: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of a table: all published cells, and those of the study that have no published twin.

    Cells are matched on model, method, bits and, in sweeps, lambda. Outside sweeps lambda is a choice of the
    study and stays out of the match, because the published tables name none.
    """
    published = read_published()
    published = published[published.table == table].rename(
        columns={"mean": "published_mean", "std": "published_std", "epochs": "published_epochs"}
    )
    found = summarise(measurements)
    found = found[found.experiment.isin(study.tables.get(table, []))]
    if table in ("table1", "table2", "table4"):  # each model at the bits it was made for
        own = (found.eval_bits == found.train_bits) | (found.train_bits == LATENT)
        found = found[own & ~((found.method == "ptq") & (found.eval_bits == 8))]
    if table == "table4":  # the main experiment's lambda is one point of the sweep
        found = found[found.method == "osciquant"]
    found = found.assign(setting={"table1": "scratch", "table4": "sweep"}.get(table, "finetune"))
    if table != "table4":
        found["lambda"] = float("nan")
    # pandas matches NaN with NaN here, which is what a cell without lambda needs
    columns = [*CELL, "published_mean", "published_std", "published_epochs"]
    merged = published[columns].merge(found.drop(columns=["lr"]), on=CELL, how="outer")
    merged.insert(0, "table", table)
    merged["difference"] = merged["mean"] - merged.published_mean
    merged["inside"] = (merged.difference.abs() <= 2 * merged.published_std).where(
        merged.difference.notna() & merged.published_std.notna()
    )
    order = {name: place for place, name in enumerate(METHOD_NAMES)}
    models = {name: place for place, name in enumerate(MODEL_NAMES)}
    keys = pd.DataFrame(
        {
            "model": merged.model.map(models).fillna(len(models)),
            "lambda": merged["lambda"].fillna(-1) if table == "table4" else 0,
            "train": merged.train_bits if table == "table3" else merged.eval_bits,
            "method": merged.method.map(order).fillna(len(order)),
            "eval": merged.eval_bits,
        }
    )
    keys.loc[merged.method.isin(["baseline", "ptq"]) & (table == "table3"), "train"] = 0
    keys.loc[merged.method == "baseline", ["train", "eval"]] = -1
    return merged.loc[keys.sort_values(list(keys)).index].reset_index(drop=True)


def bits_label(bits: int) -> str:
    return {LATENT: "FP32", 2: "ternary"}.get(bits, f"{bits}-bit")


def plus_minus(mean: float, std: float, digits: int = 2) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.{digits}f}" if pd.isna(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def reproduced_text(row: pd.Series) -> str:
    """What a table shows of the study's own cell."""
    if pd.isna(row.n):
        return "not run"
    text = plus_minus(row["mean"], row["std"])
    if row.diverged:
        text = f"{text} ({int(row.diverged)} diverged)" if text else "diverged"
    return text


def shown(table: str, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells as people read them: strings, one row per cell."""
    rows = []
    for _, cell in cells.iterrows():
        row = {"Model": MODEL_NAMES.get(cell.model, cell.model), "Method": METHOD_NAMES.get(cell.method, cell.method)}
        if table == "table4":
            row["λ"] = f"{cell['lambda']:g}"
        if table == "table3":
            row["Trained"] = bits_label(cell.train_bits)
        row["Evaluated" if table == "table3" else "Bits"] = bits_label(cell.eval_bits)
        row["Published"] = plus_minus(cell.published_mean, cell.published_std)
        row["Reproduced"] = reproduced_text(cell)
        row["n"] = "" if pd.isna(cell.n) else str(int(cell.n))
        row["Difference"] = "" if pd.isna(cell.difference) else f"{cell.difference:+.2f}"
        if table in ("table1", "table2"):
            row["Epochs (published)"] = "" if pd.isna(cell.published_epochs) else f"{cell.published_epochs:.0f}"
            row["Epochs"] = "" if pd.isna(cell.epochs) else f"{cell.epochs:.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def write_tables(study: Study) -> None:
    """Write every table of the study and ``agreement.csv`` (all published cells)."""
    measurements = read_measurements(study)
    folder = results(study) / "tables"
    for table in study.tables:
        cells = table_cells(study, table, measurements)
        write_formats(folder / table, TITLES[table], study.note, cells, shown(table, cells))
    agreement = agreement_cells(study, measurements)
    write_text(results(study) / "agreement.csv", agreement.to_csv(index=False, lineterminator="\n"))


def agreement_cells(study: Study, measurements: pd.DataFrame) -> pd.DataFrame:
    """Each published cell beside the study's: difference, and whether it lies in published mean +- 2 std."""
    tables = [table_cells(study, table, measurements) for table in sorted(read_published().table.unique())]
    cells = pd.concat([table for table in tables if len(table)])
    cells = cells[cells.published_mean.notna()].copy()
    fitted = [tuple(cell) for cell in study.fitted]
    cells["fitted"] = [(*key, bits) in fitted for *key, bits in cells[["model", "method", "eval_bits"]].to_numpy()]
    cells["relation"] = study.published
    if study.published == "miniature":  # other data and other models: nothing to lie inside of
        cells["inside"] = None
    return cells[
        [
            "table",
            *CELL,
            "published_mean",
            "published_std",
            "mean",
            "std",
            "n",
            "difference",
            "inside",
            "fitted",
            "relation",
            "runs",
        ]
    ]


def write_formats(path: Path, title: str, note: str, cells: pd.DataFrame, text: pd.DataFrame) -> None:
    """``cells`` as CSV, and ``text`` (what people read of them, strings) as Markdown and LaTeX, beside each other."""
    write_text(path.with_suffix(".csv"), cells.to_csv(index=False, lineterminator="\n"))
    write_text(path.with_suffix(".md"), _markdown(title, note, text))
    write_text(path.with_suffix(".tex"), _latex(title, note, text))


def _markdown(title: str, note: str, text: pd.DataFrame) -> str:
    header = " | ".join(text.columns)
    rules = " | ".join("---" for _ in text.columns)
    body = "\n".join("| " + " | ".join(row) + " |" for row in text.itertuples(index=False))
    return f"### {title}\n\n{note}\n\n| {header} |\n| {rules} |\n{body}\n"


def _latex(title: str, note: str, text: pd.DataFrame) -> str:
    def escape(value: str) -> str:
        return value.replace("±", r"$\pm$").replace("λ", r"$\lambda$").replace("%", r"\%").replace("_", r"\_")

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(title)}. {escape(note)}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(text.columns)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, text.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in text.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
