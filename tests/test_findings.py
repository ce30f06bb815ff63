"""Findings, and the table of what explains the gain: every sentence's numbers on made-up files."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY

from oscillations.core.errors import InputError
from oscillations.report import findings
from oscillations.report.results import MEASUREMENTS, POSTTRAINING, Report
from oscillations.report.tables import comparison, gain
from oscillations.study.reading import load

GAIN = {
    "bits": 3,
    "against": "mlp5-scratch/osciquant-3bit",
    "rows": [
        {"text": "PTQ", "of": "mlp5-scratch/baseline"},
        {"text": "least squares", "of": "mlp5-scratch/baseline", "posttraining": "nearest-mse"},
        {"text": "OsciQuant", "of": "mlp5-scratch/osciquant-3bit"},
        {"text": "QAT", "of": "mlp5-scratch/qat-3bit"},
    ],
}
ACCURACY = {  # of three seeds, at 3 bits and as latent weights
    ("tiny", "baseline"): ((20, 21, 22), (50, 51, 52)),
    ("tiny", "osciquant-3bit"): ((48, 49, 50), (50, 50, 50)),
    ("other", "baseline"): ((1, 1, 1), (2, 2, 2)),  # the study's own come first
    ("other", "qat-3bit"): ((49, 51, 50), (50, 50, 50)),
}


def measured(study):
    rows = []
    for (name, variant), widths in ACCURACY.items():
        for bits, values in zip((3, 32), widths if name == study else ()):
            rows += [
                dict.fromkeys(MEASUREMENTS)
                | {"experiment": "mlp5-scratch", "variant": variant, "seed": seed, "eval_bits": bits, "accuracy": value,
                   "split": "test", "bn": "keep", "status": "done", "run": f"results/{name}/runs/mlp5-scratch/{variant}/{seed}"}
                for seed, value in enumerate(values)
            ]  # fmt: skip
    return pd.DataFrame(rows, columns=MEASUREMENTS)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with the table, and a companion that has run what it lacks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/published.csv").symlink_to(ROOT / "params/published.csv")
    content = yaml.safe_load(TINY)
    for name, more in (("other", {}), ("tiny", {"gain": GAIN, "companions": ["other"]})):
        (tmp_path / f"params/{name}.yaml").write_text(yaml.safe_dump(content | more | {"study": name}))
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        measured(name).to_csv(folder / "measurements.csv", index=False)
    made = dict.fromkeys(POSTTRAINING) | {"experiment": "mlp5-scratch", "variant": "baseline", "label": "nearest-mse"}
    made |= {"eval_bits": 3, "bn": "keep", "status": "done", "run": "r"}
    rows = [made | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate((47, 49, 51))]
    pd.DataFrame(rows, columns=POSTTRAINING).to_csv("results/other/posttraining.csv", index=False)
    return Report.load(tmp_path / "params/tiny.yaml")


def test_the_rows_of_the_gain_come_from_the_first_study_that_has_run_them(study):
    rows = gain.gain_rows(study, study.study.gain).set_index("text")
    assert rows.study.to_dict() == {"PTQ": "tiny", "least squares": "other", "OsciQuant": "tiny", "QAT": "other"}
    assert rows.accuracy.to_dict() == {"PTQ": 21, "least squares": 49, "OsciQuant": 49, "QAT": 50}
    assert rows.fp.tolist() == [51, 2, 50, 50]  # least squares: of the companion's own baseline
    assert (rows.difference["PTQ"], rows.low["PTQ"], rows.high["PTQ"]) == (-28, -28, -28)
    half = 4.302652729911275 / math.sqrt(3)  # QAT - OsciQuant: 1, 2 and 0
    assert (rows.low["QAT"], rows.high["QAT"]) == pytest.approx((1 - half, 1 + half))
    shown = gain.shown(study, study.study.gain, gain.gain_rows(study, study.study.gain))
    assert [row.cells["− OsciQuant [95 %]"] for row in shown.rows[2:]] == ["", "+1.00 [-1.48, +3.48]"]


def test_a_row_that_nothing_has_run_says_so(study):
    Path("results/other/posttraining.csv").unlink()
    shown = gain.shown(study, study.study.gain, gain.gain_rows(study, study.study.gain))
    assert [row.cells["What is done"] for row in shown.rows] == ["PTQ", "OsciQuant", "QAT"]
    assert shown.not_run == "Not run: 1 cell of mlp5-scratch (not trained yet)."


def test_a_gain_names_variants_that_exist(study):
    content = yaml.safe_load(Path("params/tiny.yaml").read_text())
    content["gain"]["rows"][0]["of"] = "mlp5-scratch/basline"
    Path("params/tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="gain: unknown variant 'mlp5-scratch/basline'; did you mean"):
        load(Path("params/tiny.yaml"))


CLAIMS = pd.DataFrame(
    [
        {"claim": "C1", "statement": "Good.", "verdict": "supported", "scope": "MLP5: 1 of 2 comparisons", "n": 3,
         "estimate": 5.0, "low": 4.0, "high": 6.0, "evidence": "a > b", "counted": 1, "comparisons": 2},
        {"claim": "C2", "statement": "Bad.", "verdict": "contradicted", "scope": "MLP5: 2 of 2 comparisons", "n": 4,
         "estimate": -5.0, "low": -6.0, "high": -4.0, "evidence": "c > d", "counted": 2, "comparisons": 2},
    ]
)  # fmt: skip


@pytest.fixture
def reported(study):
    folder = Path("results/tiny")
    CLAIMS.to_csv(folder / "claims.csv", index=False)
    pd.DataFrame(columns=["claim", "comparison", "verdict", "n", "estimate", "low", "high"]).to_csv(
        folder / "claims_evidence.csv", index=False
    )
    for name in ("agreement.csv", "coverage.csv"):
        (folder / name).write_text("table\n")
    (folder / "tables").mkdir()
    gain.write_gain(study)
    for name in study.study.comparisons:
        pd.DataFrame(columns=comparison.COLUMNS).to_csv(folder / f"tables/comparison-{name}.csv")
    return study


def test_sentences_hold_their_numbers_scope_and_link(reported):
    found = {one.target: one.text for one in findings.findings(reported)}
    assert found["index.html#claims"] == (
        "**Of 2 claims of the paper** (in brackets: the comparisons that have run): supported: C1 (1 of 2); contradicted: "
        "C2 (2 of 2)."
    )
    assert found["index.html#C2"].startswith(
        "**C2 contradicted** (MLP5: 2 of 2 comparisons): Bad. Deciding: c > d: -5.00"
    )
    assert found["index.html#C2"].endswith("[-6.00, -4.00], n = 4.")
    explained = found["tables/gain.md"]
    assert explained == (
        "**Other ways to OsciQuant's 3-bit accuracy** (49.00, n = 3; differences, paired by seed): above it nothing. Not "
        "told apart: least squares +0.00 [-2.48, +2.48], n = 3; QAT +1.00 [-1.48, +3.48], n = 3. Below it: PTQ -28.00 "
        "[-28.00, -28.00], n = 3."
    )


def test_the_regularizer_as_written_is_one_sentence_of_all_its_widths(study):
    values = {(2, 2): (10, 11, 12), (2, 32): (10, 10, 10), (3, 3): (40, 41, 42), (3, 32): (50, 50, 50), (4, 4): (9,)}
    tests = pd.DataFrame(
        [
            {"experiment": "as-written", "train_bits": trained, "eval_bits": bits, "accuracy": float(value),
             "preset": "paper_text", "lambda": 0.5}
            for (trained, bits), of_seeds in values.items()
            for value in of_seeds
        ]
    )  # fmt: skip
    (found,) = findings._as_written(study.study, tests)  # a width without FP32 is left out
    assert found.text == (
        "**Eq. 23 as the text writes it** (as-written, λ = 0.5): trained ternary 11.00 [8.52, 13.48], n = 3, as FP32 10.00 "
        "[10.00, 10.00], n = 3 (both near chance); trained 3-bit 41.00 [38.52, 43.48], n = 3, as FP32 50.00 [50.00, 50.00], "
        "n = 3. All other numbers are of the released code's form."
    )


def test_findings_stand_in_the_folder_and_between_the_marks_of_a_readme(reported):
    findings.write_findings(reported)
    folder = Path("results/tiny")
    bullets = (folder / "findings.md").read_text().split("\n\n")[-1]
    assert bullets.count("\n- ") + 1 == len(pd.read_csv(folder / "findings.csv"))
    readme = Path("README.md")
    readme.write_text(f"# Before\n\n{findings.BEGIN}stale\n{findings.END}\nafter\n")
    findings.update_readme(reported, readme)
    text = readme.read_text()
    assert "stale" not in text and text.startswith("# Before\n") and text.endswith("\nafter\n")
    assert "(results/tiny/README.md#verdicts)" in text
    findings.update_readme(reported, readme)
    assert readme.read_text() == text
    readme.write_text("no marks")
    with pytest.raises(InputError, match="needs one line <!-- findings -->"):
        findings.update_readme(reported, readme)


def test_without_tables_or_claims_it_says_what_makes_them(study):
    with pytest.raises(
        InputError, match=r"claims\.csv: not there; python -m oscillations report --study tiny makes it"
    ):
        findings.findings(study)
