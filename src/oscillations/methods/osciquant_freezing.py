"""OsciQuant whose oscillating weights are frozen late: oscillations first, then the weights they had moved stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from oscillations.methods.freezing import Freezes, ThresholdOptions
from oscillations.methods.osciquant import OsciQuant, OsciQuantOptions

if TYPE_CHECKING:
    from oscillations.engine.method import Moment, Tensors
    from oscillations.engine.optimizer import Optimizer
    from oscillations.methods._freezing import FreezingQuantizer


class OsciQuantFreezingOptions(ThresholdOptions, OsciQuantOptions):
    start: float = Field(0.75, ge=0, lt=1, description="share of the steps before anything freezes")

    @property
    def whole_from(self) -> float:
        return self.start


class OsciQuantFreezing(Freezes, OsciQuant["FreezingQuantizer"]):
    """From ``start`` on, a weight that oscillates more often than the threshold is set to its level and stays there.

    It follows its level k s, with s of the forward pass just made, because full-precision training sees the weight
    itself.
    """

    Options = OsciQuantFreezingOptions
    options: OsciQuantFreezingOptions

    def after_backward(self, quantizer: FreezingQuantizer, grads: Tensors, moment: Moment) -> None:
        super().after_backward(quantizer, grads, moment)
        quantizer.stop(grads)

    def step(self, optimizer: Optimizer, quantizer: FreezingQuantizer, moment: Moment) -> None:
        super().step(optimizer, quantizer, moment)
        quantizer.to_levels(quantizer.weights)  # an optimizer's momentum moves weights without a gradient, too
