"""Slices: the most significant bits of the codes of a wider grid, which stand for weights at fewer bits.

One checkpoint of ``base`` bits then serves every width below (Any-Precision DNNs, Yu et al. 2021, arXiv:1911.07346;
MatQuant, Nair et al. 2025, arXiv:2502.06786). Notation as in :mod:`oscillations.engine.quantizer`.
"""

from __future__ import annotations

from torch import Tensor

from oscillations.core.bits import SLICED, grid_of
from oscillations.engine.quantizer import rounded
from oscillations.engine.scales import max_scale


def sliced_codes(
    codes: Tensor, base: int, bits: int, grid: str = "sym_odd", tie: str = "half_even", how: str = "round"
) -> Tensor:
    """Codes of a grid's ``base`` bits at ``bits``, no more, in steps 2^(base - bits) times as wide; whole floats.

    ``how``: the nearest code of the narrower grid (``round``); that without its ends, one code more on the side of each
    (``extra``); or the leading bits as they are stored in two's complement, half a step too low on average (``floor``).
    On ``mid_rise`` all three are the same, and so are slices of slices: its thresholds are among the wider grid's. On
    the others ``round`` rounds for the second time.
    """
    narrow = grid_of(grid, bits)
    steps = (codes + narrow.offset) / 2 ** (base - bits)
    if how == "floor":
        return steps.floor()
    nearest = rounded(steps, tie, narrow.offset)
    return nearest if how == "extra" else nearest.clamp(narrow.low, narrow.high)


def sliced(weight: Tensor, bits: int, tie: str = "half_even", per_channel: bool = False) -> Tensor:
    """One tensor with the slices at ``bits`` of its codes of Eq. 1-2 at :data:`SLICED` bits."""
    scale = max_scale(weight, grid_of("sym_odd", SLICED), per_channel)
    codes = sliced_codes(rounded(weight / scale, tie), SLICED, bits, tie=tie)
    return codes * (scale * 2 ** (SLICED - bits))
