"""OsciReset: golden values of both releases, windows, and that nothing but weights is reset (V4)."""

import pytest
import torch
from conftest import at
from test_training import run, trainer

from oscillations.methods.osci_reset import OsciReset

ROWS = [
    (0.45, 0.48, 0.30, 1.00), (0.55, 0.52, 0.35, 1.10), (0.45, 0.48, 0.40, 1.20), (0.55, 0.52, 0.45, 1.30),
    (0.48, 0.48, 0.55, 1.40), (0.55, 0.52, 0.60, 1.52), (0.45, 0.55, 0.65, 1.60),
]  # fmt: skip
HUGE = 1e30  # tau that nothing reaches


class Following:
    """An optimizer whose steps lead to the given weights."""

    def __init__(self, weight, rows):
        self.weight, self.rows = weight, iter(rows)

    def step(self):
        self.weight.copy_(torch.tensor(next(self.rows)))


def followed(rows, **options):
    """A method, its quantizer with levels at the integers, and a call that makes the next step to one of the rows."""
    method = OsciReset(OsciReset.Options(bits=4, scale_source="frozen_max", start=0.0, **options))
    weight = torch.tensor(rows[0])
    quantizer = method.make_quantizer({"a": weight}, {})
    quantizer.scale.values = [torch.tensor(1.0)]
    quantizer.update()
    method.begin(quantizer)
    optimizer = Following(weight, rows[1:])

    def step():
        method.step(optimizer, quantizer, at(0.5))
        quantizer.update()
        return weight.tolist()

    return method, quantizer, step


def seen(method, quantizer):
    """D_w and D_q with the present weights, which the next step would see first."""
    method._watch(quantizer)
    return [moved.tolist() for moved in method.moved]


@pytest.mark.parametrize("motion", ["codes", "values"])
def test_v4_golden_values_back_to_back(motion):
    method, quantizer, step = followed(ROWS, motion=motion, tau=8.0, window=4, period=4)
    for row in ROWS[1:4]:
        assert step() == pytest.approx(row)
    assert step() == pytest.approx((0, 0, 0.55, 1.40))
    of_w, of_q = (moved.tolist() for moved in method.moved)
    assert of_q == [4, 4, 1, 0]
    assert of_w == pytest.approx([0.37, 0.16, 0.25, 0.40])
    assert [q / w for q, w in zip(of_q, of_w)] == pytest.approx([10.810811, 25, 4, 0])
    assert step() == pytest.approx(ROWS[5])
    of_w, of_q = seen(method, quantizer)
    assert of_w == pytest.approx([0.55, 0.52, 0.05, 0.12])
    assert of_q == [1, 1, 0, 1]


@pytest.mark.parametrize("period", [5, 6, 100])
def test_v4_golden_values_with_a_pause(period):
    """The window's last step is followed by one more; its weights are reset to their own levels."""
    _, _, step = followed(ROWS, tau=8.0, window=4, period=period)
    for row in ROWS[1:5]:
        assert step() == pytest.approx(row)
    assert step() == pytest.approx((1, 1, 0.60, 1.52))
    assert step() == pytest.approx(ROWS[6])


def test_v4_a_ratio_of_tau_is_enough():
    rows = [(0.375, 0.375), (0.625, 0.6250001), (0.375, 0.375)]  # 2 steps of 1/4: D_q / D_w = 4
    _, _, step = followed(rows, tau=4.0, window=2, period=2)
    step()
    assert step() == [0.0, 0.375]


@pytest.mark.parametrize(
    ("window", "period", "resets"), [(2, 5, [3, 8, 13, 18]), (4, 5, [5, 10, 15, 20]), (5, 5, [5, 10, 15, 20])]
)
def test_v4_arithmetic_of_windows(window, period, resets):
    """All weights oscillate; after how many steps are they on a level?"""
    _, _, step = followed([(0.45,), (0.55,)] * 11, tau=1.0, window=window, period=period)
    assert [n for n in range(1, 21) if step()[0] in (0, 1)] == resets


def test_v4_nothing_is_watched_or_reset_before_its_start():
    method, quantizer, _ = followed([(0.45,)], tau=1.0, window=2, period=2)
    method.options = method.options.model_copy(update={"start": 0.5})
    optimizer = Following(quantizer.weights[0], [(0.55,), (0.45,)] * 5)
    for share in (0.0, 0.2, 0.49):
        method.step(optimizer, quantizer, at(share))
        quantizer.update()
    assert method.steps == 0 and not any(moved.any() for moved in method.moved)
    assert quantizer.weights[0].item() == pytest.approx(0.55)
    for share in (0.5, 0.6):
        method.step(optimizer, quantizer, at(share))
        quantizer.update()
    assert quantizer.weights[0].item() in (0, 1)


@pytest.mark.parametrize("motion", ["codes", "values"])
def test_v4_a_constant_or_drifting_weight_is_never_reset(motion):
    """Neither D_w = 0 nor a way through n levels, whose ratio is about 1."""
    rows = [(0.49, -3.2 + 0.25 * i) for i in range(25)]
    _, _, step = followed(rows, motion=motion, tau=2.0, window=8, period=8)
    for row in rows[1:]:
        assert step() == pytest.approx(row)


@pytest.mark.parametrize("tau", [8.0, HUGE])
def test_v4_the_motion_of_the_scale_is_none_of_the_codes(tau):
    """Eq. 2's scale moves with the largest weight; by values all others seem to, that hardly do themselves."""
    weight = torch.tensor([1.0, 0.4])

    class Grows:
        def step(self):
            weight.add_(torch.tensor([0.01, 1e-5]))

    kept = {}
    for motion in ("codes", "values"):
        weight.copy_(torch.tensor([1.0, 0.4]))
        method = OsciReset(OsciReset.Options(bits=3, start=0, motion=motion, tau=tau, window=3, period=3))
        quantizer = method.make_quantizer({"a": weight}, {})
        quantizer.update()
        method.begin(quantizer)
        for _ in range(3):
            method.step(Grows(), quantizer, at(0.5))
            quantizer.update()
        kept[motion] = weight[1].item()
    assert kept["codes"] == pytest.approx(0.40003)
    assert kept["values"] == pytest.approx(1.03 / 3 if tau == 8 else 0.40003)


def test_v4_golden_values_at_the_edge_of_a_bin():
    row = (0.4949, 0.4951, 0.504, 1.0, -0.4952)
    _, _, step = followed([row] * 4, rule="bin_edge", period=3)
    assert step() == pytest.approx((0.4949, 0, 1, 1.0, 0))


def test_v4_every_period_begins_with_a_reset_at_the_edge():
    _, _, step = followed([(0.499,)] * 9, rule="bin_edge", period=3)
    assert [n for n in range(1, 9) if step() == [0]] == [1, 4, 7]


@pytest.mark.parametrize("per_channel", [False, True])
def test_v4_a_reset_changes_no_code(per_channel):
    """What lies on its level stays there, and Eq. 2's scale too, as the largest weight lies on its own."""
    torch.manual_seed(0)
    options = OsciReset.Options(bits=3, per_channel=per_channel, rule="bin_edge", start=0.0, period=1)
    method = OsciReset(options)
    weight = torch.randn(20, 30)
    quantizer = method.make_quantizer({"a": weight}, {})
    method.begin(quantizer)
    quantizer.update()
    codes, before = quantizer.codes.clone(), weight.clone()
    method._oscillates = lambda quantizer, i: torch.ones_like(weight, dtype=torch.bool)
    method._reset(quantizer)
    quantizer.update()
    assert not torch.equal(weight, before)
    assert torch.equal(quantizer.codes, codes)
    torch.testing.assert_close(weight, quantizer.quantized[0])


def method_of(**options):
    return {"name": "osci-reset", "bits": 3, "start": 0.2, "window": 4, "period": 6, "tau": 1.0} | options


@pytest.mark.parametrize("options", [{}, {"motion": "values", "window": 6}])
def test_v4_without_a_ratio_to_reach_it_is_qat_with_a_detached_scale(recipe, blobs, options):
    qat = run(trainer(recipe, blobs, method={"name": "qat", "bits": 3, "scale_grad": "detach"}))
    never, often = (run(trainer(recipe, blobs, method=method_of(**options, tau=tau))) for tau in (HUGE, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(never.model.parameters(), qat.model.parameters()))
    assert never.progress.history == qat.progress.history
    assert not torch.equal(often.model.fc1.weight, qat.model.fc1.weight)


def test_v4_a_reset_leaves_what_the_optimizer_remembers(recipe, blobs):
    made, never = (trainer(recipe, blobs, method=method_of(tau=tau, start=0.0)) for tau in (1.0, HUGE))
    for _ in zip(range(5), made.steps(), never.steps()):
        equal = [torch.equal(a, b) for a, b in zip(made.model.parameters(), never.model.parameters())]
        kept, other = made.optimizer.state(), never.optimizer.state()
        assert all(torch.equal(kept[key], other[key]) for key in kept)
        assert all(equal) == (made.method.steps < 5)
    reset = made.model.fc2.weight != never.model.fc2.weight
    assert 0 < reset.sum() < reset.numel()
    assert torch.equal(made.model.fc2.weight[reset], made.quantizer.quantized[1][reset])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 300}, "window: 300 steps do not fit into a period of 200; say at most that"),
        ({"period": 10}, "window: 50 steps do not fit into a period of 10"),
        ({"rule": "bin_edge", "tau": 4.0}, "tau: rule bin_edge watches no motion; leave tau out"),
        ({"rule": "bin_edge", "window": 10}, "window: rule bin_edge watches no motion; leave window out"),
        ({"rule": "bin_edge", "motion": "values"}, "motion: rule bin_edge watches no motion; leave motion out"),
        ({"start": 1.0}, "less than 1"),
        ({"tau": 0.0}, "greater than 0"),
    ],
)
def test_v4_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OsciReset.Options(bits=3, **options)
    assert OsciReset.Options(bits=3, rule="bin_edge", period=10).window == 50
