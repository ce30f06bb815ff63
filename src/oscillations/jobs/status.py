"""How far a study is: runs done, running and left, and when it should end."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from statistics import mean

from oscillations.core.files import read_json
from oscillations.jobs import workflows
from oscillations.jobs.holders import EXPIRES, holder_of
from oscillations.records import cost
from oscillations.records.cost import Cost
from oscillations.records.environment import unlike
from oscillations.records.plans import plans
from oscillations.study.paths import Run, study_work
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

FRESH = 120  # seconds without a sign of life after which a run counts as interrupted


def print_status(study: Study, variants: list[Variant], jobs: int) -> None:
    """One line per experiment, the runs in progress, the time left, and the predicted cost of the whole."""
    found = plans(variants)
    done = {plan.run: plan.result for plan in found if plan.current}
    stale = {plan.run: plan.stale for plan in found if plan.stale}
    waiting = {run for variant in variants for run in variant.runs()} - set(done)
    finished_in_work = {run for run in waiting if (run.work / "run.json").exists()}
    active = {
        run: read_json(run.work / "progress.json") for run in waiting - finished_in_work if _progress(run).exists()
    }
    running = {run for run, state in active.items() if abs(time.time() - state["written"]) < FRESH}
    print(f"study {study.study}: {len(done) + len(finished_in_work)} done, {len(running)} running, "
          f"{len(waiting) - len(finished_in_work) - len(running)} left, {len(stale)} stale")  # fmt: skip
    for experiment in study.experiments:
        mine = [run for variant in variants if variant.experiment == experiment for run in variant.runs()]
        if not mine:  # not wanted now
            continue
        print(f"  {experiment}: {sum(run in done or run in finished_in_work for run in mine)} of {len(mine)}")
    for run in sorted(active, key=lambda run: run.name):
        state = active[run]
        word = "running" if run in running else "interrupted"
        pace = state["wall_s"] / state["epoch"]
        print(
            f"  {word}: {run.name} epoch {state['epoch']}/{state['epochs']}, best in {state['best_epoch']}, "
            f"{pace:.1f} s/epoch"
        )
    print_holders(study.study)
    print_unclaimed()
    for run, why in stale.items():
        print(f"  stale: {run.name}: {why}")
    for warning in unlike(done.values()):
        print(f"  warning: {warning}")
    left = waiting - finished_in_work
    costs = cost.predict(found, study.judged)
    seconds = estimate_seconds(left, done, active, seconds_per_run(study, costs))
    if not left:
        print("  nothing left")
    elif seconds is None:
        print("  no estimate yet: no run has finished, and the steps were not measured")
    else:
        print(f"  about {seconds / 60 / jobs:.0f} minutes left with {jobs} job(s) at a time")
    print_costs(costs)


def print_holders(study: str) -> None:
    """Which process, and SLURM job, works on what of a study; of those whose workflow is gone, what to do."""
    folders = (Path(folder) for folder, _, _ in os.walk(study_work(study)))  # jobs that end meanwhile remove theirs
    found = {folder: held for folder in sorted(folders) if (held := holder_of(folder))}
    for folder, (holder, quiet) in found.items():
        sign = f"no sign of life for {quiet / 60:.0f} minutes" if quiet > EXPIRES else "at work"
        print(f"  held: {folder.relative_to(study_work(study))} by {holder}: {sign}")
    if left := sorted({one.stop_command for one in workflows.left_over(holder for holder, _ in found.values())}):
        print("  left over by a workflow that is gone; the next one waits until it ends. What ends it, saved:")
        for command in left:
            print(f"    {command}")


def print_unclaimed() -> None:
    """SLURM's jobs that wait to start in this folder, and no workflow is left to wait for them."""
    if (waiting := pending_jobs()) and not workflows.at_work():
        print("  not started yet, and their workflow is gone; the next one submits its own. What takes them back:")
        print(f"    scancel {' '.join(waiting)}")


def pending_jobs() -> list[str]:
    """SLURM jobs of a rule that wait to start in this folder; none where there is no SLURM, or it does not answer."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--states=PENDING", "--format=%A %k %Z"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    jobs = (line.split(" ", 2) for line in asked.stdout.splitlines())
    return [job for job, rule, folder in jobs if rule.startswith("rule_") and Path(folder).resolve() == Path.cwd()]


def _progress(run: Run) -> Path:
    return run.work / "progress.json"


def seconds_per_run(study: Study, costs: list[Cost]) -> dict[str, float]:
    """Predicted wall seconds of one run on the CPU, by experiment."""
    return {
        cost.experiment: 3600 * cost.core_hours / cost.runs / study.threads
        for cost in costs
        if cost.core_hours is not None
    }


def estimate_seconds(
    left: set[Run], done: dict[Run, dict], active: dict[Run, dict], predicted: dict[str, float]
) -> float | None:
    """Sum over the runs left: the mean wall time of the experiment's finished runs, else the predicted one.

    Experiments with neither take the mean of all finished runs; None if there is none.
    """
    by_experiment: dict[str, list[float]] = {}
    for run, record in done.items():
        by_experiment.setdefault(run.experiment, []).append(record["timing"]["wall_s"])
    known = predicted | {experiment: mean(times) for experiment, times in by_experiment.items()}
    everywhere = [seconds for times in by_experiment.values() for seconds in times]
    total = 0.0
    for run in left:
        if run.experiment not in known and not everywhere:
            return None
        expected = known[run.experiment] if run.experiment in known else mean(everywhere)
        total += max(0.0, expected - active.get(run, {"wall_s": 0.0})["wall_s"])
    return total


def print_costs(costs: list[Cost]) -> None:
    """A table of the experiments, and the machine that the prediction is for."""
    if not costs:
        return
    rows = [one.row() for one in costs]
    print(f"predicted cost of training and validation ({cost.machines()}):")
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    for row in [dict(zip(widths, widths)), *rows]:
        print("  " + "  ".join(row[column].ljust(width) for column, width in widths.items()).rstrip())
