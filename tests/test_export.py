"""Exports: files that compute the same elsewhere, what they refuse, and what a damaged one says."""

import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, Project, blobs_dataset, image_sets, make_trainer, plain_recipe
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from oscillations import models
from oscillations.cli import main
from oscillations.core.bits import Grid
from oscillations.core.errors import InputError
from oscillations.engine.quantizer import quantize
from oscillations.engine.slices import sliced
from oscillations.nn import OscillationMonitor, OsciQuantRegularizer, at_bits, fake_quantize
from oscillations.nn import export as export_module
from oscillations.nn.export import for_any_width, load, of_network, save, write
from oscillations.nn.packed import QuantizedModel, QuantizedTensor, packed, read, unpacked
from oscillations.nn.packed import write as write_packed

onnx = pytest.importorskip("onnx")
FORMATS = ["safetensors", "onnx", "torch"]
SUFFIX = {"safetensors": "safetensors", "onnx": "onnx", "torch": "pt2"}
FAMILIES = {
    "mlp5": {"name": "mlp5", "width": 12},
    "resnet18": {"name": "resnet18", "width": 8},
    "mobilenetv2": {"name": "mobilenetv2", "width": 0.25},
    "vit-tiny": {"name": "vit-tiny", "patch_size": 4, "width": 12, "depth": 2, "heads": 2},
}
PATTERNS = {"mlp5": ["fc*"], "resnet18": ["*"], "mobilenetv2": ["*"], "vit-tiny": ["blocks.*"]}


def trained(family, method, steps=3, **recipe):
    """A network of the engine after a few steps, a fresh model of its kind, and some test images."""
    plain = plain_recipe() | {"model": FAMILIES[family], "quant_layers": PATTERNS[family], "method": method} | recipe
    about, tensors = blobs_dataset()
    sets = image_sets(about, tensors, plain, torch.device("cpu"))
    trainer = make_trainer(plain, 0, about, sets, torch.device("cpu"))
    trainer.model.train()
    order = sets["train"].order(0, 0)
    for i in range(steps):
        trainer.step(*sets["train"].batch(order[32 * i : 32 * i + 32]))
    trainer.model.eval()
    images, _ = sets["test"].batch(slice(0, 40))
    return trainer.network, models.build(FAMILIES[family], (1, 8, 8), 4).eval(), images.contiguous()


@torch.no_grad()
def logits(network, images, bits, rule="requantize"):
    with network.at(bits, rule):
        return network.model(images)


GRIDS = [
    {"name": "qat", "bits": 3}, {"name": "qat", "bits": 2, "per_channel": True}, {"name": "osciquant", "bits": 4, "lambda": 1},
    {"name": "lsq", "bits": 3, "grid": "lsq"}, {"name": "lsq", "bits": 8, "per_channel": True}, {"name": "dual-lsq", "bits": 3},
    {"name": "statsq", "bits": 3}, {"name": "statsq", "bits": 8}, {"name": "aoq", "bits": 3}, {"name": "q-ema", "bits": 3},
    {"name": "freezing", "bits": 3}, {"name": "qc", "bits": 3}, {"name": "qat", "bits": 3, "scale_source": "mse", "scale_grad": "detach"},
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", GRIDS, ids=lambda m: "-".join(map(str, m.values())))
def test_every_grid_is_the_same_elsewhere(tmp_path, method, format):
    network, fresh, images = trained("mlp5", method)
    bits, file = method["bits"], tmp_path / f"model.{SUFFIX[format]}"
    expected = logits(network, images, bits)
    found = write(of_network(network, bits), fresh, file, format, images, {None: expected})
    assert torch.allclose(found[None], expected, atol=1e-5) and file.exists()
    if format != "onnx":
        assert torch.equal(found[None], expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [{}, {"activations": {"bits": 3}}], ids=["weights", "w3a3"])
def test_every_family_is_the_same_elsewhere(tmp_path, family, recipe, format):
    network, fresh, images = trained(family, {"name": "lsq", "bits": 3}, **recipe)
    expected, file = logits(network, images, 3), tmp_path / f"model.{SUFFIX[format]}"
    found = write(of_network(network, 3), fresh, file, format, images, {None: expected})
    assert torch.allclose(found[None], expected, atol=2e-2 if recipe else 1e-4)  # a code of an input may differ
    if format == "onnx":
        kinds = [node.op_type for node in onnx.load(file).graph.node]
        assert kinds.count("QuantizeLinear") == (len(network.names) if recipe else 0)
        assert kinds.count("DequantizeLinear") == len(network.names) * (2 if recipe else 1)


def test_the_same_model_is_the_same_packed_file(tmp_path):
    """Of a dictionary safetensors itself makes another order each time."""
    network, _, _ = trained("mlp5", {"name": "qat", "bits": 3})
    files = [tmp_path / f"{number}.safetensors" for number in range(9)]
    for file in files:
        write_packed(of_network(network, 3), file)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert set(opened.metadata()) == {"format", "version", "model"}


def test_onnx_runtime_leaves_the_inputs_of_8_bit_weights_alone(tmp_path):
    """By itself it quantizes inputs of products with 8-bit weights to 8 bits, too: logits differed by 0.1 and more."""
    network, fresh, images = trained("vit-tiny", {"name": "lsq", "bits": 8})
    expected = logits(network, images, 8)
    found = write(of_network(network, 8), fresh, tmp_path / "model.onnx", "onnx", images, {None: expected})
    assert torch.allclose(found[None], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "opset", "kind"), [(3, 21, "INT4"), (4, 21, "INT4"), (5, 21, "INT8"), (3, 20, "INT8")]
)
def test_onnx_weights_are_integers(tmp_path, bits, opset, kind):
    network, fresh, images = trained("mlp5", {"name": "qat", "bits": bits})
    file = tmp_path / "model.onnx"
    write(of_network(network, bits), fresh, file, "onnx", images, {None: logits(network, images, bits)}, opset)
    stored = {one.name: one for one in onnx.load(file).graph.initializer}
    for name, codes in zip(network.names, network.quantizer.code_views):
        assert onnx.TensorProto.DataType.Name(stored[f"{name}.codes"].data_type) == kind
        assert np.array_equal(onnx.numpy_helper.to_array(stored[f"{name}.codes"]).astype(np.int8), codes.numpy())
        assert name not in stored


@pytest.mark.parametrize("method", ["lsq", "statsq", "aoq"])
def test_a_grid_or_scale_of_one_width_goes_into_no_file_of_latent_weights(tmp_path, method):
    network, fresh, images = trained("mlp5", {"name": method, "bits": 3})
    with pytest.raises(InputError, match="which no file of latent weights holds"):
        for_any_width(network, "requantize")
    expected = {
        bits: logits(network, images, bits, "slice") for bits in range(2, 8)
    }  # of the latent weights at any width
    file = tmp_path / "model.safetensors"
    found = write(for_any_width(network, "slice"), fresh, file, "safetensors", images, expected)
    assert all(torch.equal(found[bits], expected[bits]) for bits in expected)


@pytest.mark.parametrize("rule", ["requantize", "slice"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_one_file_serves_every_width(tmp_path, rule, per_channel):
    network, fresh, images = trained("mlp5", {"name": "osciquant", "bits": 3, "lambda": 1, "per_channel": per_channel})
    widths = range(2, 9) if rule == "requantize" else range(2, 8)
    expected = {bits: logits(network, images, bits, rule) for bits in widths}
    file = tmp_path / "model.safetensors"
    found = write(for_any_width(network, rule), fresh, file, "safetensors", images, expected)
    assert all(torch.equal(found[bits], expected[bits]) for bits in widths)
    by_rule = quantize if rule == "requantize" else sliced
    weight = network.parameters[1].data
    assert torch.equal(load(file, fresh, 4).fc2.weight.data, by_rule(weight, 4, per_channel=per_channel))
    with pytest.raises(InputError, match="say which"):
        load(file, fresh)
    with pytest.raises(InputError, match="bits: 9 is no width"):
        load(file, fresh, 9)


def test_a_file_of_packed_codes_is_as_small_as_its_bits(tmp_path):
    model = nn.Linear(1000, 300)
    for bits in (2, 3, 8):
        save(model, file := tmp_path / f"{bits}.safetensors", torch.randn(4, 1000), bits)
        assert file.stat().st_size == pytest.approx(300_000 * bits / 8 + 1200, abs=1500)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_packed_and_unpacked(bits):
    grid = Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = torch.randint(grid.low, grid.high + 1, (7, 3, 5), dtype=torch.int8)
    data = packed(codes, grid.low, bits)
    assert len(data) == -(-105 * bits // 8)
    assert torch.equal(unpacked(data, (7, 3, 5), grid, bits), codes)


def test_the_order_of_packed_bits_is_fixed():
    assert packed(torch.tensor([-3, 3, 0, 1], dtype=torch.int8), -3, 3).tolist() == [0b11_110_000, 0b1000]


# -- any torch model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIX.values())
@pytest.mark.parametrize(("library", "name"), [("torchvision", "squeezenet1_1"), ("timm", "mobilenetv3_small_050")])
def test_a_librarys_model_goes_through_regularizer_monitor_and_export(tmp_path, library, name, suffix):
    torch.manual_seed(0)
    model = models.build({"name": f"{library}/{name}"}, (3, 64, 64), 4)
    x, y = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0, 1])
    regularizer, monitor = OsciQuantRegularizer(model, 4), OscillationMonitor(model, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + regularizer()).backward()
        optimizer.step()
        monitor.step()
    assert monitor.table().crossings.sum() > 0
    model.eval()
    with at_bits(model, 4), torch.no_grad():
        expected = model(x)
    save(model, file := tmp_path / f"model.{suffix}", x, 4)
    found = export_module.computed(file, {v: k for k, v in SUFFIX.items()}[suffix], x, model)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIX.values())
def test_fake_quantized_layers_are_saved_each_at_its_width(tmp_path, suffix):
    model = models.build(FAMILIES["resnet18"], (1, 8, 8), 4)
    fake_quantize(model, 8, layers=["conv1", "fc"], per_channel=True)
    fake_quantize(model, 3, exclude=["conv1", "fc"], method="lsq", grid="lsq")
    before, x = {key: value.clone() for key, value in model.state_dict().items()}, torch.randn(5, 1, 8, 8)
    assert save(model, tmp_path / f"model.{suffix}", x) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and model.conv1.weight is not None


# -- what is refused -------------------------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_refused_and_not_left(tmp_path):
    network, fresh, images = trained("mlp5", {"name": "qat", "bits": 3})
    expected = logits(network, images, 3)
    for format in FORMATS:
        file = tmp_path / "new" / "folders" / f"model.{SUFFIX[format]}"
        with pytest.raises(InputError, match=r"refused: 40 of 40 images have another class"):
            write(of_network(network, 3), fresh, file, format, images, {None: expected.roll(1, 1)})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_codes_on_a_grid_are_refused():
    network, *_ = trained("mlp5", {"name": "qat", "bits": 3})
    network.quantizer.quantized[2][0, 0] += 0.01
    with pytest.raises(InputError, match=r"weights of fc3\.weight are not codes times one scale"):
        of_network(network, 3)


def test_products_of_weights_are_refused():
    network, *_ = trained("vit-tiny", {"name": "statsq", "bits": 3, "qkr": True}, steps=1)
    with pytest.raises(InputError, match="qkr"):
        of_network(network, 3)


@pytest.mark.parametrize(
    ("name", "said"), [("a.bin", "its suffix names no format"), ("a.onnx", "opset: 99 is not among")]
)
def test_a_format_that_is_not_known_is_refused(tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        save(nn.Linear(4, 3), tmp_path / name, torch.randn(2, 4), 3, opset=99)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model.safetensors"
    model = QuantizedModel({}, {"weight": QuantizedTensor(torch.tensor([[3, -3, 0]]), torch.tensor(0.5), "sym_odd", 3)})
    write_packed(model, file)
    assert read(file).weights["weight"].values().tolist() == [[1.5, -1.5, 0.0]]
    return file


def rewritten(file, change):
    """The file with its header's texts or tensors changed."""
    with safe_open(file, "pt") as opened:
        header, tensors = dict(opened.metadata()), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    about = json.loads(header["model"])
    change(header, about, tensors)
    save_file(tensors, file, header | {"model": json.dumps(about)} if "model" in header else header)


DAMAGES = {
    "newer": (lambda h, a, t: h.update(version="2"), "format 2 is newer than 1.*update"),
    "another format": (lambda h, a, t: h.update(format="pt"), "is no model written by"),
    "beyond its width": (lambda h, a, t: t.update({"codes/weight": torch.tensor([255, 1], dtype=torch.uint8)}), "a code of 4 on a grid"),
    "too few codes": (lambda h, a, t: t.update({"codes/weight": torch.tensor([255], dtype=torch.uint8)}), "1 bytes for 3 codes of 3 bits"),
    "no scale": (lambda h, a, t: t.pop("scale/weight"), "is damaged"),
    "bits": (lambda h, a, t: a["weights"]["weight"].update(bits=17), "weights.weight.bits: .*less than 9"),
    "bits that are no number": (lambda h, a, t: a["weights"]["weight"].update(bits=3.0), "is damaged"),
    "rule": (lambda h, a, t: a.update(rule="guess"), "rule: 'guess' is not allowed"),
    "tie": (lambda h, a, t: a.update(tie="odd"), "tie: 'odd' is not allowed"),
    "channels": (lambda h, a, t: a.update(per_channel="yes"), "is damaged"),
    "card": (lambda h, a, t: a.update(about=[]), "is damaged"),
    "grid": (lambda h, a, t: a["weights"]["weight"].update(grid=[-3.5, 3]), "is damaged"),
    "slices of 3 bits": (lambda h, a, t: a.update(rule="slice"), "slices of other codes"),
    "huge": (lambda h, a, t: a["weights"]["weight"].update(shape=[2**30, 2**30]), "more than"),
    "negative": (lambda h, a, t: a["weights"]["weight"].update(shape=[-1, 3]), "is damaged"),
    "latent": (lambda h, a, t: a.update(rule="requantize", latent=["weight"]), "latent weights that are none"),
    "unknown key": (lambda h, a, t: a.update(code="import os"), "code: Extra inputs are not permitted"),
    "version": (lambda h, a, t: h.update(version="-1"), "is damaged .*version '-1'"),
    "scale of another shape": (lambda h, a, t: t.update({"scale/weight": torch.ones(7)}), "a scale of torch.float32 .7,. for weight"),
    "scale of nothing": (lambda h, a, t: t.update({"scale/weight": torch.tensor(0.0)}), "no positive number"),
    "scale of NaN": (lambda h, a, t: t.update({"scale/weight": torch.tensor(torch.nan)}), "no positive number"),
    "whole scale": (lambda h, a, t: t.update({"scale/weight": torch.tensor(1)}), "a scale of torch.int64"),
    "no weights": (lambda h, a, t: a.pop("weights"), "is damaged"),
    "shape": (lambda h, a, t: a["weights"]["weight"].update(shape="3"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_says_so_in_one_line(file, damage):
    change, said = DAMAGES[damage]
    rewritten(file, change)
    with pytest.raises(InputError, match=said) as refused:
        read(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [{"name": "mlp6"}, {"name": "../../etc"}, {"name": 7}, {}, {"name": "_resnet"}, {"name": "timm/nothing"}, {"name": "mlp5", "width": -1},
     {"name": "mlp5", "width": 65536}, {"name": "mlp5", "code": "x"}, "mlp5"],
)  # fmt: skip
@pytest.mark.parametrize(
    "rest", [{"image_shape": [1, 8, 8], "classes": 4}, {"image_shape": [10**9], "classes": 10**14}, {}]
)
def test_a_hostile_model_card_is_one_line(tmp_path, options, rest):
    """Nothing is built in full that does not fit the file's tensors."""
    file = tmp_path / "model.safetensors"
    model = {"options": options, **rest}
    write_packed(QuantizedModel({"fc1.bias": torch.ones(2)}, about={"model": model}), file)
    with pytest.raises(InputError, match="names a model that cannot be built") as refused:
        load(file)
    assert "\n" not in str(refused.value)


def test_inputs_of_no_layer_leave_the_callers_model_alone(tmp_path):
    file, model = tmp_path / "model.safetensors", nn.Linear(3, 1)
    before = model.weight.detach().clone()
    of = {"nothing": export_module.QuantizedInput(torch.tensor(0.1), 0, 7, 3)}
    write_packed(QuantizedModel(dict(nn.Linear(3, 1).state_dict()), inputs=of), file)
    with pytest.raises(InputError, match="no such layer"):
        load(file, model)
    assert torch.equal(model.weight, before)


class Mask(nn.Module):
    def forward(self, weight):
        return weight * (torch.arange(weight.shape[1]) % 2)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def with_nan():
    model = nn.Linear(4, 3)
    model.weight.data[0, 0] = torch.nan
    return model


def masked():
    model = fake_quantize(nn.Sequential(nn.Linear(4, 3)), 3)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Mask())
    return model


@pytest.mark.parametrize(
    ("model", "suffix", "said"),
    [
        (with_nan, "safetensors", "not finite"),
        (masked, "safetensors", "something else computes it"),
        (Branches, "onnx", "cannot be written as onnx"),
        (Branches, "pt2", "cannot be written as torch"),
        (lambda: Two(4, 3), "safetensors", "one row of numbers for each input"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_saved_is_one_line(tmp_path, model, suffix, said):
    with pytest.raises(InputError, match=said) as refused:
        save(model(), tmp_path / f"model.{suffix}", torch.randn(5, 4), 3)
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIX.values())
def test_one_image_makes_a_file_for_batches_of_any_size(tmp_path, suffix):
    model = nn.Sequential(nn.Linear(4, 3))
    save(model, file := tmp_path / f"model.{suffix}", torch.randn(1, 4), 3)
    x = torch.randn(7, 4)
    with at_bits(model, 3), torch.no_grad():
        assert torch.allclose(
            export_module.computed(file, {v: k for k, v in SUFFIX.items()}[suffix], x, model), model(x), atol=1e-6
        )
    with pytest.raises(InputError, match="give some inputs"):
        save(model, file, torch.randn(0, 4), 3)


def test_a_folder_in_the_files_place_is_one_line(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match="cannot be written as safetensors"):
        save(nn.Linear(4, 3), tmp_path / "model.safetensors", torch.randn(2, 4), 3)


def test_a_truncated_file_and_what_is_none_say_so(file, tmp_path):
    whole = file.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors: is damaged, or no safetensors file"):
            read(file)
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InputError, match="is damaged"):
        read(file)
    torch.save({"weight": torch.ones(3)}, file)  # a pickle
    with pytest.raises(InputError, match="is damaged"):
        read(file)
    with pytest.raises(InputError, match="there is no such file"):
        read(tmp_path / "nothing.safetensors")


def test_a_file_that_does_not_fit_the_model_says_what_is_wrong(file):
    with pytest.raises(InputError, match="does not fit the model"):
        load(file, nn.Linear(4, 4))
    with pytest.raises(InputError, match="names no model of this project"):
        load(file)


# -- through the command line --------------------------------------------------------------------------------


def test_the_command_writes_and_measures_what_was_trained(tmp_path, monkeypatch, capsys):
    """A tiny study, from training to the table of its files."""
    Project(tmp_path)
    of = "of: [mlp5-scratch/baseline, mlp5-scratch/osciquant-3bit]"
    entry = f"exports:\n  mlp5: {{{of}, seeds: [0], bits: [2, 3]}}\n  other: {{{of}, seeds: [1]}}\n"
    (tmp_path / "params/tiny.yaml").write_text(TINY + entry)
    monkeypatch.chdir(tmp_path)

    def command(*arguments, code=0):
        assert main([*arguments, "--study", "tiny"]) == code
        said = capsys.readouterr()
        return said.out + said.err

    command("fetch")
    command("train", "--only", "mlp5-scratch/baseline,mlp5-scratch/osciquant-3bit", "--seeds", "0")
    run = "mlp5-scratch/osciquant-3bit/seed0"
    said = command("export", "--run", run)
    file = tmp_path / "exports/tiny" / run / "3bit.safetensors"
    assert f"exports/tiny/{run}/3bit.safetensors" in said and "same class for every one" in said
    card = read(file).about
    assert card["run"] == f"results/tiny/runs/{run}" and set(card["test_accuracy"]) == {"3"}
    assert load(file)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    command("export", "--run", run, "--format", "onnx", "--out", "here.onnx")
    assert (tmp_path / "here.onnx").exists()
    for arguments, refused in [
        (["--run", f"{run}1"], "did you mean"),
        (["--run", run, "--bits", "any", "--format", "onnx"], "any width is a safetensors file"),
        (["--run", run, "--bits", "8", "--rule", "slice"], "has widths below 8 only"),
        (["--run", run, "--bits", "17"], "bits: 17 is no width"),
        (["--run", "mlp5-scratch/qat-3bit/seed0"], "has not run"),
        (["--name", "mlp6"], "did you mean 'mlp5'"),
    ]:
        assert refused in command("export", *arguments, code=2)
    command("evaluate", "--experiment", "mlp5-scratch")
    command("collect")
    command("oscillations")
    command("tables")  # on request only: nothing has been exported
    assert pd.read_csv("results/tiny/tables/exports.csv").empty
    assert pd.read_csv("results/tiny/tables/exports-widths.csv").empty
    assert "none of its runs has been trained" in command("export", "--name", "other", code=2)
    command("export", "--name", "mlp5")
    command("tables")
    table = pd.read_csv("results/tiny/tables/exports.csv")
    widths = {"own": [32, 2, 3], "latent": [2, 3], "codes": [2, 3]}
    assert list(zip(table.path, table.file, table.bits)) == [
        (f"mlp5-scratch/{variant}", kind, bits)
        for variant in ("baseline", "osciquant-3bit") for kind, each in widths.items() for bits in each
    ]  # fmt: skip
    own = table[table.file == "own"]
    assert (own.accuracy == own.accuracy_onnx).all() and own[own.bits == 2].bytes.max() < own[
        own.bits == 32
    ].bytes.min()
    served = pd.read_csv("results/tiny/tables/exports-widths.csv")
    both = own[(own.path == "mlp5-scratch/baseline") & (own.bits != 32)].bytes.sum()
    assert served.bytes[0] == both and list(served.columns[3:]) == ["accuracy_2", "accuracy_3"]
    assert served.file.tolist() == ["own", "latent", "codes"] * 2
    measured = pd.read_csv("results/tiny/measurements.csv").query("split == 'test' and seed == 0 and bn == 'keep'")
    for row in table[table.file != "codes"].itertuples():
        mine = measured[(measured.experiment + "/" + measured.variant == row.path) & (measured.eval_bits == row.bits)]
        assert mine.accuracy.tolist() == [pytest.approx(row.accuracy, abs=1e-4)]


def test_bad_entries_are_refused(tmp_path, monkeypatch, capsys):
    Project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for entry, said in [
        ("{of: [mlp5-scratch/qat-4bit]}", "did you mean 'mlp5-scratch/qat-3bit'"),
        ("{of: [mlp5-scratch/baseline], bits: [5]}", "exports.mlp5.bits: 5 is not among eval_bits"),
        ("{of: [mlp5-scratch/baseline], format: onnx}", "unknown key 'format'"),
        ("{of: [mlp5-scratch/baseline], seeds: [0, 7]}", "exports.mlp5.seeds: mlp5-scratch/baseline has no seed 7"),
    ]:
        (tmp_path / "params/tiny.yaml").write_text(TINY + f"exports:\n  mlp5: {entry}\n")
        assert main(["check", "--study", "tiny"]) == 2
        assert said in capsys.readouterr().err
