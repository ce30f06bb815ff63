"""Peak memory of a job's process, by data, model and batch: python benchmarks/memory.py [--study NAME ...] [--job KIND]

Each is a fresh process that reads a dataset of the real size (random images) and does a little of what the job does: a
training three steps, an evaluation, and a resume file's copy of its state, for the method of the study that keeps most
beside the weights; a post-training all methods of its entry that differ in more than scales, with two iterations for
every unit; an export the files of single widths. The rules ask a cluster for memory by this table
(``oscillations.records.cost``). Rows measured before stay until measured again.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import CPU, RESULTS, make_trainer, report, stand_in

from oscillations import datasets, models, posttraining
from oscillations.core.bits import LATENT
from oscillations.engine.accuracy import accuracy
from oscillations.engine.batches import image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.training import Trainer
from oscillations.jobs.export import IMAGES
from oscillations.nn.export import SUFFIXES, of_network, write
from oscillations.nn.onnx_file import OPSET
from oscillations.posttraining import ReconstructionOptions
from oscillations.posttraining._measurement import measure
from oscillations.records import cost
from oscillations.study.paths import study_file
from oscillations.study.reading import load
from oscillations.study.schema import ExportEntry, PostTrainingEntry, Study
from oscillations.study.variants import Variant

JOBS = ("train", "posttrain", "export")
SCALES = {"scale", "per_channel"}  #: options of post-training methods that change no tensor's size but the scales'


def train(trainer: Trainer) -> None:
    images, size = trainer.sets["train"], trainer.batch_size
    order = images.order(0, 0)
    trainer.model.train()
    for i in range(3):
        trainer.step(*images.batch(order[i * size : (i + 1) * size]))
    accuracy(trainer.model, trainer.sets["validation"])
    kept = {key: value.clone() for key, value in trainer.state().items()}
    assert kept


def posttrain(entry: PostTrainingEntry, trainer: Trainer) -> None:
    alike = {(method, options.model_dump_json(exclude=SCALES)): options for _, method, options in entry.resolved()}
    for (method, _), options in alike.items():
        if isinstance(options, ReconstructionOptions):
            options = options.model_copy(update={"iterations": 2})
        measure(trainer.network, trainer.sets, posttraining.find(method)(options), entry.bits[0], seed=0)


@torch.no_grad()
def export(entry: ExportEntry, trainer: Trainer) -> None:
    network, images = trainer.network, trainer.sets["train"].batch(slice(0, IMAGES))[0].contiguous()
    shape, classes = tuple(images.shape[1:]), len(datasets.find(trainer.recipe.data).CLASSES)
    for bits in (LATENT, *entry.bits):
        with network.at(bits):
            expected = network.model.eval()(images)
        for format in ("safetensors", "onnx"):
            fresh = models.build(trainer.recipe.model.plain(), shape, classes).eval()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, f"model{SUFFIXES[format]}")
                write(of_network(network, bits), fresh, file, format, images, {None: expected}, OPSET)


def peak_mb(study: Study, variant: Variant, job: str, entry: str) -> int:
    """Of this process, after a little of the job on the CPU."""
    recipe = variant.recipe
    set_up_torch(recipe.threads, recipe.training.precision, "cpu")
    module = datasets.find(recipe.data)
    about, tensors = stand_in(module.TRAIN_IMAGES, module)
    trainer = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, CPU), CPU)
    if job == "train":
        train(trainer)
    elif job == "posttrain":
        posttrain(study.posttraining[entry], trainer)
    else:
        export(study.exports[entry], trainer)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # kilobytes on Linux


def footprints(study: Study, variants: list[Variant], job: str) -> dict[str, tuple[Variant, str]]:
    """By footprint the variant, and the entry, that are measured for it.

    Of equal ones the variant whose method has most options, or the entry with most methods, as a rule what keeps most.
    """
    variants = sorted(variants, key=lambda one: len(one.recipe.plain()["method"]))
    if job == "train":
        return {cost.footprint(variant.recipe): (variant, "") for variant in variants}
    if job == "export":
        entries = [(entry.of, name, cost.export_footprint) for name, entry in study.exports.items()]
    else:
        by_size = sorted(study.posttraining.items(), key=lambda named: len(named[1].methods))
        entries = [(e.of, name, partial(cost.posttraining_footprint, entry=e)) for name, e in by_size]
    found: dict[str, tuple[Variant, str]] = {}
    for of, name, footprint in entries:
        found |= {footprint(variant.recipe): (variant, name) for variant in variants if variant.path in of}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", nargs="+", default=["quick", "methods-quick", "paper", "methods"])
    parser.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "ENTRY"), help="measure it in this process and print it")
    options = parser.parse_args()
    os.chdir(RESULTS.parent.parent)  # studies are found from the project's root
    if options.one:
        study, variants = load(study_file(options.study[0]))
        path, entry = options.one
        print(peak_mb(study, next(one for one in variants if one.path == path), options.job[0], entry))
        return
    for name in options.study:
        study, variants = load(study_file(name))
        for job in options.job:
            for footprint, (variant, entry) in footprints(study, variants, job).items():
                again = [sys.executable, __file__, "--study", name, "--job", job, "--one", variant.path, entry]
                made = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout
                row = {"footprint": footprint, "method": variant.recipe.method.name, "peak_mb": int(made.split()[-1])}
                report("memory.csv", [row], key=("footprint",))  # at once: of a large model it takes minutes


if __name__ == "__main__":
    main()
