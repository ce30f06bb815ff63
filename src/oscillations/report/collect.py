"""From records to tidy tables: one of everything a study has measured, one of every epoch, two of post-training."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import StringIO
from itertools import chain
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT, REQUANTIZE
from oscillations.core.errors import InputError
from oscillations.core.files import write_text
from oscillations.engine.recipe import Recipe
from oscillations.records.damage import MEASURED
from oscillations.records.identity import evaluation_key, evaluation_parts
from oscillations.records.numerics import made_by
from oscillations.records.plans import Plan, current
from oscillations.records.rows import EVALUATIONS, posttrained, read_rows, without_implied, write_rows
from oscillations.report.results import MEASUREMENTS, OSCILLATIONS, POSTTRAINING, RECONSTRUCTION, Report
from oscillations.study.paths import Run, evaluation_files, measurements_file, results
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

LOGGED = ("history.csv", "layers.csv")  #: files of a run: its epochs, and its layers in each
SYMMETRIC = {"grid": "sym_odd", "calibration": "max"}  # Eq. 1-2


def collect(report: Report) -> None:
    """Write ``measurements.csv``: every current run at every evaluation; stale records are refused aloud."""
    study, finished = report.study, current(report.plans)
    _refuse([plan for plan in report.plans if plan.stale])
    evaluations: dict[str, dict[tuple[str, str], list[Any]]] = {}
    unevaluated: dict[tuple[str, str], int] = {}
    rows: list[dict[str, Any]] = []
    for plan in finished:
        variant, run, record = plan.variant, plan.run, plan.result
        if run.experiment not in evaluations:
            evaluations[run.experiment] = _evaluated(study, run.experiment)
        about = _about(study, variant, record, run.seed, str(run.folder))
        quantizer = record.get("quantizer") or SYMMETRIC
        for selection in plan.kept:
            for bits, accuracy in record[MEASURED[selection][0]].items():
                validated = _evaluation(about, quantizer, int(bits), "keep", "validation", accuracy)
                rows.append(about | validated | {"selection": selection})
        parts = evaluation_parts(record["recipe"])
        for rule in study.cross_bit:
            tests = []
            for selection, checkpoint in plan.kept.items():
                key = evaluation_key(record, rule, checkpoint)
                known = evaluations[run.experiment].get((key, selection), [])
                tests.append([row for row in known if made_by(row.arithmetic, parts)])
            if not all(tests):  # half of it would pass for the whole
                unevaluated[run.experiment, rule] = unevaluated.get((run.experiment, rule), 0) + 1
                continue
            for row in chain(*tests):
                tested = _evaluation(about, quantizer, row.eval_bits, row.bn, "test", row.accuracy, rule)
                rows.append(about | tested | {"bn_divergence": row.bn_divergence, "selection": row.selection})
    for (experiment, name), count in unevaluated.items():
        shown = "only their validation is shown" if name == REQUANTIZE else f"nothing of them is shown by {name}"
        print(f"{experiment}: {count} runs have no current evaluation: {shown}", file=sys.stderr)
    table = without_implied(pd.DataFrame(rows, columns=MEASUREMENTS).astype({"activation_bits": "Int64"}))
    write_text(measurements_file(study.study), table.to_csv(index=False, lineterminator="\n"))
    if study.posttraining:
        collect_posttraining(study, finished)


def _evaluated(study: Study, experiment: str) -> dict[tuple[str, str], list[Any]]:
    """Rows of an experiment's evaluations by key and selection, whoever's they are."""
    found: dict[tuple[str, str], list[Any]] = {}
    for row in read_rows(evaluation_files(study.study, experiment)[:1], EVALUATIONS).itertuples(index=False):
        found.setdefault((row.key, row.selection), []).append(row)
    return found


def _refuse(stale: list[Plan]) -> None:
    """Say of stale records why they are not shown, and how they are made again; once for all seeds of a variant."""
    seeds: dict[tuple[Run, str | None], list[int]] = {}
    for plan in stale:
        seeds.setdefault((replace(plan.run, seed=0), plan.stale), []).append(plan.run.seed)
    for (run, why), numbers in seeds.items():
        print(
            f"refused {run.folder.parent}, seeds {numbers}: {why}; make them again with: "
            f"snakemake all --config study={run.study} only={run.experiment}/{run.variant}",
            file=sys.stderr,
        )


def collect_posttraining(study: Study, finished: list[Plan]) -> None:
    """Write ``posttraining.csv`` and ``reconstruction.csv``: what was made of current runs with the present options."""
    tables: tuple[list, list] = ([], [])
    for name in study.posttraining:
        for plan, found in posttrained(study, name, finished):
            about = _about(study, plan.variant, plan.result, plan.run.seed, str(plan.run.folder))
            about |= {"start_method": about["method"]}
            theirs = ("method", "status", "activation_bits")  # the post-training method's, not the run's
            about = {key: about[key] for key in POSTTRAINING if key in about and key not in theirs}
            for table, rows in zip(tables, found):
                table.append(rows.assign(**about))
    for name, frames, columns in zip(("posttraining", "reconstruction"), tables, (POSTTRAINING, RECONSTRUCTION)):
        write_rows(results(study.study) / f"{name}.csv", frames, columns)


def _about(study: Study, variant: Variant, record: dict[str, Any], seed: int, folder: str) -> dict[str, Any]:
    recipe = variant.recipe
    method = recipe.method
    return {
        "study": study.study,
        "data": record["data"]["name"],
        "experiment": variant.experiment,
        "model": recipe.model.name,
        "setting": recipe.setting,
        "method": method.name,
        "variant": variant.name,
        "train_bits": recipe.bits,
        "preset": method.get("preset"),
        "reg_reduction": method.get("reg_reduction"),
        "scale_grad": method.get("scale_grad"),
        "lambda": method.get("lambda"),
        "lr": recipe.training.lr,
        "seed": seed,
        "best_epoch": record["best_epoch"],
        "epochs_run": record["epochs_run"],
        "status": record["status"],
        "run": folder,
        "start": start_label(recipe, record),
        "activation_bits": recipe.activation_bits,
    }


def start_label(recipe: Recipe, record: dict[str, Any]) -> str:
    """What a run was fine-tuned from, for people; nothing if it was trained from scratch."""
    return record["start"]["label"] if recipe.pretrained else recipe.start_from or ""


def _evaluation(
    about: dict[str, Any], quantizer: dict[str, Any], bits: int, bn: str, split: str, accuracy: float,
    rule: str = REQUANTIZE,
) -> dict[str, Any]:  # fmt: skip
    """PTQ is what a quantized evaluation of the baseline is called; away from its target bits, all is Eq. 1-2.

    So are the codes of slices.
    """
    quantized = bits != LATENT
    own = quantizer if bits == about["train_bits"] and rule == REQUANTIZE else SYMMETRIC
    return {
        "method": "ptq" if about["method"] == "baseline" and quantized else about["method"],
        "eval_bits": bits,
        "grid": own["grid"] if quantized else None,
        "levels": own.get("levels", 2**bits - 1) if quantized else None,
        "calibration": own["calibration"] if quantized else None,
        "bn": bn,
        "split": split,
        "accuracy": accuracy,
        "rule": rule,
    }


def collect_oscillations(report: Report) -> None:
    """Write ``oscillations.csv``: every epoch of every current run, counts per epoch, not cumulative.

    ``iteration_*`` counts compare codes after every optimizer step, ``epoch_*`` after every epoch.
    ``near_threshold``, ``error`` and ``share_zero`` are averages over all quantized weights,
    ``max_over_std`` and ``kurtosis`` over layers. ``layer_shares``: how the oscillations so far are spread over
    the layers, in their order; ``layer_shares_epoch``: those of the epoch.
    """
    found = current(report.plans)
    logged = [_logged(plan) for plan in found]
    shapes: dict[tuple[str, ...], list[int]] = {}
    for place, texts in enumerate(logged):
        if len(texts[0].splitlines()) > 1:  # a run that diverges in its first epoch logs none
            shapes.setdefault(tuple(text.partition("\n")[0] for text in texts), []).append(place)
    frames = [_checked_epochs(found, logged, places) for places in shapes.values()]  # those alike at once
    columns = dict.fromkeys(column for frame in frames for column in frame)  # as they first appear
    table = pd.concat(frames).sort_index(kind="stable")[list(columns)] if frames else pd.DataFrame(columns=OSCILLATIONS)
    write_text(report.folder / "oscillations.csv", table.to_csv(index=False, lineterminator="\n"))


def _logged(plan: Plan) -> list[str]:
    """What a run has logged of its epochs, and of its layers. Raises InputError if that is not there."""
    files = [plan.run.folder / name for name in LOGGED]
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: missing; bring it back, or delete run.json beside it and run again")
    return [file.read_text(errors="replace") for file in files]


def _checked_epochs(found: list[Plan], logged: list[list[str]], places: list[int]) -> pd.DataFrame:
    """As :func:`_epochs`. Raises InputError if files are no history: it names the run, for no hash vouches for them."""
    try:
        return _epochs(found, logged, places)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        for place in places if len(places) > 1 else []:
            _checked_epochs(found, logged, [place])
        said = f"{' and '.join(LOGGED)} are damaged ({type(error).__name__}: {error})".replace("\n", " ")
        folder = found[places[0]].run.folder
        raise InputError(f"{folder}: {said}; bring them back, or delete the folder and run again") from None


def _stacked(logged: list[list[str]], places: list[int], which: int) -> pd.DataFrame:
    """The epochs or layers of some runs with the same columns, one run after another; ``place`` tells them apart."""
    head = logged[places[0]][which].partition("\n")[0]
    lines = [f"{place},{line}" for place in places for line in logged[place][which].splitlines()[1:]]
    return pd.read_csv(StringIO("\n".join([f"place,{head}", *lines])))


def _about_run(plan: Plan) -> dict[str, Any]:
    """What every epoch of a run says of it."""
    variant, method = plan.variant, plan.variant.recipe.method
    return {
        "experiment": variant.experiment,
        "variant": variant.name,
        "model": variant.recipe.model.name,
        "method": method.name,
        "train_bits": variant.recipe.bits,
        "lambda": method.get("lambda"),
        "lr": variant.recipe.training.lr,
        "seed": plan.run.seed,
        "status": plan.result["status"],
        "steps_per_epoch": plan.result["steps_per_epoch"],
    }


def _epochs(found: list[Plan], logged: list[list[str]], places: list[int]) -> pd.DataFrame:
    """Every epoch of the runs at some places of a list, which have logged the same; indexed by their place."""
    history, layers = (_stacked(logged, places, which) for which in (0, 1))
    about = pd.DataFrame([_about_run(found[place]) for place in places], index=places).astype({"lambda": float})
    frame = about.loc[history.place].reset_index(drop=True)
    frame = frame.join(history[["epoch", "train_loss", "val_loss", "monitored", *history.filter(regex="^val_acc_")]])
    counts = history.filter(regex="^(iteration|epoch)_")
    frame[list(counts)] = counts.groupby(history.place).diff().fillna(counts).astype(int)
    frame = frame.assign(**history.filter(regex="^frequency_"))
    frame.index = pd.MultiIndex.from_frame(history[["place", "epoch"]])
    if not layers.empty:
        frame = frame.join(_over_layers(layers))
    return frame.droplevel("epoch")


def _over_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """By run and epoch, the means over layers, or over weights, of what is logged by layer."""
    epoch = [layers.place, layers.epoch]
    by_epoch = layers.groupby(epoch)
    found = by_epoch.weights.sum().to_frame()
    for column in ("max_over_std", "kurtosis"):
        found[column] = by_epoch[column].mean()
    for column in layers.columns.intersection(["near_threshold", "error", "share_zero"]):
        found[column] = (layers[column] * layers.weights).groupby(epoch).sum() / found.weights
    if "iteration_nagel" in layers:
        so_far = layers.iteration_nagel
        own = layers.groupby(["place", "layer"]).iteration_nagel.diff().fillna(so_far)
        found["layer_shares"] = _shares(so_far, epoch)
        found["layer_shares_epoch"] = _shares(own, epoch)
    return found


def _shares(counts: pd.Series, epoch: list[pd.Series]) -> pd.Series:
    """How an epoch's counts are spread over the layers, in their order."""
    shares = counts / counts.groupby(epoch).transform("sum").clip(lower=1)
    return shares.map("{:.5f}".format).groupby(epoch).agg(" ".join)
