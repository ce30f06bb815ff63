"""Verdicts: the statistics, and claims on made-up measurements whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from oscillations import study as studies
from oscillations.report import stats
from oscillations.report.claims import counts_per_run, evaluate_claims
from oscillations.report.collect import MEASUREMENTS
from oscillations.report.stats import Interval


def test_t_interval_golden():
    """Mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3026527."""
    found = stats.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.n, found.mean) == (3, 2.0)
    assert found.high - 2 == pytest.approx(4.3026527 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(2 - (found.high - 2))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0, math.nan, math.nan, math.nan), "not run"),
        (Interval(2, 5.0, 4.0, 6.0), "inconclusive"),
        (Interval(3, 5.0, 4.0, 6.0), "supported"),
        (Interval(3, -5.0, -6.0, -4.0), "contradicted"),
        (Interval(3, 1.0, -1.0, 3.0), "inconclusive"),
    ],
)
def test_above(interval, expected):
    assert stats.above(interval) == expected


def test_below_is_the_mirror_of_above():
    assert stats.below(Interval(3, 1.0, 0.5, 1.5), 2.0) == "supported"
    assert stats.below(Interval(3, 3.0, 2.5, 3.5), 2.0) == "contradicted"
    assert stats.below(Interval(3, 2.0, 1.0, 3.0), 2.0) == "inconclusive"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1, 1, "supported"), (2.5, 3, "contradicted"), (-3, -2.5, "contradicted"), (1, 3, "inconclusive")],
)
def test_within(low, high, expected):
    assert stats.within(Interval(3, (low + high) / 2, low, high), 2.0) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "not run"), (["not run"], "not run"), (["supported", "not run"], "supported"),
        (["supported", "inconclusive"], "inconclusive"), (["supported", "contradicted"], "contradicted"),
    ],
)  # fmt: skip
def test_overall(verdicts, expected):
    assert stats.overall(verdicts) == expected


@pytest.fixture
def study():
    return studies.load(ROOT / "params/quick.yaml")[0]


def measured(accuracy, experiment="resnet18-scratch", model="resnet18", seeds=3):
    """Measurements from {(method, train_bits, eval_bits): accuracy}, a little noise per seed."""
    rows = []
    for (method, train_bits, eval_bits), value in accuracy.items():
        for seed in range(seeds):
            row = dict.fromkeys(MEASUREMENTS)
            row |= {
                "experiment": experiment, "model": model, "setting": "scratch", "method": method, "seed": seed,
                "train_bits": train_bits, "eval_bits": eval_bits, "split": "test", "bn": "keep", "status": "done",
                "accuracy": value + 0.1 * seed + 0.01 * (hash_of(method, eval_bits) % 3) * seed,
                "lambda": 1.0, "run": f"results/x/runs/{experiment}/{method}/seed{seed}",
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=MEASUREMENTS)


def hash_of(method, bits):
    return len(method) + bits


def paper_like():
    """What the paper claims of ResNet-18, in round numbers."""
    values = {
        ("baseline", 32, 32): 88.0,
        ("ptq", 32, 2): 10.0,
        ("ptq", 32, 3): 60.0,
        ("ptq", 32, 4): 80.0,
        ("ptq", 32, 8): 88.0,
    }
    for trained, own in ((2, 60.0), (3, 86.0), (4, 87.5)):
        for bits in (2, 3, 4, 8, 32):
            values["osciquant", trained, bits] = {2: 20.0, 3: 85.0, 4: 87.0, 8: 88.0, 32: 88.0}[bits]
            values["qat", trained, bits] = 10.0 if trained < 4 else 85.0
        values["osciquant", trained, trained] = own
        values["qat", trained, trained] = {2: 77.0, 3: 86.5, 4: 87.5}[trained]
    return values


def verdicts(study, measurements):
    claims = evaluate_claims(study, measurements, pd.DataFrame())
    return {claim.name: claim.verdict for claim in claims}


def test_what_the_paper_says_supports_the_papers_claims(study):
    found = verdicts(study, measured(paper_like()))
    assert {name: found[name] for name in ("C1", "C2", "C3", "C4", "C5", "C6", "C7")} == dict.fromkeys(
        ("C1", "C2", "C3", "C4", "C5", "C6", "C7"), "supported"
    )


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("C1", {("osciquant", 3, 3): 50.0}),
        ("C2", {("osciquant", 4, 4): 80.0}),
        ("C3", {("osciquant", 2, 2): 79.0}),
        ("C4", {("osciquant", 2, 32): 80.0}),
        ("C5", {("qat", 3, 32): 70.0}),
        ("C6", {("osciquant", 4, 3): 50.0}),
        ("C7", {("osciquant", 2, 3): 50.0}),
    ],
)
def test_the_opposite_contradicts_exactly_that_claim(study, claim, change):
    assert verdicts(study, measured(paper_like() | change))[claim] == "contradicted"


def test_two_seeds_decide_nothing(study):
    found = verdicts(study, measured(paper_like(), seeds=2))
    assert {found[name] for name in ("C1", "C2", "C3", "C4", "C5", "C6", "C7")} == {"inconclusive"}


def test_nothing_run_says_so(study):
    found = verdicts(study, pd.DataFrame(columns=MEASUREMENTS))
    assert set(found.values()) == {"not run"}
    assert list(found) == [f"C{i}" for i in range(1, 10)]


def test_a_diverged_run_counts_for_nothing(study):
    table = measured(paper_like())
    table.loc[table.seed == 2, "status"] = "diverged"
    assert verdicts(study, table)["C1"] == "inconclusive"


def oscillating(counts, epochs=5):
    """Histories of runs from {(method, lambda): share of weights that oscillate per epoch}."""
    rows = []
    for (method, lam), share in counts.items():
        experiment = "mlp5-scratch" if method == "qat" else "mlp5-lambda"
        variant = "qat-3bit" if method == "qat" else f"osciquant-3bit-lambda{lam:g}"
        for seed in range(3):
            for epoch in range(1, epochs + 1 + seed):
                rows.append(
                    {
                        "experiment": experiment, "variant": variant, "model": "mlp5", "method": method,
                        "train_bits": 3, "lambda": lam, "lr": 1e-3, "seed": seed, "epoch": epoch, "steps_per_epoch": 10,
                        "weights": 1000, "epoch_nagel": 1000 * share + seed,
                        "iteration_nagel": 10_000 * share + seed,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_c8_counts_grow_with_lambda(study):
    table = oscillating({("qat", math.nan): 0.2, ("osciquant", 0.0): 0.05, ("osciquant", 1.75): 0.4})
    c8 = evaluate_claims(study, pd.DataFrame(columns=MEASUREMENTS), table)[7]
    assert c8.verdict == "supported"
    assert len(c8.comparisons) == 6
    reversed_ = oscillating({("qat", math.nan): 0.2, ("osciquant", 0.0): 0.4, ("osciquant", 1.75): 0.05})
    assert evaluate_claims(study, pd.DataFrame(columns=MEASUREMENTS), reversed_)[7].verdict == "contradicted"


def test_counts_use_only_epochs_that_all_runs_have():
    table = oscillating({("qat", math.nan): 0.2}, epochs=3)
    table.loc[table.epoch > 3, "epoch_nagel"] = 1e9
    counts = counts_per_run(table)
    assert counts.epoch_level.max() < 1


def test_c9_flat_and_not_flat(study):
    flat = pd.concat(
        measured({("osciquant", 3, 3): value}, "mlp5-lambda", "mlp5").assign(**{"lambda": lam})
        for lam, value in ((0.25, 90.0), (1.0, 90.5), (1.75, 90.2))
    )
    assert verdicts(study, flat)["C9"] == "supported"
    flat.loc[flat["lambda"] == 1.75, "accuracy"] -= 30
    assert verdicts(study, flat)["C9"] == "contradicted"
