"""What trained runs cost and give as files for elsewhere, of the entries that were measured: ``tables/exports*``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.records.rows import read_csv
from oscillations.report.results import Report
from oscillations.report.table import Row, Table
from oscillations.report.text import bits_label, plus_minus
from oscillations.study.paths import Run, experiment_of, exports_file

NAME, WIDTHS = "exports", "exports-widths"
TITLE = "As files for elsewhere"
FILES = {"own": "one width", "latent": "any width: latent weights", "codes": "any width: 8-bit codes, sliced"}
SERVED = FILES | {"own": "one checkpoint, a file for each", "each": "a checkpoint for each"}
MEASURED = ["bytes", "onnx_bytes", "accuracy", "accuracy_onnx", "difference", "latency_ms"]
COLUMNS = [
    "path", "file", "bits", "n", *(f"{name}{part}" for name in MEASURED for part in ("", "_std")), "machine", "runs",
]  # fmt: skip
NOTES = [
    "Every file was written from a trained run, read again, and tried on 500 test images: it gives each the class that "
    "the evaluation gives it. Sizes in kB; accuracy in percent on all test images, by torch from the packed codes and "
    "by ONNX Runtime from the graph with integer weights, mean ± standard deviation over n seeds. Δ logit: the "
    "largest difference of a logit in ONNX Runtime. ms: the median of 50 batches on one thread, mean over the seeds. A "
    "file for any width serves every width of its variant: its size counts once, that of others for each width.",
]


def exported(report: Report) -> pd.DataFrame:
    """One row per variant, kind of file and width, over the runs whose checkpoint is the one that was exported."""
    current = {plan.run.name: plan.result["checkpoint_sha256"] for plan in report.plans if plan.current}
    files = [exports_file(report.study.study, name) for name in report.study.exports]
    tables = [read_csv(file, ["run", "file", "bits", "checkpoint_sha256"]) for file in files if file.exists()]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.concat(tables).drop_duplicates(["run", "file", "bits"])
    rows = rows[rows.run.map(current) == rows.checkpoint_sha256]
    return pd.DataFrame(_summaries(report.study.study, rows), columns=COLUMNS)


def _summaries(study: str, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    rows = rows.assign(path=rows.run.str.rpartition("/")[0])
    for (path, file, bits), group in rows.groupby(["path", "file", "bits"], sort=False):
        row = {"path": path, "file": file, "bits": bits, "n": len(group), "machine": group.machine.iloc[0]}
        for name in MEASURED:
            row |= {name: group[name].mean(), f"{name}_std": group[name].std()}
        row["difference"] = group.difference.max()
        runs = [Run(study, *_parts(run)) for run in group.run]
        yield row | {"runs": " ".join(str(run.folder) for run in runs)}


def _parts(run: str) -> tuple[str, str, int]:
    experiment, variant, seed = run.split("/")
    return experiment, variant, int(seed.removeprefix("seed"))


def shown(report: Report, rows: pd.DataFrame) -> Table:
    """The rows as people read them."""
    said = []
    for row in rows.itertuples():
        cells = {
            "Variant": row.path, "File": FILES[row.file], "at": bits_label(row.bits), "kB": f"{row.bytes / 1000:,.0f}",
            "accuracy": plus_minus(row.accuracy, row.accuracy_std),
            "ONNX kB": "" if pd.isna(row.onnx_bytes) else f"{row.onnx_bytes / 1000:,.0f}",
            "ONNX Runtime": plus_minus(row.accuracy_onnx, row.accuracy_onnx_std),
            "Δ logit": "" if pd.isna(row.difference) else f"{row.difference:.1e}",
            "ms": "" if pd.isna(row.latency_ms) else f"{row.latency_ms:.2f}",
            "n": str(row.n),
        }  # fmt: skip
        said.append(Row(cells, row.runs.split(), "reference" if row.bits == LATENT else ""))
    machines = ", ".join(dict.fromkeys(rows.machine))
    notes = [report.study.note, *NOTES, *([f"Times on: {machines}."] if machines else [])]
    return Table(NAME, TITLE, notes, said, first=["at", "kB", "accuracy", "ONNX Runtime", "ms"])


def served(report: Report, rows: pd.DataFrame) -> pd.DataFrame:
    """What serves every exported width: a checkpoint for each, one checkpoint in a file for each, or one file.

    ``bytes`` of all its files, and the accuracy at each width; percent, mean over the seeds.
    """
    narrow = rows[rows.bits != LATENT]
    found = []
    for (path, file), group in narrow.groupby(["path", "file"], sort=False):
        size = group.bytes.sum() if file == "own" else group.bytes.iloc[0]
        found.append(_served(path, file, size, group))
    trained = narrow[narrow.file == "own"].assign(
        of=lambda table: [experiment_of(p) + "/" + report.recipes[p].method.name for p in table.path],
        own=lambda table: [report.recipes[p].bits == bits for p, bits in zip(table.path, table.bits)],
    )
    for name, group in trained[trained.own.astype(bool)].groupby("of", sort=False):
        if len(group) > 1:
            found.append(_served(name, "each", group.bytes.sum(), group))
    accuracies = [f"accuracy_{bits}" for bits in sorted(set(narrow.bits))]
    return pd.DataFrame(found, columns=["path", "file", "bytes", *accuracies])


def _served(path: str, file: str, size: float, group: pd.DataFrame) -> dict[str, Any]:
    accuracies = {f"accuracy_{bits}": value for bits, value in zip(group.bits, group.accuracy)}
    return {"path": path, "file": file, "bytes": size} | accuracies


def shown_served(report: Report, rows: pd.DataFrame) -> Table:
    """The rows as people read them."""
    widths = [int(name.removeprefix("accuracy_")) for name in rows if name.startswith("accuracy_")]
    said = [
        Row(
            {"Trained": row["path"], "Files": SERVED[row["file"]], "kB": f"{row['bytes'] / 1000:,.0f}"}
            | {bits_label(bits): plus_minus(row[f"accuracy_{bits}"], float("nan")) for bits in widths}
        )
        for row in rows.to_dict("records")
    ]
    notes = [report.study.note, "Sizes of the packed files that serve every width, and the accuracy they give there."]
    return Table(WIDTHS, "What serves every width", notes, said)


def write_exports(report: Report) -> None:
    """Write ``tables/exports.*`` and ``tables/exports-widths.*``, if the study exports anything."""
    if report.study.exports:
        rows = exported(report)
        shown(report, rows).write(report.folder / "tables", rows)
        widths = served(report, rows)
        shown_served(report, widths).write(report.folder / "tables", widths)
