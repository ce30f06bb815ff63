"""The engine: early stopping (X1), determinism, resuming, divergence, and what is logged."""

import json

import pytest
import torch

from oscillations import resume
from oscillations.batches import image_sets
from oscillations.training import Trainer, make_trainer

METHODS = [
    {"name": "baseline"},
    {"name": "qat", "bits": 2, "scale_grad": "detach"},
    {"name": "qat", "bits": 3},
    {"name": "qat", "bits": 4, "quantize_bias": True},
    {"name": "osciquant", "bits": 2, "lambda": 1.0},
    {"name": "osciquant", "bits": 3, "lambda": 0.01, "preset": "paper_text"},
    {"name": "osciquant", "bits": 3, "lambda": 0.5, "reg_curvature": "fisher_diag", "lambda_schedule": "cosine"},
    {"name": "osciquant", "bits": 3, "lambda": 0.5, "reg_when": "always", "train_forward": "fake_quant"},
    {
        "name": "osciquant", "bits": 3, "lambda": 0.5, "preset": "custom", "reg_reduction": "global_mean",
        "reg_half": False, "scale_grad": "detach", "scale_source": "frozen_max", "select_metric": "mean_over_bits",
    },
    {"name": "qat", "bits": 3, "scale_grad": "detach", "scale_source": "mse", "tie": "half_up"},
]  # fmt: skip


def trainer(recipe, blobs, seed=0, **changes) -> Trainer:
    recipe, (about, tensors), cpu = recipe | changes, blobs, torch.device("cpu")
    return make_trainer(recipe, seed, about, image_sets(about, tensors, recipe, cpu), cpu)


def run(made, after_step=lambda trainer: None):
    for epoch_ended in made.steps():
        if not epoch_ended:
            after_step(made)
    return made


def same_state(a, b):
    first, second = a.state(), b.state()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_trains(recipe, blobs, method):
    made = run(trainer(recipe, blobs, method=method))
    losses = [row["train_loss"] for row in made.progress.history]
    assert made.progress.status == "done"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resuming_at_any_step_changes_nothing(recipe, blobs, method, tmp_path):
    whole = run(trainer(recipe, blobs, method=method))
    file = tmp_path / "resume"
    for stop_at in (1, 7, 10, 25):
        steps = 0

        def stop(made, stop_at=stop_at):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                resume.save(file, made.state(), {})
                raise InterruptedError

        with pytest.raises(InterruptedError):
            run(trainer(recipe, blobs, method=method), stop)
        again = trainer(recipe, blobs, method=method)
        again.load_state(resume.load(file)[0])
        assert same_state(run(again), whole), stop_at


def test_same_seed_same_bits_other_seed_others(recipe, blobs):
    first, second = (run(trainer(recipe, blobs)) for _ in range(2))
    assert same_state(first, second)
    other = run(trainer(recipe, blobs, seed=1))
    assert not same_state(first, other)


def test_methods_share_initial_weights_and_order(recipe, blobs):
    made = [trainer(recipe, blobs, method=method) for method in METHODS[:5]]
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0].model.parameters(), other.model.parameters()))
        assert torch.equal(made[0].sets["train"].order(0, 3), other.sets["train"].order(0, 3))


def test_lambda_zero_trains_the_baseline(recipe, blobs):
    recipe["training"]["patience"] = 10
    baseline = run(trainer(recipe, blobs))
    zero = run(trainer(recipe, blobs, method={"name": "osciquant", "bits": 3, "lambda": 0.0}))
    assert all(torch.equal(a, b) for a, b in zip(baseline.model.parameters(), zero.model.parameters()))


def test_x1_early_stopping_logs_and_restores_the_best_epoch(recipe, blobs, monkeypatch):
    recipe["training"] |= {"epochs": 20, "patience": 3}
    made = trainer(recipe, blobs)
    metrics = iter([10.0, 30.0, 20.0, 30.0, 25.0, 99.0])  # an equal value is no improvement
    weights = {}

    def monitored(row):
        weights[row["epoch"]] = made.model.fc1.weight.detach().clone()
        return next(metrics)

    monkeypatch.setattr(made, "monitored", monitored)
    run(made)
    assert made.progress.best_epoch == 2
    assert made.progress.best_metric == 30.0
    assert made.progress.epoch == 5
    assert torch.equal(made.best["fc1.weight"], weights[2])


def test_x1_stops_at_the_last_epoch(recipe, blobs):
    made = run(trainer(recipe, blobs, training=recipe["training"] | {"epochs": 2}))
    assert (made.progress.epoch, made.progress.status) == (2, "done")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "baseline"}, "val_acc_32"),
        ({"name": "qat", "bits": 3}, "val_acc_3"),
        ({"name": "osciquant", "bits": 2, "lambda": 1.0}, "val_acc_2"),
        ({"name": "osciquant", "bits": 2, "lambda": 1.0, "select_metric": "fp_val"}, "val_acc_32"),
    ],
)
def test_monitored_metric(recipe, blobs, method, expected):
    row = run(trainer(recipe, blobs, method=method)).progress.history[-1]
    assert row["monitored"] == row[expected]


def test_divergence_ends_the_run_and_says_so(recipe, blobs):
    made = run(trainer(recipe, blobs, training=recipe["training"] | {"lr": 1e30}))
    assert made.progress.status == "diverged"
    assert made.progress.epoch < 4


def test_history_counts_what_the_codes_did(recipe, blobs):
    """Counters over a run equal a recount from the recorded codes of every step and epoch."""
    made = trainer(recipe, blobs, method={"name": "qat", "bits": 3})
    steps, epochs = [made.quantizer.codes.clone()], [made.quantizer.codes.clone()]
    for epoch_ended in made.steps():
        (epochs if epoch_ended else steps).append(made.quantizer.codes.clone())
    last = made.progress.history[-1]
    for level, codes in (("iteration", steps), ("epoch", epochs)):
        changes = torch.stack(codes).short().diff(dim=0)
        assert last[f"{level}_crossings"] == (changes != 0).sum()
        assert last[f"{level}_levels"] == changes.abs().sum()
    assert last["iteration_crossings"] > 0


def test_layer_statistics_are_those_of_the_weights(recipe, blobs):
    made = run(trainer(recipe, blobs, method={"name": "osciquant", "bits": 3, "lambda": 1.0}))
    row = next(r for r in made.progress.layers if r["layer"] == "fc1.weight" and r["epoch"] == made.progress.epoch)
    weight = made.model.fc1.weight.detach().double()
    assert row["max_over_std"] == pytest.approx((weight.abs().max() / weight.std(correction=0)).item())
    u = weight / (weight.abs().max() / 3)
    assert row["error"] == pytest.approx((u.round() - u).abs().mean().item(), rel=1e-5)
    assert row["near_threshold"] == pytest.approx(((u - u.floor() - 0.5).abs() < 0.05).double().mean().item(), abs=1e-3)
    assert sum(map(float, row["level_shares"].split())) == pytest.approx(1, abs=1e-3)


def test_frozen_scale_is_the_initial_weights(recipe, blobs):
    method = {"name": "qat", "bits": 3, "scale_grad": "detach", "scale_source": "frozen_max"}
    made = trainer(recipe, blobs, method=method)
    scales = [scale.clone() for scale in made.quantizer.scales]
    run(made)
    assert scales == made.quantizer.scales


def test_class_subset_is_renumbered(recipe, blobs):
    made = trainer(recipe, blobs, classes=[1, 3])
    assert made.sets["test"].labels.unique().tolist() == [0, 1]
    assert len(made.sets["test"]) == 40
    assert made.model.fc6.out_features == 2


def test_split_is_fixed_and_disjoint(recipe, blobs):
    sets = trainer(recipe, blobs).sets
    assert (len(sets["train"]), len(sets["validation"]), len(sets["test"])) == (320, 80, 80)
    train = {image.numpy().tobytes() for image in sets["train"].images}
    assert not train & {image.numpy().tobytes() for image in sets["validation"].images}


def test_images_are_normalised(recipe, blobs):
    made = trainer(recipe, blobs)
    x, _ = made.sets["train"].batch(torch.arange(5))
    expected = (made.sets["train"].images[:5].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(x, expected)


def test_resize_upsamples(recipe, blobs):
    made = trainer(recipe, blobs, resize=16)
    assert made.sets["test"].batch(torch.arange(2))[0].shape == (2, 1, 16, 16)


def test_resume_file_detects_damage(tmp_path):
    file = tmp_path / "resume"
    resume.save(file, {"w": torch.arange(4.0)}, {"epoch": 3})
    state, about = resume.load(file)
    assert (state["w"].tolist(), about) == ([0, 1, 2, 3], {"epoch": 3})
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert resume.load(file) is None
    file.write_bytes(content[: len(content) // 2])
    assert resume.load(file) is None


def test_progress_survives_json(recipe, blobs):
    made = run(trainer(recipe, blobs, method=METHODS[4]))
    assert json.loads(json.dumps(vars(made.progress))) == vars(made.progress)
