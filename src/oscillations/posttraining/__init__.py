"""Post-training methods, one per file, found by name: they quantize a trained network with a few images.

A method is a file here with one :class:`PostTraining` subclass; the file's name (dashes for underscores) is its
name in a study. Weights are quantized, and inputs of layers if a study says so (``_inputs``). ``_units`` cuts a network
into a chain, ``_reconstruction`` is the optimisation that all but ``nearest`` share, ``_measurement`` applies a method
to a run and measures what came out.

Studies are checked before every command, so importing a method must stay cheap: import torch inside the
functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from oscillations.core import registry
from oscillations.core.config import Strict

if TYPE_CHECKING:
    from oscillations.engine.recipe import Recipe
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit


class InputOptions(Strict):
    """How the inputs of the quantized layers are quantized (:mod:`oscillations.posttraining._inputs`)."""

    bits: int = Field(ge=2, le=8, description="bit width")
    first_last: int = Field(8, ge=2, le=8, description="that of the model's first and last layer")


class PostTrainingOptions(Strict):
    """What a study may say about every post-training method."""

    scale: Literal["max", "mse", "rescaled"] = Field(
        "max", description="Eq. 2, the least squared error, or the learned scale times the ratio of largest codes"
    )
    per_channel: bool = Field(False, description="one scale for each output channel, not one for each tensor")
    images: int = Field(1024, ge=1, le=10_000_000, description="calibration images: the first of the training set")
    activations: InputOptions | None = Field(
        None, description="quantize the inputs of the quantized layers, too: {bits: 4, first_last: 8}"
    )
    first_last_bits: int | None = Field(
        None, ge=2, le=8, description="bit width of the weights of the model's first and last layer"
    )

    @property
    def activation_bits(self) -> int | None:
        """Bit width of the layers' inputs; None: these stay in floating point."""
        return self.activations.bits if self.activations else None


class ReconstructionOptions(PostTrainingOptions):
    """Options of the methods that learn the rounding (AdaRound's, at the scale of CIFAR)."""

    scale: Literal["max", "mse"] = Field("max", description="Eq. 2, or the least squared error of nearest rounding")
    iterations: int = Field(2000, ge=1, le=10_000_000, description="steps for each layer, block or group")
    batch_size: int = Field(32, ge=1, le=1_000_000)
    lr: float = Field(1e-3, gt=0, le=1000, description="learning rate of Adam on V")
    nu: NonNegativeFloat = Field(0.01, description="weight of the rounding term")
    step_lr: float = Field(4e-5, gt=0, le=1000, description="rate of Adam on the steps of inputs; half a cosine to 0")

    @model_validator(mode="after")
    def _learns_steps_of_inputs(self) -> ReconstructionOptions:
        if self.activations is None and self.step_lr != type(self).model_fields["step_lr"].default:
            raise ValueError("step_lr: no inputs are quantized; say activations, or leave step_lr out")
        return self


class PostTraining:
    """Base of all post-training methods."""

    Options: ClassVar[type[PostTrainingOptions]] = PostTrainingOptions
    options: PostTrainingOptions

    def __init__(self, options: PostTrainingOptions):
        self.options = options

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        """Put all quantized weights into ``calibration.quantized``.

        Returns its units in the groups in which they were quantized, in network order. Raises InputError if the
        network has no such units or groups as the options name.
        """
        raise NotImplementedError

    def check(self, recipe: Recipe, layers: list[str]) -> None:
        """Raise ValueError if the method cannot be applied to a run with this recipe; ``layers`` are its model's."""


def names() -> list[str]:
    """All method names."""
    return registry.names(__path__)


def find(name: str) -> type[PostTraining]:
    """The class of method ``name``."""
    return registry.subclass(__name__, name, PostTraining)
