"""That benchmarks run: what they measure is the machine's."""

import csv
import shutil
import sys
from contextlib import suppress
from functools import partial

import common
import cost
import device
import pytest
import targets
import torch
from conftest import ROOT

SMALL = "--device cpu --models mlp5 --precision fp32 --runs 1 2 --rounds 1 --steps 2 --batch-size 8"
MLP5, RESNET18 = {"name": "mlp5", "width": 16}, {"name": "resnet18", "width": 8}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Rows of the only table that a benchmark writes."""

    def run(benchmark, arguments):
        monkeypatch.setattr(common, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *arguments.split()])
        with suppress(KeyboardInterrupt):
            benchmark.main()
        (table,) = tmp_path.iterdir()
        with table.open(newline="") as file:
            return list(csv.DictReader(file))

    return run


@pytest.mark.slow
def test_what_a_gpu_will_be_measured_by_runs_on_a_cpu(measured):
    rows = measured(device, SMALL)
    forms = [(row["method"], row["form"], row["runs"]) for row in rows]
    assert forms == [
        ("fp", "ours", "1"), ("fp", "ours", "2"), ("fp", "naive", "1"), ("fp", "bare", "1"),
        *((method, *form) for method in device.COMPARED[1:] for form in (("ours", "1"), ("ours", "2"), ("naive", "1"))),
    ]  # fmt: skip
    assert len({row["floor_ms"] for row in rows}) == 1
    assert all(float(row["ms_per_run_and_step"]) > 0 and float(row["floor_ms"]) > 0 for row in rows)


@pytest.fixture
def measure(monkeypatch):
    """Rows of a small model, at given speeds of the device, which take most of the time."""
    monkeypatch.setattr(device, "speeds", lambda *_: (1e12, 1e11))
    return partial(device.measure, precision="fp32", kind="cpu", rounds=1, steps=2, batch_size=8)


def test_a_row_is_written_as_soon_as_it_is_measured(measure, measured, monkeypatch):
    def leave(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(device.NaiveTrainer, "step", leave)
    assert [(row["form"], row["runs"]) for row in measured(device, SMALL)] == [("ours", "1"), ("ours", "2")]


@pytest.mark.slow
def test_a_convolutional_network_is_measured_alike(measure):
    rows = list(measure(RESNET18, runs=[2], graphs=False))
    assert [row["form"] for row in rows] == ["ours", "naive", "bare", "ours", "naive", "ours", "naive"]
    assert all(row["ms_per_run_and_step"] > 0 and not row["note"] for row in rows)


@pytest.mark.slow
def test_what_cannot_be_measured_says_why_and_the_rest_goes_on(measure, monkeypatch):
    """Two runs at once have no room after a few steps, and the obvious form of one method does not run at all."""

    def make_trainer(recipe, seed, *others):
        trainer = common.make_trainer(recipe, seed, *others)
        if seed == 1:
            steps = iter([trainer.step] * 3)
            trainer.step = lambda *batch: next(steps, no_room)(*batch)
        return trainer

    def no_room(*batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    def step(trainer, x, y, step=device.NaiveTrainer.step):
        if trainer.method == "qat":
            raise RuntimeError("no kernel image is available\nfor execution on the device")
        step(trainer, x, y)

    monkeypatch.setattr(device, "make_trainer", make_trainer)
    monkeypatch.setattr(device.NaiveTrainer, "step", step)
    notes, numbers = {}, {}
    for row in measure(MLP5, runs=[1, 2, 1], graphs=False):
        key = (row["method"], row["form"], row["runs"])
        notes[key], numbers[key] = row["note"], row["ms_per_run_and_step"]
    assert len(notes) == 10
    for key in notes:
        if key[2] == 2:
            assert (notes[key], numbers[key]) == ("out of memory", "")
        elif key == ("qat flow", "naive", 1):
            assert (notes[key], numbers[key]) == ("no kernel image is available", "")
        else:
            assert not notes[key] and numbers[key] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there a step can be a graph")
def test_a_step_that_cannot_be_a_graph_is_measured_through_the_compiler(measure, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # takes seconds, not a minute
    made = {}

    def make_trainer(recipe, seed, *others):
        trainer = common.make_trainer(recipe, seed, *others)
        made.setdefault(recipe.method.name, []).append(trainer)
        return trainer

    monkeypatch.setattr(device, "make_trainer", make_trainer)
    rows = list(measure(MLP5, runs=[1], graphs=True))
    forms = ["ours, one batch", "ours, one batch, as a graph", "ours, one batch, compiled"]
    assert [row["form"] for row in rows] == forms * 3
    for row in rows:
        assert bool(row["note"]) == (row["ms_per_run_and_step"] == "") == ("graph" in row["form"])
    for plain, _, through_compiler in made.values():
        assert isinstance(through_compiler.model, torch._dynamo.OptimizedModule)
        weights = zip(plain.network.parameters, through_compiler.network.parameters)
        assert all(torch.equal(a, b) for a, b in weights), "the same steps"


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
