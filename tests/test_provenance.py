"""What a record says of where its run was made."""

import torch
from conftest import plain_recipe

from oscillations.records.environment import environment
from oscillations.study.variants import recipe_of


def test_a_record_names_its_slurm_job(monkeypatch):
    cpu, recipe = torch.device("cpu"), recipe_of(plain_recipe())
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "slurm" not in environment(cpu, recipe)
    for name, value in {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n3"}.items():
        monkeypatch.setenv(name, value)
    assert environment(cpu, recipe)["slurm"] == {"job": "17", "node": "n3"}
