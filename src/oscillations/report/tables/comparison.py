"""Every method of a comparison in one table, by family: from scratch, fine-tuned, post-training.

A family shares start and budget; its methods are paired by seed with its QAT. ``tables/comparison-<name>.csv`` holds
the numbers, from which its figure is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from oscillations.core.bits import LATENT, SLICED, bit_name, input_name
from oscillations.core.files import read_json
from oscillations.engine.method import SharedScaleOptions
from oscillations.records import cost
from oscillations.report.estimates import MINIMUM_RUNS, mean_interval, spread
from oscillations.report.results import Report, kept, lookup
from oscillations.report.table import Missing, Row, Table
from oscillations.report.text import METHOD_NAMES, MODEL_NAMES, bits_label, plus_minus, with_interval
from oscillations.study.paths import experiment_of
from oscillations.study.report_schema import ComparisonTable
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

GRID_NAMES = {"sym_odd": "Eq. 1-2", "lsq": "one more below 0", "mid_rise": "mid-rise, no 0"}
SCRATCH = "From scratch"
OSCILLATIONS = {"per_step": "oscillating per step, %", "per_epoch": "per epoch, %", "near": "near a threshold, %"}
# of the weights of the best epoch and of the end, where a study keeps both, with the end's difference to QAT's
BOTH = [
    "best", "best_std", "end", "end_std", "end_difference", "end_difference_low", "end_difference_high",
    "end_difference_n",
]  # fmt: skip
SLICES = ["worst_slice", "worst_slice_std"]  # by the other rule, where a study asks for it
COLUMNS = [
    "family", "method", "label", "variant", "entry", "posttraining", "start", "grid", "levels", "per_channel",
    "calibration", "activation_bits", "planned", "n", "diverged", "at_end", "accuracy", "accuracy_std", "reestimated",
    "reestimated_std", *BOTH, "difference", "difference_low", "difference_high", "difference_n",
    "worst", "worst_std", *SLICES,
    *OSCILLATIONS, "calibration_loss", "kept_epoch", "early", "steps", "step_cost", "seconds", "runs",
]  # fmt: skip
USED = [
    "path", "seed", "run", "eval_bits", "bn", "accuracy", "calibration", "grid", "levels", "per_channel", "kept_epoch",
    *OSCILLATIONS,
]  # fmt: skip  # columns of what was measured, so that no others are copied for every variant
RANKING = ["family", "grid", "levels", "per_channel", "activation_bits"]  # only rows that share all of these are ranked
EARLY = "‡"
AT_END = "§"
END = "end of training"
TITLE = "Every method at its target bits: "
SERVED = [3, 4, 8]  # widths that one network is wanted for
WORST = f"worst of {', '.join(map(str, SERVED))} bits"
WORST_SLICE = f"{WORST}, slices"
END_NOTE = (
    f"{AT_END} Judged by the weights at the end of training, in all columns but the best epoch's: what the method does "
    "is whole only there (freezing, annealing, a map that hardens ...). Both selections of every run that keeps both "
    "stand in columns of their own."
)
SLICE_NOTE = (
    "Slices: the most significant bits of the latent weights' 8-bit codes, another rule than re-quantization; its "
    "numbers are compared with each other only."
)
WEIGHT_ONLY = (
    "Weight-only: activations, biases and norms stay in floating point, and every loss is the cross-entropy with what "
    "the method adds to it (no distillation)."
)
INPUTS = (
    "W/A: bits of the weights and of the inputs of the quantized layers (32: floating point); 3/3 is W3A3. The inputs "
    "of the first and the last layer have a width of their own, 8 bits unless the study says otherwise. Steps are "
    "learned in training, and in post-training with the rounding; at other widths of the weights they stay as they "
    "are. Biases and norms stay in floating point; no distillation."
)


def compared_name(name: str) -> str:
    return f"comparison-{name}"


def other_widths(study: Study, spec: ComparisonTable) -> list[int]:
    """Evaluation widths beside the target: the latent weights first, then from wide to narrow."""
    return sorted((bits for bits in study.eval_bits if bits != spec.bits), reverse=True)


def write_comparisons(report: Report) -> None:
    """Write ``tables/comparison-<name>.*`` of every comparison of the study."""
    for name, spec in report.study.comparisons.items():
        rows = comparison_rows(report, spec)
        shown(report, name, rows).write(report.folder / "tables", rows)


def read_comparison(report: Report, name: str) -> pd.DataFrame:
    """The rows that :func:`write_comparisons` wrote."""
    return report.read(f"tables/{compared_name(name)}.csv")


def title(study: Study, spec: ComparisonTable) -> str:
    model = study.experiments[spec.experiments[0]].model["name"]
    inputs = {found.bits for e in spec.experiments if (found := study.experiments[e].activations)}
    inputs |= {
        options.activation_bits for name in spec.posttraining for *_, options in study.posttraining[name].resolved()
        if options.activation_bits
    }  # fmt: skip
    widths = f", activations at {', '.join(map(str, sorted(inputs)))} bits" if inputs else ""
    return f"{TITLE}{MODEL_NAMES.get(model, model)}, {bits_label(spec.bits)}{widths}"


def comparison_rows(report: Report, spec: ComparisonTable) -> pd.DataFrame:
    """One row per planned method, run or not: means and spreads over the test split, in percent."""
    rows = [*_trained(report, spec), *_posttrained(report, spec)]
    # per-channel scales are compared with per-channel QAT where there is one
    qat = {(row["family"], row["per_channel"]): row for row in reversed(rows) if row["method"] == "qat"}
    for row in rows:
        family, per_channel = row["paired_with"]
        reference = qat.get((family, per_channel), qat.get((family, False)))
        if reference is not None and reference is not row:
            selected = "end_by_seed" if row.get("at_end") else "by_seed"
            row |= difference_to("difference", row["by_seed"], reference[selected])
            row |= difference_to("end_difference", row["end_by_seed"], reference["end_by_seed"])
    widths = [f"at_{bits}{suffix}" for bits in other_widths(report.study, spec) for suffix in ("", "_std")]
    place = COLUMNS.index("difference")
    table = pd.DataFrame(_distinct(rows), columns=[*COLUMNS[:place], *widths, *COLUMNS[place:]])
    for columns in (BOTH, SLICES):
        if table[columns[0]].isna().all():
            table = table.drop(columns=columns)
    families = {family: number for number, family in enumerate(dict.fromkeys(table.family))}
    return table.sort_values("family", key=lambda column: column.map(families), kind="stable", ignore_index=True)


def is_judged_at_end(variant: Variant) -> bool:
    """Whether the weights at the end of training stand for its runs, which keep those of the best epoch as well."""
    return variant.recipe.training.keep == "both" and variant.recipe.method.options.whole_from > 0


def _family(study: Study, experiment: str) -> str:
    found = study.experiments[experiment]
    start = found.start_from or found.pretrained
    inputs = "" if found.activations is None else f", {found.activations.bits}-bit activations"
    return (f"Fine-tuned from {start}" if start else SCRATCH) + inputs + _ends(found.first_last_bits)


def _ends(bits: int | None) -> str:
    """What a family's name says of first and last layers with a width of their own."""
    return "" if bits is None else f", first and last layer at {bits} bits"


def _label(variant: Variant, spec: ComparisonTable) -> str:
    """A trained method as the table names it: with the point of a sweep, and what sets it apart."""
    method, training = variant.recipe.method, variant.recipe.training
    point = variant.name.removeprefix(method.name).removeprefix(f"-{bit_name(spec.bits)}")
    point = point.removesuffix(input_name(variant.recipe.activation_bits)).strip("-").replace("lambda", "λ = ")
    name = "FP32, then PTQ" if method.name == "baseline" else METHOD_NAMES.get(method.name, method.name)
    per_channel = isinstance(method.options, SharedScaleOptions) and method.options.per_channel
    more = (", per channel" if per_channel else "") + (f", {END}" if training.keep == "last" else "")
    return f"{name} {point}".strip() + more


def _has_the_bits(variant: Variant, spec: ComparisonTable) -> bool:
    return variant.recipe.method.options.target_bits in (None, spec.bits)


def _trained(report: Report, spec: ComparisonTable) -> Iterator[dict[str, Any]]:
    """Rows of the variants with the target bits, and of the baselines, whose quantized evaluation is PTQ."""
    study, results, speeds = report.study, report.results, cost.read_speeds()
    chosen = [v for v in report.variants if v.experiment in spec.experiments and _has_the_bits(v, spec)]
    at_ends = {variant.path for variant in chosen if is_judged_at_end(variant)}
    paths = {variant.path for variant in chosen}
    judged = _judged(results.evaluations, results.ends, paths, at_ends)
    sliced = kept(_judged(results.slices, results.end_slices, paths, at_ends))
    done = kept(judged)
    target = done.eval_bits == spec.bits
    others = done[(done.calibration.isna() | (done.calibration == "max")) & ~target]
    whole = others[(others.eval_bits == SLICED) & others.path.isin(sliced.path)]  # of which slices are taken
    owns, bests, ends = (
        lookup(table[table.eval_bits == spec.bits].filter(USED))
        for table in (judged, results.evaluations, results.ends)
    )
    widths = lookup(others[["path", "eval_bits", "accuracy"]], ["path", "eval_bits"])
    worst, worst_slice = lookup(_worst(others, done[target])), lookup(_worst(sliced, whole))
    over_epochs = results.epochs.groupby(["path", "seed"], as_index=False)[list(OSCILLATIONS)].mean()
    logged = lookup(over_epochs)
    for variant in sorted(chosen, key=lambda variant: spec.experiments.index(variant.experiment)):
        choice = variant.recipe.method
        family = _family(study, variant.experiment)
        per_channel = choice.options.scales_per_channel  # by an option, or always (StatsQ)
        at_end, inputs = variant.path in at_ends, variant.recipe.activation_bits
        own = owns(variant.path)
        row: dict[str, Any] = {
            "family": family,
            "paired_with": (family, per_channel),
            "method": choice.name,
            "label": _label(variant, spec),
            "variant": variant.path,
            "planned": len(variant.seeds),
            "at_end": at_end,
            "end_by_seed": pd.Series(dtype=float),
        }
        row |= _accuracies(own) | _grid(own) | {"per_channel": per_channel, "activation_bits": inputs}
        if variant.recipe.training.keep == "both":
            row["end_by_seed"] = by_seed(ends(variant.path))
            row |= _mean("best", by_seed(bests(variant.path)))
            row |= _mean("end", row["end_by_seed"])
        for bits in other_widths(study, spec):  # away from the target all is Eq. 1-2
            row |= _mean(f"at_{bits}", widths((variant.path, bits)).accuracy)
        row |= _mean("worst", worst(variant.path).accuracy)
        row |= _mean("worst_slice", worst_slice(variant.path).accuracy)
        of_runs = logged(variant.path)
        of_runs = of_runs[of_runs.seed.isin(row["by_seed"].index)][list(OSCILLATIONS)]
        speed = speeds.get((cost.workload(variant.recipe), "cpu"))
        began = choice.options.whole_from * variant.recipe.training.epochs  # epochs before it is whole
        early = int((own[own.bn == "keep"].kept_epoch <= began).sum())
        row |= {"step_cost": speed and speed.ratio_to_fp, "early": early}
        yield row | of_runs.mean().to_dict() | _cost(own)


def _posttrained(report: Report, spec: ComparisonTable) -> Iterator[dict[str, Any]]:
    """Rows of the post-training methods on each start, done anew at every width."""
    study, tests, found = report.study, report.results.tests, report.results.posttraining
    seeds = {variant.path: variant.seeds for variant in report.variants}
    for name in spec.posttraining:
        entry = study.posttraining[name]
        for path in entry.of:
            for label, method, options in entry.resolved():
                mine = found[(found.path == path) & (found.label == label)]
                plain = METHOD_NAMES.get(method, method)
                own = mine[mine.eval_bits == spec.bits]
                row = {
                    "family": f"Post-training on {path}{_ends(options.first_last_bits)}",
                    "paired_with": (_family(study, experiment_of(path)), False),
                    "method": method,
                    "label": plain if label == method else f"{plain} ({label})",
                    "variant": path,
                    "entry": name,
                    "posttraining": label,
                    "start": path,
                    "planned": len(seeds[path]),
                    "at_end": False,
                    "end_by_seed": pd.Series(dtype=float),
                }
                row |= _accuracies(own) | _grid(own)
                row |= {"activation_bits": options.activation_bits}
                parents = tests[(tests.path == path) & (tests.eval_bits == LATENT) & tests.run.isin(own.run)]
                row |= _mean(f"at_{LATENT}", parents.accuracy)
                for bits in other_widths(study, spec):
                    if bits != LATENT:
                        row |= _mean(f"at_{bits}", mine.accuracy[(mine.eval_bits == bits) & (mine.bn == "keep")])
                done = kept(own)
                row |= {"steps": done.iterations.mean(), "seconds": done.seconds.mean()}
                yield row | {"calibration_loss": done.calibration_loss.mean()}


def _judged(best_epoch: pd.DataFrame, end: pd.DataFrame, paths: set[str], at_ends: set[str]) -> pd.DataFrame:
    """Of the variants of some paths, the rows of the weights by which each is judged."""
    return pd.concat([best_epoch[best_epoch.path.isin(paths - at_ends)], end[end.path.isin(at_ends)]])


def _worst(*tables: pd.DataFrame) -> pd.DataFrame:
    """By variant and seed, the lowest accuracy at :data:`SERVED`: what one network for all these widths must offer."""
    found = pd.concat([one[["path", "seed", "eval_bits", "accuracy"]] for one in tables])
    at = found[found.eval_bits.isin(SERVED)].pivot(index=["path", "seed"], columns="eval_bits", values="accuracy")
    return at.reindex(columns=SERVED).min(axis=1, skipna=False).rename("accuracy").reset_index()


def _mean(column: str, values: pd.Series) -> dict[str, float]:
    return {column: values.mean(), f"{column}_std": spread(values)}


def _accuracies(own: pd.DataFrame) -> dict[str, Any]:
    """Accuracy at the target bits, and how many runs stand behind it; a diverged run enters no mean."""
    ran, fresh = (own[own.bn == bn] for bn in ("keep", "reestimate"))
    done = by_seed(own)
    return {
        "by_seed": done,
        "n": len(done),
        "diverged": len(ran) - len(done),
        **_mean("accuracy", done),
        **_mean("reestimated", fresh.accuracy),
        "runs": " ".join(sorted(ran.run)),
    }


def by_seed(own: pd.DataFrame) -> pd.Series:
    """The accuracies of the runs that did not diverge, batch-norm statistics kept."""
    return kept(own).set_index("seed").accuracy.astype(float)


def _grid(own: pd.DataFrame) -> dict[str, Any]:
    """The levels behind the target's accuracy, as measured; nothing of what has not run."""
    columns = ["grid", "levels", "calibration", "per_channel"]
    return own.iloc[0].reindex(columns).to_dict() if len(own) else dict.fromkeys(columns)


def _cost(own: pd.DataFrame) -> dict[str, float]:
    """Means over runs: the epoch whose weights are kept, optimizer steps, wall seconds."""
    done = kept(own)
    records = [read_json(Path(run, "run.json")) for run in done.run]
    steps = pd.Series([record["steps_per_epoch"] * record["epochs_run"] for record in records], dtype=float)
    walls = [record["timing"]["wall_s"] / record["timing"]["at_once"] for record in records]
    return {
        "kept_epoch": done.kept_epoch.mean(),
        "steps": steps.mean(),
        "seconds": pd.Series(walls, dtype=float).mean(),
    }


def difference_to(column: str, mine: pd.Series, qat: pd.Series) -> dict[str, float]:
    """Mean of the differences to QAT, paired by seed, with its 95 % interval."""
    found = mean_interval((mine - qat).dropna().to_numpy())
    return {column: found.value, f"{column}_low": found.low, f"{column}_high": found.high, f"{column}_n": found.n}


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one name in one family say their experiment."""
    names = [(row["family"], row["label"]) for row in rows]
    return [
        row | {"label": f"{row['label']} ({experiment_of(row['variant'])})"} if names.count(name) > 1 else row
        for row, name in zip(rows, names)
    ]


def best(rows: pd.DataFrame, column: str) -> pd.Series:
    """Where a mean is the largest, and others are less, in one family on one grid; all its runs have a number.

    Fewer than three runs rank nothing, and what was kept from before its own phase is no result of a method.
    """
    enough = (rows.n == rows.planned) & (rows.n >= MINIMUM_RUNS) & rows[column].notna()
    values = rows[column].where(enough & ~(rows.early > 0))
    groups = values.groupby([rows[key] for key in RANKING], dropna=False)
    return (values == groups.transform("max")) & (values > groups.transform("min"))


def shown(report: Report, name: str, rows: pd.DataFrame) -> Table:
    """The rows that have run as people read them, by family, the best of a ranking between ``**``."""
    study, spec = report.study, report.study.comparisons[name]
    target = bits_label(spec.bits)
    text = pd.DataFrame({"Method": [_name(row) for row in rows.itertuples()]}, dtype=str)
    text[target] = [_state(cell, row) for cell, row in zip(_means(rows, "accuracy"), rows.itertuples())]
    text[WORST] = _means(rows, "worst")
    text["− QAT [95 %]"] = [_difference_text(row) for row in rows.itertuples()]
    text["n"] = [f"{row.n} of {row.planned}" if row.n != row.planned else f"{row.n}" for row in rows.itertuples()]
    text[f"{target}, BN re-estimated"] = _means(rows, "reestimated")
    if "end" in rows:
        text[f"{target}, best epoch"] = _means(rows, "best")
        text[f"{target}, {END}"] = _means(rows, "end")
        text[f"{END} − QAT's [95 %]"] = [_difference_text(row, "end_difference") for row in rows.itertuples()]
    if "worst_slice" in rows:
        text[WORST_SLICE] = _means(rows, "worst_slice")
    for bits in other_widths(study, spec):
        text[bits_label(bits)] = _means(rows, f"at_{bits}")
    if rows.activation_bits.notna().any():
        text["W/A"] = [f"{spec.bits}/{LATENT if pd.isna(a) else int(a)}" for a in rows.activation_bits]
    text["Grid"] = [_grid_text(row) for row in rows.itertuples()]
    text["Scale"] = rows.calibration.astype(object).fillna("")
    for column, header in OSCILLATIONS.items():
        text[header] = [_number(value, 3 if column == "per_step" else 2) for value in rows[column]]
    text["calibration loss"] = [_number(value, 4) for value in rows.calibration_loss]
    text["epoch kept"] = [_number(value, 1) for value in rows.kept_epoch]
    text["steps"] = [_number(value, 0) for value in rows.steps]
    text["a step / FP step"] = [_number(value, 2) for value in rows.step_cost]
    text["seconds"] = [_number(value, 0 if value >= 10 else 1) for value in rows.seconds]
    ran = (rows.n > 0) | (rows.diverged > 0)
    said = [
        Row(cells, row.runs.split(), group=row.family)
        for row, cells in zip(rows[ran].itertuples(), text[ran].to_dict("records"))
    ]
    empty = rows[~ran]
    made_by = empty.entry.where(empty.entry.notna(), empty.variant.map(experiment_of))
    missing = [
        Missing(
            str(source), report.why_not_run(experiment_of(group.variant.iloc[0])),
            [f"{row.family}: {row.label}" for row in group.itertuples()], list(dict.fromkeys(group.variant)),
        )
        for source, group in empty.groupby(made_by, sort=False)
    ]  # fmt: skip
    first = [target, WORST, "− QAT [95 %]", "n", *(bits_label(bits) for bits in other_widths(study, spec) if bits > 2)]
    said_notes = [note for note in notes(spec) if note[0] != EARLY or (rows.early > 0).any()]
    if rows.activation_bits.notna().any():
        said_notes = [INPUTS if note == WEIGHT_ONLY else note for note in said_notes]
    said_notes += [END_NOTE] if "end" in rows else []
    said_notes += [SLICE_NOTE] if "worst_slice" in rows else []
    return Table(compared_name(name), title(study, spec), [study.note, *said_notes], said, missing, first)


def _name(row: Any) -> str:
    """The label, whether the end of training is judged, and whether the method's own phase came too late for that."""
    if row.at_end is True:
        return f"{row.label} {AT_END}"
    if not row.early > 0:
        return row.label
    return f"{row.label} {EARLY}" if row.early == row.n else f"{row.label} {EARLY} ({row.early:.0f} of {row.n})"


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
    return cell


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _difference_text(row: Any, column: str = "difference") -> str:
    value, low, high, n = (getattr(row, f"{column}{end}") for end in ("", "_low", "_high", "_n"))
    text = with_interval(value, low, high)
    return f"{text} (n = {int(n)})" if text and n != row.n else text


def notes(spec: ComparisonTable) -> list[str]:
    """What a reader must know of the columns."""
    return [
        f"{EARLY} Kept from before the method's own phase (QC, CGA, freezing ...): the best epoch lies before it, so "
        "the number is that of what the method is built on, and not ranked.",
        WEIGHT_ONLY,
        "Test accuracy in percent of the best epoch's weights unless the end is judged, mean ± standard deviation over "
        "n seeds; batch-norm statistics kept unless said otherwise. Bold: the best mean of a family on one grid; "
        f"numbers on different grids (levels) are not ranked, as {bits_label(spec.bits)} is not one number of levels.",
        "Trained methods: at other widths the latent weights are quantized by Eq. 1-2 (their largest is the last "
        "level), per channel where the method is. Post-training methods are done anew at every width; FP32 is the "
        "network they start from. Worst: each seed's lowest accuracy at these widths.",
        "− QAT: difference to the QAT of the same family (of per-channel methods to the per-channel QAT where there is "
        "one; post-training: of the family that its start belongs to), the end's to QAT's end, paired by seed, with "
        f"Student's t interval; fewer than {MINIMUM_RUNS} seeds have none, and are not ranked.",
        "Oscillations: share of the weights whose code changed back, counted after every step (per step) and after "
        "every epoch; near a threshold: within 5 % of a step; means over the epochs of a training.",
        "Calibration loss: relative error of the network's answers on the calibration images; where no blocks are "
        "(MLP5), BRECQ is AdaRound, and where activations are not quantized, QDrop only mixes inputs. Steps and "
        "seconds: mean of a run, on a machine that was not always idle; a step's cost was measured apart "
        "(benchmarks/results/cost.csv).",
    ]
