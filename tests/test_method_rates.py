"""A learning rate for every method, from made-up runs whose answers are known by hand."""

import math

import pandas as pd
import pytest
import yaml
from conftest import reported

from oscillations.core.errors import InputError
from oscillations.report.results import MEASUREMENTS
from oscillations.report.tables import method_rates
from oscillations.study import reading as studies

STUDY = """\
study: fake
title: A fake study
note: For the tests.
published: none
data: digits
validation: 300
seeds: [0, 1, 2]
training: {lr: 1.0e-3, batch_size: 64, epochs: 3, patience: 3, keep: both}
experiments:
  main:
    model: &model {name: mlp5, width: 16}
    setting: scratch
    methods: &methods {qat: {bits: 3}, lsq: {bits: 3}, qc: {bits: 3}, ema: {bits: 3}, statsq: {bits: 3}}
  rates:
    model: *model
    setting: sweep
    methods: *methods
    sweep: {lr: [3.0e-4, 3.0e-3]}
method_rates: {main: rates}
"""
# by variant: validation accuracy of seed 0 at the best epoch and at the end, test accuracy of each seed at these
RUNS = {
    "main/qat-3bit": (80, 79, (70, 71, 72), (60, 60, 60)),
    "rates/qat-3bit-lr3e-4": (75, 75, (90,), (90,)),
    "rates/qat-3bit-lr3e-3": (70, 70, (90,), (90,)),
    "main/lsq-3bit": (60, 60, (65, 65, 65), (65, 65, 65)),
    "rates/lsq-3bit-lr3e-4": (61, 61, (66,), (66,)),
    "rates/lsq-3bit-lr3e-3": (62, 62, (73, 75, 77), (1, 1, 1)),  # paired differences 3, 4, 5
    "main/qc-3bit": (90, 50, (50, 50, 50), (40, 41, 42)),
    "rates/qc-3bit-lr3e-4": (80, 80, (10, 10, 10), (74, 75, 76)),  # its end is judged
    "rates/qc-3bit-lr3e-3": (95, 70, (99,), (99,)),
    "main/ema-3bit": (60, 60, (65, 65, 65), (65, 65, 65)),  # one rate has not run
    "rates/ema-3bit-lr3e-4": (61, 61, (66,), (66,)),
    "main/statsq-3bit": (59, 59, (50, 50, 50), (50, 50, 50)),
    "rates/statsq-3bit-lr3e-4": (59, 59, (66,), (66,)),
    "rates/statsq-3bit-lr3e-3": (None, None, (None,), (None,)),  # diverged
}


def measured():
    rows = []
    for path, (*validations, best, end) in RUNS.items():
        experiment, variant = path.split("/")
        for selection, validation, tests in (("best", validations[0], best), ("last", validations[1], end)):
            for seed, accuracy in enumerate(tests):
                about = dict.fromkeys(MEASUREMENTS) | {
                    "experiment": experiment, "variant": variant, "train_bits": 3, "eval_bits": 3, "seed": seed,
                    "bn": "keep", "run": f"results/fake/runs/{path}/seed{seed}", "best_epoch": 1, "epochs_run": 3,
                    "status": "done" if accuracy else "diverged", "selection": selection, "rule": "requantize",
                }  # fmt: skip
                rows += [about | {"split": "test", "accuracy": accuracy}]
                if validation:  # that of other seeds would choose otherwise
                    chosen = validation if seed == 0 else 100 - validation
                    rows += [about | {"split": "validation", "accuracy": chosen}]
    return pd.DataFrame(rows, columns=MEASUREMENTS)


def study(tmp_path, **changes):
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(yaml.safe_load(STUDY) | changes, sort_keys=False))
    return studies.load(tmp_path / "fake.yaml")


@pytest.fixture
def report(tmp_path):
    return reported(*study(tmp_path), measured())


def test_the_first_seeds_validation_chooses_and_all_seeds_are_tested(report):
    qat, lsq, _, ema, statsq = method_rates.searched(report, "main", "rates").to_dict("records")
    assert (qat["rates"], qat["validations"]) == ("0.0003 0.001 0.003", "75.00 80.00 70.00")
    assert [qat[key] for key in ("chosen", "edge", "accuracy", "n", "usual")] == [1e-3, False, 71, 3, 71]
    assert [lsq[key] for key in ("chosen", "edge", "accuracy", "n", "usual")] == [3e-3, True, 75, 3, 65]
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2) times 1 / sqrt(3): the differences are 3, 4 and 5
    assert [lsq["difference"], lsq["difference_low"], lsq["difference_high"]] == pytest.approx([4, 4 - half, 4 + half])
    assert math.isnan(qat["difference"])
    assert math.isnan(ema["chosen"])
    assert ema["validations"] == "61.00 60.00 nan"
    assert (statsq["validations"], statsq["chosen"], statsq["accuracy"]) == ("59.00 59.00 diverged", 1e-3, 50)


def test_a_method_that_is_whole_at_the_end_is_searched_and_tested_there(report):
    qc = method_rates.searched(report, "main", "rates").set_index("method").loc["qc"]
    assert (qc.at_end, qc.validations, qc.chosen, qc.accuracy, qc.usual) == (True, "80.00 50.00 70.00", 3e-4, 75, 41)
    assert qc.difference == 75 - 60  # to QAT's end


def test_people_see_the_chosen_rate_and_what_is_missing(report):
    table = method_rates.shown(report, "main", "rates", method_rates.searched(report, "main", "rates"))
    cells = {row.cells["Method"]: row.cells for row in table.rows}
    assert list(cells) == ["QAT", "LSQ", "QC §", "StatsQ"]
    assert [cells["LSQ"][name] for name in ("0.0003", "0.001", "0.003")] == ["61.00", "60.00", "**62.00**"]
    assert (cells["LSQ"]["chosen"], cells["QAT"]["chosen"]) == ("0.003 <", "0.001")
    assert table.not_run == "Not run: 1 cell of rates (not trained yet)."
    (left,) = table.missing  # what has to be trained, and so costs
    assert left.variants == ["rates/ema-3bit-lr3e-4", "rates/ema-3bit-lr3e-3"]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("main", "method_rates.main: main sweeps no learning rates; give it sweep: {lr: [...]}"),
        ("rate", "method_rates.main: unknown experiment 'rate'; did you mean 'rates'?"),
    ],
)
def test_a_search_is_a_sweep_that_exists(tmp_path, search, message):
    with pytest.raises(InputError) as error:
        study(tmp_path, method_rates={"main": search})
    assert message in str(error.value)


def test_a_search_trains_what_the_experiment_trains(tmp_path):
    experiments = yaml.safe_load(STUDY)["experiments"]
    experiments["rates"]["methods"] = {"lsq": {"bits": 3, "grid": "lsq"}}
    with pytest.raises(InputError, match=r"main has no lsq with the options of rates/lsq-3bit-lr3e-4; give both"):
        study(tmp_path, experiments=experiments)


def test_a_search_has_the_experiments_budget(tmp_path):
    experiments = yaml.safe_load(STUDY)["experiments"]
    experiments["rates"]["training"] = {"epochs": 30}
    with pytest.raises(InputError, match=r"rates/qat-3bit-lr3e-4 differs from main's by more than the learning rate"):
        study(tmp_path, experiments=experiments)
