"""Hypotheses of a study file: every measure and contrast on made-up runs of known answers, also of a reference."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from oscillations.core.errors import InputError
from oscillations.report.claims import hypotheses
from oscillations.report.results import Report
from oscillations.study import reading as studies

PARAMS = Path(__file__).parent.parent / "params"
STUDY = """\
study: own
title: Own
note: For the tests.
published: miniature
data: digits
validation: 300
seeds: [0, 1, 2]
reference: other
training: {lr: 2.0e-3, batch_size: 64, epochs: 3, patience: 5}
experiments:
  a:
    model: {name: mlp5, width: 16}
    setting: scratch
    methods: {baseline: , qat: {bits: [2, 3]}}
"""
OTHER = STUDY.replace("study: own", "study: other").replace("reference: other\n", "").replace("  a:\n", "  b:\n")
OTHER += "fitted: [[mlp5, scratch, ptq, 2]]\n"


def measured(study, path, accuracy, best_epoch=2, bits=3, bn="keep", train_bits=3):
    """One test accuracy per seed."""
    experiment, variant = path.split("/")
    return [
        {
            "experiment": experiment, "variant": variant, "seed": seed, "split": "test", "status": "done", "bn": bn,
            "train_bits": train_bits, "eval_bits": bits, "accuracy": value, "best_epoch": best_epoch, "epochs_run": 3,
            "model": "mlp5", "setting": "scratch", "method": "ptq" if variant == "baseline" else "qat",
            "run": f"results/{study}/runs/{path}/seed{seed}",
        }
        for seed, value in enumerate(accuracy)
    ]  # fmt: skip


def logged(path, **columns):
    """Three epochs of three seeds; a column's list is one value per epoch."""
    experiment, variant = path.split("/")
    return [
        {"experiment": experiment, "variant": variant, "seed": seed, "status": "done", "epoch": epoch + 1,
         "weights": 100, "steps_per_epoch": 10} | {key: values[epoch] for key, values in columns.items()}
        for seed in range(3)
        for epoch in range(3)
    ]  # fmt: skip


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Write both studies and their measurements; give the numbers behind one comparison, and its verdict."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/other.yaml").write_text(OTHER)
    files = {
        "own/measurements": measured("own", "a/qat-3bit", [70, 71, 72]) + measured("own", "a/qat-3bit", [60, 62, 64], bits=32)
        + measured("own", "a/qat-3bit", [69, 70, 71], bits=32, bn="reestimate")
        + measured("own", "a/qat-ternary", [40, 41, 45], bits=2, train_bits=2),
        "other/measurements": measured("other", "b/qat-3bit", [68, 68, 68], best_epoch=3)
        + measured("other", "b/baseline", [50, 40, 30], train_bits=32)
        + measured("other", "b/baseline", [10, 10, 10], bits=2, train_bits=32),
        "own/oscillations": logged(
            "a/qat-3bit", iteration_nagel=[9, 20, 40], epoch_nagel=[0, 2, 4], kurtosis=[3, 2.5, 2],
            layer_shares=["0.5 0.5", "0.5 0.5", "0.75 0.25"], layer_shares_epoch=["0.5 0.5", "0.5 0.5", "1 0"],
        ),
        "other/oscillations": logged(
            "b/qat-3bit", iteration_nagel=[9, 10, 10], epoch_nagel=[0, 1, 1], kurtosis=[3, 3, 2.25],
            layer_shares=["1 0", "1 0", "0.25 0.75"], layer_shares_epoch=["1 0", "1 0", "0 1"],
        ),
    }  # fmt: skip
    for name, rows in files.items():
        file = tmp_path / f"results/{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)

    def judge(**tested):
        content = yaml.safe_load(STUDY)
        content["hypotheses"] = {"H1": {"statement": "s", "comparisons": [{"text": "t"} | tested]}}
        (tmp_path / "params/own.yaml").write_text(yaml.safe_dump(content))
        (claim,) = hypotheses.claims(Report.load(Path("params/own.yaml")))
        (comparison,) = claim.comparisons
        return comparison

    return judge


def side(*variants, **options):
    return {"variants": list(variants)} | options


@pytest.mark.parametrize(
    "tested,expected",
    [
        ({"measure": "accuracy", "of": side("a/qat-3bit")}, 71),
        ({"measure": "accuracy", "of": side("a/qat-ternary")}, 42),
        ({"measure": "accuracy", "of": side("a/qat-3bit"), "minus": side("b/qat-3bit")}, 3),
        ({"measure": "accuracy", "of": side("a/qat-3bit", bits=32, bn="reestimate"), "minus": side("a/qat-3bit", bits=32)}, 8),
        ({"measure": "accuracy", "of": side("a/qat-3bit", "b/qat-3bit")}, 3),
        ({"measure": "accuracy", "of": side("a/qat-3bit"), "minus": side("b/baseline", bits=3),
          "than": {"of": side("b/qat-3bit"), "minus": side("a/qat-ternary")}}, (71 - 40) - (68 - 42)),
        ({"measure": "per_step", "of": side("a/qat-3bit"), "minus": side("b/qat-3bit")}, 100 * (30 - 10) / 100 / 10),
        ({"measure": "per_epoch", "of": side("a/qat-3bit")}, 3),
        ({"measure": "kurtosis", "of": side("a/qat-3bit"), "minus": side("b/qat-3bit")}, 2.5 - 2.25),
        ({"measure": "layer_distance", "of": side("a/qat-3bit"), "to": "b/qat-3bit"}, 0.5),
        ({"measure": "layer_distance_last", "of": side("a/qat-3bit"), "to": "b/qat-3bit"}, 1),
    ],
)  # fmt: skip
def test_measures_and_contrasts(judge, tested, expected):
    found = judge(**tested, expect="above")
    assert found.estimate.value == pytest.approx(expected)
    assert found.estimate.n == 3
    assert found.verdict == ("supported" if found.estimate.low > 0 else "inconclusive")
    assert all(run.startswith("results/") for run in found.runs)


@pytest.mark.parametrize(
    "expect,bound,verdict",
    [("above", 2.9, "inconclusive"), ("above", 0.4, "inconclusive"), ("above", -1, "supported"),
     ("below", -1, "contradicted"), ("below", 7, "supported"), ("within", 6, "supported"), ("within", 5, "inconclusive")],
)  # fmt: skip
def test_verdicts_against_a_bound(judge, expect, bound, verdict):
    """Differences 2, 3, 4: mean 3, 95 % interval 3 +- 2.48, known to 1.24, 90 % interval 3 +- 1.69."""
    found = judge(
        measure="accuracy", of=side("a/qat-3bit"), minus=side("b/qat-3bit"), expect=expect, bound=bound,
    )  # fmt: skip
    assert found.verdict == verdict


def test_a_cell_that_the_reference_was_fitted_to_counts_for_nothing(judge):
    pair = {"measure": "accuracy", "of": side("a/qat-3bit"), "expect": "above"}
    assert judge(**pair, minus=side("b/baseline", bits=3)).verdict == "supported"
    assert judge(**pair, minus=side("b/baseline", bits=2)).verdict == "not judged"


def test_what_has_not_run_says_so(judge):
    found = judge(measure="accuracy", of=side("b/qat-ternary"), expect="above")
    assert (found.verdict, found.estimate.n) == ("not run", 0)


@pytest.mark.parametrize(
    "tested,message",
    [
        ({"of": side("a/qat-4bit")}, "unknown variant 'a/qat-4bit'; did you mean 'a/qat-3bit'"),
        ({"of": side("b/qat-3bit"), "to": "a/qat-3bit"}, "belongs to measure: layer_distance"),
        ({"of": side("b/qat-3bit"), "expect": "within"}, "margin of equivalence is positive"),
        ({"measure": "kurtosis", "of": side("b/qat-3bit", bits=4)}, "bits, bn: belong to measure: accuracy"),
    ],
)
def test_mistakes_are_named(judge, tested, message):
    with pytest.raises(InputError, match=message):
        judge(**({"measure": "accuracy", "expect": "above"} | tested))


def test_before_anything_has_run_all_reads_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(PARAMS.parent)
    report = Report.load(PARAMS / "ablations.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").symlink_to(PARAMS)
    claims = hypotheses.claims(report)
    assert {comparison.verdict for claim in claims for comparison in claim.comparisons} == {"not run"}


def test_the_ablations_name_every_hypothesis(monkeypatch):
    monkeypatch.chdir(PARAMS.parent)
    study, _ = studies.load(PARAMS / "ablations.yaml")
    assert list(study.hypotheses) == [f"H{i}" for i in range(1, 10)]
