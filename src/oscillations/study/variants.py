"""Variants: what a study asks for, resolved. An experiment with a method, a bit width and a sweep point is one variant.

Whatever cannot be resolved is refused by an InputError that names file, key and the nearest valid value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oscillations import datasets, methods, models
from oscillations.core.bits import bit_name, input_name
from oscillations.core.config import Strict, parse, refuse_repeats
from oscillations.core.errors import SHOWN, InputError, did_you_mean, shortened
from oscillations.engine.layers import quantized_layers
from oscillations.engine.method import MethodOptions
from oscillations.engine.recipe import Activations, Choice, Pretrained, Recipe, ReducedSplits, Training
from oscillations.study import pretrained
from oscillations.study.paths import Run
from oscillations.study.schema import Experiment, Study

MOST_RUNS = 20_000  #: of a study: a sweep over two long lists asks for more than any machine could list


@dataclass(frozen=True)
class Variant:
    """One training job: a recipe and its seeds. Its path is ``experiment/name``."""

    study: str
    experiment: str
    name: str
    recipe: Recipe
    seeds: tuple[int, ...]

    @property
    def path(self) -> str:
        return f"{self.experiment}/{self.name}"

    def runs(self) -> list[Run]:
        return [self.run(seed) for seed in self.seeds]

    def run(self, seed: int) -> Run:
        return Run(self.study, self.experiment, self.name, seed)

    def parent(self, seed: int) -> Run | None:
        """The run whose checkpoint this one starts from."""
        start = self.recipe.start_from
        return None if start is None else Run(self.study, start, "baseline", seed)


def parents_first(variants: Iterable[Variant]) -> list[Variant]:
    """The same variants, those that others start from before these."""
    return sorted(variants, key=lambda variant: variant.recipe.start_from is not None)


def recipe_of(plain: dict[str, Any]) -> Recipe:
    """The recipe that :meth:`Recipe.plain` gave, from a record say."""
    given = dict(plain)
    kinds = {"model": lambda name: models.find(name).Options, "method": lambda name: methods.find(name).Options}
    for key, kind in kinds.items():
        options = kind(plain[key]["name"])
        values = {k: v for k, v in plain[key].items() if k != "name" or "name" in options.model_fields}
        given[key] = Choice(plain[key]["name"], options(**values))
    for key, model in (
        ("training", Training),
        ("images", ReducedSplits),
        ("pretrained", Pretrained),
        ("activations", Activations),
    ):
        given[key] = model(**plain[key]) if plain.get(key) is not None else None
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    return Recipe(**given | lists)


def variants_of(study: Study, path: Path) -> list[Variant]:
    """All variants of a study, in the file's order."""
    found: dict[str, Variant] = {}
    runs = 0
    for name, experiment in study.experiments.items():
        where = f"{path}: experiments.{name}"
        for variant in _variants(study, name, experiment, where):
            runs += len(variant.seeds)
            if runs > MOST_RUNS:
                raise InputError(f"{where}: with its runs, the study has more than {MOST_RUNS:,}; ask for fewer")
            if variant.path in found:
                raise InputError(
                    f"{where}.sweep: two of its points are both named {variant.name}; numbers this near are one"
                )
            found[variant.path] = variant
    return list(found.values())


def _variants(study: Study, name: str, experiment: Experiment, where: str) -> Iterator[Variant]:
    data = study.dataset(name)
    shape = image_shape(data, experiment.resize)
    model, layers = _model(experiment, shape, where)
    patterns = experiment.quant_layers or models.find(model.name).QUANTIZED
    refuse_unmatched(patterns, layers, f"{where}.quant_layers")
    public = None
    if experiment.pretrained is not None:
        public = pretrained.resolve(experiment.pretrained, model.plain(), shape, f"{where}.pretrained")
    for method, options in experiment.methods.items():
        key = f"{where}.methods.{method}"
        for label, point, choice in _points(experiment, method, dict(options or {}), key):
            refuse_unmatched(choice.options.regularized_layers, layers, f"{key}.reg_layers")
            try:
                methods.find(method)(choice.options).check(model.name, layers, list(patterns))
            except ValueError as error:
                raise InputError(f"{key}: {error}") from None
            recipe = Recipe(
                data=data,
                model=model,
                method=choice,
                training=_training(study, experiment, point, where),
                quant_layers=tuple(patterns),
                validation=study.held_out(name),
                eval_bits=tuple(study.eval_bits),
                setting=experiment.setting,
                split_seed=study.split_seed,
                images=experiment.images,
                classes=None if experiment.classes is None else tuple(experiment.classes),
                resize=experiment.resize,
                start_from=experiment.start_from,
                pretrained=None if public is None else Pretrained(**public),
                threads=study.threads,
                histograms=experiment.histograms,
                activations=experiment.activations,
                first_last_bits=experiment.first_last_bits,
            )
            _check_widths(recipe, layers, where)
            if recipe.bits not in study.eval_bits:
                raise InputError(f"{key}.bits: {recipe.bits} is not among eval_bits")
            yield Variant(study.study, name, label, recipe, tuple(experiment.seeds or study.seeds))


def _check_widths(recipe: Recipe, layers: list[str], where: str) -> None:
    """Refuse widths that would act on nothing, or on what is not called as a layer."""
    chosen = quantized_layers(layers, recipe.quant_layers)
    if recipe.first_last_bits is not None and not {layers[0], layers[-1]} & set(chosen):
        raise InputError(
            f"{where}.first_last_bits: neither {layers[0]} nor {layers[-1]} is quantized; see quant_layers"
        )
    if recipe.activations is not None and recipe.method.options.multiplies_weights:
        raise InputError(f"{where}.activations: the product of weights (qkr) has no layer whose input is quantized")


def image_shape(data: str, resize: int | None) -> tuple[int, int, int]:
    """Channels, height and width of a dataset's images as a network sees them."""
    channels, height, width = datasets.find(data).IMAGE_SHAPE
    return channels, resize or height, resize or width


def _model(experiment: Experiment, shape: tuple[int, int, int], where: str) -> tuple[Choice[Strict], list[str]]:
    """An experiment's model, and the names of its layers; it takes images of that shape."""
    name, known = experiment.model.get("name"), models.names()
    if not isinstance(name, str):
        raise InputError(f"{where}.model: name is missing; known: {', '.join(known)}")
    if name not in known and not name.startswith(tuple(f"{library}/" for library in models.LIBRARIES)):
        raise InputError(f"{where}.model.name: unknown model {shortened(name)}; {did_you_mean(name, known)}")
    module = models.find(name)
    options: Strict = parse(module.Options, experiment.model, f"{where}.model")
    try:
        layers = module.layers(options)
        models.check(options, shape)
    except ValueError as error:
        raise InputError(f"{where}.model.{error}") from None
    return Choice(name, options), layers


def _training(study: Study, experiment: Experiment, point: dict[str, float], where: str) -> Training:
    where = f"{where}.sweep" if point else f"{where}.training"
    return parse(Training, study.training.model_dump() | experiment.training | point, where)


def _points(
    experiment: Experiment, method: str, options: dict[str, Any], where: str
) -> Iterator[tuple[str, dict[str, float], Choice[MethodOptions]]]:
    """(variant name, change of the training, method) for every bit width and sweep point of a method."""
    if method == "ptq":
        raise InputError(f"{where}: PTQ trains nothing; it is an evaluation of baseline at every eval_bits")
    if method not in methods.names():
        raise InputError(f"{where}: unknown method {shortened(method)}; {did_you_mean(method, methods.names())}")
    kind = methods.find(method).Options
    known = {field.alias or name for name, field in kind.model_fields.items()}
    bits = options.pop("bits", None)
    widths = bits if isinstance(bits, list) else [bits]
    if not widths:
        raise InputError(f"{where}.bits: the list is empty")
    try:
        refuse_repeats(widths, "bits")
    except ValueError as error:
        raise InputError(f"{where}.{error}") from None
    lambdas = experiment.sweep.get("lambda", [None]) if "lambda" in known else [None]
    for width in widths:
        for lam in lambdas:
            for lr in experiment.sweep.get("lr", [None]):
                given = options | ({} if width is None else {"bits": width}) | ({} if lam is None else {"lambda": lam})
                label = [method] if width is None else [method, bit_name(width)]
                label += [] if lam is None else [f"lambda{lam:g}"]
                label += [] if lr is None else [f"lr{short_float(lr)}"]
                inputs = experiment.activations
                name = "-".join(label) + input_name(None if inputs is None else inputs.bits)
                yield name, {} if lr is None else {"lr": lr}, Choice(method, parse(kind, given, where))


def short_float(value: float) -> str:
    """0.003 -> 3e-3, 0.00025 -> 2.5e-4: the way learning rates are written in names."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def refuse_unmatched(patterns: Sequence[str], layers: list[str], where: str) -> None:
    """Raise InputError if a pattern matches no layer, or there is none."""
    if not patterns:
        raise InputError(f"{where}: the list is empty; known: {', '.join(layers[:SHOWN])}")
    for pattern in patterns:
        if not quantized_layers(layers, [pattern]):
            raise InputError(f"{where}: {shortened(pattern)} matches no layer; {did_you_mean(pattern, layers)}")


# -- which of them a command is about ----------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The variants (with some of their seeds) and the post-training entries that a command is about."""

    variants: list[Variant]
    entries: list[str]


def select(study: Study, variants: list[Variant], only: str | None = None, seeds: Any = None) -> Selection:
    """What ``only`` and ``seeds`` name, comma-separated; if neither is given, what the study says is ``wanted`` now.

    ``only``: experiments, ``experiment/variant``, entries of ``posttraining``, or ``all``. What a fine-tune starts from
    is kept as well. ``seeds`` may be an int, as Snakemake passes a single one. Raises InputError.
    """
    if only or seeds not in (None, ""):
        names = [name.strip() for name in str(only).split(",")] if only and only != "all" else []
        numbers = None if seeds in (None, "") else _numbers(str(seeds))
        return _named(study, variants, names, numbers, (f"only={only}", f"seeds={seeds}"))
    wanted = study.wanted
    return _named(study, variants, wanted.only, wanted.seeds or None, ("wanted.only", "wanted.seeds"))


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InputError(f"seeds={seeds}: give whole numbers, e.g. seeds=0,1") from None


def _named(
    study: Study, variants: list[Variant], names: list[str], seeds: list[int] | None, where: tuple[str, str]
) -> Selection:
    known = dict.fromkeys([*study.experiments, *study.posttraining, *(v.path for v in variants)])
    for name in names:
        if name not in known:
            raise InputError(
                f"{where[0]}: no such experiment, variant or entry {shortened(name)}; {did_you_mean(name, known)}"
            )
    entries = [name for name in study.posttraining if not names or name in names]
    if names:
        chosen = [v for v in variants if v.experiment in names or v.path in names]
        paths = {v.path for v in chosen} | {f"{v.recipe.start_from}/baseline" for v in chosen}
        variants = [v for v in variants if v.path in paths]
    if seeds is not None:
        there = sorted({seed for variant in variants for seed in variant.seeds})
        for seed in sorted(set(seeds) - set(there)):
            raise InputError(f"{where[1]}: the study has no seed {seed}; {did_you_mean(seed, there)}")
        kept = [replace(v, seeds=tuple(seed for seed in v.seeds if seed in seeds)) for v in variants]
        variants = [variant for variant in kept if variant.seeds]
    return Selection(variants, entries)
