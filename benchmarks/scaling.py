"""What a study of thousands of finished runs costs those who look at it: python benchmarks/scaling.py [--runs N]

A study of MLP5 over strengths and learning rates, in a scratch folder: one run is trained, and stands for all others,
each with a record, histories, weights and evaluations of its own. Then every command that reads all records is timed
in a process of its own: seconds, peak memory, and the bytes of what it leaves (benchmarks/results/scaling.csv).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, report
from safetensors.torch import load_file, save_file

from oscillations.core.bits import REQUANTIZE
from oscillations.core.files import file_hash, read_json, sealed, write_json
from oscillations.records.identity import evaluation_key, evaluation_parts
from oscillations.records.numerics import written
from oscillations.records.plans import plans
from oscillations.records.rows import EVALUATIONS, HISTOGRAMS, read_rows, write_rows
from oscillations.study.paths import evaluation_files, study_file
from oscillations.study.reading import load

ROOT = RESULTS.parent.parent
SEEDS, RATES = 5, 10
STUDY = """\
study: scale
title: A study of many runs
note: One run stands for all; only the cost of looking at them is real.
published: none
data: digits
validation: 300
seeds: [{seeds}]
eval_bits: [32, 2, 3, 4, 8]
training: {{lr: 1.0e-3, batch_size: 64, epochs: 2, patience: 2}}
experiments:
  mlp5-scratch:
    model: {{name: mlp5, width: 16}}
    setting: sweep
    methods: {{osciquant: {{bits: 3}}}}
    sweep: {{lambda: [{strengths}], lr: [{rates}]}}
comparisons:
  mlp5: {{experiments: [mlp5-scratch], bits: 3}}
"""


#: Runs a command and says the largest memory of it and what it started; a small process, for memory is inherited.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(code)
"""


def command(name: str, *arguments: str) -> dict:
    """Seconds and peak memory of a command in the present folder; its output is shown if it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        logs = "".join(file.read_text() for file in Path("logs").rglob("*.log"))
        sys.exit(f"{name}: {done.stderr}{logs}"[-3000:])
    print(f"{name}: {seconds:.1f} s", flush=True)
    return {"what": name, "seconds": round(seconds, 1), "peak_mb": int(done.stdout.split()[-1])}


def cli(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "oscillations", arguments[0], "--study", "scale", *arguments[1:])


def snakemake(*arguments: str) -> tuple[str, ...]:
    return ("snakemake", "--cores", "1", *arguments, "--config", "study=scale")


def prepare(folder: Path, runs: int) -> None:
    """The project without its results, and a study of so many runs."""
    for name in ("src", "workflow", "Snakefile", "docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "params").mkdir()
    shutil.copy(ROOT / "params/published.csv", folder / "params")
    strengths = [round(0.01 * i, 2) for i in range(1, runs // SEEDS // RATES + 1)]
    rates = [f"{i}.0e-4" for i in range(1, RATES + 1)]
    lists = {"seeds": range(SEEDS), "strengths": strengths, "rates": rates}
    study_file("scale").write_text(STUDY.format(**{key: ", ".join(map(str, value)) for key, value in lists.items()}))


def fill() -> int:
    """Train and evaluate the first run, and let it stand for all others; returns how many there are."""
    variants = load(study_file("scale"))[1]
    first = variants[0].runs()[0]
    command("fetch", *cli("fetch"))
    command("train", *cli("train", "--only", first.path, "--seeds", str(first.seed)))
    command("evaluate", *cli("evaluate", "--experiment", first.experiment))
    files = evaluation_files("scale", first.experiment)
    known = [read_rows([file], columns) for file, columns in zip(files, (EVALUATIONS, HISTOGRAMS))]
    record, tables = read_json(first.record), ([], [])
    weights = load_file(first.checkpoint)
    for plan in plans(variants):
        run, recipe = plan.run, plan.variant.recipe.plain()
        own = record | plan.identity | {"recipe": recipe}
        if run != first:
            shutil.copytree(first.folder, run.folder)
            run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, run.checkpoint, {"run": run.name})  # so that its hash is its own
            own["checkpoint_sha256"] = file_hash(run.checkpoint)
            write_json(run.record, sealed(own))
        key, parts = evaluation_key(own, REQUANTIZE, "checkpoint"), written(evaluation_parts(recipe))
        tables[0].append(known[0].assign(run=run.name, key=key, arithmetic=parts))
        tables[1].append(known[1].assign(run=run.name))
    for file, table, columns in zip(files, tables, (EVALUATIONS, HISTOGRAMS)):
        write_rows(file, table, columns)
    return len(tables[0])


def size(pattern: str) -> int:
    """Kilobytes of the files that a pattern matches."""
    return sum(file.stat().st_size for file in Path().glob(pattern) if file.is_file()) // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = "src"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder), options.runs)
        runs = fill()
        jobs = runs // SEEDS
        rows = [
            command(
                f"snakemake -n, {jobs} jobs to do",
                *snakemake("-n", "--quiet", "all", "--forcerun", "train_mlp5_scratch"),
            ),
            command(f"snakemake --touch, {jobs} jobs", *snakemake("--touch", "runs")),
            command("check", *cli("check")),
            command("status", *cli("status")),
            command("snakemake report", *snakemake("report")),
            command("snakemake -n, nothing to do", *snakemake("-n", "--quiet", "all")),
        ]
        held = {
            "records (run.json)": "results/scale/runs/**/run.json", "histories": "results/scale/runs/**/*s*y*.csv",
            "evaluations and histograms": "results/scale/runs/*/*.csv",
            "page": "results/scale/index.html",
            "all results": "results/scale/**/*", "checkpoints": "checkpoints/**/*",
        }  # fmt: skip
        rows += [{"what": name, "seconds": "", "peak_mb": "", "kB": size(pattern)} for name, pattern in held.items()]
        rows = [{"runs": runs} | row | {"kB": row.get("kB", "")} for row in rows]
        os.chdir(ROOT)
    report("scaling.csv", rows, key=("runs", "what"))


if __name__ == "__main__":
    main()
