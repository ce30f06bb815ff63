"""V5: PARQ's schedule and map, its ends, and when its weights begin to oscillate (torchao's prototype)."""

import pytest
import torch
from conftest import image_sets, make_trainer

from oscillations.engine.method import Moment
from oscillations.methods.parq import Parq, stair

WEIGHT = torch.tensor([0.9, -0.2, 0.45, -1.0, 0.07, -0.6], dtype=torch.float64)


def made(weight, rho, **options):
    """A method and its quantizer, at some rho."""
    method = Parq(Parq.Options(**{"bits": 3} | options))
    quantizer = method.make_quantizer({"w": weight}, {})
    quantizer.update()
    method.begin(quantizer)
    method.rho = rho
    return method, quantizer


def mapped(weight, rho, **options):
    """f_rho(w)."""
    method, quantizer = made(weight, rho, **options)
    return method.forward_weights(quantizer)[0]


def schedule(**options):
    return Parq.Options(**{"bits": 3, "anneal_end": 1.0} | options).rho


def test_v5_golden_schedule():
    released = [1, 0.988553, 0.929896, 0.734193, 0.5, 0.265807, 0.070104, 0.011447, 0.000708]
    found = [schedule()(x) for x in (0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99)]
    assert found == pytest.approx(released, abs=5e-7)
    for steepness, released in ((1.0, [0.753866, 0.5, 0.246134]), (20.0, [0.993352, 0.5, 0.006648])):
        found = [schedule(steepness=steepness)(x) for x in (0.25, 0.5, 0.75)]
        assert found == pytest.approx(released, abs=5e-7)
    line = schedule(map="binary_relax", anneal_start=0.2, anneal_end=0.6)
    assert [line(t) for t in (0.1, 0.2, 0.3, 0.5, 0.6, 0.9)] == pytest.approx([1, 1, 0.75, 0.25, 0, 0])


def test_v5_the_schedule_lies_between_its_ends():
    rho = schedule(anneal_start=0.2, anneal_end=0.7)
    assert [rho(t) for t in (0.0, 0.1999, 0.2)] == [1, 1, 1]
    assert [rho(t) for t in (0.7, 0.7001, 1.0)] == [0, 0, 0]
    assert rho(0.45) == pytest.approx(0.5)
    for constant, value in ((0.0, 0), (1.0, 1)):
        rho = schedule(anneal_start=constant, anneal_end=constant)
        assert [rho(t) for t in (0.0, 0.5, 0.999)] == [value] * 3


@pytest.mark.parametrize("steepness", [0.01, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_v5_rho_falls_within_0_and_1(steepness, centre):
    rho = schedule(steepness=steepness, centre=centre)
    found = [rho(i / 1000) for i in range(1000)]
    assert all(0 < later <= earlier <= 1 for earlier, later in zip(found, found[1:]))


def test_v5_golden_map():
    released = {
        0.25: [0.905026, -0.202513, 0.446231, -1, 0.062712, -0.607539],
        0.5: [0.966667, -0.233333, 0.4, -1, 0, -0.666667],
        0.75: [1, -0.333333, 0.333333, -1, 0, -0.666667],
    }
    for x, values in released.items():
        assert mapped(WEIGHT, schedule()(x)).tolist() == pytest.approx(values, abs=1e-6)
    relaxed = mapped(WEIGHT, schedule(map="binary_relax")(0.25), map="binary_relax")
    assert relaxed.tolist() == pytest.approx([0.925, -0.233333, 0.420833, -1, 0.0525, -0.616667], abs=1e-6)


@pytest.mark.parametrize("rho", [0.999, 0.5, 0.1, 1e-3, 2.0**-126])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_v5_properties_of_the_stair(bits, rho):
    high = 2 ** (bits - 1) - 1
    levels = torch.arange(-high, high + 1, dtype=torch.float64)
    midpoints = levels[:-1] + 0.5
    w = torch.linspace(-high, high, 20_001, dtype=torch.float64)  # the scale is 1
    f = mapped(w, rho, bits=bits)
    assert (f.diff() >= 0).all()
    torch.testing.assert_close(f, -f.flip(0))
    assert f.diff().max() <= w.diff().max() / rho + 1e-12  # continuous
    assert (f - w).abs().max() <= 0.5
    whole = torch.cat([levels, midpoints])
    torch.testing.assert_close(mapped(whole, rho, bits=bits), whole)
    near = (w - w.round()).abs() < (1 - rho) / 2 - 1e-9
    assert torch.equal(f[near], w[near].round())  # flat on both sides of a level


@pytest.mark.parametrize("per_channel", [False, True])
def test_v5_beyond_the_outer_levels_lies_the_outer_level(per_channel):
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method, quantizer = made(weight, 0.5, bits=2, scale_source="mse", per_channel=per_channel)
    scale, beyond = quantizer.scales[0], quantizer.position(0).abs() >= 1
    found = method.forward_weights(quantizer)[0]
    assert beyond.any()
    assert torch.equal(found[beyond], (quantizer.code_views[0] * scale)[beyond])
    naive = stair_by_intervals(weight, scale, [-1, 0, 1], 0.5)
    torch.testing.assert_close(found, naive)
    method.rho = 1
    assert method.forward_weights(quantizer) is None  # then the weights themselves


def stair_by_intervals(weight, scale, codes, rho):
    """The released form: every weight looks for its interval."""
    found = (weight / scale).clamp(codes[0], codes[-1])
    for low, high in zip(codes, codes[1:]):
        inside, centre = (weight / scale >= low) & (weight / scale <= high), (low + high) / 2
        found[inside] = (centre + (weight / scale - centre) / rho).clamp(low, high)[inside]
    return found * scale


def test_v5_the_map_holds_at_its_hardest_in_single_precision():
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    weight[:3] = torch.tensor([9.0, -4.5, 1.5])  # of scale 3: the largest, and two midway
    _, quantizer = made(weight, 1.0)
    out, below = torch.empty_like(weight), torch.empty_like(weight)
    stair(weight, quantizer.scales[0], quantizer.grid, 2.0**-126, out, below)
    assert torch.equal(out[1:3], weight[1:3])
    assert torch.equal(out[3:], quantizer.quantized[0][3:])


class NoStep:
    def step(self):
        pass


def test_v5_a_step_leaves_the_rho_of_the_steps_before_it():
    """The release maps after step n, counted from 0, by n; the next forward pass sees that."""
    method, quantizer = made(WEIGHT, 0.3)
    method.step(NoStep(), quantizer, Moment(0.45, 0.46))
    assert method.rho == pytest.approx(0.5)
    again, _ = made(WEIGHT, 0.0)
    again.load_state(method.state())
    assert again.rho == method.rho


def trained(recipe, blobs, **method):
    """All weights after a whole training, and the accuracies with latent weights and at 3 bits."""
    cpu, (about, tensors) = torch.device("cpu"), blobs
    recipe = recipe | {"method": method}
    recipe["training"] = recipe["training"] | {"patience": 4}
    made = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, cpu), cpu)
    for _ in made.steps():
        pass
    assert made.progress.epoch == 4
    return made.model.state_dict(), [(row["val_acc_32"], row["val_acc_3"]) for row in made.progress.history]


@pytest.mark.parametrize("kind", ["parq", "binary_relax"])
@pytest.mark.parametrize(
    ("end", "other"),
    [(0.0, {"name": "qat", "bits": 3, "scale_grad": "detach"}), (1.0, {"name": "baseline"})],
    ids=["rounded", "latent"],
)
def test_v5_at_its_ends_it_is_qat_and_full_precision(recipe, blobs, kind, end, other):
    ours = {"name": "parq", "bits": 3, "map": kind, "anneal_start": end, "anneal_end": end}
    (weights, accuracies), (expected, known) = trained(recipe, blobs, **ours), trained(recipe, blobs, **other)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)
    assert accuracies == known


@pytest.mark.parametrize(
    ("rho", "amplitude", "converges_to"),
    [(0.08, 0, 0.52), (0.076, 0, 0.519), (0.074, 0.0385, None), (0.02, 0.1125, None)],
)
def test_v5_weights_oscillate_below_half_the_rate_times_the_curvature(rho, amplitude, converges_to):
    """One weight with q = 0 or 1, target 0.75, curvature 1, gradient descent with rate 0.15: from rho = 0.075 on."""
    method, quantizer = made(torch.tensor([1.0], dtype=torch.float64), rho, bits=2, scale_source="frozen_max")
    weight = quantizer.weights[0]
    weight.fill_(0.1)
    seen = []
    for _ in range(3000):
        quantizer.update()
        f = method.forward_weights(quantizer)[0].clone()
        seen.append((weight.item(), f.item()))
        weight.sub_(0.15 * (f - 0.75))
    ends, levels = zip(*seen[-400:])
    assert max(ends) - min(ends) == pytest.approx(amplitude, abs=1e-4)
    if converges_to is not None:
        assert ends[-1] == pytest.approx(converges_to)
        assert levels[-1] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anneal_start": 0.5, "anneal_end": 0.4}, "anneal_end: 0.4 is before anneal_start 0.5; say more"),
        ({"map": "binary_relax", "steepness": 5.0}, "steepness: binary_relax follows a line"),
        ({"map": "binary_relax", "centre": 0.4}, "centre: binary_relax follows a line"),
        ({"scale_grad": "detach"}, "unknown key 'scale_grad'"),
    ],
)
def test_v5_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Parq.Options(bits=3, **options)
