"""The quick study from nothing, and once more with nothing to do: python benchmarks/quick.py [--cores 2]

Wall time, and the peak memory of the whole process tree (sum of proportional set sizes, sampled).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import report

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
        time.sleep(0.5)
    if running.returncode:
        sys.exit(f"{' '.join(command)}: exit code {running.returncode} in {folder}")
    return time.perf_counter() - start, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", default="2")
    parser.add_argument("--folder", type=Path, help="new folder to run in, instead of a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp()) / "project"
    folder.mkdir(parents=True)
    for name in ("src", "workflow", "params"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "profiles").symlink_to("workflow/profiles")
    command = ["snakemake", "--cores", options.cores, "all"]
    rows = []
    for what in ("quick study", "nothing to do", "nothing to do"):
        seconds, memory = timed(command, folder)
        rows.append({"what": what, "cores": options.cores, "seconds": round(seconds, 1), "peak_gb": round(memory, 2)})
    print(f"results in {folder}/results/quick")
    report("quick.csv", rows)


if __name__ == "__main__":
    main()
