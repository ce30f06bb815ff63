"""StatsQ: the scale is a statistic of the weights, one for each output row (Liu et al. 2023, arXiv:2302.02210)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from oscillations.core.errors import InputError
from oscillations.engine.layers import quantized_layers
from oscillations.engine.method import Method, TargetOptions, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from oscillations.engine.quantizer import WeightQuantizer
    from oscillations.methods._attention import ProductAttention
    from oscillations.methods._statsq import MeanScale

    StatsQuantizer = WeightQuantizer[MeanScale]


class StatsqOptions(TargetOptions):
    qkr: bool = Field(False, description="quantize the product of query and key weights, not each; timm's attention")

    @property
    def scales_per_channel(self) -> bool:
        return True  # the statistic is a row's

    @property
    def multiplies_weights(self) -> bool:
        return self.qkr


class Statsq(Method["StatsQuantizer"]):
    """Forward and backward pass on q(w); its gradient is the weights', also beyond the last levels (STE).

    None flows through the scale. With ``qkr`` an attention layer that holds the weights of the target bits computes
    with the quantized product of query and key weights, in training and in evaluation; with others it is timm's.
    """

    Options: ClassVar[type[StatsqOptions]] = StatsqOptions
    options: StatsqOptions

    def __init__(self, options: StatsqOptions):
        super().__init__(options)
        self._attentions: dict[str, ProductAttention] = {}

    def check(self, model: str, layers: list[str], patterns: list[str]) -> None:
        """Its attention is timm's, whose layers are named so; each one's are quantized."""
        if not self.options.qkr:
            return
        products = [layer for layer in layers if layer.endswith("attn.qkv")]
        if not products:
            raise ValueError(f"qkr: {model} has none of timm's attention layers; leave qkr out")
        if missing := [layer for layer in products if layer not in quantized_layers(layers, patterns)]:
            raise ValueError(f"qkr: {missing[0]} is not quantized; add it to quant_layers or leave qkr out")

    def attach(self, model: nn.Module) -> None:
        if self.options.qkr:
            from oscillations.methods._attention import multiply_weights

            self._attentions = multiply_weights(model)
            if not self._attentions:
                raise InputError("qkr: the model has none of timm's attention layers; leave qkr out")

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> StatsQuantizer:
        from oscillations.engine.quantizer import WeightQuantizer
        from oscillations.methods._statsq import MeanScale, ProductQuantizer

        o = self.options
        kind = ProductQuantizer if o.qkr else WeightQuantizer
        quantizer = kind(parameters, o.bits, MeanScale, grid="mid_rise", tie=o.tie, per_channel=True, own_bits=own_bits)
        for name, module in self._attentions.items():
            if f"{name}.qkv.weight" not in quantizer.names:
                raise InputError(f"qkr: {name}.qkv is not quantized; add it to quant_layers or leave qkr out")
            assert isinstance(quantizer, ProductQuantizer)
            quantizer.latent_rows[quantizer.names.index(f"{name}.qkv.weight")] = 2 * module.attn_dim
            module.quantizer = quantizer
        return quantizer

    def forward_weights(self, quantizer: StatsQuantizer) -> Tensors:
        return quantizer.quantized
