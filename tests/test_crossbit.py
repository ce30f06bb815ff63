"""Evaluation at other bit widths: how far batch-norm statistics are from those of the quantized weights."""

import math

import pytest
import torch
from torch import nn

from oscillations.engine.accuracy import reestimated_norms
from oscillations.engine.batches import ImageSet
from oscillations.engine.crossbit import norm_divergence, norm_statistics


def test_the_divergence_of_gaussians():
    def layer(mean, variance):
        return [(torch.tensor(mean), torch.tensor(variance))]

    assert norm_divergence(layer([1.0], [2.0]), layer([1.0], [2.0])) == 0
    assert norm_divergence(layer([3.0], [1.0]), layer([1.0], [1.0])) == pytest.approx(2.0)  # (m1 - m2)^2 / 2
    assert norm_divergence(layer([0.0], [4.0]), layer([0.0], [1.0])) == pytest.approx((3 - math.log(4)) / 2)
    assert norm_divergence(layer([0.0, 2.0], [1.0, 1.0]), layer([0.0, 0.0], [1.0, 1.0])) == pytest.approx(1.0)


def test_n4_the_divergence_sees_what_reestimation_mends():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
    images = ImageSet(torch.randint(0, 255, (256, 1, 8, 8), dtype=torch.uint8), torch.zeros(256), [0.5], [0.25])
    with reestimated_norms(model, images):
        fresh = model[2].running_mean.clone(), model[2].running_var.clone()
    model[2].running_mean.copy_(fresh[0])
    model[2].running_var.copy_(fresh[1])
    kept = norm_statistics(model)
    with reestimated_norms(model, images):
        assert norm_divergence(norm_statistics(model), kept) == pytest.approx(0, abs=1e-6)
    model[1].weight.data.mul_(2)
    with reestimated_norms(model, images):
        assert norm_divergence(norm_statistics(model), kept) > 0.1
    assert norm_statistics(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))) == []
