"""StatsQ and confidence-guided annealing: golden values, the source's rounding, and what stays put (Liu et al. 2023)."""

import pytest
import torch
from conftest import at
from pydantic import ValidationError

from oscillations.engine.optimizer import OPTIMIZERS
from oscillations.methods.cga import Cga, near_threshold
from oscillations.methods.statsq import Statsq


def quantizer_of(weight, bits=2, method=Statsq, **options):
    quantizer = method(method.Options(bits=bits, **options)).make_quantizer({"a.weight": weight}, {})
    quantizer.update()
    return quantizer


def source(weight, bits):
    """q(w) as the source computes it: clip, then round."""
    n = 2 ** (bits - 1)
    scale = 2 * weight.abs().flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))
    u = (weight / scale).clamp(-1, 1 - 1e-6)
    return scale * (torch.round(n * u - 0.5) + 0.5) / n


def test_o1_golden_values():
    quantizer = quantizer_of(torch.tensor([[0.1, -0.2, 0.3, -0.4], [1.0, -2.0, 3.0, -4.0], [0, 0, 0, 0]]))
    assert quantizer.scales[0].flatten().tolist() == pytest.approx([0.25, 2.5, 1e-8])
    expected = torch.tensor([[0.125, -0.125, 0.375, -0.375], [1.25, -1.25, 3.75, -3.75], [0, 0, 0, 0]])
    torch.testing.assert_close(quantizer.quantized[0], expected)
    assert quantizer.state() == {}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(6, 400), (5, 8, 3, 3)])
def test_o1_clamped_codes_are_the_sources_clip(bits, shape):
    torch.manual_seed(bits)
    weight = torch.randn(shape, dtype=torch.float64)
    ends = weight.flatten(1)  # beyond the range, on its ends, and just inside them
    scale = 2 * ends.abs().mean(1)
    for _ in range(60):  # entries that are set change the mean: iterate to its fixed point
        scale = 2 * ends.abs().mean(1)
        for place, share in enumerate((1, -1, 1 - 1e-7, -1 + 1e-7, 1.5, -1.5)):
            ends[:, place] = scale * share
    quantizer = quantizer_of(weight, bits)
    torch.testing.assert_close(quantizer.quantized[0], source(weight, bits), rtol=1e-12, atol=1e-12)
    n = 2 ** (bits - 1)
    assert (quantizer.grid.low, quantizer.grid.high, quantizer.grid.levels) == (-n, n - 1, 2 * n)
    assert quantizer.codes.unique().tolist() == list(range(-n, n)) or bits == 8
    torch.testing.assert_close(quantizer_of(3 * weight, bits).quantized[0], 3 * quantizer.quantized[0])


def test_o1_the_gradient_is_the_identity_for_all_weights():
    weight = torch.tensor([[0.1, -0.2, 0.3, -9.0]])
    grads, method = [torch.tensor([[1.0, 2.0, 3.0, 4.0]])], Statsq(Statsq.Options(bits=2))
    method.after_backward(quantizer_of(weight), grads, at(0.5))
    assert grads[0].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("option", ["per_channel", "quantize_bias"])
def test_o1_options_that_would_change_the_statistic_are_unknown(option):
    with pytest.raises(ValidationError, match=f"unknown key '{option}'"):
        Statsq.Options(bits=2, **{option: False})


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_o1_weights_outside_the_boundary_keep_their_bits(name, weight_decay):
    torch.manual_seed(0)
    weight = torch.randn(20, 500)
    method = Cga(Cga.Options(bits=3, start=0.5, boundary=0.05))
    quantizer = method.make_quantizer({"a.weight": weight}, {})
    method.begin(quantizer)
    quantizer.update()
    optimizer = OPTIMIZERS[name]([weight], lr=1e-2, decays=[weight_decay])

    def step(progress):
        weight.grad = torch.randn_like(weight)
        before, free = weight.clone(), near_threshold(quantizer, 0, 0.05)
        method.after_backward(quantizer, [weight.grad], at(progress))
        method.step(optimizer, quantizer, at(progress))
        quantizer.update()
        return free, weight != before

    for _ in range(5):  # builds up momentum
        assert step(0.4)[1].all()
    for _ in range(5):
        free, moved = step(0.5)
        assert 0.005 < free.double().mean() < 0.2
        assert torch.equal(free, moved)


def test_o1_how_far_the_boundary_reaches():
    torch.manual_seed(0)
    quantizer = quantizer_of(torch.randn(8, 1000), 3, Cga)
    position, (low, high, _) = quantizer.position(0), quantizer.grid
    assert torch.equal(near_threshold(quantizer, 0, 0.5), (position >= low) & (position <= high))
    assert near_threshold(quantizer, 0, 0.0).double().mean() < 0.01
    thresholds = torch.arange(low, high) + 0.5
    nearest = (position[..., None] - thresholds).abs().amin(-1)
    assert torch.equal(near_threshold(quantizer, 0, 0.1), nearest <= 0.1)


def test_o1_only_the_last_level_lies_beyond_the_outer_thresholds():
    quantizer = quantizer_of(torch.tensor([[-3.0, 0.01, 0.02, 0.03, 0.04]]), 2, Cga)
    assert quantizer.position(0)[0, 0] < quantizer.grid.low - 0.5  # no threshold there
    assert not near_threshold(quantizer, 0, 0.4)[0, 0]
