"""Every method of a comparison in one table, by family: from scratch, fine-tuned, post-training.

A family shares start and budget; its methods are paired by seed with its QAT. ``tables/comparison-<name>.csv`` holds
the numbers, from which its Markdown, LaTeX and figures are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT, bit_name
from oscillations.core.files import read_json
from oscillations.records import cost
from oscillations.report.estimates import MINIMUM_RUNS, mean_interval, spread
from oscillations.report.measurements import (
    oscillation_shares,
    read_measurements,
    read_oscillations,
    read_posttraining,
)
from oscillations.report.tables.published import (
    METHOD_NAMES,
    MODEL_NAMES,
    bits_label,
    plus_minus,
    with_interval,
    write_formats,
)
from oscillations.study.paths import results
from oscillations.study.report_schema import ComparisonTable
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

GRID_NAMES = {"sym_odd": "Eq. 1-2", "lsq": "one more below 0", "mid_rise": "mid-rise, no 0"}
SCRATCH = "From scratch"
OSCILLATIONS = {"per_step": "oscillating per step, %", "per_epoch": "per epoch, %", "near": "near a threshold, %"}
COLUMNS = [
    "family", "method", "label", "variant", "start", "grid", "levels", "per_channel", "calibration", "planned", "n",
    "diverged", "accuracy", "accuracy_std", "reestimated", "reestimated_std", "difference", "difference_low",
    "difference_high", "difference_n", *OSCILLATIONS, "calibration_loss", "best_epoch", "early", "steps", "step_cost",
    "seconds", "runs",
]  # fmt: skip
RANKING = ["family", "grid", "levels", "per_channel"]  # only rows that share all of these are ranked
WEIGHT_ONLY = (
    "Weight-only: activations, biases and norms stay in floating point, and every loss is the cross-entropy with what "
    "the method adds to it (no distillation)."
)


def compared_name(name: str) -> str:
    return f"comparison-{name}"


def other_widths(study: Study, spec: ComparisonTable) -> list[int]:
    """Evaluation widths beside the target: the latent weights first, then from wide to narrow."""
    return sorted((bits for bits in study.eval_bits if bits != spec.bits), reverse=True)


def read_comparison(study: Study, name: str) -> pd.DataFrame:
    """The rows that :func:`write_comparisons` wrote; none before it has."""
    file = results(study.study) / "tables" / f"{compared_name(name)}.csv"
    columns = [*COLUMNS, *(f"at_{bits}" for bits in other_widths(study, study.comparisons[name]))]
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=columns)


def write_comparisons(study: Study, variants: list[Variant]) -> None:
    """Write ``tables/comparison-<name>.{csv,md,tex}`` of every comparison of the study."""
    for name, spec in study.comparisons.items():
        rows = comparison_rows(study, variants, spec)
        text = shown(study, spec, rows)
        path = results(study.study) / "tables" / compared_name(name)
        write_formats(path, title(study, spec), [study.note, *notes(study, spec, rows)], rows, text)


def title(study: Study, spec: ComparisonTable) -> str:
    model = study.experiments[spec.experiments[0]].model["name"]
    return f"Every method at its target bits: {MODEL_NAMES.get(model, model)}, {bits_label(spec.bits)}"


def comparison_rows(study: Study, variants: list[Variant], spec: ComparisonTable) -> pd.DataFrame:
    """One row per planned method, run or not: means and spreads over the test split, in percent."""
    tests = read_measurements(study.study)
    tests = tests[tests.split == "test"].assign(path=lambda table: table.experiment + "/" + table.variant)
    shares = oscillation_shares(read_oscillations(study.study))
    shares = shares.assign(path=shares.experiment + "/" + shares.variant)
    rows = [*_trained(study, variants, spec, tests, shares), *_posttrained(study, variants, spec, tests)]
    # per-channel scales are compared with per-channel QAT where there is one
    qat = {(row["family"], row["per_channel"]): row["by_seed"] for row in reversed(rows) if row["method"] == "qat"}
    for row in rows:
        family, per_channel = row.pop("paired_with")
        row |= _difference(row.pop("by_seed"), qat.get((family, per_channel), qat.get((family, False))))
    widths = [f"at_{bits}{suffix}" for bits in other_widths(study, spec) for suffix in ("", "_std")]
    place = COLUMNS.index("difference")
    table = pd.DataFrame(_distinct(rows), columns=[*COLUMNS[:place], *widths, *COLUMNS[place:]])
    families = {family: number for number, family in enumerate(dict.fromkeys(table.family))}
    return table.sort_values("family", key=lambda column: column.map(families), kind="stable", ignore_index=True)


def _family(study: Study, experiment: str) -> str:
    found = study.experiments[experiment]
    start = found.start_from or found.pretrained
    return f"Fine-tuned from {start}" if start else SCRATCH


def _trained(
    study: Study, variants: list[Variant], spec: ComparisonTable, tests: pd.DataFrame, shares: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Rows of the variants with the target bits, and of the baselines, whose quantized evaluation is PTQ."""
    speeds = cost.read_speeds()
    chosen = [v for v in variants if v.experiment in spec.experiments]
    for variant in sorted(chosen, key=lambda variant: spec.experiments.index(variant.experiment)):
        choice = variant.recipe.method
        if choice.get("bits", spec.bits) != spec.bits:
            continue
        method, family = choice.name, _family(study, variant.experiment)
        per_channel = choice.get("per_channel", False)  # by an option, or always (StatsQ)
        mine = tests[tests.path == variant.path]
        point = variant.name.removeprefix(method).removeprefix(f"-{bit_name(spec.bits)}").strip("-")
        point = point.replace("lambda", "λ = ")
        name = "FP32, then PTQ" if method == "baseline" else METHOD_NAMES.get(method, method)
        own = mine[mine.eval_bits == spec.bits]
        row: dict[str, Any] = {
            "family": family,
            "paired_with": (family, per_channel),
            "method": method,
            "label": f"{name} {point}".strip() + (", per channel" if choice.plain().get("per_channel") else ""),
            "variant": variant.path,
            "planned": len(variant.seeds),
        }
        row |= _accuracies(own) | _grid(own) | {"per_channel": per_channel}
        for bits in other_widths(study, spec):  # away from the target all is Eq. 1-2
            own_scale = mine.calibration.isna() | (mine.calibration == "max")
            kept = mine[(mine.eval_bits == bits) & (mine.bn == "keep") & own_scale]
            row |= _mean(f"at_{bits}", kept[kept.status == "done"].accuracy)
        logged = shares[(shares.path == variant.path) & shares.seed.isin(row["by_seed"].index)]
        of_runs = logged.groupby("seed")[list(OSCILLATIONS)].mean()  # over the epochs
        speed = speeds.get((cost.workload(variant.recipe), "cpu"))
        began = choice.options.begins * variant.recipe.training.epochs  # epochs before its own phase
        kept = own[(own.bn == "keep") & (own.status == "done")].best_epoch
        yield (
            row
            | of_runs.mean().to_dict()
            | _cost(own)
            | {
                "step_cost": speed and speed.ratio_to_fp,
                "early": int((kept <= began).sum()),
            }
        )


def _posttrained(
    study: Study, variants: list[Variant], spec: ComparisonTable, tests: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Rows of the post-training methods on each start, done anew at every width."""
    found, _ = read_posttraining(study.study)
    found = found.assign(path=found.experiment + "/" + found.variant)
    seeds = {variant.path: variant.seeds for variant in variants}
    for name in spec.posttraining:
        entry = study.posttraining[name]
        for path in entry.of:
            experiment = path.split("/")[0]
            for label, method, _ in entry.resolved():
                mine = found[(found.path == path) & (found.label == label)]
                plain = METHOD_NAMES.get(method, method)
                own = mine[mine.eval_bits == spec.bits]
                row = {
                    "family": f"Post-training on {path}",
                    "paired_with": (_family(study, experiment), False),
                    "method": method,
                    "label": plain if label == method else f"{plain} ({label})",
                    "variant": path,
                    "start": path,
                    "planned": len(seeds[path]),
                }
                row |= _accuracies(own) | _grid(own)
                parents = tests[(tests.path == path) & (tests.eval_bits == LATENT) & (tests.bn == "keep")]
                row |= _mean(f"at_{LATENT}", parents[parents.run.isin(own.run) & (parents.status == "done")].accuracy)
                for bits in other_widths(study, spec):
                    if bits != LATENT:
                        kept = mine[(mine.eval_bits == bits) & (mine.bn == "keep") & (mine.status == "done")]
                        row |= _mean(f"at_{bits}", kept.accuracy)
                kept = own[(own.bn == "keep") & (own.status == "done")]
                row |= {"steps": kept.iterations.mean(), "seconds": kept.seconds.mean()}
                yield row | {"calibration_loss": kept.calibration_loss.mean()}


def _mean(column: str, values: pd.Series) -> dict[str, float]:
    return {column: values.mean(), f"{column}_std": spread(values)}


def _accuracies(own: pd.DataFrame) -> dict[str, Any]:
    """Accuracy at the target bits, and how many runs stand behind it; a diverged run enters no mean."""
    kept, fresh = (own[own.bn == bn] for bn in ("keep", "reestimate"))
    done = kept[kept.status == "done"]
    return {
        "by_seed": done.set_index("seed").accuracy.astype(float),
        "n": len(done),
        "diverged": len(kept) - len(done),
        **_mean("accuracy", done.accuracy),
        **_mean("reestimated", fresh[fresh.status == "done"].accuracy),
        "runs": " ".join(sorted(kept.run)),
    }


def _grid(own: pd.DataFrame) -> dict[str, Any]:
    """The levels behind the target's accuracy, as measured; nothing of what has not run."""
    columns = ["grid", "levels", "calibration", "per_channel"]
    return own.iloc[0].reindex(columns).to_dict() if len(own) else dict.fromkeys(columns)


def _cost(own: pd.DataFrame) -> dict[str, float]:
    """Means over runs: the epoch whose weights are kept, optimizer steps, wall seconds."""
    done = own[(own.bn == "keep") & (own.status == "done")]
    records = [read_json(Path(run, "run.json")) for run in done.run]
    steps = pd.Series([record["steps_per_epoch"] * record["epochs_run"] for record in records], dtype=float)
    walls = [record["timing"]["wall_s"] / record["timing"]["at_once"] for record in records]
    return {
        "best_epoch": done.best_epoch.mean(),
        "steps": steps.mean(),
        "seconds": pd.Series(walls, dtype=float).mean(),
    }


def _difference(mine: pd.Series, qat: pd.Series | None) -> dict[str, float]:
    """Mean of the differences to QAT, paired by seed, with its 95 % interval; QAT itself has none."""
    if qat is None or mine is qat:
        return {}
    found = mean_interval((mine - qat).dropna().to_numpy())
    return {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "difference_n": found.n,
    }


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one name in one family say their experiment."""
    names = [(row["family"], row["label"]) for row in rows]
    return [
        row | {"label": f"{row['label']} ({row['variant'].split('/')[0]})"} if names.count(name) > 1 else row
        for row, name in zip(rows, names)
    ]


def best(rows: pd.DataFrame, column: str) -> pd.Series:
    """Where a mean is the largest, and others are less, in one family on one grid; all its runs have a number.

    Fewer than three runs rank nothing.
    """
    values = rows[column].where((rows.n == rows.planned) & (rows.n >= MINIMUM_RUNS) & rows[column].notna())
    groups = values.groupby([rows[key] for key in RANKING], dropna=False)
    return (values == groups.transform("max")) & (values > groups.transform("min"))


def shown(study: Study, spec: ComparisonTable, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as people read them: strings, the best of a ranking between ``**``; columns without numbers left out."""
    target = bits_label(spec.bits)
    text = pd.DataFrame({"Family": rows.family, "Method": [_name(row) for row in rows.itertuples()]}, dtype=str)
    text["Grid"] = [_grid_text(row) for row in rows.itertuples()]
    text["Scale"] = rows.calibration.astype(object).fillna("")
    text[target] = [_state(cell, row) for cell, row in zip(_means(rows, "accuracy"), rows.itertuples())]
    text[f"{target}, BN re-estimated"] = _means(rows, "reestimated")
    text["− QAT [95 %]"] = [_difference_text(row) for row in rows.itertuples()]
    text["n"] = [f"{row.n} of {row.planned}" if row.n != row.planned else f"{row.n}" for row in rows.itertuples()]
    for bits in other_widths(study, spec):
        text[bits_label(bits)] = _means(rows, f"at_{bits}")
    for column, header in OSCILLATIONS.items():
        text[header] = [_number(value, 3 if column == "per_step" else 2) for value in rows[column]]
    text["calibration loss"] = [_number(value, 4) for value in rows.calibration_loss]
    text["best epoch"] = [_number(value, 1) for value in rows.best_epoch]
    text["steps"] = [_number(value, 0) for value in rows.steps]
    text["a step / FP step"] = [_number(value, 2) for value in rows.step_cost]
    text["seconds"] = [_number(value, 0 if value >= 10 else 1) for value in rows.seconds]
    return text[[header for header in text if header in ("Family", "Grid", "Scale") or text[header].any()]]


def _name(row: Any) -> str:
    """The label, and whether the method's own phase came too late for what was kept."""
    if not row.early > 0:
        return row.label
    of = "" if row.early == row.n else f" in {row.early:.0f} of {row.n} runs"
    return f"{row.label} (kept from before its own phase{of})"


def _means(rows: pd.DataFrame, column: str) -> list[str]:
    """Mean ± standard deviation, the best of a ranking between ``**``."""
    cells = zip(rows[column], rows[f"{column}_std"], best(rows, column))
    return [f"**{plus_minus(mean, std)}**" if mark else plus_minus(mean, std) for mean, std, mark in cells]


def _grid_text(row: Any) -> str:
    if pd.isna(row.grid):
        return ""
    channels = ", per channel" if row.per_channel in (True, "True") else ""
    return f"{int(row.levels)} levels ({GRID_NAMES.get(row.grid, row.grid)}){channels}"


def _state(cell: str, row: Any) -> str:
    if row.diverged:
        return f"{cell} ({row.diverged} diverged)" if cell else "diverged"
    return cell or "not run"


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _difference_text(row: Any) -> str:
    text = with_interval(row.difference, row.difference_low, row.difference_high)
    return f"{text} (n = {int(row.difference_n)})" if text else ""


def notes(study: Study, spec: ComparisonTable, rows: pd.DataFrame) -> list[str]:
    """What a reader must know of the columns, and why rows are empty."""
    found = [
        WEIGHT_ONLY,
        "Test accuracy in percent of the best epoch's weights, mean ± standard deviation over n seeds; batch-norm "
        "statistics kept unless said otherwise. Bold: the best mean of a family on one grid; numbers on different "
        f"grids (levels) are not ranked, as {bits_label(spec.bits)} is not one number of levels.",
        "Trained methods: at other widths the latent weights are quantized by Eq. 1-2 (their largest is the last "
        "level), per channel where the method is. Post-training methods are done anew at every width; FP32 is the "
        "network they start from. − QAT: difference to the QAT of the same family (of per-channel methods to the "
        "per-channel QAT where there is one; post-training: of the family that its start belongs to), paired by "
        f"seed, with Student's t interval; fewer than {MINIMUM_RUNS} seeds have none, and are not ranked.",
        "Oscillations: share of the weights whose code changed back, counted after every step (per step) and after "
        "every epoch; near a threshold: within 5 % of a step; means over the epochs of a training. Calibration loss: "
        "relative error of the network's answers on the calibration images; where no blocks are (MLP5), BRECQ is "
        "AdaRound. Where the best epoch lies before a "
        "method's own phase (QC, CGA, freezing ...), the number is that of what it is built on. Steps and "
        "seconds: mean of a run, on a machine that was not always idle; a step's cost was measured apart "
        "(benchmarks/results/cost.csv).",
    ]
    empty = dict.fromkeys(path.split("/")[0] for path in rows.variant[(rows.n == 0) & (rows.diverged == 0)])
    return found + [f"Not run: {name}, {study.not_run[name]}." for name in empty if name in study.not_run]
