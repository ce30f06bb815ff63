"""Round every weight to its nearest level (Eq. 1); the reference of all post-training methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from oscillations.posttraining import Options, PostTraining

if TYPE_CHECKING:
    from oscillations.engine.recipe import Recipe
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit


class NearestOptions(Options):
    scale: Literal["max", "mse", "rescaled"] = Field(
        "max", description="Eq. 2, the least squared error, or the learned scale times the ratio of largest codes"
    )

    @model_validator(mode="after")
    def _learned_scales_are_as_they_are(self) -> NearestOptions:
        if self.scale == "rescaled" and self.per_channel:
            raise ValueError("per_channel: rescaled scales are per channel where the run learned them so")
        return self


class Nearest(PostTraining):
    Options = NearestOptions

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        calibration.quantized = {name: calibration.nearest(name) for name in calibration.weights}
        return [[unit] for unit in calibration.chain.units]

    @classmethod
    def check(cls, options: NearestOptions, recipe: Recipe, layers: list[str]) -> None:
        """Only the methods that learn scales have a rate for it."""
        if options.scale == "rescaled" and recipe.method.get("scale_lr") is None:
            raise ValueError(f"scale: rescaled: {recipe.method.name} learns no scales; use max or mse")
