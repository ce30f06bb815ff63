"""Post-training methods, one per file, found by name: they quantize a trained network with a few images.

A method is a file here with one :class:`PostTraining` subclass; the file's name (dashes for underscores) is its
name in a study. Only weights are quantized. ``units`` cuts a network into a chain, ``reconstruction`` is the
optimisation that all but ``nearest`` share, ``measurement`` applies a method to a run and measures what came out.

Studies are checked before every command, so importing a method must stay cheap: import torch inside the
functions that need it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from oscillations.config import Strict

if TYPE_CHECKING:
    from oscillations.posttraining.reconstruction import Calibration
    from oscillations.posttraining.units import Unit

TOOLS = {"units", "reconstruction", "measurement"}


class Options(Strict):
    """What a study may say about every post-training method."""

    scale: Literal["max", "mse"] = Field("max", description="Eq. 2, or the least squared error of nearest rounding")
    per_channel: bool = Field(False, description="one scale for each output channel, not one for each tensor")
    images: int = Field(1024, ge=1, le=10_000_000, description="calibration images: the first of the training set")


class ReconstructionOptions(Options):
    """Options of the methods that learn the rounding (AdaRound's, at the scale of CIFAR)."""

    iterations: int = Field(2000, ge=1, le=10_000_000, description="steps for each layer, block or group")
    batch_size: int = Field(32, ge=1, le=1_000_000)
    lr: float = Field(1e-3, gt=0, le=1000, description="learning rate of Adam on V")
    nu: NonNegativeFloat = Field(0.01, description="weight of the rounding term")


class PostTraining:
    """Base of all post-training methods."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options):
        self.options = options

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        """Put all quantized weights into ``calibration.quantized``.

        Returns its units in the groups in which they were quantized, in network order. Raises InputError if the
        network has no such units or groups as the options name.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, options: Options, recipe: dict[str, Any]) -> None:
        """Raise ValueError if the method cannot be applied to a run with this recipe."""


def names() -> list[str]:
    """All method names: the files of this folder but the shared tools, dashes for underscores."""
    found = {module.name for module in pkgutil.iter_modules(__path__)} - TOOLS
    return sorted(name.replace("_", "-") for name in found)


def find(name: str) -> type[PostTraining]:
    """The method class in the file of that name."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return next(
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PostTraining) and value.__module__ == module.__name__
    )  # fmt: skip
