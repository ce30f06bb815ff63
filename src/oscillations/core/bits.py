"""Names, sizes and grids of bit widths."""

from typing import NamedTuple

LATENT = 32  #: "bits" of the unquantized weights, in every record and table
SLICED = 8  #: bits of the codes whose most significant ones are a slice
REQUANTIZE, SLICE = "requantize", "slice"  #: rules of cross-bit evaluation, by the names that studies and tables have


def largest_code(bits: int) -> int:
    """Q of Eq. 2; the symmetric grid has 2 Q + 1 levels."""
    return 2 ** (bits - 1) - 1


def bit_name(bits: int) -> str:
    """``ternary`` is what the paper calls 2 bits: three levels."""
    return "ternary" if bits == 2 else f"{bits}bit"


def input_name(bits: int | None) -> str:
    """What the name of a variant with inputs quantized to ``bits`` has at its end; nothing without."""
    return "" if bits is None else f"-a{bits}"


class Grid(NamedTuple):
    """Integer codes ``low`` to ``high``; code k stands for the level (k + offset) s, thresholds lie halfway."""

    low: int
    high: int
    offset: float = 0.0

    @property
    def levels(self) -> int:
        return self.high - self.low + 1


def grid_of(name: str, bits: int) -> Grid:
    """The grid of that name.

    ``sym_odd``: -Q to Q (Eq. 1-2). ``lsq``: one more negative level (Esser et al. 2020), but -1, 0, 1 at 2 bits;
    ``lsq_full`` has it there, too. ``mid_rise``: 2^b levels around zero, which is a threshold.
    """
    limit = largest_code(bits)
    return {
        "sym_odd": Grid(-limit, limit),
        "lsq": Grid(-limit if bits == 2 else -limit - 1, limit),
        "lsq_full": Grid(-limit - 1, limit),
        "mid_rise": Grid(-limit - 1, limit, 0.5),
    }[name]
