"""What a user waits for in the first hour: python benchmarks/first_hour.py [--at COMMIT ...] [--only WHAT ...]

In a new clone at each commit, by the lines of the README there, one after another: the environment by pip and by uv,
the quick study, the tests. Nothing that was downloaded before is used.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report
from pipeline import ROOT

WHAT = ("environment, pip", "quick", "tests", "environment, uv")
FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH")  #: of the environment that this runs in


def commands(readme: str) -> dict[str, str]:
    """The README's commands: those of pip's environment are in it, uv's makes one that takes its place."""
    quick, tests = re.findall(r"^(python3 -m venv .*) && (.*)$", readme, re.MULTILINE)
    inside = ". .venv/bin/activate &&"
    with_uv = " && ".join(["rm -rf .venv", *re.findall(r"`(uv (?:venv|pip) .*?)`", readme)])
    words = (quick[0], f"{inside} {quick[1]}", f"{inside} {tests[1]}", with_uv)
    return dict(zip(WHAT, words, strict=True))


def seconds(command: str, folder: Path, log: Path) -> float:
    """Of a shell's command; ends with what it said if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    environment |= {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
    began = time.perf_counter()
    with log.open("w") as output:
        code = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, stdout=output, stderr=output)
    if code.returncode:
        sys.exit(f"{command}: exit code {code.returncode}: {log}")
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", nargs="+", metavar="COMMIT", default=["HEAD"])
    parser.add_argument("--only", nargs="+", choices=WHAT, default=list(WHAT), help="of the last commit")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    for commit in options.at:
        clone = folder / commit
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
        name = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=clone, capture_output=True, text=True)
        lines = commands((clone / "README.md").read_text())
        for what in options.only if commit == options.at[-1] else WHAT[:2]:
            taken = seconds(lines[what], clone, folder / f"{commit}-{what}.log")
            row = {"commit": name.stdout.strip(), "what": what, "seconds": round(taken)}
            report("first_hour.csv", [row], key=("commit", "what"))


if __name__ == "__main__":
    main()
