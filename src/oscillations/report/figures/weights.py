"""Figure 2: where the latent weights lie on their quantization grid."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oscillations.core.bits import Grid, grid_of
from oscillations.records.rows import read_csv
from oscillations.report.figures.page import SMALL, plain
from oscillations.report.figures.palette import BLACK, GREY
from oscillations.report.figures.panels import columns_of_panels, method_color
from oscillations.report.results import Report
from oscillations.study import paths
from oscillations.study.paths import experiment_of
from oscillations.study.report_schema import WeightPanels

BIN = 0.05  #: width of a histogram's bin, in steps; weights nearer than this to a threshold are "near" it


def figure2(spec: WeightPanels, report: Report) -> Figure | None:
    """Top: over the whole grid, logarithmic. Bottom: all steps laid over each other, linear, beside a uniform's."""
    histograms = {path: _histogram(spec.layer, path, report) for path in spec.panels}
    shown = [path for path, shares in histograms.items() if len(shares)]
    if not shown:
        return None
    kept = sorted({next(iter(report.recipes[path].training.kept)) for path in shown})
    title = f"{spec.layer} at the {' and '.join(kept)} epochs"
    figure, grid = columns_of_panels(shown, spec.panels, report, title, rows=2, height=1.5, sharex=False)
    for path, (whole, step) in zip(shown, grid.T):
        shares, levels, color = histograms[path], _grid(path, report), method_color(report.recipes[path])
        whole.bar(shares.index + levels.offset, shares / BIN, width=BIN, color=color, lw=0)
        for threshold in np.arange(levels.low, levels.high) + 0.5 + levels.offset:
            whole.axvline(threshold, color=BLACK, ls="--", lw=0.6, zorder=0)
        whole.set(yscale="log", xlim=(levels.low + levels.offset - 0.15, levels.high + levels.offset + 0.15))
        whole.yaxis.set_major_formatter(plain)
        whole.set_xlabel("w / s (steps)")
        folded = _folded(shares)
        both_ends = pd.concat([folded, folded[folded.index == -0.5].rename({-0.5: 0.5})])
        step.bar(both_ends.index, both_ends / BIN, width=BIN, color=color, lw=0)
        step.axhline(1, color=GREY, lw=1)
        step.axvline(0, color=BLACK, ls="--", lw=0.6, zorder=0)
        step.set_title(f"near: {100 * _near(folded):.0f} %\nuniform: {200 * BIN:.0f} %", fontsize=SMALL)
        step.set(xlabel="to the threshold (steps)", xlim=(-0.5, 0.5), xticks=(-0.5, 0, 0.5))
        step.xaxis.set_major_formatter(plain)
    grid[0][0].set_ylabel("density\n(log scale)")
    grid[1][0].set_ylabel("density\n(linear)")
    return figure


def _histogram(layer: str, path: str, report: Report) -> pd.Series:
    """Share of a layer's weights by place on the grid (steps, levels at integers) in all current runs of a variant."""
    _, file = paths.evaluation_files(report.study.study, experiment_of(path))
    if not file.exists():
        return pd.Series(dtype=float)
    tests = report.results.tests
    runs = [paths.Run.of(run).name for run in tests[tests.path == path].run]
    bins = read_csv(file, ["run", "layer", "u", "count"])
    counts = bins[(bins.layer == layer) & bins.run.isin(runs)].groupby("u")["count"].sum()
    return counts / counts.sum()


def _grid(path: str, report: Report) -> Grid:
    """The grid that the variant was trained on."""
    tests, bits = report.results.tests, report.recipes[path].bits
    return grid_of(tests[(tests.path == path) & (tests.eval_bits == bits)].grid.iloc[0], bits)


def _folded(shares: pd.Series) -> pd.Series:
    """The shares by signed distance to the nearest threshold, which lie at half-integers."""
    distance = (shares.index.to_numpy() % 1 - 0.5).round(4)
    return shares.groupby(distance).sum()


def _near(folded: pd.Series) -> float:
    """Share of the weights within ``BIN`` of a threshold; the bins at its ends count half."""
    distance = folded.index.to_series().abs()
    return float(folded[distance < BIN / 2].sum() + folded[(distance > BIN / 2) & (distance < 1.5 * BIN)].sum() / 2)
