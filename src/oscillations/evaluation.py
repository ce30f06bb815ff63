"""Evaluation of checkpoints: PTQ of the baseline and cross-bit accuracy of everything else, on the test split.

All runs of an experiment are evaluated in one process. Rows whose run, checkpoint and code are unchanged are kept,
without their weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from oscillations import datasets
from oscillations.batches import ImageSet, image_sets
from oscillations.crossbit import accuracies, histograms
from oscillations.device import set_up_torch
from oscillations.files import write_table
from oscillations.records import evaluation_key, sort_runs
from oscillations.runs import DATA, load_checkpoint, new_trainer, remove_work
from oscillations.study import Run, Variant
from oscillations.training import Trainer

COLUMNS = ["run", "key", "eval_bits", "bn", "accuracy", "bn_divergence"]
HISTOGRAM_COLUMNS = ["run", "key", "layer", "bits", "scale", "u", "count"]


def evaluation_files(study: str, experiment: str) -> tuple[Path, Path]:
    """Accuracies, and histograms of the weights, of one experiment."""
    folder = Path("results", study, "runs", experiment)
    return folder / "evaluations.csv", folder / "histograms.csv"


def evaluate(
    study: str, experiment: str, variants: list[Variant], device: str = "auto", with_histograms: bool = True
) -> None:
    """Write the accuracies and weight histograms of all current runs among ``variants``.

    The histograms of a large study are many times larger than all else that git holds of it: only studies that draw
    weights have them.
    """
    torch_device = set_up_torch(variants[0].recipe, device)
    accuracy_file, histogram_file = evaluation_files(study, experiment)
    known, known_bins = _read(accuracy_file, COLUMNS), _read(histogram_file, HISTOGRAM_COLUMNS)
    about = sets = None
    tables, all_bins, evaluated, seconds = [], [], 0, 0.0
    for variant, run, record in sort_runs(variants)[0]:
        key = evaluation_key(record)
        mine, bins = known[known.key == key], known_bins[known_bins.key == key]
        if mine.empty or (with_histograms and bins.empty and "bits" in variant.recipe["method"]):
            if about is None:
                about, tensors = datasets.read(variant.recipe["data"], DATA)
                sets = image_sets(about, tensors, variant.recipe, torch_device)  # the same for a whole experiment
            started = time.monotonic()
            trainer = trained(variant, run, about, sets, torch_device)
            prefix = {"run": run.name, "key": key}
            mine = pd.DataFrame([prefix | row for row in accuracies(trainer, record["status"] == "done")])
            bins = pd.DataFrame([prefix | row for row in histograms(trainer)] if with_histograms else [])
            evaluated, seconds = evaluated + 1, seconds + time.monotonic() - started
            print(f"{run.name}: evaluated", flush=True)
        tables.append(mine)
        all_bins.append(bins if with_histograms else bins.iloc[:0])
        if (run.work / "run.json").exists():  # finished and in place
            remove_work(run)
    write_table(histogram_file, all_bins, HISTOGRAM_COLUMNS)
    write_table(accuracy_file, tables, COLUMNS)
    print(f"{experiment}: {evaluated} runs evaluated in {seconds:.2f} s")


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    """A table of an earlier evaluation; one without keys is of no use."""
    found = pd.read_csv(file, dtype={"key": str}) if file.exists() else pd.DataFrame(columns=columns)
    return found if "key" in found else pd.DataFrame(columns=columns)


def trained(
    variant: Variant, run: Run, about: dict[str, Any], sets: dict[str, ImageSet], device: torch.device
) -> Trainer:
    """A trainer that holds the run's checkpoint."""
    trainer = new_trainer(variant, run, about, sets, device)
    trainer.load_trained(load_checkpoint(run))
    return trainer
