"""Evaluation of checkpoints: PTQ of the baseline and cross-bit accuracy of everything else, on the test split.

All runs of an experiment are evaluated in one process. Rows whose checkpoint and code are unchanged are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from oscillations import datasets
from oscillations.crossbit import accuracies, histograms
from oscillations.files import read_json, write_text
from oscillations.fingerprint import fingerprint
from oscillations.runs import DATA, load_checkpoint, remove_work, set_up_torch
from oscillations.study import Run, Variant
from oscillations.training import Trainer, make_trainer

COLUMNS = ["run", "checkpoint_sha256", "code", "eval_bits", "bn", "accuracy"]
HISTOGRAM_COLUMNS = ["run", "layer", "bits", "scale", "u", "count"]


def evaluation_files(study: str, experiment: str) -> tuple[Path, Path]:
    """Accuracies, and histograms of the weights, of one experiment."""
    folder = Path("results", study, "runs", experiment)
    return folder / "evaluations.csv", folder / "histograms.csv"


def evaluate(study: str, experiment: str, variants: list[Variant], device: str = "auto") -> None:
    """Write the accuracies and weight histograms of all trained runs among ``variants``."""
    torch_device = set_up_torch(variants[0].recipe["threads"], device)
    accuracy_file, histogram_file = evaluation_files(study, experiment)
    code = fingerprint("crossbit")
    known, known_bins = _read(accuracy_file, COLUMNS), _read(histogram_file, HISTOGRAM_COLUMNS)
    known = known[known.code == code]
    about = tensors = None
    tables, all_bins = [], []
    for variant in variants:
        for run in variant.runs():
            if not run.record.exists():
                continue
            record = read_json(run.record)
            mine = known[(known.run == run.name) & (known.checkpoint_sha256 == record["checkpoint_sha256"])]
            bins = known_bins[known_bins.run == run.name]
            if mine.empty:
                if about is None:
                    about, tensors = datasets.read(variant.recipe["data"], DATA)
                trainer = _trained(variant, run, about, tensors, torch_device)
                prefix = {"run": run.name, "checkpoint_sha256": record["checkpoint_sha256"], "code": code}
                done = record["status"] == "done"
                mine = pd.DataFrame([prefix | row for row in accuracies(trainer, done)])
                bins = pd.DataFrame([{"run": run.name} | row for row in histograms(trainer)])
                print(f"{run.name}: evaluated", flush=True)
            tables.append(mine)
            all_bins.append(bins)
            remove_work(run)
    for file, frames, columns in (
        (accuracy_file, tables, COLUMNS),
        (histogram_file, all_bins, HISTOGRAM_COLUMNS),
    ):
        filled = [frame for frame in frames if len(frame)]
        whole = pd.concat(filled) if filled else pd.DataFrame(columns=columns)
        write_text(file, whole[columns].to_csv(index=False, lineterminator="\n"))


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"code": str}) if file.exists() else pd.DataFrame(columns=columns)


def _trained(
    variant: Variant, run: Run, about: dict[str, Any], tensors: dict[str, torch.Tensor], device: torch.device
) -> Trainer:
    """A trainer that holds the run's checkpoint, its quantizer set up as at the start of training."""
    parent = variant.parent(run.seed)
    start = None if parent is None else load_checkpoint(parent)
    trainer = make_trainer(variant.recipe, run.seed, about, tensors, device, start)
    weights = load_checkpoint(run)
    with torch.no_grad():
        for key, value in trainer.model.state_dict().items():
            value.copy_(weights[key])
    if trainer.quantizer is not None:
        trainer.quantizer.update()
    return trainer
