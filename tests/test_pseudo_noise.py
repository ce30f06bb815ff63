"""V7: the released form of DiffQ's noise: the tensor's whole range, its gradient at both ends, tensors left alone."""

import pytest
import torch
from conftest import at

from oscillations.methods.pseudo_noise import PseudoNoise

WEIGHT = torch.tensor([0.9, -0.2, 0.45, -1.0, 0.07], dtype=torch.float64)


def made(weights, own_bits=(), **options):
    method = PseudoNoise(PseudoNoise.Options(**{"bits": 3, "range": "minmax"} | options))
    quantizer = method.make_quantizer(weights, dict(own_bits))
    quantizer.update()
    return method, quantizer


def test_v7_golden_values(monkeypatch):
    draws = torch.tensor([0.3, -1.2, 0.8, 0.1, -0.5], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, mean, std: self.copy_(mean + std * draws))
    method, quantizer = made({"w": WEIGHT}, noise="gaussian")
    assert method.step_size(quantizer, 0).item() == pytest.approx(0.271429, abs=1e-6)
    noisy = method.forward_weights(quantizer)[0]
    assert noisy.tolist() == pytest.approx([0.940714, -0.362857, 0.558571, -0.986429, 0.002143], abs=1e-6)
    grads = [torch.arange(1, 6, dtype=torch.float64)]
    method.after_backward(quantizer, grads, at(0.0))
    assert grads[0].tolist() == pytest.approx([0.871429, 2, 3, 4.128571, 5], abs=1e-6)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("ties", [False, True])
def test_v7_both_ends_of_the_range_have_autograds_gradient(noise, ties):
    torch.manual_seed(0)
    weight, upstream = torch.randn(2, 8, 6, 3, 3, dtype=torch.float64)
    weight, upstream = (tensor.to(memory_format=torch.channels_last) for tensor in (weight, upstream))
    if ties:
        weight.clamp_(-1, 1)
    method, quantizer = made({"w": weight}, own_bits={"w": 4}, noise=noise)
    noisy = method.forward_weights(quantizer)[0]
    leaf = weight.clone().requires_grad_()
    xi = (noisy - weight) / ((weight.amax() - weight.amin()) / 15)
    ((leaf + (leaf.amax() - leaf.amin()) / 15 * xi) * upstream).sum().backward()
    grads = [upstream.clone()]
    method.after_backward(quantizer, grads, at(0.0))
    torch.testing.assert_close(grads[0], leaf.grad)


def test_v7_a_detached_range_has_no_gradient():
    method, quantizer = made({"w": WEIGHT.clone()}, scale_grad="detach")
    method.forward_weights(quantizer)
    grads = [torch.ones(5, dtype=torch.float64)]
    method.after_backward(quantizer, grads, at(0.0))
    assert torch.equal(grads[0], torch.ones(5, dtype=torch.float64))


def test_v7_a_tensor_of_one_value_has_no_noise():
    method, quantizer = made({"b": torch.zeros(4)})
    assert torch.equal(method.forward_weights(quantizer)[0], torch.zeros(4))
    grads = [torch.ones(4)]
    method.after_backward(quantizer, grads, at(0.0))
    assert torch.equal(grads[0], torch.ones(4))


@pytest.mark.parametrize("kind", ["absmax", "minmax"])
def test_v7_small_tensors_have_no_noise(kind):
    torch.manual_seed(0)
    weights = {"small": torch.randn(3, 4), "large": torch.randn(13)}
    method, quantizer = made(weights, range=kind, min_size=12)
    for _ in range(2):
        small, large = method.forward_weights(quantizer)
        assert torch.equal(small, weights["small"])
        assert (large != weights["large"]).all()
    grads = [torch.ones(3, 4), torch.ones(13)]
    method.after_backward(quantizer, grads, at(0.0))
    assert torch.equal(grads[0], torch.ones(3, 4))
    assert not torch.equal(grads[1], torch.ones(13))
    method, quantizer = made(weights, range=kind, min_size=11)
    assert not torch.equal(method.forward_weights(quantizer)[0], weights["small"])


def test_v7_the_defaults_draw_as_before():
    torch.manual_seed(0)
    weights = {"a": torch.randn(5, 4), "b": torch.randn(3, 5)}
    method, quantizer = made(weights, range="absmax")
    state = torch.get_rng_state()
    noisy = method.forward_weights(quantizer)
    torch.set_rng_state(state)
    for weight, scale, found in zip(weights.values(), quantizer.scales, noisy):
        assert torch.equal(found, weight + torch.empty_like(weight).uniform_(-0.5, 0.5) * scale)


def test_v7_a_range_of_channels_is_refused():
    with pytest.raises(ValueError, match="per_channel: the range minmax is that of a whole tensor; leave per_channel"):
        PseudoNoise.Options(bits=3, range="minmax", per_channel=True)
