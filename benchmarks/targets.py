"""The project's speed targets beside what was measured: python benchmarks/targets.py

Reads benchmarks/results/*.csv, prints the table and writes benchmarks/results/targets.md.
"""

from __future__ import annotations

import pandas as pd
from common import RESULTS

METHODS = [("qat", "detach"), ("qat", "flow"), ("osciquant", "flow"), ("osciquant", "detach")]


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv")


def rows() -> list[tuple[str, str, str]]:
    """(what, target, measured) of every target."""
    steps, found = read("steps"), []

    def step(threads: int, method: str, scale: str, form: str, model: str = "mlp5") -> pd.Series:
        chosen = steps[(steps.model == model) & (steps.threads == threads) & (steps.method == method)]
        chosen = chosen[(chosen.scale_gradient.fillna("") == scale) & (chosen.form == form)]
        return chosen.iloc[0]

    for method, scale in METHODS:
        target = "≤ 1.10" if (method, scale) == ("qat", "detach") else "≤ 1.15"
        ratios = [step(threads, method, scale, "ours").ratio_to_fp for threads in (1, 2)]
        text = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        found.append((f"MLP5 step, {method} {scale}, relative to FP (1 / 2 threads)", target, text))
    text = " / ".join(f"{step(2, *method, 'ours', 'resnet18').ratio_to_fp:.2f}" for method in METHODS)
    found.append(
        ("ResNet-18 step, batch 128, relative to FP (qat detach / flow, osciquant flow / detach)", "≤ 1.03", text)
    )
    worst = max(step(2, *method, "ours, quantization alone", "resnet18").ratio_to_fp for method in METHODS)
    found.append(
        ("ResNet-18 step, batch 128: quantization alone, relative to FP, worst method", "≤ 0.03", f"{worst:.3f}")
    )
    floors = []
    for threads in (1, 2):
        parts = sum(step(threads, "floor", "", name).median_ms for name in ("matrix products", "fused adam"))
        floors.append(step(threads, "fp", "", "ours").median_ms / parts)
    text = " / ".join(f"{ratio:.2f}" for ratio in floors)
    found.append(("FP step relative to its matrix products and fused Adam (1 / 2 threads)", "≤ 1.25", text))
    share = [step(threads, "floor", "", "input pipeline").ratio_to_fp for threads in (1, 2)]
    found.append(("input pipeline, share of a step (1 / 2 threads)", "≤ 6 %", " / ".join(f"{s:.1%}" for s in share)))
    epochs = read("epoch")
    for form in ("dataloader", "one process", "preloaded"):
        for method in ("qat", "osciquant"):
            chosen = epochs[(epochs.method == method) & (epochs.form == form)]
            text = " / ".join(f"{ratio:.1f}" for ratio in chosen.sort_values("threads").ratio_to_ours)
            target = "" if form == "preloaded" else "≥ 6"
            found.append((f"MLP5 epoch, {method}: {form} loop relative to ours (1 / 2 threads)", target, text))
    counters = read("counters")
    for method, scale in METHODS:
        chosen = counters[(counters.method == method) & (counters.scale_gradient == scale)].sort_values("threads")
        text = " / ".join(f"{added:.0f} %" for added in chosen.added_percent)
        text += f" at {chosen.changed_percent.iloc[0]:.1f} % of the codes changing"
        found.append((f"counting, added to a step of {method} {scale} (1 / 2 threads)", "≤ 8 %", text))
    found.append(("counter state per weight", "≤ 6 bytes", f"{counters.bytes_per_weight.max():.0f} bytes"))
    pipeline = read("pipeline")
    for study, target in (("quick", "≥ 60 %"), ("paper-jpeg", "≥ 95 %")):
        made = pipeline[(pipeline.study == study) & (pipeline.what == "from nothing")].iloc[0]
        share = made.training_percent + made.evaluating_percent
        found.append((f"core time inside training and evaluation, {study}", target, f"{share:.1f} %"))
    again = pipeline[pipeline.what == "nothing to do"].seconds.max()
    found.append(("nothing to do", "≤ 5 s", f"{again:.1f} s"))
    limits = {100: 4, 1000: 7, 5000: 20}
    for row in read("dag").itertuples():
        text = f"{row.seconds:.1f} s, {row.peak_gb:.2f} GB"
        found.append((f"dry run of {row.training_jobs:,} training jobs", f"≤ {limits[row.training_jobs]} s", text))
    check = read("cost_check")
    low, high = check.ratio.min(), check.ratio.max()
    found.append(
        (
            "predicted relative to real time of the epochs run, lowest and highest variant",
            "0.75 to 1.25",
            f"{low:.2f} to {high:.2f}",
        )
    )
    return found


def main():
    lines = ["| what | target | measured |", "| --- | --- | --- |"]
    lines += [f"| {what} | {target} | {measured} |" for what, target, measured in rows()]
    machine = read("steps").machine.iloc[0]
    text = "\n".join([f"Measured on: {machine}.", "", *lines]) + "\n"
    print(text)
    (RESULTS / "targets.md").write_text(text)


if __name__ == "__main__":
    main()
