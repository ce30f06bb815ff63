"""Command line: one subcommand per step of the workflow, each usable without Snakemake."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from oscillations.core.errors import InputError, Interrupted, did_you_mean
from oscillations.core.files import NoRoom, no_room
from oscillations.study.paths import (
    DATA,
    evaluation_files,
    fetch_work,
    measurements_file,
    posttraining_files,
    posttraining_work,
    shipped,
    toy_file,
)
from oscillations.study.paths import study_file as file_of
from oscillations.study.reading import load
from oscillations.study.variants import select

if TYPE_CHECKING:
    from oscillations.report.results import Report


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; a user's mistake, or a full disk, is one message and exit code 2."""
    try:
        options = parser().parse_args(arguments)
        if getattr(options, "device", None) == "cuda":
            refuse_missing_cuda()
        return options.run(options) or 0
    except InputError as error:
        return refuse(error)
    except BrokenPipeError:  # the reader (head, say) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name too long, a folder in a file's place, a disk that is read only, or full
        if no_room(error):
            return refuse(NoRoom(error.filename or "a temporary file, or what is printed"))
        if error.filename is None:
            raise
        return refuse(InputError(f"{error.filename}: {error.strerror}"))


def refuse(error: InputError) -> int:
    """Say why nothing comes of it, also to a log that has no room for it."""
    with suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="oscillations", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], int | None], *flags: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            function.__name__.replace("_", "-"), help=function.__doc__, description=function.__doc__
        )
        added.set_defaults(run=function)
        added.add_argument("--study", type=study_file, default=study_file("quick"), help="study file or name")
        if "narrow" in flags:
            added.add_argument("--only", help="experiments, experiment/variant or entries, comma-separated; or all")
            added.add_argument("--seeds", help="seeds, comma-separated")
        if "device" in flags:
            default = os.environ.get("OSCILLATIONS_DEVICE", "auto")
            added.add_argument("--device", choices=["auto", "cpu", "cuda"], default=default)
        return added

    fetching = command(fetch)
    fetching.add_argument("--data", help="dataset, instead of the study's")
    fetching.add_argument(
        "--source", type=Path, default=os.environ.get("OSCILLATIONS_SOURCE"),
        help="local archive or folder instead of the download",
    )  # fmt: skip
    pretrained = command(weights)
    pretrained.add_argument("--name", help="checkpoint, instead of the study's, e.g. torchvision/resnet18")
    pretrained.add_argument(
        "--source", type=Path, default=os.environ.get("OSCILLATIONS_WEIGHTS"),
        help="local state dict, or a folder of them, instead of the download",
    )  # fmt: skip
    training = command(train, "narrow", "device")
    training.add_argument(
        "--save-every", type=float, default=os.environ.get("OSCILLATIONS_SAVE_EVERY", "30"),
        help="seconds between resume files",
    )  # fmt: skip
    training.add_argument(
        "--at-once", type=positive, default=os.environ.get("OSCILLATIONS_AT_ONCE", "1"),
        help="runs of a variant that share the device, taking turns",
    )  # fmt: skip
    command(evaluate, "device").add_argument("--experiment", required=True, help="evaluate its trained runs")
    command(posttrain, "device").add_argument("--name", required=True, help="entry of the study's posttraining")
    exporting = command(export)
    of = exporting.add_mutually_exclusive_group(required=True)
    of.add_argument(
        "--run", dest="exported_run", metavar="RUN", help="experiment/variant/seed<k>, to be written as one file"
    )
    of.add_argument("--name", help="entry of the study's exports, whose files are measured")
    exporting.add_argument("--bits", type=width, default=None, help="2 to 8, 32 or any; else the run's own")
    exporting.add_argument("--format", choices=["safetensors", "onnx", "torch"], default="safetensors")
    exporting.add_argument("--rule", choices=["requantize", "slice"], default="requantize", help="at other widths")
    exporting.add_argument("--opset", type=int, default=21, help="of ONNX; the first with 4-bit integers is 21")
    exporting.add_argument("--out", type=Path, help="file, instead of exports/<study>/<run>/...")
    packing = command(pack, "narrow")
    packing.add_argument("--out", type=Path, help="archive, instead of exports/<study>.zip")
    fetching_weights = command(fetch_weights, "narrow")
    fetching_weights.add_argument("--from", dest="source", required=True, help="archive, its URL, or a folder")
    command(toy)
    for step in (collect, oscillations, tables, figures, films, claims, site, landing, report):
        command(step)
    command(findings).add_argument("--readme", type=Path, help="bring the sentences of this README up to date, instead")
    command(status, "narrow").add_argument("--jobs", type=int, default=2, help="runs at a time, for the estimate")
    command(check, "narrow")
    certifying = commands.add_parser("certify", help=certify.__doc__, description=certify.__doc__)
    certifying.set_defaults(run=certify)
    certifying.add_argument("--against", type=Path, help="folder of a certified source, instead of git's newest")
    certifying.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="what computes")
    certifying.add_argument(
        "--new-version", action="append", default=[], metavar="PART", help="part whose numbers are meant to change"
    )
    accepting = command(accept)
    accepting.set_defaults(study=study_file("paper-jpeg"))
    accepting.add_argument("--results", type=Path, required=True, help="folder of the runs: their results/<study>")
    accepting.add_argument("--seeds", type=numbers, default=[], help="of these runs, comma-separated; else all")
    accepting.add_argument("--reference-seeds", type=numbers, default=[], help="of the reference's, likewise")
    schema_parser = command(schema)
    schema_parser.add_argument("--out", type=Path, default=Path("params/schema.json"))
    return root


def refuse_missing_cuda() -> None:
    """Raise InputError where torch has no CUDA device to compute on."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: this torch is built for CPUs"
        raise InputError(f"device=cuda: torch finds no CUDA device here (its CUDA: {built}); say cpu, or auto")


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return number


def width(value: str) -> int | str:
    return value if value == "any" else int(value)


def numbers(value: str) -> list[int]:
    return [int(number) for number in value.split(",")]


def study_file(value: str) -> Path:
    """``quick`` and ``params/quick.yaml`` name the same study."""
    return shipped(value) if value.endswith(".yaml") else file_of(value)


def fetch(options: argparse.Namespace) -> None:
    """Prepare the study's datasets: download or read, check, write one tensor file each."""
    from oscillations import datasets
    from oscillations.jobs.holders import held

    if options.data:
        chosen = {options.data}
    else:
        study = load(options.study)[0]
        chosen = {study.dataset(experiment) for experiment in study.experiments}
    for name in chosen - set(datasets.names()):
        raise InputError(f"--data {name}: unknown dataset; {did_you_mean(name, datasets.names())}")
    if options.source is not None and not options.source.exists():
        raise InputError(f"source={options.source}: no such file or folder")
    for name in sorted(chosen):
        with held([fetch_work(name)]):
            datasets.write(name, DATA, options.source)


def weights(options: argparse.Namespace) -> None:
    """Prepare the study's pretrained weights: download or read, check, write one tensor file each."""
    from oscillations.jobs.holders import held
    from oscillations.study import pretrained as module

    chosen = {options.name} if options.name else load(options.study)[0].checkpoints
    if options.source is not None and not options.source.exists():
        raise InputError(f"weights={options.source}: no such file or folder")
    for name in sorted(chosen):
        with held([fetch_work(name)]):
            module.write(name, options.source)


def train(options: argparse.Namespace) -> int:
    """Train the chosen variants; finished runs are kept, interrupted ones resumed."""
    from oscillations.records.environment import git_state

    git_state()  # for the records; SLURM counts the memory of a process twice while it starts git, so before torch
    from oscillations.jobs import train as module
    from oscillations.jobs.launch import as_job

    study, variants = load(options.study)
    stop = module.StopSignal()
    try:
        for variant in select(study, variants, options.only, options.seeds).variants:
            with as_job(study.study, "train", variant.path):
                module.train(
                    variant, stop, device=options.device, save_every=options.save_every, at_once=options.at_once
                )
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 143  # as a process ended by SIGTERM
    return 0


def certify(options: argparse.Namespace) -> int:
    """Compare changed code with the last certified one, bit for bit; what agrees makes nothing stale."""
    from oscillations.jobs import certify as module

    return 0 if module.certify(options.against, options.new_version, options.device) else 1


def evaluate(options: argparse.Namespace) -> None:
    """Test accuracy of an experiment's checkpoints at every evaluation bit, and weight histograms."""
    from oscillations.jobs import evaluate as module
    from oscillations.jobs.launch import as_job
    from oscillations.records.rows import EVALUATIONS, HISTOGRAMS, leave_out_damaged

    study, variants = load(options.study)
    if options.experiment not in study.experiments:
        raise InputError(f"--experiment {options.experiment}: {did_you_mean(options.experiment, study.experiments)}")
    with as_job(study.study, "evaluate", options.experiment):
        for file, columns in zip(evaluation_files(study.study, options.experiment), (EVALUATIONS, HISTOGRAMS)):
            leave_out_damaged(file, columns)
        module.evaluate(
            study.study, options.experiment, variants, options.device, study.draws_weights, study.cross_bit
        )  # fmt: skip


def posttrain(options: argparse.Namespace) -> None:
    """Quantize the trained runs of one entry of the study's posttraining, and measure them."""
    from oscillations.jobs import posttrain as module
    from oscillations.jobs.launch import as_job
    from oscillations.records.rows import leave_out_damaged

    study, variants = load(options.study)
    if options.name not in study.posttraining:
        raise InputError(f"--name {options.name}: no such entry; {did_you_mean(options.name, study.posttraining)}")
    with as_job(study.study, "posttrain", options.name):
        for file, columns in zip(posttraining_files(study.study, options.name), module.COLUMNS):
            leave_out_damaged(file, columns)
            leave_out_damaged(posttraining_work(study.study, options.name) / file.name, columns)
        module.posttrain(study, variants, options.name, options.device)


def export(options: argparse.Namespace) -> None:
    """Write a trained run as a file that computes the same elsewhere, or measure an entry of the study's exports."""
    from oscillations.jobs import export as module
    from oscillations.jobs.launch import as_job

    study, variants = load(options.study)
    if options.name is None:
        bits, rule = options.bits, options.rule
        module.export_run(variants, options.exported_run, bits, options.format, rule, options.opset, options.out)
    elif options.name not in study.exports:
        raise InputError(f"--name {options.name}: no such entry; {did_you_mean(options.name, study.exports)}")
    else:
        with as_job(study.study, "export", options.name):
            module.export_entry(study, variants, options.name)


def pack(options: argparse.Namespace) -> None:
    """Pack weights, records and results of a study into one archive, with checksums and model cards."""
    from oscillations.jobs import archive

    study, variants = load(options.study)
    chosen = select(study, variants, options.only, options.seeds).variants
    archive.pack(study, variants, chosen, options.out or Path("exports", f"{study.study}.zip"))


def fetch_weights(options: argparse.Namespace) -> None:
    """Place the weights of finished runs from an archive, checked against their records; nothing is trained."""
    from oscillations.jobs import archive

    study, variants = load(options.study)
    archive.fetch_weights(variants, select(study, variants, options.only, options.seeds).variants, options.source)


def toy(options: argparse.Namespace) -> None:
    """Run AOQ's toy experiment, a linear regression, if the study has it."""
    from oscillations.jobs import aoq_toy

    study = load(options.study)[0]
    if study.toy_regression is None:
        raise InputError(
            f"{options.study}: toy_regression: the study has none; say toy_regression: {{seeds: [0, 1, 2]}}"
        )
    spec = study.toy_regression
    aoq_toy.write(toy_file(study.study), spec.seeds, spec.epochs)


def collect(options: argparse.Namespace) -> None:
    """Gather every current record and evaluation into measurements.csv; refuse stale ones."""
    from oscillations.report.collect import collect as write

    write(_report(options))


def oscillations(options: argparse.Namespace) -> None:
    """Gather oscillation counts and weight statistics of every epoch into oscillations.csv."""
    from oscillations.report.collect import collect_oscillations

    collect_oscillations(_report(options))


def tables(options: argparse.Namespace) -> None:
    """Write the tables, published beside reproduced: agreement.csv, coverage.csv and comparisons; and metrics.json."""
    from oscillations.report.tables import write_all

    write_all(_report(options))


def figures(options: argparse.Namespace) -> None:
    """Draw the study's figures as PNG and PDF."""
    from oscillations.report.figures import write_figures

    write_figures(_report(options))


def films(options: argparse.Namespace) -> None:
    """Draw the study's films as GIF; none of which nothing has run."""
    from oscillations.report.figures.film import write_films

    write_films(_report(options))


def claims(options: argparse.Namespace) -> None:
    """Judge the claims on the measurements."""
    from oscillations.report.claims import write_claims

    write_claims(_report(options))


def findings(options: argparse.Namespace) -> None:
    """Write what was found, in sentences: findings.csv and findings.md."""
    from oscillations.report import findings as module

    if getattr(options, "readme", None):
        module.update_readme(_report(options), options.readme)
    else:
        module.write_findings(_report(options))


def site(options: argparse.Namespace) -> None:
    """Write what people browse: index.html and README.md of the study's results, a page for every variant, landing."""
    from oscillations.report.pages.study import write_site

    write_site(_report(options))
    landing(options)


def landing(options: argparse.Namespace) -> None:
    """Write results/index.html and results/README.md, over all studies that have results."""
    from oscillations.report.pages.landing import write_landing

    write_landing()


def _report(options: argparse.Namespace) -> Report:
    """The study's report, with what it has read so far."""
    from oscillations.report.results import Report

    if not hasattr(options, "read"):
        options.read = Report.load(options.study)
    return options.read


def report(options: argparse.Namespace) -> None:
    """Everything people read: collect, oscillations, tables, figures, films, claims, findings, site."""
    for step in (collect, oscillations, tables, figures, films, claims, findings, site):
        step(options)


def status(options: argparse.Namespace) -> None:
    """Show what is done, running and left, with an estimate of the time."""
    from oscillations.jobs import status as module

    study, variants = load(options.study)
    chosen = select(study, variants, options.only, options.seeds).variants
    module.print_status(study, chosen, options.jobs)


def check(options: argparse.Namespace) -> None:
    """Validate a study; print its run list and what it is predicted to cost."""
    from oscillations.jobs.status import print_costs
    from oscillations.records.cost import predict
    from oscillations.records.environment import unlike
    from oscillations.records.plans import plans

    study, variants = load(options.study)
    chosen = select(study, variants, options.only, options.seeds).variants
    found = plans(chosen)
    for variant in chosen:
        print(f"{variant.path}  seeds {','.join(map(str, variant.seeds))}")
    print_costs(predict(found, study.judged))
    for warning in unlike(plan.result for plan in found if plan.current):
        print(f"warning: {warning}")
    if study.reference and not measurements_file(study.reference).exists():
        print(f"study {study.reference} has not run yet: comparisons with it will read 'not run'")
    runs, every = (sum(len(variant.seeds) for variant in some) for some in (chosen, variants))
    rest = f" of {every}, as the study wants it or the command says (--only all)" if runs < every else ""
    print(f"{options.study}: valid; {len(chosen)} training jobs, {runs} runs{rest}")


def accept(options: argparse.Namespace) -> int:
    """Are the runs in a folder, made elsewhere, statistically the study's? Exits 0: same, 1: differs, 3: undecided."""
    from oscillations.report import acceptance as module

    answer = module.accept(load(options.study)[0].study, options.results, options.seeds, options.reference_seeds)
    return {module.SAME: 0, module.DIFFERS: 1, module.UNDECIDED: 3}[answer]


def schema(options: argparse.Namespace) -> None:
    """Write the JSON schema of study files, for editors."""
    from oscillations.core.files import write_json
    from oscillations.study.reading import json_schema

    write_json(options.out, json_schema())
