"""A1: AOQ's grid, its schedule, and the gradients of its three stages (Xie et al. 2025)."""

import pytest
import torch
from conftest import at, image_sets, make_trainer

from oscillations import models
from oscillations.core.bits import grid_of
from oscillations.engine.layers import quantized_layers, quantized_parameters
from oscillations.engine.method import Moment
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.methods._aoq import Spacings, initial_spacing
from oscillations.methods.aoq import (  # fmt: skip
    STAGE2,
    STAGE3,
    Aoq,
    damping_gradient,
    distance,
    shrinkage,
    spacing_gradient,
)
from oscillations.models import resnet18

PAIRS = [(target, norm) for target in ("cell_centre", "level") for norm in ("l2", "squared")]


def made(weights=None, **options):
    torch.manual_seed(0)
    method = Aoq(Aoq.Options(**{"bits": 2} | options))
    weights = weights or {"a": torch.randn(16, 8), "b": torch.randn(4, 8)}
    quantizer = method.make_quantizer(weights, {})
    method.begin(quantizer)
    quantizer.update()
    return method, quantizer


class NoStep:
    lr = 1e-3

    def step(self):
        pass


@pytest.mark.parametrize(
    ("bits", "levels", "thresholds"),
    [
        (2, [-1.5, -0.5, 0.5, 1.5], [-1, 0, 1]),
        (3, [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], [-3, -2, -1, 0, 1, 2, 3]),
        (4, [i - 7.5 for i in range(16)], [i - 7 for i in range(15)]),
    ],
)
def test_a1_levels_and_thresholds(bits, levels, thresholds):
    below = torch.tensor(thresholds) - 1e-3
    weight = torch.cat([torch.tensor([-99.0]), below, torch.tensor(thresholds), torch.tensor([99.0])])
    quantizer = WeightQuantizer({"a": weight}, bits, Spacings, grid="mid_rise", tie="half_up")
    quantizer.scale.of_thresholds, quantizer.scale.of_levels = [torch.tensor(1.0)], [torch.tensor(2.0)]
    quantizer.update()
    lower = [levels[0], *levels[:-1]]  # each threshold separates two neighbouring levels, and belongs to the upper
    assert quantizer.quantized[0].tolist() == [2 * level for level in [*lower, *levels[1:], levels[-1]]]
    assert quantizer.codes.min() == -(2 ** (bits - 1))
    assert quantizer.codes.max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a1_initial_spacing(bits):
    torch.manual_seed(bits)
    weight, grid = torch.randn(6, 5, 3, 3), grid_of("mid_rise", bits)
    assert initial_spacing(weight, grid).item() == pytest.approx(weight.std().item() / 2 ** (bits - 2))
    per_channel = initial_spacing(weight, grid, per_channel=True)
    assert per_channel.shape == (6, 1, 1, 1)
    assert torch.allclose(per_channel.flatten(), weight.flatten(1).std(1) / 2 ** (bits - 2))
    assert initial_spacing(torch.zeros(4), grid) > 0


def test_a1_shrinkage_is_the_released_schedules():
    released = {0: 1, 5: 0.9829, 10: 0.9332, 15: 0.8557, 20: 0.7582, 25: 0.65, 30: 0.5418, 35: 0.4443, 40: 0.3668}
    released |= {45: 0.3171, 50: 0.3}
    for epoch, value in released.items():
        assert shrinkage(epoch / 250) == pytest.approx(value, abs=5e-5)
        assert shrinkage((epoch + 4.99) / 250) == shrinkage(epoch / 250)  # until the next refresh
    assert shrinkage(1.0) == shrinkage(STAGE2) == pytest.approx(0.3)


def test_a1_stages_begin_after_the_released_epochs_50_and_150():
    learning = [e for e in range(250) if e / 250 >= STAGE2]
    damped = [e for e in range(250) if e / 250 >= STAGE3]
    assert (learning[0], damped[0]) == (51, 151)


def test_a1_a_step_leaves_the_shrinkage_of_the_next_steps_epoch():
    method, quantizer = made()
    method.step(NoStep(), quantizer, Moment(4.9 / 250, 5 / 250))  # the last step of epoch 4
    assert quantizer.scale.shrinkage.item() == pytest.approx(shrinkage(5 / 250))


@pytest.mark.parametrize("bits", [2, 3])
def test_a1_weights_just_below_zero_belong_to_the_lower_cell(bits):
    weight = torch.tensor([-1e-30, -1e-12, -3e-8, 0.0, 1e-30])
    quantizer = WeightQuantizer({"a": weight}, bits, Spacings, grid="mid_rise", tie="half_up")
    quantizer.scale.of_thresholds, quantizer.scale.of_levels = [torch.tensor(1.0)], [torch.tensor(1.0)]
    quantizer.update()
    assert quantizer.codes.tolist() == [-1, -1, -1, 0, 0]


def test_a1_stage_1_output_scales_with_the_shrinkage():
    method, quantizer = made()
    method.step(NoStep(), quantizer, at(0.1))
    quantizer.update()
    assert quantizer.scale.shrinkage.item() == pytest.approx(0.65)
    for weight, q, codes in zip(quantizer.weights, quantizer.quantized, quantizer.code_views):
        spacing = 0.65 * weight.std()
        assert torch.allclose(q, (codes + 0.5) * spacing)
        assert torch.equal(codes.float(), torch.floor(weight / spacing).clamp(-2, 1))


def test_a1_a_smaller_spacing_puts_more_weights_near_thresholds():
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))

    def near(alpha):
        u = weight / alpha
        nearest = u.round().clamp(-1, 1)
        return ((u - nearest).abs() < 0.05).float().mean().item()

    def expected(alpha):
        normal = torch.distributions.Normal(0.0, 1.0)
        ends = [(t + side * 0.05) * alpha for t in (-1, 0, 1) for side in (-1, 1)]
        cdf = normal.cdf(torch.tensor(ends))
        return (cdf[1::2] - cdf[::2]).sum().item()

    for alpha in (1.0, 0.65, 0.3):
        assert near(alpha) == pytest.approx(expected(alpha), abs=2e-3)


def test_a1_weights_beyond_the_levels_receive_the_whole_gradient_and_thresholds_none():
    method, quantizer = made({"a": torch.tensor([[-9.0, -0.1, 0.2, 9.0]])})
    grads = [torch.tensor([[1.0, -2.0, 3.0, -4.0]])]
    method.after_backward(quantizer, grads, at(0.5))
    assert grads[0].tolist() == [[1.0, -2.0, 3.0, -4.0]]
    assert all(spacing.grad is None for spacing in quantizer.scale.of_thresholds)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a1_level_gradient_by_finite_differences(bits, per_channel):
    torch.manual_seed(bits)
    weight = {"a": torch.randn(6, 5, 3, 3, dtype=torch.float64)}
    method, quantizer = made(weight, bits=bits, per_channel=per_channel)
    quantizer.scale.shrinkage.fill_(0.3)
    target = torch.randn(6, 5, 3, 3, dtype=torch.float64)

    def loss(change=None):
        if change is not None:
            quantizer.scale.of_levels[0] += change
        quantizer.update()
        return (quantizer.quantized[0] - target).square().sum()

    loss()
    method.after_backward(quantizer, [2 * (quantizer.quantized[0] - target)], at(0.3))
    found = quantizer.scale.of_levels[0].grad
    for entry in range(found.numel()):
        change = torch.zeros_like(found)
        change.view(-1)[entry] = 1e-5
        difference = (loss(change) - loss(-2 * change)) / 2e-5
        quantizer.scale.of_levels[0] += change
        assert found.view(-1)[entry].item() == pytest.approx(difference.item(), rel=1e-5)


def test_a1_nothing_is_learned_in_stage_1():
    method, quantizer = made()
    before = [level.clone() for level in quantizer.scale.of_levels]
    method.after_backward(quantizer, [torch.ones_like(w) for w in quantizer.weights], at(0.19))
    method.step(NoStep(), quantizer, at(0.19))
    assert all(level.grad is None for level in quantizer.scale.of_levels)
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.scale.of_levels))
    method.after_backward(quantizer, [torch.ones_like(w) for w in quantizer.weights], at(STAGE2))
    method.step(NoStep(), quantizer, at(STAGE2))
    assert not any(torch.equal(a, b) for a, b in zip(before, quantizer.scale.of_levels))


def test_a1_stage_2_begins_where_stage_1_ends():
    _, quantizer = made()
    quantizer.scale.shrinkage.fill_(shrinkage(STAGE2))
    quantizer.update()
    for weight, thresholds, levels in zip(quantizer.weights, quantizer.scales, quantizer.scale.levels):
        assert thresholds == levels == torch.tensor(0.3) * weight.std()


@pytest.mark.parametrize(("target", "norm"), PAIRS)
def test_a1_damping_gradient_is_autograds(target, norm):
    method, quantizer = made(bits=3, damp_target=target, damp_norm=norm, damp_strength=0.7)
    quantizer.scale.of_levels = [1.3 * level for level in quantizer.scale.of_levels]
    quantizer.update()
    grads = [torch.zeros_like(w) for w in quantizer.weights]
    method.after_backward(quantizer, grads, at(STAGE3))
    total = 0.0
    for i, grad in enumerate(grads):
        weight = quantizer.weights[i].clone().requires_grad_()
        spacing = quantizer.weights[i].std() / 2
        codes = torch.floor(weight / spacing).clamp(-4, 3)
        rest = (codes + 0.5) * spacing * (1.3 if target == "level" else 1.0)
        norm_of_layer = torch.linalg.vector_norm(weight - rest.detach()) ** (2 if norm == "squared" else 1)
        (0.7 * norm_of_layer).backward()
        total += 0.7 * norm_of_layer.item()
        assert torch.allclose(grad, weight.grad, atol=1e-6)
    assert method.penalty(quantizer, at(STAGE3)).item() == pytest.approx(total, rel=1e-6)
    assert method.penalty(quantizer, at(STAGE3 - 0.01)) is None


def test_a1_damping_rests_at_its_target():
    nothing = torch.zeros(3)
    for norm in ("l2", "squared"):
        assert damping_gradient(nothing, norm).tolist() == [0, 0, 0]
        assert distance(nothing, norm) == 0
    assert damping_gradient(torch.tensor([3.0, 4.0]), "l2").tolist() == pytest.approx([0.6, 0.8])


def test_a1_damping_does_not_reach_the_levels():
    upstream, codes = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([-2, 0, 1], dtype=torch.int8)
    assert spacing_gradient(upstream, codes, torch.tensor(1.0)).item() == -1.5 + 1.0 - 1.5
    gradients = []
    for progress in (0.5, 0.9):
        method, quantizer = made()
        method.after_backward(quantizer, [torch.ones_like(w) for w in quantizer.weights], at(progress))
        gradients.append([level.grad.item() for level in quantizer.scale.of_levels])
    assert gradients[0] == gradients[1]


def test_a1_a_whole_training_runs_through_all_stages(recipe, blobs):
    about, tensors = blobs
    cpu = torch.device("cpu")
    recipe["method"] = {"name": "aoq", "bits": 3}
    recipe["training"] |= {"epochs": 10, "patience": 10}
    made = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, cpu), cpu)
    quantizer, seen = made.quantizer, []
    for epoch_ended in made.steps():
        if epoch_ended:
            seen.append(
                (quantizer.scale.shrinkage.item(), quantizer.scale.of_levels[0].item(), quantizer.scales[0].item())
            )
    losses = [row["train_loss"] for row in made.progress.history]
    assert losses[-1] < losses[0]
    assert made.progress.history[-1]["val_acc_3"] > 50  # of four classes
    start = seen[0][1]
    assert [level == start for _, level, _ in seen] == [True] * 2 + [False] * 8
    assert seen[0][0] > seen[1][0] > 0.3
    assert len({threshold for _, _, threshold in seen[2:]}) == 1
    assert seen[-1][2] == pytest.approx(0.3 * start)


def test_a1_a_resnets_shortcut_projections_can_stay_in_full_precision():
    spec = {"name": "resnet18", "width": 8}
    layers = resnet18.layers(resnet18.Options(**spec))
    patterns = ["layer*.conv?"]  # no stem, no projection, no classifier
    model = models.build(spec, (3, 32, 32), 10)
    chosen = quantized_parameters(model, patterns)
    assert len(chosen) == 16
    assert set(quantized_layers(layers, patterns)) == {name.removesuffix(".weight") for name in chosen}
    with_projections = quantized_parameters(model, [*patterns, "layer*.downsample.0"])
    assert len(with_projections) == 19
