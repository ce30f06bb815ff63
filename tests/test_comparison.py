"""Comparisons: every method in one table, from made-up runs whose answers are known by hand."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from oscillations import methods, posttraining
from oscillations.core.errors import InputError
from oscillations.report.results import MEASUREMENTS, POSTTRAINING, Report
from oscillations.report.tables import comparison
from oscillations.report.text import METHOD_NAMES

STUDY = """\
study: fake
title: A fake study
note: For the tests.
published: none
data: digits
validation: 300
seeds: [0, 1, 2]
training: {lr: 2.0e-3, batch_size: 64, epochs: 3, patience: 5}
experiments:
  a-scratch:
    model: &model {name: mlp5, width: 16}
    setting: scratch
    methods: {baseline: , qat: {bits: [2, 3]}, kure: {bits: 3}}
  a-finetune:
    model: *model
    setting: finetune
    start_from: a-scratch
    methods: {qat: {bits: 3}, lsq: {bits: 3}, osciquant: {bits: 3, lambda: 1}, kure: {bits: 3}, signed: {bits: 3, lambda_start: 1, lambda_end: -1}, qc: {bits: 3}}
posttraining:
  after: {of: [a-scratch/baseline], bits: [3, 4], methods: {adaround: , nearest-mse: {method: nearest}}}
comparisons:
  a: {experiments: [a-scratch, a-finetune], posttraining: [after]}
not_run: {a-scratch: no time}
"""
SCALES = {"lsq": "learned", "qc": "learned"}
# accuracy at the target of each seed; None diverged; what is not named has not run
ACCURACIES = {
    "a-scratch/baseline": (40, 41, 42),
    "a-scratch/qat-3bit": (50, 51, 52),
    "a-finetune/qat-3bit": (60, 61, 62),
    "a-finetune/lsq-3bit": (63, 65, 67),  # paired differences 3, 4, 5
    "a-finetune/osciquant-3bit": (70, 71, 72),  # on a grid of 8 levels here
    "a-finetune/kure-3bit": (None, None, None),
    "a-finetune/signed-3bit": (59, None, 63),  # paired differences -1, 1
    "a-finetune/qc-3bit": (63, 65, 67),  # LSQ until epoch 2.75 of 3; the best epochs are 1, 2 and 3
}


def runs(path, seed):
    return f"results/fake/runs/{path}/seed{seed}"


def measured():
    rows = []
    for path, accuracies in ACCURACIES.items():
        experiment, variant = path.split("/")
        method = variant.removesuffix("-3bit")
        trained = 32 if method == "baseline" else 3
        for seed, accuracy in enumerate(accuracies):
            about = dict.fromkeys(MEASUREMENTS) | {
                "experiment": experiment, "variant": variant, "method": method, "train_bits": trained, "seed": seed,
                "split": "test", "bn": "keep", "run": runs(path, seed), "calibration": "max", "best_epoch": seed + 1, "grid": "sym_odd",
                "status": "diverged" if accuracy is None else "done",
            }  # fmt: skip
            own = {"calibration": SCALES.get(method, "max"), "levels": 7}
            own |= {"grid": "mid_rise", "levels": 8} if method == "osciquant" else {}
            rows.append(about | own | {"eval_bits": 3, "accuracy": accuracy})
            for bits, lost in ((32, -2), (2, 30), (4, 1), (8, 0)):
                rows.append(
                    about | {"eval_bits": bits, "accuracy": accuracy and accuracy - lost, "levels": 2**bits - 1}
                )
            if accuracy:  # statistics of a validation split, and another scale's, belong into no mean
                rows.append(about | {"eval_bits": 3, "accuracy": 1, "split": "validation"})
                rows.append(about | {"eval_bits": 4, "accuracy": 1, "calibration": "mse"})
    return pd.DataFrame(rows, columns=MEASUREMENTS)


def posttrained():
    rows = []
    for label, method, gains in (("adaround", "adaround", (5, 6, 7)), ("nearest-mse", "nearest", (1, 1, 1))):
        for bits in (3, 4):
            for seed, gain in enumerate(gains):
                rows.append(dict.fromkeys(POSTTRAINING) | {
                    "experiment": "a-scratch", "variant": "baseline", "label": label, "method": method, "seed": seed,
                    "eval_bits": bits, "per_channel": True, "grid": "sym_odd", "levels": 2**bits - 1, "bn": "keep",
                    "calibration": "mse", "accuracy": 40 + seed + gain + 4 * (bits == 4), "iterations": 2000,
                    "seconds": 3.0, "calibration_loss": 0.5, "status": "done", "run": runs("a-scratch/baseline", seed),
                })  # fmt: skip
    return pd.DataFrame(rows, columns=POSTTRAINING)


def logged():
    """Two epochs of fine-tuned QAT: 3 and 6 % per epoch, 0.15 and 0.3 % per step, 10 and 20 % near a threshold."""
    common = {"experiment": "a-finetune", "variant": "qat-3bit", "train_bits": 3, "status": "done", "weights": 1000,
              "steps_per_epoch": 10, "share_zero": 0.5}  # fmt: skip
    return pd.DataFrame(
        common | {"seed": seed, "epoch": epoch, "epoch_nagel": 30 * epoch, "iteration_nagel": 15 * epoch, "near_threshold": 0.1 * epoch}
        for seed in range(3)
        for epoch in (1, 2)
    )  # fmt: skip


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/fake.yaml").write_text(STUDY)
    for path, accuracies in ACCURACIES.items():
        for seed in range(len(accuracies)):
            folder = tmp_path / runs(path, seed)
            folder.mkdir(parents=True)
            record = {"steps_per_epoch": 10, "epochs_run": 2 + seed, "timing": {"wall_s": 12.0 + seed, "at_once": 2}}
            (folder / "run.json").write_text(json.dumps(record))
    for name, table in (("measurements", measured()), ("oscillations", logged()), ("posttraining", posttrained())):
        table.to_csv(tmp_path / f"results/fake/{name}.csv", index=False)
    return Report.load(tmp_path / "params/fake.yaml")


@pytest.fixture
def rows(fake):
    """The rows that a comparison's CSV holds, by method and family."""
    comparison.write_comparisons(fake)
    return comparison.read_comparison(fake, "a")


def row(rows, label, family="Fine-tuned from a-scratch"):
    (found,) = rows[(rows.label == label) & (rows.family == family)].to_dict("records")
    return found


def text(fake, rows):
    return {(row.group, row.cells["Method"]): row.cells for row in comparison.shown(fake, "a", rows).rows}


AFTER = "Post-training on a-scratch/baseline"


def test_rows_are_all_planned_methods_by_family(rows):
    assert list(zip(rows.family, rows.label)) == [
        ("From scratch", "FP32, then PTQ"), ("From scratch", "QAT"), ("From scratch", "KURE"),
        *(("Fine-tuned from a-scratch", name) for name in ("QAT", "LSQ", "OsciQuant", "KURE", "Signed schedule", "QC")),
        (AFTER, "AdaRound"), (AFTER, "Nearest (nearest-mse)"),
    ]  # fmt: skip


def test_differences_to_qat_are_paired_within_the_family(rows):
    lsq = row(rows, "LSQ")
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2) times 1 / sqrt(3): the differences are 3, 4 and 5
    assert (lsq["difference"], lsq["difference_n"]) == (4, 3)
    assert [lsq["difference_low"], lsq["difference_high"]] == pytest.approx([4 - half, 4 + half], abs=1e-5)
    constant = row(rows, "FP32, then PTQ", "From scratch")  # 10 less than QAT from scratch with every seed
    assert [constant[f"difference{end}"] for end in ("", "_low", "_high")] == [-10, -10, -10]
    two = row(rows, "Signed schedule")  # -1 and 1: the seed that diverged is in no pair
    assert (two["difference"], two["difference_n"]) == (0, 2)
    assert math.isnan(two["difference_low"]) and math.isnan(two["difference_high"])  # of two seeds there is no interval
    assert math.isnan(row(rows, "QAT")["difference"])


def test_a_row_says_that_its_own_phase_came_after_what_was_kept(fake, rows):
    assert row(rows, "QC")["early"] == 2
    assert ("Fine-tuned from a-scratch", "QC ‡ (2 of 3)") in text(fake, rows)
    assert row(rows, "LSQ")["early"] == 0
    ranked = comparison.best(rows, "accuracy")  # both have 65
    assert ranked[rows.label == "LSQ"].all() and not ranked[rows.label == "QC"].any()


def test_fewer_than_three_runs_are_not_ranked(fake, rows):
    few = rows.assign(n=2, planned=2)
    assert comparison.best(rows, "accuracy").any()
    assert not comparison.best(few, "accuracy").any()


def test_post_training_is_paired_with_the_qat_of_its_starts_family(rows):
    found = row(rows, "AdaRound", AFTER)  # 45, 47, 49 against 50, 51, 52 from scratch
    assert (found["accuracy"], found["difference"], found["difference_n"]) == (47, -4, 3)
    assert (found["at_32"], found["at_4"], found["steps"], found["seconds"]) == (43, 51, 2000, 3)


def test_means_oscillations_and_cost(rows):
    qat = row(rows, "QAT")
    assert (qat["accuracy"], qat["accuracy_std"], qat["n"], qat["planned"]) == (61, 1, 3, 3)
    assert [qat[f"at_{bits}"] for bits in (32, 8, 4, 2)] == [63, 61, 60, 31]
    assert [qat[column] for column in ("per_epoch", "per_step", "near")] == pytest.approx(
        [6, 0.225, 15]
    )  # per epoch from the second on
    assert (qat["steps"], qat["seconds"]) == (30, 6.5)  # 10 steps in 2, 3 and 4 epochs; 12, 13 and 14 s, two at once
    assert math.isnan(row(rows, "LSQ")["per_step"])


def test_diverged_and_not_run_are_shown_as_such(fake, rows):
    shown = text(fake, rows)
    assert shown["Fine-tuned from a-scratch", "KURE"]["3-bit"] == "diverged"
    assert shown["Fine-tuned from a-scratch", "KURE"]["n"] == "0 of 3"
    assert ("From scratch", "KURE") not in shown
    assert shown["Fine-tuned from a-scratch", "Signed schedule ‡ (1 of 2)"]["3-bit"] == "61.00 (1 diverged)"
    assert comparison.shown(fake, "a", rows).not_run == "Not run: 1 cell of a-scratch (no time)."


def test_grids_are_never_ranked_together(fake, rows):
    """OsciQuant has the highest mean, on 8 levels: the best of 7 levels is bold, and alone on its grid it is not."""
    shown = text(fake, rows)
    assert shown["Fine-tuned from a-scratch", "OsciQuant"]["3-bit"] == "71.00 ± 1.00"
    assert shown["Fine-tuned from a-scratch", "OsciQuant"]["Grid"] == "8 levels (mid-rise, no 0)"
    assert shown["Fine-tuned from a-scratch", "LSQ"]["3-bit"] == "**65.00 ± 2.00**"
    assert shown["From scratch", "QAT"]["3-bit"] == "**51.00 ± 1.00**"  # by family, too
    assert shown[AFTER, "AdaRound"]["Grid"] == "7 levels (Eq. 1-2), per channel"
    assert shown[AFTER, "AdaRound"]["FP32"] == "43.00 ± 1.00"  # equal numbers have no best
    one_grid = rows.assign(grid="sym_odd", levels=7, per_channel=False)
    assert comparison.best(one_grid, "accuracy").sum() == 3
    assert one_grid[comparison.best(one_grid, "accuracy")].label.tolist() == ["QAT", "OsciQuant", "AdaRound"]


def test_the_worst_width_is_each_seeds_own(rows):
    lsq = row(rows, "LSQ")  # at 3, 4 and 8 bits: 63 62 63, 65 64 65, 67 66 67
    assert (lsq["worst"], lsq["worst_std"]) == (64, 2)
    assert math.isnan(row(rows, "AdaRound", AFTER)["worst"])  # another network at every width


def test_a_method_whose_runs_did_not_all_finish_is_never_the_best(rows):
    ranked = rows.assign(accuracy=rows.accuracy.where(rows.label != "Signed schedule", 99.0))
    assert not comparison.best(ranked, "accuracy")[ranked.label == "Signed schedule"].any()


def test_columns_without_numbers_are_left_out(fake, rows):
    """MLP5 has no batch norm to re-estimate; with a re-estimated number the column is there."""
    assert comparison.shown(fake, "a", rows).columns == [
        "Method", "3-bit", comparison.WORST, "− QAT [95 %]", "n", "FP32", "8-bit", "4-bit", "ternary", "Grid", "Scale",
        *comparison.OSCILLATIONS.values(), "calibration loss", "epoch kept", "steps", "seconds",
    ]  # fmt: skip
    found = measured()
    fresh = found[(found.variant == "lsq-3bit") & (found.eval_bits == 3) & (found.split == "test")]
    again = pd.concat([found, fresh.assign(bn="reestimate", accuracy=fresh.accuracy + 1)])
    again.to_csv("results/fake/measurements.csv", index=False)
    again = Report(fake.study, fake.variants)
    rows = comparison.comparison_rows(again, fake.study.comparisons["a"])
    assert row(rows, "LSQ")["reestimated"] == 66
    assert text(fake, rows)["Fine-tuned from a-scratch", "LSQ"]["3-bit, BN re-estimated"] == "66.00 ± 2.00"


def kept(keep, *tables):
    """The report of the study whose fine-tunes keep these weights, and the rows of its comparison."""
    text = STUDY.replace("    setting: finetune\n", f"    setting: finetune\n    training: {{keep: {keep}}}\n")
    Path("params/fake.yaml").write_text(text)
    pd.concat(tables).to_csv("results/fake/measurements.csv", index=False)
    report = Report.load(Path("params/fake.yaml"))
    comparison.write_comparisons(report)
    return report, comparison.read_comparison(report, "a")


def test_both_selections_have_columns_where_they_are_kept(fake):
    found = measured()
    fine = found[(found.experiment == "a-finetune") & (found.split == "test")].assign(selection="last", epochs_run=3)
    gained = fine.accuracy.astype(float) + 1 + (fine.method == "lsq")  # LSQ gains 2 towards the end, all others 1
    again, rows = kept("both", found, fine.assign(accuracy=gained))
    lsq = row(rows, "LSQ")
    assert [lsq[column] for column in ("accuracy", "best", "end", "end_std", "difference")] == [65, 65, 67, 2, 4]
    assert (lsq["end_difference"], lsq["end_difference_n"]) == (5, 3)  # to QAT's end
    assert row(rows, "Signed schedule")["end"] == 62  # of the two that did not diverge
    assert math.isnan(row(rows, "KURE")["end"])
    assert math.isnan(row(rows, "QAT", "From scratch")["end"])
    shown = text(again, rows)
    assert shown["Fine-tuned from a-scratch", "LSQ"]["3-bit, end of training"] == "**67.00 ± 2.00**"
    assert shown["Fine-tuned from a-scratch", "LSQ"]["3-bit, best epoch"] == "**65.00 ± 2.00**"
    assert shown["From scratch", "QAT"]["3-bit, end of training"] == ""
    assert comparison.END_NOTE in comparison.shown(again, "a", rows).notes
    plain, without = kept("best", found)
    assert not set(comparison.BOTH) & set(without)
    assert comparison.END_NOTE not in comparison.shown(plain, "a", without).notes
    others = ~rows.label.isin(["QC", "Signed schedule"])
    for column in without.columns.drop("at_end"):
        assert rows[column][others].equals(without[column][others]), f"{column} holds other weights"


def test_a_method_that_is_whole_only_at_the_end_is_judged_there(fake):
    """In every column, and never from before its own phase; compared with QAT as that stands, and with QAT's end."""
    found = measured()
    fine = found[(found.experiment == "a-finetune") & (found.split == "test")].assign(selection="last", epochs_run=3)
    again, rows = kept("both", found, fine.assign(accuracy=fine.accuracy.astype(float) + 1))
    qc = row(rows, "QC")
    assert qc["at_end"] and not row(rows, "LSQ")["at_end"]
    assert [qc[column] for column in ("accuracy", "best", "end", "at_32", "worst", "n")] == [66, 65, 66, 68, 65, 3]
    assert [qc[column] for column in ("difference", "end_difference", "kept_epoch", "early")] == [4, 4, 3, 0]
    assert ("Fine-tuned from a-scratch", "QC §") in text(again, rows)


def test_a_row_of_the_end_of_training_alone_says_so(fake):
    """And none of it comes from before the method's own phase."""
    found = measured()
    fine = found.experiment == "a-finetune"
    again, rows = kept("last", found[~fine], found[fine].assign(selection="last", epochs_run=3))
    qc = row(rows, "QC, end of training")
    assert [qc[column] for column in ("accuracy", "kept_epoch", "early")] == [65, 3, 0]
    assert "end" not in rows
    for group, name in text(again, rows):
        assert name.endswith(", end of training") == group.startswith("Fine-tuned")


def test_formats_hold_the_same_rows(fake, rows):
    folder = Path("results/fake/tables")
    markdown = (folder / "comparison-a.md").read_text()
    assert markdown.startswith("### Every method at its target bits: MLP5, 3-bit\n\nFor the tests.\n\n‡ Kept from")
    assert "| **65.00 ± 2.00** | **64.00 ± 2.00** | +4.00 [+1.52, +6.48] | 3 |" in markdown
    latex = (folder / "comparison-a.tex").read_text()
    assert r"\textbf{65.00 $\pm$ 2.00}" in latex
    assert "**" not in latex


def test_a_study_in_which_nothing_has_run_has_a_table_that_says_so(fake, tmp_path):
    for name in ("measurements", "oscillations", "posttraining"):
        (tmp_path / f"results/fake/{name}.csv").unlink()
    comparison.write_comparisons(fake)
    rows = comparison.read_comparison(fake, "a")
    shown = comparison.shown(fake, "a", rows)
    assert not shown.rows
    assert shown.not_run == (
        "Not run: 3 cells of a-scratch (no time); 6 cells of a-finetune (not trained yet); 2 cells of after (no time)."
    )


def faulty(**change):
    content = yaml.safe_load(STUDY)
    content["comparisons"]["a"] |= change
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"experiments": ["a-scrath"]},
            "comparisons.a.experiments: unknown entry 'a-scrath'; did you mean 'a-scratch'?",
        ),
        ({"posttraining": ["afer"]}, "comparisons.a.posttraining: unknown entry 'afer'; did you mean 'after'?"),
        ({"bits": 5}, "comparisons.a.bits: 5 is not among eval_bits"),
        ({"bit": 3}, "comparisons.a.*bit"),
        ({"experiments": ["a-scratch", "b"]}, "comparisons.a.experiments: resnet18 beside mlp5: one model to a table"),
    ],
)
def test_a_comparison_names_what_exists(tmp_path, change, message):
    content = faulty(**change)
    content["experiments"]["b"] = {"model": {"name": "resnet18"}, "setting": "scratch", "methods": {"baseline": None}}
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        Report.load(tmp_path / "fake.yaml")


def test_every_method_has_a_name_for_people_and_a_section_in_the_docs():
    sections = (ROOT / "docs/methods.md").read_text()
    for folder, names in (("methods", methods.names()), ("posttraining", posttraining.names())):
        for name in names:
            assert name in METHOD_NAMES, f"{folder}: {name} has no entry in METHOD_NAMES"
            file = f"{folder}/{name.replace('-', '_')}.py"
            assert f"`{file}`" in sections, f"{file} has no section in docs/methods.md"
