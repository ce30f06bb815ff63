"""StatsQ: the scale is a statistic of the weights, one for each output row (Liu et al. 2023, arXiv:2302.02210)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from oscillations.core.errors import InputError
from oscillations.engine.layers import quantized_layers
from oscillations.engine.method import Method, TargetOptions
from oscillations.methods.lsq import SMALLEST_SCALE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oscillations.engine.quantizer import WeightQuantizer


class StatsqOptions(TargetOptions):
    per_channel: ClassVar[bool] = True  # the statistic is a row's: no choices here, hence no options
    quantize_bias: ClassVar[bool] = False
    qkr: bool = Field(False, description="quantize the product of query and key weights, not each; timm's attention")


def statistic_scale(weight: Tensor, bits: int) -> Tensor:
    """A step of 2 mean|w| / 2^(b-1) for each output channel, ``[C, 1, ...]``; above zero."""
    from oscillations.engine.quantizer import reduced

    mean = weight.abs().mean(reduced(weight, per_channel=True), keepdim=True)
    return mean.mul_(2 ** (2 - bits)).clamp_min_(SMALLEST_SCALE)


def straight_through(matrices: Tensor, bits: int, tie: str = "half_even") -> Tensor:
    """q of every row of ``[..., rows, columns]`` with the rows' statistics; its gradient is the identity."""
    import torch

    from oscillations.engine.quantizer import ROUNDING, grid_of

    grid = grid_of("mid_rise", bits)
    with torch.no_grad():
        rows = matrices.flatten(0, -2)
        scale = statistic_scale(rows, bits)
        codes = ROUNDING[tie](rows / scale - grid.offset).clamp_(grid.low, grid.high)
        error = codes.add_(grid.offset).mul_(scale).sub_(rows).view_as(matrices)
    return matrices + error


def quantizer_class() -> type[WeightQuantizer]:
    """2^b levels around zero, which is a threshold, with the statistic of the present weights as step.

    The source clips w one part in a million below the range's end before it rounds; clamping the codes is the same.
    """
    import torch

    from oscillations.engine.quantizer import WeightQuantizer

    class StatsqQuantizer(WeightQuantizer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.latent_rows: dict[int, int] = {}  # how many first rows of a tensor are not quantized: query, key

        @torch.no_grad()
        def rescale(self):
            self.scales = [statistic_scale(weight, self.bits) for weight in self.weights]

        def update(self):
            super().update()
            for i, rows in self.latent_rows.items():
                self.quantized[i][:rows] = self.weights[i][:rows]
                self.code_views[i][:rows] = 0  # they have none, so that none is counted

    return StatsqQuantizer


class Statsq(Method):
    """Forward and backward pass on q(w); its gradient is the weights', also beyond the last levels (STE).

    None flows through the scale. With ``qkr`` an attention layer that holds the weights of the target bits computes
    with the quantized product of query and key weights, in training and in evaluation; with others it is timm's.
    """

    Options = StatsqOptions

    @classmethod
    def check(cls, options, model, layers, patterns):
        """Its attention is timm's, whose layers are named so; each one's are quantized."""
        if not options.qkr:
            return
        products = [layer for layer in layers if layer.endswith("attn.qkv")]
        if not products:
            raise ValueError(f"qkr: {model} has none of timm's attention layers; leave qkr out")
        if missing := [layer for layer in products if layer not in quantized_layers(layers, patterns)]:
            raise ValueError(f"qkr: {missing[0]} is not quantized; add it to quant_layers or leave qkr out")

    def attach(self, model):
        if self.options.qkr:
            from oscillations.methods._attention import attentions

            self._attentions = attentions(model)
            if not self._attentions:
                raise InputError("qkr: the model has none of timm's attention layers; leave qkr out")

    def make_quantizer(self, parameters):
        o = self.options
        quantizer = quantizer_class()(
            parameters, o.bits, scale_source="mean", tie=o.tie, grid="mid_rise", per_channel=o.per_channel
        )
        if o.qkr:
            for name, module in self._attentions.items():
                self._reparametrize(name, module, quantizer)
        return quantizer

    def _reparametrize(self, name: str, module: nn.Module, quantizer: WeightQuantizer) -> None:
        """Let an attention layer form the product whenever its weights are the quantizer's."""
        from oscillations.methods._attention import product_attention

        if f"{name}.qkv.weight" not in quantizer.names:
            raise InputError(f"qkr: {name}.qkv is not quantized; add it to quant_layers or leave qkr out")
        i = quantizer.names.index(f"{name}.qkv.weight")
        quantizer.latent_rows[i] = 2 * module.attn_dim
        plain, o = module.forward, self.options

        def forward(x, **masks):  # classifiers' masks are all None
            if module.qkv.weight.data_ptr() != quantizer.quantized[i].data_ptr():
                return plain(x, **masks)
            return product_attention(module, x, lambda product: straight_through(product, o.bits, o.tie))

        module.forward = forward

    def forward_weights(self, quantizer):
        return quantizer.quantized
