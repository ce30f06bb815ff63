"""StatsQ: the scale is a statistic of the weights, one for each output row (Liu et al. 2023, arXiv:2302.02210)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from oscillations.core.errors import InputError
from oscillations.engine.layers import quantized_layers
from oscillations.engine.method import Method, TargetOptions, Tensors

if TYPE_CHECKING:
    from timm.models.vision_transformer import Attention
    from torch import Tensor, nn

    from oscillations.methods._statsq import StatsqQuantizer


class StatsqOptions(TargetOptions):
    per_channel: ClassVar[bool] = True  # the statistic is a row's: no choices here, hence no options
    quantize_bias: ClassVar[bool] = False
    qkr: bool = Field(False, description="quantize the product of query and key weights, not each; timm's attention")


class Statsq(Method["StatsqQuantizer"]):
    """Forward and backward pass on q(w); its gradient is the weights', also beyond the last levels (STE).

    None flows through the scale. With ``qkr`` an attention layer that holds the weights of the target bits computes
    with the quantized product of query and key weights, in training and in evaluation; with others it is timm's.
    """

    Options: ClassVar[type[StatsqOptions]] = StatsqOptions
    options: StatsqOptions

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
            from oscillations.methods._attention import attentions

            self._attentions = attentions(model)
            if not self._attentions:
                raise InputError("qkr: the model has none of timm's attention layers; leave qkr out")

    def make_quantizer(self, parameters: dict[str, Tensor]) -> StatsqQuantizer:
        from oscillations.methods._statsq import StatsqQuantizer

        o = self.options
        quantizer = StatsqQuantizer(
            parameters, o.bits, scale_source="mean", tie=o.tie, grid="mid_rise", per_channel=o.per_channel
        )
        if o.qkr:
            for name, module in self._attentions.items():
                self._reparametrize(name, module, quantizer)
        return quantizer

    def _reparametrize(self, name: str, module: Attention, quantizer: StatsqQuantizer) -> None:
        """Let an attention layer form the product whenever its weights are the quantizer's."""
        from oscillations.methods._attention import product_attention
        from oscillations.methods._statsq import straight_through

        if f"{name}.qkv.weight" not in quantizer.names:
            raise InputError(f"qkr: {name}.qkv is not quantized; add it to quant_layers or leave qkr out")
        i = quantizer.names.index(f"{name}.qkv.weight")
        quantizer.latent_rows[i] = 2 * module.attn_dim
        layer: nn.Module = module
        plain, o = layer.forward, self.options

        def forward(x: Tensor, **masks: None) -> Tensor:  # classifiers' masks are all None
            if module.qkv.weight.data_ptr() != quantizer.quantized[i].data_ptr():
                return plain(x, **masks)
            return product_attention(module, x, lambda product: straight_through(product, o.bits, o.tie))

        layer.forward = forward

    def forward_weights(self, quantizer: StatsqQuantizer) -> Tensors:
        return quantizer.quantized
