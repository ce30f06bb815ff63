"""The project's speed targets beside what was measured: python benchmarks/targets.py

Reads benchmarks/results/*.csv, prints the table and writes benchmarks/results/targets.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from common import RESULTS

METHODS = [("qat", "detach"), ("qat", "flow"), ("osciquant", "flow"), ("osciquant", "detach")]
Rows = Iterator[tuple[str, str, str]]  #: what, target, measured


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv")


def steps(table: pd.DataFrame) -> Rows:
    def step(threads: int, method: str, scale: str, form: str, model: str = "mlp5") -> pd.Series:
        chosen = table[(table.model == model) & (table.threads == threads) & (table.method == method)]
        chosen = chosen[(chosen.scale_gradient.fillna("") == scale) & (chosen.form == form)]
        return chosen.iloc[0]

    for method, scale in METHODS:
        ratios = [step(threads, method, scale, "ours").ratio_to_fp for threads in (1, 2)]
        text = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        yield f"MLP5 step, {method} {scale}, relative to FP (1 / 2 threads)", "≤ 1.10", text
    text = " / ".join(f"{step(2, *method, 'ours', 'resnet18').ratio_to_fp:.2f}" for method in METHODS)
    yield "ResNet-18 step, batch 128, relative to FP (qat detach / flow, osciquant flow / detach)", "≤ 1.03", text
    worst = max(step(2, *method, "ours, quantization alone", "resnet18").ratio_to_fp for method in METHODS)
    yield "ResNet-18 step, batch 128: quantization alone, relative to FP, worst method", "≤ 0.03", f"{worst:.3f}"
    floors = []
    for threads in (1, 2):
        parts = sum(step(threads, "floor", "", name).median_ms for name in ("matrix products", "fused adam"))
        floors.append(step(threads, "fp", "", "ours").median_ms / parts)
    text = " / ".join(f"{ratio:.2f}" for ratio in floors)
    yield "FP step relative to its matrix products and fused Adam (1 / 2 threads)", "≤ 1.25", text
    share = [step(threads, "floor", "", "input pipeline").ratio_to_fp for threads in (1, 2)]
    yield "input pipeline, share of a step (1 / 2 threads)", "≤ 6 %", " / ".join(f"{s:.1%}" for s in share)


def epoch(table: pd.DataFrame) -> Rows:
    for form in ("dataloader", "one process", "official", "preloaded"):
        for method in ("qat", "osciquant"):
            chosen = table[(table.method == method) & (table.form == form)]
            text = " / ".join(f"{ratio:.1f}" for ratio in chosen.sort_values("threads").ratio_to_ours)
            target = "≥ 6" if form in ("dataloader", "one process") else ""
            yield f"MLP5 epoch, {method}: {form} loop relative to ours (1 / 2 threads)", target, text


def counters(table: pd.DataFrame) -> Rows:
    for method, scale in METHODS:
        chosen = table[(table.method == method) & (table.scale_gradient == scale)].sort_values("threads")
        text = " / ".join(f"{added:.0f} %" for added in chosen.added_percent)
        text += f" at {chosen.changed_percent.iloc[0]:.1f} % of the codes changing"
        yield f"counting, added to a step of {method} {scale} (1 / 2 threads)", "≤ 8 %", text
    yield "counter state per weight", "≤ 6 bytes", f"{table.bytes_per_weight.max():.0f} bytes"


def pipeline(table: pd.DataFrame) -> Rows:
    for study, target in (("quick", "≥ 60 %"), ("paper-jpeg", "≥ 95 %")):
        made = table[(table.study == study) & (table.what == "from nothing")].iloc[0]
        share = made.training_percent + made.evaluating_percent
        yield f"core time inside training and evaluation, {study}", target, f"{share:.1f} %"
    yield "nothing to do", "≤ 5 s", f"{table[table.what == 'nothing to do'].seconds.max():.1f} s"


def first_hour(table: pd.DataFrame) -> Rows:
    limits = {"environment, pip": "", "environment, uv": "", "quick": "≤ 240 s", "tests": "< 480 s"}
    for what, target in limits.items():
        newest_first = table[table.what == what].iloc[::-1].itertuples()
        timings = [f"{row.seconds} s ({row.commit}, {row.machine.split(',')[0]})" for row in newest_first]
        yield f"the README's commands, {what}", target, ", earlier ".join(timings)


def dag(table: pd.DataFrame) -> Rows:
    limits = {100: "≤ 4 s", 1000: "≤ 3.5 s", 5000: "≤ 10 s"}
    for row in table.itertuples():
        text = f"{row.seconds:.1f} s, {row.peak_gb:.2f} GB"
        yield f"dry run of {row.training_jobs:,} training jobs", limits[row.training_jobs], text


def scaling(table: pd.DataFrame) -> Rows:
    limits = {"status": 10, "check": 5, "snakemake report": 60}
    for what, limit in limits.items():
        row = table[table.what == what].iloc[0]
        text = f"{row.seconds:.1f} s, {row.peak_mb / 1000:.2f} GB"
        yield f"{what}, {row.runs:,} finished runs", f"≤ {limit} s, 1 GB", text
    page = table[table.what == "page"].iloc[0]
    yield f"page of {page.runs:,} finished runs", "≤ 1 MB", f"{page.kB / 1000:.2f} MB"


def cost_check(table: pd.DataFrame) -> Rows:
    low, high = table.ratio.min(), table.ratio.max()
    what = "predicted relative to real time of the epochs run, lowest and highest variant"
    yield what, "0.75 to 1.25", f"{low:.2f} to {high:.2f}"


def main():
    lines = ["| what | target | measured | from | machine |", "| --- | --- | --- | --- | --- |"]
    for table in (steps, epoch, counters, pipeline, first_hour, dag, scaling, cost_check):
        name = f"{table.__name__}.csv"
        measured = read(table.__name__)
        machine = ", ".join(dict.fromkeys(measured.machine)) if "machine" in measured else ""
        lines += [f"| {' | '.join(row)} | [{name}]({name}) | {machine} |" for row in table(measured)]
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "targets.md").write_text(text)


if __name__ == "__main__":
    main()
