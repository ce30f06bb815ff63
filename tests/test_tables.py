"""Tables: published cells beside reproduced ones, agreement, coverage, and what they say of empty cells."""

import math
import re

import pandas as pd
import pytest
from conftest import ROOT, reported
from scipy.stats import t, ttest_ind_from_stats

from oscillations.report.pages.curves import Curve, chart, ticks
from oscillations.report.results import MEASUREMENTS
from oscillations.report.table import Missing, Row, Table, latex
from oscillations.report.tables.published import (
    AGREEMENTS,
    agreement_cells,
    coverage,
    published_table,
    reproduced_text,
    table_cells,
)
from oscillations.study import reading as studies


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def loaded():
    study, variants = studies.load(ROOT / "params/quick.yaml")
    tables = study.tables | {"table5": ["vit-tiny-finetune"]}
    update = {"published": "paper", "tables": tables, "fitted": [("mlp5", "scratch", "baseline", 32)]}
    return study.model_copy(update=update), variants


STARTS = {
    "resnet18-finetune": "torchvision/resnet18 (ImageNet-1k)",
    "vit-tiny-finetune": "timm/deit_tiny_patch16_224 (ImageNet-1k)",
}


def measured(cells):
    """Measurements from {(experiment, model, method, lambda, train_bits, eval_bits): accuracies of the seeds}."""
    rows = []
    for (experiment, model, method, lam, train_bits, eval_bits), accuracies in cells.items():
        for seed, accuracy in enumerate(accuracies):
            row = dict.fromkeys(MEASUREMENTS)
            row |= {
                "experiment": experiment, "variant": f"{method}-{train_bits}-{lam:g}", "model": model, "method": method,
                "lambda": lam, "train_bits": train_bits, "eval_bits": eval_bits, "seed": seed, "lr": 1e-3,
                "accuracy": accuracy, "split": "test", "bn": "keep", "status": "done", "best_epoch": 7,
                "run": f"results/x/runs/{experiment}/{method}-{train_bits}/seed{seed}", "start": STARTS.get(experiment, ""),
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=MEASUREMENTS)


CELLS = {
    ("mlp5-scratch", "mlp5", "baseline", math.nan, 32, 32): (51, 51.5, 52),  # published 51.43 +- 0.39
    ("mlp5-scratch", "mlp5", "osciquant", 1.0, 2, 2): (36, 37, 38),  # 36.49 +- 0.51
    ("mlp5-scratch", "mlp5", "osciquant", 1.0, 3, 3): (40, 41, 42),  # 48.48 +- 0.29
    ("mlp5-lambda", "mlp5", "osciquant", 0.25, 3, 3): (45, 45.5, 46),  # nothing published
    ("resnet18-finetune", "resnet18", "qat", math.nan, 3, 8): (16.0, 16.5, 17.0),  # 16.56 +- 4.32, only in Table 3
    ("vit-tiny-finetune", "vit-tiny", "osciquant", 1.0, 3, 3): (90.0,),  # 88.68 +- 1.08; Table 5: 90.29
}


def test_agreement_holds_every_published_cell_once(loaded):
    agreement = agreement_cells(reported(*loaded, measured({})))
    assert agreement.table.value_counts().to_dict() == {
        "table1": 20, "table2": 20, "table3": 70, "table4": 14, "table5": 10
    }  # fmt: skip
    assert (agreement.n == 0).all()
    assert agreement[["mean", "std", "difference", "agreement"]].isna().all(axis=None)


def test_agreement_of_a_cell(loaded):
    agreement = agreement_cells(reported(*loaded, measured(CELLS)))
    ran = agreement[agreement.n > 0].set_index(["table", "model", "method", "eval_bits"])
    assert len(agreement) == 134
    assert list(ran.index) == [
        ("table1", "mlp5", "baseline", 32),
        ("table1", "mlp5", "osciquant", 2),
        ("table1", "mlp5", "osciquant", 3),
        ("table2", "vit-tiny", "osciquant", 3),
        ("table3", "resnet18", "qat", 8),
        ("table3", "vit-tiny", "osciquant", 3),
        ("table5", "vit-tiny", "osciquant", 3),
    ]
    near = ran.loc[("table1", "mlp5", "osciquant", 2)]
    assert (near["mean"], near["n"], near.agreement, near.fitted) == (37, 3, "compatible", False)
    assert (near["std"], near.difference, near.ratio) == pytest.approx((1, 0.51, 1))
    for runs in (3, 5):
        expected = ttest_ind_from_stats(37, 1, 3, 36.49, 0.51, runs, equal_var=False)
        assert ((near[f"high_{runs}"] - near[f"low_{runs}"]) / 2) == pytest.approx(
            0.51 / expected.statistic * t.ppf(0.975, welch_freedom(1 / 3, 0.51**2 / runs, runs))
        )
    assert near.runs == " ".join(f"results/x/runs/mlp5-scratch/osciquant-2/seed{seed}" for seed in range(3))
    assert ran.agreement[("table1", "mlp5", "osciquant", 3)] == "different"
    assert ran.agreement[("table3", "resnet18", "qat", 8)] == "chance"
    assert ran.fitted[("table1", "mlp5", "baseline", 32)]
    lone = ran.loc[("table5", "vit-tiny", "osciquant", 3)]  # a single published run has no spread, nor have ours
    assert (lone["mean"], lone["n"], lone["lambda"]) == (90, 1, 1.0)
    assert lone.difference == pytest.approx(-0.29)
    assert pd.isna(lone.agreement) and pd.isna(lone.low_5)


def welch_freedom(ours, theirs, runs):
    return (ours + theirs) ** 2 / (ours**2 / 2 + theirs**2 / (runs - 1))


def test_an_agreement_that_depends_on_the_published_number_of_runs(loaded):
    """3 published runs make the interval wide enough for 0, 5 do not."""
    near = {("mlp5-scratch", "mlp5", "qat", math.nan, 3, 3): (53.4, 53.5, 53.6)}  # 50.53 +- 1.43
    cell = agreement_cells(reported(*loaded, measured(near))).query("n > 0").iloc[0]
    assert cell.agreement == "depends"
    assert cell.low_3 < 0 < cell.low_5


def test_two_experiments_in_one_cell_stand_once_in_agreement(loaded):
    study, variants = loaded
    tables = study.tables | {"table1": ["mlp5-scratch", "mlp5-other"]}
    other = {("mlp5-other", *key[1:]): (10.0,) for key in list(CELLS)[:3]}
    both = measured(other | CELLS)
    study = study.model_copy(update={"tables": tables})
    agreement = agreement_cells(reported(study, variants, both))
    assert len(agreement) == 134
    assert agreement[agreement.table == "table1"]["mean"].dropna().tolist() == [51.5, 37, 41]
    assert table_cells(reported(study, variants, both), "table1")["mean"].notna().sum() == 6


def test_coverage_counts(loaded):
    found = coverage(agreement_cells(reported(*loaded, measured(CELLS)))).set_index("table")
    kinds = ["published", "run", "compatible", "different", "depends", "chance", "fitted"]
    assert list(found) == kinds
    assert found.loc["table1"].tolist() == [20, 3, 1, 1, 0, 0, 1]
    assert found.loc["table2"].tolist() == [20, 1, 0, 0, 0, 0, 0]
    assert found.loc["table3"].tolist() == [70, 2, 0, 0, 0, 1, 0]
    assert found.loc["table4"].tolist() == [14, 0, 0, 0, 0, 0, 0]
    assert found.loc["table5"].tolist() == [10, 1, 0, 0, 0, 0, 0]
    assert found.loc["all"].tolist() == [134, 7, 1, 1, 0, 1, 1]


def test_a_miniature_is_never_judged(loaded):
    study, variants = loaded
    miniature = study.model_copy(update={"published": "miniature"})
    found = coverage(agreement_cells(reported(miniature, variants, measured(CELLS)))).set_index("table")
    assert found.loc["all", ["run", "compatible", "different", "chance"]].tolist() == [7, 0, 0, 0]


def test_fitted_cells_carry_a_mark(loaded):
    cells = table_cells(reported(*loaded, measured(CELLS)), "table1")
    marked = [reproduced_text(cell) for _, cell in cells.iterrows() if cell.fitted]
    assert marked == ["51.50 ± 0.50 †"]
    assert any(note.startswith("† ") for note in table(loaded, "table1").notes)
    assert not any("†" in note for note in table(loaded, "table2").notes)


def table(loaded, name):
    report = reported(*loaded, measured(CELLS))
    return published_table(report, name, table_cells(report, name))


def test_own_cells_stand_after_the_published_ones(loaded):
    cells = table_cells(reported(*loaded, measured(CELLS)), "table4")
    assert cells.model.tolist() == ["resnet18"] * 14 + ["mlp5"] * 3
    assert cells["lambda"].tolist()[14:] == [0.25, 1.0, 1.0]
    assert cells.published_mean.isna().tolist() == [False] * 14 + [True] * 3
    assert table(loaded, "table5").columns == [
        "Method", "λ", "Bits", "Reproduced", "Published", "Difference", "n", "Fine-tuned from", "Model"
    ]  # fmt: skip


def test_an_empty_cell_says_what_is_missing_and_why(loaded):
    study, variants = loaded
    study = study.model_copy(update={"not_run": {"resnet18-scratch": "needs a GPU"}})
    report = reported(study, variants, measured(CELLS))
    cells = table_cells(report, "table1").set_index(["model", "method", "eval_bits"])
    assert cells.missing[("mlp5", "baseline", 32)] == ""
    assert cells.missing[("mlp5", "ptq", 2)] == "mlp5-scratch/baseline"
    assert cells.missing[("resnet18", "qat", 3)] == "resnet18-scratch/qat-3bit"
    found = published_table(report, "table1", table_cells(report, "table1"))
    assert found.notes[0] == study.note
    assert {one.experiment: (one.reason, len(one.cells)) for one in found.missing} == {
        "mlp5-scratch": ("not trained yet", 7), "resnet18-scratch": ("needs a GPU", 10)
    }  # fmt: skip
    assert "ResNet-18, QAT, 3-bit: published 82.51 ± 2.14" in found.missing[1].cells
    assert found.not_run == (
        "Not run: 7 cells of mlp5-scratch (not trained yet); 10 cells of resnet18-scratch (needs a GPU)."
    )
    (left,) = table(loaded, "table4").missing
    assert (left.experiment, left.reason, len(left.cells)) == ("", "not in this study", 14)
    whole = agreement_cells(report)
    assert whole.why[whole.n > 0].eq("").all()
    assert set(whole.why) == {"", "not trained yet", "needs a GPU", "not in this study"}


@pytest.mark.parametrize("cells", [{}, {("mlp5-scratch", "mlp5", "baseline", math.nan, 32, 32): (51, 52)}])
def test_a_study_beside_which_nothing_is_published_has_tables_and_no_agreement(loaded, cells):
    study, variants = loaded
    study = study.model_copy(update={"published": "none"})
    found = table_cells(reported(study, variants, measured(cells)), "table1")
    assert found.published_mean.isna().all()
    assert found["mean"].dropna().tolist() == [51.5] * len(cells)
    agreement = agreement_cells(reported(study, variants, measured(cells)))
    assert agreement.empty
    assert coverage(agreement).to_dict("records") == [
        {"table": "all"} | dict.fromkeys(["published", "run", *AGREEMENTS, "fitted"], 0)
    ]


# -- formats -----------------------------------------------------------------------------------------------


WRITTEN = Table(
    "t", "A_title, 50 % & more", ["a note"],
    [Row({"Method": "**QAT** #1", "x|y": "1.0 ± 0.1", "empty": ""}, ["results/s/runs/e/v/seed0"], group="first"),
     Row({"Method": r"{a}\b", "x|y": "<2", "empty": ""}, group="second")],
    [Missing("e", "no GPU", ["one", "two"]), Missing("", "not in this study", ["three"])],
)  # fmt: skip


def test_a_table_in_every_format(tmp_path):
    WRITTEN.write(tmp_path, pd.DataFrame({"x": [1 / 3]}))
    assert {file.name for file in tmp_path.iterdir()} == {f"t.{suffix}" for suffix in ("csv", "md", "tex", "json")}
    assert (tmp_path / "t.csv").read_text() == "x\n0.333333\n"
    assert Table.read(tmp_path / "t.json") == WRITTEN
    assert (tmp_path / "t.md").read_text() == (
        "### A_title, 50 % & more\n\na note\n\n"
        "Not run: 2 cells of e (no GPU); 1 cell not in this study.\n\n"
        "| Method | x\\|y |\n| --- | --- |\n"
        "| *first* |  |\n| **QAT** #1 | 1.0 ± 0.1 |\n| *second* |  |\n| {a}\\b | <2 |\n"
    )


def test_latex_escapes_every_sign_of_its_own():
    assert latex(r"a_b 5 % & $x$ #1 {c}\d ~ ^ <>| ± λ → †") == (
        r"a\_b 5 \% \& \$x\$ \#1 \{c\}\textbackslash{}d \textasciitilde{} \textasciicircum{} $<$$>$$|$ "
        r"$\pm$ $\lambda$ $\rightarrow$ \dag{}"
    )
    assert latex("**best_1** *all*") == r"\textbf{best\_1} \emph{all}"
    text = WRITTEN.latex()
    assert r"\caption{A\_title, 50 \% \& more. a note Not run: 2 cells of e (no GPU)" in text
    assert text.count(r"\\") == 1 + 2 + 2  # the header, two headings, two rows


def test_the_committed_latex_has_no_sign_that_it_cannot_set():
    for file in (ROOT / "results").glob("*/tables/*.tex"):
        body = file.read_text()
        assert not set(body) & set("‡λ±−→×|†"), file
        assert not re.search(r"(?<!\\)[%#_]", body), file


def test_ticks_span_what_is_drawn_with_round_numbers():
    assert ticks(0.3, 9.7) == [0, 5, 10]
    assert ticks(49.2, 51.1) == [49, 49.5, 50, 50.5, 51, 51.5]
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1]


def test_a_chart_leaves_out_what_is_no_number():
    drawn = chart([Curve([1, 2, 3], [math.nan, 1.0, 2.0], 4, "a < b")], "Loss")
    (points,) = re.findall(r'<polyline class="c4" data-seed="0" points="([^"]+)"', drawn)
    assert len(points.split()) == 2
    assert '<span class="c4">a &lt; b</span>' in drawn
    assert chart([Curve([1], [math.nan])], "Loss") == ""
