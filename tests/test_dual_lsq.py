"""V6: Dual-LSQ: golden values, the gradients of both scales against plain autograd, and what its flags freeze."""

import math

import pytest
import torch
from conftest import at

from oscillations.core.bits import Grid, grid_of
from oscillations.methods import lsq
from oscillations.methods.dual_lsq import DualLsq, gradients

WEIGHT = torch.tensor([0.9, -0.2, 0.45, -1.0, 2.0], dtype=torch.float64)
PRE, POST = torch.tensor(0.32, dtype=torch.float64), torch.tensor(0.40, dtype=torch.float64)
ONES, COUNTED = torch.ones(5, dtype=torch.float64), torch.arange(1, 6, dtype=torch.float64)
GRID = grid_of("sym_odd", 3)


def codes(weight, scale, grid):
    return (weight / scale).round().clamp(grid.low, grid.high)


def golden(upstream, grid=GRID, post=POST):
    return gradients(WEIGHT, PRE, post, codes(WEIGHT, PRE, grid), upstream, grid)


def test_v6_golden_values():
    found = codes(WEIGHT, PRE, GRID) * POST
    assert found.tolist() == pytest.approx([1.2, -0.4, 0.4, -1.2, 1.2])
    inner, pre, post = golden(ONES)
    assert inner.tolist() == pytest.approx([1.25, 1.25, 1.25, 0, 0])
    assert (pre.item(), post.item()) == pytest.approx((-4.492188, 3), abs=1e-6)
    inner, pre, post = golden(COUNTED)
    assert inner.tolist() == pytest.approx([1.25, 2.5, 3.75, 0, 0])
    assert (pre.item(), post.item()) == pytest.approx((-7.226563, 7), abs=1e-6)
    inner, pre, _ = golden(ONES, grid_of("lsq", 3))
    assert inner[3].item() == pytest.approx(1.25)
    assert pre.item() == pytest.approx(-0.585938, abs=1e-6)


def test_v6_golden_tied():
    inner, pre, post = golden(ONES, post=PRE)
    assert inner.tolist() == [1, 1, 1, 0, 0]
    assert (pre + post).item() == pytest.approx(-0.593750, abs=1e-6)


def test_v6_weights_on_the_grids_ends_are_inside():
    weight, one = torch.tensor([-3.0, 3.0, -3.25, 3.25]), torch.tensor(1.0)
    grid = Grid(-3, 3)
    found = gradients(weight, one, 2 * one, codes(weight, one, grid), torch.ones(4), grid)
    assert found[0].tolist() == [2, 2, 0, 0]
    wider = gradients(weight, one, 2 * one, codes(weight, one, grid), torch.ones(4), grid, margin=0.5)
    assert wider[0].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["sym_odd", "lsq_full"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_v6_gradients_are_those_of_autograd(name, bits, per_channel):
    torch.manual_seed(bits)
    grid = grid_of(name, bits)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    pre = lsq.initial_scale(weight.detach(), grid, per_channel).requires_grad_()
    post = (1.3 * pre.detach()).requires_grad_()
    u = (weight / pre).clamp(grid.low, grid.high)
    upstream = torch.randn_like(weight)
    (post * (u + (u.round() - u).detach()) * upstream).sum().backward()
    found = gradients(weight.detach(), pre.detach(), post.detach(), u.detach().round(), upstream, grid)
    for ours, leaf in zip(found, (weight, pre, post)):
        torch.testing.assert_close(ours, leaf.grad)


@pytest.mark.parametrize("per_channel", [False, True])
def test_v6_tied_it_is_lsq(per_channel):
    """With equal scales weights have LSQ's gradients, and a scale that is both has the sum of theirs."""
    torch.manual_seed(0)
    grid, weight = grid_of("sym_odd", 3), torch.randn(6, 5, dtype=torch.float64)
    scale = lsq.initial_scale(weight, grid, per_channel)
    found, upstream = codes(weight, scale, grid), torch.randn_like(weight)
    inner, of_scale = lsq.gradients(weight, scale, found, upstream, grid)
    tied, pre, post = gradients(weight, scale, scale.clone(), found, upstream, grid)
    assert torch.equal(tied, inner)
    torch.testing.assert_close(pre + post, of_scale)


def made(**options):
    torch.manual_seed(0)
    method = DualLsq(DualLsq.Options(bits=3, **options))
    quantizer = method.make_quantizer({"a": torch.randn(8, 4), "b": torch.randn(3, 8)}, {})
    method.begin(quantizer)
    quantizer.update()
    return method, quantizer


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


class NoStep:
    def step(self):
        pass


@pytest.mark.parametrize("per_channel", [False, True])
def test_v6_only_the_thresholds_scale_moves_codes(per_channel):
    _, quantizer = made(per_channel=per_channel)
    before = quantizer.codes.clone()
    for level in quantizer.scale.of_levels:
        level.mul_(2)
    quantizer.update()
    assert torch.equal(quantizer.codes, before)
    for q, found, level in zip(quantizer.quantized, quantizer.code_views, quantizer.scale.of_levels):
        assert torch.equal(q, found * level)
    levels = copies(quantizer.scale.of_levels)
    for scale in quantizer.scales:
        scale.mul_(0.5)
    quantizer.update()
    assert not torch.equal(quantizer.codes, before)
    assert all(map(torch.equal, quantizer.scale.of_levels, levels))


@pytest.mark.parametrize(
    ("learnable", "pre_moves", "post_moves"),
    [("both", True, True), ("post", False, True), ("pre", True, False), ("none", False, False)],
)
def test_v6_frozen_scales_stay(learnable, pre_moves, post_moves):
    method, quantizer = made(learnable=learnable)
    pre, post = copies(quantizer.scales), copies(quantizer.scale.of_levels)
    assert all(map(torch.equal, pre, post))
    method.after_backward(quantizer, [torch.randn_like(w) for w in quantizer.weights], at(0.0))
    method.step(NoStep(), quantizer, at(0.0))
    for before, now, moves in ((pre, quantizer.scales, pre_moves), (post, quantizer.scale.of_levels, post_moves)):
        assert [torch.equal(*pair) for pair in zip(before, now)] == [not moves] * 2


@pytest.mark.parametrize("per_channel", [False, True])
def test_v6_the_scales_gradients_have_lsqs_factor_only_if_asked_for(per_channel):
    found = {}
    for grad_scale in (False, True):
        method, quantizer = made(grad_scale=grad_scale, per_channel=per_channel)
        method.after_backward(quantizer, [torch.ones_like(w) for w in quantizer.weights], at(0.0))
        found[grad_scale] = [s.grad for s in (quantizer.scales[0], quantizer.scale.of_levels[0])]
    for plain, divided in zip(found[False], found[True]):
        torch.testing.assert_close(divided, plain / math.sqrt((4 if per_channel else 32) * 3))


def test_v6_scales_stay_positive():
    method, quantizer = made(scale_lr=10.0)
    for scale in (*quantizer.scales, *quantizer.scale.of_levels):
        scale.grad = torch.ones_like(scale)
    method.step(NoStep(), quantizer, at(0.0))
    assert [s.item() for s in (*quantizer.scales, *quantizer.scale.of_levels)] == pytest.approx([1e-8] * 4)


def test_v6_a_checkpoint_holds_both_scales():
    _, quantizer = made()
    for level in quantizer.scale.of_levels:
        level.mul_(1.5)
    quantizer.update()
    state = {key: value.clone() for key, value in quantizer.state().items()}
    assert set(state) == {"scale/a", "scale/b", "level/a", "level/b"}
    _, again = made()
    again.load_state(state)
    again.update()
    assert all(map(torch.equal, again.quantized, quantizer.quantized))
