"""Attention on the product of query and key weights: the same function, quantized at the target bits only."""

import pytest
import torch
from test_training import run, same_state, trainer
from timm.models.vision_transformer import Attention

from oscillations import models
from oscillations.core.errors import InputError
from oscillations.methods._attention import ProductAttention, attentions, product_attention
from oscillations.methods._statsq import straight_through
from oscillations.methods.statsq import Statsq

VIT = {
    "model": {"name": "vit-tiny", "patch_size": 4, "width": 12, "depth": 2, "heads": 3},
    "quant_layers": ["blocks.*.attn.*", "blocks.*.mlp.*"],
    "method": {"name": "statsq", "bits": 3, "qkr": True},
}


def attention(seed=0):
    torch.manual_seed(seed)
    model = models.build(VIT["model"], (1, 8, 8), 4)
    module = attentions(model)["blocks.0.attn"]
    width = module.attn_dim
    torch.nn.init.normal_(module.qkv.weight)
    torch.nn.init.normal_(module.qkv.bias)
    module.qkv.bias.data[: 2 * width] = 0
    return module.eval(), torch.randn(5, 7, 12)


def test_o1_qkr_without_quantization_is_the_same_attention():
    module, x = attention()
    found = product_attention(module, x, lambda product: product)
    torch.testing.assert_close(found, module(x), atol=1e-5, rtol=1e-5)
    module.qkv.bias.data[:24] = 1.0  # of query and key: dropped
    assert torch.equal(product_attention(module, x, lambda product: product), found)
    assert not torch.allclose(module(x), found)


def test_o1_qkr_learnable_vectors_beside_the_product_change_nothing():
    """As released: x (M x^T + b) with any b for each head is the attention without b."""
    module, x = attention()
    heads, width = module.num_heads, module.attn_dim
    query, key, value = (w.view(heads, -1, width) for w in module.qkv.weight.split(width))
    vectors = torch.randn(1, heads, width, 1)
    tokens = x.unsqueeze(1)
    scores = tokens @ (query.transpose(1, 2) @ key @ tokens.transpose(-2, -1) + vectors) * module.scale
    values = tokens @ value.transpose(1, 2) + module.qkv.bias[2 * width :].view(heads, 1, -1)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    found = product_attention(module, x, lambda product: product)
    torch.testing.assert_close(module.proj(mixed), found, atol=1e-5, rtol=1e-5)


def test_o1_qkr_gradients_reach_query_key_and_value():
    module, x = attention()
    upstream = torch.randn(5, 7, 12)
    (module(x) * upstream).sum().backward()
    expected, module.qkv.weight.grad = module.qkv.weight.grad, None
    (product_attention(module, x, lambda product: product) * upstream).sum().backward()
    torch.testing.assert_close(module.qkv.weight.grad, expected, atol=1e-4, rtol=1e-4)
    module.qkv.weight.grad = None
    (product_attention(module, x, lambda product: straight_through(product, 2)) * upstream).sum().backward()
    assert all(part.abs().sum() > 0 for part in module.qkv.weight.grad.split(12))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_o1_qkr_quantizes_every_row_as_statsq_does(bits):
    torch.manual_seed(bits)
    products = torch.randn(3, 12, 12, requires_grad=True)
    quantized = straight_through(products, bits)
    rows = products.detach().view(36, 12)
    quantizer = Statsq(Statsq.Options(bits=bits)).make_quantizer({"a.weight": rows}, {})
    quantizer.update()
    torch.testing.assert_close(quantized.detach().view(36, 12), quantizer.quantized[0])
    upstream = torch.randn(3, 12, 12)
    (quantized * upstream).sum().backward()
    assert torch.equal(products.grad, upstream)


def test_o1_qkr_acts_at_the_target_bits_alone(recipe, blobs):
    made = trainer(recipe, blobs, **VIT)
    quantizer, modules = made.quantizer, dict(made.model.named_modules())
    i = quantizer.names.index("blocks.1.attn.qkv.weight")
    weight, quantized = quantizer.weights[i], quantizer.quantized[i]
    assert torch.equal(quantized[:24], weight[:24])
    assert not torch.isclose(quantized[24:], weight[24:]).any()
    assert not quantizer.code_views[i][:24].any()
    plain = trainer(recipe, blobs, **VIT | {"method": {"name": "baseline"}})
    x, _ = made.sets["validation"].batch(torch.arange(6))
    assert torch.equal(made.model.eval()(x), plain.model.eval()(x))
    module, tokens = modules["blocks.1.attn"], torch.randn(5, 7, 12)
    assert type(module) is ProductAttention
    with made.network.at(3):
        expected = product_attention(module, tokens, lambda product: straight_through(product, 3))
        assert torch.equal(module(tokens), expected)
    for bits in (2, 4, 32):
        with made.network.at(bits):
            assert torch.equal(module(tokens), Attention.forward(module, tokens))
    with made.network.holding([value.clone() for value in quantizer.quantized]):  # any others, were they equal
        assert not torch.allclose(module(tokens), expected)
    assert list(made.model.state_dict()) == list(plain.model.state_dict())


def test_o1_qkr_trains_resumes_and_evaluates_as_trained(recipe, blobs):
    recipe["training"] |= {"epochs": 2}
    whole = run(trainer(recipe, blobs, **VIT))
    losses = [row["train_loss"] for row in whole.progress.history]
    assert losses[-1] < losses[0]
    first = trainer(recipe, blobs, **VIT)
    for _ in zip(range(13), first.steps()):
        pass
    again = trainer(recipe, blobs, **VIT)
    again.load_state({key: value.clone() for key, value in first.state().items()})
    assert same_state(run(again), whole)
    loaded = trainer(recipe, blobs, **VIT)
    loaded.network.load_trained(whole.best)
    best = whole.progress.history[whole.progress.best_epoch - 1]
    assert all(best[key] == value for key, value in loaded.validate().items() if key != "val_loss")


def test_o1_qkr_needs_attention_whose_weights_are_quantized(recipe, blobs):
    with pytest.raises(InputError, match="qkr: the model has none"):
        trainer(recipe, blobs, method=VIT["method"])
    with pytest.raises(InputError, match=r"qkr: blocks.0.attn.qkv is not quantized"):
        trainer(recipe, blobs, **VIT | {"quant_layers": ["blocks.*.mlp.*"]})
