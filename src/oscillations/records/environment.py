"""Where and with what a run was made, and whether the runs of a study were made with the same."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oscillations.study.paths import ROOT

if TYPE_CHECKING:
    import torch

    from oscillations.engine.recipe import Recipe

PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "snakemake", "dvc")
COMPUTING = ("torch", "torchvision", "timm")  #: another version of these may give other numbers


def environment(device: torch.device, recipe: Recipe) -> dict[str, Any]:
    """Where and with what a run was made."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "dtype": _dtype(recipe.training.precision, device),
        "threads": recipe.threads,
        "platform": platform.platform(),
        "git": git_state(),
    } | _slurm()


def _slurm() -> dict[str, Any]:
    """The SLURM job that a run was made in, and its node; nothing outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"slurm": {"job": job, "node": os.environ.get("SLURMD_NODENAME", "unknown")}} if job else {}


def processor() -> str:
    """The name of this machine's CPU."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _dtype(precision: str, device: torch.device) -> str:
    """What matrix products were computed in; a CPU has no TF32."""
    if precision == "tf32" and device.type == "cpu":
        return "float32"
    return {"fp32": "float32", "tf32": "float32 (TF32)", "bf16": "bfloat16"}[precision]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def git_state() -> dict[str, Any]:
    """The source's commit and whether tracked files differ from it, when first asked; empty outside its repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    if not (ROOT / "Snakefile").exists():  # installed, in whosever repository
        return {}
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "params", "workflow", "Snakefile")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def unlike(records: Iterable[dict[str, Any]]) -> list[str]:
    """What the records of a study should not mix, or hold, but do: a sentence each, for page, status and check."""
    records = list(records)
    found = [
        f"runs made with different versions of {package}: "
        + ", ".join(f"{used} ({count})" for used, count in sorted(counts.items()))
        for package in COMPUTING
        if len(counts := Counter(record["environment"]["packages"].get(package, "none") for record in records)) > 1
    ]
    dirty = sum(record["environment"]["git"].get("dirty", False) for record in records)
    return [*found, f"{dirty} of {len(records)} runs made in a tree with uncommitted changes"] if dirty else found
