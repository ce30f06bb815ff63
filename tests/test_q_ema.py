"""Q-EMA: golden values, its relation to QAT, the one-weight model, and what a checkpoint holds (V2)."""

import pytest
import torch
from conftest import at
from test_training import run, trainer

from oscillations.methods.q_ema import QEma


def decided(weight, average, scale=None, **options):
    """A quantizer whose averages decide, at given scales or Eq. 2's; double precision."""
    given = {} if scale is None else {"scale_source": "frozen_max"}
    weight = torch.tensor(weight, dtype=torch.float64)
    quantizer = QEma(QEma.Options(warmup_steps=0, **options, **given)).make_quantizer({"a": weight}, {})
    quantizer.averages[0].copy_(torch.tensor(average, dtype=torch.float64))
    if scale is not None:
        quantizer.scale.values = [torch.tensor(scale, dtype=torch.float64)]
    quantizer.update()
    return quantizer


def nearest(quantizer):
    quantizer.warmup_steps = 1
    quantizer.update()
    return quantizer


def test_v2_golden_values():
    weight = [0.9, -0.2, 0.45, -1.0, 0.17, -0.55, 0.10]
    quantizer = decided(weight, [0.8, -0.1, 0.6, -0.7, 0.15, -0.3, -0.4], bits=3)
    assert quantizer.codes.tolist() == [2, 0, 2, -3, 0, -1, 0]
    assert quantizer.quantized[0].tolist() == pytest.approx([2 / 3, 0, 2 / 3, -1, 0, -1 / 3, 0])
    assert nearest(quantizer).codes.tolist() == [3, -1, 1, -3, 1, -2, 0]


def test_v2_golden_values_of_the_release():
    """On FP4's levels: up to 2 they lie 0.5 apart, up to 4 they lie 1 apart, then 2."""
    weight = [6, -2.6, 0.3, -0.2, 1.2, 4.9, -3.4, 0.74]
    average = [5.9, -2.4, 0.2, -0.3, 1.3, 5.2, -3.6, -0.2]
    spacing = [2, 1, 0.5, 0.5, 0.5, 2, 1, 0.5]
    columns = ([[value] for value in row] for row in (weight, average, spacing))
    quantizer = decided(*columns, bits=4, per_channel=True)
    assert quantizer.quantized[0].flatten().tolist() == [6, -2, 0, -0.5, 1.5, 6, -4, 0.5]
    assert nearest(quantizer).quantized[0].flatten().tolist() == [6, -3, 0.5, 0, 1, 4, -3, 0.5]


def toy(start, decay, steps):
    """Gradient descent of (q - 3/4)^2 / 2 with step 1 by a rate of 0.15: the weights and codes of every step."""
    quantizer = decided([start], [start], 1.0, bits=3)
    weights, codes = [], []
    for _ in range(steps):
        weights.append(quantizer.weights[0].item())
        codes.append(quantizer.codes.item())
        quantizer.weights[0].sub_(0.15 * (quantizer.quantized[0] - 0.75))
        quantizer.follow(decay)
        quantizer.update()
    return weights, codes


def test_v2_the_one_weight_model():
    weights, codes = toy(0.13, 0.9, 24)
    expected = [0.13, 0.2425, 0.355, 0.4675, 0.58, 0.6925, 0.805, 0.9175, 1.03, 0.9925, 0.955, 0.9175]
    assert weights[:12] == pytest.approx(expected)
    assert codes == [0] * 8 + [1] * 16
    assert toy(0.13, 0.0, 16)[1] == [0] * 4 + [1, 1, 1, 0] * 3


@pytest.mark.parametrize("start", [0.1, 0.13, 0.27])
def test_v2_fewer_crossings_with_the_same_mean(start):
    rates = {}
    for decay in (0.0, 0.9):
        codes = torch.tensor(toy(start, decay, 5000)[1][1000:], dtype=torch.float64)
        assert codes.mean().item() == pytest.approx(0.75, abs=0.005)
        rates[decay] = codes.diff().abs().mean().item()
    assert rates[0.9] < 0.35 < rates[0.0]


def made(weight, **options):
    method = QEma(QEma.Options(**{"bits": 3} | options))
    quantizer = method.make_quantizer({"a": weight}, {})
    quantizer.update()
    return method, quantizer


class NoStep:
    def step(self):
        pass


def test_v2_constant_weights_change_no_code():
    torch.manual_seed(0)
    method, quantizer = made(torch.randn(40, 30))
    codes = quantizer.codes.clone()
    for _ in range(15):  # ten of them warm up
        method.step(NoStep(), quantizer, at(0.5))
        quantizer.update()
        assert torch.equal(quantizer.codes, codes)


@pytest.mark.parametrize("source", ["dynamic_max", "frozen_max", "mse"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_v2_codes_are_neighbours_and_the_largest_weight_keeps_its_own(source, bits, per_channel):
    torch.manual_seed(bits)
    for _ in range(20):
        weight = torch.randn(6, 50)
        _, quantizer = made(weight, bits=bits, scale_source=source, per_channel=per_channel, warmup_steps=0)
        quantizer.averages[0].normal_()
        quantizer.update()
        limit, codes = quantizer.grid.high, quantizer.code_views[0]
        assert codes.abs().max() <= limit
        inside = weight.abs() <= limit * quantizer.scales[0]
        distance = (quantizer.position(0) - codes).abs()
        assert distance[inside].max() <= 1 + 1e-4  # steps; nearest codes are within half of one
        assert distance[inside].max() > 0.6
        if source == "dynamic_max":
            largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().amax()
            at_max = weight.abs() == largest
            assert torch.equal(codes[at_max], (limit * weight[at_max].sign()).to(torch.int8))


def test_v2_averages_that_are_the_weights_give_the_nearest_codes():
    torch.manual_seed(0)
    for tie in ("half_even", "half_up"):
        weight = torch.randint(-12, 13, (50, 40)) / 4  # many on thresholds
        _, quantizer = made(weight, tie=tie)
        codes = quantizer.codes.clone()
        quantizer.steps = 10
        quantizer.update()
        assert torch.equal(quantizer.codes, codes)


def test_v2_without_memory_it_is_qat_with_a_detached_scale(recipe, blobs):
    qat = run(trainer(recipe, blobs, method={"name": "qat", "bits": 3, "scale_grad": "detach"}))
    forgetful, other = (
        run(trainer(recipe, blobs, method={"name": "q-ema", "bits": 3, "decay": decay})) for decay in (0.0, 0.9)
    )
    assert all(torch.equal(a, b) for a, b in zip(forgetful.model.parameters(), qat.model.parameters()))
    assert forgetful.progress.history == qat.progress.history
    assert not torch.equal(other.model.fc1.weight, qat.model.fc1.weight)


def test_v2_averages_decide_after_ten_steps(recipe, blobs):
    averaged = trainer(recipe, blobs, method={"name": "q-ema", "bits": 3, "decay": 0.99})
    qat = trainer(recipe, blobs, method={"name": "qat", "bits": 3, "scale_grad": "detach"})
    for n, _ in enumerate(zip(qat.steps(), averaged.steps()), start=1):
        assert torch.equal(qat.quantizer.codes, averaged.quantizer.codes) == (n < 10)
        if n == 10:
            break


def test_v2_averages_are_of_the_weights_from_the_first_step_on(recipe, blobs):
    quantizer = (made := trainer(recipe, blobs, method={"name": "q-ema", "bits": 3, "decay": 0.9})).quantizer
    expected = [weight.clone() for weight in quantizer.weights]
    for _ in zip(range(7), made.steps()):
        expected = [0.9 * mean + 0.1 * weight for mean, weight in zip(expected, quantizer.weights)]
    assert quantizer.steps == 7
    for mean, wanted in zip(quantizer.averages, expected):
        torch.testing.assert_close(mean, wanted)


def test_v2_a_checkpoint_holds_what_decides_its_codes(recipe, blobs):
    method = {"name": "q-ema", "bits": 3, "decay": 0.99}
    made = run(trainer(recipe, blobs, method=method))
    trained = {key: value.clone() for key, value in made.network.trained().items()}
    assert {"quantizer/steps", "quantizer/ema/fc1.weight"} <= trained.keys()
    again = trainer(recipe, blobs, method=method)
    again.network.load_trained(trained)
    assert torch.equal(again.quantizer.codes, made.quantizer.codes)
    again.quantizer.steps = 9
    again.quantizer.update()
    assert not torch.equal(again.quantizer.codes, made.quantizer.codes)


def test_v2_a_start_brings_no_averages(recipe, blobs):
    """Those of a fine-tune begin with the weights that it starts from."""
    made = trainer(recipe, blobs, method={"name": "q-ema", "bits": 3})
    for mean, weight in zip(made.quantizer.averages, made.quantizer.weights):
        assert torch.equal(mean, weight) and mean.data_ptr() != weight.data_ptr()
