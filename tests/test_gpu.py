"""What only a CUDA device can show: ``pytest -m gpu``."""

import device
import pytest
import torch
from conftest import image_sets, make_trainer
from test_training import METHODS as ALL_METHODS

from oscillations.engine.counters import counter
from oscillations.engine.determinism import set_up_torch
from oscillations.jobs.turns import in_turns

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
WATCHED = (
    "baseline", "qat", "osciquant", "pseudo-noise", "parq", "dual-lsq", "osci-reset", "q-ema", "trs", "q-ramping",
)  # fmt: skip
METHODS = [method for method in ALL_METHODS if method["name"] in WATCHED]


def trainer(recipe, blobs, seed=0, **changes):
    recipe, (about, tensors) = recipe | changes, blobs
    device = set_up_torch(recipe["threads"], recipe["training"]["precision"], "cuda")
    return make_trainer(recipe, seed, about, image_sets(about, tensors, recipe, device), device)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_host_never_waits_within_an_epoch(recipe, blobs, method):
    steps = trainer(recipe, blobs, method=method).steps()
    next(steps)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_runs_at_once_equal_single_runs(recipe, blobs, method):
    """The stated tolerance of runs that share a device: 1e-5, relative to the largest weight of a tensor."""

    def train(at_once):
        made = {}

        def task(seed):
            made[seed] = trainer(recipe, blobs, seed=seed, method=method)
            for _ in made[seed].steps():
                yield

        in_turns([task(seed) for seed in range(3)], at_once, torch.device("cuda"))
        torch.cuda.synchronize()
        return made

    single, together = train(1), train(3)
    for seed, alone in single.items():
        for a, b in zip(alone.model.parameters(), together[seed].model.parameters()):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_can_be_a_graph(recipe, blobs, method):
    """What benchmarks/device.py measures: nothing in a step asks the host, but the clocks that stand still."""
    device.replayed([trainer(recipe, blobs, method=method)], 32, 3, torch.device("cuda"))()
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_precision_trains(recipe, blobs, precision):
    made = trainer(recipe, blobs, training=recipe["training"] | {"precision": precision})
    list(made.steps())
    losses = [row["train_loss"] for row in made.progress.history]
    assert made.progress.status == "done"
    assert losses[-1] < losses[0]


def test_the_counter_counts_as_on_the_cpu():
    codes = torch.randint(-3, 4, (50, 300), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    here, there = (counter(codes[0].to(device), [100, 200]) for device in ("cpu", "cuda"))
    for row in codes[1:]:
        here.tick(row)
        there.tick(row.cuda())
    assert torch.equal(here.totals, there.totals.cpu())
    assert torch.equal(here.run, there.run.cpu())
