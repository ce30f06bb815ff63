"""BRECQ: learned rounding, block by block (Li et al. 2021, arXiv:2102.05426)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from oscillations.posttraining import PostTraining, ReconstructionOptions

if TYPE_CHECKING:
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit


class BrecqOptions(ReconstructionOptions):
    fisher: bool = Field(False, description="weigh squared errors by squared gradients of the network's answer")


class Brecq(PostTraining):
    """Subclasses merge neighbouring units, or mix the inputs."""

    Options: ClassVar[type[BrecqOptions]] = BrecqOptions
    options: BrecqOptions

    @property
    def share_quantized(self) -> float:
        """Of a unit's input entries, how many come from the quantized predecessors; the others are latent."""
        return 1.0

    def groups(self, calibration: Calibration) -> list[list[Unit]]:
        """The units that are reconstructed together: neighbours, in network order."""
        return [[unit] for unit in calibration.chain.units]

    def quantize(self, calibration: Calibration) -> list[list[Unit]]:
        from oscillations.posttraining._units import merged

        groups = self.groups(calibration)
        for group in groups:
            calibration.reconstruct(merged(group), self.options, prob=self.share_quantized, fisher=self.options.fisher)
        return groups
