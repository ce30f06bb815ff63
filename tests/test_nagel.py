"""Dampening, freezing and batch-norm re-estimation (Nagel et al. 2022): golden values, laws, short trainings."""

import math

import pytest
import torch
from test_training import run, trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oscillations.core.bits import grid_of
from oscillations.engine.accuracy import reestimated_norms
from oscillations.engine.annealing import cosine
from oscillations.engine.batches import ImageSet
from oscillations.engine.method import Moment
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.methods._freezing import DenseFreezeTracker, FreezingQuantizer, SparseFreezeTracker
from oscillations.methods.dampening import Dampening, dampening_gradient
from oscillations.methods.freezing import Freezing
from oscillations.methods.osciquant import OsciQuant

# -- N1: freezing ------------------------------------------------------------------------------------------------


def followed(codes, momentum, threshold, average=True, dense=False, refreeze=False, psi_from=0):
    """Codes ``[steps, weights]`` as they are after freezing, and frequencies and frozen masks of every step."""
    quantizer = FreezingQuantizer({"w": codes[0].float()}, 4)
    tracker = (DenseFreezeTracker if dense else SparseFreezeTracker)(codes[0], quantizer.sizes, momentum)
    seen, frequencies, frozen = [], [], []
    for t, row in enumerate(codes):
        seen.append(torch.where(quantizer.frozen, quantizer.frozen_codes, row))
        tracker.tick(seen[-1])
        if t == psi_from:
            tracker.restart_average()
        tracker.freeze(quantizer, threshold, average=average, again=refreeze)
        frequencies.append(tracker.frequency())
        frozen.append(quantizer.frozen.clone())
    return torch.stack(seen), torch.stack(frequencies), torch.stack(frozen)


def followed_plainly(codes, momentum, threshold, average=True, refreeze=False, psi_from=0):
    """The same by the definition, in double precision."""
    psi = codes[0].double()
    last, f = psi.clone(), torch.zeros_like(psi)
    direction, frozen, kept = torch.zeros_like(psi), torch.zeros_like(psi, dtype=torch.bool), torch.zeros_like(psi)
    seen, frequencies, masks = [], [], []
    for t, row in enumerate(codes.double()):
        code = torch.where(frozen, kept, row)
        change = code - last
        oscillated = (change != 0) & (change.sign() == -direction)
        f = momentum * oscillated + (1 - momentum) * f
        direction, last = torch.where(change != 0, change.sign(), direction), code
        if t == psi_from:
            psi = code.clone()
        new = f > threshold
        if not refreeze:
            new &= ~frozen
        kept = torch.where(new, psi.round() if average else code, kept)
        frozen = frozen | new
        psi = momentum * code + (1 - momentum) * psi
        seen.append(code.to(torch.int8)), frequencies.append(f), masks.append(frozen)
    return torch.stack(seen), torch.stack(frequencies), torch.stack(masks)


@pytest.mark.parametrize("dense", [False, True])
def test_n1_golden_trace(dense):
    codes = torch.tensor([0, 1, 0, 1, 0, 1, 1, 1], dtype=torch.int8)[:, None]
    seen, frequency, frozen = followed(codes, momentum=0.2, threshold=0.3, dense=dense)
    assert frozen.flatten().tolist() == [False] * 3 + [True] * 5  # after t = 3, at round(0.16) = 0
    assert seen.flatten().tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    expected = [0, 0, 0.2, 0.36, 0.488, 0.3904, 0.31232, 0.249856]  # the forced jump back counts
    assert frequency.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"average": False}, {"refreeze": True}, {"psi_from": 300}, {"refreeze": True, "psi_from": 300}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("momentum", "threshold"), [(0.2, 0.45), (0.02, 0.18), (0.001, 0.02)])
def test_n1_the_tracker_follows_the_definition(momentum, threshold, options, dense):
    """700 steps, over two rescalings of the stored averages; each weight moves at its own pace."""
    generator = torch.Generator().manual_seed(0)
    pace = torch.linspace(0, 0.7, 101)
    moves = torch.rand(700, 101, generator=generator) < pace
    codes = torch.randint(-7, 8, (700, 101), generator=generator, dtype=torch.int8)
    for t in range(1, 700):
        codes[t] = torch.where(moves[t], codes[t], codes[t - 1])
    seen, frequency, frozen = followed(codes, momentum, threshold, dense=dense, **options)
    expected = followed_plainly(codes, momentum, threshold, **options)
    assert torch.equal(frozen, expected[2])
    assert torch.equal(seen, expected[0])
    assert torch.allclose(frequency.double(), expected[1], atol=1e-6)
    assert 10 < frozen[-1].sum() < 100
    assert not frozen[:, 0].any()  # a constant weight never freezes


FREEZING = [
    {"name": "freezing", "bits": 3, "momentum": 0.1, "start": 0.2, "threshold_final": 0.05, "refreeze": False},
    {"name": "freezing", "bits": 2, "momentum": 0.1, "target": "current", "per_channel": True, "scale_lr": 1e-3},
    {"name": "freezing", "bits": 4, "momentum": 0.05, "grid": "lsq", "threshold_start": 0.02, "start": 0.0},
    {"name": "osciquant-freezing", "bits": 3, "lambda": 1.0, "momentum": 0.1, "threshold_start": 0.05, "start": 0.3},
    {"name": "osciquant-freezing", "bits": 2, "lambda": 2.0, "momentum": 0.1, "per_channel": True, "start": 0.3},
]


@pytest.mark.parametrize("method", FREEZING, ids=str)
def test_n1_frozen_codes_never_change(recipe, blobs, method):
    recipe["training"] |= {"lr": 1e-2, "epochs": 6, "patience": 6}
    made = trainer(recipe, blobs, method=method)
    quantizer, counts = made.quantizer, []
    frozen, codes = quantizer.frozen.clone(), quantizer.codes.clone()
    moment = made.moment()
    again = made.method.options.refreeze and made.method.options.target == "ema"

    def check(made):
        nonlocal frozen, codes, moment
        assert (quantizer.frozen | ~frozen).all()
        changed = frozen & (quantizer.codes != codes)
        if again:  # only while the frequency is above the threshold
            threshold = made.method.threshold(moment)
            assert (made.method.tracker.frequency()[changed] > threshold).all()
        else:
            assert not changed.any()
        assert torch.equal(quantizer.codes[quantizer.frozen], quantizer.frozen_codes[quantizer.frozen])
        assert not quantizer.frozen.any() or moment.ended >= method.get("start", 0.25)
        for i, (free, scale) in enumerate(zip(quantizer.free, quantizer.scales)):
            level = (quantizer.code_views[i] * scale)[free == 0]
            assert torch.equal(quantizer.quantized[i][free == 0], level)
        frozen, codes, moment = quantizer.frozen.clone(), quantizer.codes.clone(), made.moment()
        counts.append(int(frozen.sum()))

    run(made, check)
    assert 0 < counts[-1] < len(codes)
    assert len(set(counts)) > 2  # step by step


@pytest.mark.parametrize("method", FREEZING[:3], ids=str)
def test_n1_frozen_weights_receive_no_gradient_and_give_the_scale_their_code(method):
    torch.manual_seed(0)
    options = {key: value for key, value in method.items() if key != "name"}
    made = Freezing(Freezing.Options(**options))
    quantizer = made.make_quantizer({"w": torch.randn(6, 5)}, {})
    mask = torch.arange(30) % 3 == 0
    kept = torch.randint(-1, 2, (30,), dtype=torch.int8)
    quantizer.frozen[mask], quantizer.frozen_codes[mask], quantizer.flat_free[mask] = True, kept[mask], 0
    quantizer.holds = True
    quantizer.update()
    upstream = torch.randn(6, 5)

    weight, scale = quantizer.weights[0].clone().requires_grad_(), quantizer.scales[0].clone().requires_grad_()
    grid, u = quantizer.grid, weight / scale
    codes = u + (u.round() - u).detach()
    if made.options.clip_order == "clip_first":
        clipped = u.clamp(grid.low, grid.high)
        codes = clipped + (clipped.round() - clipped).detach()
    codes = torch.where(mask.view(6, 5), kept.view(6, 5).float(), codes.clamp(grid.low, grid.high))
    torch.testing.assert_close(quantizer.quantized[0], (codes * scale).detach())
    (codes * scale * upstream).sum().backward()

    grads = [upstream.clone()]
    made.after_backward(quantizer, grads, Moment(0.5, 0.5))
    assert (grads[0].flatten()[mask] == 0).all()
    torch.testing.assert_close(grads[0], weight.grad)
    torch.testing.assert_close(quantizer.scales[0].grad, scale.grad)


@pytest.mark.parametrize("start", [0.3, 0.5])
def test_n1_the_control_freezes_the_others_once(recipe, blobs, start):
    method = {"name": "freezing", "bits": 3, "momentum": 0.1, "which": "low", "start": start, "threshold_start": 0.01}
    made = trainer(recipe, blobs, method=method, training=recipe["training"] | {"lr": 1e-2, "patience": 4})
    masks = []
    run(made, lambda made: masks.append(made.quantizer.frozen.clone()))
    first = math.ceil(start * len(masks)) - 1  # the release counts the first step as 1
    assert not torch.stack(masks[:first]).any()
    assert all(torch.equal(mask, masks[first]) for mask in masks[first:])
    assert torch.equal(masks[-1], made.method.tracker.frequency() <= 0.01)
    assert 0 < masks[-1].sum() < masks[-1].numel()


def test_n1_evaluation_does_not_tick(recipe, blobs):
    made = trainer(recipe, blobs, method=FREEZING[0])
    for epoch_ended in made.steps():
        if not epoch_ended:
            ticks = made.method.tracker.ticks
            assert ticks == made.counters["iteration"].ticks
        else:
            made.validate()
            assert made.method.tracker.ticks == ticks


@pytest.mark.parametrize("decays", [{}, {"optimizer": "adamw", "weight_decay": 0.1}], ids=["adam", "adamw"])
@pytest.mark.parametrize("method", FREEZING[3:], ids=str)
def test_n1_frozen_oscillating_weights_sit_on_their_levels(recipe, blobs, method, decays):
    """Eq. 1-2 of the latent weights alone finds the frozen codes: they need no quantizer of their own."""
    made = trainer(recipe, blobs, method=method, training=recipe["training"] | {"lr": 1e-2} | decays)

    def check(made):
        for i, (weight, free) in enumerate(zip(made.quantizer.weights, made.quantizer.free)):
            plain = quantize(weight, method["bits"], per_channel=method.get("per_channel", False))
            torch.testing.assert_close(plain[free == 0], made.quantizer.quantized[i][free == 0])
            assert made.network.parameters[i].data_ptr() == weight.data_ptr()

    run(made, check)
    assert made.quantizer.frozen.any()


@pytest.mark.parametrize("method", FREEZING, ids=str)
def test_n1_the_form_for_devices_freezes_the_same_and_reads_no_value(recipe, blobs, method, dense):
    there = trainer(recipe, blobs, method=method | {"start": 0.0})
    dense(False)
    here = trainer(recipe, blobs, method=method | {"start": 0.0})
    names = set()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    for steps, _ in zip(here.steps(), range(9)):
        assert not steps
    with Recorded():
        for _ in zip(there.steps(), range(9)):
            pass
    assert not names & {"_local_scalar_dense", "nonzero", "masked_select", "index_put_", "equal", "item"}
    assert here.quantizer.frozen.any()
    assert torch.equal(here.quantizer.frozen, there.quantizer.frozen)
    assert torch.equal(here.quantizer.frozen_codes, there.quantizer.frozen_codes)


# -- N2: dampening -----------------------------------------------------------------------------------------------

SHAPES = [(6, 5, 3, 3), (4, 7), (9,)]


def dampening_loss(weight, quantized, scale, grid, aggregation):
    """The loss, the obvious way; scales are held fixed where they multiply the codes."""
    error = (quantized.detach() - torch.minimum(torch.maximum(weight, scale * grid.low), scale * grid.high)).square()
    if aggregation == "kernel_mean":
        return error.flatten(1).mean(1).sum() if error.dim() > 1 else error.sum()
    return getattr(error, aggregation)()


@pytest.mark.parametrize("name", ["sym_odd", "lsq"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("aggregation", ["sum", "mean", "kernel_mean"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_n2_gradient_is_that_of_autograd(name, bits, aggregation, per_channel):
    torch.manual_seed(bits)
    grid = grid_of(name, bits)
    for shape in SHAPES[: 2 if per_channel else 3]:
        weight = torch.randn(shape, dtype=torch.float64)
        weight.view(-1)[:2] = torch.tensor([-5.0, 5.0])
        weight.requires_grad_()
        scale_shape = [shape[0], *[1] * (len(shape) - 1)] if per_channel else []
        scale = (1.5 + torch.rand(scale_shape, dtype=torch.float64)).div(grid.high).requires_grad_()
        quantized = (weight / scale).round().clamp(grid.low, grid.high).detach() * scale.detach()
        dampening_loss(weight, quantized, scale, grid, aggregation).backward()
        found = dampening_gradient(weight.detach(), quantized, scale.detach(), grid, aggregation)
        torch.testing.assert_close(found, weight.grad)
        outside = (weight < grid.low * scale) | (weight > grid.high * scale)
        assert outside.sum() >= 2
        assert (found[outside] == 0).all()
        assert scale.grad.abs().max() == 0
        assert (found[~outside] != 0).any()
        assert (dampening_gradient(quantized, quantized, scale.detach(), grid, aggregation) == 0).all()  # levels


@pytest.mark.parametrize(("aggregation", "factor"), [("sum", 1), ("mean", 1 / 270), ("kernel_mean", 6 / 270)])
def test_n2_what_training_adds(aggregation, factor):
    """2 lambda c (w - q) on top of LSQ's gradient, with the lambda of that step; the scales' gradient stays LSQ's."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    made = Dampening(Dampening.Options(bits=3, aggregation=aggregation, **{"lambda": 0.2}))
    quantizer = made.make_quantizer({"w": weight}, {})
    quantizer.update()
    inside = weight.abs() < 3 * quantizer.scales[0]
    for ended, strength in [(0.0, 0.0), (0.25, 0.0), (0.625, 0.1), (1.0, 0.2)]:
        moment = Moment(ended - 0.1, ended)
        added, plain = [torch.ones_like(weight)], [torch.ones_like(weight)]
        super(Dampening, made).after_backward(quantizer, plain, moment)
        scale_gradient = quantizer.scales[0].grad.clone()
        made.after_backward(quantizer, added, moment)
        expected = 2 * strength * factor * (weight - quantizer.quantized[0]) * inside
        torch.testing.assert_close(added[0] - plain[0], expected, atol=1e-6, rtol=1e-4)
        assert torch.equal(quantizer.scales[0].grad, scale_gradient)


def test_n2_dampening_is_osciquant_of_minus_twice_its_strength():
    torch.manual_seed(0)
    quantizer = WeightQuantizer({"w": torch.randn(8, 20)}, 3)  # Eq. 2's scale clips nothing
    quantizer.update()
    regularizer = OsciQuant(OsciQuant.Options(bits=3, preset="paper_text", **{"lambda": -2 * 0.05}))
    grads = [torch.zeros(8, 20)]
    regularizer.after_backward(quantizer, grads, Moment(0.0, 0.1))
    weight, scale = quantizer.weights[0], quantizer.scales[0]
    dampened = 0.05 * dampening_gradient(weight, quantizer.quantized[0], scale, quantizer.grid, "sum")
    torch.testing.assert_close(grads[0], dampened, atol=1e-6, rtol=1e-5)


def test_n2_dampened_weights_end_nearer_to_their_levels(recipe, blobs):
    def distance(strength):
        method = {"name": "dampening", "bits": 3, "lambda": strength, "lambda_start": strength}
        made = run(trainer(recipe, blobs, method=method))
        return next(row["error"] for row in made.progress.layers if row["epoch"] == 4 and row["layer"] == "fc2.weight")

    assert distance(1.0) < distance(0.1) < distance(0.0)


# -- N3: annealing -----------------------------------------------------------------------------------------------


def test_n3_cosine_annealing():
    thresholds = {0: 0.1, 0.25: 0.1, 0.5: 0.07775, 0.625: 0.0555, 0.75: 0.03325, 1: 0.011}
    strengths = {0: 0, 0.25: 0, 0.5: 0.025, 0.625: 0.05, 0.75: 0.075, 1: 0.1}
    for progress, value in thresholds.items():
        assert cosine(progress, 0.1, 0.011, 0.25) == pytest.approx(value)
    for progress, value in strengths.items():
        assert cosine(progress, 0.0, 0.1, 0.25) == pytest.approx(value)
    assert {cosine(t / 10, 0.3, 0.3, 0.0) for t in range(11)} == {0.3}


# -- N4: batch-norm re-estimation --------------------------------------------------------------------------------


def pictures(count):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(count, dtype=torch.int64), [0.5], [0.25])


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    model(pictures(64).batch(slice(0, 64))[0])  # statistics of its own
    return model


@pytest.mark.parametrize("count", [100, 128, 384])
def test_n4_reestimated_statistics_are_the_plain_average_over_batches(count):
    model, images = normed(), pictures(count)
    with torch.no_grad():
        outputs = [
            model[0](images.batch(slice(i, i + 128))[0]).transpose(0, 1).flatten(1) for i in range(0, count, 128)
        ]
    with reestimated_norms(model, images):
        norm = model[1]
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in outputs]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([x.var(1) for x in outputs]).mean(0))
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_n4_only_statistics_change_and_come_back(fails):
    model = normed()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        with reestimated_norms(model, pictures(256)):
            now = {key: value.clone() for key, value in model.state_dict().items()}
            if fails:
                raise InterruptedError
    except InterruptedError:
        pass
    changed = {key for key in before if not torch.equal(before[key], now[key])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model[1].momentum == 0.3


def test_n4_layer_norm_has_nothing_to_reestimate():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 2)), pictures(64)
    x = images.batch(slice(0, 64))[0]
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    with reestimated_norms(model, images):
        assert torch.equal(model(x), before)
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
