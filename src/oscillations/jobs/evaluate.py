"""Evaluation of checkpoints: PTQ of the baseline and cross-bit accuracy of everything else, on the test split.

All runs of an experiment are evaluated in one process. Rows whose checkpoint and arithmetic are the same are kept,
without their weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from oscillations import datasets
from oscillations.core.bits import LATENT, REQUANTIZE
from oscillations.engine.batches import ImageSet, image_sets
from oscillations.engine.crossbit import accuracies, histograms
from oscillations.engine.determinism import set_up_torch
from oscillations.jobs.holders import held, holder_of
from oscillations.jobs.networks import trained
from oscillations.jobs.train import remove_work
from oscillations.records.identity import evaluation_key, evaluation_parts
from oscillations.records.numerics import written
from oscillations.records.plans import current, plans
from oscillations.records.rows import EVALUATIONS, HISTOGRAMS, current_rows, read_rows, write_rows
from oscillations.study.paths import DATA, evaluation_files, evaluation_work
from oscillations.study.variants import Variant


def evaluate(
    study: str, experiment: str, variants: list[Variant], device: str = "auto", with_histograms: bool = True,
    rules: Sequence[str] = (REQUANTIZE,),
) -> None:  # fmt: skip
    """Write the accuracies, by every rule, and weight histograms of all current runs of an experiment.

    ``variants``: all of the study, since what starts from a stale run is stale.
    The histograms of a large study are many times larger than all else that git holds of it: only studies that draw
    weights have them.
    """
    with held([evaluation_work(study, experiment)]):
        _evaluate(study, experiment, variants, device, with_histograms, rules)


def _evaluate(
    study: str, experiment: str, variants: list[Variant], device: str, with_histograms: bool, rules: Sequence[str]
) -> None:
    first = next(variant.recipe for variant in variants if variant.experiment == experiment)
    torch_device = set_up_torch(first.threads, first.training.precision, device)
    accuracy_file, histogram_file = evaluation_files(study, experiment)
    known, known_bins = read_rows([accuracy_file], EVALUATIONS), read_rows([histogram_file], HISTOGRAMS)
    about: dict[str, Any] = {}
    sets: dict[str, ImageSet] = {}
    tables: list[pd.DataFrame] = []
    all_bins, evaluated, seconds = [], 0, 0.0
    found = current(plan for plan in plans(variants) if plan.run.experiment == experiment)
    for plan, selection, checkpoint in [(one, *kept) for one in found for kept in one.kept.items()]:
        run, recipe, parts = plan.run, plan.variant.recipe, evaluation_parts(plan.result["recipe"])
        keys = {rule: evaluation_key(plan.result, rule, checkpoint) for rule in rules}
        mine = {rule: current_rows(known[known.selection == selection], key, parts) for rule, key in keys.items()}
        bins = known_bins[known_bins.run == run.name]
        draws = with_histograms and checkpoint == "checkpoint"  # of the weights that stand for the run
        without_bins = draws and bins.empty and recipe.bits != LATENT
        if missing := [rule for rule in rules if mine[rule].empty or (without_bins and rule == REQUANTIZE)]:
            if not about:
                about, tensors = datasets.read(recipe.data, DATA)
                sets = image_sets(about, tensors, recipe, torch_device)  # the same for a whole experiment
            started = time.monotonic()
            network = trained(plan.variant, run, about, torch_device, checkpoint)
            for rule in missing:
                rows = accuracies(network, sets, recipe.eval_bits, plan.result["status"] == "done", rule)
                of = {"run": run.name, "key": keys[rule], "arithmetic": written(parts)}
                mine[rule] = pd.DataFrame([of | {"rule": rule, "selection": selection} | row for row in rows])
            if REQUANTIZE in missing:
                bins = pd.DataFrame([{"run": run.name} | row for row in histograms(network)] if draws else [])
            evaluated, seconds = evaluated + 1, seconds + time.monotonic() - started
            print(f"{run.name}: {selection} weights evaluated", flush=True)
        tables += mine.values()
        all_bins.append(bins if draws else bins.iloc[:0])
        if (run.work / "run.json").exists() and holder_of(run.work) is None:  # finished and in place
            remove_work(run)
    write_rows(histogram_file, all_bins, HISTOGRAMS)
    write_rows(accuracy_file, tables, EVALUATIONS)
    print(f"{experiment}: {evaluated} checkpoints evaluated in {seconds:.2f} s")
