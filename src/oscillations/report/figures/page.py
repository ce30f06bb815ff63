"""The page that figures are made for: its width, its letters, and the resolution of the pictures.

Figures are drawn in the size that they have in print, so a letter's size is what a reader sees.
"""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import seaborn as sns

WIDTH = 6.75  #: of the text, in inches; no figure is wider
SMALL = 7.2  #: pt, of notes inside a panel; nothing is smaller
sns.set_theme(
    style="ticks",
    rc={
        "pdf.fonttype": 42, "svg.hashsalt": "0", "figure.constrained_layout.use": True, "figure.titlesize": 8.5,
        "font.size": SMALL, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize":
        7.5, "legend.fontsize": 7.5, "legend.frameon": False, "axes.linewidth": 0.7, "xtick.major.width": 0.7,
        "ytick.major.width": 0.7, "ytick.minor.width": 0.5, "ytick.minor.size": 1.5, "xtick.major.size": 3,
        "ytick.major.size": 3, "lines.linewidth": 1.4, "axes.spines.top": False, "axes.spines.right": False,
    },
)  # fmt: skip


def plain(value: float, _: Any = None) -> str:
    """A tick's label without an exponent, whose letters would be too small."""
    return f"{value:g}".replace("-", "−")


def signed(value: float, _: Any = None) -> str:
    return plain(value) if value <= 0 else f"+{value:g}"
