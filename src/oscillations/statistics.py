"""Statistics of one layer's weights that show range, clustering and drift (methods section 4.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from oscillations.bits import largest_code

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


def grid_statistics(weight: Tensor, quantized: Tensor, scale: Tensor, bits: int) -> dict[str, float | str]:
    """How the weights lie on their quantization grid.

    ``near_threshold``: share with |frac(w/s) - 1/2| < 0.05, where frac is taken modulo 1 (uniform: 0.1).
    ``error``: mean |q - w| / s (uniform: 0.25). ``drift``: sum w (q - w), positive if the error points
    outwards. ``level_shares``: share per level from the lowest to the highest code.
    """
    u = (weight.detach() / scale).double()
    limit = largest_code(bits)
    codes = (quantized / scale).round().long()
    shares = torch.bincount(codes.flatten() + limit, minlength=2 * limit + 1).double() / u.numel()
    error = (quantized - weight.detach()).double()
    return {
        "near_threshold": ((u - u.floor() - 0.5).abs() < NEAR).double().mean().item(),
        "error": (error.abs().mean() / scale.double()).item(),
        "drift": (weight.detach().double() * error).sum().item(),
        "share_zero": shares[limit].item(),
        "level_shares": " ".join(f"{share:.5f}" for share in shares.tolist()),
    }
