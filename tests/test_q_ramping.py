"""Q-Ramping (TetraJet 2025) by a window: golden values of its steps and periods, and that periods of 1 are Adam."""

import pytest
import torch
from pydantic import ValidationError
from test_training import run, same_state, trainer

from oscillations.methods._q_ramping import RampedAdam
from oscillations.methods.q_ramping import QRamping, period_of

RAMPING = {"name": "q-ramping", "bits": 3, "period": 10, "window": 4, "alpha": 1.0}


def ramped(periods, lr=0.01, weight_decay=0.0, start=0.0):
    weight = torch.full((len(periods),), start, dtype=torch.float64)
    optimizer = RampedAdam([weight], lr, weight_decay)
    optimizer.periods[0].copy_(torch.tensor(periods))
    return weight, optimizer


def stepped(weight, optimizer, gradient):
    """The weights after a step with this gradient."""
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    return weight.tolist()


def test_v3_golden_steps():
    """Made by the release's optimizer."""
    weight, optimizer = ramped([1, 2, 3])
    gradients = [[1, 1, 1], [2, -1, 0.5], [-1, 3, 1], [0.5, 0.5, 0.5], [1, 1, 1], [0, 0, 2]]
    found = zip(*(stepped(weight, optimizer, gradient) for gradient in gradients))
    known = [
        [-0.01000000, -0.01965182, -0.02385271, -0.02838754, -0.03397409, -0.03878897],
        [0, 0, 0, -0.01162257, -0.01162257, -0.02353333],
        [0, 0, -0.01916441, -0.01916441, -0.01916441, -0.04010771],
    ]
    for values, expected in zip(found, known):
        assert values == pytest.approx(expected, abs=6e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_v3_golden_periods(dtype):
    """A ratio of exactly 16 is just too little, a weight that does not move waits longest."""
    q_path = torch.tensor([0, 1.6, 0.8, 0.48, 3.2], dtype=dtype)
    w_path = torch.tensor([0.1, 0.05, 0.05, 0.01, 0], dtype=dtype)
    assert period_of(q_path, w_path, 16.0, 5, 500).tolist() == [1, 6, 1, 11, 500]


def test_v3_periods_grow_with_the_ratio():
    ratios = torch.linspace(0, 200, 1000)
    found = period_of(0.1 * ratios, torch.full_like(ratios, 0.1), 16.0, 5, 50)
    assert found.diff().min() >= 0
    assert found.unique().tolist() == [1, 6, 11, 16, 21, 26, 31, 36, 41, 46, 50]


def test_v3_a_weight_moves_when_it_is_due_and_only_then():
    generator = torch.Generator().manual_seed(0)
    periods = [1, 2, 3, 4, 5, 7]
    weight, optimizer = ramped(periods)
    before = weight.tolist()
    for step in range(1, 30):
        after = stepped(weight, optimizer, torch.randn(6, generator=generator).tolist())
        assert [a != b for a, b in zip(after, before)] == [step % period == 0 for period in periods]
        before = after


def test_v3_a_period_may_change_while_a_weight_waits():
    """It then moves when the steps it has waited for are a multiple of the new period."""
    weight, optimizer = ramped([4, 4])
    for _ in range(3):
        assert stepped(weight, optimizer, [1.0, 1.0]) == [0, 0]
    optimizer.periods[0].copy_(torch.tensor([2, 3]))
    moved = [[value != 0 for value in stepped(weight, optimizer, [1.0, 1.0])] for _ in range(3)]
    assert moved == [[True, False], [True, False], [True, True]]
    assert optimizer.waited[0].tolist() == [0, 0]


def test_v3_weights_decay_in_every_step():
    weight, optimizer = ramped([3, 1], lr=0.5, weight_decay=0.5, start=1.0)
    waiting, _ = stepped(weight, optimizer, [1.0, 0.0])
    assert waiting == 0.75
    assert stepped(weight, optimizer, [1.0, 0.0]) == [0.5625, 0.5625]


def test_v3_periods_of_one_are_adam_bit_for_bit(recipe, blobs):
    """With a schedule, and windows that measure."""
    recipe["training"] |= {"schedule": "cosine", "patience": 10}
    own, adam = (
        run(trainer(recipe, blobs, method=method))
        for method in (RAMPING | {"beta": 0}, {"name": "qat", "bits": 3, "scale_grad": "detach"})
    )
    assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), adam.model.parameters()))
    assert own.progress.history == adam.progress.history


def test_v3_periods_are_those_of_the_last_steps_of_an_epoch(recipe, blobs):
    """Recounted from weights and codes; the first epoch has none, and a scale that moves is no motion."""
    made = trainer(recipe, blobs, method=RAMPING)
    quantizer, periods, seen = made.quantizer, made.method.own.periods, []
    for step in range(31):
        known = [period.clone() for period in periods]
        codes, scales = [view.float() for view in quantizer.code_views], list(quantizer.scales)
        seen.append(([weight.clone() for weight in quantizer.weights], codes))
        made.step(*made.sets["train"].batch(slice(32 * (step % 10), 32 * (step % 10 + 1))))
        if step and step % 10 == 0:
            weights, codes = ([torch.stack(values) for values in zip(*kind)] for kind in zip(*seen[-5:]))
            w_paths, code_paths = ([sum(values.diff(dim=0).abs()) for values in kind] for kind in (weights, codes))
            known = [period_of(k * s, w, 1.0, 5, 10) for k, w, s in zip(code_paths, w_paths, scales)]
            assert any((period > 1).any() for period in known)
        elif step < 10:
            assert all(period.eq(1).all() for period in known)
        assert all(torch.equal(period, expected) for period, expected in zip(periods, known)), step


def test_resuming_while_weights_wait_and_a_window_measures(recipe, blobs):
    whole, first = run(trainer(recipe, blobs, method=RAMPING)), trainer(recipe, blobs, method=RAMPING)
    steps = first.steps()
    while first.progress.epoch < 2 or first.progress.step < 8:
        next(steps)
    own = first.method.own
    assert any((period > 1).any() for period in own.periods) and any(waited.any() for waited in own.waited)
    assert any(path.any() for path in first.method.w_path)
    state = {key: value.clone() for key, value in first.state().items()}
    again = trainer(recipe, blobs, method=RAMPING)
    again.load_state(state)
    assert same_state(run(again), whole)


def test_a_window_is_a_part_of_a_period():
    with pytest.raises(ValidationError, match="window: 30 steps are no part of a period of 30; say less"):
        QRamping.Options(bits=3, period=30)
