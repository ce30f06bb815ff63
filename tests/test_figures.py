"""Figures: which are drawn, what they hold, and that their letters can be read in print."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY
from matplotlib.text import Text
from PIL import Image, ImageSequence

from oscillations.report import figures
from oscillations.report.captions import CAPTIONS
from oscillations.report.figures import exact, film, histories, searches, weights
from oscillations.report.figures.page import WIDTH
from oscillations.report.pages.study import open_choices
from oscillations.report.results import MEASUREMENTS, OSCILLATIONS, POSTTRAINING, RECONSTRUCTION, Report, Results
from oscillations.report.tables.comparison import COLUMNS
from oscillations.report.tables.gain import write_gain
from oscillations.study import reading as studies
from oscillations.study.drawing import drawn
from oscillations.study.report_schema import RatePanels, figure_number

NAMES = [
    "figure1", "figure2", "figure3", "figure5", "figure6", "figure7", "figure7-qat", "figure8", "figureA1", "figureA5",
    "figure-comparison-mlp5",
]  # fmt: skip
EXACT = {"figure1", "figureA1", "figureA5"}
MORE = """\
posttraining:
  after: {of: [mlp5-scratch/baseline], bits: [3], methods: {nearest: , adaround: , brecq: }}
gain:
  bits: 3
  against: mlp5-scratch/osciquant-3bit
  rows:
    - {text: PTQ, of: mlp5-scratch/baseline}
    - {text: AdaRound, of: mlp5-scratch/baseline, posttraining: adaround}
    - {text: OsciQuant, of: mlp5-scratch/osciquant-3bit}
"""
SEEDS = (0, 1, 2)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The tiny study, more figures in it, in a folder where nothing has run: ``(study, variants)``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/tiny.yaml").write_text(TINY + MORE)
    (tmp_path / "params/published.csv").write_bytes((ROOT / "params/published.csv").read_bytes())
    yield studies.load(tmp_path / "params/tiny.yaml")
    plt.close("all")


def measured(variants, status="done"):
    """Test accuracies of three seeds of every variant, at every width."""
    return pd.DataFrame(
        [
            dict.fromkeys(MEASUREMENTS)
            | {
                "experiment": variant.experiment, "variant": variant.name, "model": "mlp5", "bn": "keep", "split": "test",
                "method": "ptq" if variant.recipe.bits == 32 and bits != 32 else variant.recipe.method.name,
                "train_bits": variant.recipe.bits, "eval_bits": bits, "grid": "sym_odd", "lr": variant.recipe.training.lr,
                "lambda": variant.recipe.method.get("lambda"), "seed": seed, "accuracy": 60 + bits / 2 + seed,
                "best_epoch": 2, "status": status, "run": str(variant.run(seed).folder),
            }
            for variant in variants
            for seed in SEEDS
            for bits in (32, 2, 3, 4, 8)
        ],
        columns=MEASUREMENTS,
    )  # fmt: skip


def logged(variants, status="done"):
    """Histories of every variant: seed 0 stops after 3 epochs, the others after 4 and 5."""
    return pd.DataFrame(
        [
            dict.fromkeys(OSCILLATIONS)
            | {
                "experiment": variant.experiment, "variant": variant.name, "model": "mlp5", "seed": seed, "epoch": epoch,
                "method": variant.recipe.method.name, "train_bits": variant.recipe.bits, "status": status,
                "steps_per_epoch": 10, "weights": 1000, "iteration_nagel": 100 * epoch, "epoch_nagel": 10 * (epoch - 1),
                **{f"val_acc_{bits}": 50 + bits / 4 + epoch for bits in (32, 2, 3, 4, 8)},
            }
            for variant in variants
            for seed in SEEDS
            for epoch in range(1, 4 + seed)
        ],
        columns=[*OSCILLATIONS, "val_acc_8"],
    )  # fmt: skip


def posttrained(variants):
    """Three labels after the baseline: AdaRound and BRECQ alike, and a unit that loses nothing."""
    made = [
        dict.fromkeys(POSTTRAINING)
        | {
            "experiment": "mlp5-scratch", "variant": "baseline", "label": label, "method": label, "eval_bits": 3,
            "bn": "keep", "seed": seed, "accuracy": 70.0 + seed, "status": "done", "run": str(variant.run(seed).folder),
        }
        for variant in variants
        if variant.path == "mlp5-scratch/baseline"
        for seed in SEEDS
        for label in ("nearest", "adaround", "brecq")
    ]  # fmt: skip
    losses = [
        {"run": row["run"], "label": row["label"], "eval_bits": 3, "place": place, "unit": f"fc{place}", "group": place,
         "loss": loss * (2 if row["label"] == "nearest" else 1)}
        for row in made
        for place, loss in enumerate((0.0, 0.1, 0.2), 1)
    ]  # fmt: skip
    return pd.DataFrame(made, columns=POSTTRAINING), pd.DataFrame(losses, columns=RECONSTRUCTION)


def histograms(experiment, names, places):
    """As many weights at each of some places on the grid, in steps."""
    rows = [
        {"run": f"{experiment}/{name}/seed{seed}", "layer": "fc2.weight", "bits": 3, "scale": 1.0, "u": u, "count": n}
        for name in names
        for seed in SEEDS
        for u, n in places.items()
    ]
    folder = studies.Path(f"results/tiny/runs/{experiment}")
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "histograms.csv", index=False)


def compared(*rows):
    """The table of a comparison, of what is known about its rows."""
    filled = [
        {"family": "From scratch", "n": 3, "diverged": 0, "early": 0, "runs": "none", "at_8": 80} | row for row in rows
    ]
    columns = [*COLUMNS, "at_32", "at_8", "at_4", "at_2"]
    studies.Path("results/tiny/tables").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(filled, columns=columns).to_csv("results/tiny/tables/comparison-mlp5.csv", index=False)


def report(study, chosen=None, edit=None):
    """The report of some variants' made-up results, all if none are chosen, with the files that figures read.

    ``edit``: (method, column, value) of what is measured otherwise.
    """
    spec, variants = study
    chosen = variants if chosen is None else chosen
    for experiment in {variant.experiment for variant in chosen}:
        names = [variant.name for variant in chosen if variant.experiment == experiment and variant.recipe.bits != 32]
        if names:
            histograms(experiment, names, {-1.0: 10, 0.0: 30, 0.5: 20})
    rows = [{"label": v.name, "method": v.recipe.method.name, "accuracy": 60.0, "difference": -1.0}
            for v in chosen if v.experiment == "mlp5-scratch" and v.recipe.bits in (32, 3)]  # fmt: skip
    compared(*(rows or [{"label": "QAT", "n": 0}]))
    made, losses = posttrained(chosen)
    measurements = measured(chosen)
    if edit:
        method, column, value = edit
        measurements.loc[measurements.method == method, column] = value
    found = Report(spec, variants, Results("tiny", measurements, logged(chosen), made, losses))
    write_gain(found)
    return found


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def accuracies(study, *rows):
    """A report of OsciQuant at 3 bits from (lr, lambda, seed, accuracy)."""
    about = {
        "experiment": "mlp5-lambda", "model": "resnet18", "method": "osciquant", "train_bits": 3, "eval_bits": 3,
        "bn": "keep", "split": "test", "status": "done",
    }  # fmt: skip
    table = [dict.fromkeys(MEASUREMENTS) | about | dict(zip(("lr", "lambda", "seed", "accuracy"), row)) for row in rows]
    return Report(*study, Results("tiny", pd.DataFrame(table, columns=MEASUREMENTS)))


def test_figures_of_a_study_in_the_papers_order(study):
    assert study[0].figure_names == [*NAMES, "figure-reconstruction-after", "figure-gain"]
    assert [figures.title(name) for name in ("figure1", "figure7-qat", "figureA5", "figure-gain", "figure-rates-a")] == [
        "Figure 1", "Figure 7 (qat)", "Figure A5", "Gain", "Rates (a)",
    ]  # fmt: skip
    others = ["figure-rates-ternary", "figure-aoq-toy", *study[0].films]
    assert set(CAPTIONS) == {figure_number(name) for name in [*study[0].figure_names, *others]}


def test_what_has_not_run_leaves_no_file(study):
    folder = studies.Path("figures/tiny")
    folder.mkdir(parents=True)
    (folder / "figure3.png").touch()
    figures.write_figures(report(study, []))
    assert {file.stem for file in folder.iterdir()} == EXACT
    assert (folder / "figure1.pdf").read_bytes().startswith(b"%PDF")


def test_what_was_promised_and_diverged_says_so(study):
    spec, variants = study
    compared({"label": "QAT", "n": 0})
    studies.Path("results/tiny/tables/gain.csv").write_text(
        "text,of,study,n,accuracy,std,fp,difference,low,high,pairs,runs\n"
    )
    found = Report(spec, variants, Results("tiny", measured(variants, "diverged"), logged(variants, "diverged")))
    promised = drawn(spec, variants, {variant.path for variant in variants}, [])
    assert figures.draw("figure3", found) is None
    figures.write_figures(found)
    assert {file.stem for file in studies.Path("figures/tiny").iterdir()} == set(promised)
    assert "Figure 3: all runs diverged" in texts(figures._all_diverged("figure3"))


def test_what_snakemake_is_promised_is_drawn(study):
    """Of each variant alone, and of all: what it says will be drawn is what has something to show."""
    spec, variants = study
    for chosen in ([], *([variant] for variant in variants), variants):
        found = report(study, chosen)
        ran = {variant.path for variant in chosen}
        entries = ["after"] if "mlp5-scratch/baseline" in ran else []
        promised = drawn(spec, variants, ran, entries)
        assert [name for name in spec.figure_names if figures.draw(name, found)] == promised, ran
        plt.close("all")


def test_letters_can_be_read_in_print(study):
    found = report(study)
    for name in study[0].figure_names:
        figure = figures.draw(name, found)
        figure.draw_without_rendering()
        width = figure.get_figwidth()
        small = {text.get_text(): text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
        assert min(small.values()) * min(1, 6.75 / width) >= 7, name
        assert width <= WIDTH, name


def test_panels_that_have_not_run_are_left_out(study):
    (qat,) = [variant for variant in study[1] if variant.name == "qat-3bit"]
    figure = figures.draw("figure3", report(study, [qat]))
    assert [axes.get_title() for axes in figure.axes] == ["(a) QAT 3-bit\nn = 3", ""]
    assert "not run: mlp5-lambda/osciquant-3bit-lambda0" in figure.get_suptitle()


def test_figure_2_shows_the_grid_that_was_trained_on(study):
    figure = figures.draw("figure2", report(study, edit=("qat", "grid", "mid_rise")))
    qat, osciquant, near, _ = figure.axes
    thresholds = [[line.get_xdata()[0] for line in axes.lines] for axes in (qat, osciquant)]
    assert thresholds == [[-3, -2, -1, 0, 1, 2, 3], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]]
    assert [bar.get_x() + bar.get_width() / 2 for bar in qat.patches] == pytest.approx([-0.5, 0.5, 1.0])
    assert [bar.get_x() + bar.get_width() / 2 for bar in osciquant.patches] == pytest.approx([-1, 0, 0.5])
    assert near.get_title() == "near: 33 %\nuniform: 10 %"


def test_half_of_the_bins_at_the_ends_is_near_a_threshold():
    uniform = pd.Series(0.05, index=np.round(np.arange(-0.5, 0.5, 0.05), 2))
    assert weights._near(uniform) == pytest.approx(0.1)


def test_figure_3_goes_as_far_as_all_seeds_and_shows_each_ones_end(study):
    figure = figures.draw("figure3", report(study))
    per_epoch = figure.axes[0]
    mean = per_epoch.lines[0].get_xydata()
    assert mean[0].tolist() == [1, pytest.approx(math.nan, nan_ok=True)]  # nothing to look back to
    assert mean[1:].tolist() == [[2, 1], [3, 2]]
    ends = [line.get_xydata().tolist() for line in per_epoch.lines if line.get_marker() == "x"]
    assert ends == [[[3, 2]], [[4, 3]], [[5, 4]]]
    beside = [line for line in figure.axes[1].lines if line.get_linestyle() == ":"]
    assert len(beside) == 1  # QAT, in the panel of OsciQuant


def test_qat_beside_a_panel_is_of_its_own_experiment_if_it_has_one(study):
    found = report(study)
    runs = dict.fromkeys(("mlp5-scratch/qat-3bit", "mlp5-scratch/osciquant-3bit"), found.results.epochs)
    assert histories._qat_beside("mlp5-scratch/qat-3bit", runs, found) is None
    assert histories._qat_beside("mlp5-scratch/osciquant-3bit", runs, found) is not None
    assert histories._qat_beside("mlp5-scratch/osciquant-3bit", {}, found) is None


def test_figure_5_is_a_grid_of_means(study):
    found = accuracies(study, (2e-3, 2.0, 0, 50.0), (2e-3, 2.0, 1, 52.0), (1e-3, 2.0, 0, 49.0), (2e-3, 0.0, 0, 90.0))
    figure = searches.figure5(study[0].figures["figure5"], found)
    mesh, *_ = figure.axes[0].collections
    np.testing.assert_array_equal(mesh.get_array().ravel(), [0, -2])  # to the best cell, for want of QAT
    assert mesh.get_clim() == (-5, 5)  # a difference of little has little colour
    assert {"51.0", "49.0", "OsciQuant, ResNet-18, 3-bit, n = 1 to 2: accuracy (%)"} <= set(texts(figure))


def test_figure_5_shows_qat_of_each_rate_and_colours_the_distance_to_it(study):
    spec = study[0].figures["figure5"].model_copy(update={"experiments": ["mlp5-scratch", "mlp5-lambda"]})
    figure = searches.figure5(spec, report(study, edit=("qat", "accuracy", 70.0)))
    mesh, *_ = figure.axes[0].collections
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["λ = 1", "λ = 2", "QAT"]
    np.testing.assert_array_equal(mesh.get_array().ravel(), [-7.5, -7.5, 0])


@pytest.mark.parametrize(("relation", "shown"), [("miniature", False), ("paper", True)])
def test_figure_6_shows_mean_spread_and_the_published_sweep(study, relation, shown):
    spec = study[0].model_copy(update={"published": relation})
    found = accuracies((spec, study[1]), (2e-3, 1.0, 0, 50.0), (2e-3, 1.0, 1, 52.0), (2e-3, 1.0, 2, 51.0))
    figure = searches.figure6(spec.figures["figure6"], found)
    mine, *published = figure.axes[0].containers
    assert mine.lines[0].get_xydata().tolist() == [[1.0, 51.0]]
    (bar,) = mine.lines[2][0].get_segments()
    assert bar[:, 1].tolist() == pytest.approx([50, 52])
    assert figure.axes[0].get_ylim()[0] == 0
    assert bool(published) == shown
    if shown:
        assert [0.75, 70.08] in published[0].lines[0].get_xydata().tolist()
        assert published[0].get_label() == "published (Table 4)"


def test_figure_6_has_lines_for_full_precision_ptq_and_qat(study):
    figure = figures.draw("figure6", report(study))
    lines = [line.get_label() for line in figure.axes[0].lines]
    assert {"FP32: 77.0", "QAT: 62.5", "PTQ, 3-bit: 62.5"} <= set(lines)


def test_figure_7_tells_the_widths_apart_by_their_difference_to_full_precision(study):
    figure = figures.draw("figure7-qat", report(study))
    accuracy, difference = figure.axes
    assert len(accuracy.lines) == len(difference.lines) == 5
    assert sorted({round(y, 2) for line in difference.lines for y in line.get_ydata()}) == [-7.5, -7.25, -7, -6, 0]
    assert len(figures.draw("figure8", report(study)).axes) == 1


def test_the_figure_of_rates_shows_every_lambda_qat_ptq_and_what_is_published(study):
    spec = study[0].model_copy(update={"published": "paper"})
    about = {"experiment": "mlp5-lambda", "model": "mlp5", "bn": "keep", "split": "test", "status": "done"}
    cells = [
        ("osciquant", 2, 1.0, 2, 30.0),
        ("osciquant", 2, 4.0, 2, 35.0),
        ("qat", 2, None, 2, 50.0),
        ("ptq", 32, None, 3, 20.0),
    ]
    rows = [
        dict.fromkeys(MEASUREMENTS) | about | {"method": method, "variant": f"{method}-{lam}", "train_bits": trained, "lr": lr,
        "lambda": lam, "eval_bits": bits, "seed": seed, "accuracy": accuracy + seed}
        for method, trained, lam, bits, accuracy in cells for lr in (1e-3, 3e-3) for seed in (0, 2)
    ]  # fmt: skip
    panels = RatePanels(experiment="mlp5-lambda", bits=2)
    assert searches.figure_rates(panels, Report(spec, [], Results("tiny"))) is None
    found = Report(spec, [], Results("tiny", pd.DataFrame(rows, columns=MEASUREMENTS)))
    axes = searches.figure_rates(panels, found).axes[0]
    shown = {line.get_label(): line.lines[0].get_xydata().tolist() for line in axes.containers}
    assert shown == {
        "OsciQuant, λ = 1, ternary": [[1e-3, 31], [3e-3, 31]], "OsciQuant, λ = 4, ternary": [[1e-3, 36], [3e-3, 36]],
        "QAT, ternary": [[1e-3, 51], [3e-3, 51]], "PTQ of the baseline, 3-bit": [[1e-3, 21], [3e-3, 21]],
    }  # fmt: skip
    dotted = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(dotted) == [20.97, 36.49, 49.2]


def test_a_comparison_shows_what_has_run_the_best_first_and_failures_at_the_edge(study):
    methods = [
        {"label": "QAT", "method": "qat", "accuracy": 50.0, "at_32": 52.0},
        {"label": "FP32, then PTQ", "method": "baseline", "accuracy": 49.0, "difference": -1.0, "at_32": 53.0},
        *({"label": f"M{i}", "method": f"m{i}", "accuracy": 50 + i / 10, "difference": i / 10} for i in range(1, 9)),
        {"label": "Failed", "method": "gradient-l1", "accuracy": 20.0, "difference": -30.0},
        {"label": "Late", "method": "cga", "accuracy": 52.0, "difference": 2.0, "early": 2},
        {"label": "Diverged", "method": "ema", "n": 0, "diverged": 3},
        {"label": "Not run", "method": "kure", "n": 0},
    ]  # fmt: skip
    found = report(study)
    compared(*methods)
    figure = figures.draw("figure-comparison-mlp5", found)
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["Late ‡", *(f"M{i}" for i in range(8, 0, -1)), "QAT", "FP32, then PTQ", "Failed", "Diverged"]
    assert left.get_xlim()[0] > -5
    assert {"−30.0", " diverged", "From scratch"} <= set(texts(figure))
    means = {
        line.get_ydata()[0]: line for line in left.lines if line.get_marker() == "o" and line.get_markersize() == 4
    }
    assert means[1].get_xdata()[0] == 2.0 and means[1].get_markerfacecolor() == "white"
    assert means[10].get_xdata()[0] == 0.0 and means[10].get_markerfacecolor() != "white"
    full = [
        line.get_xdata()[0] for line in left.lines if line.get_linestyle() == "-" and len(set(line.get_ydata())) == 2
    ]
    assert 3.0 in full
    assert [line.get_label() for line in right.lines] == ["FP32", "8-bit", "4-bit", "3-bit", "ternary"]


def test_a_comparison_of_more_than_fits_shows_the_best_of_every_family_beside_what_they_are_compared_with(study):
    found = report(study)
    families = {"From scratch": "S", "Fine-tuned from a": "F"}
    compared(
        *({"label": "QAT", "method": "qat", "accuracy": 1.0, "family": family} for family in families),
        *(
            {"label": f"{name}{i}", "method": "osciquant", "accuracy": i / 10, "difference": 1.0, "family": family}
            for family, name in families.items()
            for i in range(200, 350)
        ),
    )
    figure = figures.draw("figure-comparison-mlp5", found)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [*(f"S{i}" for i in range(349, 274, -1)), "QAT", *(f"F{i}" for i in range(349, 274, -1)), "QAT"]
    assert figure.get_suptitle().endswith("(the best of 302 rows)")


def test_a_comparison_shows_the_seeds_of_trained_and_of_post_trained_runs(study):
    found = report(study)
    runs = found.results.tests[found.results.tests.path == "mlp5-scratch/qat-3bit"].run.unique()
    base = found.results.posttraining.run.unique()
    compared(
        {"label": "QAT", "method": "qat", "accuracy": 62.5, "runs": " ".join(runs)},
        {"label": "AdaRound", "method": "adaround", "posttraining": "adaround", "accuracy": 71.0, "difference": 1.0,
         "family": "Post-training on mlp5-scratch/baseline", "runs": " ".join(base)},
    )  # fmt: skip
    left, _ = figures.draw("figure-comparison-mlp5", found).axes
    seeds = [
        line.get_xdata().tolist() for line in left.lines if line.get_markersize() == 2 and line.get_marker() == "o"
    ]
    assert seeds == [[-1, 0, 1], [0, 1, 2]]


def test_a_comparison_without_qat_shows_the_widths_alone(study):
    found = report(study)
    compared({"label": "FP32, then PTQ", "method": "baseline", "accuracy": 49.0, "at_32": 53.0})
    assert len(figures.draw("figure-comparison-mlp5", found).axes) == 1


def test_the_gain_is_shown_in_the_studys_order_with_the_seeds(study):
    left, right = figures.draw("figure-gain", report(study)).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["PTQ", "AdaRound", "OsciQuant"]
    seeds = [line.get_xdata().tolist() for line in left.lines if line.get_markersize() == 2]
    assert seeds == [[61.5, 62.5, 63.5], [70, 71, 72], [61.5, 62.5, 63.5]]
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"] == [0, 8.5, 0]


def test_reconstruction_joins_what_coincides_and_marks_no_unit_without_a_loss(study):
    nearest, learned = figures.draw("figure-reconstruction-after", report(study)).axes
    assert [text.get_text() for text in learned.get_legend().get_texts()] == ["adaround,\nbrecq"]
    assert learned.lines[0].get_xydata().tolist() == [[2, pytest.approx(0.1)], [3, pytest.approx(0.2)]]
    assert nearest.lines[0].get_ydata() == pytest.approx([0.2, 0.4])


def test_reconstruction_has_no_panel_of_what_has_not_run(study):
    results = report(study).results
    found = Report(*study, replace(results, losses=results.losses[results.losses.label == "nearest"]))
    (nearest,) = figures.draw("figure-reconstruction-after", found).axes
    assert nearest.get_title() == "rounding to nearest"


def test_figure_a5_shows_the_counters_totals():
    shown = texts(exact.figure_a5())
    assert "crossings 7, Nagel 5, corrected 7, trips 3" in shown
    assert "crossings 4, Nagel 3, corrected 4, trips 2\ntimeout 2: Nagel 2, corrected 4, trips 2" in shown
    assert "crossings 2, Nagel 1, corrected 2, trips 1\ntimeout 2: Nagel 0, corrected 0, trips 0" in shown
    labels = ["313 steps\n(40,000 images)", "352 steps\n(45,000 images)", "391 steps\n(50,000 images)"]
    assert set(labels) <= set(shown)
    assert [text for text in shown if "counted\n" in text] == [
        "7 counted\nof 2,503", "0 counted\nof 2,815", "7 counted\nof 3,127",
    ]  # fmt: skip


def test_open_choices_are_the_rows_tagged_so():
    text = "| item | taken | tag |\n| --- | --- | --- |\n| a | `x` < 1 | choice |\n| b | y | text |\n| c | z | text; ties choice |\n"
    assert open_choices(text) == [("a", "`x` < 1"), ("c", "z")]
    taken = dict(open_choices((ROOT / "docs/choices.md").read_text()))
    assert {"learning rate", "validation split", "figure 4"} <= set(taken)
    assert "batch size" not in taken


def test_a_film_of_nothing_is_not_drawn(study):
    film.write_films(Report(*study))
    assert not list(Path("figures").rglob("*.gif"))


def test_a_training_that_stops_holds_its_last_picture_and_says_so(study):
    _, variants = study
    edges = np.linspace(-3.025, 3.025, 122)
    short, long = (
        film.Training(variants[1].recipe, np.linspace(0, 0.5, n), np.ones((n, 121)) / 6, edges) for n in (2, 4)
    )
    figure = film.plt.figure()
    panel = film.Panel(figure.add_subplot(), short)
    assert [line.get_xdata()[0] for line in panel.bars.axes.lines] == [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    said = []
    for epoch in range(4):
        panel.show(epoch)
        said.append((panel.axes.get_title().split("\n")[1], panel.note.get_text()))
    assert said == [("near a threshold: 0.0 %", ""), *[("near a threshold: 50.0 %", "stopped after epoch 1")] * 3]
    film.plt.close(figure)
    assert len(film.frames(study[0].films["figure-film-mlp5"], [short, long])) == 4


@pytest.mark.slow
def test_the_film_of_a_finished_study(finished_project, monkeypatch):
    monkeypatch.chdir(finished_project.folder)
    file = Path("figures/tiny/figure-film-mlp5.gif")
    with Image.open(file) as made:
        frames = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(made)]
        assert made.info["loop"] == 0
    assert [duration for duration, _ in frames] == [film.FRAME] * 3 + [film.HELD]  # the start and three epochs
    assert {pixels.shape for _, pixels in frames} == {(round(film.HEIGHT * film.DPI), round(WIDTH * film.DPI), 3)}
    assert all((a != b).any() for (_, a), (_, b) in itertools.pairwise(frames))
    assert file.stat().st_size < 500_000
    before = file.read_bytes()
    film.write_films(Report.load(Path("params/tiny.yaml")))
    assert file.read_bytes() == before


@pytest.mark.slow
def test_every_figure_of_a_finished_study(finished_project):
    for name in NAMES:
        pixels = matplotlib.image.imread(finished_project.folder / f"figures/tiny/{name}.png")
        assert min(pixels.shape[:2]) > 200, name
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50, name
        assert (finished_project.folder / f"figures/tiny/{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (finished_project.folder / "results/tiny/index.html").read_text()
    assert sorted(re.findall(r'<figure id="([^"]+)"', page)) == sorted([*NAMES, "figure-film-mlp5"])
    assert "<b>Figure 4.</b> not drawn" in page
    making = (finished_project.folder / "results/tiny/making.html").read_text()
    assert 'id="open"' not in making  # a miniature's choices are its own
    assert 'id="rate-search"' in making
