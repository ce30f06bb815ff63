"""``results/<study>/runs/<experiment>/<variant>.html``: all seeds of a variant, their curves and how they were made."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.records import numerics
from oscillations.records.plans import Plan
from oscillations.report.estimates import spread
from oscillations.report.pages import render
from oscillations.report.pages.curves import Curve, chart
from oscillations.report.results import Report, lookup
from oscillations.report.table import Row, Table
from oscillations.report.text import METHOD_NAMES, MODEL_NAMES, bits_label, plus_minus
from oscillations.study import paths

WIDTHS = (LATENT, 8, 4, 3, 2)
COLORS = {LATENT: 5, 2: 6, 3: 2, 4: 4, 8: 3}  # of the page's palette, by width


def write_variants(report: Report) -> None:
    """A page for every variant that has a current record, and none for others."""
    kept, results = set(), report.results
    epochs_in_order = results.all_epochs.sort_values(["seed", "epoch"])
    tests, epochs, after = map(lookup, (results.evaluations, epochs_in_order, results.posttraining))
    for path, group in groupby(report.plans, lambda plan: plan.variant.path):
        seeds = [plan for plan in group if plan.current]
        if seeds:
            file = paths.variant_page(report.study.study, path)
            kept.add(file)
            measured = {
                "charts": _charts(epochs(path), seeds[0].variant.recipe.bits),
                "seeds": _seeds(seeds, tests(path)),
                "after": _posttrained(after(path)),
            }
            render("variant.html", file, **_content(report, path, seeds) | measured)
    for file in set((report.folder / "runs").glob("*/*.html")) - kept:
        file.unlink()


def _content(report: Report, path: str, seeds: list[Plan]) -> dict[str, Any]:
    variant, study = seeds[0].variant, report.study.study
    recipe = variant.recipe
    method = METHOD_NAMES.get(recipe.method.name, recipe.method.name)
    trained = "" if recipe.bits == LATENT else f", trained {bits_label(recipe.bits)}"
    return {
        "heading": f"{MODEL_NAMES.get(recipe.model.name, recipe.model.name)}, {method}{trained}: {path}",
        "study": report.study,
        "path": path,
        "recipe": _flat(seeds[0].result["recipe"]),
        "start": sorted({start["label"] for plan in seeds if (start := plan.result.get("start"))}),
        "environments": _environments(seeds),
        "filmed": recipe.histograms,
        "data": seeds[0].result["data"],
        "split": seeds[0].result["split"],
        "kept": list(seeds[0].kept),
        "files": [(plan.run.seed, _checkpoints(plan)) for plan in seeds],
        "command": f"snakemake --cores 8 all --config study={study} only={path}",
    }


def _checkpoints(plan: Plan) -> list[tuple[Path, str]]:
    """Every checkpoint of a run with its hash, of the weights that stand for it first."""
    files = plan.run.checkpoints(plan.kept.values())
    return [(file, plan.result[f"{name}_sha256"]) for name, file in files.items()]


def _charts(mine: pd.DataFrame, bits: int) -> list[Any]:
    """Loss, accuracy at every width and oscillations over a variant's epochs; a line for every seed."""
    epochs, seeds = mine.epoch.tolist(), mine.seed.tolist()
    runs = {seed: slice(seeds.index(seed), seeds.index(seed) + seeds.count(seed)) for seed in dict.fromkeys(seeds)}

    def curves(column: str, color: int, label: str = "") -> list[Curve]:
        if column not in mine or mine[column].isna().all():
            return []
        values = mine[column].astype(float).tolist()
        return [Curve(epochs[of_it], values[of_it], color, label, int(seed)) for seed, of_it in runs.items()]

    widths = [bits for bits in WIDTHS if f"val_acc_{bits}" in mine]
    accuracy = [curve for width in widths for curve in curves(f"val_acc_{width}", COLORS[width], bits_label(width))]
    return [
        found
        for found in (
            chart([*curves("train_loss", 0, "training"), *curves("val_loss", 1, "validation")], "Loss"),
            chart(accuracy, "Validation accuracy, %"),
            chart(curves("per_step", 1), "Weights that oscillate per step, %") if bits != LATENT else "",
            chart(curves("near", 0), "Weights near a threshold, %") if bits != LATENT else "",
        )
        if found
    ]


def _seeds(seeds: list[Plan], results: pd.DataFrame) -> Table:
    """One row per seed: what it reached, where it stopped, how long it took, and its files."""
    rows, tests = [], results[results.bn == "keep"].drop_duplicates(["seed", "eval_bits"])
    accuracy = dict(zip(zip(tests.seed, tests.eval_bits), tests.accuracy))
    for plan in seeds:
        record, own = plan.result, plan.variant.recipe.bits
        cells = {"Seed": str(plan.run.seed), "State": "" if record["status"] == "done" else record["status"]}
        cells |= {
            f"Test, {bits_label(bits)}": _number(accuracy.get((plan.run.seed, bits)))
            for bits in dict.fromkeys((own, *WIDTHS))
        }
        cells |= {
            "Best validation": _number(record["monitored"]),
            "in epoch": str(record["best_epoch"]),
            "of": str(record["epochs_run"]),
            "Seconds": f"{record['timing']['wall_s']:.0f}",
            "Interruptions": str(record["timing"]["interruptions"]),
            "Finished": record["timing"]["finished"][:10],
        }
        rows.append(Row(cells))
    return Table("seeds", "Seeds", [], rows)


def _posttrained(made: pd.DataFrame) -> Table:
    """What post-training methods made of a variant's runs, mean over seeds."""
    rows = [
        Row(
            {
                "Method": str(label), "Width": bits_label(int(bits)),
                "Test accuracy, %": plus_minus(runs.accuracy.mean(), spread(runs.accuracy)),
                "n": str(runs.accuracy.notna().sum()),
            }
        )
        for (label, bits), runs in made[made.bn == "keep"].groupby(
            ["label", "eval_bits"], sort=False
        )
    ]  # fmt: skip
    return Table("after", "After the training: post-training quantization", [], rows)


def _number(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2f}"


def _flat(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Every option of a recipe; those of a part as ``part.option``."""
    rows = []
    for key, value in recipe.items():
        for name, option in value.items() if isinstance(value, dict) else [("", value)]:
            if option not in (None, []):
                text = ", ".join(map(str, option)) if isinstance(option, list) else str(option)
                rows.append((f"{key}.{name}" if name else key, text))
    return rows


def _environments(seeds: list[Plan]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where seeds were made, those of one place together."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for plan in seeds:
        record, made = plan.result, plan.result["environment"]
        git = made["git"]
        commit = git.get("commit", "no repository")[: numerics.LENGTH] + (", changed" if git.get("dirty") else "")
        about = {
            "device": f"{made['device']}, {made['dtype']}, {made['threads']} threads",
            "system": f"{made['platform']}, Python {made['python']}",
            "packages": ", ".join(f"{name} {version}" for name, version in made["packages"].items()),
            "commit": commit,
            "arithmetic": ", ".join(f"{part} {version}" for part, version in record["arithmetic"].items()),
        }
        if slurm := made.get("slurm"):
            about["SLURM"] = f"job {slurm['job']} on {slurm['node']}"
        found.setdefault(tuple(about.items()), []).append(str(plan.run.seed))
    return [(", ".join(numbers), list(about)) for about, numbers in found.items()]
