"""One knob from oscillation to dampening: the regularizer of Eq. 22-24 with a strength that changes its sign.

lambda > 0 pushes weights to thresholds (OsciQuant); lambda < 0 pulls them to levels, which is the dampening of
Nagel et al. (2022) with strength -lambda / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from oscillations.engine.recipe import SignedStrength
from oscillations.methods.osciquant import Regularizer, RegularizerOptions

if TYPE_CHECKING:
    from oscillations.engine.method import Moment


class SignedOptions(RegularizerOptions):
    lambda_start: SignedStrength = Field(description="strength in the first step")
    lambda_end: SignedStrength = Field(description="strength in the last step")
    shape: Literal["linear", "step"] = Field("linear", description="all the way, or at once at half of the steps")

    @property
    def whole_from(self) -> float:
        if self.lambda_start * self.lambda_end >= 0:
            return 0.0  # its sign never changes
        return 0.5 if self.shape == "step" else self.lambda_start / (self.lambda_start - self.lambda_end)


class Signed(Regularizer):
    """OsciQuant's regularizer, its strength going from ``lambda_start`` to ``lambda_end``.

    The way is that of the maximal number of steps: give such runs as much patience as epochs.
    """

    Options = SignedOptions
    options: SignedOptions

    def strength(self, moment: Moment) -> float:
        share = moment.begun if self.options.shape == "linear" else float(moment.begun >= 0.5)
        return self.options.lambda_start + share * (self.options.lambda_end - self.options.lambda_start)
