"""Gradient-L1: closed form, the dual norm that it is, and when it is on (Alizadeh et al. 2020)."""

import pytest
import torch
from conftest import at
from test_training import run, trainer
from torch.autograd.functional import hvp
from torch.nn import functional as F

from oscillations import models
from oscillations.engine.layers import quantized_parameters
from oscillations.methods.gradient_l1 import GradientL1


def method(**options):
    return GradientL1(GradientL1.Options(bits=3, **options))


def test_j1_closed_form():
    """L = (x w - y)^2 / 2 with x = 2, y = w = 1: |L'| = 2, and its own gradient sign(2) x^2 = 4."""
    weight = torch.tensor(1.0, requires_grad=True)
    task = (2 * weight - 1).square() / 2
    total = method(**{"lambda": 0.3}).loss(task, [weight], at(0.8))
    assert total.item() == pytest.approx(0.5 + 0.3 * 2)
    total.backward()
    assert weight.grad.item() == pytest.approx(2 + 0.3 * 4)


def small_network(seed=0):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    return network, torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))


def test_j1_gradient_is_the_hessian_times_the_gradients_signs():
    network, x, y = small_network()
    weight = network[0].weight

    def task(values):
        return F.cross_entropy(network[2](torch.tanh(F.linear(x, values, network[0].bias))), y)

    grad = torch.autograd.grad(task(weight), weight)[0]
    expected = grad + 0.1 * hvp(task, weight.detach(), grad.sign())[1]
    method(**{"lambda": 0.1}).loss(task(weight), [weight], at(0.9)).backward()
    torch.testing.assert_close(weight.grad, expected)


def test_j1_no_bounded_perturbation_has_a_larger_effect_than_the_norm():
    network, x, y = small_network()
    weights = [network[0].weight, network[2].weight]
    task = F.cross_entropy(network(x), y)
    norm = (method(**{"lambda": 1.0}).loss(task, weights, at(1.0)) - task).item()
    grads = torch.autograd.grad(task, weights)
    delta = 0.01
    for _ in range(200):
        effect = sum((delta * (2 * torch.rand_like(grad) - 1) * grad).sum().item() for grad in grads)
        assert abs(effect) <= delta * norm
    attained = sum((delta * grad.sign() * grad).sum().item() for grad in grads)
    assert attained == pytest.approx(delta * norm)


def test_j1_off_before_its_share_of_the_training():
    weight = torch.tensor(1.0, requires_grad=True)
    task = weight.square()
    assert method().loss(task, [weight], at(0.7499)) is task
    assert method().loss(task, [weight], at(0.75)) is not task
    assert method(share=0.0).loss(task, [weight], at(0.9999)) is task


def test_j1_lambda_zero_trains_the_baseline(recipe, blobs):
    recipe["training"]["patience"] = 10
    made = {
        strength: run(trainer(recipe, blobs, method=options))
        for strength, options in {
            None: {"name": "baseline"},
            0.0: {"name": "gradient-l1", "bits": 3, "lambda": 0.0},
            0.01: {"name": "gradient-l1", "bits": 3, "lambda": 0.01},
        }.items()
    }

    def same(a, b):
        return all(torch.equal(p, q) for p, q in zip(made[a].model.parameters(), made[b].model.parameters()))

    assert same(None, 0.0)
    assert not same(None, 0.01)


def test_j1_attention_has_a_second_derivative():
    options = {"name": "vit-tiny", "patch_size": 4, "width": 12, "depth": 1, "heads": 3}
    network = models.build(options, (1, 8, 8), 4)
    regularizer = method()
    regularizer.attach(network)
    weights = list(quantized_parameters(network, ["blocks.*"]).values())
    task = F.cross_entropy(network(torch.randn(4, 1, 8, 8)), torch.arange(4))
    regularizer.loss(task, weights, at(1.0)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in weights)
