"""Names and numbers as people read them."""

from __future__ import annotations

import pandas as pd

from oscillations.core.bits import LATENT

METHOD_NAMES = {
    "baseline": "FP32 baseline", "ptq": "PTQ", "qat": "QAT", "osciquant": "OsciQuant", "kure": "KURE",
    "range-penalty": "Range penalty", "pseudo-noise": "Pseudo-noise", "signed": "Signed schedule", "lsq": "LSQ",
    "dampening": "Dampening", "freezing": "Freezing", "osciquant-freezing": "OsciQuant + freezing", "aoq": "AOQ",
    "bin-regularization": "Bin regularization", "statsq": "StatsQ", "cga": "StatsQ + CGA", "gradient-l1": "Gradient-L1",
    "ema": "EMA", "qc": "QC", "parq": "PARQ", "dual-lsq": "Dual-LSQ", "trs": "TRS", "q-ramping": "Q-Ramping (window)",
    "osci-reset": "OsciReset", "q-ema": "Q-EMA", "nearest": "Nearest", "adaround": "AdaRound", "brecq": "BRECQ",
    "qdrop": "QDrop", "mrecg": "MRECG",
}  # fmt: skip
MODEL_NAMES = {"mlp5": "MLP5", "resnet18": "ResNet-18", "vit-tiny": "ViT-Tiny", "mobilenetv2": "MobileNetV2"}


def count(n: int, noun: str, several: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"{n} {noun if n == 1 else several or f'{noun}s'}"


def bits_label(bits: int) -> str:
    return {LATENT: "FP32", 2: "ternary"}.get(bits, f"{bits}-bit")


def plus_minus(mean: float, std: float, digits: int = 2) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.{digits}f}" if pd.isna(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def with_interval(value: float, low: float, high: float, digits: int = 2, sign: str = "+") -> str:
    """``+1.00 [-1.48, +3.48]``; without an interval where there is none, nothing without a value."""
    if pd.isna(value):
        return ""
    text = f"{value:{sign}.{digits}f}"
    return text if pd.isna(low) else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
