"""Peak memory of a training process, by data, model and batch: python benchmarks/memory.py [--study NAME ...]

Each is a fresh process that reads a dataset of the real size (random images), makes three steps, evaluates, and takes
a resume file's copy of its state, for the method of the study that keeps most beside the weights. The rules ask a
cluster for memory by this table (``oscillations.records.cost``). Rows measured before stay until measured again.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

from common import CPU, RESULTS, make_trainer, report, stand_in

from oscillations import datasets
from oscillations.engine.accuracy import accuracy
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.records import cost
from oscillations.study.paths import study_file
from oscillations.study.reading import load
from oscillations.study.variants import Variant


def peak_mb(variant: Variant) -> int:
    """Of this process, after a little of the variant's training on the CPU."""
    recipe = variant.recipe
    set_up_torch(recipe.threads, recipe.training.precision, "cpu")
    module = datasets.find(recipe.data)
    about, tensors = stand_in(module.TRAIN_IMAGES, module)
    sets = image_sets(about, tensors, recipe, CPU)
    trainer = make_trainer(recipe, 0, about, sets, CPU)
    order = sets["train"].order(0, 0)
    trainer.model.train()
    for i in range(3):
        size = recipe.training.batch_size
        trainer.step(*sets["train"].batch(order[i * size : (i + 1) * size]))
    accuracy(trainer.model, sets["validation"])
    kept = {key: value.clone() for key, value in trainer.state().items()}
    assert kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # kilobytes on Linux


def largest(variants: list[Variant]) -> dict[str, Variant]:
    """Of equal footprints the variant whose method has most options, as a rule the one that keeps most."""
    found: dict[str, Variant] = {}
    for variant in sorted(variants, key=lambda one: len(one.recipe.plain()["method"])):
        found[cost.footprint(variant.recipe)] = variant
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", nargs="+", default=["quick", "methods-quick", "paper"])
    parser.add_argument("--one", help="measure a study's variant in this process and print it")
    options = parser.parse_args()
    os.chdir(RESULTS.parent.parent)  # studies are found from the project's root
    if options.one:
        variants = load(study_file(options.study[0]))[1]
        print(peak_mb(next(variant for variant in variants if variant.path == options.one)))
        return
    for study in options.study:
        for footprint, variant in largest(load(study_file(study))[1]).items():
            again = [sys.executable, __file__, "--study", study, "--one", variant.path]
            made = subprocess.run(again, capture_output=True, text=True, check=True).stdout
            row = {"footprint": footprint, "method": variant.recipe.method.name, "peak_mb": int(made)}
            report("memory.csv", [row], key=("footprint",))  # at once: of a large model it takes minutes


if __name__ == "__main__":
    main()
