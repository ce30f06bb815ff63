"""Averaged weights, and a correction after the training (Gupta and Asthana 2024): laws, identity and folding."""

import math

import pytest
import torch
from test_training import run, same_state, trainer
from torch.nn import functional as F

from oscillations.methods.ema import average
from oscillations.methods.qc import fold

EMA = {"name": "ema", "bits": 3, "decay": 0.9, "warmup_steps": 10}
QC = {"name": "qc", "bits": 3, "start": 0.6}
RESNET = {"model": {"name": "resnet18", "width": 8}, "quant_layers": ["*"]}


def test_e1_closed_form():
    """From 0, n steps towards 1 lead to 1 - d^n."""
    averages, values = [torch.zeros(3, dtype=torch.float64)], [torch.ones(3, dtype=torch.float64)]
    for _ in range(50):
        average(averages, values, 0.9)
    assert averages[0].tolist() == pytest.approx([1 - 0.9**50] * 3)


def test_e1_a_constant_is_a_fixed_point():
    averages, values = [torch.full((4,), math.pi)], [torch.full((4,), math.pi)]
    for _ in range(100):
        average(averages, values, 0.999)
    assert torch.equal(averages[0], values[0])


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["mlp5", "resnet18"])
def test_e1_the_averages_are_those_of_the_steps(recipe, blobs, changes):
    """All that the network learns or tracks, and the scales, with a decay that warms up."""
    made = trainer(recipe, blobs, method=EMA, training=recipe["training"] | {"epochs": 1}, **changes)

    def values():
        network = [v.clone() for v in made.model.state_dict().values() if v.is_floating_point()]
        return network + [scale.clone() for scale in made.quantizer.scales]

    expected, steps = values(), 0

    def after_step(made):
        nonlocal steps
        steps += 1
        decay = 0.9 * (1 - math.exp(-steps / 10))
        expected[:] = [decay * old + (1 - decay) * new for old, new in zip(expected, values())]

    run(made, after_step)
    assert len(made.method.averages) == len(expected)
    for found, wanted in zip(made.method.averages, expected):
        torch.testing.assert_close(found, wanted)
    names = [key for key, value in made.model.state_dict().items() if value.is_floating_point()]
    for key, average_ in zip(names, made.method.averages):
        assert torch.equal(made.best[key], average_)  # running statistics too


def test_e1_the_averages_are_kept_and_the_training_goes_on_from_its_own_weights(recipe, blobs):
    made = trainer(recipe, blobs, method=EMA)
    for _ in zip(range(15), made.steps()):
        pass
    before = {key: value.clone() for key, value in made.state().items()}
    codes = made.quantizer.codes.clone()
    with made.method.exported(made.quantizer):
        weight, scale = made.quantizer.weights[0], made.quantizer.scales[0]
        assert torch.equal(weight, made.model.fc1.weight)
        assert not torch.equal(weight, before["trained/fc1.weight"])
        assert not torch.equal(scale, before["trained/quantizer/scale/fc1.weight"])
        expected = (weight / scale).round().clamp(-3, 3)
        torch.testing.assert_close(made.quantizer.quantized[0], expected * scale)
    after = made.state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(codes, made.quantizer.codes)


def test_e1_averaging_does_not_change_the_training(recipe, blobs):
    """Apart from what is exported, a run is LSQ's."""
    recipe["training"]["patience"] = 10
    averaged, plain = (run(trainer(recipe, blobs, method=method)) for method in (EMA, EMA | {"decay": 0.0}))
    lsq = run(trainer(recipe, blobs, method={"name": "lsq", "bits": 3}))
    for made in (averaged, plain):
        assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), lsq.model.parameters()))
    assert all(torch.equal(lsq.best[key], plain.best[key]) for key in lsq.best)  # no memory: the weights themselves
    assert not torch.equal(averaged.best["fc1.weight"], lsq.best["fc1.weight"])


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["mlp5", "resnet18"])
def test_e1_a_correction_changes_nothing_but_itself(recipe, blobs, changes):
    """Up to its start the run is LSQ's; after it weights, scales, codes and running statistics stand still."""
    recipe["training"] |= {"epochs": 2}
    made, lsq = (trainer(recipe, blobs, method=method, **changes) for method in (QC, {"name": "lsq", "bits": 3}))
    frozen = None
    for _ in zip(made.steps(), lsq.steps()):
        if not made.quantizer.corrects:
            assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), lsq.model.parameters()))
            assert made.progress.history == lsq.progress.history
        elif frozen is None:
            frozen, codes = (
                {key: value.clone() for key, value in made.network.trained().items()},
                made.quantizer.codes.clone(),
            )
            assert made.progress.step == 3 and made.progress.epoch == 1  # 12 of 20 steps were done before the last
    corrections = zip(made.quantizer.gammas.values(), made.quantizer.betas.values())
    assert all(gamma.ne(1).any() and beta.ne(0).any() for gamma, beta in corrections)
    assert torch.equal(made.quantizer.codes, codes)
    for key, value in made.network.trained().items():
        own = key.startswith(("quantizer/gamma", "quantizer/beta"))
        assert own or torch.equal(value, frozen[key]), key


def test_e1_a_fresh_correction_is_the_identity(recipe, blobs):
    made = trainer(recipe, blobs, method=QC, **RESNET)
    x, _ = made.sets["validation"].batch(torch.arange(8))
    made.model.eval()
    before = made.model(x)
    made.quantizer.corrects = True
    assert torch.equal(made.model(x), before)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_e1_folded_corrections_give_the_same_outputs(kind, per_channel):
    torch.manual_seed(0)
    inside = (5,) if kind == "linear" else (5, 3, 3)
    function, x = (F.linear, torch.randn(7, 5)) if kind == "linear" else (F.conv2d, torch.randn(7, 5, 8, 8))
    codes = torch.randint(-3, 4, (6, *inside)).float()
    scale = torch.rand(6, *[1] * len(inside)) if per_channel else torch.tensor(0.3)
    shape = (6, *[1] * (len(inside) - 1))
    gamma, beta = torch.randn(shape), torch.randn(shape)
    for bias in (None, torch.randn(6)):
        corrected = gamma * function(x, codes * scale, bias) + beta
        new_scale, new_bias = fold(scale, bias, gamma, beta)
        torch.testing.assert_close(function(x, codes * new_scale, new_bias), corrected, atol=1e-5, rtol=1e-5)


def test_e1_a_trained_networks_corrections_fold(recipe, blobs):
    made = run(trainer(recipe, blobs, method=QC | {"start": 0.25}, training=recipe["training"] | {"patience": 9}))
    quantizer = made.quantizer
    x, _ = made.sets["validation"].batch(torch.arange(20))
    made.model.eval()
    folded = x.flatten(1)
    for i, name in enumerate(quantizer.names):
        layer = name.removesuffix(".weight")
        scale, bias = fold(
            quantizer.scales[i], getattr(made.model, layer).bias, quantizer.gammas[layer], quantizer.betas[layer]
        )
        folded = F.linear(folded, quantizer.code_views[i] * scale, bias)
        folded = folded if layer == "fc6" else F.relu(folded)
    for parameter, value in zip(made.network.parameters, quantizer.quantized):
        parameter.data = value
    torch.testing.assert_close(made.model(x), folded, atol=1e-5, rtol=1e-5)


def test_e1_half_precision_stays_half_precision(recipe, blobs):
    made = trainer(recipe, blobs, method=QC)
    made.quantizer.corrects = True
    output = torch.ones(2, 12, dtype=torch.bfloat16)
    assert made.quantizer.corrected("fc1", output).dtype == torch.bfloat16


def test_e1_resuming_inside_the_correction(recipe, blobs):
    recipe["training"] |= {"epochs": 2}
    whole = run(trainer(recipe, blobs, method=QC, **RESNET))
    first = trainer(recipe, blobs, method=QC, **RESNET)
    for _ in zip(range(16), first.steps()):
        pass
    assert first.quantizer.corrects
    state = {key: value.clone() for key, value in first.state().items()}
    again = trainer(recipe, blobs, method=QC, **RESNET)
    again.load_state(state)
    assert same_state(run(again), whole)
