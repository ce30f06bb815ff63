"""Small pieces the tests share: a tiny in-memory dataset, and a scratch copy of the project."""

from __future__ import annotations

import atexit
import compileall
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import programs
import pytest
import torch
from filelock import FileLock

from oscillations.engine import batches, forms
from oscillations.engine.method import Moment
from oscillations.engine.training import Trainer
from oscillations.jobs.networks import make_network
from oscillations.report.results import Report, Results
from oscillations.study.variants import recipe_of

ROOT = Path(__file__).resolve().parent.parent
# Programs that tests start import this checkout, whatever else may be installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
# Sums do not depend on how many cores a machine has, and tiny tensors do not wait for threads of a busy one.
torch.set_num_threads(1)


def at(share):
    """A step of a training so long that its beginning and its end are one share of it."""
    return Moment(share, share)


def reported(study, variants, measurements, oscillations=None):
    """A report of a study that has measured this."""
    tables = [measurements] if oscillations is None else [measurements, oscillations]
    return Report(study, variants, Results(study.study, *tables))


TINY = """\
study: tiny
title: A tiny study
note: For the tests.
published: miniature
data: digits
validation: 300
seeds: [0, 1]
training: {lr: 2.0e-3, batch_size: 64, epochs: 3, patience: 5}
experiments:
  mlp5-scratch:
    model: {name: mlp5, width: 16}
    setting: scratch
    histograms: fc2.weight
    methods:
      baseline:
      qat: {bits: 3}
      osciquant: {bits: [2, 3], lambda: 1}
  mlp5-lambda:
    model: {name: mlp5, width: 16}
    setting: sweep
    histograms: fc2.weight
    methods:
      osciquant: {bits: 3}
    sweep: {lambda: [0, 2]}
tables:
  table1: [mlp5-scratch]
  table4: [mlp5-lambda]
figures:
  figure1: {}
  figureA1: {}
  figureA5: {}
  figure2:
    layer: fc2.weight
    panels: [mlp5-scratch/qat-3bit, mlp5-lambda/osciquant-3bit-lambda0]
  figure3:
    panels: [mlp5-scratch/qat-3bit, mlp5-lambda/osciquant-3bit-lambda0]
  figure5: {experiments: [mlp5-lambda], bits: 3}
  figure6: {experiments: [mlp5-scratch, mlp5-lambda], bits: 3}
  figure7: {panels: [mlp5-scratch/osciquant-3bit]}
  figure7-qat: {panels: [mlp5-scratch/qat-3bit]}
  figure8: {panels: [mlp5-scratch/osciquant-ternary]}
  figure-film-mlp5:
    layer: fc2.weight
    panels: [mlp5-scratch/qat-3bit, mlp5-scratch/osciquant-3bit, mlp5-lambda/osciquant-3bit-lambda0]
rate_searches:
  mlp5-scratch: [mlp5-scratch]
comparisons:
  mlp5: {experiments: [mlp5-scratch]}
"""
_BEFORE, _FIGURES = TINY.split("figures:\n")
UNDRAWN = _BEFORE + _FIGURES[_FIGURES.index("rate_searches:") :]  # figures are half of a report's time


def pytest_xdist_auto_num_workers(config):
    """As many processes as this one may use cores, whatever the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def pytest_collection_modifyitems(config, items):
    """What needs the internet, or a cluster's time, runs only where it is asked for."""
    for marker, need in (("network", "the internet"), ("cluster", "a SLURM cluster and a folder that its nodes share")):
        if marker not in config.getoption("markexpr"):
            left_out = pytest.mark.skip(reason=f"needs {need}: pytest -m {marker}")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(left_out)


@pytest.fixture
def blobs():
    return blobs_dataset()


def blobs_dataset():
    """A dataset of two-dimensional blobs as ``datasets.read`` would return it: learnable, 8x8, four classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(480) % 4
    centres = torch.randint(40, 215, (4, 64), generator=generator)
    noise = torch.randint(-40, 40, (480, 64), generator=generator)
    images = (centres[labels] + noise).clamp(0, 255).to(torch.uint8).view(480, 1, 8, 8)
    about = {
        "name": "blobs", "train": 400, "test": 80, "classes": list("abcd"), "image_shape": [1, 8, 8],
        "mean": [0.5], "std": [0.25],
    }  # fmt: skip
    tensors = {
        "train_images": images[:400], "train_labels": labels[:400],
        "test_images": images[400:], "test_labels": labels[400:],
    }  # fmt: skip
    return about, tensors


@pytest.fixture
def recipe():
    return plain_recipe()


def plain_recipe():
    """A resolved recipe for the blobs; tests change what they are about."""
    return {
        "data": "digits", "validation": 80, "split_seed": 0, "images": None, "classes": None, "resize": None,
        "model": {"name": "mlp5", "width": 12}, "quant_layers": ["fc*"], "setting": "scratch", "start_from": None,
        "pretrained": None,
        "method": {"name": "baseline"}, "eval_bits": [32, 2, 3, 4, 8], "threads": 1,
        "training": {
            "optimizer": "adam", "lr": 2e-3, "batch_size": 32, "precision": "fp32", "epochs": 4, "patience": 3,
            "augment": "none", "schedule": "none",
        },
    }  # fmt: skip


def make_trainer(recipe, seed, about, sets, device, start=None):
    """The trainer of a plain recipe, such as the fixture's."""
    found = recipe_of(recipe)
    return Trainer(found, make_network(found, seed, about, device, start), sets, seed)


@pytest.fixture
def dense(monkeypatch):
    """What is made from here on has the forms for a device, on the CPU; calling it with False ends that."""

    def choose(on=True):
        monkeypatch.setattr(forms, "dense", lambda tensor: on)

    choose()
    return choose


def image_sets(about, tensors, recipe, device):
    """The image sets of a plain recipe."""
    return batches.image_sets(about, tensors, recipe_of(recipe), device)


def job_counts(output: str) -> dict[str, int]:
    """Jobs by rule, from the table that Snakemake prints."""
    rows = [line.split() for line in output.split("Job stats:")[1].split("\ntotal")[0].splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


@cache
def compiled_source() -> Path:
    """A copy of the source with its bytecode and the hashes of its parts, so that no scratch project makes them anew."""
    folder = Path(tempfile.mkdtemp(prefix="oscillations-source-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    compileall.compile_dir(folder / "src", quiet=1)
    hashes = "from oscillations.records import numerics; numerics.versions(numerics.parts())"
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    subprocess.run([sys.executable, "-c", hashes], env=environment, check=True)
    return folder / "src"


BUCKET = os.environ.get("OBJECT_STORE")  #: s3://BUCKET, to try what needs one; the client's AWS_ variables beside it
NEEDS_BUCKET = pytest.mark.skipif(
    not BUCKET, reason="no object store: OBJECT_STORE=s3://BUCKET, and the AWS_ variables"
)


class Project:
    """A scratch copy of the project: rules, sources, published numbers and one tiny study.

    Without ``drawn`` the study has no figures.
    """

    def __init__(self, folder: Path, drawn: bool = False):
        self.folder = folder
        shutil.copytree(compiled_source(), folder / "src")
        shutil.copytree(ROOT / "workflow", folder / "workflow")
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "profiles").symlink_to("workflow/profiles")
        (folder / "params").mkdir()
        shutil.copy(ROOT / "params/published.csv", folder / "params")
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs/choices.md", folder / "docs")
        (folder / "benchmarks/results").mkdir(parents=True)
        for name in ("cost.csv", "memory.csv"):
            shutil.copy(ROOT / "benchmarks/results" / name, folder / "benchmarks/results")
        (folder / "params/tiny.yaml").write_text(TINY if drawn else UNDRAWN)

    @classmethod
    def at(cls, folder: Path) -> Project:
        """The project that is in a folder already."""
        project = object.__new__(cls)
        project.folder = folder
        return project

    def environment(self) -> dict[str, str]:
        """Of its commands: none of the caller's settings."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSCILLATIONS_", "SNAKEMAKE_"))}
        return kept | {"PYTHONPATH": "src", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(self, *command: str, **options) -> subprocess.Popen:
        """``options``: of the process, instead of a pipe for all that it says."""
        options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        return subprocess.Popen(command, cwd=self.folder, env=self.environment(), **options)

    def finish(self, *command: str) -> tuple[int, str]:
        """Exit code and output of a command that ends by itself, or by its own hand."""
        return programs.run(command, self.folder, self.environment())

    def run(self, *command: str, ok: bool = True) -> str:
        code, output = self.finish(*command)
        assert (code == 0) == ok, output
        return output

    def cli(self, *arguments: str, ok: bool = True) -> str:
        return self.run(sys.executable, "-m", "oscillations", *arguments, ok=ok)

    def cli_apart(self, *arguments: str) -> str:
        """The same in an interpreter of its own, with a seed of hashes that no other command of the tests has."""
        process = self.start(sys.executable, "-m", "oscillations", *arguments)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def snakemake(self, *arguments: str, config: str = "", ok: bool = True) -> str:
        keys = ["--config", "study=tiny", *config.split()]
        return self.run("snakemake", "--cores", "2", *arguments, *keys, ok=ok)

    def planned(self, *arguments: str, config: str = "") -> dict[str, int]:
        """Jobs of a dry run by rule; empty if there is nothing to do."""
        output = self.snakemake("-n", *(arguments or ["all"]), config=config)
        if "Nothing to be done" in output:
            return {}
        return job_counts(output)

    def draw_nothing(self) -> None:
        """Leave the figures out of the tiny study."""
        (self.folder / "params/tiny.yaml").write_text(UNDRAWN)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory, worker_id):
    """A scratch project whose tiny study has run through the real rules; copy it before changing it.

    Processes that share the tests share it, too: the first one makes it.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    with FileLock(shared / "finished.lock"):
        folder = shared / "finished"
        if not folder.exists():
            Project(shared / "making", drawn=True).snakemake("all")
            (shared / "making").rename(folder)
    return Project.at(folder)


@pytest.fixture
def finished(finished_project, tmp_path):
    """A private copy of the finished project."""
    shutil.copytree(finished_project.folder, tmp_path / "copy")
    return Project.at(tmp_path / "copy")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Its programs, that do nothing: the executor only asks whether they exist."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "sacct", "squeue", "scancel", "sinfo"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
