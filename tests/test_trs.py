"""TRS (Lee et al. 2025): its golden trace, its laws, and that its weights are stepped by it alone."""

import math

import pytest
import torch
from conftest import at
from test_training import run, same_state, trainer

from oscillations.engine.annealing import cosine
from oscillations.methods.trs import Trs, follow

EXACT = 2.0**-9  # a learning rate that is a power of two rounds no product
TRS = {"name": "trs", "bits": 3}
UNBOUND = {"scale_source": "dynamic_max"}  # all weights lie in its range, so that no gradient is masked
QAT = {"name": "qat", "bits": 3, "scale_grad": "detach"}


def followed(rate, average, shares, targets, eta, momentum=0.99):
    """U and K after every step, from these."""
    rates, averages = (torch.tensor([value], dtype=torch.float64) for value in (rate, average))
    trace = []
    for share, target in zip(shares, targets):
        follow(rates, averages, *(torch.tensor([v], dtype=torch.float64) for v in (share, target)), eta, momentum)
        trace.append((rates.item(), averages.item()))
    return zip(*trace)


def test_v1_golden_trace():
    """100 steps of 2 bits."""
    targets = [cosine(step / 100, 5e-3 * math.sqrt(2), 0.0, 0.0) for step in range(6)]
    assert targets == pytest.approx([0.00707107, 0.00706932, 0.00706409, 0.00705538, 0.00704319, 0.00702754], abs=5e-9)
    rates, averages = followed(1e-3, 0.0, [0, 0.02, 0.01, 0.05, 0, 0.005], targets, eta=1e-3)
    known = [0, 0.000200, 0.000298, 0.000795020, 0.000787070, 0.000829199]
    assert averages == pytest.approx(known, abs=5e-10)
    known = [0.0010070711, 0.0010139404, 0.0010207065, 0.0010269668, 0.0010332230, 0.0010394213]
    assert rates == pytest.approx(known, abs=5e-11)


def test_v1_the_rate_is_never_negative():
    (rate,), _ = followed(1e-3, 0.3, [1.0], [0.007], eta=0.5)
    assert rate == 0


def test_v1_a_met_target_keeps_the_rate():
    rates, averages = followed(0.01, 0.0625, [0.0625] * 50, [0.0625] * 50, eta=0.5)
    assert set(rates) == {0.01} and set(averages) == {0.0625}


def test_v1_closed_form_of_the_average():
    _, averages = followed(0.01, 0.0, [0.3] * 40, [0.0] * 40, eta=0.0, momentum=0.9)
    assert averages == pytest.approx([0.3 * (1 - 0.9**n) for n in range(1, 41)], rel=1e-12)


def test_v1_without_a_target_the_rate_falls():
    torch.manual_seed(0)
    rates, _ = followed(0.01, 0.1, torch.rand(200).tolist(), [0.0] * 200, eta=1e-3)
    assert list(rates) == sorted(rates, reverse=True)


def test_v1_the_toys_follow_their_target():
    """400 models of one weight, w* uniform over [-2, 2], plain gradient descent."""
    generator = torch.Generator().manual_seed(3)
    wanted, weights = (4 * torch.rand(2, 400, generator=generator) - 2).unbind()
    rates, averages, previous = torch.tensor([0.01]), torch.zeros(1), weights.round()
    for step in range(4000):
        codes = weights.round()
        target = torch.tensor([cosine(step / 4000, 0.05, 0.0, 0.0)])
        follow(rates, averages, (codes != previous).float().mean()[None], target, eta=0.1, momentum=0.99)
        if step in (1000, 2000, 3000):
            assert averages.item() == pytest.approx(target.item(), rel=0.3)
        previous, weights = codes, weights - rates * (codes - wanted)
    assert rates.item() < 1e-4 * 0.01


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_v1_without_eta_it_is_the_plain_optimizer_at_a_constant_rate(recipe, blobs, kind):
    """Bit for bit; the first epoch of a run."""
    recipe["training"] |= {"optimizer": kind, "lr": EXACT}
    own = trainer(recipe, blobs, method=TRS | UNBOUND | {"optimizer": kind, "eta": 0.0})
    plain = trainer(recipe, blobs, method=QAT)
    for _, _, _ in zip(own.steps(), plain.steps(), range(10)):
        assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), plain.model.parameters()))
    assert set(own.method.rates.tolist()) == {EXACT}


def test_v1_the_schedule_of_the_run_is_not_the_weights(recipe, blobs):
    recipe["training"] |= {"schedule": "cosine"}
    found = []
    made = trainer(recipe, blobs, method=TRS | {"eta": 0.0, "scope": "layer"})
    run(made, lambda made: found.append((made.optimizer.lr, *made.method.rates.tolist())))
    runs, *weights = zip(*found)
    assert runs[-1] < 1e-2 * runs[0]
    assert len(weights) == 6 and {rate for rates in weights for rate in rates} == {torch.tensor(2e-3).item()}


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_v1_at_rate_zero_weights_stand_still(recipe, blobs, kind):
    """To the bit, whatever the momentum, while all else is learned."""
    made = trainer(recipe, blobs, method=TRS | {"optimizer": kind, "lambda": 0.0, "eta": 1e3})
    steps = made.steps()
    next(steps)
    while made.method.rates.item() > 0:  # until a first code has changed
        next(steps)
    assert any(value.any() for value in made.method.optimizers[0].slots()["mean" if kind == "adam" else "velocity"])
    before = [(name, parameter.detach().clone()) for name, parameter in made.model.named_parameters()]
    for _ in range(3):
        next(steps)
    for (name, old), parameter in zip(before, made.model.parameters()):
        assert torch.equal(parameter, old) == name.endswith("weight"), name


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_v1_shares_are_those_of_the_forward_codes(recipe, blobs, scope):
    """K and U, recounted from the codes of every forward pass; a layer of its own width has its own target."""
    made = trainer(recipe, blobs, method=TRS | {"scope": scope, "eta": 0.01}, first_last_bits=8)
    widths, sizes = made.quantizer.widths, made.quantizer.sizes
    assert widths == [8, 3, 3, 3, 3, 8]
    if scope == "network":
        widths, sizes = [3], [sum(sizes)]
    rates, averages = ([value] * len(sizes) for value in (2e-3, 0.0))
    previous, steps = made.quantizer.codes.clone(), made.steps()
    for step in range(9):
        codes = made.quantizer.codes.clone()
        shares = [(a != b).double().mean().item() for a, b in zip(codes.split(sizes), previous.split(sizes))]
        averages = [0.99 * average + 0.01 * share for average, share in zip(averages, shares)]
        targets = [5e-3 * math.sqrt(b) * (1 + math.cos(math.pi * step / 40)) / 2 for b in widths]
        rates = [max(0.0, u + 0.01 * (r - k)) for u, r, k in zip(rates, targets, averages)]
        next(steps)
        previous = codes
        assert made.method.averages.tolist() == pytest.approx(averages, rel=1e-5)
        assert made.method.rates.tolist() == pytest.approx(rates, rel=1e-5)
    assert min(averages) > 0


def test_v1_weights_beyond_the_last_level_receive_no_gradient():
    method = Trs(Trs.Options(bits=2))
    quantizer = method.make_quantizer({"w": torch.tensor([1.0, -1.0, 0.25, -0.5])}, {})
    method.begin(quantizer)
    quantizer.weights[0].copy_(torch.tensor([1.25, -1.25, 1.0, -1.0]))
    quantizer.update()
    grads = [torch.full((4,), 3.0)]
    method.after_backward(quantizer, grads, at(0.0))
    assert grads[0].tolist() == [0, 0, 3, 3]
    assert quantizer.quantized[0] is not grads[0] and quantizer.weights[0].grad is grads[0]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_v1_the_weights_that_scales_come_from_receive_their_gradient(bits, per_channel):
    """Whatever the rounding of max|w| / Q times Q."""
    torch.manual_seed(0)
    method = Trs(Trs.Options(bits=bits, per_channel=per_channel))
    quantizer = method.make_quantizer({f"w{i}": torch.randn(20, 30) for i in range(30)}, {})
    method.begin(quantizer)
    quantizer.update()
    grads = [torch.ones(20, 30) for _ in quantizer.weights]
    method.after_backward(quantizer, grads, at(0.0))
    assert all(grad.all() for grad in grads)


def test_the_runs_optimizer_holds_all_other_parameters(recipe, blobs):
    """And their weight decays; the gradients of the method's are fresh in every step."""
    recipe["training"] |= {"weight_decay": 0.1, "decay": "matrices"}
    changes = {"model": {"name": "resnet18", "width": 8}, "quant_layers": ["layer1.*", "fc"]}
    made, plain = (trainer(recipe, blobs, method=method, **changes) for method in (TRS, QAT))
    quantized = {id(parameter) for parameter in made.network.parameters}
    assert [id(p) for p in made.optimizer.parameters] == [
        id(p) for p in made.model.parameters() if id(p) not in quantized
    ]
    decaying = [p for p, decay in zip(made.optimizer.parameters, made.optimizer.decays) if decay]
    assert decaying and all(parameter.dim() > 1 for parameter in decaying)
    assert set(made.optimizer.decays) == {0.0, 0.1}
    assert [id(p) for p in plain.optimizer.parameters] == [id(p) for p in plain.model.parameters()]
    x, y = made.sets["train"].batch(slice(0, 32))
    made.step(x, y)
    before = made.network.parameters[0].grad
    made.step(x, y)
    assert made.network.parameters[0].grad is not before


def test_resuming_with_every_option_changes_nothing(recipe, blobs):
    recipe["training"] |= {"optimizer": "sgd", "lr": 0.05, "schedule": "cosine", "epochs": 2}
    method = TRS | {"optimizer": "sgd", "scope": "layer"}
    whole, first = run(trainer(recipe, blobs, method=method)), trainer(recipe, blobs, method=method)
    for _ in zip(range(13), first.steps()):
        pass
    state = {key: value.clone() for key, value in first.state().items()}
    again = trainer(recipe, blobs, method=method)
    again.load_state(state)
    assert same_state(run(again), whole)
