"""Acceptance of other machines' runs: the tests against scipy's, the stated error rates, the table and the exit code."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from oscillations.cli import main
from oscillations.report import acceptance
from oscillations.report.acceptance import DIFFERS, SAME, UNDECIDED, compare, error_rates, holm, overall

REFERENCE = ROOT / "results/paper-jpeg"
SEEDS = "0,1,2,3,4"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def normal(n, variants=1, mean=50.0, std=2.0, commands=(), seed=0):
    draw = np.random.default_rng(seed)
    return {f"e/v{i}": draw.normal(mean, std, size=(*commands, n, 2)) for i in range(variants)}


def measurements(folder, change=lambda table: table):
    """A folder with the reference's five first runs of every variant, changed."""
    table = pd.read_csv(REFERENCE / "measurements.csv")
    folder.mkdir(exist_ok=True)
    change(table[(table.experiment == "mlp5-scratch") & (table.seed < 5)]).to_csv(
        folder / "measurements.csv", index=False
    )
    return folder


def accept(folder, *more):
    return main(["accept", "--results", str(folder), "--reference-seeds", SEEDS, *more])


def rows(printed):
    """The table as printed, down to the first empty line: (variant, measure) -> answer."""
    lines = [line.split() for line in printed.split("\n\n")[0].splitlines()[1:]]
    return {(words[0], next(word for word in words if word in acceptance.MEASURES)): words[-1] for words in lines}


# -- the tests ---------------------------------------------------------------------------------------------


def test_one_variant_is_students_test():
    reference, theirs = normal(10), normal(4, mean=51, seed=1)
    found = compare(reference, theirs)
    expected = stats.ttest_ind(theirs["e/v0"], reference["e/v0"])
    interval = expected.confidence_interval(0.9)
    assert found.difference[0] == pytest.approx(theirs["e/v0"].mean(0) - reference["e/v0"].mean(0))
    assert found.low[0] == pytest.approx(interval.low)
    assert found.high[0] == pytest.approx(interval.high)
    smaller, larger = sorted(expected.pvalue)
    assert sorted(found.p[0]) == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    assert found.margin[0] == pytest.approx(3 * reference["e/v0"].std(0, ddof=1))


def test_the_mean_over_variants_is_satterthwaites():
    """Differences 1 and 3: mean 2; variances of a difference 2 and 1/2 with 2 and 2 degrees of freedom."""
    wide, narrow = np.array([[0.0], [2], [4]]), np.array([[0.0], [1], [2]])  # variances 4 and 1
    halves = {"a": wide[[0, 0, 1, 2, 2]], "b": narrow}
    reference = {name: np.repeat(runs, 2, axis=1) for name, runs in halves.items()}
    theirs = {"a": reference["a"] + 1, "b": reference["b"] + 3}
    found = compare(reference, theirs)
    variance = {"a": 4 * (2 / 5), "b": 1 * (2 / 3)}  # of a: (4 + 4 + 0 + 4 + 4) / 4 = 4
    total = sum(variance.values())
    freedom = total**2 / (variance["a"] ** 2 / 8 + variance["b"] ** 2 / 4)
    assert found.difference[-1, 0] == 2
    assert found.high[-1, 0] == pytest.approx(2 + stats.t.ppf(0.95, freedom) * np.sqrt(total) / 2)
    assert found.margin[-1, 0] == pytest.approx(3 * np.sqrt(4 + 1) / 2)
    assert found.p.shape == (3, 2)


def test_equal_constants_are_the_same_and_others_differ():
    """Best epochs of a study without early stopping: no spread, no chance, a margin of one epoch."""
    reference = {"e/v": np.full((5, 2), 51.3)}
    assert compare(reference, {"e/v": np.full((3, 2), 51.3)}).answer.tolist() == [[SAME, SAME]]
    assert compare(reference, {"e/v": np.full((3, 2), 51.2)}).answer.tolist() == [[DIFFERS, DIFFERS]]


def test_a_shift_too_small_for_one_variant_shows_in_the_mean():
    reference = normal(10, 7)
    found = compare(reference, {name: runs - [1.5, 0] for name, runs in reference.items()})
    assert DIFFERS not in found.answer[:-1]
    assert found.answer[-1, 0] == DIFFERS


@pytest.mark.parametrize("n", [3, 5, 10])
def test_false_alarms_stay_at_five_percent(n):
    """4,000 commands of seven variants that differ in nothing: the rate's standard error is 0.35 points."""
    found = compare(normal(10, 7, commands=(4000,)), normal(n, 7, commands=(4000,), seed=1))
    assert 0.04 < (overall(found.answer) == DIFFERS).mean() < 0.062


@pytest.mark.parametrize(("spreads", "least", "most"), [(2, 0.4, 0.6), (3, 0.87, 0.96)])
def test_why_the_margin_is_three_deviations(monkeypatch, spreads, least, most):
    """Ten runs of seven variants against ten, nothing differs: how often that is shown."""
    monkeypatch.setattr(acceptance, "SPREADS", spreads)
    found = compare(normal(10, 7, commands=(2000,)), normal(10, 7, commands=(2000,), seed=1))
    assert least < (overall(found.answer) == SAME).mean() < most


def test_why_not_welchs_test():
    """Three runs against ten, 14 tests: twice the promised false alarms, where Student's keep to it (above)."""
    reference, theirs = normal(10, 7, commands=(4000,)), normal(3, 7, commands=(4000,), seed=1)
    p = [stats.ttest_ind(theirs[name], reference[name], axis=-2, equal_var=False).pvalue for name in theirs]
    assert (holm(np.concatenate(p, axis=-1)) < 0.05).any(-1).mean() > 0.09


def test_stated_rates_are_what_the_command_does():
    """Truly normal reference: its resampled rates come near those of fresh draws, whatever is true."""
    reference = normal(10, 3, seed=3)
    stated = error_rates(reference, dict.fromkeys(reference, 5), {"other": ("e/v1", normal(5, mean=40)["e/v0"])})
    stated = stated.set_index("truth")
    assert stated.sum(axis=1).tolist() == pytest.approx([100] * 4)
    assert stated.loc["nothing differs", DIFFERS] == pytest.approx(5, abs=2)
    assert stated.loc["one variant's accuracy is lower by its margin", SAME] < 5
    assert stated.loc["one variant's accuracy is lower by its margin", DIFFERS] > 80
    assert stated.loc["e/v1 is other (n = 5)", DIFFERS] == 100


def test_stated_rates_are_seeded():
    reference = normal(5, 2)
    first, second = (error_rates(reference, dict.fromkeys(reference, 3), {}) for _ in range(2))
    assert first.equals(second)


# -- the command -------------------------------------------------------------------------------------------


def test_the_reference_itself_is_the_same(tmp_path, capsys):
    assert accept(measurements(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert set(rows(printed).values()) == {SAME}
    assert len(rows(printed)) == 2 * (7 + 1)
    assert "35 of your 35 runs equal the reference's of the same seed in every digit" in printed
    assert "35 of your 35 runs have no record" in printed
    assert printed.endswith("answer: same\n")


def test_one_variant_lower_by_three_points_differs(tmp_path, capsys):
    def lower(table):
        return table.assign(accuracy=table.accuracy - 3 * (table.variant == "qat-3bit"))

    assert accept(measurements(tmp_path, lower)) == 1
    found = rows(capsys.readouterr().out)
    assert [key for key, answer in found.items() if answer == DIFFERS] == [("mlp5-scratch/qat-3bit", "accuracy")]


def test_every_variant_lower_by_a_point_differs(tmp_path):
    assert accept(measurements(tmp_path, lambda table: table.assign(accuracy=table.accuracy - 1))) == 1


def test_later_epochs_differ(tmp_path):
    assert accept(measurements(tmp_path, lambda table: table.assign(best_epoch=2 * table.best_epoch))) == 1


def test_fewer_than_three_runs_are_undecided(tmp_path, capsys):
    """And those that can be compared still are."""
    folder = measurements(tmp_path, lambda table: table[(table.seed < 2) | (table.variant == "baseline")])
    assert accept(folder) == 3
    found = rows(capsys.readouterr().out)
    assert found[("mlp5-scratch/qat-3bit", "accuracy")] == UNDECIDED
    assert found[("mlp5-scratch/baseline", "accuracy")] == SAME
    assert accept(folder, "--seeds", "0,1") == 3  # nothing to compare at all


def test_a_diverged_run_leaves_its_variant_undecided(tmp_path, capsys):
    def diverged(table):
        return table.assign(status=table.status.mask((table.seed == 1) & (table.variant == "baseline"), "diverged"))

    assert accept(measurements(tmp_path, diverged)) == 3
    printed = capsys.readouterr().out
    assert "1 of your runs have no numbers (diverged)" in printed
    assert [key[0] for key, answer in rows(printed).items() if answer == UNDECIDED] == ["mlp5-scratch/baseline"] * 2


def test_the_weights_at_the_end_of_a_training_are_not_compared(tmp_path):
    """Where they stand beside the best epoch's."""

    def both(table):
        return pd.concat([table.assign(selection="best"), table.assign(selection="last", accuracy=1.0)])

    assert accept(measurements(tmp_path, both)) == 0


def test_the_wrong_lambda_differs(tmp_path, capsys):
    """Lambda 0.25's three runs in the place of lambda 1's."""
    table = pd.read_csv(REFERENCE / "measurements.csv")
    wrong = table[table.variant == "osciquant-3bit-lambda0.25"]
    wrong = wrong.assign(experiment="mlp5-scratch", variant="osciquant-3bit")
    wrong.to_csv(tmp_path / "measurements.csv", index=False)
    assert accept(tmp_path) == 1
    printed = capsys.readouterr().out
    assert rows(printed)[("mlp5-scratch/osciquant-3bit", "accuracy")] == DIFFERS
    assert "mlp5-scratch/osciquant-3bit is mlp5-lambda/osciquant-3bit-lambda0.25 (n = 3)" in printed


def test_records_tell_what_else_is_not_the_references(tmp_path, capsys):
    folder = measurements(tmp_path, lambda table: table[table.variant == "osciquant-3bit"])
    for seed in range(3):
        run = "runs/mlp5-scratch/osciquant-3bit/seed"
        shutil.copytree(REFERENCE / f"{run}{seed}", folder / f"{run}{seed}")
    record = folder / f"{run}1/run.json"
    text = record.read_text()
    for old, new in {
        '"lambda": 1.0': '"lambda": 0.25',
        '"engine": 1': '"engine": 7',
        '"device": "cpu"': '"device": "x"',
    }.items():
        assert old in text
        text = text.replace(old, new)
    record.write_text(text)
    (folder / f"{run}2/run.json").write_text("{}")
    accept(folder)
    printed = capsys.readouterr().out
    for key in ("recipe.method.lambda", "arithmetic.engine", "device"):
        assert f"note: {key} is not the reference's in 1 of your 5 runs\n" in printed
    assert "note: 1 of your 5 runs have the reference's recipe, data, versions and device" in printed
    assert "note: 3 of your 5 runs have no record" in printed
    assert "recipe.training" not in printed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing; python -m oscillations collect"),
        ("a,b\n1,2\n", "not what python -m oscillations collect writes"),
        ("", "not what python -m oscillations collect writes"),
    ],
)
def test_a_folder_without_measurements_is_one_line(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "measurements.csv").write_text(content)
    assert accept(tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{tmp_path / 'measurements.csv'}: {said}" in lines[0]


def test_what_has_no_reference_is_refused(tmp_path, capsys):
    folder = measurements(tmp_path, lambda table: table.assign(experiment="mlp5-scrach"))
    assert accept(folder) == 2
    assert "did you mean 'mlp5-scratch/baseline'?" in capsys.readouterr().err
    assert main(["accept", "--study", "quick", "--results", str(folder)]) == 2  # nobody keeps its results
    assert accept(measurements(tmp_path), "--seeds", "17") == 2
    assert "no run has seed 17" in capsys.readouterr().err


def test_later_seeds_of_the_reference_do_not_differ_and_a_wrong_lambda_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = ROOT / "results/paper-jpeg"
    assert acceptance.accept("paper-jpeg", folder, range(5, 10), range(5)) != DIFFERS
    table = pd.read_csv(folder / "measurements.csv")
    wrong = table[(table.experiment == "mlp5-lambda") & (table.variant == "osciquant-3bit-lambda0.25")]
    wrong = wrong.assign(experiment="mlp5-scratch", variant="osciquant-3bit")
    wrong.to_csv(tmp_path / "measurements.csv", index=False)
    assert acceptance.accept("paper-jpeg", tmp_path) == DIFFERS
    assert "lambda is not the reference's" in capsys.readouterr().out
