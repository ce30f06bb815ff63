"""LSQ: golden values, the scale's gradient against plain autograd, and its checkpoints (Esser et al. 2020)."""

import math

import pytest
import torch
from conftest import at

from oscillations.core.bits import grid_of
from oscillations.engine.scales import mse_scale
from oscillations.methods.lsq import Lsq, gradients, initial_scale

WEIGHT = torch.tensor([0.9, -0.2, 0.45, -1.0, 2.0], dtype=torch.float64)
SCALE = torch.tensor(0.32, dtype=torch.float64)


def fake_quantized(weight, scale, grid):
    """s round(clip(w / s)) with a straight-through round, the obvious way."""
    u = (weight / scale).clamp(grid.low, grid.high)
    return scale * (u + (u.round() - u).detach())


def codes(weight, scale, grid):
    return (weight / scale).round().clamp(grid.low, grid.high)


def test_l1_golden_values():
    grid = grid_of("lsq", 3)
    assert grid == (-4, 3, 0)
    found = codes(WEIGHT, SCALE, grid)
    assert torch.allclose(found * SCALE, torch.tensor([0.96, -0.32, 0.32, -0.96, 0.96], dtype=torch.float64))
    inner, scale_gradient = gradients(WEIGHT, SCALE, found, torch.ones_like(WEIGHT), grid)
    assert inner.tolist() == [1, 1, 1, 1, 0]
    assert scale_gradient.item() == pytest.approx(0.1875 - 0.375 - 0.40625 + 0.125 + 3)


@pytest.mark.parametrize("name", ["sym_odd", "lsq", "lsq_full"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_l1_gradients_are_those_of_autograd(name, bits, per_channel):
    torch.manual_seed(bits)
    grid = grid_of(name, bits)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = initial_scale(weight.detach(), grid, per_channel).requires_grad_()
    upstream = torch.randn_like(weight)
    (fake_quantized(weight, scale, grid) * upstream).sum().backward()
    found = codes(weight, scale, grid).detach()
    inner, scale_gradient = gradients(weight.detach(), scale.detach(), found, upstream, grid)
    assert torch.allclose(inner, weight.grad)
    assert torch.allclose(scale_gradient, scale.grad)


def test_l1_rounding_first_lets_half_a_step_more_through():
    weight = torch.tensor([3.4, 3.6, -4.4, -4.6])
    found = codes(weight, torch.tensor(1.0), grid_of("lsq", 3))
    ones = torch.ones(4)
    assert gradients(weight, torch.tensor(1.0), found, ones, grid_of("lsq", 3))[0].tolist() == [0, 0, 0, 0]
    assert gradients(weight, torch.tensor(1.0), found, ones, grid_of("lsq", 3), 0.5)[0].tolist() == [1, 0, 1, 0]


def made(**options):
    method = Lsq(Lsq.Options(bits=3, **options))
    weights = {"a": torch.randn(8, 4), "b": torch.randn(3, 8)}
    quantizer = method.make_quantizer(weights, {})
    method.begin(quantizer)
    quantizer.update()
    return method, quantizer


@pytest.mark.parametrize("per_channel", [False, True])
def test_l1_initial_scale_and_gradient_scale(per_channel):
    torch.manual_seed(0)
    method, quantizer = made(per_channel=per_channel)
    weight, scale = quantizer.weights[0], quantizer.scales[0]
    expected = weight.abs().mean(1, keepdim=True) if per_channel else weight.abs().mean()
    assert torch.allclose(scale, 2 * expected / math.sqrt(3))
    before = [q.clone() for q in quantizer.quantized]
    grads = [torch.randn_like(w) for w in quantizer.weights]
    raw = gradients(weight, scale, quantizer.code_views[0], grads[0].clone(), quantizer.grid)[1]
    method.after_backward(quantizer, grads, at(0.0))
    shared = 4 if per_channel else 32
    assert torch.allclose(scale.grad, raw / math.sqrt(shared * 3))
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.quantized))  # the forward pass knows nothing of it


def test_l1_the_gradient_of_a_scale_is_as_it_is_without_its_factor():
    torch.manual_seed(0)
    method, quantizer = made(grad_scale=False)
    grads = [torch.randn_like(w) for w in quantizer.weights]
    upstream, scale = grads[0].clone(), quantizer.scales[0]
    raw = gradients(quantizer.weights[0], scale, quantizer.code_views[0], upstream, quantizer.grid)[1]
    method.after_backward(quantizer, grads, at(0.0))
    assert torch.equal(scale.grad, raw)


def test_l1_four_levels_at_two_bits_if_asked_for():
    assert [grid_of(name, 2) for name in ("lsq", "lsq_full")] == [(-1, 1, 0), (-2, 1, 0)]
    assert grid_of("lsq_full", 3) == grid_of("lsq", 3)
    quantizer = Lsq(Lsq.Options(bits=2, grid="lsq_full")).make_quantizer({"a": torch.randn(50, 40)}, {})
    quantizer.update()
    assert quantizer.codes.unique().tolist() == [-2, -1, 0, 1]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_l1_the_first_scale_by_least_squares_is_best_on_its_own_grid(bits, per_channel):
    """By trying all: with one more level below zero another scale is best than with as many on both sides."""
    torch.manual_seed(3)
    weight, grid = torch.randn(7, 400), grid_of("lsq", bits)
    weight[:, 0] = -5.0  # what the level below makes room for

    def errors(scale):
        return (codes(weight, scale, grid) * scale - weight).square().sum(1 if per_channel else (0, 1))

    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().amax()
    tried = torch.stack([errors(largest / grid.high * i / 80) for i in range(1, 81)])
    found = mse_scale(weight, grid, per_channel=per_channel)
    torch.testing.assert_close(errors(found), tried.amin(0))
    assert (errors(mse_scale(weight, grid_of("sym_odd", bits), per_channel=per_channel)) > tried.amin(0)).any()


def test_l1_scales_stay_positive():
    method, quantizer = made(scale_lr=10.0)

    class NoStep:
        def step(self):
            pass

    for scale in quantizer.scales:
        scale.grad = torch.ones_like(scale)
    method.step(NoStep(), quantizer, at(0.0))
    quantizer.update()
    assert all(scale.item() == pytest.approx(1e-8) for scale in quantizer.scales)
    assert all(q.isfinite().all() for q in quantizer.quantized)
