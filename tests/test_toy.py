"""T1-T3: exact predictions for the one-weight model (Figure 1, stickiness, time averages)."""

import numpy as np
import pytest

from oscillations.toy import OneWeight, figure1_trajectory


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
