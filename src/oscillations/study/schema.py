"""What a study file says about its runs, as types: unknown keys and impossible values are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, WithJsonSchema, model_validator

from oscillations import datasets, posttraining
from oscillations.core.bits import LATENT, REQUANTIZE, SLICE, SLICED
from oscillations.core.config import Strict
from oscillations.core.errors import did_you_mean, shortened
from oscillations.engine.recipe import Activations, Epochs, ReducedSplits, Training
from oscillations.study.report_schema import (
    Claims,
    ComparisonTable,
    Figures,
    Film,
    Gain,
    Hypothesis,
    Published,
    WeightPanels,
    figure_number,
)

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]
ShortName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9.]+)*$")]
Names = Annotated[list[str], Field(min_length=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]  # as the limits of a recipe
SideLength = Annotated[int, Field(ge=1, le=1024)]


def _of_training(change: dict[str, Any]) -> dict[str, Any]:
    for key in change:
        if key not in Training.model_fields:
            raise ValueError(f"unknown key {shortened(key)}; {did_you_mean(key, Training.model_fields)}")
    return change


#: Some of Training's keys; their values are checked where they replace the study's.
TrainingChange = Annotated[
    dict[str, Any],
    AfterValidator(_of_training),
    WithJsonSchema({key: value for key, value in Training.model_json_schema().items() if key != "required"}),
]


class Wanted(Strict):
    """Which runs of a study are asked for now."""

    only: list[str] = Field([], description="experiments, experiment/variant, or entries of posttraining")
    seeds: list[Seed] = Field([], description="of them; all, if empty")


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
    training: TrainingChange = Field({}, description="what it changes of the study's training")
    seeds: list[Seed] | None = Field(None, min_length=1, description="instead of the study's")
    data: str | None = Field(None, description="dataset, instead of the study's")
    validation: PositiveInt | None = Field(None, description="training images held out, instead of the study's")
    classes: list[int] | None = Field(None, min_length=2, description="keep only these classes")
    images: ReducedSplits | None = Field(
        None, description="use only so many images of each split, drawn evenly over the classes"
    )
    resize: SideLength | None = Field(None, description="upsample images to this side length")
    quant_layers: list[str] | None = Field(None, min_length=1, description="patterns, instead of the model's")
    histograms: str | None = Field(
        None,
        description="weight whose histogram is recorded at every epoch, e.g. fc2.weight (a baseline has none)",
    )
    activations: Activations | None = Field(
        None, description="quantize the inputs of the quantized layers, too: {bits: 3, first_last: 8}"
    )
    first_last_bits: int | None = Field(
        None, ge=2, le=8, description="bit width of the weights of the model's first and last layer, at every width"
    )
    start_from: str | None = Field(None, description="experiment whose baseline of the same seed is fine-tuned")
    pretrained: str | None = Field(
        None,
        description="public checkpoint that is fine-tuned: torchvision/resnet18, timm/deit_tiny_patch16_224, ...",
    )


class ToyRegression(Strict):
    """AOQ's toy experiment: linear regression on weights that a 2-bit grid holds exactly."""

    seeds: list[Seed] = Field(min_length=1)
    epochs: Epochs = Field(200, description="of each of its trainings; the source's are 200")


class PostTrainingEntry(Strict):
    """Post-training quantization of runs of this study."""

    of: list[str] = Field(min_length=1, description="experiment/variant of the runs")
    bits: list[Annotated[int, Field(ge=2, le=8)]] = Field(min_length=1, description="among eval_bits")
    methods: dict[Name, dict[str, Any] | None] = Field(
        min_length=1, description="label -> the method's options, and method: its name if the label is another"
    )

    def resolved(self) -> Iterator[tuple[str, str, posttraining.PostTrainingOptions]]:
        """(label, method, its options) of every label; the study has been checked."""
        for label, given in self.methods.items():
            options = dict(given or {})
            method = options.pop("method", label)
            yield label, method, posttraining.find(method).Options(**options)

    @property
    def reconstructs(self) -> bool:
        """Whether a method of it learns anything."""
        return any(method != "nearest" for _, method, _ in self.resolved())


class ExportEntry(Strict):
    """Runs of this study as files for elsewhere: their sizes, accuracies and times."""

    of: list[str] = Field(min_length=1, description="experiment/variant of the runs")
    seeds: list[Seed] | None = Field(None, min_length=1, description="of their seeds; else all")
    bits: list[Annotated[int, Field(ge=2, le=8)]] = Field([2, 3, 4, 8], min_length=1, description="widths of files")

    def takes(self, path: str, seed: int) -> bool:
        """Whether a run of variant ``path`` is one of them."""
        return path in self.of and (self.seeds is None or seed in self.seeds)


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
    companions: list[str] = Field([], description="studies whose runs stand in the table of the gain, too")
    data: str
    validation: PositiveInt = Field(description="training images held out")
    split_seed: Seed = 0
    seeds: list[Seed] = Field(min_length=1)
    eval_bits: list[int] = Field([32, 2, 3, 4, 8], description="32 means latent weights")
    cross_bit: list[Literal["requantize", "slice"]] = Field(
        ["requantize"],
        description="rules that give weights fewer bits: Eq. 2 at each width; and the leading bits of 8, beside it",
    )
    threads: Threads = Field(1, description="CPU threads of every run")
    training: Training
    experiments: dict[Name, Experiment] = Field(min_length=1)
    tables: dict[Literal["table1", "table2", "table3", "table4", "table5"], Names] = Field(
        {}, description="experiments beside each published table; without any, the paper's claims are not shown"
    )
    figures: Figures = Field(
        {},
        description="what figures and films show (1, A1, A5: {}); a label makes another of its kind: figure2-mlp5",
    )
    comparisons: dict[Name, ComparisonTable] = Field(
        {}, description="every method in one table: tables/comparison-<name>, with its figure"
    )
    rate_searches: dict[str, Names] = Field(
        {}, description="experiment -> experiments whose baselines search its learning rate and split"
    )
    method_rates: dict[str, str] = Field(
        {}, description="experiment -> the sweep of learning rates that searches one for each of its methods"
    )
    claims: Claims = Claims()
    posttraining: dict[Name, PostTrainingEntry] = Field({}, description="methods applied to finished runs")
    exports: dict[Name, ExportEntry] = Field({}, description="runs whose files are measured on request: target exports")
    toy_regression: ToyRegression | None = Field(None, description="AOQ's toy experiment, which needs no other run")
    hypotheses: dict[ShortName, Hypothesis] = Field({}, description="by a short name, H1 say")
    gain: Gain | None = Field(None, description="table of what explains the gain over PTQ")
    fitted: list[Published] = Field(
        [], description="published cells (model, setting, method, eval_bits) that a free choice was fitted to"
    )
    wanted: Wanted = Field(
        Wanted(), description="what is made unless a command says only= or seeds=; all, if it names nothing"
    )
    not_run: dict[str, str] = Field({}, description="experiment -> why it has not run; shown in its tables' cells")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        trainings = {"training": self.training.model_dump()}
        trainings |= {f"experiments.{name}.training": one.training for name, one in self.experiments.items()}
        for where, training in trainings.items():
            for key, value, instead in (("precision", "bf16", "tf32"), ("keep", "last", "both")):
                if self.judged and training.get(key) == value:
                    raise ValueError(
                        f"{where}: {key}: {value} is not what published numbers are compared with; use {instead}"
                    )
        for bits in self.eval_bits:
            if bits != LATENT and not 2 <= bits <= 8:
                raise ValueError(f"eval_bits: {bits} is not 2 to 8, nor 32 for the latent weights")
        if LATENT not in self.eval_bits:
            raise ValueError(f"eval_bits: must hold {LATENT}, the latent weights")
        if REQUANTIZE not in self.cross_bit:
            raise ValueError(f"cross_bit: must hold {REQUANTIZE}, by which all is compared; {SLICE} comes beside it")
        if self.slices and min(self.eval_bits) >= SLICED:
            raise ValueError(f"cross_bit: {SLICE}: eval_bits has no width below {SLICED} to slice at")
        return self

    @property
    def judged(self) -> bool:
        """Whether its numbers are compared with the published ones."""
        return self.published in ("paper", "other-data")

    @property
    def near_chance(self) -> float:
        """Accuracy, in percent, below which a network does little more than guess the study's classes."""
        return 100 / len(datasets.find(self.data).CLASSES) + self.claims.chance_margin

    @property
    def slices(self) -> bool:
        """Whether slices of the most significant bits are evaluated, too."""
        return SLICE in self.cross_bit

    def dataset(self, experiment: str) -> str:
        own = self.experiments[experiment].data
        return self.data if own is None else own

    def held_out(self, experiment: str) -> int:
        return self.experiments[experiment].validation or self.validation

    def shown_in(self, table: str) -> list[str]:
        """The experiments beside a published table."""
        return next((names for name, names in self.tables.items() if name == table), [])

    @property
    def draws_weights(self) -> bool:
        """Whether a figure shows how weights lie on their grid."""
        return any(isinstance(spec, WeightPanels) for spec in self.figures.values())

    @property
    def checkpoints(self) -> set[str]:
        """Names of the pretrained weights that experiments start from."""
        return {experiment.pretrained for experiment in self.experiments.values() if experiment.pretrained}

    @property
    def films(self) -> dict[str, Film]:
        """The figures that move."""
        return {name: spec for name, spec in self.figures.items() if isinstance(spec, Film)}

    @property
    def figure_names(self) -> list[str]:
        """All figures but films, in the paper's order; those of all methods come last."""
        compared = [f"figure-comparison-{name}" for name in self.comparisons]
        own = [f"figure-reconstruction-{name}" for name, entry in self.posttraining.items() if entry.reconstructs]
        own += ["figure-aoq-toy"] if self.toy_regression else []
        own += ["figure-gain"] if self.gain else []
        still = [name for name in self.figures if name not in self.films]
        numbered = sorted(still, key=lambda name: (name.startswith("figure-"), figure_number(name)))
        return [*numbered, *compared, *own]
