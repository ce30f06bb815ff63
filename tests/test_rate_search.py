"""The learning-rate search: exact scores on made-up measurements."""

import pandas as pd
import pytest
from conftest import ROOT, reported

from oscillations.report.results import MEASUREMENTS
from oscillations.report.tables import rate_search
from oscillations.study import reading as studies


@pytest.fixture
def paper():
    return studies.load(ROOT / "params/paper.yaml")


def measured(experiment, variant, epoch, accuracies, status="done"):
    """One baseline run with test accuracies at 32, 2, 3 and 4 bits."""
    rows = []
    for bits, accuracy in zip((32, 2, 3, 4), accuracies):
        rows.append(
            dict.fromkeys(MEASUREMENTS)
            | {
                "experiment": experiment, "variant": variant, "model": "mlp5", "setting": "sweep", "train_bits": 32,
                "eval_bits": bits, "method": "baseline" if bits == 32 else "ptq", "bn": "keep", "split": "test",
                "seed": 0, "accuracy": accuracy, "best_epoch": epoch, "status": status, "run": "r",
            }
        )  # fmt: skip
    return rows


def table(paper, *runs):
    rows = [row for run in runs for row in measured(*run)]
    measurements = pd.DataFrame(rows, columns=MEASUREMENTS)
    found = rate_search.searched(reported(*paper, measurements))
    return found[found.main == "mlp5-scratch"]


# published: FP 51.43 +- 0.39, epoch 14, PTQ 3-bit 20.97 +- 5.64, 4-bit 46.50 +- 0.76
EXACT = (51.43, 10.0, 20.97, 46.50)
OFF = (53.43, 50.0, 20.97 + 5.64, 44.50)  # 2 points, nothing counted, 1 std, 2 points


def test_scores_and_ranks(paper):
    rows = table(
        paper,
        ("mlp5-fingerprint-40k", "baseline-lr3e-3", 14, EXACT),
        ("mlp5-fingerprint-45k", "baseline-lr1e-3", 28, OFF),  # twice the epoch: 5 times 20 %
    )
    head, ran = rows.iloc[0], rows[rows.n == 1]
    assert head[["fp32", "epoch", "ptq_2", "ptq_3", "ptq_4"]].tolist() == [51.43, 14, 10.00, 20.97, 46.50]
    assert len(rows) == 1 + 14
    assert ran.score.tolist() == pytest.approx([0, (2 + 5 + 1 + 2) / 4])
    assert ran["rank"].isna().all()  # one seed ranks nothing
    assert "Rank" not in rate_search.shown(paper[0], rows).columns
    assert ran[["lr", "train_images", "validation"]].to_numpy().tolist() == [[3e-3, 40000, 10000], [1e-3, 45000, 5000]]
    assert rows[rows.chosen.eq(True)][["experiment", "lr"]].to_numpy().tolist() == [["mlp5-fingerprint-40k", 3e-3]]


def test_the_sentence_follows_the_numbers(paper):
    good, bad = ("mlp5-fingerprint-40k", "baseline-lr3e-3"), ("mlp5-fingerprint-45k", "baseline-lr1e-3")
    assert rate_search.verdict(table(paper, (*good, 14, EXACT), (*bad, 28, OFF))) == (
        "MLP5 (scratch): of 2 learning rates and splits that ran (of 14), 0.003 with 40,000 / 10,000 images has the "
        "lowest score, 0.00 (2 of them with fewer than 3 seeds, which rank nothing); it is this study's choice."
    )
    assert rate_search.verdict(table(paper, (*good, 28, OFF), (*bad, 14, EXACT))) == (
        "MLP5 (scratch): of 2 learning rates and splits that ran (of 14), 0.001 with 45,000 / 5,000 images has the "
        "lowest score, 0.00 (2 of them with fewer than 3 seeds, which rank nothing); this study's choice, 0.003 with "
        "40,000 / 10,000, has 2.50."
    )
    assert rate_search.verdict(table(paper, (*bad, 28, OFF))).endswith("this study's own choice is not among them.")
    assert rate_search.verdict(table(paper)) == "MLP5 (scratch): none of the 14 learning rates and splits has run."


def test_a_diverged_run_has_no_score(paper):
    rows = table(paper, ("mlp5-fingerprint-40k", "baseline-lr3e-3", 1, (None,) * 4, "diverged"))
    assert rows.score.isna().all()
    shown = rate_search.shown(paper[0], rows)
    assert [row.cells["FP32"] for row in shown.rows] == ["51.43", "diverged"]
    assert [row.cells["Learning rate"] for row in shown.rows] == ["published", "0.003"]
    assert [row.cells["Choice"] for row in shown.rows] == ["", "this study"]
    assert {one.experiment: len(one.cells) for one in shown.missing} == {
        "mlp5-fingerprint-40k": 6, "mlp5-fingerprint-45k": 7
    }  # fmt: skip
