"""T1-T3: exact predictions for the one-weight model (Figure 1, stickiness, time averages); G5: two weights."""

import numpy as np
import pytest
import torch
from test_gradients import RoundSTE

from oscillations.report.figures.toy_models import OneWeight, TwoWeights, alternating_runs, figure1_trajectory


def test_t1_figure1_trajectory():
    cycle = [0.55, 0.5125, 0.475, 0.5875]
    expected = [0.1, 0.2125, 0.325, 0.4375, *cycle * 4]
    np.testing.assert_allclose(figure1_trajectory(), expected, atol=1e-9, rtol=0)


def test_figure1_levels():
    expected = [0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert OneWeight().quantize(figure1_trajectory()).tolist() == expected


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9, 2.0])
def test_t2_oscillating_fraction(ratio):
    """For optima uniform over the grid, a share min(1, lambda / curvature) oscillates."""
    optima = np.linspace(-0.5, 0.5, 400, endpoint=False) + 1 / 800
    model = OneWeight(x=1.0, y=optima, step=1.0)
    states = model.descend(optima.copy(), strength=ratio * model.curvature, lr=0.01, steps=6000)
    codes = model.quantize(states[3000:])
    oscillates = (np.abs(np.diff(codes, axis=0)).sum(axis=0) >= 2).mean()
    assert oscillates == pytest.approx(min(1, ratio), abs=0.05)


@pytest.mark.parametrize("optimum", [0.55, 0.7, 0.75, 0.9])
def test_t3_time_average_is_the_optimum(optimum):
    model = OneWeight(y=optimum)
    states = model.descend(0.1, model.curvature, lr=0.15, steps=4000)
    assert model.quantize(states[2000:]).mean() == pytest.approx(optimum, abs=0.05)


def test_gradients_point_to_threshold():
    model = OneWeight()
    below, above = model.oscillation_gradient([0.4, 0.6], model.curvature)
    assert below < 0 < above


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("optimum", [-1.7, 0.05, 0.9, 2.12])
def test_in_bin_equilibrium(ratio, optimum):
    """A weight rests at (c w* - lambda q) / (c - lambda) if |w* - q| < (s / 2)(1 - lambda / c), else nowhere in its bin."""
    model = OneWeight(x=1.5, y=1.5 * optimum)
    level, strength = float(np.round(optimum)), ratio * model.curvature
    rest = (model.curvature * optimum - strength * level) / (model.curvature - strength)
    end = model.descend(level, strength, lr=0.02, steps=3000)[-1]
    if abs(optimum - level) < 0.5 * (1 - ratio):
        assert end == pytest.approx(rest, abs=1e-9)
        assert model.quantize(end) == level
    else:
        assert abs(rest - level) >= 0.5
        assert abs(abs(end - level) - 0.5) < 0.1, "it stays at the threshold"


@pytest.mark.parametrize("ratio", [0.4, 1.0, 3.0])
def test_sticky_thresholds(ratio):
    """A threshold t holds the weight exactly if |t - w*| < lambda s / (2 c); about lambda / c of them do."""
    optimum = 0.2
    model = OneWeight(x=2.0, y=2.0 * optimum)
    thresholds = np.arange(-6, 6) + 0.5
    starts = np.repeat(thresholds, 2) + np.tile([-0.01, 0.01], len(thresholds))
    states = model.descend(starts, ratio * model.curvature, lr=1e-3, steps=2000)
    held = (np.abs(states[-200:] - np.repeat(thresholds, 2)) < 0.05).all(axis=0).reshape(-1, 2).all(axis=1)
    assert held.tolist() == (np.abs(thresholds - optimum) < ratio / 2).tolist()


def test_over_regularization_traps_weights_far_from_the_optimum():
    """With lambda = 6 c a weight that starts at 2.45 oscillates around 2.5, though its optimum is 0."""
    strong, plain = (OneWeight(y=0.0).descend(2.45, strength, lr=0.01, steps=5000)[-100:] for strength in (6.0, 1.0))
    assert np.abs(strong - 2.5).max() < 0.1
    assert np.abs(plain).max() < 0.55


def draws(count=1000):
    """Random weights ``[count, 2]``, and x and y ``[count, 1]``."""
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 2)), generator.normal(size=(count, 1)), generator.normal(size=(count, 1))


def test_g5_two_weights_in_series():
    """Eq. 32 in both weights, against autograd through a rounding whose gradient is the identity."""
    values, x, y = draws()
    model = TwoWeights(x, y, step=0.4)
    w = torch.tensor(values, requires_grad=True)
    q = RoundSTE.apply(w / 0.4) * 0.4

    def loss(pair):
        return 0.5 * (torch.tensor(x[:, 0]) * pair.prod(dim=1) - torch.tensor(y[:, 0])).square()

    (change,) = torch.autograd.grad((loss(q) - loss(w)).sum(), w, retain_graph=True)
    (whole,) = torch.autograd.grad(loss(q).sum(), w)
    terms = model.oscillation_gradient(values) + model.drift_gradient(values)
    np.testing.assert_allclose(terms, change, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.loss_gradient(values) + terms, whole, rtol=1e-9, atol=1e-12)


def test_two_weights_keep_a_linear_term():
    """What depends on y in Eq. 32 is -x y (q2 - w2): zero with one weight, not with two."""
    w, x, y = draws()
    at, zero = TwoWeights(x, y, step=0.4), TwoWeights(x, np.zeros_like(y), step=0.4)
    linear = at.drift_gradient(w) - zero.drift_gradient(w)
    q = at.quantize(w)
    np.testing.assert_allclose(linear, (-x * y * (q - w))[:, ::-1], atol=1e-12)
    assert np.abs(linear).mean() > 0.05
    np.testing.assert_array_equal(at.oscillation_gradient(w), zero.oscillation_gradient(w))


def test_two_weights_with_the_second_at_level_one_are_one_weight():
    w1 = np.linspace(-2, 2, 41) + 0.013
    one, two = OneWeight(x=1.3, y=0.7), TwoWeights(x=1.3, y=0.7)
    w = np.stack([w1, np.ones_like(w1)], axis=-1)
    np.testing.assert_allclose(two.drift_gradient(w)[:, 0], 0, atol=1e-15)
    np.testing.assert_allclose(two.loss_gradient(w)[:, 0], one.loss_gradient(w1))
    np.testing.assert_allclose(two.oscillation_gradient(w)[:, 0], one.oscillation_gradient(w1, one.curvature))


def test_the_drift_leads_two_weights_elsewhere():
    """From (1.3, 0.8) QAT ends at the thresholds (0.5, 0.5); oscillation alone would end at the target's (1.5, 0.5)."""
    model = TwoWeights()
    qat, without = (model.descend(np.array([1.3, 0.8]), 0.02, 1000, drift=drift)[-200:] for drift in (True, False))
    np.testing.assert_allclose(qat.mean(axis=0), [0.5, 0.5], atol=0.03)
    np.testing.assert_allclose(without.mean(axis=0), [1.5, 0.5], atol=0.03)


@pytest.mark.parametrize(
    ("codes", "timeout", "expected"),
    [
        ([0, 0, 1, 0, 1, 1, 0, 0, 1, 2, 2, 1, 1], None, [[2, 3, 4, 6, 8], [9, 11]]),
        ([0, 1, 0, 0, 0, 0, 0, 1, 0], None, [[1, 2, 7, 8]]),
        ([0, 1, 0, 0, 0, 0, 0, 1, 0], 2, [[1, 2], [7, 8]]),
        ([0, 1, 1, 1, 1, 0], 2, [[1], [5]]),
        ([0, 1, 2, 3], None, [[1], [2], [3]]),
        ([1, 1], None, []),
    ],
)
def test_alternating_runs(codes, timeout, expected):
    assert alternating_runs(codes, timeout) == expected
