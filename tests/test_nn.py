"""oscillations.nn: the engine's numbers in a loop of one's own, whatever surrounds the model."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, blobs_dataset, image_sets, make_trainer, plain_recipe
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune

from oscillations import models
from oscillations.core.errors import InputError
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.nn import OscillationMonitor, OsciQuantRegularizer, at_bits, fake_quantize
from oscillations.nn import monitor as monitoring
from oscillations.nn.fake_quantize import FORWARD_METHODS, fake_quantizers

MODEL = {"name": "mlp5", "width": 12}
STEPS = 30


@pytest.fixture
def double():
    """Weights of both sides in float64, so that no rounding can send one over a threshold alone."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network():
    torch.manual_seed(0)
    return models.build(MODEL, (1, 8, 8), 4)


def engine(name, **options):
    """A trainer of the engine, and its batches."""
    recipe = plain_recipe() | {"method": {"name": name, **options}}
    about, tensors = blobs_dataset()
    sets = image_sets(about, tensors, recipe, torch.device("cpu"))
    trainer = make_trainer(recipe, 0, about, sets, torch.device("cpu"))
    train, order = sets["train"], sets["train"].order(0, 0).repeat(4)
    batches = [train.batch(order[32 * i : 32 * i + 32]) for i in range(STEPS)]
    return trainer, [(x.to(torch.get_default_dtype()), y) for x, y in batches]


def adam(parameters, lr=2e-3):
    return torch.optim.Adam(parameters, lr=lr, fused=True)


REGULARIZERS = [
    {},
    {"preset": "paper_text"},
    {"preset": "custom", "reg_reduction": "global_mean", "reg_half": True, "scale_grad": "flow"},
    {"per_channel": True},
    {"quantize_bias": True},
    {"tie": "half_up"},
    {"preset": "custom", "reg_reduction": "layer_mean", "reg_half": False, "scale_grad": "detach", "scale_source": "mse"},
    {"preset": "custom", "reg_reduction": "layer_mean", "reg_half": False, "scale_grad": "detach", "scale_source": "frozen_max"},
    {"reg_curvature": "fisher_diag"},
    {"lambda_schedule": "linear_warmup"},
    {"lambda_schedule": "cosine"},
]  # fmt: skip


@pytest.mark.parametrize("options", REGULARIZERS, ids=lambda options: "-".join(map(str, options.values())) or "default")
@pytest.mark.parametrize("bits", [2, 3])
def test_a_loop_with_the_regularizer_is_the_engines_training(double, options, bits):
    """Same codes after every step of a whole tiny training."""
    strength = 1e-3 if options.get("preset") == "paper_text" else 3.0
    trainer, batches = engine("osciquant", bits=bits, **{"lambda": strength}, **options)
    model = network()
    regularizer = OsciQuantRegularizer(model, bits, strength, **options)
    optimizer, quantized = adam(model.parameters()), trainer.quantizer
    crossed = 0
    for x, y in batches:
        progress = trainer.moment().begun
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + regularizer(progress)).backward()
        optimizer.step()
        before = quantized.codes.clone()
        trainer.step(x, y)
        trainer.progress.step += 1
        crossed += (before != quantized.codes).sum().item()
        regularizer()
        assert torch.equal(regularizer._quantizer.codes, quantized.codes)
    assert crossed > 20
    for mine, its in zip(model.parameters(), trainer.model.parameters()):
        assert torch.allclose(mine, its, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("per_channel", [False, True])
def test_value_and_gradient_are_those_of_autograd(double, per_channel):
    model = network()
    regularizer = OsciQuantRegularizer(model, 3, 0.7, per_channel=per_channel)
    value = regularizer()
    value.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    expected, plain = 0, []
    for layer in model:
        if isinstance(layer, nn.Linear):
            w = layer.weight.detach().clone().requires_grad_()
            plain.append(w)
            scale = (w.abs().amax(1, keepdim=True) if per_channel else w.abs().amax()) / 3
            u = w / scale
            q = (u + (u.round() - u).detach()) * scale
            expected = expected + 0.7 * (q**2 - w**2).mean()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert all(torch.allclose(a, b.grad) for a, b in zip(found, plain)) and len(found) == len(plain)


FORWARD = [
    ("qat", {}), ("qat", {"scale_grad": "detach", "per_channel": True}),
    ("lsq", {}), ("lsq", {"grid": "lsq", "per_channel": True, "scale_init": "mse", "clip_order": "round_first"}),
    ("dual-lsq", {}), ("dual-lsq", {"learnable": "post", "grad_scale": True}),
    ("statsq", {}),
    ("pseudo-noise", {}), ("pseudo-noise", {"noise": "gaussian", "range": "minmax", "min_size": 100}),
]  # fmt: skip


def test_every_forward_method_is_compared_with_the_engine():
    assert {name for name, _ in FORWARD} == set(FORWARD_METHODS)


@pytest.mark.parametrize(("name", "options"), FORWARD, ids=str)
def test_fake_quantized_layers_train_as_the_engines_do(double, name, options):
    trainer, batches = engine(name, bits=3, **options)
    model = fake_quantize(network(), 3, method=name, **options)
    scales = [p for key, p in model.named_parameters() if key.endswith("scale") and p.requires_grad]
    others = [p for key, p in model.named_parameters() if not key.endswith("scale")]
    optimizers = [adam(others), *([adam(scales, 1e-4)] if scales else [])]  # LSQ's own rate
    for step, (x, y) in enumerate(batches):
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        torch.manual_seed(step)
        trainer.step(x, y)
        quantizers = fake_quantizers(model)
        codes = [
            one.codes(model.get_submodule(key).parametrizations.weight.original) for key, one in quantizers.items()
        ]
        assert all(torch.equal(mine.to(torch.int8), its) for mine, its in zip(codes, trainer.quantizer.code_views))
    model.eval()
    for key, its in zip(quantizers, trainer.quantizer.quantized):
        assert torch.allclose(model.get_submodule(key).weight, its, rtol=1e-7, atol=1e-9)


@pytest.fixture(params=["whole layers", "pieces"])
def portions(request, monkeypatch):
    """Layers that the monitor takes whole and together, or in pieces and apart."""
    if request.param == "pieces":
        monkeypatch.setattr(monitoring, "IN_CACHE", 50)
        monkeypatch.setattr(monitoring, "AT_ONCE", 1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_monitor_counts_as_the_engine_does(double, portions, per_channel):
    trainer, batches = engine("osciquant", bits=3, per_channel=per_channel, **{"lambda": 3.0})
    monitor = OscillationMonitor(trainer.model, 3, per_channel=per_channel)
    for x, y in batches:
        trainer.step(x, y)
        monitor.step()
    counts, table = trainer.counters["iteration"], monitor.table()
    assert counts.totals[0].sum() > 20
    for kind, totals in zip(("crossings", "levels", "nagel", "corrected", "trips"), counts.totals.tolist()):
        assert table[kind].tolist() == totals
    frequencies = [part.double().mean().item() for part in counts.frequency().split(counts.sizes)]
    assert table.frequency.tolist() == pytest.approx(frequencies)
    assert table.layer.tolist() == trainer.quantizer.names
    assert set(table.steps) == {STEPS}


def test_the_monitor_counts_learned_scales_on_their_own_grid(double, portions):
    trainer, batches = engine("lsq", bits=3)
    model = fake_quantize(network(), 3, method="lsq")
    monitor = OscillationMonitor(model)
    for x, y in batches:
        trainer.step(x, y)
        with torch.no_grad():
            for mine, its in zip(fake_quantizers(model).values(), trainer.quantizer.scales):
                mine.scale.copy_(its)
            for (_, mine), its in zip(_originals(model), trainer.network.parameters):
                mine.copy_(its)
        monitor.step()
    assert monitor.table().crossings.tolist() == trainer.counters["iteration"].totals[0].tolist()
    assert monitor.table().level_shares.str.split().str.len().tolist() == [7] * 6


def _originals(model):
    return [(n, p) for n, p in model.named_parameters() if n.endswith("weight.original")]


def test_the_monitors_state_is_six_bytes_a_weight(monkeypatch):
    model = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(20)])
    monitor = OscillationMonitor(model, 3)
    state = sum(
        value.numel() * value.element_size() for key, value in monitor.state_dict().items() if value.numel() > 10
    )
    assert state / 200_000 == pytest.approx(6, rel=0.01)
    beside = monitor._codes.numel() + 4 * monitor._steps.numel()
    assert beside == 200_000 + 4 * 10_000  # the codes of what is counted at once, one layer's steps
    monkeypatch.setattr(monitoring, "AT_ONCE", 1)
    monitor = OscillationMonitor(model, 3)
    beside = monitor._codes.numel() + 4 * monitor._steps.numel()
    assert beside == 5 * 10_000  # one layer's codes and steps


def test_groups_are_no_larger_than_the_largest_tensor_or_what_is_counted_at_once(monkeypatch):
    sizes = {"a": 5, "b": 10, "c": 4, "d": 6, "e": 1}
    assert monitoring.grouped(sizes) == [sizes]
    monkeypatch.setattr(monitoring, "AT_ONCE", 8)
    assert monitoring.grouped(sizes) == [{"a": 5}, {"b": 10}, {"c": 4, "d": 6}, {"e": 1}]
    monkeypatch.setattr(monitoring, "AT_ONCE", 15)
    assert monitoring.grouped(sizes) == [{"a": 5, "b": 10}, {"c": 4, "d": 6, "e": 1}]


def test_a_monitor_goes_on_where_it_was_saved(monkeypatch):
    model, again = network(), network()
    one, two = OscillationMonitor(model), OscillationMonitor(again)

    def shake(network, monitor, steps):
        for step in steps:
            torch.manual_seed(step)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
            monitor.step()

    shake(model, one, range(8))
    shake(again, two, range(4))
    monkeypatch.setattr(monitoring, "AT_ONCE", 1)  # a state does not depend on what is counted together
    three = OscillationMonitor(again)
    three.load_state_dict(two.state_dict())
    shake(again, three, range(4, 8))
    assert one.table().equals(three.table()) and one.table().corrected.sum() > 0


def test_a_histogram_and_a_picture_show_the_weights_on_their_grid(tmp_path):
    monitor = OscillationMonitor(network(), 3)
    counts = monitor.histogram("fc2")
    assert sum(counts.values()) == 144 and min(counts) == -3 and max(counts) == 3
    figure = monitor.plot(["fc1", "fc2"])
    figure.savefig(tmp_path / "weights.png")
    assert [axes.get_title().split(",")[0] for axes in figure.axes] == ["layer fc1", "layer fc2"]
    with pytest.raises(InputError, match="fc7"):
        monitor.histogram("fc7")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_any_model_computes_at_any_width(bits):
    model, x = network(), torch.randn(5, 1, 8, 8)
    expected, latent = network(), [p.detach().clone() for p in model.parameters()]
    for layer in expected:
        if isinstance(layer, nn.Linear):
            layer.weight.data = quantize(layer.weight.data, bits)
    with at_bits(model, bits):
        assert torch.equal(model(x), expected(x))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), latent))
    with at_bits(model, 32):
        assert torch.equal(model(x), network()(x))


def test_a_fake_quantized_model_is_the_methods_at_its_width_and_eq_2s_at_others():
    model, x = fake_quantize(network(), 3, method="lsq"), torch.randn(5, 1, 8, 8)
    own = model(x)
    for bits in (2, 3, 4, 32):
        with at_bits(model, bits):
            found = model(x)
        plain = network()
        with at_bits(plain, bits):
            assert torch.equal(found, own if bits == 3 else plain(x))
    with pytest.raises(RuntimeError, match="from inside"), at_bits(model, 4):
        raise RuntimeError("from inside")
    assert torch.equal(model(x), own)


def test_parametrizations_can_be_taken_away_again():
    model, x = fake_quantize(network(), 3), torch.randn(5, 1, 8, 8)
    expected = model(x)
    for layer in model:
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(model(x), expected) and isinstance(model.fc1.weight, nn.Parameter)


def test_layers_of_other_widths_are_quantized_by_a_second_call():
    model = fake_quantize(network(), 8, layers=["fc1", "fc6"])
    fake_quantize(model, 3, exclude=["fc1", "fc6"], method="lsq")
    assert [one.bits for one in fake_quantizers(model).values()] == [8, 3, 3, 3, 3, 8]
    regularizer, monitor = OsciQuantRegularizer(model, 3, exclude=["fc6"]), OscillationMonitor(model)
    assert regularizer().requires_grad and monitor.table().bits.tolist() == [8, 3, 3, 3, 3, 8]


# -- what surrounds the model --------------------------------------------------------------------------------


def trained_codes(surround, steps=12, method=None):
    """Codes after a few steps of a loop; ``surround(model, x, y, regularizer)`` makes a step's gradients."""
    _, batches = engine("baseline")
    model = network()
    if method:
        fake_quantize(model, 3, method=method)
    regularizer, optimizer = OsciQuantRegularizer(model, 3, 3.0), adam(model.parameters())
    for x, y in batches[:steps]:
        optimizer.zero_grad()
        surround(model, x, y, regularizer)
        optimizer.step()
    regularizer()
    return regularizer._quantizer.codes.clone()


def plainly(model, x, y, regularizer):
    (F.cross_entropy(model(x), y) + regularizer()).backward()


def test_gradients_accumulate(double):
    def in_parts(model, x, y, regularizer):
        for part in range(4):
            some = slice(8 * part, 8 * part + 8)
            ((F.cross_entropy(model(x[some]), y[some]) + regularizer()) / 4).backward()

    assert torch.equal(trained_codes(in_parts), trained_codes(plainly))


@pytest.mark.parametrize("curvature", ["identity", "fisher_diag"])
def test_a_scaled_loss_gives_scaled_gradients(double, curvature):
    def gradients(factor):
        model = network()
        regularizer = OsciQuantRegularizer(model, 3, reg_curvature=curvature)
        (factor * (F.cross_entropy(model(torch.ones(2, 1, 8, 8)), torch.tensor([0, 1])) + regularizer())).backward()
        return [p.grad / factor for p in model.parameters()]

    assert all(torch.allclose(a, b) for a, b in zip(gradients(1.0), gradients(1024.0)))


def test_a_loss_scaler_trains_as_without(double):
    """Its factor is a power of two, so that no digit is lost; a step that overflows is left out."""

    def trained(scales):
        _, batches = engine("baseline")
        model = network()
        regularizer, optimizer = OsciQuantRegularizer(model, 3, 3.0), adam(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scales)
        for i, (x, y) in enumerate(batches[:12]):
            if scales or i != 5:
                optimizer.zero_grad()
                scale = torch.inf if i == 5 else 1.0
                scaler.scale(scale * (F.cross_entropy(model(x), y) + regularizer())).backward()
                scaler.step(optimizer)
                scaler.update()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(trained(True), trained(False))
    assert not torch.equal(trained(True), torch.nn.utils.parameters_to_vector(network().parameters()))


def test_without_its_term_a_backward_pass_is_untouched(double):
    model = network()
    regularizer = OsciQuantRegularizer(model, 3, 3.0, reg_curvature="fisher_diag")
    x, y = torch.ones(2, 1, 8, 8), torch.tensor([0, 1])
    F.cross_entropy(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plainly(model, x, y, regularizer)
    assert not torch.allclose(model.fc2.weight.grad, plain[2])
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(p.grad, expected) for p, expected in zip(model.parameters(), plain))


@pytest.mark.parametrize("method", [None, "qat", "lsq"])
def test_autocast_leaves_weights_and_grid_in_full_precision(method):
    seen = []

    def half(model, x, y, regularizer):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
            loss = F.cross_entropy(logits, y) + regularizer()
        seen.extend([logits.dtype, loss.dtype])
        loss.backward()

    trained_codes(half, 3, method)
    assert set(seen) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("method", [None, "qat", "lsq", "statsq"])
def test_a_compiled_model_trains_the_same(double, method):
    def compiled(model, x, y, regularizer):
        program = torch.compile(model, backend="aot_eager", fullgraph=True)
        (F.cross_entropy(program(x), y) + regularizer()).backward()

    torch.compiler.reset()
    assert torch.equal(trained_codes(compiled, 4, method), trained_codes(plainly, 4, method))


def test_a_model_may_move_its_weights_between_steps(double):
    """As ``model.to(device)`` does: the parameters stay, their memory does not."""
    model = network()
    regularizer, monitor = OsciQuantRegularizer(model, 3), OscillationMonitor(model, 3)
    with torch.no_grad():
        model.fc2.weight.mul_(-1)
    monitor.step()
    before = monitor.table().crossings.sum()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        model.fc2.weight.mul_(-1)
    monitor.step()
    assert monitor.table().crossings.sum() == 2 * before > 0
    regularizer()
    fresh = WeightQuantizer({"w": model.fc2.weight}, 3)
    fresh.update()
    assert torch.equal(regularizer._quantizer.code_views[1], fresh.code_views[0])
    model.half()
    with pytest.raises(InputError, match="too coarse"):
        regularizer()
    with pytest.raises(InputError, match="too coarse"):
        monitor.step()


def test_another_memory_format_is_no_crossing():
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    monitor = OscillationMonitor(model)
    state = monitor.state_dict()
    model.to(memory_format=torch.channels_last)
    monitor.step()
    assert monitor.table().crossings.tolist() == [0]
    again = OscillationMonitor(model)
    again.load_state_dict(state)
    again.step()
    assert again.table().crossings.tolist() == [0]


@pytest.mark.parametrize("make", [OsciQuantRegularizer, OscillationMonitor])
def test_a_replaced_parameter_is_noticed(make):
    model = network()
    made = make(model, 3)
    model.load_state_dict(network().state_dict(), assign=True)
    with pytest.raises(InputError, match="another parameter than when it was made"):
        made() if make is OsciQuantRegularizer else made.step()


def test_layers_quantized_after_their_monitor_was_made_are_noticed():
    model = network()
    monitor = OscillationMonitor(model, 3)
    fake_quantize(model, 8)
    with pytest.raises(InputError, match="quantized otherwise than when it was made"):
        monitor.step()


def test_neither_counts_nor_regularizes_held_weights():
    model = network()
    regularizer, monitor = OsciQuantRegularizer(model, 3), OscillationMonitor(model, 3)
    with at_bits(model, 3):
        for use in (regularizer, monitor.step):
            with pytest.raises(InputError, match="inside at_bits"):
                use()
    regularizer(), monitor.step()


def test_a_layer_that_is_gone_is_named():
    model = network()
    regularizer, monitor = OsciQuantRegularizer(model, 3), OscillationMonitor(model, 3)
    del model.fc2
    for use in (regularizer, monitor.step):
        with pytest.raises(InputError, match=r"fc2\.weight is another parameter"):
            use()


def test_widths_may_be_nested():
    model, x = network(), torch.randn(5, 1, 8, 8)
    with at_bits(model, 8):
        eight = model(x)
    with at_bits(model, 3):
        with at_bits(model, 32):
            assert torch.equal(model(x), network()(x))
        with at_bits(model, 8):
            assert torch.equal(model(x), eight)
    assert torch.equal(model(x), network()(x))


def test_inference_mode_first_breaks_nothing():
    model = network()
    regularizer, monitor = OsciQuantRegularizer(model, 3), OscillationMonitor(model, 3)
    with torch.inference_mode():
        value = regularizer()
        monitor.step()
    assert regularizer().item() == value.item()
    regularizer().backward()
    monitor.step()


def test_a_curved_term_counts_twice_and_survives_an_overflow(double):
    def gradient(term):
        model = network()
        model.fc3.requires_grad_(False)
        regularizer = OsciQuantRegularizer(model, 3, reg_curvature="fisher_diag")
        for scale in (torch.inf, 1.0):  # the first step overflows, as a loss scaler's may
            model.zero_grad()
            loss = F.cross_entropy(model(torch.ones(2, 1, 8, 8)), torch.tensor([0, 1])) + term(regularizer)
            (scale * loss).backward()
        return model.fc2.weight.grad

    assert torch.allclose(gradient(lambda r: r() + r()), gradient(lambda r: 2 * r()))
    assert gradient(lambda r: r()).isfinite().all()
    OsciQuantRegularizer(network(), 3, reg_curvature="fisher_diag")().backward()  # without a task


def test_a_learned_scale_below_zero_comes_back():
    model = fake_quantize(nn.Sequential(nn.Linear(8, 4)), 3, method="lsq")
    quantizer = fake_quantizers(model)["0"]
    quantizer.scale.data.fill_(-1e-3)
    model(torch.ones(2, 8)).square().sum().backward()
    assert quantizer.scale.grad.item() != 0


def test_a_layer_that_is_used_twice_is_no_tied_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.again = self.one

    assert OsciQuantRegularizer(Twice())().requires_grad


def test_the_root_may_be_the_layer():
    monitor = OscillationMonitor(nn.Linear(4, 3))
    assert sum(monitor.histogram("").values()) == 12
    assert len(monitor.plot().axes) == 1


def test_weights_changed_between_forward_and_backward_are_noticed():
    model = network()
    value = OsciQuantRegularizer(model, 3)()
    with torch.no_grad():
        model.fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def process(rank, folder, method):
    """One of two that train together, each on half of every batch."""
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)

    def together(model, x, y, regularizer):
        if not hasattr(together, "wrapped"):
            together.wrapped = DistributedDataParallel(model)
        mine = slice(rank, None, 2)
        (F.cross_entropy(together.wrapped(x[mine]), y[mine]) + regularizer()).backward()

    torch.save(trained_codes(together, method=method), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "lsq"])
def test_two_processes_train_as_one(double, tmp_path, method):
    torch.multiprocessing.spawn(process, (str(tmp_path), method), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(both[0], both[1]) and torch.equal(both[0], trained_codes(plainly, method=method))


# -- what is refused -------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


def on_meta():
    with torch.device("meta"):
        return nn.Linear(3, 2)


def with_weight_norm():
    return nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))


def apart():
    layer = nn.Linear(4, 2)
    layer.weight = nn.Parameter(torch.randn(2, 8)[:, ::2])
    return layer


BAD = [
    (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), {}, "no layer that multiplies"),
    (lambda: nn.Embedding(5, 3), {}, "no layer that multiplies"),
    (Tied, {}, r"embedding\.weight and head\.weight are one tensor.*exclude=\['head'\]"),
    (on_meta, {}, "meta device"),
    (lambda: nn.Linear(3, 2, dtype=torch.complex64), {}, "complex64 has no grid"),
    (lambda: nn.Linear(3, 2, dtype=torch.bfloat16), {}, r"bfloat16 are too coarse.*autocast"),
    (lambda: nn.LazyLinear(3), {}, "lazy layer"),
    (lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()), {}, "torch.float32 on cpu and torch.float64 on cpu"),
    (with_weight_norm, {}, r"something else computes it.*exclude=\['1'\]"),
    (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), {}, "something else computes it"),
    (lambda: nn.utils.weight_norm(nn.Linear(3, 2)), {}, "something else computes it"),
    (lambda: prune.random_unstructured(nn.Linear(3, 2), "weight", 1), {}, "something else computes it"),
    (lambda: nn.Linear(4, 0), {}, "empty weight"),
    (apart, {}, "entries of the weight lie apart"),
    (lambda: nn.Sequential(nn.LayerNorm([4, 6])), {}, "no layer that multiplies"),
    (lambda: nn.Linear(3, 2), {"bits": 3.0}, "bits: 3.0 is no width"),
    (lambda: nn.Linear(3, 2), {"bits": torch.tensor(3)}, r"bits: tensor\(3\) is no width"),
    (lambda: nn.Linear(3, 2), {"bits": True}, "bits: True is no width"),
    (lambda: nn.Linear(3, 2), {"layers": [1]}, r"give a list of patterns of layer names, not \[1\]"),
    (lambda: nn.Linear(3, 2), {"bits": 1}, "bits: 1 is no width"),
    (lambda: nn.Linear(3, 2), {"bits": 17}, "bits: 17 is no width"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), {"layers": ["1"]}, "'1' matches no layer"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), {"layers": "0"}, r"give a list of patterns, \['0'\]"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), {"exclude": ["*"]}, "no layer is left"),
]  # fmt: skip


@pytest.mark.parametrize("use", [OsciQuantRegularizer, OscillationMonitor, fake_quantize, at_bits])
@pytest.mark.parametrize(
    ("model", "options", "said"), BAD, ids=lambda value: str(value)[:30] if isinstance(value, str) else ""
)
def test_what_cannot_be_quantized_is_refused_in_one_line(use, model, options, said):
    with pytest.raises(InputError, match=said) as refused:
        made = use(model(), **{"bits": 3, **options})
        if use is at_bits:
            made.__enter__()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: OsciQuantRegularizer(m, 3, reg_redution="sum"), "no option 'reg_redution'; did you mean 'reg_reduction'"),
        (lambda m: OsciQuantRegularizer(m, 3, preset="paper"), "unknown preset 'paper'"),
        (lambda m: OsciQuantRegularizer(m, 3, train_forward="fake_quant"), "no option 'train_forward'"),
        (lambda m: OsciQuantRegularizer(m, 3, "abc"), "strength: 'abc' is no number"),
        (lambda m: OsciQuantRegularizer(m, 3, float("nan")), "strength: nan is no number"),
        (lambda m: OscillationMonitor(m, 3, momentum=1.0), "momentum: 1.0 is not between 0 and 1"),
        (lambda m: OscillationMonitor(m, 3, timeout=-3), "timeout: -3 is no number of steps"),
        (lambda m: OscillationMonitor(m, 3).load_state_dict({}), "the state is that of another model"),
        (lambda m: fake_quantize(m, 3, method=["lsq"]), "no method"),
        (lambda m: fake_quantize(m, 3, method="lsqq"), "no method 'lsqq'; did you mean 'lsq'"),
        (lambda m: fake_quantize(m, 3, method="dampening"), "does more than the forward pass shows"),
        (lambda m: fake_quantize(m, 3, method="qat", grid="lsq"), "qat has no option 'grid'"),
        (lambda m: fake_quantize(m, 3, method="lsq", grid="odd"), "grid: 'odd' is not allowed"),
        (lambda m: fake_quantize(fake_quantize(m, 3), 3), "quantized already"),
    ],
)  # fmt: skip
def test_options_are_checked(make, said):
    with pytest.raises(InputError, match=said):
        make(network())


def test_a_refused_model_is_left_as_it_was():
    model = with_weight_norm()
    with pytest.raises(InputError):
        fake_quantize(model, 3)
    assert not parametrize.is_parametrized(model[0])


def test_a_tied_model_trains_without_its_tied_layer():
    regularizer = OsciQuantRegularizer(Tied(), exclude=["head"])
    assert list(regularizer._parameters) == ["body.weight"]


def test_it_needs_torch_and_nothing_of_the_workflow():
    unwanted = [
        "pandas",
        "matplotlib",
        "torchvision",
        "timm",
        "snakemake",
        "dvc",
        "sklearn",
        "scipy",
        "yaml",
        "seaborn",
    ]
    code = f"import sys, oscillations.nn; print([name for name in {unwanted} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
