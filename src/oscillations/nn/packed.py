"""A quantized model in one safetensors file: codes packed to their width, scales, and all that is not quantized.

Scales are carried, never recomputed: what is read has the values that were written, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from oscillations.core.bits import REQUANTIZE, SLICE, SLICED, Grid, grid_of
from oscillations.core.errors import InputError
from oscillations.core.files import replacing
from oscillations.engine.quantizer import quantize
from oscillations.engine.slices import sliced_codes
from oscillations.nn.latent import check_bits

FORMAT = "oscillations-quantized-model"
VERSION = 1
CODES, SCALE, FLOAT, STEP = "codes/", "scale/", "float/", "step/"


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes of one tensor (int8, in its shape) and the spacing of its levels, 0-dim or ``[C, 1, ...]``."""

    codes: Tensor
    scale: Tensor
    grid: Grid
    bits: int

    def values(self) -> Tensor:
        """The quantized weights: (code + offset) s."""
        return (self.codes.to(self.scale.dtype) + self.grid.offset) * self.scale


@dataclass(frozen=True)
class QuantizedInput:
    """How the input of a layer is quantized: s clip(round(x / s), low, high)."""

    step: Tensor
    low: int
    high: int
    bits: int


@dataclass
class QuantizedModel:
    """All that computes what a model computes at a bit width, or at any (``rule``).

    ``tensors``: the entries of the model's state dict that are not quantized, ``weights`` those that are, ``inputs`` by
    layer. ``rule``: None, or how any width follows: by Eq. 2 from latent weights, which then stand among ``tensors``
    (``requantize``), or from 8-bit codes (``slice``). ``about``: what a reader wants to know, as JSON can hold it.
    """

    tensors: dict[str, Tensor]
    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    inputs: dict[str, QuantizedInput] = field(default_factory=dict)
    latent: tuple[str, ...] = ()  # names among ``tensors`` that rule ``requantize`` quantizes
    rule: str | None = None
    tie: str = "half_even"
    per_channel: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def state_dict(self, bits: int | None = None) -> dict[str, Tensor]:
        """Weights for a model built as the original was; ``bits`` chooses the width of an any-width file."""
        if bits is not None:
            check_bits(bits, latent=self.rule == REQUANTIZE)
        if self.rule is None:
            if bits is not None and {bits} != {one.bits for one in self.weights.values()}:
                raise InputError(f"bits: the file holds weights of one width; {bits} cannot be made of them")
            return self.tensors | {name: one.values() for name, one in self.weights.items()}
        if bits is None:
            raise InputError("bits: the file holds a model for any width; say which")
        if self.rule == SLICE:
            return self.tensors | {name: self.sliced(name, bits).values() for name in self.weights}
        made = {name: quantize(self.tensors[name], bits, self.tie, self.per_channel) for name in self.latent}
        return self.tensors | made

    def sliced(self, name: str, bits: int) -> QuantizedTensor:
        """The leading ``bits`` of a tensor's 8-bit codes."""
        one = self.weights[name]
        codes = sliced_codes(one.codes.to(one.scale.dtype), SLICED, bits, tie=self.tie).to(torch.int8)
        return QuantizedTensor(codes, one.scale * 2 ** (SLICED - bits), grid_of("sym_odd", bits), bits)


def packed(codes: Tensor, low: int, bits: int) -> Tensor:
    """uint8: ``bits`` bits for each code - low, in the order of the entries, least significant first."""
    unsigned = (codes.cpu().numpy().astype(np.int16) - low).astype(np.uint8).ravel()
    planes = (unsigned[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.ravel(), bitorder="little"))


def unpacked(data: Tensor, shape: tuple[int, ...], grid: Grid, bits: int) -> Tensor:
    """The codes that :func:`packed` gave, int8; ValueError if there are not as many, or one is beyond the grid."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes for {count} codes of {bits} bits")
    planes = np.unpackbits(data.numpy(), bitorder="little", count=count * bits).reshape(count, bits)
    codes = (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.int16) + grid.low
    if count and codes.max() > grid.high:
        raise ValueError(f"a code of {codes.max()} on a grid that ends at {grid.high}")
    return torch.from_numpy(codes.astype(np.int8).reshape(shape))


def write(model: QuantizedModel, file: Path) -> None:
    """Write a model; whole, or not at all."""
    tensors = {f"{FLOAT}{name}": value.detach().cpu().contiguous().clone() for name, value in model.tensors.items()}
    for name, one in model.weights.items():
        tensors[f"{CODES}{name}"] = packed(one.codes, one.grid.low, one.bits)
        tensors[f"{SCALE}{name}"] = one.scale.detach().cpu().contiguous().clone()
    tensors |= {f"{STEP}{layer}": one.step.detach().cpu().clone() for layer, one in model.inputs.items()}
    about = {
        "weights": {
            name: {"shape": list(one.codes.shape), "grid": list(one.grid), "bits": one.bits}
            for name, one in model.weights.items()
        },
        "inputs": {layer: [one.low, one.high, one.bits] for layer, one in model.inputs.items()},
        "latent": list(model.latent), "rule": model.rule, "tie": model.tie, "per_channel": model.per_channel,
        "about": model.about,
    }  # fmt: skip
    with replacing(file) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "version": str(VERSION), "model": json.dumps(about)})


def read(file: Path | str) -> QuantizedModel:
    """The model of a file; InputError, naming it, if it is none, of a newer format, or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            header: Mapping[str, str] = opened.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{file}: is no model written by oscillations export")
            if not header.get("version", "").isdecimal() or int(header["version"]) > VERSION:
                newer = f"format {header.get('version')} is newer than {VERSION}, all that this version reads"
                raise InputError(f"{file}: {newer}; update oscillations")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dictionary
        return _parsed(tensors, json.loads(header["model"]))
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is damaged, or no safetensors file ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: is damaged ({error})") from None


def _parsed(tensors: dict[str, Tensor], said: dict[str, Any]) -> QuantizedModel:
    weights = {}
    for name, about in said["weights"].items():
        grid, bits = Grid(*about["grid"]), about["bits"]
        check_bits(bits)
        codes = unpacked(tensors[f"{CODES}{name}"], tuple(about["shape"]), grid, bits)
        weights[name] = QuantizedTensor(codes, tensors[f"{SCALE}{name}"], grid, bits)
    inputs = {layer: QuantizedInput(tensors[f"{STEP}{layer}"], *of) for layer, of in said["inputs"].items()}
    floats = {name.removeprefix(FLOAT): value for name, value in tensors.items() if name.startswith(FLOAT)}
    latent, rule = tuple(said["latent"]), said["rule"]
    if rule not in (None, REQUANTIZE, SLICE) or not set(latent) <= set(floats):
        raise ValueError(f"rule {rule!r}")
    return QuantizedModel(floats, weights, inputs, latent, rule, said["tie"], said["per_channel"], said["about"])
