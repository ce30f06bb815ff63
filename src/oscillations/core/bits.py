"""Names and sizes of bit widths."""

LATENT = 32  #: "bits" of the unquantized weights, in every record and table


def largest_code(bits: int) -> int:
    """Q of Eq. 2; the symmetric grid has 2 Q + 1 levels."""
    return 2 ** (bits - 1) - 1


def bit_name(bits: int) -> str:
    """``ternary`` is what the paper calls 2 bits: three levels."""
    return "ternary" if bits == 2 else f"{bits}bit"
