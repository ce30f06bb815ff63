"""Where results are from: what a record says of that, and Snakemake's own records, which travel with them."""

import json
import os

import torch
from conftest import plain_recipe

from oscillations.core.files import SEAL
from oscillations.records.environment import environment
from oscillations.study.variants import recipe_of


def test_a_record_names_its_slurm_job(monkeypatch):
    cpu, recipe = torch.device("cpu"), recipe_of(plain_recipe())
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "slurm" not in environment(cpu, recipe)
    for name, value in {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n3"}.items():
        monkeypatch.setenv(name, value)
    assert environment(cpu, recipe)["slurm"] == {"job": "17", "node": "n3"}


def test_what_a_workflow_killed_at_its_very_end_has_not_saved_is_saved_by_the_next_which_has_nothing_to_do(finished):
    file = finished.folder / "results/tiny/provenance.json"
    whole = file.read_text()
    kept = {
        output: record for output, record in json.loads(whole).items() if output != SEAL and "index.html" not in output
    }
    file.write_text(json.dumps(kept))
    os.utime(file, (0, 0))
    assert finished.planned() == {}
    assert json.loads(file.read_text()) == json.loads(whole)
    saved, record = file.stat().st_mtime_ns, max(finished.folder.glob(".snakemake/metadata/*"), key=os.path.getmtime)
    record.write_text("{")  # killed while it was written
    assert finished.planned() == {} and file.stat().st_mtime_ns == saved  # and then no more


def test_the_last_job_leaves_the_page_over_all_studies(finished):
    pages = [finished.folder / "results" / name for name in ("index.html", "README.md")]
    before = [page.read_text() for page in pages]
    for page in pages:
        page.unlink()
    finished.cli("site", "--study", "tiny")
    assert [page.read_text() for page in pages] == before
