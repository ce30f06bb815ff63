"""A model at a bit width as a file that computes the same elsewhere: packed codes, ONNX, or a torch.export program."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from oscillations.core.bits import LATENT, REQUANTIZE, SLICE, SLICED, grid_of
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.core.files import replacing
from oscillations.engine.layers import load_weights
from oscillations.engine.network import Network
from oscillations.engine.quantizer import rounded
from oscillations.engine.scales import max_scale
from oscillations.nn import onnx_file, packed
from oscillations.nn.fake_quantize import FakeQuantizer, at_bits, fake_quantizers
from oscillations.nn.latent import check_bits, latent_weights
from oscillations.nn.packed import QuantizedInput, QuantizedModel, QuantizedTensor

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}  #: by format


def eq2(weight: Tensor, bits: int, tie: str = "half_even", per_channel: bool = False) -> QuantizedTensor:
    """Codes and scale of Eq. 1-2 for one tensor."""
    scale = max_scale(weight, grid_of("sym_odd", bits), per_channel)
    return QuantizedTensor(rounded(weight / scale, tie).to(torch.int8), scale, "sym_odd", bits)


def collected(
    model: nn.Module, bits: int | None = None, *, layers: Sequence[str] = ("*",), exclude: Sequence[str] = (),
    per_channel: bool = False,
) -> QuantizedModel:  # fmt: skip
    """What any torch model computes: its fake-quantized layers each at its own width, or else Eq. 1-2's at ``bits``.

    The values are copies. Raises InputError for weights that cannot be quantized.
    """
    quantizers = fake_quantizers(model)
    if not quantizers:
        if bits is None:
            raise InputError("bits: no layer of the model is quantized; say a width")
        check_bits(bits)
        latent = latent_weights(model, layers, exclude)
        weights = {name: eq2(weight.detach(), bits, per_channel=per_channel) for name, weight in latent.items()}
    else:
        own = {one.bits for one in quantizers.values()}
        if bits is not None and own != {bits}:
            raise InputError(f"bits: the model's layers have {' and '.join(map(str, sorted(own)))} bits, not {bits}")
        latent = latent_weights(model, list(quantizers), ())
        weights = {name: _own(one, latent[name]) for name, one in _by_weight(quantizers).items()}
    for name, one in latent.items():
        if not one.isfinite().all():
            raise InputError(f"export: {name} holds numbers that are not finite")
    tensors = {key: value for key, value in _plain_state(model).items() if key not in weights}
    if odd := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise InputError(f"export: {odd[0]} of the model's state is no tensor")
    return QuantizedModel({key: value.detach().clone() for key, value in tensors.items()}, weights)


def _by_weight(quantizers: dict[str, FakeQuantizer]) -> dict[str, FakeQuantizer]:
    return {f"{layer}.weight" if layer else "weight": one for layer, one in quantizers.items()}


def _own(one: FakeQuantizer, weight: Tensor) -> QuantizedTensor:
    return QuantizedTensor(one.codes(weight).to(torch.int8), one.levels(weight).clone(), one.grid_name, one.bits)


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model without our parametrizations."""
    ours = tuple(f"{layer}.parametrizations.weight.".removeprefix(".") for layer in fake_quantizers(model))
    return {key: value for key, value in model.state_dict().items() if not key.startswith(ours)}


def of_network(network: Network, bits: int, rule: str = REQUANTIZE) -> QuantizedModel:
    """What a network of the engine computes at a width, by a rule of :meth:`Network.weights`; latent at 32 bits."""
    if network.method.options.multiplies_weights:
        raise InputError("export: attention on products of weights (qkr) has no layer-by-layer form")
    check_bits(bits, latent=True)
    tensors = {key: value.detach().clone() for key, value in network.model.state_dict().items()}
    inputs = {}
    for layer, one in ({} if network.inputs is None else network.inputs.by_layer).items():
        if one.range is None:
            raise InputError(f"export: {layer} has never seen an input to quantize")
        inputs[layer] = QuantizedInput(one.step.detach().clone(), *one.range, one.bits)
    if bits == LATENT:
        return QuantizedModel(tensors, inputs=inputs)
    quantizer = network.quantizer
    how = ("half_even", False) if quantizer is None else (quantizer.tie, quantizer.scale.per_channel)
    weights = {}
    for i, (name, parameter) in enumerate(zip(network.names, network.parameters)):
        width = network.own_bits.get(name, bits)
        if quantizer is not None and bits == quantizer.bits and rule == REQUANTIZE:
            codes, scale = quantizer.code_views[i].clone(), quantizer.scale.levels[i].clone()
            weights[name] = QuantizedTensor(codes, scale, quantizer.grid_name, width)
        elif rule == REQUANTIZE:
            weights[name] = eq2(parameter.detach(), width, *how)
        else:
            whole = QuantizedModel({}, {name: eq2(parameter.detach(), SLICED, *how)}, rule=SLICE, tie=how[0])
            weights[name] = whole.sliced(name, width)
    _must_be(network, bits, rule, weights)
    return QuantizedModel({k: v for k, v in tensors.items() if k not in weights}, weights, inputs)


def _must_be(network: Network, bits: int, rule: str, weights: dict[str, QuantizedTensor]) -> None:
    """Codes and scales must be the weights that the network is evaluated with, bit for bit."""
    expected = network.weights(bits, rule)
    assert expected is not None
    for (name, one), value in zip(weights.items(), expected):
        if not torch.equal(one.values(), value):
            raise InputError(f"export: the weights of {name} are not codes times one scale for each tensor or channel")


def of_one_rule(network: Network) -> bool:
    """Whether a network is Eq. 1-2 of its latent weights at every width: it has no grid or scale of its own."""
    own = network.quantizer
    return own is None or (own.grid_name, own.scale.kind) == ("sym_odd", "max")


def for_any_width(network: Network, rule: str) -> QuantizedModel:
    """One file for all widths: the latent weights (``requantize``), or codes at 8 bits to slice (``slice``).

    Raises InputError if such a file would not be the network at some width.
    """
    if network.own_bits:
        raise InputError("export: first_last_bits keeps layers at one width; export each width by itself")
    if rule == REQUANTIZE and not of_one_rule(network):
        raise InputError(
            "export: at its own width the network has a grid or scales of its own, which no file of latent weights "
            "holds; export each width by itself, or slices: --rule slice"
        )
    latent = of_network(network, LATENT)
    quantizer = network.quantizer
    how = ("half_even", False) if quantizer is None else (quantizer.tie, quantizer.scale.per_channel)
    if rule == REQUANTIZE:
        return QuantizedModel(
            latent.tensors, inputs=latent.inputs, latent=tuple(network.names), rule=rule, tie=how[0], per_channel=how[1]
        )
    weights = {name: eq2(latent.tensors.pop(name), SLICED, *how) for name in network.names}
    return QuantizedModel(latent.tensors, weights, latent.inputs, rule=rule, tie=how[0], per_channel=how[1])


class InputStep(nn.Module):
    """x^ = s clip(round(x / s), low, high) of a layer's input, as a module that programs can be made of."""

    step: Tensor

    def __init__(self, of: QuantizedInput):
        super().__init__()
        self.low, self.high = of.low, of.high
        self.register_buffer("step", of.step.clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.step).round().clamp(self.low, self.high) * self.step


class OnQuantizedInput(nn.Sequential):
    """A layer behind the quantizer of its input."""


def assembled(exported: QuantizedModel, model: nn.Module, bits: int | None = None) -> nn.Module:
    """``model``, built as the original was, with the weights at a width, and input quantizers where there are some.

    In place, in evaluation mode. Raises InputError if the file does not fit the model.
    """
    modules = dict(model.named_modules())
    if unknown := [layer for layer in exported.inputs if not layer or layer not in modules]:
        raise InputError(f"the inputs of {unknown[0]!r} are quantized, but the model has no such layer")
    load_weights(model, exported.state_dict(bits))
    for layer, of in exported.inputs.items():
        parent, _, own = layer.rpartition(".")
        setattr(model.get_submodule(parent), own, OnQuantizedInput(InputStep(of), model.get_submodule(layer)))
    return model.eval()


def load(file: Path | str, model: nn.Module | None = None, bits: int | None = None) -> nn.Module:
    """The model of a safetensors file that was exported, in evaluation mode.

    ``model``: one built as the original was, for models that are not this project's; it takes the weights. ``bits``
    chooses the width of an any-width file. Raises InputError.
    """
    exported = packed.read(file)
    return assembled(exported, _built(file, exported) if model is None else model, bits)


def _built(file: Path | str, exported: QuantizedModel) -> nn.Module:
    """The project's model that a file names; built in full only if its outline fits the file's tensors."""
    from oscillations import models

    spec = exported.about.get("model")
    if spec is None:
        raise InputError(f"{file}: names no model of this project; build it and give it: load(file, model)")
    try:
        name, library = spec["options"]["name"], spec["options"]["name"].split("/")[0] in models.LIBRARIES
        if name not in models.names() and not library:
            raise ValueError(f"name: {name!r}; {did_you_mean(name, models.names())}")
        about = spec["options"], tuple(spec["image_shape"]), spec["classes"]
        with torch.device("meta"):
            outline = models.build(*about).state_dict()
        shapes = {key: value.shape for key, value in exported.tensors.items()}
        shapes |= {key: one.codes.shape for key, one in exported.weights.items()}
        if {key: value.shape for key, value in outline.items()} != shapes:
            raise ValueError("its tensors are not those of the file")
        return models.build(*about)
    except Exception as error:  # whatever a hostile name or number raises
        raise InputError(f"{file}: names a model that cannot be built ({_line(error)})") from None


def _line(error: Exception) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return shortened(f"{type(error).__name__}: {first}", 200)


def write(
    exported: QuantizedModel, model: nn.Module, file: Path, format: str, images: Tensor,
    expected: dict[int | None, Tensor], opset: int = onnx_file.OPSET,
) -> dict[int | None, Tensor]:  # fmt: skip
    """Write a format of :data:`SUFFIXES`, whole and computing the same, or not at all; returns its logits.

    ``model``: one built as the original was; it is left as it is. ``images``: ``[N, ...]``, inputs of the model, for
    which the file must give the classes of ``expected``: the original's logits ``[N, classes]``, by width for an
    any-width file, else under None. Files take batches of any size. Raises InputError.
    """
    if format not in SUFFIXES:
        raise InputError(f"format: no format {format!r}; {did_you_mean(format, SUFFIXES)}")
    if exported.rule is not None and format != "safetensors":
        raise InputError(f"format: a model for any width is a safetensors file; {format} has one width")
    if not len(images):
        raise InputError("export: give some inputs, to try the file on")
    new_folders = [folder for folder in file.parents if not folder.exists()]
    try:
        with replacing(file) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own insides
            _write(exported, model, part, format, torch.cat([images[:1], images[-1:]]), opset)
            found = {bits: computed(part, format, images, model, bits) for bits in expected}
            for bits, logits in found.items():
                _check(logits, expected[bits], f"{file}" if bits is None else f"{file} at {bits} bits")
    except Exception as error:  # an exporter has hundreds of reasons; a disk, a few
        for folder in new_folders:
            with suppress(OSError):  # another export has written into it
                folder.rmdir()
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be written as {format} ({_line(error)})") from None
    return found


def _write(
    exported: QuantizedModel, model: nn.Module, part: Path, format: str, example: Tensor, opset: int
) -> None:  # fmt: skip
    """Write a format of :data:`SUFFIXES`; ``example``: two inputs, for a batch of one would be taken for a rule."""
    if format == "safetensors":
        packed.write(exported, part)
    elif format == "onnx":
        plain = assembled(QuantizedModel(exported.tensors, exported.weights), copy.deepcopy(model))
        onnx_file.write(exported, plain, part, example, opset)
    else:
        network, shapes = assembled(exported, copy.deepcopy(model)), ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        program.example_inputs = None  # they would be stored as a pickle
        content = io.BytesIO()  # on a full disk torch's own writer ends the process
        torch.export.save(program, content)
        part.write_bytes(content.getbuffer())


@torch.no_grad()
def computed(file: Path, format: str, images: Tensor, model: nn.Module, bits: int | None = None) -> Tensor:
    """Logits of a written file, by torch or by ONNX Runtime, as a stranger would compute them."""
    if format == "onnx":
        return onnx_file.run(onnx_file.session(file), images)
    if format == "torch":
        with file.open("rb") as opened:
            program: Any = torch.export.load(opened).module()
        return program(images)
    return load(file, copy.deepcopy(model), bits)(images)


def _check(logits: Tensor, expected: Tensor, where: str) -> None:
    """InputError if an image has another class than in the original, or where there are none, another number."""
    if logits.shape != expected.shape:
        raise InputError(f"{where}: refused: gives {tuple(logits.shape)}, the original {tuple(expected.shape)}")
    if logits.shape[1] == 1 and not torch.allclose(logits, expected, rtol=1e-3, atol=1e-5):
        raise InputError(f"{where}: refused: differs from the original")
    difference, other = float((logits - expected).abs().max()), logits.argmax(1) != expected.argmax(1)
    if other.any() or not math.isfinite(difference):
        raise InputError(
            f"{where}: refused: {int(other.sum())} of {len(logits)} images have another class than in the original "
            f"(logits differ by up to {difference:.3g})"
        )


def save(
    model: nn.Module, file: Path | str, images: Tensor, bits: int | None = None, *, layers: Sequence[str] = ("*",),
    exclude: Sequence[str] = (), per_channel: bool = False, opset: int = onnx_file.OPSET,
) -> float:  # fmt: skip
    """Save any torch model at a width: ``.safetensors``, ``.onnx`` or ``.pt2``, by the file's suffix.

    Fake-quantized layers are saved each at its own width, on its own grid; of any other model the chosen layers are, by
    Eq. 1-2 at ``bits``. ``images``: some inputs, on which the file is tried: it must give the model's classes, or there
    is none. Returns the largest difference of an output. Raises InputError.
    """
    file = Path(file)
    kinds = {suffix: format for format, suffix in SUFFIXES.items()}
    if file.suffix not in kinds:
        raise InputError(f"{file}: its suffix names no format; {did_you_mean(file.suffix, kinds)}")
    original = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().eval()  # of a compiled model the one behind it
    images, chosen = images.cpu(), {"layers": layers, "exclude": exclude, "per_channel": per_channel}
    exported = collected(original, bits, **chosen)  # type: ignore[arg-type]  # mypy sees one type for all
    exported.about = {"bits": sorted({one.bits for one in exported.weights.values()})}
    with torch.no_grad():
        if fake_quantizers(original):
            expected = original(images)
        else:
            assert bits is not None
            with at_bits(original, bits, **chosen):  # type: ignore[arg-type]
                expected = original(images)
    if not isinstance(expected, Tensor) or expected.dim() != 2:
        raise InputError("export: the model must give one row of numbers for each input; wrap it in a module that does")
    plain = _without_parametrizations(original)
    found = write(exported, plain, file, kinds[file.suffix], images, {None: expected}, opset)
    return float((found[None] - expected).abs().max())


def _without_parametrizations(model: nn.Module) -> nn.Module:
    """A copy of the model with latent weights where :func:`~oscillations.nn.fake_quantize` computes others.

    Not by torch's remove_parametrizations: a copy shares its layers' classes, from which that takes the property away.
    """
    plain = copy.deepcopy(model)
    for name in fake_quantizers(plain):
        layer = plain.get_submodule(name)
        tensors = layer.parametrizations
        assert isinstance(tensors, nn.ModuleDict)
        if len(tensors) > 1:
            raise InputError(f"export: {name} has other parametrizations than its weight's; remove them first")
        weight = tensors["weight"].original
        del layer._modules["parametrizations"]
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        layer.register_parameter("weight", weight)  # type: ignore[arg-type]
    return plain
