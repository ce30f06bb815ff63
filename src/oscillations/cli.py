"""Command line: one subcommand per step of the workflow, each usable without Snakemake."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from oscillations import study as studies
from oscillations.errors import InputError, did_you_mean


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; a user's mistake is one message and exit code 2."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="oscillations", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(function, *flags: str) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(run=function)
        added.add_argument("--study", type=Path, default=Path("params/quick.yaml"), help="study file")
        if "narrow" in flags:
            added.add_argument("--only", help="experiments (or experiment/variant), comma-separated")
            added.add_argument("--seeds", help="seeds, comma-separated")
        if "device" in flags:
            added.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        return added

    fetching = command(fetch)
    fetching.add_argument("--data", help="dataset, instead of the study's")
    fetching.add_argument(
        "--source", type=Path, default=os.environ.get("OSCILLATIONS_SOURCE"),
        help="local archive or folder instead of the download",
    )  # fmt: skip
    training = command(train, "narrow", "device")
    training.add_argument("--save-every", type=float, default=30, help="seconds between resume files")
    return root


def fetch(options: argparse.Namespace) -> None:
    """Prepare the study's dataset: download or read, check, write one tensor file."""
    from oscillations import datasets

    name = options.data or studies.load(options.study)[0].data
    if name not in datasets.names():
        raise InputError(f"--data {name}: unknown dataset; {did_you_mean(name, datasets.names())}")
    if options.source is not None and not options.source.exists():
        raise InputError(f"source={options.source}: no such file or folder")
    datasets.write(name, Path("data"), options.source)


def train(options: argparse.Namespace) -> int:
    """Train the chosen variants; finished runs are kept, interrupted ones resumed."""
    from oscillations import runs

    _, variants = studies.load(options.study)
    try:
        for variant in studies.narrow(variants, options.only, options.seeds):
            runs.train(variant, device=options.device, save_every=options.save_every)
    except runs.Interrupted as stop:
        return runs.exit_code(stop)
    return 0
