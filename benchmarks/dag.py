"""Dry runs of large studies: python benchmarks/dag.py [--jobs 100 1000 5000]

A study of so many training jobs (a sweep over lambda, three seeds each) from nothing: seconds and peak memory of the
scheduler's process tree until ``snakemake -n all`` has listed every job.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import yaml
from common import report
from pipeline import ROOT, scratch_project, timed


def large_study(jobs: int) -> dict:
    """The quick study's settings with one experiment of ``jobs`` variants."""
    quick = yaml.safe_load((ROOT / "params/quick.yaml").read_text())
    sweep = {
        "model": {"name": "mlp5", "width": 64},
        "setting": "sweep",
        "methods": {"osciquant": {"bits": 3}},
        "sweep": {"lambda": [round(0.001 * i, 3) for i in range(jobs)]},
    }
    kept = {key: quick[key] for key in ("title", "note", "published", "data", "validation", "training")}
    return kept | {"study": "large", "seeds": [0, 1, 2], "experiments": {"mlp5-lambda": sweep}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) / "project"
    scratch_project(folder)
    rows = []
    for jobs in options.jobs:
        (folder / "params/large.yaml").write_text(yaml.safe_dump(large_study(jobs)))
        command = ["snakemake", "-n", "--cores", "2", "all", "--config", "study=large"]
        measured = [timed(command, folder) for _ in range(options.rounds)]
        seconds, memory = zip(*measured)
        rows.append(
            {
                "training_jobs": jobs, "seconds": round(statistics.median(seconds), 2),
                "peak_gb": round(max(memory), 3), "rounds": options.rounds,
            }
        )  # fmt: skip
    report("dag.csv", rows)


if __name__ == "__main__":
    main()
