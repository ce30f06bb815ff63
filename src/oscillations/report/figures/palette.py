"""Colours of the figures (Okabe and Ito's, which colour-blind readers can tell apart), one meaning each."""

from oscillations.core.bits import LATENT

BLACK, GREY = "#000000", "#7a7a7a"
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
METHODS = {"qat": BLUE, "osciquant": VERMILION}
BITS = {LATENT: BLACK, 2: ORANGE, 3: GREEN, 4: SKY, 8: PURPLE}
