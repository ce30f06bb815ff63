"""Where the core time of a study goes.

    python benchmarks/pipeline.py [--cores 2]
    python benchmarks/pipeline.py --finished STUDY [--folder PROJECT]

Runs the quick study from nothing in a new folder, then twice more with nothing to do: wall time, peak memory of the
process tree (sum of proportional set sizes, sampled), and the share of cores x wall time that was spent training and
evaluating; the rest is the starts of those jobs (imports, data), the report, and the scheduler with idle cores. The
second form accounts for a study that was just made in a folder by one command, from its records and Snakemake's logs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import RESULTS, report

ROOT = Path(__file__).resolve().parent.parent


def tree_memory(process: psutil.Process) -> float:
    """Proportional set size of a process and its children, in GB: shared pages count once."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += member.memory_full_info().pss
    return total / 1e9


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak GB of a command."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    process, peak = psutil.Process(running.pid), 0.0
    while running.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, tree_memory(process))
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.5)
    if running.returncode:
        sys.exit(f"{' '.join(command)}: exit code {running.returncode} in {folder}")
    return time.perf_counter() - start, peak


def scratch_project(folder: Path) -> None:
    """What a workflow needs, in a new folder."""
    folder.mkdir(parents=True)
    for name in ("src", "workflow", "params", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "profiles").symlink_to("workflow/profiles")


def job_seconds(folder: Path) -> tuple[float, float, float]:
    """Sum of the wall seconds of the jobs whose benchmark files lie in a folder, their start and end."""
    total, start, end = 0.0, float("inf"), 0.0
    for file in folder.rglob("*.tsv"):
        with file.open() as rows:
            seconds = float(next(csv.DictReader(rows, delimiter="\t"))["s"])
        total += seconds
        start, end = min(start, file.stat().st_mtime - seconds), max(end, file.stat().st_mtime)
    return total, start, end


def account(folder: Path, study: str, cores: int, wall: float | None = None) -> dict:
    """Shares of the core time of a finished study, in percent; every run has one thread."""
    logs = folder / "logs" / study
    training_jobs, start, _ = job_seconds(logs / "train")
    evaluation_jobs, _, _ = job_seconds(logs / "evaluate")
    report_jobs, _, _ = job_seconds(logs / "report")
    records = [json.loads(file.read_text()) for file in (folder / "results" / study).rglob("run.json")]
    training = sum(record["timing"]["wall_s"] for record in records)
    logged = "".join(file.read_text() for file in (logs / "evaluate").glob("*.log"))
    evaluating = sum(map(float, re.findall(r"checkpoints evaluated in ([0-9.]+) s", logged)))
    wall = wall or (folder / "results" / study / "index.html").stat().st_mtime - start
    starts = training_jobs + evaluation_jobs - training - evaluating
    shares = {
        "training": training, "evaluating": evaluating, "starts": starts, "report": report_jobs,
        "scheduler_and_idle": cores * wall - training_jobs - evaluation_jobs - report_jobs,
    }  # fmt: skip
    percent = {f"{name}_percent": round(100 * value / (cores * wall), 1) for name, value in shares.items()}
    jobs = len(list(logs.rglob("*.tsv")))
    return {"study": study, "what": "from nothing", "cores": cores, "jobs": jobs, "seconds": round(wall, 1)} | percent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="new folder to run in, or the project of a finished study")
    parser.add_argument("--finished", metavar="STUDY", help="account for this study, run nothing")
    options = parser.parse_args()
    study = options.finished or "quick"
    kept = (RESULTS / "pipeline.csv").read_text() if (RESULTS / "pipeline.csv").exists() else ""
    others = [row for row in csv.DictReader(kept.splitlines()) if row["study"] != study]
    if options.finished:
        row = account(options.folder or ROOT, study, options.cores) | {"peak_gb": ""}
        report("pipeline.csv", [row, *others])
        return
    folder = options.folder or Path(tempfile.mkdtemp()) / "project"
    scratch_project(folder)
    command = ["snakemake", "--cores", str(options.cores), "all"]
    seconds, memory = timed(command, folder)
    rows = [account(folder, "quick", options.cores, seconds) | {"peak_gb": round(memory, 2)}]
    for _ in range(2):
        seconds, memory = timed(command, folder)
        again = {"study": "quick", "what": "nothing to do", "cores": options.cores, "jobs": 0}
        rows.append(dict.fromkeys(rows[0], "") | again | {"seconds": round(seconds, 1), "peak_gb": round(memory, 2)})
    print(f"results in {folder}/results/quick")
    report("pipeline.csv", [*rows, *others])


if __name__ == "__main__":
    main()
