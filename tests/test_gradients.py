"""G1-G4 and G6-G8: closed-form gradients against plain autograd, written the obvious way."""

import importlib

import pytest
import torch
from conftest import at

from oscillations import methods
from oscillations.engine.quantizer import WeightQuantizer

BITS = [2, 3, 4, 8]


class RoundSTE(torch.autograd.Function):
    """Rounding whose gradient is the identity."""

    @staticmethod
    def forward(ctx, u):
        return torch.round(u)

    @staticmethod
    def backward(ctx, grad):
        return grad


def naive_quantize(weight, bits, scale_grad):
    scale = weight.abs().amax() / (2 ** (bits - 1) - 1)
    if scale_grad == "detach":
        scale = scale.detach()
    return RoundSTE.apply(weight / scale) * scale


def method(name, **options):
    found = methods.find(name)
    return found(found.Options(**options))


def closed_form(chosen, weights, grads, progress=0.0):
    """Gradients of the latent weights that a method makes of the forward weights' gradients."""
    quantizer = WeightQuantizer(dict(weights), chosen.bits)
    quantizer.update()
    grads = [grad.clone() for grad in grads]
    chosen.after_backward(quantizer, grads, at(progress))
    return grads


GOLDEN = torch.tensor([0.9, -0.2, 0.45, -1.0], dtype=torch.float64)


def test_g1_golden_regularizer():
    zero = [torch.zeros(4, dtype=torch.float64)]
    quantizer = WeightQuantizer({"w": GOLDEN}, 3)
    quantizer.update()
    q = quantizer.quantized[0]
    torch.testing.assert_close(q, torch.tensor([1, -1 / 3, 1 / 3, -1], dtype=torch.float64))
    assert (q.square() - GOLDEN.square()).mean().item() == pytest.approx(0.0424305556, abs=1e-10)
    expected = [0.05, -0.0666667, -0.0583333]
    for scale_grad, last in (("detach", 0.0), ("flow", -0.0527778)):
        osci = method(
            "osciquant", bits=3, preset="custom", reg_reduction="layer_mean", reg_half=False,
            scale_grad=scale_grad, **{"lambda": 1.0},
        )  # fmt: skip
        (grad,) = closed_form(osci, {"w": GOLDEN}, zero)
        assert grad.tolist() == pytest.approx([*expected, last], abs=1e-7)


def test_g1_golden_qat():
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for scale_grad, last in (("detach", 4.0), ("flow", 4.5166667)):
        (grad,) = closed_form(method("qat", bits=3, scale_grad=scale_grad), {"w": GOLDEN}, [upstream])
        assert grad.tolist() == pytest.approx([1, 2, 3, last], abs=1e-7)


def test_g1_ties_share_the_scale_gradient():
    weight = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64)
    upstream = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    (grad,) = closed_form(method("qat", bits=2, scale_grad="flow"), {"w": weight}, [upstream])
    assert grad.tolist() == pytest.approx([-0.15, 0.15, 1.0], abs=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_g2_paper_preset_is_lambda_times_the_error(bits):
    torch.manual_seed(bits)
    weight = torch.randn(20, 30, dtype=torch.float64)
    osci = method("osciquant", bits=bits, preset="paper_text", **{"lambda": 0.7})
    (grad,) = closed_form(osci, {"w": weight}, [torch.zeros_like(weight)])
    error = naive_quantize(weight, bits, "detach") - weight
    torch.testing.assert_close(grad, 0.7 * error, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bits", BITS)
def test_g3_official_preset_entry_by_entry(bits):
    torch.manual_seed(bits)
    weight, lam = torch.randn(20, 30, dtype=torch.float64), 0.7
    osci = method("osciquant", bits=bits, preset="official_code", **{"lambda": lam})
    (grad,) = closed_form(osci, {"w": weight}, [torch.zeros_like(weight)])
    q, n = naive_quantize(weight, bits, "detach"), weight.numel()
    limit, at = 2 ** (bits - 1) - 1, weight.abs().argmax()
    scale, sign = weight.abs().max() / limit, weight.flatten()[at].sign()
    expected = 2 * lam * (q - weight) / n
    expected.view(-1)[at] += lam * sign / limit * 2 / (n * scale) * (q * (q - weight)).sum()
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


def test_g4_duality_with_dampening():
    """OsciQuant(lambda) is Nagel's dampening with lambda_d = -lambda / 2."""
    torch.manual_seed(0)
    weight = torch.randn(50, dtype=torch.float64, requires_grad=True)
    target = naive_quantize(weight, 3, "detach").detach()
    ((-0.4 / 2) * (target - weight).square().sum()).backward()
    osci = method("osciquant", bits=3, preset="paper_text", **{"lambda": 0.4})
    (grad,) = closed_form(osci, {"w": weight.detach()}, [torch.zeros(50, dtype=torch.float64)])
    torch.testing.assert_close(grad, weight.grad, rtol=1e-12, atol=1e-14)


def test_g6_one_weight_decomposition():
    """Eq. 14: D_ste L(q) - L'(w) = x^2 (q - w)."""
    torch.manual_seed(0)
    w, x, y = (torch.randn(1000, dtype=torch.float64) for _ in range(3))
    w.requires_grad_()
    q = RoundSTE.apply(w / 0.3) * 0.3
    quantized = torch.autograd.grad((0.5 * (x * q - y).square()).sum(), w)[0]
    latent = torch.autograd.grad((0.5 * (x * w - y).square()).sum(), w)[0]
    torch.testing.assert_close(quantized - latent, x**2 * (q - w).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_g7_error_flips_at_thresholds_and_vanishes_at_levels(bits):
    limit = 2 ** (bits - 1) - 1
    scale, eps = 1 / limit, 1e-6
    levels = torch.arange(-limit, limit + 1, dtype=torch.float64) * scale
    thresholds = (torch.arange(-limit, limit, dtype=torch.float64) + 0.5) * scale

    def error(values):
        weight = torch.cat([values, torch.ones(1, dtype=torch.float64)])  # fixes the scale
        quantizer = WeightQuantizer({"w": weight}, bits)
        quantizer.update()
        return quantizer.error(0)[:-1].clone()

    assert error(levels).abs().max() < 1e-15
    torch.testing.assert_close(error(thresholds + eps), torch.full_like(thresholds, scale / 2 - eps))
    torch.testing.assert_close(error(thresholds - eps), torch.full_like(thresholds, eps - scale / 2))


@pytest.mark.parametrize("bits", BITS)
def test_g8_qat_detach_passes_gradients_through(bits):
    torch.manual_seed(0)
    grad = torch.randn(5, 6)
    (result,) = closed_form(method("qat", bits=bits, scale_grad="detach"), {"w": torch.randn(5, 6)}, [grad])
    assert torch.equal(result, grad)


OSCIQUANT = [
    {"preset": "paper_text"},
    {"preset": "official_code"},
    {"preset": "custom", "reg_reduction": "global_mean", "reg_half": True, "scale_grad": "flow"},
    {"preset": "official_code", "reg_layers": ["second"]},
    {"preset": "official_code", "train_forward": "fake_quant"},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("options", OSCIQUANT, ids=str)
def test_osciquant_gradient_is_autograds(options, bits, dtype, tolerance):
    """A whole loss, task and regularizer, through two layers."""
    torch.manual_seed(0)
    osci = method("osciquant", bits=bits, **options, **{"lambda": 0.3})
    chosen = osci.options
    first = torch.randn(8, 6, dtype=dtype, requires_grad=True)
    second = torch.randn(4, 8, dtype=dtype, requires_grad=True)
    x, target = torch.randn(16, 6, dtype=dtype), torch.randn(16, 4, dtype=dtype)

    def task(a, b):
        return ((torch.relu(x @ a.T) @ b.T - target) ** 2).mean()

    weights = {"first.weight": first, "second.weight": second}
    quantized = {name: naive_quantize(w, bits, chosen.scale_grad) for name, w in weights.items()}
    loss = task(*(quantized.values() if chosen.train_forward == "fake_quant" else weights.values()))
    kept = [name for name in weights if chosen.reg_layers == ("*",) or name.startswith("second")]
    total = sum(weights[name].numel() for name in kept)
    for name in kept:
        term = (quantized[name].square() - weights[name].square()).sum()
        divisor = {"sum": 1, "layer_mean": weights[name].numel(), "global_mean": total}[chosen.reg_reduction]
        loss = loss + 0.3 * (0.5 if chosen.reg_half else 1.0) * term / divisor
    expected = torch.autograd.grad(loss, list(weights.values()))

    latent = {name: w.detach().clone() for name, w in weights.items()}
    quantizer = WeightQuantizer(latent, bits)
    quantizer.update()
    forward = [w.clone().requires_grad_() for w in osci.forward_weights(quantizer) or latent.values()]
    grads = list(torch.autograd.grad(task(*forward), forward))
    osci.after_backward(quantizer, grads, at(0.0))
    for grad, reference in zip(grads, expected):
        scale = reference.abs().max().item()
        torch.testing.assert_close(grad, reference, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale_grad", ["flow", "detach"])
@pytest.mark.parametrize("bits", BITS)
def test_qat_gradient_is_autograds(bits, scale_grad, dtype, tolerance):
    torch.manual_seed(1)
    weight = torch.randn(12, 9, dtype=dtype, requires_grad=True)
    x = torch.randn(30, 9, dtype=dtype)

    def task(w):
        return torch.tanh(x @ w.T).square().sum()

    (expected,) = torch.autograd.grad(task(naive_quantize(weight, bits, scale_grad)), weight)
    qat = method("qat", bits=bits, scale_grad=scale_grad)
    quantizer = WeightQuantizer({"w": weight}, bits)
    quantizer.update()
    (forward,) = [q.clone().requires_grad_() for q in qat.forward_weights(quantizer)]
    (grad,) = torch.autograd.grad(task(forward), forward)
    qat.after_backward(quantizer, [grad], at(0.0))
    torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["qat", "osciquant"])
def test_convolutions_in_any_layout_and_on_any_device(name, memory_format, on_device, dense):
    """The scale's gradient of a convolution; ``on_device`` is the form that makes no device wait."""
    torch.manual_seed(3)
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    weight[1, 2, 0, 1], weight[4, 0, 2, 2] = 5.0, -5.0  # two equal maxima in different rows
    weight = weight.to(memory_format=memory_format).requires_grad_()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)

    def task(w):
        return torch.tanh(torch.nn.functional.conv2d(x, w)).square().sum()

    quantized = naive_quantize(weight, 3, "flow")
    if name == "qat":
        chosen, loss = method("qat", bits=3), task(quantized)
    else:
        chosen = method("osciquant", bits=3, **{"lambda": 0.5})
        loss = task(weight) + 0.5 * (quantized.square() - weight.square()).mean()
    (expected,) = torch.autograd.grad(loss, weight)
    dense(on_device)
    quantizer = WeightQuantizer({"w": weight}, 3)
    quantizer.update()
    codes = torch.round(weight.detach() / (5.0 / 3)).to(torch.int8)
    assert sorted(quantizer.codes.tolist()) == sorted(codes.flatten().tolist())
    forward = (chosen.forward_weights(quantizer) or [weight])[0].detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(task(forward), forward)
    chosen.after_backward(quantizer, [grad], at(0.0))
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)


def test_fisher_curvature_weighs_the_error():
    torch.manual_seed(0)
    weight, task = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    osci = method(
        "osciquant", bits=3, preset="paper_text", reg_curvature="fisher_diag", **{"lambda": 0.5}
    )  # fmt: skip
    (grad,) = closed_form(osci, {"w": weight}, [task])
    curvature = task.square() / task.square().mean()
    expected = task + 0.5 * curvature * (naive_quantize(weight, 3, "detach") - weight)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "values"), [("const", [2, 2, 2]), ("linear_warmup", [0, 1, 2]), ("cosine", [0, 0.0489434837, 2])]
)
def test_lambda_schedules(schedule, values):
    osci = method("osciquant", bits=3, lambda_schedule=schedule, **{"lambda": 2.0})
    assert [osci.strength(at(progress)) for progress in (0.0, 0.05, 1.0)] == pytest.approx(
        [values[0], values[1] if schedule != "cosine" else 1 - 0.98768834, values[2]]
    )


def test_penalty_only_where_asked():
    quantizer = WeightQuantizer({"w": GOLDEN}, 3)
    quantizer.update()
    assert method("osciquant", bits=3, **{"lambda": 1.0}).penalty(quantizer, at(0.0)) is None
    always = method("osciquant", bits=3, reg_when="always", **{"lambda": 1.0})
    assert always.penalty(quantizer, at(0.0)).item() == pytest.approx(0.0424305556, abs=1e-10)


def kurtosis(weight):
    """K as the supplement of Chmiel et al. writes it: unbiased standard deviation."""
    return (((weight - weight.mean()) / weight.std()) ** 4).mean()


def test_k1_kurtosis_values():
    kure = importlib.import_module("oscillations.methods.kure")
    grid = torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64)
    assert kure.kurtosis_and_gradient(grid)[0].item() == pytest.approx(1.088)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(1_000_000, generator=generator, dtype=torch.float64)
    gaussian = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    laplace = torch.log(uniform) * torch.sign(gaussian)
    for values, expected, tolerance in ((uniform, 1.8, 0.01), (gaussian, 3, 0.03), (laplace, 6, 0.25)):
        assert kure.kurtosis_and_gradient(values)[0].item() == pytest.approx(expected, abs=tolerance)


def test_k1_kure_gradient_is_autograds_and_orthogonal_to_shift_and_scale():
    generator = torch.Generator().manual_seed(1)
    weights = {f"fc{i}.weight": torch.randn(8, 5, generator=generator, dtype=torch.float64) for i in (1, 2)}
    leaves = [w.clone().requires_grad_() for w in weights.values()]
    (0.7 * sum((kurtosis(w) - 1.8) ** 2 for w in leaves) / 2).backward()
    found = closed_form(method("kure", bits=3, **{"lambda": 0.7}), weights, [torch.zeros(8, 5).double()] * 2)
    for leaf, grad in zip(leaves, found):
        torch.testing.assert_close(grad, leaf.grad)
        assert grad.sum().item() == pytest.approx(0, abs=1e-12)
        assert (grad * (leaf.detach() - leaf.detach().mean())).sum().item() == pytest.approx(0, abs=1e-12)
    only = closed_form(
        method("kure", bits=3, reg_layers=["fc2"], **{"lambda": 0.7}), weights, [torch.zeros(8, 5).double()] * 2
    )
    assert not only[0].any()
    torch.testing.assert_close(only[1], 2 * found[1])  # the mean over one layer instead of two


def test_k1_steps_on_gaussian_weights_lower_the_kurtosis_to_its_target():
    weight = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chosen = method("kure", bits=3, **{"lambda": 1.0})
    for _ in range(300):
        weight = weight - 30 * closed_form(chosen, {"fc1.weight": weight}, [torch.zeros_like(weight)])[0]
    assert kurtosis(weight).item() == pytest.approx(1.8, abs=0.02)


@pytest.mark.parametrize("bits", BITS)
def test_range_penalty_is_the_gradient_of_the_sum_of_maxima(bits):
    generator = torch.Generator().manual_seed(3)
    weights = {"a.weight": torch.randn(6, 4, generator=generator), "b.weight": torch.tensor([[1.0, -1.0, 0.3]])}
    leaves = [w.clone().requires_grad_() for w in weights.values()]
    (0.5 * sum(w.abs().amax() for w in leaves)).backward()
    chosen = method("range-penalty", bits=bits, **{"lambda": 0.5})
    for leaf, grad in zip(leaves, closed_form(chosen, weights, [torch.zeros_like(w) for w in leaves])):
        torch.testing.assert_close(grad, leaf.grad)


@pytest.mark.parametrize("noise,variance", [("uniform", 1 / 12), ("gaussian", 1 / 4)])
def test_d1_pseudo_noise_has_the_quantizers_size_and_autograds_gradient(noise, variance):
    torch.manual_seed(4)
    weight = torch.randn(200, 500, dtype=torch.float64)
    quantizer = WeightQuantizer({"w": weight}, 3)
    quantizer.update()
    chosen = method("pseudo-noise", bits=3, noise=noise)
    noisy = chosen.forward_weights(quantizer)[0]
    xi = (noisy - weight) / quantizer.scales[0]
    assert xi.mean().item() == pytest.approx(0, abs=0.005)
    assert xi.var().item() == pytest.approx(variance, rel=0.01)
    leaf = weight.clone().requires_grad_()
    upstream = torch.randn_like(weight)
    ((leaf + leaf.abs().amax() / 3 * xi) * upstream).sum().backward()
    grads = [upstream.clone()]
    chosen.after_backward(quantizer, grads, at(0.0))
    torch.testing.assert_close(grads[0], leaf.grad)


def test_d1_pseudo_noise_detached_keeps_the_gradient_at_the_noisy_point():
    weight = torch.randn(5, 5)
    quantizer = WeightQuantizer({"w": weight}, 3)
    quantizer.update()
    chosen = method("pseudo-noise", bits=3, scale_grad="detach")
    first = chosen.forward_weights(quantizer)[0].clone()
    assert not torch.equal(first, chosen.forward_weights(quantizer)[0])  # fresh noise at every step
    grads = [torch.randn(5, 5)]
    before = grads[0].clone()
    chosen.after_backward(quantizer, grads, at(0.0))
    assert torch.equal(grads[0], before)


@pytest.mark.parametrize(
    "shape,expected", [("linear", [0.4, 0.25, 0.1, -0.05, -0.2]), ("step", [0.4, 0.4, -0.2, -0.2, -0.2])]
)
def test_signed_schedule_goes_from_oscillation_to_dampening(shape, expected):
    chosen = method("signed", bits=3, preset="paper_text", lambda_start=0.4, lambda_end=-0.2, shape=shape)
    assert [chosen.strength(at(p)) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected)
    weights = {"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)}
    quantizer = WeightQuantizer(weights, 3)
    quantizer.update()
    for progress in (0, 0.75):
        (grad,) = closed_form(chosen, weights, [torch.zeros(4, 4).double()], progress)
        torch.testing.assert_close(grad, chosen.strength(at(progress)) * quantizer.error(0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(6, 5), (8, 3, 3, 3)], ids=["linear", "channels-last"])
def test_g8_per_channel_flow_is_autograds(bits, shape):
    torch.manual_seed(bits)
    weight, upstream = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        weight, upstream = (tensor.to(memory_format=torch.channels_last) for tensor in (weight, upstream))
    latent = weight.clone().requires_grad_()
    scale = latent.abs().flatten(1).amax(1).view(-1, *[1] * (len(shape) - 1)) / (2 ** (bits - 1) - 1)
    quantized = RoundSTE.apply(latent / scale) * scale
    (quantized * upstream).sum().backward()
    chosen = method("qat", bits=bits, per_channel=True)
    quantizer = chosen.make_quantizer({"w": weight}, {})
    quantizer.update()
    torch.testing.assert_close(quantizer.quantized[0], quantized.detach())
    grads = [upstream.clone()]
    chosen.after_backward(quantizer, grads, at(0.0))
    torch.testing.assert_close(grads[0], latent.grad)
