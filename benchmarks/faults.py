"""Kill -9 at random moments, again and again: python benchmarks/faults.py --kills 100 --campaign 1

A small study is made from nothing by ``dvc repro`` or ``snakemake``, two jobs at a time: fetch, trainings, fine-tunes,
evaluation, post-training, report, and with DVC the commit. At a random moment the whole of it (DVC, Snakemake, jobs) is
killed, and the same command is given again, until it ends by itself: a *life*. Then every file is compared with an
undisturbed run's. A row of benchmarks/results/faults.csv counts the kills of a campaign (its number is the seed of the
random moments) by what was running; the row ``all`` has what they led to:

* ``differing``: files that are not the undisturbed run's, byte for byte; what says how it was made (times, how often it
  was interrupted) is left out: fields of records, columns of tables, the pages about runs and Snakemake's records;
* ``trained_again``: runs of which an epoch was trained after they had been finished;
* ``unrecorded``: files of which no record of Snakemake's travels with the results, so that a clone makes them again;
* ``rwlock``: how often DVC was killed while it wrote ``.dvc/tmp/rwlock``, which has to be deleted then: DVC's own;
* ``left``: files left in work/, half-written ones anywhere, locks.

Ends with code 1 if any but DVC's is not zero, and keeps that life's folder.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import StringIO
from pathlib import Path

import psutil
from common import report
from pipeline import scratch_project

from oscillations.core.files import SEAL
from oscillations.records.environment import git_state
from oscillations.records.rows import CHECK

STUDY = """\
study: faults
title: A study to be killed
note: Small, through every phase.
published: none
data: digits
validation: 300
seeds: [0, 1]
training: {lr: 2.0e-3, batch_size: 64, epochs: 3, patience: 5}
experiments:
  mlp5-scratch:
    model: &model {name: mlp5, width: 16}
    setting: scratch
    histograms: fc2.weight
    methods:
      baseline:
      osciquant: {bits: 3, lambda: 1}
  mlp5-finetune:
    model: *model
    setting: finetune
    start_from: mlp5-scratch
    training: {keep: both}
    methods:
      qat: {bits: 3}
      freezing: {bits: 3}
posttraining:
  rounded:
    of: [mlp5-scratch/baseline]
    bits: [3]
    methods:
      nearest: {method: nearest}
      adaround: {method: adaround, iterations: 50}
figures:
  figure2: {layer: fc2.weight, panels: [mlp5-scratch/osciquant-3bit]}
  figure-film: {layer: fc2.weight, panels: [mlp5-scratch/osciquant-3bit]}
tables: {table1: [mlp5-scratch]}
"""
STAGE = """\
stages:
  faults:
    cmd: snakemake --cores 2 all --config study=faults
    deps: [Snakefile, workflow, src/oscillations]
    params: [{params/faults.yaml: }]
    outs:
      - results/faults: {persist: true}
      - figures/faults: {persist: true}
      - checkpoints/faults: {persist: true}
"""
COMMANDS = {"dvc": ["dvc", "repro"], "snakemake": ["snakemake", "--cores", "2", "all", "--config", "study=faults"]}
MADE = ("results", "figures", "checkpoints", "data")
TIMES = {"timing", "seconds", SEAL, CHECK}  #: keys of records and columns of tables that hold times, or their hashes
STORIES = ("making.html", "provenance.json", "runs/*/*.html")  #: files that tell how a study was made
DONE = b"results: results/faults/index.html"  #: said by a workflow that has ended well
LONGEST = 0.35  #: of an undisturbed run's time, until a kill; with 0.2 a job is hardly ever finished


def project(folder: Path) -> None:
    """The study, its stage, and nothing made yet."""
    scratch_project(folder)
    (folder / "params/faults.yaml").write_text(STUDY)
    (folder / "dvc.yaml").write_text(STAGE)
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)


def start(command: list[str], folder: Path) -> psutil.Popen:
    output = (folder / "output.log").open("a")
    return psutil.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def kill(process: psutil.Popen) -> str:
    """SIGKILL for a process and all that it has started, also while it was killed; what was running.

    The steps, or without any ``scheduler``, or with DVC alone ``dvc``.
    """
    steps: set[str] = set()
    alone = "dvc"
    while members := alive(process.pid):
        for member in members:
            with contextlib.suppress(psutil.Error):
                words = member.cmdline()
                if "oscillations" in words[:3]:
                    steps.add(words[words.index("oscillations") + 1])
                if any("snakemake" in word for word in words):
                    alone = "scheduler"
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(members, timeout=1)
    return "+".join(sorted(steps)) or alone


def alive(session: int) -> list[psutil.Process]:
    """Processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def finished(folder: Path, study: str = "faults") -> set[str]:
    """Runs whose record is there, in place or in the work folder."""
    records = [*folder.glob(f"work/{study}/**/run.json"), *folder.glob(f"results/{study}/runs/**/run.json")]
    return {"/".join(record.parts[-4:-1]) for record in records}


def trained_since(folder: Path, moment: float, study: str = "faults") -> set[str]:
    """Runs of which a log says since a moment that an epoch was trained."""
    logs = [file for file in folder.glob(f"logs/{study}/train/**/*.log") if file.stat().st_mtime >= moment]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return {line.partition(": epoch ")[0] for line in lines if ": epoch " in line}


def contents(folder: Path) -> dict[str, bytes]:
    """What was made, by name, without what tells how."""
    files = [file for name in MADE for file in (folder / name).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): plain(file) for file in files if not any(map(file.match, STORIES))}


def plain(file: Path) -> bytes:
    """The content of a file; of a record or a table without its times."""
    content = file.read_bytes()
    if file.name == "run.json":
        return json.dumps({key: value for key, value in json.loads(content).items() if key not in TIMES}).encode()
    if file.suffix == ".csv":
        rows = csv.DictReader(StringIO(content.decode()))
        return json.dumps([{key: cell for key, cell in row.items() if key not in TIMES} for row in rows]).encode()
    return content


def undisturbed(folder: Path) -> tuple[dict[str, bytes], set[str], float]:
    """What each command makes if nothing happens, the same; what of it is recorded; the seconds of the slower one."""
    made, seconds = [], []
    for name, command in COMMANDS.items():
        project(folder / name)
        began = time.monotonic()
        if start(command, folder / name).wait():
            sys.exit(f"an undisturbed {name} fails: {folder / name / 'output.log'}")
        seconds.append(time.monotonic() - began)
        made.append(contents(folder / name))
    if wrong := differing(*made):
        sys.exit(f"two undisturbed runs differ: {wrong}")
    return made[0], recorded(folder / name), max(seconds)


def recorded(folder: Path) -> set[str]:
    """Outputs whose record of Snakemake's travels with the results."""
    return set(json.loads((folder / "results/faults/provenance.json").read_text())) - {SEAL}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def left_over(folder: Path) -> list[str]:
    """What nobody needs any more when all is made."""
    patterns = ("work/**/*", "results/**/.*.part", "checkpoints/**/.*.part", "data/**/.*.part", ".snakemake/locks/*")
    return [str(file.relative_to(folder)) for pattern in patterns for file in folder.glob(pattern) if file.is_file()]


def life(folder: Path, command: list[str], longest: float, moments: random.Random) -> tuple[Counter, set[str], int]:
    """Give the command until it ends by itself: what was running at each kill, and the runs that were trained again.

    And how often DVC was killed while it wrote its own lock, which it then cannot read.
    """
    killed: Counter[str] = Counter()
    again: set[str] = set()
    locks, lock, output = 0, folder / ".dvc/tmp/rwlock", folder / "output.log"
    project(folder)
    output.touch()
    while True:
        before, moment, said = finished(folder), time.time(), output.stat().st_size
        process = start(command, folder)
        try:
            code = process.wait(moments.uniform(0, longest))
        except psutil.TimeoutExpired:
            code, running = None, kill(process)
            made = DONE in output.read_bytes()[said:]  # by the stage: what DVC does then is its commit
            killed[f"{running} commit" if running == "dvc" and made else running] += 1
        again |= before & trained_since(folder, moment)
        if code and lock.exists() and not lock.read_bytes():
            lock.unlink()
            locks += 1
        elif code:
            sys.exit(f"it fails with code {code} after {killed.total()} kills: {folder / 'output.log'}")
        if code == 0:
            return killed, again, locks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--campaign", type=int, required=True)
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ.pop("PYTHONPATH", None)
    folder, moments = Path(tempfile.mkdtemp()), random.Random(options.campaign)
    reference, records, seconds = undisturbed(folder / "undisturbed")
    lives, rwlock, killed, found = 0, 0, Counter(), {"differing": 0, "trained_again": 0, "unrecorded": 0, "left": 0}
    while killed.total() < options.kills and not any(found.values()):
        place = folder / f"life{lives}"
        command = list(COMMANDS.values())[lives % 2]
        more, again, locks = life(place, command, LONGEST * seconds, moments)
        wrong = {
            "differing": differing(contents(place), reference), "trained_again": again,
            "unrecorded": records - recorded(place), "left": left_over(place),
        }  # fmt: skip
        killed, lives, rwlock = killed + more, lives + 1, rwlock + locks
        found = {key: found[key] + len(files) for key, files in wrong.items()}
        print(f"life {lives}: {more.total()} kills, {wrong if any(wrong.values()) else 'nothing wrong'}", flush=True)
        if not any(wrong.values()):
            shutil.rmtree(place)
        counts = {"lives": lives, "rwlock": rwlock, **found}
        none = dict.fromkeys(counts, "")
        rows = [{"running": name, "kills": n} | none for name, n in sorted(killed.items())]
        rows.append({"running": "all", "kills": killed.total()} | counts)
        about = {"campaign": options.campaign, "commit": git_state()["commit"][:8]}
        report("faults.csv", [about | row for row in rows], key=("campaign",))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
