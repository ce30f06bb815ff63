"""The workflow in a folder that is not its clone: with ``-d``, and as a module of another workflow."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import programs
import pytest
from conftest import Project, job_counts

pytestmark = pytest.mark.slow

OWN = """\
study: own
title: A study of one's own
note: Not in the clone.
published: miniature
data: digits
validation: 300
seeds: [0]
training: {lr: 2.0e-3, batch_size: 64, epochs: 1, patience: 5}
experiments:
  mlp5-scratch:
    model: {name: mlp5, width: 16}
    setting: scratch
    methods: {baseline: , osciquant: {bits: 3, lambda: 1}}
tables: {table1: [mlp5-scratch]}
"""
MODULE = """\
configfile: "config.yaml"


module osci:
    snakefile: "{clone}/Snakefile"
    config: config["osci"]


use rule * from osci as osci_*


rule count:
    default_target: True
    input:
        "data/digits.json",
    output:
        "count.txt",
    shell:
        "wc -l < {{input}} > {{output}}"


onsuccess:
    osci.onsuccess()


print("rules that stay here:", *sorted(workflow._localrules))
"""


@pytest.fixture
def clone(tmp_path):
    """The project, in which nothing may be written."""
    project = Project(tmp_path / "clone")
    (project.folder / "params/tiny.yaml").unlink()
    return project


@pytest.fixture
def folder(tmp_path):
    """A working folder with one study."""
    (tmp_path / "mine/params").mkdir(parents=True)
    (tmp_path / "mine/params/own.yaml").write_text(OWN)
    return tmp_path / "mine"


def snakemake(folder: Path, *arguments: str) -> str:
    """Of this interpreter, which finds the source by the workflow alone."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    code, output = programs.run(("snakemake", "--cores", "1", *arguments), folder, environment)
    assert code == 0, output
    return output


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file()}


def test_another_working_folder(clone, folder, tmp_path):
    """All that is made lies there, all that ships is found, and the second command has nothing to do."""
    before = files(clone.folder)
    command = ["-s", str(clone.folder / "Snakefile"), "-d", str(folder), "all", "--config", "study=own"]
    snakemake(tmp_path, *command)
    assert not list(folder.glob(".snakemake/workflows/*.json"))
    for name in ("index.html", "tables/table1.csv", "provenance.json", "runs/mlp5-scratch/baseline/seed0/run.json"):
        assert (folder / "results/own" / name).stat().st_size > 0, name
    assert ",51.43," in (folder / "results/own/agreement.csv").read_text()  # a published number
    assert "Nothing to be done" in snakemake(tmp_path, "-n", *command)
    shutil.rmtree(folder / ".snakemake")  # as in a clone of the folder: the records came with the results
    assert "Nothing to be done" in snakemake(tmp_path, "-n", *command)
    assert files(clone.folder) == before


def test_a_module_of_another_workflow(clone, folder):
    """Its rules make what the other workflow asks for, under the names and with the options that this gives them."""
    before = files(clone.folder)
    (folder / "Snakefile").write_text(MODULE.format(clone=clone.folder))
    (folder / "config.yaml").write_text(json.dumps({"osci": {"study": "own", "only": "mlp5-scratch/baseline"}}))
    snakemake(folder)
    assert int((folder / "count.txt").read_text()) > 1
    output = snakemake(folder, "-n", "osci_all")
    planned, (local,) = job_counts(output), re.findall("rules that stay here: (.*)", output)
    assert {"osci_fetch", "osci_weights", "osci_collect", "osci_site", "osci_all"} <= set(local.split())
    assert not {"osci_train_mlp5_scratch", "osci_evaluate", "osci_posttrain", "osci_export"} & set(local.split())
    assert planned["osci_train_mlp5_scratch"] == planned["osci_site"] == 1
    assert "osci_fetch" not in planned
    assert files(clone.folder) == before
