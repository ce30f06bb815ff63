"""Round every weight to its nearest level (Eq. 1); the reference of all post-training methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from oscillations.posttraining import PostTraining, PostTrainingOptions

if TYPE_CHECKING:
    from oscillations.engine.recipe import Recipe
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit


class NearestOptions(PostTrainingOptions):
    @model_validator(mode="after")
    def _learned_scales_are_as_they_are(self) -> NearestOptions:
        if self.scale == "rescaled" and self.per_channel:
            raise ValueError("per_channel: rescaled scales are per channel where the run learned them so")
        return self


class Nearest(PostTraining):
    Options = NearestOptions
    options: NearestOptions

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        calibration.quantized = {name: calibration.nearest(name) for name in calibration.weights}
        return [[unit] for unit in calibration.chain.units]

    def check(self, recipe: Recipe, layers: list[str]) -> None:
        """Only a learned scale is rescaled."""
        if self.options.scale == "rescaled" and not recipe.method.options.learns_scales:
            raise ValueError(f"scale: rescaled: {recipe.method.name} learns no scales; use max or mse")
