"""What each figure shows, by its number."""

from __future__ import annotations

from oscillations.study.report_schema import figure_number

DPI = 200  #: pixels of a picture per inch of it
SCREEN = 128  #: pixels of a screen per inch of a figure: letters of 8 pt are about as high as a page's own
CAPTIONS = {
    "figure-film": "How the weights of one layer lie on their grid (density, logarithmic), at the start and after "
    "every epoch. Dashed: thresholds between levels; near: within 5 % of a step of one.",
    "figure1": "One quantized weight under QAT: it cannot rest at its target and oscillates around the threshold "
    "(exact; x = 1, y = 0.75, s = 1, learning rate 0.15).",
    "figure2": "Where the latent weights of one layer lie on their quantization grid, at the best epoch of every "
    "seed, all seeds together. Top: over the whole grid, in steps s, as a density on a logarithmic axis. Bottom: all "
    "steps laid over each other, as a density over the signed distance to the nearest threshold. Dashed: thresholds; "
    "grey line: uniform weights; near: within 5 % of a step of a threshold.",
    "figure3": "Share of the quantized weights (%) that oscillate, i.e. change back. Top: seen once per epoch, as in "
    "the paper, from epoch 2 on; bottom: counted after every step and divided by the steps. Line and band: mean and "
    "range over n seeds, as far as all went; beyond, each seed to its last epoch (cross). Dotted: QAT.",
    "figure5": "Test accuracy (%, mean over n seeds) over learning rate and λ; colours: difference to QAT at its best "
    "rate, or to the best cell where there is no QAT.",
    "figure6": "Test accuracy (%) over λ, from 0. Points and numbers: mean over n seeds, bars: standard deviation; "
    "lines: means of the same experiments' FP baseline, its PTQ, and QAT.",
    "figure7": "Validation accuracy (%) at every bit width while training; thick: the width trained for. Below, the "
    "difference to the latent weights (points; linear to ±1, then logarithmic). Line and band: mean and range over n "
    "seeds, as far as all went.",
    "figure8": "Validation accuracy (%) of the latent weights (dashed) and at the width trained for (thick). Line and "
    "band: mean and range over n seeds, as far as all went.",
    "figure-comparison": "Every method that has run, best first in its family. Left: test accuracy at the target bits "
    "less that of the family's QAT (with scales per channel, of QAT's so where there is one), in points: mean over n "
    "seeds, bar: 95 % interval of the paired difference (from 3 seeds; it may go on beyond the panel), small dots "
    "below: seeds; lines: full precision of what the family starts from, and its PTQ. An arrow: beyond the axis, by "
    "the number beside it. §: judged at the end of training, against QAT's end. Hollow and ‡: weights kept from before "
    "the method's own phase. Right: mean test accuracy (%) at every width.",
    "figure-gain": "What explains the gain over PTQ: ways to quantize one network. Left: test accuracy (%), mean over "
    "n seeds and, small, each seed; bars: the same networks at full precision. Right: difference to OsciQuant "
    "(points), paired by seed, with its 95 % interval.",
    "figure-aoq": "AOQ's toy experiment: 10,000 weights of -2, -1, 0 or 1 are to be found from 2,000 examples. Left: "
    "where weights end, and how many of these are right (full colour). Right: how many in all. Mean over seeds; bars: "
    "their range, points: single seeds.",
    "figure-rates": "What a learning rate gives: test accuracy (%) at the width trained for, of QAT and of OsciQuant "
    "at every λ, beside 3-bit PTQ of the baseline of the same rate. Points: mean over n seeds, bars: standard "
    "deviation; dotted: published.",
    "figure-reconstruction": "Relative loss |z_q - z|² / |z|² of the outputs of the network's units along its depth, "
    "on the calibration images, after post-training quantization (logarithmic). Line and band: mean and range over n "
    "seeds; rises are what MRECG calls oscillation. Methods whose losses agree to 1 % share a line; units without a "
    "loss have no mark.",
    "figureA1": "Two weights in series under QAT (exact; x = 1, y = 0.75, s = 1). Beside the oscillation term of one "
    "weight (a) there is a drift that the rounding error of the other weight makes (b); descent ends elsewhere than "
    "oscillation alone would lead (c). The length of an arrow is the root of the strength.",
    "figureA5": "What counting makes of a code (exact). Nagel's rule counts a change opposite to the previous one: it "
    "misses the first crossing of every run (a) and chains changes however far apart (c, d). Sampled once per epoch, "
    "a weight that changes at every step counts always or never, by the parity of the steps (b). With a timeout, "
    "changes more than 2 steps apart belong to no common run.",
}


def title(name: str) -> str:
    """'Figure 2' of ``figure2``, 'Figure 2 (mlp5)' of ``figure2-mlp5``, 'Gain' of ``figure-gain``."""
    kind = figure_number(name)
    number, label = kind.removeprefix("figure"), name.removeprefix(kind).removeprefix("-")
    said = f"Figure {number}" if kind.startswith("figure") and number[0] != "-" else number.strip("-").capitalize()
    return f"{said} ({label})" if label else said
