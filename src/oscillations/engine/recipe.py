"""The recipe of a run: everything that decides its numbers but the seed, resolved and typed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from oscillations.core.bits import LATENT
from oscillations.core.config import Strict

if TYPE_CHECKING:
    from oscillations.engine.method import MethodOptions

OptionsT = TypeVar("OptionsT", bound=Strict, covariant=True)

# Limits beyond which a number is a slip of the pen: no machine could do what it says.
Epochs = Annotated[int, Field(ge=1, le=100_000)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
WeightDecay = Annotated[float, Field(ge=0, le=1000)]
ImageCount = Annotated[int, Field(ge=1, le=1_000_000_000)]
Strength = Annotated[float, Field(ge=0, le=1e38)]  # of a penalty or regularizer; float32 holds no more
SignedStrength = Annotated[float, Field(ge=-1e38, le=1e38)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]


class Training(Strict):
    """How a network is trained; the same for every method of an experiment."""

    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="adam, adamw: torch's defaults but for weight_decay; sgd: momentum 0.9"
    )
    lr: LearningRate = Field(description="learning rate")
    weight_decay: WeightDecay = Field(
        0.0, description="adamw: w - lr decay w in every step; adam, sgd: decay w is added to the gradient"
    )
    decay: Literal["all", "matrices"] = Field(
        "all", description="of all parameters, or of layers' weights, as in timm: no biases, norms, tokens or positions"
    )
    schedule: Literal["none", "cosine", "linear"] = Field(
        "none", description="of the rate after the warm-up: constant, or to 0 by half a cosine or a line"
    )
    warmup: float = Field(0.0, ge=0, description="epochs, or a part of one, in which the rate rises in a line to lr")
    warmup_start: float = Field(0.0, ge=0, description="learning rate that the warm-up rises from")
    batch_size: BatchSize
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of matrix products: float32, TF32 where the GPU has it, or bfloat16 in training only"
    )
    epochs: Epochs = Field(description="at most so many")
    patience: Epochs = Field(description="stop after so many epochs without improvement")
    augment: Literal["none", "crop_flip"] = Field("none", description="crop_flip: random crop (padding 4) and mirror")
    keep: Literal["best", "last", "both"] = Field(
        "best", description="weights: of the best validation epoch, of the end of training, or both"
    )

    @property
    def kept(self) -> dict[str, str]:
        """The weights a run keeps (``best``, ``last``) and what their checkpoint is called; the first stand for it."""
        return {"best": "checkpoint", "last": "last_checkpoint"} if self.keep == "both" else {self.keep: "checkpoint"}

    @model_validator(mode="after")
    def _decays_and_warms_up(self) -> Training:
        if self.decay != "all" and not self.weight_decay:
            raise ValueError("decay: nothing decays without weight_decay; leave decay out")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup: {self.warmup:g} of {self.epochs} epochs leave none after it; say less")
        if self.warmup_start and not self.warmup:
            raise ValueError("warmup_start: nothing rises without warmup; leave warmup_start out")
        if self.warmup_start >= self.lr:
            raise ValueError(f"warmup_start: {self.warmup_start:g} does not rise to lr {self.lr:g}; say less")
        return self


class Activations(Strict):
    """How the inputs of the quantized layers are quantized (:mod:`oscillations.engine.activations`)."""

    bits: int = Field(ge=2, le=8, description="bit width")
    first_last: int = Field(8, ge=2, le=8, description="that of the model's first and last layer")
    lr: LearningRate = Field(1e-4, description="learning rate of the steps' Adam; constant")


class ReducedSplits(Strict):
    """Numbers of images, drawn evenly over the classes with the seed of the split; of a split with fewer, all."""

    train: ImageCount
    validation: ImageCount
    test: ImageCount


@dataclass(frozen=True)
class Pretrained:
    """A public checkpoint by name, and the mean and std per channel that its inputs were normalised with."""

    name: str
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Choice(Generic[OptionsT]):
    """A method or a model with all its options, resolved."""

    name: str
    options: OptionsT

    def get(self, option: str, default: Any = None) -> Any:
        """An option by the name that a study gives it (``lambda``); ``default`` if there is none such."""
        fields = type(self.options).model_fields
        name = next((name for name, field in fields.items() if (field.alias or name) == option), option)
        return getattr(self.options, name, default)

    def plain(self) -> dict[str, Any]:
        """JSON values, as a study would say them."""
        return {"name": self.name} | self.options.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Recipe:
    """Whatever is None is not asked for.

    ``images`` and ``classes`` reduce the data; ``start_from`` is an experiment, ``pretrained`` a public checkpoint,
    ``histograms`` the weight whose histogram is recorded at every epoch. ``activations`` quantizes activations, too;
    ``first_last_bits`` is the width of the weights of the first and the last layer.
    """

    data: str
    model: Choice[Strict]
    method: Choice[MethodOptions]
    training: Training
    quant_layers: tuple[str, ...]
    validation: int
    eval_bits: tuple[int, ...]
    setting: str = "scratch"
    split_seed: int = 0
    images: ReducedSplits | None = None
    classes: tuple[int, ...] | None = None
    resize: int | None = None
    start_from: str | None = None
    pretrained: Pretrained | None = None
    threads: int = 1
    histograms: str | None = None
    activations: Activations | None = None
    first_last_bits: int | None = None

    @property
    def bits(self) -> int:
        """The bit width that is trained for; 32 for the latent weights."""
        return self.method.options.target_bits or LATENT

    @property
    def activation_bits(self) -> int | None:
        """The bit width of quantized activations; None where they are not quantized."""
        return None if self.activations is None else self.activations.bits

    def plain(self) -> dict[str, Any]:
        """JSON values, as a record holds them."""
        values = dict(vars(self))
        for key, value in values.items():
            if isinstance(value, Choice):
                values[key] = value.plain()
            elif isinstance(value, Strict):
                values[key] = value.model_dump(mode="json")
            elif isinstance(value, Pretrained):
                values[key] = vars(value)
        return json.loads(json.dumps(values))
