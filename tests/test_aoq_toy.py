"""AOQ's toy experiment: its schedule, its gradients, and what its table and figure hold."""

import pandas as pd
import pytest
import torch
from conftest import TINY

from oscillations import cli
from oscillations.jobs import aoq_toy as toy_regression
from oscillations.jobs.aoq_toy import Aoq, FullPrecision, Lsq, experiment, shrinkage
from oscillations.report.figures.toy_regression import toy_regression as toy_figure
from oscillations.report.results import Report
from oscillations.study import reading as studies


@pytest.fixture
def small(monkeypatch):
    for name, value in {"EXAMPLES": 60, "WEIGHTS": 100, "BATCH": 10}.items():
        monkeypatch.setattr(toy_regression, name, value)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny study with a toy experiment, in a folder where nothing has run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/tiny.yaml").write_text(TINY + "toy_regression: {seeds: [0, 1], epochs: 2}\n")
    return studies.load(tmp_path / "params/tiny.yaml")[0]


def test_a1_toy_spacing_is_the_released_schedules():
    released = {0: 1, 4: 1, 25: 0.65, 50: 0.3, 84: 0.3, 85: 0.3668, 90: 0.4443, 95: 0.5418, 100: 0.65, 199: 0.65}
    for epoch, value in released.items():
        assert shrinkage(epoch / 200) == pytest.approx(value, abs=5e-5)


def test_a1_toy_levels_and_thresholds():
    weight = torch.tensor([-9.0, -1.51, -1.5, -0.51, -0.5, 0.49, 0.5, 9.0])
    aoq = Aoq(weight)
    assert aoq.quantized(0.0).tolist() == [-2, -2, -1, -1, 0, 0, 1, 1]
    assert aoq.quantized(0.25).tolist() == pytest.approx([0.3 * k for k in (-2, -2, -2, -2, -2, 1, 1, 1)])


def test_a1_toy_lsq_pulls_weights_back_inside():
    lsq = Lsq(torch.tensor([-9.0, -1.0, 0.5, 9.0]))
    assert lsq.quantized(0.0).tolist() == pytest.approx([-3.6, -1.8, 0, 1.8])
    assert lsq.weight.tolist() == pytest.approx([-1.8 * 1.8, -1.0, 0.5, 0.8 * 1.8])


@pytest.mark.parametrize("kind", [Lsq, Aoq])
def test_a1_toy_scale_gradient_by_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    method = kind(torch.rand(50, generator=generator).double() * 2 - 1)
    upstream = torch.randn(50, generator=generator).double()
    method.learned[0].data = method.learned[0].double()
    value = method.quantized(0.9) @ upstream
    method.backward(upstream, 0.9)
    found = method.learned[0].grad.item()
    method.learned[0] += 1e-6
    changed = (method.quantized(0.9) @ upstream - value) / 1e-6
    if kind is Lsq:  # round() is straight-through: the codes' own dependence on the step comes on top
        changed -= (method.weight / method.step) @ upstream
    assert found == pytest.approx(changed.item(), rel=1e-4)
    assert torch.equal(method.weight.grad, upstream)  # no weight lies beyond the levels


def test_a1_toy_table(small):
    table = experiment(seed=0, epochs=30)
    assert table.groupby("method").weights.sum().to_dict() == {"pretrained": 100, "lsq": 100, "aoq": 100}
    assert (table.groupby("method").right.sum() == table.groupby("method").matches.first()).all()
    pd.testing.assert_frame_equal(table, experiment(seed=0, epochs=30))
    assert not table.equals(experiment(seed=1, epochs=30))


def test_a1_toy_full_precision_fits_its_examples(small):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 100, generator=generator)
    weight = torch.randn(100, generator=generator)
    losses = [toy_regression.train(FullPrecision(weight.clone()), x, x.sum(1), n, generator) for n in (1, 300)]
    assert losses[1] < losses[0] / 4


def test_a1_toy_figure_from_the_command(small, tiny):
    assert "figure-aoq-toy" in tiny.figure_names
    report = Report(tiny, [])
    assert toy_figure(report) is None
    assert cli.main(["toy", "--study", "params/tiny.yaml"]) == 0
    table = pd.read_csv("results/tiny/toy-regression.csv")
    assert sorted(table.seed.unique()) == [0, 1]
    shown = [text.get_text() for text in toy_figure(report).findobj(lambda artist: hasattr(artist, "get_text"))]
    for method in ("lsq", "aoq"):
        assert f"{table[table.method == method].matches.mean():,.0f}" in shown
    assert any("2 epochs, n = 2" in text for text in shown)


def test_a1_toy_command_needs_the_studys_word(tiny, capsys):
    (studies.Path("params/tiny.yaml")).write_text(TINY)
    assert cli.main(["toy", "--study", "params/tiny.yaml"]) == 2
    assert "toy_regression" in capsys.readouterr().err
