"""AOQ's toy experiment: where weights end, and how many are found."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from oscillations.records.rows import read_csv
from oscillations.report.figures.page import WIDTH
from oscillations.report.figures.palette import BLACK, BLUE, GREY, VERMILION
from oscillations.report.results import Report
from oscillations.study import paths

NAMED = {"pretrained": ("start, rounded", GREY), "lsq": ("LSQ", BLUE), "aoq": ("AOQ", VERMILION)}
BAR = 0.26  # width of a bar, of the distance of two levels


def toy_regression(report: Report) -> Figure | None:
    """Weights per level and weights found, for the start, LSQ and AOQ."""
    file = paths.toy_file(report.study.study)
    if not file.exists():
        return None
    rows = read_csv(file, ["method", "seed", "level", "weights", "right"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), width_ratios=(2, 1))
    levels, seeds = sorted(rows.level.unique()), rows.seed.nunique()
    total = rows[(rows.method == "aoq") & (rows.seed == rows.seed.iloc[0])].weights.sum()
    for place, (method, (label, color)) in enumerate(NAMED.items()):
        mine = rows[rows.method == method]
        at = np.arange(len(levels)) + (place - 1) * BAR
        shares = 100 * mine.pivot(index="level", columns="seed", values="weights") / total
        right_ones = 100 * mine.pivot(index="level", columns="seed", values="right") / total
        spread = (shares.mean(axis=1) - shares.min(axis=1), shares.max(axis=1) - shares.mean(axis=1))
        left.bar(at, shares.mean(axis=1), BAR, color=color, alpha=0.35, lw=0, yerr=spread, capsize=2)
        left.bar(at, right_ones.mean(axis=1), BAR, color=color, lw=0, label=label)
        found = mine.drop_duplicates("seed").matches
        right.bar(place, found.mean(), 0.6, color=color, lw=0)
        right.plot([place] * len(found), found, "o", ms=3, color=BLACK, mfc="white")
        right.annotate(
            f"{found.mean():,.0f}", (place, found.max()), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    left.axhline(100 / len(levels), color=BLACK, ls=":", lw=1.2, label="truth; right: chance")
    left.set(xlabel="level", ylabel="weights (%)", title="Where the weights end (full colour: rightly)")
    left.set_xticks(range(len(levels)), levels)
    figure.legend(loc="outside lower center", ncols=4)
    right.axhline(total / len(levels), color=BLACK, ls=":", lw=1.2)
    right.margins(y=0.12)
    right.set(ylabel=f"weights found, of {total:,}", title="On their true level")
    right.set_xticks(range(len(NAMED)), [label.replace(", ", ",\n") for label, _ in NAMED.values()])
    figure.suptitle(f"Linear regression at 2 bits, {rows.epochs.iloc[0]} epochs, n = {seeds}")
    return figure
