"""Statistics of one layer's weights that show range, clustering and drift (methods section 4.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import reduced

BINS_PER_STEP = 20
NEAR = 0.05  #: a weight is "near" a threshold if it lies within this share of a step from it


def weight_statistics(weight: Tensor) -> dict[str, float]:
    """Range and shape of the latent weights, whatever the bits."""
    w = weight.detach().double()
    centred = w - w.mean()
    variance = centred.square().mean()
    return {
        "norm": w.norm().item(),
        "max_over_std": (w.abs().amax() / w.std(correction=0)).item(),
        "kurtosis": (centred.pow(4).mean() / variance.square()).item(),
    }


def grid_statistics(quantizer: WeightQuantizer, i: int) -> dict[str, float | str]:
    """How the weights of tensor ``i`` lie on their quantization grid.

    ``near_threshold``: share with |frac(u) - 1/2| < 0.05, where u is the weight in steps, thresholds at
    half-integers, and frac is taken modulo 1 (uniform: 0.1). ``error``: mean |q - w| / s (uniform: 0.25).
    ``drift``: sum w (q - w), positive if the error points outwards. ``level_shares``: share per level from the
    lowest to the highest code; ``share_zero`` that of code 0, where it is the level zero.
    """
    weight, scale, grid = quantizer.weights[i], quantizer.scales[i].double(), quantizer.grids[i]
    u = quantizer.position(i).double()
    shares = torch.bincount(quantizer.code_views[i].long().flatten() - grid.low, minlength=grid.levels).double()
    shares /= u.numel()
    error = (quantizer.quantized[i] - weight).double()
    return {
        "near_threshold": ((u - u.floor() - 0.5).abs() < NEAR).double().mean().item(),
        "error": (error.abs().mean(reduced(weight, scale.dim() > 0), keepdim=scale.dim() > 0) / scale).mean().item(),
        "drift": (weight.double() * error).sum().item(),
        "share_zero": 0.0 if grid.offset else shares[-grid.low].item(),
        "level_shares": " ".join(f"{share:.5f}" for share in shares.tolist()),
    }


def histogram(quantizer: WeightQuantizer, i: int) -> dict[float, int]:
    """Counts of the weights of tensor ``i`` over their grid: by the centre of each bin, in steps (levels at integers).

    Bins are 1/20 of a step wide, and the first and the last are centred on the outermost levels: what lies farther out,
    as it may where the scale is not that of the largest weight, is not counted.
    """
    low, high, _ = quantizer.grids[i]
    half = 0.5 / BINS_PER_STEP
    centres = torch.linspace(low, high, (high - low) * BINS_PER_STEP + 1)
    counts = torch.histc(quantizer.position(i).float().cpu(), bins=len(centres), min=low - half, max=high + half)
    return {round(u, 4): int(n) for u, n in zip(centres.tolist(), counts.tolist())}
