"""Activations: the learned step's golden values, when it starts, what it leaves alone, and whole trainings (V8)."""

import math

import pytest
import torch
from conftest import image_sets, make_trainer
from test_training import run, same_state, trainer

from oscillations import models
from oscillations.core.errors import InputError
from oscillations.engine.activations import InputQuantizer, LearnedStep
from oscillations.engine.layers import first_and_last, quantized_parameters
from oscillations.engine.network import Network
from oscillations.methods.baseline import Baseline

CPU = torch.device("cpu")
POSITIVE = [0, 0.10, 0.26, 0.70, 0.80, 1.40]
MIXED = [-0.9, -0.52, -0.10, 0, 0.30, 0.44]
GOLDEN = {  # inputs, range at 2 bits, margin -> x^, dx^/dx, dx^/ds
    "unsigned, clip first": (POSITIVE, (0, 3), 0.0, [0, 0, 0.25, 0.75, 0.75, 0.75], [1, 1, 1, 1, 0, 0], 5.76),
    "unsigned, round first": (POSITIVE, (0, 3), 0.5, [0, 0, 0.25, 0.75, 0.75, 0.75], [1, 1, 1, 1, 1, 0], 2.56),
    "signed, clip first": (MIXED, (-2, 1), 0.0, [-0.5, -0.5, 0, 0, 0.25, 0.25], [0, 0, 1, 1, 0, 0], -1.6),
    "signed, round first": (MIXED, (-2, 1), 0.5, [-0.5, -0.5, 0, 0, 0.25, 0.25], [0, 1, 1, 1, 1, 0], -0.72),
}
W3A3 = {"activations": {"bits": 3, "first_last": 8, "lr": 1e-3}}


@pytest.mark.parametrize("case", GOLDEN)
def test_v8_golden_values(case):
    inputs, (low, high), margin, quantized, inside, per_step = GOLDEN[case]
    x = torch.tensor(inputs, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    found = LearnedStep.apply(x, step, low, high, margin, 1.0)
    assert found.tolist() == pytest.approx(quantized)
    found.sum().backward()
    assert x.grad.tolist() == inside
    assert step.grad.item() == pytest.approx(per_step)


@pytest.mark.parametrize(
    ("inputs", "bits", "signed", "first"),
    [(POSITIVE, 2, False, 0.627387), (POSITIVE, 4, False, 0.280576), (MIXED, 2, True, 0.753333), (MIXED, 4, True, 0.284733)],
)  # fmt: skip
def test_v8_the_first_batch_says_sign_and_step(inputs, bits, signed, first):
    quantizer = InputQuantizer(bits, CPU)
    found = quantizer(torch.tensor(inputs), training=True)
    assert quantizer.signed.item() is signed
    assert quantizer.step.item() == pytest.approx(first, abs=1e-6)
    assert len(found.unique()) <= 2**bits
    quantizer(-10 * torch.tensor(inputs), training=True)  # never again
    assert quantizer.step.item() == pytest.approx(first, abs=1e-6)
    again = InputQuantizer(bits, CPU)
    again.load_state(quantizer.state())
    assert torch.equal(again(torch.tensor(MIXED), training=True), quantizer(torch.tensor(MIXED), training=False))


def test_v8_inputs_of_zeros_have_a_step_and_an_evaluation_starts_nothing():
    quantizer = InputQuantizer(3, CPU)
    with pytest.raises(InputError, match="before any training batch"):
        quantizer(torch.ones(3), training=False)
    assert quantizer(torch.zeros(3), training=True).tolist() == [0, 0, 0]
    assert 0 < quantizer.step.item() < 1e-7


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_v8_the_steps_gradient_is_that_of_finite_differences_where_codes_stay(bits, signed):
    torch.manual_seed(bits)
    x = torch.randn(4000, dtype=torch.float64)
    x = x if signed else x.abs()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    step = torch.tensor(3.0 / high, dtype=torch.float64, requires_grad=True)
    upstream, factor = torch.randn_like(x), 0.37
    (LearnedStep.apply(x, step, low, high, 0.0, factor) * upstream).sum().backward()
    u = x / step.detach()
    codes = u.round().clamp(low, high)
    inside = (u >= low) & (u <= high)
    expected = factor * (upstream * torch.where(inside, codes - u, codes)).sum()  # inside, x / s is held by the STE
    assert step.grad.item() == pytest.approx(expected.item(), rel=1e-9)


NETWORKS = {  # inputs that cannot be negative, of some layers
    "mlp5": ({"name": "mlp5", "width": 16}, {"fc1": True, "fc2": False, "fc6": False}),
    "resnet18": ({"name": "resnet18", "width": 8}, {"conv1": True, "layer1.0.conv1": False, "layer2.0.downsample.0": False, "fc": False}),
    "mobilenetv2": ({"name": "mobilenetv2", "width": 0.25, "smallest": 2}, {"features.3.conv.0.0": True, "features.3.conv.1.0": False, "features.3.conv.2": False}),
    "vit-tiny": ({"name": "vit-tiny", "width": 12, "depth": 2, "heads": 3, "patch_size": 4}, {f"blocks.1.{layer}": True for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_v8_signs_and_widths_of_every_network(recipe, name):
    from oscillations.engine.recipe import Activations

    spec, signs = NETWORKS[name]
    torch.manual_seed(0)
    model = models.build(spec, (1, 8, 8), 4)
    patterns = tuple(models.find(spec["name"]).QUANTIZED)
    network = Network(model, Baseline(Baseline.Options()), patterns, Activations(bits=3), None)
    model.train()(torch.randn(16, 1, 8, 8))
    quantizers = network.inputs.by_layer
    assert list(quantizers) == [weight.removesuffix(".weight") for weight in quantized_parameters(model, patterns)]
    assert {layer: quantizers[layer].signed.item() for layer in signs} == signs
    ends = first_and_last(model)
    assert {one.bits for layer, one in quantizers.items() if layer in ends} <= {8}
    assert {one.bits for layer, one in quantizers.items() if layer not in ends} == {3}
    assert all(one.step > 0 for one in quantizers.values())


METHODS = [
    {"name": "baseline"}, {"name": "qat", "bits": 3}, {"name": "lsq", "bits": 3}, {"name": "osciquant", "bits": 3, "lambda": 1},
    {"name": "freezing", "bits": 3, "start": 0.1, "momentum": 0.1}, {"name": "aoq", "bits": 3}, {"name": "ema", "bits": 3, "warmup_steps": 5},
    {"name": "qc", "bits": 3, "start": 0.5}, {"name": "gradient-l1", "bits": 3, "share": 0.5}, {"name": "cga", "bits": 3, "start": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_v8_every_method_trains_with_quantized_inputs_resumes_and_evaluates_as_trained(recipe, blobs, method):
    recipe["training"] |= {"epochs": 3}
    whole = run(trainer(recipe, blobs, method=method, **W3A3))
    losses = [row["train_loss"] for row in whole.progress.history]
    assert losses[-1] < losses[0]
    first = trainer(recipe, blobs, method=method, **W3A3)
    for _ in zip(range(13), first.steps()):
        pass
    again = trainer(recipe, blobs, method=method, **W3A3)
    again.load_state({key: value.clone() for key, value in first.state().items()})
    assert same_state(run(again), whole)
    assert {key.partition("/")[2] for key in whole.best if key.startswith("activations/")} >= {"fc2/step", "fc2/signed"}
    loaded = trainer(recipe, blobs, method=method, **W3A3)
    loaded.network.load_trained(whole.best)
    best = whole.progress.history[whole.progress.best_epoch - 1]
    assert all(best[key] == value for key, value in loaded.validate().items() if key != "val_loss")


def test_v8_steps_learn_in_training_only_and_are_no_oscillations(recipe, blobs):
    made = trainer(recipe, blobs, method={"name": "qat", "bits": 3}, **W3A3)
    plain = trainer(recipe, blobs, method={"name": "qat", "bits": 3})
    x, y = made.sets["train"].batch(slice(0, 32))
    made.step(x, y)
    steps = {layer: one.step.clone() for layer, one in made.network.inputs.by_layer.items()}
    made.model.train()
    made.step(x, y)
    moved = {layer: one.step.clone() for layer, one in made.network.inputs.by_layer.items()}
    assert all(not torch.equal(steps[layer], moved[layer]) for layer in steps)
    made.validate()
    assert all(torch.equal(one.step, moved[layer]) for layer, one in made.network.inputs.by_layer.items())
    assert made.counters["iteration"].codes.shape == plain.counters["iteration"].codes.shape


def test_v8_a_layer_that_is_not_called_is_refused(recipe, blobs):
    made = trainer(recipe, blobs, method={"name": "baseline"}, **W3A3)
    layer = made.model.fc3
    made.model.fc3.forward = lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)
    layer._forward_pre_hooks.clear()  # as where a network uses a layer's weight itself
    with pytest.raises(InputError, match="fc3 computes without being called"):
        made.step(*made.sets["train"].batch(slice(0, 32)))


@pytest.mark.parametrize("method", METHODS[1:6], ids=str)
def test_first_and_last_layers_have_their_own_width_at_every_width(recipe, blobs, method):
    made = trainer(recipe, blobs, method=method, first_last_bits=8)
    quantizer = made.network.quantizer
    assert dict(zip(quantizer.names, quantizer.widths)) == {
        f"fc{i}.weight": 8 if i in (1, 6) else 3 for i in range(1, 7)
    }
    run(made)
    for bits in (2, 3, 4):
        for name, q in zip(made.network.names, made.network.weights(bits)):
            levels = len(q.unique())
            assert levels > 16 if name in ("fc1.weight", "fc6.weight") else levels <= 2**bits
    assert math.isfinite(made.progress.history[-1]["train_loss"])


def test_convolutions_and_attention_train_with_quantized_inputs(recipe, blobs):
    for name in ("resnet18", "vit-tiny"):
        spec, _ = NETWORKS[name]
        recipe |= {"model": spec, "quant_layers": list(models.find(spec["name"]).QUANTIZED)} | W3A3
        recipe["training"] |= {"epochs": 2}
        about, tensors = blobs
        made = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, CPU), CPU)
        run(made)
        losses = [row["train_loss"] for row in made.progress.history]
        assert losses[-1] < losses[0]
