"""Predicted costs: equal workloads, hand-computed hours, and silence where nothing was measured."""

import csv
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from oscillations.engine.recipe import ReducedSplits
from oscillations.records import cost
from oscillations.records.plans import plans
from oscillations.study import reading as studies
from oscillations.study.variants import select

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    return studies.load(ROOT / f"params/{name}.yaml")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """An empty project folder: no records, nothing measured."""
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)


def measured(rows):
    """Write a table of measured speeds: (variant, kind, milliseconds per step, per image)."""
    cost.COST.parent.mkdir(parents=True)
    with cost.COST.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["step_ms", "image_ms", "device_kind", "workload", "machine"])
        for variant, kind, step, image in rows:
            writer.writerow([step, image, kind, cost.workload(variant.recipe), "bench"])


def variant(variants, path):
    return next(found for found in variants if found.path == path)


def test_equal_workloads():
    _, paper = load("paper")
    _, jpeg = load("paper-jpeg")
    three, four = (variant(paper, f"mlp5-scratch/qat-{bits}bit") for bits in (3, 4))
    assert cost.workload(three.recipe) == cost.workload(four.recipe)  # bits cost nothing
    assert cost.workload(three.recipe) == cost.workload(variant(jpeg, "mlp5-scratch/qat-3bit").recipe)
    zero, some = (variant(paper, f"mlp5-lambda/osciquant-3bit-lambda{value}") for value in ("0", "0.25"))
    assert cost.workload(zero.recipe) != cost.workload(some.recipe)  # nothing is regularized
    others = ("mlp5-scratch/baseline", "mlp5-scratch/osciquant-3bit", "mlp5-scratch-papertext/osciquant-3bit")
    assert len({cost.workload(variant(paper, path).recipe) for path in others}) == 3


def test_an_epoch_is_its_steps_and_its_validation():
    _, variants = load("paper")
    seconds = cost.epoch_seconds(variants[0].recipe, cost.Speed("bench", 0.01, 0.0001))
    assert seconds == pytest.approx(313 * 0.01 + 5 * 10_000 * 0.0001)
    halved = replace(variants[0].recipe, classes=(0, 1, 2, 3, 4))
    assert cost.epoch_seconds(halved, cost.Speed("bench", 0.01, 0.0)) == pytest.approx(
        157 * 0.01
    )  # half of 40,000 images


def test_an_epoch_counts_only_the_images_that_are_drawn():
    _, variants = load("paper")
    drawn = replace(variants[0].recipe, images=ReducedSplits(train=1_000, validation=500, test=1))
    assert cost.epoch_seconds(drawn, cost.Speed("bench", 1.0, 0.01)) == pytest.approx(8 + 5 * 500 * 0.01)
    more = replace(drawn, classes=(0, 1), images=ReducedSplits(train=10_000, validation=5_000, test=1))
    every = replace(more, images=None)  # two classes have 8,000 and 2,000
    assert cost.epoch_seconds(more, cost.Speed("bench", 1.0, 0.01)) == pytest.approx(63 + 5 * 2_000 * 0.01)
    assert cost.epoch_seconds(every, cost.Speed("bench", 1.0, 0.01)) == pytest.approx(63 + 5 * 2_000 * 0.01)


@pytest.mark.parametrize("name", ["reduced", "reduced-jpeg"])
def test_an_evening_is_at_most_14_core_hours(name, monkeypatch):
    """Of the committed speeds; where nothing has run every run is taken to use all its epochs."""
    monkeypatch.chdir(ROOT)
    study, variants = load(name)
    assert sum(found.core_hours for found in cost.predict(plans(variants), study.judged)) <= 14


def test_hours_by_hand(scratch):
    study, variants = load("paper")
    chosen = select(study, variants, "mlp5-scratch/baseline,mlp5-lambda/osciquant-3bit-lambda0", "0,1").variants
    measured([(chosen[0], "cpu", 10.0, 0.1), (chosen[1], "cpu", 20.0, 0.1)])
    first, second = cost.predict(plans(chosen), study.judged)
    # the paper's best epochs: 14 for the baseline, 15 for 3-bit OsciQuant; patience 10; two seeds
    assert first.core_hours == pytest.approx(2 * 24 * (313 * 0.010 + 5.0) / 3600)
    assert second.core_hours == pytest.approx(2 * 25 * (313 * 0.020 + 5.0) / 3600)
    assert (first.gpu_hours, second.gpu_hours) == (None, None)
    assert first.row()["GPU-hours"] == "unmeasured"


def test_gpu_hours_come_from_a_measured_gpu_step_only(scratch):
    study, variants = load("paper")
    chosen = select(study, variants, "mlp5-scratch/baseline", "0").variants
    measured([(chosen[0], "cuda", 1.0, 0.001)])
    (predicted,) = cost.predict(plans(chosen), study.judged)
    assert predicted.core_hours is None
    assert predicted.gpu_hours == pytest.approx(24 * (313 * 0.001 + 0.05) / 3600)


def test_what_a_job_of_a_cluster_asks_for(scratch):
    _, variants = load("paper")
    mlp5, resnet = (variant(variants, f"{model}-scratch/qat-3bit").recipe for model in ("mlp5", "resnet18"))
    assert cost.job_memory_mb([mlp5]) == cost.job_memory_mb([mlp5], cost.export_footprint) == 4000  # unmeasured
    cost.MEMORY.parent.mkdir(parents=True)
    with cost.MEMORY.open("w", newline="") as out:
        csv.writer(out).writerows([["footprint", "peak_mb"], [cost.footprint(mlp5), 1000]])
    assert cost.job_memory_mb([mlp5]) == 1500
    assert cost.job_memory_mb([mlp5, resnet]) == 4000
    assert cost.job_memory_mb([mlp5], cost.export_footprint) == 3000  # twice a training's
    with cost.MEMORY.open("a", newline="") as out:
        csv.writer(out).writerow([cost.export_footprint(mlp5), 1100])
    assert cost.job_memory_mb([mlp5], cost.export_footprint) == 1650
    predicted = cost.Cost("mlp5-scratch", runs=10, core_hours=2.0)  # 12 core-minutes a run
    assert cost.job_minutes(predicted, 3, 1, gpu=False) == 10 + 3 * 3 * 12
    assert cost.job_minutes(predicted, 3, 2, gpu=False) == 10 + 3 * 3 * 6
    assert cost.job_minutes(replace(predicted, gpu_hours=None), 3, 1, gpu=True) == 720


def test_what_an_evaluation_asks_for(scratch):
    """As many images as CIFAR-10 has to train on, at the paper's widths, for each of five seeds."""
    _, variants = load("paper")
    two = [variant(variants, f"mlp5-scratch/{name}") for name in ("qat-3bit", "osciquant-3bit")]
    assert cost.evaluation_minutes(two, 1, gpu=False) == 240  # nothing was measured
    measured([(one, "cpu", 1.0, 0.25) for one in two])
    widths, seeds = len(two[0].recipe.eval_bits), len(two[0].seeds)
    seconds = 2 * widths * seeds * 50_000 * 0.25 / 1000
    assert cost.evaluation_minutes(two, 1, gpu=False) == 10 + math.ceil(seconds / 60)
    assert cost.evaluation_minutes(two, 3, gpu=False) == 10 + math.ceil(3 * seconds / 60)
    assert cost.evaluation_minutes(two, 100, gpu=False) == 1440
    assert cost.evaluation_minutes(two, 1, gpu=True) == 240


def test_what_a_post_training_asks_for(scratch):
    """Seven methods, four of which learn the rounding with 2,000 iterations for every unit; three seeds, one width."""
    study, variants = load("methods")
    entry, mine = study.posttraining["mlp5-ptq-qat"], [variant(variants, "mlp5-scratch/qat-3bit")]
    assert cost.posttraining_minutes(entry, mine, gpu=False) == 240  # nothing was measured
    measured([(mine[0], "cpu", 10.0, 0.25)])
    seconds = 3 * (7 * 50_000 * 0.25e-3 + 4 * 2000 * cost.RECONSTRUCTION * 0.01)
    assert cost.posttraining_minutes(entry, mine, gpu=False) == 10 + math.ceil(seconds / 60)
    assert cost.posttraining_minutes(entry, mine, gpu=True) == 240


def test_what_an_export_asks_for(scratch):
    study, variants = load("paper-jpeg")
    entry, mine = study.exports["mlp5-4bit"], [variant(variants, "mlp5-scratch/osciquant-4bit")]
    assert cost.export_minutes(entry, mine) == 240  # nothing was measured
    measured([(mine[0], "cpu", 10.0, 0.25)])
    seconds = 3 * (cost.EXPORT_SECONDS + cost.EXPORT_PASSES * (1 + 4) * 50_000 * 0.25e-3)  # of its five seeds three
    assert cost.export_minutes(entry, mine) == 10 + math.ceil(seconds / 60)


def test_the_memory_of_other_jobs_is_measured_for_itself(scratch):
    study, variants = load("methods-quick")
    recipe = variant(variants, "mlp5-scratch/baseline").recipe
    weights, inputs, nearest = (
        cost.posttraining_footprint(recipe, study.posttraining[f"mlp5-{name}"])
        for name in ("ptq", "ptq-w3a3", "learned-scales")
    )
    assert len({weights, inputs, nearest, cost.export_footprint(recipe), cost.footprint(recipe)}) == 5


def test_a_footprint_is_that_of_data_model_and_batch():
    _, variants = load("paper")
    three, baseline = (variant(variants, f"mlp5-scratch/{name}") for name in ("qat-3bit", "baseline"))
    assert cost.footprint(three.recipe) == cost.footprint(baseline.recipe)
    halved = replace(three.recipe, classes=(0, 1, 2, 3, 4))
    assert cost.footprint(halved) != cost.footprint(three.recipe)


def test_a_part_that_was_not_measured_leaves_the_whole_unmeasured(scratch):
    study, variants = load("paper")
    chosen = select(study, variants, "mlp5-scratch", None).variants
    measured([(chosen[0], "cpu", 10.0, 0.1)])
    assert [found.core_hours for found in cost.predict(plans(chosen), study.judged)] == [None]


def test_miniatures_do_not_take_the_papers_epochs(scratch):
    study, variants = load("quick")
    every = plans(variants)
    limits = Counter()
    for plan in every:
        limits[plan.variant.experiment] += plan.variant.recipe.training.epochs
    for found in cost.predict(every, study.judged):
        assert found.sources == ("limit",)
        assert found.epochs == limits.pop(found.experiment)
    assert not limits


def test_check_and_status_print_the_cost(scratch, capsys):
    from oscillations.cli import main

    for command in ("check", "status"):
        assert main([command, "--study", "params/paper.yaml"]) == 0
        printed = capsys.readouterr().out
        assert "nothing measured yet" in printed
        assert "mlp5-scratch-papertext" in printed
        assert "unmeasured" in printed
