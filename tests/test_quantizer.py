"""Q1-Q9: properties of the quantizer (Eq. 1-2), and that the engine's fused form is the same quantizer."""

import pytest
import torch

from oscillations.core.bits import LATENT, grid_of
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.engine.scales import FrozenScale, LeastSquaresScale, max_scale, mse_scale
from oscillations.methods._aoq import Spacings

BITS = [2, 3, 4, 8]


@pytest.fixture(params=range(5))
def weight(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randn(17, 31, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bits", BITS)
def test_q1_number_of_levels(weight, bits):
    assert len(quantize(weight, bits).unique()) <= 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_q2_error_is_at_most_half_a_step(weight, bits):
    assert (quantize(weight, bits) - weight).abs().max() <= max_scale(weight, grid_of("sym_odd", bits)) / 2 + 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_q3_idempotent(weight, bits):
    once = quantize(weight, bits)
    torch.testing.assert_close(quantize(once, bits), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_q4_odd(weight, bits):
    assert torch.equal(quantize(-weight, bits), -quantize(weight, bits))


@pytest.mark.parametrize("bits", BITS)
def test_q5_scale_equivariant(weight, bits):
    torch.testing.assert_close(quantize(3.7 * weight, bits), 3.7 * quantize(weight, bits), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_q6_largest_weight_is_a_fixed_point(weight, bits):
    at = weight.abs().argmax()
    assert quantize(weight, bits).flatten()[at].item() == pytest.approx(weight.flatten()[at].item(), rel=1e-14)


def test_q7_two_bits_are_ternary(weight):
    scale = weight.abs().max()
    assert set(quantize(weight, 2).unique().tolist()) <= {-scale.item(), 0.0, scale.item()}


def test_q8_eight_bits_are_close(weight):
    assert (quantize(weight, 8) - weight).abs().max() <= weight.abs().max() / 254 * (1 + 1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_q9_zero_tensor_stays_zero(bits):
    zero = torch.zeros(4, 4)
    assert torch.equal(quantize(zero, bits), zero)
    fused = WeightQuantizer({"zero": zero}, bits)
    fused.update()
    gradient = torch.ones(4, 4)
    fused.scale.add_gradient(0, gradient, gradient.clone(), fused.error(0))
    assert torch.equal(fused.quantized[0], zero)
    assert torch.equal(gradient, torch.ones(4, 4))


def test_latent_weights_are_untouched(weight):
    assert quantize(weight, LATENT) is weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tie", ["half_even", "half_up"])
@pytest.mark.parametrize("bits", BITS)
def test_fused_form_gives_the_same_bits(bits, tie, dtype):
    torch.manual_seed(0)
    weights = {"conv": torch.randn(6, 3, 3, 3, dtype=dtype), "linear": torch.randn(5, 7, dtype=dtype) * 0.1}
    fused = WeightQuantizer(weights, bits, tie=tie)
    for _ in range(2):  # buffers are reused
        fused.update()
        codes = []
        for weight, quantized, scale in zip(weights.values(), fused.quantized, fused.scales):
            assert torch.equal(quantized, quantize(weight, bits, tie))
            codes.append((quantize(weight, bits, tie) / scale).round().flatten())
        assert torch.equal(fused.codes, torch.cat(codes).to(torch.int8))
        weights["linear"].mul_(-1.7)


def test_ties_round_as_told():
    weight = torch.tensor([1.0, 0.5, -0.5])
    assert quantize(weight, 2, "half_even").tolist() == [1.0, 0.0, 0.0]
    assert quantize(weight, 2, "half_up").tolist() == [1.0, 1.0, 0.0]


def test_frozen_scale_stays_and_clamps():
    weight = torch.tensor([1.0, 0.2])
    fused = WeightQuantizer({"w": weight}, 2, FrozenScale)
    weight.mul_(3)
    fused.update()
    assert fused.scales[0] == 1.0
    assert fused.quantized[0].tolist() == [1.0, 1.0]


def test_mse_scale_beats_the_maximum():
    torch.manual_seed(0)
    weight = torch.randn(4000)
    fused = WeightQuantizer({"w": weight}, 2, LeastSquaresScale)
    fused.update()
    assert (fused.quantized[0] - weight).square().sum() < 0.5 * (quantize(weight, 2) - weight).square().sum()
    assert fused.codes.unique().tolist() == [-1, 0, 1]


def test_per_channel_scales_are_those_of_the_channels_alone():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    for scale_of in (max_scale, mse_scale):
        scales = scale_of(weight, grid_of("sym_odd", 3), per_channel=True)
        assert scales.shape == (4, 1, 1, 1)
        assert [scale.item() for scale in scales] == [
            scale_of(channel, grid_of("sym_odd", 3)).item() for channel in weight
        ]
    rows = torch.stack([quantize(channel, 3) for channel in weight])
    assert torch.equal(quantize(weight, 3, per_channel=True), rows)


def test_grids_of_the_field():
    assert [grid_of("sym_odd", bits).levels for bits in (2, 3, 4)] == [3, 7, 15]
    assert [grid_of("lsq", bits) for bits in (2, 3)] == [(-1, 1, 0), (-4, 3, 0)]
    assert grid_of("mid_rise", 2) == (-2, 1, 0.5)
    fused = WeightQuantizer({"w": torch.tensor([-9.0, -0.1, 0.1, 1.2])}, 2, Spacings, grid="mid_rise")
    fused.scale.of_thresholds = fused.scale.of_levels = [torch.tensor(1.0)]
    fused.update()
    assert fused.codes.tolist() == [-2, -1, 0, 1]
    assert fused.quantized[0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    fused.scale.of_levels = [torch.tensor(2.0)]
    fused.update()
    assert fused.quantized[0].tolist() == [-3.0, -1.0, 1.0, 3.0]
