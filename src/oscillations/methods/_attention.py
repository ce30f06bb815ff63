"""Attention on one matrix for each head, the product of its query and key weights (Liu et al. 2023's QKR).

Quantized one by one, query and key weights make each other oscillate; their product is all that the scores need.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from oscillations.core.errors import InputError
from oscillations.methods._statsq import ProductQuantizer, straight_through


class ProductAttention(Attention):
    """timm's attention, which quantizes the product of its query and key weights while ``quantizer`` is in use.

    That is when the network holds the weights of the quantizer's bits; at others it is timm's, on the layers of
    ``plain``.
    """

    def __init__(self, plain: Attention):
        nn.Module.__init__(self)
        vars(self).update(vars(plain))
        self.quantizer: ProductQuantizer | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        quantizer = self.quantizer
        if quantizer is None or not quantizer.in_use:
            return super().forward(x, attn_mask, is_causal)
        if attn_mask is not None or is_causal:
            raise InputError("qkr: attention with a mask is not formed on products of weights")
        return product_attention(self, x, lambda product: straight_through(product, quantizer.bits, quantizer.tie))


def attentions(model: nn.Module) -> dict[str, Attention]:
    """timm's plain self-attention layers by name: no norm between the products, no gate."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    return {name: m for name, m in found.items() if _is_plain(m)}


def _is_plain(module: Attention) -> bool:
    return isinstance(module.q_norm, nn.Identity) and isinstance(module.k_norm, nn.Identity) and module.gate is None


def multiply_weights(model: nn.Module) -> dict[str, ProductAttention]:
    """Put a :class:`ProductAttention` in the place of every plain attention of the model; returns them by name."""
    made = {name: ProductAttention(plain) for name, plain in attentions(model).items()}
    for name, module in made.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)
    return made


def product_attention(module: Attention, x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``module`` computes from ``x`` ``[N, tokens, D]``, on the quantized products ``[heads, D, D]``.

    A head's scores are x W_q^T W_k x^T, scaled; the biases of query and key have no place in them and are dropped. The
    released code adds two learnable vectors b to W_q^T W_k x^T, before and behind a quantizer of it. Without that
    quantizer they add x_n b to all scores of token n, which the softmax over these takes away: they are left out.
    """
    heads, width = module.num_heads, module.attn_dim
    with torch.autocast(x.device.type, enabled=False):  # the product is formed in full precision
        query, key, value = (w.view(heads, -1, w.shape[1]) for w in module.qkv.weight.split(width))
        product = quantize(query.transpose(1, 2) @ key)
    tokens = x.unsqueeze(1)
    scores = tokens @ product @ tokens.transpose(-2, -1) * module.scale
    bias = module.qkv.bias
    values = F.linear(x, value.flatten(0, 1), None if bias is None else bias[2 * width :])
    values = values.unflatten(2, (heads, -1)).transpose(1, 2)
    mixed = (module.attn_drop(scores.softmax(-1)) @ values).transpose(1, 2).flatten(2)
    return module.proj_drop(module.proj(module.norm(mixed)))
