"""Post-training: units (the chain is the network), AdaRound (R1), BRECQ and QDrop (R2), MRECG (M1), and the step."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import TINY
from torch import nn

from oscillations import models, posttraining
from oscillations.core.bits import grid_of
from oscillations.core.errors import InputError
from oscillations.engine.layers import quantized_layers, quantized_parameters
from oscillations.engine.optimizer import Adam
from oscillations.engine.scales import max_scale, mse_scale
from oscillations.posttraining import _measurement as measurement
from oscillations.posttraining import mrecg
from oscillations.posttraining._inputs import DroppedInput, DroppedInputs
from oscillations.posttraining._reconstruction import Calibration, Rounding, beta, initial_v, rectified_sigmoid
from oscillations.posttraining._units import Chain, merged
from oscillations.study import reading as studies

NETWORKS = {
    "mlp5": ({"name": "mlp5", "width": 12}, (1, 8, 8)),
    "resnet18": ({"name": "resnet18", "width": 4}, (1, 8, 8)),
    "vit-tiny": ({"name": "vit-tiny", "width": 12, "depth": 2, "heads": 3, "patch_size": 4}, (1, 8, 8)),
    "mobilenet": ({"name": "torchvision/mobilenet_v2"}, (3, 32, 32)),
    "mobilenetv2": ({"name": "mobilenetv2", "width": 0.25, "smallest": 2}, (1, 8, 8)),
}


def network(name, seed=0):
    """A network in evaluation mode with norm statistics of its own, and its quantized weights."""
    spec, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = models.build(spec, shape, 10).train()
    with torch.no_grad():
        model(torch.randn(16, *shape))
    model.eval().requires_grad_(False)
    return model, quantized_parameters(model, models.find(spec["name"]).QUANTIZED), torch.randn(64, *shape)


def calibration(model, weights, images, bits=3, scale=max_scale, per_channel=False, seed=0):
    grid = grid_of("sym_odd", bits)
    scales = {name: scale(weight.data, grid, per_channel=per_channel) for name, weight in weights.items()}
    return Calibration(model, weights, scales, bits, dict.fromkeys(weights, grid), images, seed)


def apply(method, model, weights, images, bits=3, **options):
    found = posttraining.find(method)
    cal = calibration(model, weights, images, bits)
    return cal, found(found.Options(**options)).quantize(cal)


@pytest.fixture(scope="module")
def trained():
    """A small MLP that has learned to tell four noisy patterns apart, with 256 of its images."""
    torch.manual_seed(0)
    model = models.build({"name": "mlp5", "width": 24}, (1, 8, 8), 4)
    centres, labels = torch.randn(4, 1, 8, 8), torch.arange(512) % 4
    images = centres[labels] + torch.randn(512, 1, 8, 8)
    optimizer = Adam(model.parameters(), 3e-3)
    for step in range(200):
        chosen = torch.arange(64) + 64 * (step % 8)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    model.eval().requires_grad_(False)
    return model, quantized_parameters(model, ["fc*"]), images[:256]


# -- units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_units_compose_to_the_network_and_hold_every_weight_once(name):
    model, weights, images = network(name)
    chain = Chain(model, list(weights))
    x = images[:4]
    for unit in chain.units:
        x = chain.module(unit.start, unit.stop)(x)
    assert torch.equal(x, model(images[:4]))
    held = [weight for unit in chain.units for weight in unit.weights]
    assert sorted(held) == sorted(weights)
    assert chain.units[0].start is chain.input
    assert chain.units[-1].stop is chain.output
    assert all(left.stop is right.start for left, right in zip(chain.units, chain.units[1:]))


def test_units_are_blocks_and_single_layers():
    names = {name: [unit.name for unit in Chain(*network(name)[:2]).units] for name in NETWORKS}
    assert names["mlp5"] == [f"fc{i}" for i in range(1, 7)]
    assert names["resnet18"] == ["conv1", *(f"layer{s}.{b}" for s in range(1, 5) for b in range(2)), "fc"]
    assert names["vit-tiny"] == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    blocks = [f"features.{i}" for i in range(1, 18)]
    for kind in ("mobilenet", "mobilenetv2"):
        assert names[kind] == ["features.0.0", *blocks, "features.18.0", "classifier.1"]


@pytest.mark.parametrize("name", [name for name, (spec, _) in NETWORKS.items() if "/" not in spec["name"]])
def test_a_study_knows_the_units_without_the_network(name):
    """What a study's check counts for MRECG's k is what the traced network has."""
    spec, _ = NETWORKS[name]
    module, units = models.find(spec["name"]), Chain(*network(name)[:2]).units
    known = mrecg.units_of(module.layers(module.Options(**spec)))
    assert list(known) == [unit.name for unit in units]
    chosen = quantized_layers([layer for inside in known.values() for layer in inside], module.QUANTIZED)
    weighty = [any(layer in chosen for layer in inside) for inside in known.values()]
    assert weighty == [bool(unit.weights) for unit in units]


def test_what_branches_is_one_unit_without_being_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = self.a(x).relu()
            return self.d((x + self.c(self.b(x).relu())).relu())

    model = Net()
    units = Chain(model, [f"{name}.weight" for name in "abcd"]).units
    assert [unit.weights for unit in units] == [("a.weight",), ("b.weight", "c.weight"), ("d.weight",)]


def test_layers_of_a_block_end_where_it_joins():
    model, weights, _ = network("resnet18")
    chain = Chain(model, list(weights))
    layers = chain.layers(chain.units[3])  # layer2.0: a projection beside two convolutions
    assert {layer.name for layer in layers} == {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"}
    assert all(len(layer.weights) == 1 for layer in layers)
    first = next(layer for layer in layers if layer.name == "layer2.0.conv1")
    x = torch.randn(2, 4, 8, 8)
    block = model.layer2[0]
    assert torch.equal(chain.module(first.start, first.stop)(x), F.relu(block.bn1(block.conv1(x))))
    assert chain.layers(chain.units[0]) == [chain.units[0]]


# -- R1: AdaRound -----------------------------------------------------------------------------------------------


def test_R1_h_and_v0():
    remainder = torch.tensor([0.0, 0.25, 0.5, 0.75])
    v = initial_v(remainder)
    torch.testing.assert_close(v, torch.tensor([-2.3979, -0.8873, 0.0, 0.8873]), atol=5e-5, rtol=0)
    torch.testing.assert_close(rectified_sigmoid(v), remainder, atol=1e-6, rtol=0)
    h = rectified_sigmoid(torch.linspace(-30, 30, 601))
    assert h.min() == 0 and h.max() == 1 and (h.diff() >= 0).all()
    r = torch.rand(10_000).mul_(0.999)
    torch.testing.assert_close(rectified_sigmoid(initial_v(r)), r, atol=2e-6, rtol=0)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scale", [max_scale, mse_scale])
def test_R1_soft_starts_at_the_weights_and_hard_at_the_nearest_level(scale, bits, per_channel):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 30)).requires_grad_(False)
    model[0].weight.mul_(torch.rand(30, 1) + 0.1)
    cal = calibration(model, {"0.weight": model[0].weight}, torch.randn(8, 40), bits, scale, per_channel)
    weight, s = model[0].weight, cal.scales["0.weight"]
    grid = cal.grids["0.weight"]
    rounding = Rounding(weight, s, grid)
    assert torch.equal(rounding.hard(), cal.nearest("0.weight"))
    inside = weight.clamp(grid.low * s, grid.high * s)
    torch.testing.assert_close(rounding.soft(), inside, atol=1e-5, rtol=1e-5)
    rounding.v.copy_(torch.randn_like(weight) * 5)  # whatever was learned
    codes = rounding.hard() / s
    torch.testing.assert_close(codes, codes.round(), atol=1e-5, rtol=0)
    assert codes.abs().max() <= grid.high + 1e-5
    assert ((rounding.hard() - inside).abs() < s * (1 + 1e-5)).all()


def test_R1_rounding_term_is_zero_iff_decided_and_largest_at_one_half():
    h = torch.linspace(0, 1, 101)
    for exponent in (2.0, 20.0):
        term = 1 - (2 * h - 1).abs() ** exponent
        assert term[0] == term[-1] == 0 and (term[1:-1] > 0).all() and term[50] == term.max() == 1
    assert beta(0.0) is None and beta(0.19) is None
    assert beta(0.2) == 20 and beta(1.0) == 2 and beta(0.6) == pytest.approx(11)


def test_R1_the_exponent_of_every_step_is_the_releases(trained, monkeypatch):
    """Steps count from 1: of 10, the second is the first with the term (20), and the last ends at 2."""
    seen = []
    gradient = Rounding.gradient
    monkeypatch.setattr(Rounding, "gradient", lambda self, *args: (seen.append(args[2]), gradient(self, *args))[1])
    apply("adaround", *trained, iterations=10)
    assert seen[:10] == [None, *(pytest.approx(20 - 18 * (t - 2) / 8) for t in range(2, 11))]


@pytest.mark.parametrize("exponent", [None, 2.0, 7.3, 20.0])
def test_R1_gradient_is_autograds(exponent):
    torch.manual_seed(2)
    weight, upstream = torch.randn(50, 40), torch.randn(50, 40)
    grid = grid_of("sym_odd", 3)
    scale = mse_scale(weight, grid)
    rounding = Rounding(weight, scale, grid)
    rounding.v.add_(torch.randn_like(weight))
    rounding.soft()
    closed = rounding.gradient(upstream, 0.01, exponent)
    v = rounding.v.clone().requires_grad_()
    h = rectified_sigmoid(v)
    loss = (upstream * scale * ((weight / scale).floor() + h).clamp(grid.low, grid.high)).sum()
    if exponent:
        loss = loss + 0.01 * (1 - (2 * h - 1).abs() ** exponent).sum()
    loss.backward()
    # an entry that the grid clamps moves no weight: its soft weight is the same, and V only feels the rounding term
    movable = rounding.span > 0
    torch.testing.assert_close(closed[movable], v.grad[movable], atol=1e-6, rtol=1e-4)


def test_R1_beats_nearest_on_two_weights_with_correlated_inputs():
    """Weights 0.6 and 0.7 with equal inputs: nearest makes 2 of their 1.3, one up and one down makes 1."""
    layer = nn.Linear(3, 1, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[0.6, 0.7, 3.0]]))  # 3 at 3 bits: a step of 1
    model = nn.Sequential(layer)
    torch.manual_seed(0)
    x = torch.randn(256, 1)
    images = torch.cat([x, x, torch.zeros_like(x)], 1)
    nearest, _ = apply("nearest", model, {"0.weight": layer.weight}, images)
    assert nearest.quantized["0.weight"].tolist() == [[1, 1, 3]]
    learned, _ = apply("adaround", model, {"0.weight": layer.weight}, images, lr=1e-2)
    assert sorted(learned.quantized["0.weight"][0].tolist()) == [0, 1, 3]
    assert learned.losses()[0] == pytest.approx((0.3 / 1.3) ** 2, rel=1e-4)
    assert nearest.losses()[0] == pytest.approx((0.7 / 1.3) ** 2, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3])
def test_R1_no_layer_is_worse_than_nearest_given_the_same_input(trained, bits):
    """The calibration loss that AdaRound minimises, of each layer on the input it was given: 1 % is allowed.

    nu is 1: beside outputs as large as this network's, 0.01 leaves V undecided, and then nothing is promised.
    """
    model, weights, images = trained
    cal, _ = apply("adaround", model, weights, images, bits, iterations=400, lr=1e-2, nu=1.0)
    for place, unit in enumerate(cal.chain.units):
        before = {name: cal.quantized[name] for earlier in cal.chain.units[:place] for name in earlier.weights}
        target = cal.latent(unit.stop)
        (name,) = unit.weights
        wrong = {
            kind: (cal.latent(unit.stop, before | {name: value}) - target).square().sum()
            for kind, value in (("learned", cal.quantized[name]), ("nearest", cal.nearest(name)))
        }
        assert wrong["learned"] <= 1.01 * wrong["nearest"], (name, wrong)


@pytest.mark.parametrize("bits", [2, 3])
def test_R1_the_networks_answer_is_nearer_than_by_nearest_rounding(trained, bits):
    nearest, _ = apply("nearest", *trained, bits)
    learned, _ = apply("adaround", *trained, bits, iterations=400, lr=1e-2, nu=1.0)
    assert learned.losses()[-1] < nearest.losses()[-1]


def test_R1_the_same_seed_gives_the_same_weights_and_latent_weights_stay(trained):
    model, weights, images = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, _ = apply("adaround", model, weights, images, iterations=50)
    second, _ = apply("adaround", model, weights, images, iterations=50)
    assert all(torch.equal(first.quantized[name], second.quantized[name]) for name in weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert first.steps == 6 * 50


# -- R2: BRECQ and QDrop ----------------------------------------------------------------------------------------


def same(left, right):
    return all(torch.equal(left.quantized[name], right.quantized[name]) for name in left.weights)


def test_R2_blocks_of_one_layer_reproduce_adaround_bit_for_bit(trained):
    assert same(apply("brecq", *trained, iterations=100)[0], apply("adaround", *trained, iterations=100)[0])


def test_R2_a_block_is_reconstructed_jointly():
    model, weights, images = network("resnet18")
    blocks, _ = apply("brecq", model, weights, images, iterations=3)
    layers, _ = apply("adaround", model, weights, images, iterations=3)
    assert blocks.steps == 10 * 3
    assert layers.steps == len(weights) * 3
    assert set(blocks.quantized) == set(layers.quantized) == set(weights)


def test_R2_brecq_is_better_than_adaround_on_a_blocks_output():
    """What BRECQ minimises is this output, AdaRound the layers inside. Both searches are heuristic, and where a block
    mixes little they end about alike, as rounding will have it; so here one output sums all units, whose errors can
    cancel, and the mean over eight blocks is compared (BRECQ's is half of AdaRound's or less)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.b(self.a(x))

    losses = {"nearest": 0.0, "adaround": 0.0, "brecq": 0.0}
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(Block()).eval().requires_grad_(False)
        weights = {f"0.{name}.weight": getattr(model[0], name).weight for name in "ab"}
        images = torch.randn(256, 16) @ torch.randn(16, 16)
        for name in losses:
            options = {} if name == "nearest" else {"iterations": 400, "lr": 1e-2}
            losses[name] += apply(name, model, weights, images, **options)[0].losses()[-1]
    assert losses["brecq"] < 0.8 * losses["adaround"] < 0.8 * 0.8 * losses["nearest"], losses


def test_R2_qdrop_with_probability_one_is_brecq(trained):
    assert same(apply("qdrop", *trained, iterations=60, prob=1.0)[0], apply("brecq", *trained, iterations=60)[0])
    assert not same(
        apply("qdrop", *trained, iterations=60, lr=1e-2)[0], apply("brecq", *trained, iterations=60, lr=1e-2)[0]
    )


def test_R2_qdrop_with_probability_zero_feeds_latent_inputs(trained):
    """Then no unit depends on what became of the others."""
    model, weights, images = trained
    options = posttraining.find("qdrop").Options(iterations=60, lr=1e-2, prob=0)
    alone = []
    for spoiled in (0.0, 5.0):
        cal = calibration(model, weights, images)
        cal.quantized["fc1.weight"] = cal.nearest("fc1.weight") + spoiled
        cal.reconstruct(cal.chain.units[1], options, prob=0.0)
        alone.append(cal.quantized["fc2.weight"])
    assert torch.equal(*alone)


def test_R2_qdrop_takes_the_expected_share(trained, monkeypatch):
    shares, where = [], torch.where
    monkeypatch.setattr(torch, "where", lambda use, *rest: (shares.append(use), where(use, *rest))[1])
    apply("qdrop", *trained, iterations=40, prob=0.3)
    mixed = torch.cat([use.flatten() for use in shares if len(use.shape) > 1 and len(use) == 32]).float()
    assert mixed.mean().item() == pytest.approx(0.3, abs=0.01)


def test_R2_fisher_weights(trained):
    model, weights, images = trained
    cal = calibration(model, weights, images)
    first = cal.fisher_weights(cal.chain.units[0], 32)  # itself latent, as the release's soft weights are at first
    torch.testing.assert_close(first, torch.ones_like(first), atol=1e-6, rtol=0)
    cal.quantized |= {f"fc{i}.weight": cal.nearest(f"fc{i}.weight") for i in (1, 2)}
    importance = cal.fisher_weights(cal.chain.units[2], 32)
    assert importance.shape == cal.latent(cal.chain.units[2].stop).shape
    assert (importance >= 1).all() and importance.max() > 1
    last = cal.fisher_weights(cal.chain.units[-1], 32)  # there g = (softmax(q) - softmax(fp)) / batch
    wrong = cal.value(cal.chain.output).softmax(1)
    g = (wrong - cal.latent(cal.chain.output).softmax(1)) / 32
    torch.testing.assert_close(last, (g.abs() + 1).square(), atol=1e-5, rtol=1e-5)


# -- V9: QDrop in full, on quantized inputs -----------------------------------------------------------------------


def with_inputs(model, weights, images, bits=3, width=4, ends=8):
    """A calibration whose layers' inputs are quantized, the first and the last to more bits."""
    layers = [name.removesuffix(".weight") for name in weights]
    widths = {layer: ends if layer in (layers[0], layers[-1]) else width for layer in layers}
    cal = calibration(model, weights, images, bits)
    cal.inputs = DroppedInputs(model, widths, images, seed=0)
    return cal


def reconstructed(method, cal, **options):
    found = posttraining.find(method)
    found(
        found.Options(**{"iterations": 40, "lr": 1e-2, "step_lr": 1e-2, "activations": {"bits": 4}} | options)
    ).quantize(cal)
    cal.inputs.remove()
    return cal


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_v9_a_share_of_the_entries_is_quantized_afresh_at_every_call(trained, share):
    model, weights, images = trained
    cal = with_inputs(model, weights, images)
    quantizer, x = cal.inputs.by_layer["fc2"], torch.rand(400, 100) + 0.1
    first, second = (quantizer.dropped(x, share, cal.inputs.draws) for _ in range(2))
    whole = quantizer.dropped(x, 1.0, cal.inputs.draws)
    assert torch.equal(torch.where(first == x, x, whole), first)
    found = (first == whole).float().mean().item()
    assert found == pytest.approx(
        share, abs=3 * (share * (1 - share) / x.numel()) ** 0.5 + (whole == x).float().mean().item()
    )
    assert torch.equal(first, second) == (share in (0.0, 1.0))
    average = torch.stack([quantizer.dropped(x, share, cal.inputs.draws) for _ in range(400)]).mean()
    assert average.item() == pytest.approx((share * whole + (1 - share) * x).mean().item(), abs=1e-3)
    cal.inputs.remove()


def test_v9_what_is_dropped_inside_is_drawn_apart_from_what_is_mixed_before(trained):
    cal = with_inputs(*trained)
    inside, before = (torch.rand(1000, generator=generator) for generator in (cal.inputs.draws, cal.mixing))
    assert (inside != before).float().mean() > 0.99
    cal.inputs.remove()


def test_v9_the_gradient_of_a_step_is_the_kept_share_of_lsqs_in_expectation(trained):
    model, weights, images = trained
    cal = with_inputs(model, weights, images)
    quantizer, x = cal.inputs.by_layer["fc3"], torch.rand(200, 50) * 40  # mostly clipped, so that nothing cancels
    quantizer.step.requires_grad_()

    def gradient(share):
        return torch.autograd.grad(quantizer.dropped(x, share, cal.inputs.draws).sum(), quantizer.step)[0].item()

    mean = sum(gradient(0.5) for _ in range(300)) / 300
    assert mean == pytest.approx(gradient(1.0) / 2, rel=0.02)
    quantizer.step.requires_grad_(False)
    cal.inputs.remove()


def test_v9_everything_quantized_is_brecq_with_quantized_inputs(trained):
    always = reconstructed("qdrop", with_inputs(*trained), prob=1.0)
    brecq = reconstructed("brecq", with_inputs(*trained))
    assert same(always, brecq)
    for layer, quantizer in always.inputs.by_layer.items():
        assert torch.equal(quantizer.step, brecq.inputs.by_layer[layer].step)
    assert not same(reconstructed("qdrop", with_inputs(*trained)), brecq)


def test_v9_nothing_quantized_is_the_reconstruction_of_weights_on_latent_inputs(trained):
    """With probability 0 no quantizer acts while rounding is learned, and steps stay where they began."""
    never, alone = with_inputs(*trained), calibration(*trained)
    before = {layer: one.step.clone() for layer, one in never.inputs.by_layer.items()}
    reconstructed("qdrop", never, prob=0.0)
    found = posttraining.find("qdrop")
    found(found.Options(iterations=40, lr=1e-2, prob=0.0)).quantize(alone)
    assert same(never, alone)
    assert all(torch.equal(one.step, before[layer]) for layer, one in never.inputs.by_layer.items())


@pytest.mark.parametrize("name", ["mlp5", "resnet18", "mobilenetv2", "vit-tiny"])
def test_v9_every_network_and_the_model_is_left_as_it_was(name):
    model, weights, images = network(name)
    before = model(images[:8])
    cal = with_inputs(model, weights, images)
    learned = reconstructed("qdrop", cal, iterations=4)
    assert torch.equal(model(images[:8]), before)
    layers = [layer.removesuffix(".weight") for layer in weights]
    assert [cal.inputs.by_layer[layer].bits for layer in layers[1:-1]] == [4] * (len(layers) - 2)
    assert all(one.step > 0 and not one.step.requires_grad for one in cal.inputs.by_layer.values())
    assert set(learned.quantized) == set(weights)
    assert all(not weight.requires_grad for weight in weights.values())


def test_v9_steps_a_third_of_the_best_are_learned_back(trained):
    """Against the same rounding with steps that stay: every unit's output comes nearer, over all images.

    From the best steps themselves a unit may end on either side: its inputs are not those that they were best for.
    """

    def losses(step_lr):
        cal = with_inputs(*trained, width=3)
        for one in cal.inputs.by_layer.values():
            one.step.div_(3)
        reconstructed("brecq", cal, iterations=300, step_lr=step_lr)
        again = DroppedInputs(
            trained[0], {layer: one.bits for layer, one in cal.inputs.by_layer.items()}, trained[2], 0
        )
        for layer, one in again.by_layer.items():
            one.load_state(cal.inputs.by_layer[layer].state())
        cal.inputs = again
        found = cal.losses()
        again.remove()
        return found

    assert all(learned < 0.75 * fixed for learned, fixed in zip(losses(1e-2), losses(1e-12), strict=True))


def test_v9_the_first_step_is_the_best_of_a_hundred():
    torch.manual_seed(0)
    for x in (torch.randn(5000), torch.rand(5000)):
        quantizer = DroppedInput(3, torch.device("cpu"))
        quantizer.start(x)
        low, high = quantizer.range
        assert (low, high) == ((-4, 3) if x.min() < 0 else (0, 7))
        steps = x.abs().max() / high * torch.arange(1, 101) / 100
        errors = [((x / s).round().clamp(low, high) * s - x).square().sum() for s in steps]
        chosen = ((x / quantizer.step).round().clamp(low, high) * quantizer.step - x).square().sum()
        assert chosen.item() == pytest.approx(min(errors).item(), rel=1e-5)


# -- R1: an independent oracle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [5, 60])
def test_R1_one_layer_by_plain_autograd_and_torchs_adam(iterations):
    """AdaRound of one linear layer written the obvious way, from its formulas alone: the same V, the same codes."""
    torch.manual_seed(4)
    layer = nn.Linear(12, 9, bias=False).requires_grad_(False)
    model, images = nn.Sequential(layer), torch.randn(100, 12)
    options = {"iterations": iterations, "lr": 2e-2, "nu": 0.05, "batch_size": 32}
    cal, _ = apply("brecq", model, {"0.weight": layer.weight}, images, **options)

    weight, scale = layer.weight.double(), (layer.weight.abs().max() / 3).double()
    below = torch.floor(weight / scale)
    rest = (weight / scale - below).clamp(1e-9, 1 - 1e-9)
    v = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()
    adam, draws = torch.optim.Adam([v], lr=2e-2), torch.Generator().manual_seed(0)
    for t in range(1, iterations + 1):
        chosen = torch.randperm(100, generator=draws)[:32]
        x = images[chosen].double()
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        soft = scale * (below + h).clamp(-3, 3)
        loss = (x @ soft.T - x @ weight.T).square().sum(1).mean()
        if t >= 0.2 * iterations:
            exponent = 2 + 18 * (1 - (t - 0.2 * iterations) / (0.8 * iterations))
            loss = loss + 0.05 * (1 - (2 * h - 1).abs().pow(exponent)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    hard = (below + (v >= 0)).clamp(-3, 3)
    decided = v.abs() > 1e-4  # a V this near to zero goes either way in single precision
    assert decided.float().mean() > 0.95
    assert torch.equal((cal.quantized["0.weight"] / scale).round()[decided], hard[decided])


# -- M1: MRECG --------------------------------------------------------------------------------------------------


def test_M1_capacity_is_additive_and_monotone():
    layers = [(100, 1, 3), (50, 2, 3), (30, 1, 3)]
    whole = mrecg.mod_cap(layers, 1.6)
    assert whole == pytest.approx(sum(mrecg.mod_cap([layer], 1.6) for layer in layers)) == 3 * (100 + 80 + 30)
    assert mrecg.mod_cap([(100, 1, 8), *layers[1:]], 1.6) == whole + 500
    assert mrecg.mod_cap([(101, 1, 3), *layers[1:]], 1.6) > whole


def test_M1_groups_are_contiguous_cover_all_and_chains_are_transitive():
    units = list("abcdef")
    assert mrecg.cut(units, set()) == [[u] for u in units]
    assert mrecg.cut(units, set(range(5))) == [units]
    assert mrecg.cut(units, {1, 2, 4}) == [["a"], ["b", "c", "d"], ["e", "f"]]
    assert [unit for group in mrecg.cut(units, {0, 3}) for unit in group] == units


def test_M1_selection_is_invariant():
    capacities = [5.0, 9.0, 2.0, 40.0, 41.0, 7.0]
    for kind, changed in (("diff2", [c + 1000 for c in capacities]), ("log_ratio", [c * 3 for c in capacities])):
        for k in range(6):
            chosen = [mrecg.largest(mrecg.scores(values, kind), [True] * 5, k) for values in (capacities, changed)]
            assert chosen[0] == chosen[1] and len(chosen[0]) == k


def test_M1_full_resnet18_shows_what_each_score_picks():
    """Raw differences pick the last stages; the log ratio ties all stage transitions, of which the first two are
    the released pairs."""
    spec = {"name": "resnet18"}
    model = models.build(spec, (3, 32, 32), 10).eval().requires_grad_(False)
    weights = quantized_parameters(model, ["*"])
    cal = calibration(model, weights, torch.randn(2, 3, 32, 32))
    capacities = [mrecg.capacity(cal, unit, 1.6) for unit in cal.chain.units]
    assert capacities[3] == 3 * (1.6 * (64 * 128 * 9 + 64 * 128) + 128 * 128 * 9)
    inner = [False, *[True] * 7, False]
    released = {place - 1 for group in mrecg.RELEASED["resnet18"][1] for place in group[:-1]}
    assert mrecg.largest(mrecg.scores(capacities, "log_ratio"), inner, 2) == released
    assert mrecg.MrecgOptions(k=2).capacity == "log_ratio"
    counts = [mrecg.capacity(cal, unit, 1.0) for unit in cal.chain.units]
    assert mrecg.largest(mrecg.scores(counts, "diff2"), [True] * 9, 3) == {6, 7, 8}


def test_M1_without_merging_it_is_brecq_and_with_all_one_group(trained):
    assert same(apply("mrecg", *trained, iterations=60, k=0)[0], apply("brecq", *trained, iterations=60)[0])
    cal, groups = apply("mrecg", *trained, iterations=5, k=5, exclude_first_last=False)
    assert [[unit.name for unit in group] for group in groups] == [[f"fc{i}" for i in range(1, 7)]]
    assert cal.steps == 5
    assert merged(groups[0]).weights == tuple(trained[1])


def test_M1_prob_below_one_is_qdrop(trained):
    assert same(apply("mrecg", *trained, iterations=60, k=0, prob=0.5)[0], apply("qdrop", *trained, iterations=60)[0])


@pytest.mark.parametrize("capacity", ["diff2", "log_ratio", "data_dependent"])
def test_M1_first_and_last_are_excluded_unless_asked_for(trained, capacity):
    _, groups = apply("mrecg", *trained, iterations=1, k=3, capacity=capacity)
    assert [unit.name for unit in groups[0]] == ["fc1"]
    assert [unit.name for unit in groups[-1]] == ["fc6"]
    with pytest.raises(InputError, match="k: 4 pairs of 6 units; only 3 can be merged"):
        apply("mrecg", *trained, iterations=1, k=4, capacity=capacity)


def test_M1_a_scheme_is_taken_as_it_is():
    model, weights, images = network("resnet18")
    _, groups = apply("mrecg", model, weights, images, iterations=1, scheme="released")
    assert [unit.name for group in groups if len(group) > 1 for unit in group] == [
        "layer1.1", "layer2.0", "layer2.1", "layer3.0",
    ]  # fmt: skip
    _, named = apply(
        "mrecg", model, weights, images, iterations=1, scheme=[["layer1.1", "layer2.0"], ["layer2.1", "layer3.0"]]
    )
    assert [[u.name for u in g] for g in named] == [[u.name for u in g] for g in groups]
    with pytest.raises(InputError, match="not two or more neighbours"):
        apply("mrecg", model, weights, images, iterations=1, scheme=[["layer1.1", "layer2.1"]])
    with pytest.raises(InputError, match=r"no unit 'layer1\.2'; did you mean"):
        apply("mrecg", model, weights, images, iterations=1, scheme=[["layer1.1", "layer1.2"]])


def test_M1_the_released_scheme_of_mobilenetv2_joins_the_releases_blocks():
    """Its modules are the stem with features.1, features.2 to 17, and features.18 with the classifier."""
    model, weights, images = network("mobilenetv2")
    _, groups = apply("mrecg", model, weights, images[:32], iterations=1, scheme="released")
    joined = [[1, 2], [4, 5], [7, 8], [10, 11, 12], [13, 14, 15], [17, 18], [19, 20]]
    assert mrecg.RELEASED["mobilenetv2"] == (sum(map(len, groups)), joined)
    assert [[unit.name.removeprefix("features.") for unit in group] for group in groups] == [
        ["0.0", "1"], ["2"], ["3", "4"], ["5"], ["6", "7"], ["8"], ["9", "10", "11"], ["12", "13", "14"], ["15"],
        ["16", "17"], ["18.0", "classifier.1"],
    ]  # fmt: skip


def test_M1_oscillation_is_the_sum_of_rises():
    assert measurement.rises([0.1, 0.4, 0.2, 0.25]) == pytest.approx(0.35)
    assert measurement.rises([3.0, 2.0, 1.0]) == 0


def test_losses_are_relative_and_zero_for_latent_weights(trained):
    model, weights, images = trained
    cal = calibration(model, weights, images)
    cal.quantized = {name: weight.data for name, weight in weights.items()}
    assert cal.losses() == [0.0] * 6
    cal.quantized = {"fc6.weight": torch.zeros_like(weights["fc6.weight"])}
    z = model(images)
    expected = (z - model.fc6.bias).square().sum() / z.square().sum()
    assert cal.losses()[:5] == [0.0] * 5
    assert cal.losses()[5] == pytest.approx(expected.item(), rel=1e-5)


def test_batch_norm_keeps_its_statistics():
    model, weights, images = network("resnet18")
    before = {name: value.clone() for name, value in model.named_buffers()}
    apply("brecq", model, weights, images, iterations=2)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


# -- studies ----------------------------------------------------------------------------------------------------

ENTRY = {
    "of": ["mlp5-scratch/baseline", "mlp5-scratch/osciquant-3bit"],
    "bits": [2, 3],
    "methods": {
        "nearest": None,
        "mse-range": {"method": "nearest", "scale": "mse"},
        "adaround": {"iterations": 20, "images": 128},
        "mrecg": {"iterations": 20, "images": 128, "k": 1, "per_channel": True},
    },
}


def load(tmp_path, **changes):
    content = yaml.safe_load(TINY)
    content["experiments"]["mlp5-scratch"]["methods"]["lsq"] = {"bits": 3}
    content["posttraining"] = {"ptq": ENTRY | changes}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return studies.load(path)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": ["mlp5-scratch/baselin"]}, "posttraining.ptq.of: unknown variant 'mlp5-scratch/baselin'; did you mean 'mlp5-scratch/baseline'?"),
        ({"bits": [5]}, "posttraining.ptq.bits: 5 is not among eval_bits"),
        ({"bits": [32]}, "posttraining.ptq.bits.0: Input should be less than or equal to 8"),
        ({"methods": {"adarund": None}}, "methods.adarund: unknown method 'adarund'; did you mean 'adaround'?"),
        ({"methods": {"units": None}}, "unknown method 'units'"),
        ({"methods": {"adaround": {"iteration": 5}}}, "methods.adaround: unknown key 'iteration'; did you mean 'iterations'?"),
        ({"methods": {"adaround": {"fisher": True}}}, "methods.adaround: unknown key 'fisher'"),
        ({"methods": {"nearest": {"iterations": 5}}}, "methods.nearest: unknown key 'iterations'"),
        ({"methods": {"brecq": {"prob": 0.5}}}, "methods.brecq: unknown key 'prob'"),
        ({"methods": {"adaround": {"scale": "rescaled"}}}, "methods.adaround: scale: 'rescaled' is not allowed"),
        ({"methods": {"nearest": {"scale": "rescaled"}}}, "mlp5-scratch/baseline: scale: rescaled: baseline learns no scales; use max or mse"),
        ({"methods": {"nearest": {"scale": "rescaled", "per_channel": True}}}, "per_channel: rescaled scales are per channel where"),
        ({"methods": {"adaround": {"step_lr": 1e-3}}}, "step_lr: no inputs are quantized; say activations, or leave step_lr out"),
        ({"methods": {"mrecg": {}}}, "k, scheme: give one of the two"),
        ({"methods": {"mrecg": {"scheme": "released"}}}, "scheme: released: there is none for mlp5; known: resnet18, mobilenetv2"),
        ({"methods": {"mrecg": {"scheme": [["fc1", "fx2"]]}}}, "scheme: no unit 'fx2'; did you mean 'fc2'?"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        load(tmp_path, **changes)
    assert message in str(error.value)


def test_an_entry_resolves_all_options_and_asks_for_the_figure(tmp_path):
    study = load(tmp_path)
    found = {label: (method, options.scale) for label, method, options in study.posttraining["ptq"].resolved()}
    assert found["mse-range"] == ("nearest", "mse")
    assert "figure-reconstruction-ptq" in study.figure_names
    assert "figure-reconstruction-ptq" not in load(tmp_path, methods={"nearest": None}).figure_names
    load(tmp_path, of=["mlp5-scratch/lsq-3bit"], methods={"nearest": {"scale": "rescaled"}})


def test_importing_the_methods_imports_no_torch():
    import subprocess
    import sys

    code = "import sys; from oscillations import posttraining as p; [p.find(n) for n in p.names()]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
