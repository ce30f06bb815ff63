"""What the parts of a study file say of each other: names lead somewhere, and what stands together fits.

Every fault is one InputError that names file, key and the nearest valid value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from oscillations import datasets, methods, models, posttraining
from oscillations.core.bits import LATENT
from oscillations.core.config import parse
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.engine.layers import quantized_layers
from oscillations.study.paths import rule_name
from oscillations.study.report_schema import Film, Panels, RatePanels, SweepPanels, WeightPanels
from oscillations.study.schema import Experiment, ExportEntry, PostTrainingEntry, Study
from oscillations.study.variants import Variant, select


def check_experiments(study: Study, path: Path) -> None:
    """Data, classes and sweeps of every experiment, and that each has a rule; before its variants are resolved."""
    ruled: dict[str, str] = {}
    for name, experiment in study.experiments.items():
        where = f"{path}: experiments.{name}"
        if (other := ruled.setdefault(rule_name(name), name)) != name:
            raise InputError(f"{where}: as a rule of Snakemake its name is that of {other}; choose another")
        _check_data(study, name, path)
        _check_classes(study, name, where)
        _check_sweep(experiment, where)


def _check_data(study: Study, name: str, path: Path) -> None:
    data, held, own = study.dataset(name), study.held_out(name), study.experiments[name]
    where = f"{path}: experiments.{name}"
    if data not in datasets.names():
        key = f"{path}: data" if own.data is None else f"{where}.data"
        raise InputError(f"{key}: unknown dataset {shortened(data)}; {did_you_mean(data, datasets.names())}")
    images = datasets.find(data).TRAIN_IMAGES
    if held >= images:
        key = f"{where}.validation" if own.validation else f"{path}: validation"
        raise InputError(f"{key}: {held} of {images} training images leave none to train on")


def _check_classes(study: Study, name: str, where: str) -> None:
    data = study.dataset(name)
    last = len(datasets.find(data).CLASSES) - 1
    for label in study.experiments[name].classes or []:
        if not 0 <= label <= last:
            raise InputError(f"{where}.classes: {data} has no class number {label}; 0 to {last}")


def _check_sweep(experiment: Experiment, where: str) -> None:
    if "lambda" in experiment.sweep:
        known = [methods.find(method) for method in experiment.methods if method in methods.names()]
        if "lambda" not in {field.alias for method in known for field in method.Options.model_fields.values()}:
            raise InputError(f"{where}.sweep.lambda: none of the methods has a lambda: {', '.join(experiment.methods)}")


def _check_start(study: Study, name: str, where: str) -> None:
    experiment = study.experiments[name]
    start = experiment.start_from
    if start is not None and experiment.pretrained:
        raise InputError(f"{where}: start_from and pretrained: a network starts from one of the two")
    if experiment.setting == "scratch" and (start is not None or experiment.pretrained):
        key = "pretrained" if start is None else "start_from"
        raise InputError(f"{where}.{key}: not with setting: scratch; say finetune")
    if start is None:
        if experiment.setting == "finetune" and not experiment.pretrained:
            raise InputError(f"{where}: setting: finetune needs start_from or pretrained")
        return
    refuse_unknown([start], study.experiments, f"{where}.start_from", "experiment")
    parent = study.experiments[start]
    if "baseline" not in parent.methods or parent.sweep or parent.start_from or parent.pretrained:
        raise InputError(f"{where}.start_from: {start} must train one baseline from scratch")
    if parent.activations is not None:
        raise InputError(f"{where}.start_from: {start} quantizes activations; start from an experiment that does not")
    if parent.model != experiment.model or parent.resize != experiment.resize or parent.data != experiment.data:
        raise InputError(f"{where}.start_from: {start} trains another model, image size or dataset")
    if study.held_out(start) != study.held_out(name):  # or what one was trained on would validate the other
        raise InputError(f"{where}.start_from: {start} holds out another number of validation images than {name}")
    missing = set(experiment.seeds or study.seeds) - set(parent.seeds or study.seeds)
    if missing:
        raise InputError(f"{where}.start_from: {start} has no seed {sorted(missing)[0]}")


def check_references(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    """What names experiments, variants, layers and entries of the study; before its hypotheses."""
    for name in study.experiments:
        _check_start(study, name, f"{path}: experiments.{name}")
    refuse_unknown(study.not_run, study.experiments, f"{path}: not_run", "experiment")
    for name in study.experiments:
        if name == "all" or name in study.posttraining:
            other = "every run" if name == "all" else "an entry of posttraining"
            raise InputError(f"{path}: experiments.{name}: only={name} would name {other}, too; take another name")
    _check_tables(study, path)
    _check_histograms(study, variants, path)
    _check_figures(study, variants, path)
    _check_searches(study, variants, path)
    _check_method_rates(study, variants, path)
    for name, entry in study.posttraining.items():
        _check_entry(study, entry, variants, f"{path}: posttraining.{name}")
    for name, exported in study.exports.items():
        _check_export(study, exported, variants, f"{path}: exports.{name}")
    _check_comparisons(study, path)
    try:
        select(study, list(variants.values()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def refuse_unknown(names: Iterable[str], known: Iterable[str], where: str, kind: str) -> None:
    """Raise InputError if one of the names is not known."""
    known = set(known)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(f"{where}: unknown {kind} {shortened(name)}; {did_you_mean(name, sorted(known))}")


def _check_tables(study: Study, path: Path) -> None:
    for table, names in study.tables.items():
        where = f"{path}: tables.{table}"
        refuse_unknown(names, study.experiments, where, "experiment")
        for name in names:
            if study.experiments[name].activations or study.experiments[name].first_last_bits:
                raise InputError(f"{where}: {name}: the published networks quantize weights alone, all at one width")
        if table in ("table1", "table2", "table3"):
            for name in names:
                if any(len(points) > 1 for points in study.experiments[name].sweep.values()):
                    raise InputError(f"{where}: {name} is a sweep; this table has one run per cell and seed")


def _check_histograms(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    """What is recorded at every epoch is a quantized weight of the model, and some method has a grid for it."""
    for name, experiment in study.experiments.items():
        if experiment.histograms is None:
            continue
        where = f"{path}: experiments.{name}.histograms"
        recipes = [variant.recipe for variant in variants.values() if variant.experiment == name]
        model = recipes[0].model
        layers = quantized_layers(models.find(model.name).layers(model.options), recipes[0].quant_layers)
        refuse_unknown([experiment.histograms], [f"{layer}.weight" for layer in layers], where, "quantized weight")
        if all(recipe.bits == LATENT for recipe in recipes):
            raise InputError(f"{where}: none of the methods has a grid: {', '.join(experiment.methods)}")


def _check_figures(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    for name, spec in study.figures.items():
        where = f"{path}: figures.{name}"
        if isinstance(spec, SweepPanels):
            refuse_unknown(spec.experiments, study.experiments, f"{where}.experiments", "experiment")
            _check_sweep_panels(spec, variants, where)
        elif isinstance(spec, RatePanels):
            refuse_unknown([spec.experiment], study.experiments, f"{where}.experiment", "experiment")
        elif isinstance(spec, Panels):
            refuse_unknown(spec.panels, variants, f"{where}.panels", "variant")
            if isinstance(spec, Film):
                _check_film(spec, variants, where)
            elif isinstance(spec, WeightPanels):
                _check_layer(spec, variants, where)


def _check_layer(spec: WeightPanels, variants: Mapping[str, Variant], where: str) -> None:
    """Every panel's model has the layer, on a grid."""
    layer = spec.layer.removesuffix(".weight")
    for panel in spec.panels:
        if variants[panel].recipe.bits == LATENT:
            raise InputError(f"{where}.panels: {panel} has no grid; take a variant with bits, qat-3bit say")
        model = variants[panel].recipe.model
        layers = models.find(model.name).layers(model.options)
        if layer not in layers:
            raise InputError(f"{where}.layer: {shortened(layer)} is no layer of {panel}; {did_you_mean(layer, layers)}")


def _check_film(spec: Film, variants: Mapping[str, Variant], where: str) -> None:
    """All panels record the film's layer."""
    for panel in spec.panels:
        variant = variants[panel]
        if variant.recipe.bits == LATENT:
            raise InputError(f"{where}.panels: {panel} has no grid; take a variant with bits, qat-3bit say")
        if variant.recipe.histograms != spec.layer:
            key, recorded = f"experiments.{variant.experiment}.histograms", variant.recipe.histograms or "not set"
            raise InputError(f"{where}.layer: {panel} does not record {shortened(spec.layer)}; {key} is {recorded}")


def _check_sweep_panels(spec: SweepPanels, variants: Mapping[str, Variant], where: str) -> None:
    """What is swept is OsciQuant at the panel's width."""
    mine = [variant.recipe for variant in variants.values() if variant.experiment in spec.experiments]
    widths = sorted({recipe.bits for recipe in mine if recipe.method.name == "osciquant"})
    if spec.bits not in widths:
        there = f"there at {', '.join(map(str, widths))} bits" if widths else "none of them trains it"
        raise InputError(f"{where}.bits: no osciquant at {spec.bits} bits in its experiments; {there}")


def _check_searches(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    for main, searches in study.rate_searches.items():
        where = f"{path}: rate_searches.{main}"
        refuse_unknown([main, *searches], study.experiments, where, "experiment")
        for name in (main, *searches):
            if "baseline" not in study.experiments[name].methods:
                raise InputError(f"{where}: {name} trains no baseline")
        if f"{main}/baseline" not in variants:
            raise InputError(f"{where}: has no one learning rate that would be the study's choice")


def _check_method_rates(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    """The search has an equal budget: its runs are those of the experiment, but for the rate."""
    for main, search in study.method_rates.items():
        where = f"{path}: method_rates.{main}"
        refuse_unknown([main, search], study.experiments, where, "experiment")
        if "lr" not in study.experiments[search].sweep:
            raise InputError(f"{where}: {search} sweeps no learning rates; give it sweep: {{lr: [...]}}")
        own = [variant.recipe for variant in variants.values() if variant.experiment == main]
        for variant in (variant for variant in variants.values() if variant.experiment == search):
            recipe = variant.recipe
            twin = next((one for one in own if one.method == recipe.method), None)
            if twin is None:
                lacking = f"{main} has no {recipe.method.name} with the options of {variant.path}"
                raise InputError(f"{where}: {lacking}; give both the same")
            training = recipe.training.model_copy(update={"lr": twin.training.lr})
            if replace(recipe, training=training, setting=twin.setting) != twin:
                other = f"{variant.path} differs from {main}'s by more than the learning rate"
                raise InputError(f"{where}: {other}; give both the same model, data and training")


def _check_export(study: Study, entry: ExportEntry, variants: Mapping[str, Variant], where: str) -> None:
    """Runs whose weights are codes on a grid, at widths whose accuracy is known."""
    refuse_unknown(entry.of, variants, f"{where}.of", "variant")
    for path in entry.of:
        recipe = variants[path].recipe
        if recipe.method.options.multiplies_weights:
            raise InputError(f"{where}.of: {path}: its attention (qkr) has no layer-by-layer form")
        if recipe.first_last_bits is not None:
            raise InputError(f"{where}.of: {path}: first_last_bits keeps layers at one width; export it by itself")
        for seed in entry.seeds or []:
            if seed not in variants[path].seeds:
                raise InputError(f"{where}.seeds: {path} has no seed {seed}, only {list(variants[path].seeds)}")
    for bits in entry.bits:
        if bits not in study.eval_bits:
            raise InputError(f"{where}.bits: {bits} is not among eval_bits {study.eval_bits}")


def _check_entry(study: Study, entry: PostTrainingEntry, variants: Mapping[str, Variant], where: str) -> None:
    """A post-training entry names variants, methods and options that exist and fit each other."""
    refuse_unknown(entry.of, variants, f"{where}.of", "variant")
    for variant in entry.of:
        if variants[variant].recipe.method.options.multiplies_weights:
            raise InputError(f"{where}.of: {variant}: its attention (qkr) cannot be cut into units")
        if variants[variant].recipe.activations is not None:
            raise InputError(f"{where}.of: {variant}: its activations are quantized already")
    for bits in entry.bits:
        if bits not in study.eval_bits:
            raise InputError(f"{where}.bits: {bits} is not among eval_bits {study.eval_bits}")
    for label, given in entry.methods.items():
        options = dict(given or {})
        method = options.pop("method", label)
        refuse_unknown([method], posttraining.names(), f"{where}.methods.{label}", "method")
        found = posttraining.find(method)
        chosen = parse(found.Options, options, f"{where}.methods.{label}")
        for variant in entry.of:
            recipe = variants[variant].recipe
            try:
                found(chosen).check(recipe, models.find(recipe.model.name).layers(recipe.model.options))
            except ValueError as error:
                raise InputError(f"{where}.methods.{label}: {variant}: {error}") from None


def _check_comparisons(study: Study, path: Path) -> None:
    """Comparisons name experiments of one model and post-training entries that exist, at a width that is evaluated."""
    for name, spec in study.comparisons.items():
        where = f"{path}: comparisons.{name}"
        refuse_unknown(spec.experiments, study.experiments, f"{where}.experiments", "entry")
        refuse_unknown(spec.posttraining, study.posttraining, f"{where}.posttraining", "entry")
        first, *others = (study.experiments[experiment].model for experiment in spec.experiments)
        for other in others:
            if other != first:
                raise InputError(f"{where}.experiments: {other['name']} beside {first['name']}: one model to a table")
        if spec.bits not in study.eval_bits:
            raise InputError(f"{where}.bits: {spec.bits} is not among eval_bits")
        for entry in spec.posttraining:
            for variant in study.posttraining[entry].of:
                if (model := study.experiments[variant.split("/")[0]].model) != first:
                    raise InputError(f"{where}.posttraining: {entry}: {model['name']} beside {first['name']}")
            if spec.bits not in study.posttraining[entry].bits:
                raise InputError(f"{where}.posttraining: {entry} has no {spec.bits} bits")


def check_hypotheses(study: Study, variants: Mapping[str, Variant], path: Path) -> None:
    """Hypotheses name variants (of the study or its reference), at bits that these are evaluated at."""
    for name, hypothesis in study.hypotheses.items():
        for place, tested in enumerate(hypothesis.comparisons):
            where = f"{path}: hypotheses.{name}.comparisons.{place}"
            for key, variant, bits in tested.named():
                refuse_unknown([variant], variants, f"{where}.{key}", "variant")
                if bits and bits not in (evaluated := variants[variant].recipe.eval_bits):
                    key = key.split(".variants")[0]
                    raise InputError(f"{where}.{key}.bits: {bits} is not among eval_bits {list(evaluated)}")
