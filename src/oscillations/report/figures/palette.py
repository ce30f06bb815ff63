"""Colours of the figures (Okabe and Ito's, which colour-blind readers can tell apart), one meaning each."""

from oscillations.core.bits import LATENT

BLACK, GREY, LIGHT = "#000000", "#7a7a7a", "#e6e6e6"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
METHODS = {"qat": BLUE, "osciquant": VERMILION}
BITS = {LATENT: BLACK, 2: ORANGE, 3: GREEN, 4: SKY, 8: PURPLE}
MARKERS = {LATENT: "|", 2: "v", 3: "o", 4: "s", 8: "D"}  #: of bit widths, where they are no lines
#: Colours and markers of series that have no colour of their own.
SERIES = [
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (VERMILION, "D"),
    (PURPLE, "v"),
    (SKY, "P"),
    (BLACK, "X"),
    (GREY, "*"),
]
DIVERGING = "RdBu"  #: colour map of differences: red below, blue above
