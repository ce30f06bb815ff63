"""Q-EMA: a weight's average decides which of its two levels it takes (TetraJet, arXiv:2502.20853).

As released in thu-ml/TetraJet-MXFP4Training@bbe9bd6 (``quantization/QuantizerFP_torch.py``), on Eq. 1-2's grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt

from oscillations.engine.method import Method, Moment, QuantizedOptions, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from oscillations.engine.optimizer import Optimizer
    from oscillations.methods._q_ema import AveragingQuantizer


class QEmaOptions(QuantizedOptions):
    decay: float = Field(0.998, ge=0, lt=1, description="weight of the past in the averages")
    warmup_steps: NonNegativeInt = Field(10, description="steps before the averages decide")


class QEma(Method["AveragingQuantizer"]):
    """QAT whose scale has no gradient, by a quantizer that rounds e <- d e + (1 - d) w, followed after every step.

    The gradient is the identity for all weights.
    """

    Options = QEmaOptions
    options: QEmaOptions

    def quantizer_class(self) -> type[AveragingQuantizer]:
        from oscillations.methods._q_ema import AveragingQuantizer

        return AveragingQuantizer

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> AveragingQuantizer:
        quantizer = super().make_quantizer(parameters, own_bits)
        quantizer.warmup_steps = self.options.warmup_steps
        return quantizer

    def forward_weights(self, quantizer: AveragingQuantizer) -> Tensors:
        return quantizer.quantized

    def step(self, optimizer: Optimizer, quantizer: AveragingQuantizer, moment: Moment) -> None:
        optimizer.step()
        quantizer.follow(self.options.decay)
