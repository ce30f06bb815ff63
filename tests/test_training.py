"""The engine: early stopping (X1), determinism, resuming, divergence, and what is logged."""

import copy
import json
import math
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from conftest import image_sets, make_trainer
from timm.optim import param_groups_weight_decay
from torch.utils._python_dispatch import TorchDispatchMode

from oscillations import methods
from oscillations.engine.annealing import learning_rate
from oscillations.engine.batches import crop_flip, evenly, images_per_class, split_indices
from oscillations.engine.method import Moment
from oscillations.engine.optimizer import OPTIMIZERS, Adam, AdamW, weight_decays
from oscillations.engine.recipe import Training
from oscillations.engine.training import Trainer
from oscillations.jobs import resume, train

PARTS = ("train", "validation", "test")
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
    {"name": "kure", "bits": 3, "lambda": 0.1},
    {"name": "range-penalty", "bits": 3, "lambda": 0.01},
    {"name": "pseudo-noise", "bits": 3},
    {"name": "pseudo-noise", "bits": 2, "noise": "gaussian", "scale_grad": "detach"},
    {"name": "pseudo-noise", "bits": 3, "noise": "gaussian", "range": "minmax", "min_size": 100},
    {"name": "signed", "bits": 3, "preset": "paper_text", "lambda_start": 0.01, "lambda_end": -0.01, "shape": "step"},
    {"name": "osciquant", "bits": 3, "lambda": 1.0, "per_channel": True},
    {"name": "qat", "bits": 3, "per_channel": True, "scale_source": "mse", "scale_grad": "detach"},
    {"name": "lsq", "bits": 3},
    {"name": "lsq", "bits": 4, "grid": "lsq", "per_channel": True, "scale_init": "mse", "clip_order": "round_first"},
    {"name": "dual-lsq", "bits": 3},
    {"name": "dual-lsq", "bits": 4, "learnable": "pre", "per_channel": True, "scale_lr": 1e-3, "grad_scale": True},
    {"name": "parq", "bits": 3},
    {"name": "parq", "bits": 2, "map": "binary_relax", "anneal_start": 0.2, "scale_source": "mse"},
    {"name": "aoq", "bits": 2},
    {"name": "aoq", "bits": 4, "per_channel": True, "damp_target": "level", "damp_norm": "squared"},
    {"name": "statsq", "bits": 3},
    {"name": "cga", "bits": 3, "start": 0.5, "boundary": 0.05},
    {"name": "gradient-l1", "bits": 3, "share": 0.5},
    {"name": "ema", "bits": 3, "decay": 0.9, "warmup_steps": 10},
    {"name": "qc", "bits": 3, "start": 0.6},
    {"name": "trs", "bits": 3},
    {"name": "trs", "bits": 4, "optimizer": "sgd", "scope": "layer", "eta": 0.01, "per_channel": True},
    {"name": "q-ramping", "bits": 3, "period": 10, "window": 4, "alpha": 1.0},
    {"name": "bin-regularization", "bits": 3},
    {"name": "dampening", "bits": 3},
    {"name": "dampening", "bits": 2, "lambda": 0.01, "lambda_start": 0.01, "aggregation": "sum", "per_channel": True},
    {"name": "freezing", "bits": 3, "momentum": 0.1, "threshold_final": 0.05},
    {
        "name": "freezing", "bits": 4, "momentum": 0.1, "grid": "lsq", "per_channel": True, "start": 0.0,
        "target": "current", "scale_init": "lsq", "scale_lr": 1e-3,
    },
    {"name": "freezing", "bits": 2, "momentum": 0.1, "which": "low", "start": 0.5, "quantize_bias": True},
    {"name": "osciquant-freezing", "bits": 3, "lambda": 1.0, "momentum": 0.1, "threshold_start": 0.05, "start": 0.5},
    {"name": "osci-reset", "bits": 3, "start": 0.2, "window": 4, "period": 6, "tau": 1.0},
    {
        "name": "osci-reset", "bits": 4, "start": 0.1, "motion": "values", "window": 8, "period": 8, "tau": 1.0,
        "per_channel": True,
    },
    {"name": "osci-reset", "bits": 2, "start": 0.5, "rule": "bin_edge", "period": 3, "scale_source": "mse"},
    {"name": "q-ema", "bits": 3, "decay": 0.9},
    {"name": "q-ema", "bits": 2, "per_channel": True, "scale_source": "frozen_max", "tie": "half_up"},
    {
        "name": "osciquant-freezing", "bits": 2, "lambda": 0.1, "preset": "paper_text", "momentum": 0.1,
        "per_channel": True, "start": 0.3, "threshold_final": 0.1, "reg_curvature": "fisher_diag",
    },
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


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"augment": "crop_flip"}},
        {"training": {"optimizer": "sgd"}},
        {"training": {"optimizer": "sgd", "weight_decay": 0.01, "decay": "matrices", "schedule": "linear"}},
        {"training": {"weight_decay": 0.01, "schedule": "cosine", "warmup": 1.5}, "method": {"name": "qat", "bits": 3}},
        {
            "training": {"optimizer": "adamw", "weight_decay": 0.05, "schedule": "linear", "warmup": 0.25},
            "method": {"name": "aoq", "bits": 2},
        },
        {
            "training": {
                "optimizer": "adamw", "weight_decay": 0.05, "decay": "matrices", "schedule": "cosine", "warmup": 1,
                "warmup_start": 1e-6,
            },
            "method": {"name": "osciquant-freezing", "bits": 3, "lambda": 1.0, "momentum": 0.1, "start": 0.3},
        },
        {
            "model": {"name": "resnet18", "width": 8}, "quant_layers": ["*"],
            "method": {"name": "osciquant", "bits": 3, "lambda": 0.5, "reg_curvature": "fisher_diag"},
        },
        {"histograms": "fc2.weight", "method": {"name": "qat", "bits": 3}},
    ],
    ids=["augment", "sgd", "sgd-decay", "adam-decay", "adamw-aoq", "adamw-freezing", "convolutions", "histograms"],
)  # fmt: skip
def test_resuming_other_recipes_changes_nothing(recipe, blobs, changes, tmp_path):
    training = recipe["training"] | {"epochs": 2} | changes.get("training", {})
    recipe = recipe | changes | {"training": training}
    whole = run(trainer(recipe, blobs))
    assert whole.progress.history[-1]["train_loss"] < whole.progress.history[0]["train_loss"]
    first = trainer(recipe, blobs)
    for _, _ in zip(range(13), first.steps()):
        pass
    resume.save(tmp_path / "resume", first.state(), {})
    again = trainer(recipe, blobs)
    again.load_state(resume.load(tmp_path / "resume")[0])
    assert same_state(run(again), whole)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_checkpoint_evaluates_as_its_best_epoch_did(recipe, blobs, method):
    made = run(trainer(recipe, blobs, method=method))
    best = made.progress.history[made.progress.best_epoch - 1]
    again = trainer(recipe, blobs, method=method)
    again.network.load_trained(made.best)
    found = again.validate()
    assert {key: found[key] for key in found if key != "val_loss"} == {
        key: best[key] for key in found if key != "val_loss"
    }


def test_a_cosine_schedule_ends_at_no_step_at_all(recipe, blobs):
    rates = []
    made = trainer(recipe, blobs, training=recipe["training"] | {"schedule": "cosine"})
    run(made, lambda made: rates.append(made.optimizer.lr))
    steps = 4 * made.steps_per_epoch
    assert rates == [2e-3 * (1 + math.cos(math.pi * (i // 10 + i % 10 / 10) / 4)) / 2 for i in range(steps)]


def rates(epochs=10, steps=5, **options):
    """The learning rate of every step of a training."""
    training = Training(lr=1.0, batch_size=1, epochs=epochs, patience=epochs, **options)
    return [
        learning_rate(training, Moment(*((epoch + step / steps) / epochs for step in (done, done + 1))))
        for epoch in range(epochs) for done in range(steps)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "later"),
    [
        ("none", {10: 1, 20: 1, 30: 1, 49: 1}),
        ("linear", {10: 1, 11: 0.975, 20: 0.75, 30: 0.5, 49: 0.025}),
        ("cosine", {10: 1, 20: 0.8535533905932737, 30: 0.5, 40: 0.14644660940672627, 49: 0.0015413331334360182}),
    ],
)
def test_after_a_warm_up_the_schedule_takes_the_remaining_steps(schedule, later):
    """50 steps, 10 of them warm up: the first by a tenth, the last to the whole rate."""
    found = rates(schedule=schedule, warmup=2)
    assert found[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], rel=1e-12)
    assert {step: found[step] for step in later} == pytest.approx(later, rel=1e-12)
    assert found[9] == found[10] == 1


def test_a_warm_up_may_start_above_zero_and_end_within_an_epoch_or_a_step():
    risen = [1e-6 + (1 - 1e-6) * share for share in (0.25, 0.5, 0.75, 1.0)]
    assert rates(warmup=0.8, warmup_start=1e-6)[:4] == pytest.approx(risen, rel=1e-12)
    found = rates(schedule="linear", warmup=0.5)  # two steps and a half
    assert found[:3] == pytest.approx([0.4, 0.8, 1.0], rel=1e-12)
    assert found[3:] == pytest.approx([(50 - step) / 47.5 for step in range(3, 50)], rel=1e-12)
    for schedule in ("none", "cosine", "linear"):
        found = rates(epochs=3, steps=7, schedule=schedule, warmup=1.3)
        assert max(found) == 1 and min(found) > 0
        assert found == sorted(found[:10]) + sorted(found[10:], reverse=True)


def test_without_a_warm_up_schedules_begin_at_the_whole_rate():
    assert rates(schedule="none") == [1.0] * 50
    assert rates(schedule="linear") == pytest.approx([1 - step / 50 for step in range(50)], rel=1e-12)
    assert rates(schedule="cosine")[0] == 1


def test_a_training_follows_its_warm_up_and_schedule(recipe, blobs):
    found = []
    made = trainer(recipe, blobs, training=recipe["training"] | {"schedule": "linear", "warmup": 2})
    run(made, lambda made: found.append(made.optimizer.lr))
    expected = [*((i + 1) / 20 for i in range(20)), *(i / 20 for i in range(20, 0, -1))]
    assert found == pytest.approx([2e-3 * share for share in expected], rel=1e-12)


def test_every_method_of_the_project_is_trained_here():
    assert {method["name"] for method in METHODS} == set(methods.names())


def test_same_seed_same_bits_of_a_small_mobilenet(recipe, blobs):
    model = {"name": "mobilenetv2", "width": 0.1, "stem": "imagenet", "smallest": 4}
    changes = {"model": model, "quant_layers": ["*"], "training": recipe["training"] | {"epochs": 1}}
    first, second = (run(trainer(recipe, blobs, method={"name": "qat", "bits": 3}, **changes)) for _ in range(2))
    assert same_state(first, second)


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


def test_divergence_ends_the_run_and_says_so(recipe, blobs, monkeypatch):
    monkeypatch.setattr("oscillations.engine.training.learning_rate", lambda *_: 1e30)  # no study may say so
    made = trainer(recipe, blobs)
    run(made)
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


def counts(row):
    return np.array([value for key, value in row.items() if key not in ("epoch", "near_threshold")])


def test_histograms_are_those_of_the_weights_at_the_start_and_at_every_epoch(recipe, blobs):
    recipe |= {"histograms": "fc2.weight", "method": {"name": "osciquant", "bits": 3, "lambda": 1.0}}
    made = trainer(recipe, blobs)
    start = made.quantizer.position(1).numpy().copy()
    progress = run(made).progress
    first, *rest = progress.histograms
    assert [row["epoch"] for row in progress.histograms] == [0, *(row["epoch"] for row in progress.history)]
    assert [row["near_threshold"] for row in rest] == [
        row["near_threshold"] for row in progress.layers if row["layer"] == "fc2.weight"
    ]
    assert list(first)[:4] + list(first)[-1:] == ["epoch", "near_threshold", "-3", "-2.95", "3"] and "0" in first
    for row, weights in ((first, start), (rest[-1], made.quantizer.position(1).numpy())):
        edges = np.linspace(-3.025, 3.025, 122)
        expected, _ = np.histogram(weights.astype(float), edges)
        at_an_edge = (np.abs(weights.reshape(-1, 1) - edges) < 1e-5).sum()  # float32 may take either side
        assert np.abs(counts(row) - expected).sum() <= 2 * at_an_edge
        near = (np.abs(weights - np.floor(weights) - 0.5) < 0.05).mean()
        assert row["near_threshold"] == pytest.approx(near, abs=at_an_edge / weights.size)
    assert {counts(row).sum() for row in progress.histograms} == {start.size}


def test_histograms_change_nothing_else_and_a_baseline_has_none(recipe, blobs):
    recipe["method"] = {"name": "qat", "bits": 3}
    plain, recording = run(trainer(recipe, blobs)), run(trainer(recipe, blobs, histograms="fc2.weight"))
    assert plain.progress.histograms == [] and recording.progress.histograms
    recording.progress.histograms = []
    assert same_state(plain, recording)
    made = run(trainer(recipe, blobs, method={"name": "baseline"}, histograms="fc2.weight"))
    assert train.epoch_tables(made)["weights.csv"] == "epoch\n"
    assert "weights.csv" not in train.epoch_tables(plain)


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


def test_images_are_drawn_evenly_over_the_classes():
    labels = np.repeat([0, 1, 2, 7], [100, 3, 50, 40])  # sorted, as an image folder is
    per_class = {4: [1, 1, 1, 1], 30: [3, 9, 9, 9], 103: [3, 33, 33, 34], 150: [3, 40, 50, 57], 193: [3, 40, 50, 100]}
    for count, expected in per_class.items():
        drawn = evenly(labels, count, seed=0)
        assert (np.diff(drawn) > 0).all()
        assert sorted(np.bincount(labels[drawn])[[0, 1, 2, 7]]) == expected
    assert np.array_equal(evenly(labels, 1000, seed=0), np.arange(193))


def test_the_draw_is_a_function_of_the_seed_and_the_same_everywhere():
    labels = np.arange(40) // 10
    assert evenly(labels, 6, seed=0).tolist() == [2, 4, 10, 22, 35, 37]
    assert evenly(labels, 6, seed=1).tolist() != [2, 4, 10, 22, 35, 37]
    extra = {int(np.bincount(labels[evenly(labels, 5, seed)]).argmax()) for seed in range(40)}
    assert extra == {0, 1, 2, 3}  # which class gives one more is drawn, too


def test_a_slice_of_sorted_data_holds_every_class(recipe, blobs):
    """``images`` took the first ones: of a sorted test split, one class."""
    about, tensors = sorted_by_class(blobs)
    images = {"train": 41, "validation": 12, "test": 1000}
    sets = trainer(recipe, (about, tensors), images=images).sets
    counts = {part: images_per_class(found, 4) for part, found in sets.items()}
    assert sorted(counts["train"]) == [10, 10, 10, 11]
    assert counts["validation"] == [3, 3, 3, 3]
    assert counts["test"] == [20, 20, 20, 20]  # all, in their order
    assert torch.equal(sets["test"].images, tensors["test_images"])
    train = tensors["train_images"][split_indices(400, recipe["validation"], recipe["split_seed"])[0]]
    at = [(train == image).flatten(1).all(1).nonzero().item() for image in sets["train"].images]
    assert at == sorted(at)  # in the order of the split
    again = trainer(recipe, (about, tensors), images=images).sets
    assert all(torch.equal(again[part].images, found.images) for part, found in sets.items())


def test_a_slice_of_some_classes_is_even_over_them(recipe, blobs):
    sets = trainer(recipe, sorted_by_class(blobs), classes=[3, 1], images=dict.fromkeys(PARTS, 9)).sets
    assert all(sorted(images_per_class(sets[part], 2)) == [4, 5] for part in PARTS)


def sorted_by_class(blobs):
    """The blobs as an image folder holds them."""
    about, tensors = blobs
    order = {part: tensors[f"{part}_labels"].argsort(stable=True) for part in ("train", "test")}
    return about, {key: value[order[key.split("_")[0]]] for key, value in tensors.items()}


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


TORCHS = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=2e-3, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=2e-3, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=2e-3, momentum=0.9),
}
LAYERS = {"0.weight", "2.weight"}
SLOTS = {"mean": "exp_avg", "mean_square": "exp_avg_sq", "step": "step", "velocity": "momentum_buffer"}


def twins():
    """The same small network twice, with all kinds of parameters."""
    first = torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.LayerNorm(12), torch.nn.Linear(12, 4))
    return first, copy.deepcopy(first)


def step_both(recipe, blobs, pairs):
    """Train each network by its optimizer, at a rate that falls."""
    for number, (x, y) in enumerate(list(trainer(recipe, blobs).sets["train"].batches(32)) * 3):
        for network, optimizer in pairs:
            rate = 2e-3 / (1 + number)
            optimizer.lr = rate
            for group in getattr(optimizer, "param_groups", []):
                group["lr"] = rate
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x.flatten(1)), y).backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("weight_decay", "which", "decaying"),
    [(0.0, "all", {}), (0.1, "all", {"0.bias", "1.weight", "1.bias", "2.bias", *LAYERS}), (0.1, "matrices", LAYERS)],
    ids=["none", "all", "matrices"],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs_bit_for_bit(recipe, blobs, name, weight_decay, which, decaying):
    network, twin = twins()
    decays = weight_decays(network.named_parameters(), weight_decay, which)
    groups = [{"params": [p], "weight_decay": 0.1 if key in decaying else 0.0} for key, p in twin.named_parameters()]
    ours, torchs = OPTIMIZERS[name](network.parameters(), 2e-3, decays), TORCHS[name](groups)
    step_both(recipe, blobs, [(network, ours), (twin, torchs)])
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters()))
    for key, values in ours.slots().items():
        assert all(torch.equal(a, torchs.state[p][SLOTS[key]]) for a, p in zip(values, twin.parameters()))


def test_adamw_without_weight_decay_is_adam_bit_for_bit(recipe, blobs):
    network, twin = twins()
    step_both(recipe, blobs, [(network, AdamW(network.parameters(), 2e-3)), (twin, Adam(twin.parameters(), 2e-3))])
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050"])
def test_the_matrices_that_decay_are_those_of_timm(name):
    """DeiT's recipe is timm's."""
    model = timm.create_model(name, num_classes=4)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    _, decaying = param_groups_weight_decay(model, 0.05, no_weight_decay_list=spared)
    named = list(model.named_parameters())
    decays = weight_decays(named, 0.05, "matrices")
    assert {id(p) for p in decaying["params"]} == {id(p) for (_, p), decay in zip(named, decays) if decay == 0.05}
    assert set(decays) == {0.0, 0.05}


def test_crop_flip_gives_crops_of_the_padded_image_and_their_mirrors_evenly():
    torch.manual_seed(0)
    image = torch.arange(1.0, 28).view(1, 3, 3, 3)
    padded = torch.nn.functional.pad(image, (4,) * 4)[0]
    crops = [padded[:, top : top + 3, left : left + 3] for top in range(9) for left in range(9)]
    known = torch.stack([*crops, *(crop.flip(2) for crop in crops)])
    found = crop_flip(image.expand(20000, -1, -1, -1))
    assert found.shape == (20000, 3, 3, 3)
    shares = torch.tensor([(found == crop).flatten(1).all(1).double().mean() for crop in known])
    visible = known.flatten(1).any(1)  # crops of padding alone look the same
    assert (shares[visible] - 1 / 162).abs().max() < 0.002
    assert shares[visible].sum() + (found == 0).flatten(1).all(1).double().mean() == pytest.approx(1)


def test_adam_leaves_parameters_without_a_gradient_alone():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = Adam([unused, used], lr=0.1)
    used.sum().backward()
    optimizer.step()
    assert unused.tolist() == [1, 1, 1]
    assert used.tolist() == pytest.approx([0.9] * 3)
    assert [step.item() for step in optimizer.steps] == [0, 1]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_reads_no_value_on_the_host(recipe, blobs, method, dense):
    """On a device, reading a value makes the host wait for everything queued before it."""

    class Recorded(TorchDispatchMode):
        names: ClassVar[set] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    made = trainer(recipe, blobs, method=method)
    x, y = made.sets["train"].batch(slice(0, 32))
    with Recorded() as recorded:
        for epoch in (0, 1, 2, 3):  # all that a method does early and late
            made.progress.epoch = epoch
            made.step(x, y)
    assert {"mm", "_fused_adam_"} <= recorded.names
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item"}
    assert not recorded.names & waiting


@pytest.mark.parametrize("method", METHODS[1:5], ids=str)
def test_the_form_for_devices_trains_the_same(recipe, blobs, method, dense):
    """Up to rounding: the factor of the scale's gradient is a double on the CPU and a float on a device."""
    there = trainer(recipe, blobs, method=method)
    dense(False)
    here = trainer(recipe, blobs, method=method)
    for _, _, _ in zip(here.steps(), there.steps(), range(10)):
        for a, b in zip(here.model.parameters(), there.model.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(here.counters["iteration"].totals, there.counters["iteration"].totals)


def test_bfloat16_changes_the_products_and_not_the_weights_type(recipe, blobs):
    full = run(trainer(recipe, blobs))
    half = run(trainer(recipe, blobs, training=recipe["training"] | {"precision": "bf16"}))
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.progress.history[-1]["train_loss"] != full.progress.history[-1]["train_loss"]
    assert half.progress.history[-1]["train_loss"] == pytest.approx(full.progress.history[-1]["train_loss"], rel=0.2)
