"""Figures: which are drawn, what they hold, and what they say when nothing has run."""

import itertools
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY
from PIL import Image, ImageSequence

from oscillations.report.figures import exact as exact_figures
from oscillations.report.figures import film, searches
from oscillations.report.figures import runs as figures
from oscillations.report.measurements import MEASUREMENTS
from oscillations.report.site import open_choices
from oscillations.study import reading as studies
from oscillations.study.report_schema import RatePanels, figure_number

NAMES = [
    "figure1", "figure2", "figure3", "figure5", "figure6", "figure7", "figure7-qat", "figure8", "figureA1", "figureA5",
    "figure-comparison-mlp5", "figure-heatmap-mlp5",
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny study in a folder where nothing has run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/tiny.yaml").write_text(TINY)
    (tmp_path / "params/published.csv").write_bytes((ROOT / "params/published.csv").read_bytes())
    results = tmp_path / "results/tiny"
    results.mkdir(parents=True)
    pd.DataFrame(columns=MEASUREMENTS).to_csv(results / "measurements.csv")
    pd.DataFrame(columns=["experiment", "variant", "status"]).to_csv(results / "oscillations.csv")
    return studies.load(tmp_path / "params/tiny.yaml")


def recipes(variants):
    return {variant.path: variant.recipe for variant in variants}


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def accuracies(*rows):
    """Test measurements of OsciQuant at 3 bits from (lr, lambda, seed, accuracy)."""
    return pd.DataFrame(
        [
            dict.fromkeys(MEASUREMENTS)
            | {
                "experiment": "mlp5-lambda", "model": "resnet18", "method": "osciquant", "train_bits": 3, "eval_bits": 3,
                "bn": "keep", "split": "test", "status": "done", "lr": lr, "lambda": lam, "seed": seed, "accuracy": acc,
            }
            for lr, lam, seed, acc in rows
        ],
        columns=MEASUREMENTS,
    )  # fmt: skip


def test_figures_of_a_study_in_the_papers_order(tiny):
    assert tiny[0].figure_names == NAMES
    assert [figures.title(name) for name in ("figure1", "figure7-qat", "figureA5", "figure-heatmap-mlp5")] == [
        "Figure 1", "Figure 7 (qat)", "Figure A5", "Heatmap (mlp5)",
    ]  # fmt: skip
    assert set(figures.CAPTIONS) == {
        figure_number(name) for name in [*NAMES, "figure-rates-ternary", "figure-reconstruction-ptq", "figure-aoq-toy"]
    }


def test_what_has_not_run_is_a_small_picture_that_says_so(tiny):
    study, variants = tiny
    figures.write_figures(study, variants)
    for name in NAMES:
        height = matplotlib.image.imread(f"figures/tiny/{name}.png").shape[0]
        exact = name in ("figure1", "figureA1", "figureA5")
        assert (height > 300) if exact else (height < 100), name
    assert texts(figures._nothing_ran("Figure 6")) == ["Figure 6: not run"]


def test_figure_5_is_a_grid_of_means(tiny):
    study, variants = tiny
    accuracies((2e-3, 2.0, 0, 50.0), (2e-3, 2.0, 1, 52.0), (2e-3, 0.0, 0, 90.0)).to_csv("results/tiny/measurements.csv")
    figure = figures.figure5(study.figures["figure5"], study, recipes(variants))
    (mesh,) = figure.axes[0].collections
    np.testing.assert_array_equal(mesh.get_array(), [[51.0]])
    assert "OsciQuant, ResNet-18, 3-bit, n = 2" in texts(figure)


@pytest.mark.parametrize(("relation", "shown"), [("miniature", False), ("paper", True)])
def test_figure_6_shows_mean_spread_and_the_published_sweep(tiny, relation, shown):
    study, variants = tiny
    study = study.model_copy(update={"published": relation})
    rows = [(2e-3, 1.0, 0, 50.0), (2e-3, 1.0, 1, 52.0), (2e-3, 1.0, 2, 51.0)]
    accuracies(*rows).to_csv("results/tiny/measurements.csv")
    figure = figures.figure6(study.figures["figure6"], study, recipes(variants))
    mine, *published = figure.axes[0].containers
    assert mine.lines[0].get_xydata().tolist() == [[1.0, 51.0]]
    (bar,) = mine.lines[2][0].get_segments()
    assert bar[:, 1].tolist() == pytest.approx([50, 52])
    assert bool(published) == shown
    if shown:
        assert [0.75, 70.08] in published[0].lines[0].get_xydata().tolist()
        assert published[0].get_label() == "published (Table 4)"


def test_the_figure_of_rates_shows_every_lambda_qat_ptq_and_what_is_published(tiny):
    study = tiny[0].model_copy(update={"published": "paper"})
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
    spec = RatePanels(experiment="mlp5-lambda", bits=2)
    assert searches.figure_rates(spec, study, {}) is None
    pd.DataFrame(rows, columns=MEASUREMENTS).to_csv("results/tiny/measurements.csv")
    axes = searches.figure_rates(spec, study, {}).axes[0]
    shown = {line.get_label(): line.lines[0].get_xydata().tolist() for line in axes.containers}
    assert shown == {
        "OsciQuant, λ = 1, ternary": [[1e-3, 31], [3e-3, 31]], "OsciQuant, λ = 4, ternary": [[1e-3, 36], [3e-3, 36]],
        "QAT, ternary": [[1e-3, 51], [3e-3, 51]], "PTQ of the baseline, 3-bit": [[1e-3, 21], [3e-3, 21]],
    }  # fmt: skip
    dotted = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(dotted) == [20.97, 36.49, 49.2]


def test_figure_a5_shows_the_counters_totals():
    shown = texts(exact_figures.figure_a5())
    assert "crossings 7, Nagel 5, corrected 7, trips 3" in shown
    assert (
        "crossings 4, Nagel 3, corrected 4, trips 2\nwith a timeout of 2 steps: Nagel 2, corrected 4, trips 2" in shown
    )
    assert (
        "crossings 2, Nagel 1, corrected 2, trips 1\nwith a timeout of 2 steps: Nagel 0, corrected 0, trips 0" in shown
    )
    labels = ["313 steps\n(40,000 images)", "352 steps\n(45,000 images)", "391 steps\n(50,000 images)"]
    assert set(labels) <= set(shown)
    assert [text for text in shown if "counted\n" in text] == [
        "7 counted\nof 2,503", "0 counted\nof 2,815", "7 counted\nof 3,127",
    ]  # fmt: skip


def test_open_choices_are_the_rows_tagged_so():
    text = "| item | taken | tag |\n| --- | --- | --- |\n| a | `x` < 1 | choice |\n| b | y | text |\n| c | z | text; ties choice |\n"
    assert open_choices(text) == [("a", "<code>x</code> &lt; 1"), ("c", "z")]
    taken = dict(open_choices((ROOT / "docs/choices.md").read_text()))
    assert {"learning rate", "validation split", "figure 4"} <= set(taken)
    assert "batch size" not in taken


def test_a_film_of_nothing_is_not_drawn(tiny):
    film.write_films(*tiny)
    assert not list(Path("figures").rglob("*.gif"))


def test_a_training_that_stops_holds_its_last_picture_and_says_so(tiny):
    _, variants = tiny
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
    assert len(film.frames(tiny[0].films["figure-film-mlp5"], [short, long])) == 4


@pytest.mark.slow
def test_the_film_of_a_finished_study(finished_project, monkeypatch):
    monkeypatch.chdir(finished_project.folder)
    file = Path("figures/tiny/figure-film-mlp5.gif")
    with Image.open(file) as made:
        frames = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(made)]
        assert made.info["loop"] == 0
    assert [duration for duration, _ in frames] == [film.FRAME] * 3 + [film.HELD]  # the start and three epochs
    assert {pixels.shape for _, pixels in frames} == {(round(film.HEIGHT * film.DPI), round(film.WIDTH * film.DPI), 3)}
    assert all((a != b).any() for (_, a), (_, b) in itertools.pairwise(frames))
    assert file.stat().st_size < 500_000
    before = file.read_bytes()
    film.write_films(*studies.load(Path("params/tiny.yaml")))
    assert file.read_bytes() == before


@pytest.mark.slow
def test_every_figure_of_a_finished_study(finished_project):
    for name in NAMES:
        pixels = matplotlib.image.imread(finished_project.folder / f"figures/tiny/{name}.png")
        assert min(pixels.shape[:2]) > 250, name
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50, name
        assert (finished_project.folder / f"figures/tiny/{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (finished_project.folder / "results/tiny/index.html").read_text()
    assert re.findall(r'<figure id="([^"]+)"', page) == [*NAMES[-2:], *NAMES[:3], "figure4", *NAMES[3:-2]]
    assert "<b>Figure 4.</b> not drawn" in page
    assert 'id="open"' not in page  # a miniature's choices are its own
    assert 'id="rate-search"' in page
