"""Studies: the one typed definition of what is run, from which the CLI and the workflow take their run list.

A study file (``params/<name>.yaml``) is checked in full before anything starts. From it come *variants*
(experiment x method x bits x sweep point, e.g. ``mlp5-scratch/osciquant-3bit``), each with its seeds and its
resolved recipe, and a *run* is a variant with one seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, TypeAdapter, WithJsonSchema, model_validator

from oscillations import datasets, methods, models, posttraining, weights
from oscillations.bits import LATENT, bit_name
from oscillations.config import Strict, parse, refuse_repeats
from oscillations.errors import SHOWN, InputError, did_you_mean, shortened
from oscillations.fingerprint import fingerprint

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]
ShortName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9.]+)*$")]
Names = Annotated[list[str], Field(min_length=1)]
# Limits beyond which a number is a slip of the pen: no machine could do what it says.
Epochs = Annotated[int, Field(ge=1, le=100_000)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
ImageCount = Annotated[int, Field(ge=1, le=1_000_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Threads = Annotated[int, Field(ge=1, le=1024)]
SideLength = Annotated[int, Field(ge=1, le=1024)]


class Training(Strict):
    """How a network is trained; the same for every method of an experiment."""

    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam: torch's defaults; sgd: momentum 0.9")
    lr: LearningRate = Field(description="learning rate")
    schedule: Literal["none", "cosine"] = Field("none", description="of the rate: constant, or a half cosine to 0")
    batch_size: BatchSize
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of matrix products: float32, TF32 where the GPU has it, or bfloat16 in training only"
    )
    epochs: Epochs = Field(description="at most so many")
    patience: Epochs = Field(description="stop after so many epochs without improvement")
    augment: Literal["none", "crop_flip"] = Field("none", description="crop_flip: random crop (padding 4) and mirror")


class TrainingChange(Strict):
    """What one experiment changes of the study's training."""

    optimizer: Literal["adam", "sgd"] | None = None
    lr: LearningRate | None = None
    schedule: Literal["none", "cosine"] | None = None
    batch_size: BatchSize | None = None
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    epochs: Epochs | None = None
    patience: Epochs | None = None
    augment: Literal["none", "crop_flip"] | None = None


class Images(Strict):
    """Numbers of images, drawn evenly over the classes with the seed of the split; of a split with fewer, all."""

    train: ImageCount
    validation: ImageCount
    test: ImageCount


class Experiment(Strict):
    """One model in one setting, with all methods trained on it."""

    model: dict[str, Any] = Field(description="name, and the model's own options")
    setting: Literal["scratch", "finetune", "sweep"]
    methods: dict[str, dict[str, Any] | None] = Field(
        description="method name -> its options; bits may be a list", min_length=1
    )
    sweep: dict[Literal["lambda", "lr"], Annotated[list[float], Field(min_length=1)]] = Field(
        {}, description="values that replace an option, one variant each"
    )
    training: TrainingChange = TrainingChange()
    seeds: list[Seed] | None = Field(None, min_length=1, description="instead of the study's")
    data: str | None = Field(None, description="dataset, instead of the study's")
    validation: PositiveInt | None = Field(None, description="training images held out, instead of the study's")
    classes: list[int] | None = Field(None, min_length=2, description="keep only these classes")
    images: Images | None = Field(
        None, description="use only so many images of each split, drawn evenly over the classes"
    )
    resize: SideLength | None = Field(None, description="upsample images to this side length")
    quant_layers: list[str] | None = Field(None, min_length=1, description="patterns, instead of the model's")
    start_from: str | None = Field(None, description="experiment whose baseline of the same seed is fine-tuned")
    pretrained: str | None = Field(
        None,
        description="public checkpoint that is fine-tuned: torchvision/resnet18, timm/deit_tiny_patch16_224, ...",
    )


class Panels(Strict):
    panels: list[str] = Field(min_length=1, description="experiment/variant of each panel")


class WeightPanels(Panels):
    layer: str = Field(description="weight whose distribution is drawn, e.g. fc2.weight")


class Sweep(Strict):
    experiments: list[str] = Field(min_length=1)
    bits: Literal[2, 3, 4]


FIGURES: dict[str, type[Panels] | type[Sweep]] = {  # the figures that show runs, and what each must be told
    "figure2": WeightPanels,
    "figure3": Panels,
    "figure5": Sweep,
    "figure6": Sweep,
    "figure7": Panels,
    "figure8": Panels,
}
LABEL = r"(-[a-z0-9.]+)*$"


def figure_number(name: str) -> str:
    """``figure2-mlp5`` is a ``figure2``; what is not the paper's has a word for a number: ``figure-heatmap-mlp5``."""
    return re.match(r"figure(-[a-z]+|[^-]*)|[^-]*", name)[0]


def _figure_specs(content: Any) -> Any:
    """Each figure's spec as the class its number asks for."""
    if not isinstance(content, dict):
        return content
    specs: dict[str, Any] = {}
    for name, spec in content.items():
        number = figure_number(str(name))
        if number not in FIGURES:
            raise ValueError(f"unknown key {name!r}; {did_you_mean(number, FIGURES)}")
        if not re.fullmatch(number + LABEL, name):
            raise ValueError(f"{name!r}: a label is lower-case letters and digits, e.g. {number}-mlp5")
        specs |= TypeAdapter(dict[str, FIGURES[number]]).validate_python({name: spec})
    return specs


Figures = Annotated[
    dict[str, WeightPanels | Panels | Sweep],
    BeforeValidator(_figure_specs),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {f"^{name}{LABEL}": spec.model_json_schema() for name, spec in FIGURES.items()},
            "additionalProperties": False,
        }
    ),
]


class Comparison(Strict):
    """Which methods stand in one table: those of a model at one target bit width."""

    experiments: list[str] = Field(min_length=1, description="experiments of one model")
    posttraining: list[str] = Field([], description="post-training entries whose methods stand beside the trained ones")
    bits: int = Field(3, ge=2, le=8, description="target bit width (2 = ternary)")


COMPARISON_FIGURES = ("figure-comparison", "figure-heatmap")  # of every comparison


class Claims(Strict):
    """Margins of the verdicts, in percentage points unless said otherwise."""

    match_margin: PositiveFloat = Field(2.0, description="C2: OsciQuant matches QAT")
    near_baseline: PositiveFloat = Field(2.0, description="C4, C14: stays near the FP baseline")
    chance_margin: PositiveFloat = Field(10.0, description="C5, C14: above chance by no more than this is near chance")
    good_margin: PositiveFloat = Field(10.0, description="C6: good means no more than this below the FP baseline")
    flat_margin: PositiveFloat = Field(2.0, description="C9: flat in lambda")
    collapse: PositiveFloat = Field(10.0, description="C9, C15: a loss of more than this is a collapse")
    unstable_std: PositiveFloat = Field(5.0, description="C6, C14: a larger standard deviation over seeds is unstable")
    bound_margin: PositiveFloat = Field(
        1.0, description="C11: another bit width exceeds the bound by no more than this"
    )
    epoch_margin: PositiveFloat = Field(10.0, description="C12: OsciQuant and QAT need equally many epochs (in epochs)")


class Side(Strict):
    """One number per seed: what a variant measured, or the range over several variants."""

    variants: list[str] = Field(min_length=1, description="experiment/variant, of the study or its reference")
    bits: Literal[32, 2, 3, 4, 8] | None = Field(None, description="of the evaluation; else the training bits")
    bn: Literal["keep", "reestimate"] = "keep"


class Contrast(Strict):
    """A difference, paired by seed, or one side alone."""

    of: Side
    minus: Side | None = None

    @property
    def paths(self) -> list[str]:
        return [*self.of.variants, *(self.minus.variants if self.minus else [])]


class Tested(Contrast):
    """One comparison of a hypothesis: the mean over seeds of a contrast against a bound."""

    text: str
    measure: Literal[
        "accuracy", "per_step", "per_epoch", "near_threshold", "max_over_std", "kurtosis", "share_zero",
        "layer_distance",
    ]  # fmt: skip
    than: Contrast | None = Field(None, description="contrast that is subtracted: a difference of differences")
    to: str | None = Field(None, description="layer_distance: the variant whose spread over layers is compared with")
    expect: Literal["above", "below", "within"]
    bound: float = Field(0.0, description="within: the margin of equivalence")

    @model_validator(mode="after")
    def _consistent(self) -> Tested:
        if (self.measure == "layer_distance") != (self.to is not None):
            raise ValueError("to: belongs to measure: layer_distance, and only to it")
        sides = [side for contrast in (self, self.than) if contrast for side in (contrast.of, contrast.minus) if side]
        if self.measure != "accuracy" and any(side.bits or side.bn != "keep" for side in sides):
            raise ValueError(f"bits, bn: belong to measure: accuracy, not to {self.measure}")
        if self.expect == "within" and self.bound <= 0:
            raise ValueError("bound: a margin of equivalence is positive")
        return self

    @property
    def paths(self) -> list[str]:
        """All variants it names."""
        return [*super().paths, *(self.than.paths if self.than else []), *([self.to] if self.to else [])]

    def named(self) -> Iterator[tuple[str, str, int | None]]:
        """(key, variant, bits of its evaluation) of all variants it names."""
        sides = {"of": self.of, "minus": self.minus}
        sides |= {"than.of": self.than.of, "than.minus": self.than.minus} if self.than else {}
        for key, side in sides.items():
            for variant in side.variants if side else []:
                yield f"{key}.variants", variant, side.bits
        if self.to is not None:
            yield "to", self.to, None


class ToyRegression(Strict):
    """AOQ's toy experiment: linear regression on weights that a 2-bit grid holds exactly."""

    seeds: list[Seed] = Field(min_length=1)
    epochs: Epochs = Field(200, description="of each of its trainings; the source's are 200")


class Hypothesis(Strict):
    statement: str
    comparisons: list[Tested] = Field(min_length=1)


class PostTraining(Strict):
    """Post-training quantization of runs of this study."""

    of: list[str] = Field(min_length=1, description="experiment/variant of the runs")
    bits: list[Annotated[int, Field(ge=2, le=8)]] = Field(min_length=1, description="among eval_bits")
    methods: dict[Name, dict[str, Any] | None] = Field(
        min_length=1, description="label -> the method's options, and method: its name if the label is another"
    )

    def resolved(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(label, method, all its options) of every label; the study has been checked."""
        for label, given in self.methods.items():
            options = dict(given or {})
            method = options.pop("method", label)
            yield label, method, posttraining.find(method).Options(**options).model_dump(mode="json")

    @property
    def reconstructs(self) -> bool:
        """Whether a method of it learns anything."""
        return any(method != "nearest" for _, method, _ in self.resolved())


def posttraining_files(study: str, name: str) -> tuple[Path, Path]:
    """Accuracies, and reconstruction losses per unit, of one post-training entry."""
    folder = Path("results", study, "posttraining")
    return folder / f"{name}.csv", folder / f"{name}-reconstruction.csv"


Published = Annotated[  # what the columns of params/published.csv hold; lax, for YAML has no tuples
    tuple[
        Literal["mlp5", "resnet18", "vit-tiny"],
        Literal["scratch", "finetune", "sweep"],
        Literal["baseline", "ptq", "qat", "osciquant"],
        Literal[32, 2, 3, 4, 8],
    ],
    Field(strict=False),
]


class Study(Strict):
    """A whole study file."""

    extends: str | None = Field(None, description="study whose keys this one replaces")
    study: Name
    title: str
    note: str = Field(description="what its numbers are and are not; shown on the site")
    published: Literal["paper", "other-data", "miniature", "none"] = Field(
        description="how its numbers relate to the published ones; none: they are not set beside any"
    )
    reference: str | None = Field(None, description="study whose runs hypotheses may compare with")
    data: str
    validation: PositiveInt = Field(description="training images held out")
    split_seed: Seed = 0
    seeds: list[Seed] = Field(min_length=1)
    eval_bits: list[int] = Field([32, 2, 3, 4, 8], description="32 means latent weights")
    threads: Threads = Field(1, description="CPU threads of every run")
    training: Training
    experiments: dict[Name, Experiment] = Field(min_length=1)
    tables: dict[Literal["table1", "table2", "table3", "table4", "table5"], Names] = Field(
        {}, description="experiments beside each published table; without any, the paper's claims are not shown"
    )
    figures: Figures = Field(
        {}, description="what figures 2, 3 and 5 to 8 show; a label makes another of its kind: figure2-mlp5"
    )
    comparisons: dict[Name, Comparison] = Field(
        {}, description="every method in one table: tables/comparison-<name>, with its two figures"
    )
    fingerprints: dict[str, Names] = Field(
        {}, description="experiment -> experiments whose baselines search its learning rate and split"
    )
    claims: Claims = Claims()
    posttraining: dict[Name, PostTraining] = Field({}, description="post-training methods applied to finished runs")
    toy_regression: ToyRegression | None = Field(None, description="AOQ's toy experiment, which needs no other run")
    hypotheses: dict[ShortName, Hypothesis] = Field({}, description="by a short name, H1 say")
    fitted: list[Published] = Field(
        [], description="published cells (model, setting, method, eval_bits) that a free choice was fitted to"
    )
    not_run: dict[str, str] = Field({}, description="experiment -> why it has not run; shown in its tables' cells")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        trainings = {"training": self.training} | {f"experiments.{k}": e.training for k, e in self.experiments.items()}
        for where, training in trainings.items():
            if training.precision == "bf16" and self.judged:
                raise ValueError(f"{where}: precision: bf16 is not what published numbers are compared with; use tf32")
        for bits in self.eval_bits:
            if bits != LATENT and not 2 <= bits <= 8:
                raise ValueError(f"eval_bits: {bits} is not 2 to 8, nor 32 for the latent weights")
        if LATENT not in self.eval_bits:
            raise ValueError(f"eval_bits: must hold {LATENT}, the latent weights")
        return self

    @property
    def judged(self) -> bool:
        """Whether its numbers are compared with the published ones."""
        return self.published in ("paper", "other-data")

    def dataset(self, experiment: str) -> str:
        own = self.experiments[experiment].data
        return self.data if own is None else own

    def held_out(self, experiment: str) -> int:
        return self.experiments[experiment].validation or self.validation

    @property
    def draws_weights(self) -> bool:
        """Whether a figure shows how weights lie on their grid."""
        return any(isinstance(spec, WeightPanels) for spec in self.figures.values())

    @property
    def checkpoints(self) -> set[str]:
        """Names of the pretrained weights that experiments start from."""
        return {experiment.pretrained for experiment in self.experiments.values() if experiment.pretrained}

    @property
    def figure_names(self) -> list[str]:
        """All figures, in the paper's order; 1, A1 and A5 are exact and need no run. Those of all methods come last."""
        compared = [f"{kind}-{name}" for name in self.comparisons for kind in COMPARISON_FIGURES]
        own = [f"figure-reconstruction-{name}" for name, entry in self.posttraining.items() if entry.reconstructs]
        own += ["figure-aoq-toy"] if self.toy_regression else []
        return ["figure1", *sorted(self.figures, key=figure_number), "figureA1", "figureA5", *compared, *own]


@dataclass(frozen=True)
class Run:
    """One training: a variant with one seed. All its paths are derived here and nowhere else."""

    study: str
    experiment: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.variant}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        return Path("results", self.study, "runs", self.name)

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        return Path("checkpoints", self.study, f"{self.name}.safetensors")

    @property
    def work(self) -> Path:
        """Undeclared folder of an unfinished variant: Snakemake never deletes it."""
        return Path("work", self.study, self.name)


@dataclass(frozen=True)
class Variant:
    """One training job: a resolved recipe and its seeds."""

    study: str
    experiment: str
    name: str
    recipe: dict[str, Any]
    seeds: tuple[int, ...]

    @property
    def path(self) -> str:
        return f"{self.experiment}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """Hash of the code that decides this variant's numbers."""
        model = models.find(self.recipe["model"]["name"]).__name__.removeprefix("oscillations.")
        return fingerprint("training", model, methods.find(self.recipe["method"]["name"]).__module__.split(".", 1)[1])

    def runs(self) -> list[Run]:
        return [self.run(seed) for seed in self.seeds]

    def run(self, seed: int) -> Run:
        return Run(self.study, self.experiment, self.name, seed)

    def parent(self, seed: int) -> Run | None:
        """The run whose checkpoint this one starts from."""
        start = self.recipe["start_from"]
        return None if start is None else Run(self.study, start, "baseline", seed)


class _UniqueKeys(yaml.SafeLoader):
    """YAML where a key that stands twice is an error, not a silent replacement."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        line = node.start_mark.line + 1
        raise InputError(f"{loader.name}: key {sorted(repeated)[0]!r} stands twice (mapping at line {line})")
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _plain_int(loader: _UniqueKeys, node: yaml.ScalarNode) -> int:
    """YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means."""
    if not re.fullmatch(r"[+-]?(0|[1-9][0-9_]*)", node.value):
        problem = f"{shortened(node.value)} is not a plain decimal number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _plain_int)


def _yaml_fault(error: Exception) -> str:
    """One line for what PyYAML says in several."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    return said if mark is None else f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def sibling(path: Path, name: object, where: str) -> Path:
    """The file of another study in the same folder; InputError, which names ``where``, if there is none."""
    known = sorted(file.stem for file in path.parent.glob("*.yaml"))
    if name not in known:
        raise InputError(f"{where}: no such study {shortened(name)}; {did_you_mean(name, known)}")
    return path.with_name(f"{name}.yaml")


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml") if file.is_file())
        raise InputError(f"{path}: no such study; {did_you_mean(path.stem, known)}")
    try:
        with path.open(encoding="utf-8") as handle:
            content = yaml.load(handle, _UniqueKeys)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a day or a number that is none
        raise InputError(f"{path}: not valid YAML: {_yaml_fault(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a study is a mapping of keys")
    return content


def load(path: Path) -> tuple[Study, list[Variant]]:
    """The checked study in ``path`` and its variants, in the file's order. Raises InputError."""
    study, variants = _load(path)
    _check_hypotheses(study, variants, path)
    return study, variants


def _load(path: Path) -> tuple[Study, list[Variant]]:
    """All that :func:`load` checks but for the hypotheses, which name variants of another study, too."""
    content = read_yaml(path)
    if (base := content.get("extends")) is not None:
        whole = read_yaml(sibling(path, base, f"{path}: extends"))
        if "extends" in whole:
            raise InputError(f"{path}: extends: {base} extends another study; one level is the limit")
        content = whole | content
    study: Study = parse(Study, content, str(path))
    if study.study != path.stem:
        raise InputError(f"{path}: study: {study.study!r} is not the file's name {path.stem!r}")
    for name in study.experiments:
        _check_data(study, name, path)
    variants = [
        variant
        for name, experiment in study.experiments.items()
        for variant in _variants(study, name, experiment, f"{path}: experiments.{name}")
    ]
    for name, experiment in study.experiments.items():  # now that each one's model is known to be right
        _check_start(study, experiment, f"{path}: experiments.{name}")
    seen: set[str] = set()
    for variant in variants:
        if variant.path in seen:
            where = f"{path}: experiments.{variant.experiment}.sweep"
            raise InputError(f"{where}: two of its points are both named {variant.name}; numbers this near are one")
        seen.add(variant.path)
        parse(Training, variant.recipe["training"], f"{path}: experiments.{variant.experiment}.sweep")
    _check_references(study, {variant.path: variant for variant in variants}, path)
    _check_posttraining(study, {variant.path: variant for variant in variants}, path)
    _check_comparisons(study, path)
    return study, variants


def _check_data(study: Study, experiment: str, path: Path) -> None:
    data, held = study.dataset(experiment), study.held_out(experiment)
    where = f"{path}: experiments.{experiment}"
    if data not in datasets.names():
        key = f"{path}: data" if study.experiments[experiment].data is None else f"{where}.data"
        raise InputError(f"{key}: unknown dataset {data!r}; {did_you_mean(data, datasets.names())}")
    images = datasets.find(data).TRAIN_IMAGES
    if held >= images:
        key = f"{where}.validation" if study.experiments[experiment].validation else f"{path}: validation"
        raise InputError(f"{key}: {held} of {images} training images leave none to train on")


def _variants(study: Study, name: str, experiment: Experiment, where: str) -> Iterator[Variant]:
    model, layers = _model_and_layers(experiment, datasets.find(study.dataset(name)).IMAGE_SHAPE, where)
    patterns = experiment.quant_layers or models.find(model["name"]).QUANTIZED
    _check_patterns(patterns, layers, f"{where}.quant_layers")
    pretrained = None if experiment.pretrained is None else _resolved_weights(study, name, model, f"{where}.pretrained")
    if experiment.classes:
        data, last = study.dataset(name), len(datasets.find(study.dataset(name)).CLASSES) - 1
        wrong = [label for label in experiment.classes if not 0 <= label <= last]
        if wrong:
            raise InputError(f"{where}.classes: {data} has no class number {wrong[0]}; 0 to {last}")
    _check_sweep(experiment, where)
    for method, options in experiment.methods.items():
        for label, point, resolved in _method_points(experiment, method, dict(options or {}), where):
            _check_patterns(resolved.get("reg_layers", ["*"]), layers, f"{where}.methods.{method}.reg_layers")
            missing = {resolved.get("bits", LATENT)} - set(study.eval_bits)
            if missing:
                raise InputError(f"{where}.methods.{method}.bits: {missing.pop()} is not among eval_bits")
            try:
                methods.find(method).check(resolved, model["name"], layers, patterns)
            except ValueError as error:
                raise InputError(f"{where}.methods.{method}: {error}") from None
            changes = experiment.training.model_dump(exclude_none=True)
            training = study.training.model_dump() | changes | point
            recipe = {
                "data": study.dataset(name),
                "validation": study.held_out(name),
                "split_seed": study.split_seed,
                "images": experiment.images and experiment.images.model_dump(),
                "classes": experiment.classes,
                "resize": experiment.resize,
                "model": model,
                "quant_layers": patterns,
                "setting": experiment.setting,
                "start_from": experiment.start_from,
                "pretrained": pretrained,
                "method": {"name": method} | resolved,
                "training": training,
                "eval_bits": study.eval_bits,
                "threads": study.threads,
            }
            recipe = json.loads(json.dumps(recipe))  # plain JSON values, as the record will hold them
            yield Variant(study.study, name, label, recipe, tuple(experiment.seeds or study.seeds))


def _model_and_layers(
    experiment: Experiment, image_shape: tuple[int, int, int], where: str
) -> tuple[dict[str, Any], list[str]]:
    """The resolved options of an experiment's model, and the names of its layers; it takes the images."""
    name, known = experiment.model.get("name"), models.names()
    if not isinstance(name, str):
        raise InputError(f"{where}.model: name is missing; known: {', '.join(known)}")
    if name not in known and not name.startswith(tuple(f"{library}/" for library in models.LIBRARIES)):
        raise InputError(f"{where}.model.name: unknown model {shortened(name)}; {did_you_mean(name, known)}")
    module = models.find(name)
    options = parse(module.Options, experiment.model, f"{where}.model")
    side = experiment.resize
    shape = image_shape if side is None else (image_shape[0], side, side)
    try:
        layers = module.layers(options)
        models.check(options, shape)
    except ValueError as error:
        raise InputError(f"{where}.model.{error}") from None
    return options.model_dump(mode="json"), layers


def _check_sweep(experiment: Experiment, where: str) -> None:
    if "lambda" in experiment.sweep:
        known = [methods.find(method) for method in experiment.methods if method in methods.names()]
        keys = {field.alias for method in known for field in method.Options.model_fields.values()}
        if "lambda" not in keys:
            raise InputError(f"{where}.sweep.lambda: none of the methods has a lambda: {', '.join(experiment.methods)}")


def _method_points(
    experiment: Experiment, method: str, options: dict[str, Any], where: str
) -> Iterator[tuple[str, dict[str, float], dict[str, Any]]]:
    """(variant name, training change, resolved options) for every bit width and sweep point of a method."""
    where = f"{where}.methods.{method}"
    if method == "ptq":
        raise InputError(f"{where}: PTQ trains nothing; it is an evaluation of baseline at every eval_bits")
    if method not in methods.names():
        raise InputError(f"{where}: unknown method {method!r}; {did_you_mean(method, methods.names())}")
    model = methods.find(method).Options
    known = {field.alias or name for name, field in model.model_fields.items()}
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
                chosen = options | ({} if width is None else {"bits": width}) | ({} if lam is None else {"lambda": lam})
                resolved = parse(model, chosen, where).model_dump(mode="json", by_alias=True)
                label = [method] if width is None else [method, bit_name(width)]
                label += [] if lam is None else [f"lambda{lam:g}"]
                label += [] if lr is None else [f"lr{short_float(lr)}"]
                yield "-".join(label), {} if lr is None else {"lr": lr}, resolved


def short_float(value: float) -> str:
    """0.003 -> 3e-3, 0.00025 -> 2.5e-4: the way learning rates are written in names."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _check_patterns(patterns: list[str], layers: list[str], where: str) -> None:
    if not patterns:
        raise InputError(f"{where}: the list is empty; known: {', '.join(layers[:SHOWN])}")
    for pattern in patterns:
        if not models.quantized_layers(layers, [pattern]):
            raise InputError(f"{where}: {pattern!r} matches no layer; {did_you_mean(pattern, layers)}")


def _check_start(study: Study, experiment: Experiment, where: str) -> None:
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
    parent = study.experiments.get(start)
    if parent is None:
        raise InputError(f"{where}.start_from: unknown experiment {start!r}; {did_you_mean(start, study.experiments)}")
    if "baseline" not in parent.methods or parent.sweep or parent.start_from or parent.pretrained:
        raise InputError(f"{where}.start_from: {start} must train one baseline from scratch")
    if parent.model != experiment.model or parent.resize != experiment.resize or parent.data != experiment.data:
        raise InputError(f"{where}.start_from: {start} trains another model, image size or dataset")
    missing = set(experiment.seeds or study.seeds) - set(parent.seeds or study.seeds)
    if missing:
        raise InputError(f"{where}.start_from: {start} has no seed {sorted(missing)[0]}")


def _resolved_weights(study: Study, name: str, model: dict[str, Any], where: str) -> dict[str, Any]:
    experiment = study.experiments[name]
    channels, height, width = datasets.find(study.dataset(name)).IMAGE_SHAPE
    side = experiment.resize
    return weights.resolve(experiment.pretrained, model, (channels, side or height, side or width), where)


def _check_references(study: Study, variants: dict[str, Variant], path: Path) -> None:
    """Tables, reasons, figures and searches name experiments, variants and layers that exist."""
    experiments = {"not_run": list(study.not_run)}
    experiments |= {f"tables.{table}": names for table, names in study.tables.items()}
    for name, spec in study.figures.items():
        where = f"figures.{name}"
        if isinstance(spec, Sweep):
            experiments[f"{where}.experiments"] = spec.experiments
            continue
        for panel in spec.panels:
            if panel not in variants:
                raise InputError(f"{path}: {where}.panels: unknown variant {panel!r}; {did_you_mean(panel, variants)}")
            if isinstance(spec, WeightPanels):
                shown, layer = variants[panel].recipe["model"], spec.layer.removesuffix(".weight")
                layers = models.find(shown["name"]).layers(models.find(shown["name"]).Options(**shown))
                if layer not in layers:
                    wrong = f"{layer!r} is no layer of {panel}"
                    raise InputError(f"{path}: {where}.layer: {wrong}; {did_you_mean(layer, layers)}")
    for main, searches in study.fingerprints.items():
        experiments[f"fingerprints.{main}"] = [main, *searches]
    for where, names in experiments.items():
        for name in names:
            if name not in study.experiments:
                raise InputError(
                    f"{path}: {where}: unknown experiment {name!r}; {did_you_mean(name, study.experiments)}"
                )
            several = any(len(points) > 1 for points in study.experiments[name].sweep.values())
            if several and where in ("tables.table1", "tables.table2", "tables.table3"):
                raise InputError(f"{path}: {where}: {name} is a sweep; this table has one run per cell and seed")
            if where.startswith("fingerprints") and "baseline" not in study.experiments[name].methods:
                raise InputError(f"{path}: {where}: {name} trains no baseline")
    for main in study.fingerprints:
        if f"{main}/baseline" not in variants:
            raise InputError(f"{path}: fingerprints.{main}: has no one learning rate that would be the study's choice")


def _check_posttraining(study: Study, variants: dict[str, Variant], path: Path) -> None:
    """Entries name variants, methods and options that exist and fit each other."""
    for name, entry in study.posttraining.items():
        where = f"{path}: posttraining.{name}"
        for variant in entry.of:
            if variant not in variants:
                raise InputError(f"{where}.of: unknown variant {variant!r}; {did_you_mean(variant, variants)}")
            if variants[variant].recipe["method"].get("qkr"):
                raise InputError(f"{where}.of: {variant}: its attention (qkr) cannot be cut into units")
        for bits in entry.bits:
            if bits not in study.eval_bits:
                raise InputError(f"{where}.bits: {bits} is not among eval_bits {study.eval_bits}")
        for label, given in entry.methods.items():
            options = dict(given or {})
            method = options.pop("method", label)
            if method not in posttraining.names():
                known = posttraining.names()
                raise InputError(f"{where}.methods.{label}: unknown method {method!r}; {did_you_mean(method, known)}")
            found = posttraining.find(method)
            chosen = parse(found.Options, options, f"{where}.methods.{label}")
            for variant in entry.of:
                try:
                    found.check(chosen, variants[variant].recipe)
                except ValueError as error:
                    raise InputError(f"{where}.methods.{label}: {variant}: {error}") from None


def _check_comparisons(study: Study, path: Path) -> None:
    """Comparisons name experiments of one model and post-training entries that exist, at a width that is evaluated."""
    for name, spec in study.comparisons.items():
        where = f"{path}: comparisons.{name}"
        for key, known in (("experiments", study.experiments), ("posttraining", study.posttraining)):
            for wrong in [entry for entry in getattr(spec, key) if entry not in known]:
                raise InputError(f"{where}.{key}: unknown entry {wrong!r}; {did_you_mean(wrong, known)}")
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


def _check_hypotheses(study: Study, variants: list[Variant], path: Path) -> None:
    """Hypotheses name variants of the study or of its reference, at bits that these are evaluated at."""
    known = {variant.path: variant for variant in variants}
    if study.reference is not None:
        where = f"{path}: reference"
        if study.reference == study.study:
            raise InputError(f"{where}: {study.reference} is the study itself; leave reference out")
        known = {variant.path: variant for variant in _load(sibling(path, study.reference, where))[1]} | known
    for name, hypothesis in study.hypotheses.items():
        for place, tested in enumerate(hypothesis.comparisons):
            where = f"{path}: hypotheses.{name}.comparisons.{place}"
            for key, variant, bits in tested.named():
                if variant not in known:
                    raise InputError(
                        f"{where}.{key}: unknown variant {shortened(variant)}; {did_you_mean(variant, known)}"
                    )
                if bits and bits not in (evaluated := known[variant].recipe["eval_bits"]):
                    raise InputError(
                        f"{where}.{key.split('.variants')[0]}.bits: {bits} is not among eval_bits {evaluated}"
                    )


def json_schema() -> dict[str, Any]:
    """JSON schema of a study file; options of methods and models live in their own files (``check`` knows them)."""
    return Study.model_json_schema()


def _named(only: str) -> list[str]:
    return [name.strip() for name in str(only).split(",")]


def narrow_posttraining(study: Study, only: str | None = None) -> list[str]:
    """The post-training entries that ``only`` names; all if it names nothing."""
    return [name for name in study.posttraining if not only or name in _named(only)]


def narrow(
    variants: list[Variant], only: str | None = None, seeds: Any = None, entries: Iterable[str] = ()
) -> list[Variant]:
    """The variants of some experiments (or ``experiment/variant``) with some seeds, comma-separated.

    ``seeds`` may be an int, as Snakemake passes a single one. What a fine-tune starts from is kept as well.
    ``entries``: names of post-training entries, which ``only`` may hold, too.
    """
    if only:
        wanted = _named(only)
        known = {variant.experiment for variant in variants} | {variant.path for variant in variants} | set(entries)
        for name in wanted:
            if name not in known:
                raise InputError(f"only={name}: no such experiment, variant or entry; {did_you_mean(name, known)}")
        chosen = [v for v in variants if v.experiment in wanted or v.path in wanted]
        starts = {v.recipe["start_from"] for v in chosen}
        variants = [v for v in variants if v in chosen or (v.experiment in starts and v.name == "baseline")]
    if seeds is not None and seeds != "":
        try:
            kept = {int(seed) for seed in str(seeds).split(",")}
        except ValueError:
            raise InputError(f"seeds={seeds}: give whole numbers, e.g. seeds=0,1") from None
        missing = kept - {seed for variant in variants for seed in variant.seeds}
        if missing:
            raise InputError(f"seeds={seeds}: the study has no seed {min(missing)}")
        variants = [
            Variant(v.study, v.experiment, v.name, v.recipe, seeds)
            for v in variants
            if (seeds := tuple(seed for seed in v.seeds if seed in kept))
        ]
    return variants
