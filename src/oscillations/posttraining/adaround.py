"""AdaRound: learned rounding, layer by layer (Nagel et al. 2020, arXiv:2004.10568)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oscillations.posttraining import PostTraining, ReconstructionOptions

if TYPE_CHECKING:
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit


class AdaRound(PostTraining):
    Options = ReconstructionOptions
    options: ReconstructionOptions

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        for unit in calibration.chain.units:
            for layer in calibration.chain.layers(unit):
                calibration.reconstruct(layer, self.options)
        return [[unit] for unit in calibration.chain.units]
