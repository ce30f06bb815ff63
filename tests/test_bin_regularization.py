"""Bin regularization: its two forms, its gradients against autograd, and what it has in common with dampening."""

import pytest
import torch
from conftest import at
from test_training import run, trainer

from oscillations.core.bits import grid_of
from oscillations.methods.bin_regularization import BinRegularization, bin_shares


def made(weights, bits=3, scale=None, **options):
    method = BinRegularization(BinRegularization.Options(bits=bits, **options))
    quantizer = method.make_quantizer({f"{i}.weight": weight for i, weight in enumerate(weights)}, {})
    method.begin(quantizer)
    if scale is not None:
        quantizer.scales[0].fill_(scale)
    quantizer.update()
    return method, quantizer


def source(weight, scale, codes):
    """The sum over bins of (mean - level)^2 + biased variance, as defined; differentiable."""
    total = weight.sum() * 0
    for code in codes.unique().tolist():
        inside = weight[codes == code]
        total = total + (inside.mean() - code * scale).square()
        if len(inside) > 1:
            total = total + inside.var(correction=0)
    return total


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("grid", ["sym_odd", "lsq"])
def test_b1_mean_and_variance_are_the_mean_squared_distance(bits, grid):
    torch.manual_seed(bits)
    weights = [torch.randn(30, 20, dtype=torch.float64), torch.randn(8, 5, 3, 3, dtype=torch.float64)]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    method, quantizer = made(weights, bits, grid=grid, **{"lambda": 0.7})
    expected = sum(source(w, s, c) for w, s, c in zip(quantizer.weights, quantizer.scales, quantizer.code_views))
    assert method.penalty(quantizer, at(0.25)).item() == pytest.approx(0.7 * expected.item(), rel=1e-6)


@pytest.mark.parametrize("scale_gradient", [False, True])
def test_b1_gradients_are_those_of_autograd(scale_gradient):
    torch.manual_seed(0)
    weights = [torch.randn(12, 9, dtype=torch.float64), torch.randn(8, 5, 3, 3, dtype=torch.float64)]
    method, quantizer = made(weights, **{"lambda": 0.7, "scale_gradient": scale_gradient})
    lsq, _ = made(weights, **{"lambda": 0.0})
    upstream = [torch.randn_like(weight) for weight in weights]
    plain, grads = [g.clone() for g in upstream], [g.clone() for g in upstream]
    lsq.after_backward(quantizer, plain, at(0.5))
    plain_scales = [scale.grad.clone() for scale in quantizer.scales]
    method.after_backward(quantizer, grads, at(0.5))
    for i, weight in enumerate(weights):
        w, s = weight.clone().requires_grad_(), quantizer.scales[i].clone().requires_grad_()
        (0.7 * source(w, s, quantizer.code_views[i])).backward()
        torch.testing.assert_close(grads[i] - plain[i], w.grad)
        added = quantizer.scales[i].grad - plain_scales[i]
        torch.testing.assert_close(added, s.grad if scale_gradient else torch.zeros_like(s))


def test_b1_scales_per_channel_have_their_own_gradients():
    torch.manual_seed(0)
    weight = torch.randn(6, 50, dtype=torch.float64)
    method, quantizer = made([weight], per_channel=True)
    grads, codes = [torch.zeros_like(weight)], quantizer.code_views[0]
    method.after_backward(quantizer, grads, at(0.5))
    scale = quantizer.scales[0].clone().requires_grad_()
    ((weight - codes * scale).square() * bin_shares(codes, quantizer.grid)).sum().backward()
    torch.testing.assert_close(quantizer.scales[0].grad, scale.grad)


def test_b1_a_weight_alone_in_its_bin_has_no_variance_but_is_pulled():
    codes = torch.tensor([[-3, 1, 1], [1, 3, 3]], dtype=torch.int8)
    shares = bin_shares(codes, grid_of("sym_odd", 3))
    assert shares.tolist() == [[1, pytest.approx(1 / 3), pytest.approx(1 / 3)], [pytest.approx(1 / 3), 0.5, 0.5]]
    method, quantizer = made([torch.tensor([-0.9, 0.3, 1.2])], scale=1.0)  # three bins of one
    assert method.penalty(quantizer, at(1.0)).item() == pytest.approx(0.1**2 + 0.3**2 + 0.2**2)
    grads = [torch.zeros(3)]
    method.after_backward(quantizer, grads, at(1.0))
    torch.testing.assert_close(grads[0], 2 * torch.tensor([0.1, 0.3, 0.2]))


def test_b1_with_equal_counts_it_is_dampening_over_the_count():
    """Dampening, summed, is the squared distance to the levels; equal bins of V give 1 / V of it."""
    offsets = torch.linspace(-0.4, 0.4, 5)
    weight = (torch.arange(-3.0, 4)[:, None] + offsets) * 0.2
    method, quantizer = made([weight], scale=0.2)
    dampening = quantizer.error(0).square().sum()
    assert method.penalty(quantizer, at(1.0)).item() == pytest.approx(dampening.item() / 5, rel=1e-5)
    grads = [torch.zeros_like(weight)]
    method.after_backward(quantizer, grads, at(1.0))
    torch.testing.assert_close(grads[0], 2 * (weight - quantizer.quantized[0]) / 5)


def test_b1_levels_are_zeros():
    weight = torch.tensor([-3, -2, -2, 0, 0, 1, 3, 3]) * 0.25
    method, quantizer = made([weight], scale=0.25)
    grads = [torch.zeros_like(weight)]
    method.after_backward(quantizer, grads, at(1.0))
    assert method.penalty(quantizer, at(1.0)).item() == 0
    assert not grads[0].any()
    assert quantizer.scales[0].grad.item() == 0


def test_b1_before_its_start_it_is_lsq(recipe, blobs):
    options = {"name": "bin-regularization", "bits": 3, "start": 1.0}
    late, lsq = (run(trainer(recipe, blobs, method=method)) for method in (options, {"name": "lsq", "bits": 3}))
    assert all(torch.equal(a, b) for a, b in zip(late.model.parameters(), lsq.model.parameters()))


def test_b1_pulls_weights_to_levels(recipe, blobs):
    recipe["training"] |= {"epochs": 8, "patience": 8}
    errors = {}
    for strength in (0.0, 1.0):
        options = {"name": "bin-regularization", "bits": 3, "lambda": strength, "start": 0.0}
        made = run(trainer(recipe, blobs, method=options))
        rows = [row for row in made.progress.layers if row["epoch"] == made.progress.epoch]
        errors[strength] = sum(row["error"] for row in rows) / len(rows)
    assert errors[1.0] < 0.8 * errors[0.0]
