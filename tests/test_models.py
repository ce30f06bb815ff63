"""P1: parameter counts and quantized shares; ResNet-18 against torchvision's."""

import pytest
import torch

from oscillations import models
from oscillations.core.errors import InputError
from oscillations.engine.layers import is_matrix_layer, load_weights, quantized_layers, quantized_parameters
from oscillations.models import _library as library
from oscillations.models import mlp5, mobilenetv2, resnet18, vit_tiny

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def built(spec, shape):
    model = models.build(spec, shape, 10)
    patterns = models.find(spec["name"]).QUANTIZED
    return model, quantized_parameters(model, patterns)


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def share_of_weights(model, quantized):
    """Quantized share of all tensors named weight, the paper's way of counting."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    return 100 * count(quantized.values()) / count(weights)


def test_p1_mlp5():
    model, quantized = built({"name": "mlp5"}, CIFAR)
    assert count(model.parameters()) == 1_052_426
    assert count(quantized.values()) == 1_051_136


def test_p1_resnet18_cifar():
    model, quantized = built({"name": "resnet18"}, CIFAR)
    assert count(model.parameters()) == 11_173_962
    assert share_of_weights(model, quantized) == pytest.approx(99.957, abs=5e-4)
    assert len(quantized) == 21


@pytest.mark.slow
def test_p1_vit_tiny():
    model, quantized = built({"name": "vit-tiny"}, IMAGENET)
    assert count(model.parameters()) == 5_526_346
    assert share_of_weights(model, quantized) == pytest.approx(97.178, abs=5e-4)


@pytest.mark.slow
def test_p1_tiny_vit_5m_is_not_the_papers():
    """docs/choices.md: neither the parameters (5.5M) nor the quantized share (97.18 %) are TinyViT-5M's."""
    model = models.build({"name": "timm/tiny_vit_5m_224"}, IMAGENET, 10)
    assert count(model.parameters()) == 5_074_974
    blocks = quantized_parameters(model, ["*.attn.qkv", "*.attn.proj", "*.mlp.fc1", "*.mlp.fc2"])
    assert share_of_weights(model, blocks) == pytest.approx(93.097, abs=5e-4)
    everything = quantized_parameters(model, ["*"])
    assert share_of_weights(model, everything) == pytest.approx(99.822, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("timm/tiny_vit_5m_224", "head.fc"),
        ("timm/resnet10t", "fc"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("torchvision/resnet18", "fc"),
    ],
)
def test_a_library_model_can_be_fine_tuned_to_other_classes(name, head):
    pretrained = models.build({"name": name}, IMAGENET, 20)
    model = models.build({"name": name}, IMAGENET, 10)
    assert models.head(name, model) == head
    fresh = model.get_submodule(head).weight.clone()
    load_weights(model, pretrained.state_dict(), models.head(name, model))
    assert torch.equal(model.get_submodule(head).weight, fresh)
    theirs = pretrained.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items() if not k.startswith(f"{head}."))


@pytest.mark.slow
def test_resnet18_is_torchvisions():
    from torchvision.models import resnet18 as reference

    torch.manual_seed(0)
    theirs = reference(num_classes=10)
    ours = models.build({"name": "resnet18", "stem": "imagenet", "stem_maxpool": True}, IMAGENET, 10)
    load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        theirs.train(mode)
        ours.train(mode)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_mobilenetv2_is_torchvisions():
    from torchvision.models import mobilenet_v2 as reference

    torch.manual_seed(0)
    theirs = reference(num_classes=10, dropout=0.0)
    ours = models.build({"name": "mobilenetv2", "stem": "imagenet"}, IMAGENET, 10)
    load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        theirs.train(mode)
        ours.train(mode)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_p1_mobilenetv2():
    model, quantized = built({"name": "mobilenetv2", "stem": "imagenet"}, IMAGENET)
    assert count(model.parameters()) == 3_504_872 - 990 * (1280 + 1)  # the ImageNet count, 10 for 1000 classes
    assert len(quantized) == 53
    assert all(tensor.dim() >= 2 for tensor in quantized.values())


@pytest.mark.parametrize(
    ("options", "side", "last"),
    [
        ({"stem": "imagenet"}, 224, 7),
        ({}, 32, 4),
        ({}, 8, 1),
        ({"smallest": 4}, 8, 4),
        ({"stem": "imagenet", "smallest": 4}, 8, 4),
        ({"stem": "imagenet", "smallest": 4}, 32, 4),
        ({"stem": "imagenet", "smallest": 5}, 8, 8),
    ],
    ids=str,
)
def test_mobilenetv2_keeps_small_images_large_enough(options, side, last):
    model = models.build({"name": "mobilenetv2", "width": 0.1} | options, (1, side, side), 10)
    assert model.features(torch.randn(2, 1, side, side)).shape[2:] == (last, last)


def test_mobilenetv2_has_its_topology_at_every_width():
    from oscillations.models._mobilenetv2 import InvertedResidual, scaled

    assert [scaled(channels, 0.1) for channels in (16, 96, 160, 320, 1280)] == [8, 16, 16, 32, 128]
    assert [scaled(channels, 1.4) for channels in (16, 24, 32)] == [24, 32, 48]
    for width in (0.1, 1.0):
        model = models.build({"name": "mobilenetv2", "width": width}, CIFAR, 10)
        blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        depthwise = [c for c in convolutions if c.groups > 1]
        assert len(blocks) == len(depthwise) == 17
        assert all(c.groups == c.in_channels == c.out_channels and c.kernel_size == (3, 3) for c in depthwise)
        assert min(c.out_channels for c in convolutions) >= 8


@pytest.mark.parametrize(
    ("module", "spec", "shape"),
    [
        (mobilenetv2, {"name": "mobilenetv2", "width": 0.1}, CIFAR),
        (mlp5, {"name": "mlp5"}, CIFAR),
        (resnet18, {"name": "resnet18", "width": 4}, CIFAR),
        pytest.param(
            vit_tiny, {"name": "vit-tiny", "depth": 2, "width": 24, "patch_size": 4}, CIFAR, marks=pytest.mark.slow
        ),
        pytest.param(library, {"name": "torchvision/squeezenet1_1"}, CIFAR, marks=pytest.mark.slow),
        pytest.param(library, {"name": "timm/resnet10t"}, CIFAR, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)
def test_named_layers_are_the_networks(module, spec, shape):
    """The names that studies are checked against are those of the built network."""
    model = models.build(spec, shape, 10)
    actual = [name for name, layer in model.named_modules() if is_matrix_layer(layer)]
    assert sorted(module.layers(module.Options(**spec))) == sorted(actual)


def test_vit_leaves_embedding_and_head_alone():
    layers = vit_tiny.layers(vit_tiny.Options(name="vit-tiny"))
    chosen = quantized_layers(layers, vit_tiny.QUANTIZED)
    assert len(chosen) == 48
    assert "head" not in chosen
    assert "patch_embed.proj" not in chosen


def test_biases_are_quantized_only_when_asked():
    model = models.build({"name": "mlp5", "width": 8}, (1, 8, 8), 10)
    assert all(name.endswith("weight") for name in quantized_parameters(model, ["*"]))
    assert len(quantized_parameters(model, ["*"], biases=True)) == 12


def test_unknown_library_model_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        models.build({"name": "torchvision/resnet_18"}, CIFAR, 10)


def test_load_weights_reports_everything_that_does_not_fit():
    model = models.build({"name": "mlp5", "width": 8}, (1, 8, 8), 5)
    other = models.build({"name": "mlp5", "width": 8}, (1, 8, 8), 10)
    weights = model.state_dict()
    weights["extra"] = weights.pop("fc2.bias")
    groups = r"missing \(1\): fc2\.bias\n  unexpected \(1\): extra\n  of another shape \(2\): fc6\.weight \(5, 8\) for \(10, 8\), fc6"
    with pytest.raises(InputError, match=groups):
        load_weights(other, weights)


def test_a_fine_tune_keeps_its_new_head():
    model = models.build({"name": "mlp5", "width": 8}, (1, 8, 8), 5)
    other = models.build({"name": "mlp5", "width": 8}, (1, 8, 8), 10)
    head = other.fc6.weight.clone()
    load_weights(other, model.state_dict(), head="fc6")
    assert torch.equal(other.fc6.weight, head)
    assert torch.equal(other.fc1.weight, model.fc1.weight)
