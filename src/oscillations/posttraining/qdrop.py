"""QDrop for weights only (Wei et al. 2022, arXiv:2203.05740): BRECQ with partly latent inputs.

Of QDrop's dropping only this is left without quantized activations: every entry of a block's input comes from the
quantized predecessors with probability ``prob`` and else from the latent network.
"""

from __future__ import annotations

from pydantic import Field

from oscillations.posttraining.brecq import Brecq, BrecqOptions


class QDropOptions(BrecqOptions):
    prob: float = Field(0.5, ge=0, le=1, description="of an input entry to come from the quantized predecessors")


class QDrop(Brecq):
    Options = QDropOptions
    options: QDropOptions

    @property
    def share_quantized(self) -> float:
        return self.options.prob
