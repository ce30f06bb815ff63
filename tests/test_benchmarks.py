"""That benchmarks run: what they measure is the machine's."""

import csv
import shutil
import sys

import common
import cost
import device
import pytest
import targets
import torch
from conftest import ROOT


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Rows of the only table that a benchmark writes."""

    def run(benchmark, arguments):
        monkeypatch.setattr(common, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *arguments.split()])
        benchmark.main()
        (table,) = tmp_path.iterdir()
        with table.open(newline="") as file:
            return list(csv.DictReader(file))

    return run


@pytest.mark.slow
def test_what_a_gpu_will_be_measured_by_runs_on_a_cpu(measured):
    small = "--device cpu --models mlp5 --precision fp32 --runs 1 2 --rounds 1 --steps 2 --batch-size 8"
    rows = measured(device, small)
    forms = [(row["method"], row["form"], row["runs"]) for row in rows]
    assert forms == [
        ("fp", "ours", "1"), ("fp", "ours", "2"), ("fp", "naive", "1"), ("fp", "bare", "1"),
        *((method, *form) for method in device.COMPARED[1:] for form in (("ours", "1"), ("ours", "2"), ("naive", "1"))),
    ]  # fmt: skip
    assert len({row["floor_ms"] for row in rows}) == 1
    assert all(float(row["ms_per_run_and_step"]) > 0 and float(row["floor_ms"]) > 0 for row in rows)


def test_the_floor_of_a_step_is_its_arithmetic_or_its_traffic():
    """A linear layer's 6 operations a weight and image, but for the input's gradient; 8 float32 numbers a weight."""
    layer, x, y = torch.nn.Linear(20, 5, bias=False), torch.rand(4, 20), torch.zeros(4, dtype=torch.int64)
    assert device.floor(layer, x, y, operations=1.0, bandwidth=float("inf")) == 4 * 100 * 4
    assert device.floor(layer, x, y, operations=float("inf"), bandwidth=1.0) == 100 * 8 * 4


@pytest.mark.slow
def test_predictions_are_compared_with_the_runs_that_there_are(measured, monkeypatch):
    monkeypatch.chdir(ROOT)
    *rows, total = measured(cost, "--check paper-jpeg")
    assert len(rows) > 20 and total["variant"] == "all"
    assert 0.5 < float(total["ratio"]) < 2


def test_targets_stand_beside_what_the_tables_say(tmp_path, monkeypatch):
    shutil.copytree(targets.RESULTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "targets.md").unlink()
    monkeypatch.setattr(targets, "RESULTS", tmp_path)
    targets.main()
    assert (tmp_path / "targets.md").read_bytes() == (ROOT / "benchmarks/results/targets.md").read_bytes()
