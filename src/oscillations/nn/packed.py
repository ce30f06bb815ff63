"""A quantized model in one safetensors file: codes packed to their width, scales, and all that is not quantized.

Scales are carried, never recomputed: what is read has the values that were written, bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from oscillations.core.bits import REQUANTIZE, SLICE, SLICED, Grid, grid_of
from oscillations.core.config import parse
from oscillations.core.errors import InputError, shortened
from oscillations.core.files import write_bytes
from oscillations.engine.quantizer import quantize
from oscillations.engine.slices import sliced_codes
from oscillations.nn.latent import WIDTHS, check_bits

FORMAT = "oscillations-quantized-model"
VERSION = 1
LARGEST = 2**40  #: entries of a tensor: what has more is no tensor but an attack
REAL = (torch.float32, torch.float64)
CODES, SCALE, FLOAT, STEP = "codes/", "scale/", "float/", "step/"


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes of one tensor (int8, in its shape) and the spacing of its levels, 0-dim or ``[C, 1, ...]``."""

    codes: Tensor
    scale: Tensor
    grid_name: str
    bits: int

    @property
    def grid(self) -> Grid:
        return grid_of(self.grid_name, self.bits)

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
        if self.rule == SLICE and bits >= SLICED:
            raise InputError(f"bits: codes of {SLICED} bits have slices below that, not of {bits}")
        if self.rule == SLICE:
            return self.tensors | {name: self.sliced(name, bits).values() for name in self.weights}
        made = {name: quantize(self.tensors[name], bits, self.tie, self.per_channel) for name in self.latent}
        return self.tensors | made

    def sliced(self, name: str, bits: int) -> QuantizedTensor:
        """The leading ``bits`` of a tensor's 8-bit codes."""
        one = self.weights[name]
        codes = sliced_codes(one.codes.to(one.scale.dtype), SLICED, bits, tie=self.tie).to(torch.int8)
        return QuantizedTensor(codes, one.scale * 2 ** (SLICED - bits), "sym_odd", bits)


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
            name: {"shape": list(one.codes.shape), "grid": one.grid_name, "bits": one.bits}
            for name, one in model.weights.items()
        },
        "inputs": {
            layer: {"low": one.low, "high": one.high, "bits": one.bits} for layer, one in model.inputs.items()
        },
        "latent": list(model.latent), "rule": model.rule, "tie": model.tie, "per_channel": model.per_channel,
        "about": model.about,
    }  # fmt: skip
    said = {"format": FORMAT, "version": str(VERSION), "model": json.dumps(about)}
    write_bytes(file, _with_metadata(save(tensors), said))


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file without metadata, with it: safetensors itself would order it by chance."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata} | json.loads(content[8:start])).encode()
    header += b" " * (-len(header) % 8)  # tensors begin where they are aligned
    return len(header).to_bytes(8, "little") + header + content[start:]


class Said(BaseModel):
    """Base of what a file's header says: nothing else, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class WeightHeader(Said):
    """What a file says of one tensor's codes."""

    shape: list[Annotated[int, Field(ge=1, le=2**31)]] = Field(min_length=1, max_length=8)
    grid: Literal["sym_odd", "lsq", "lsq_full", "mid_rise"]
    bits: int = Field(ge=WIDTHS.start, lt=WIDTHS.stop)

    @model_validator(mode="after")
    def _no_more_than_there_is(self) -> WeightHeader:
        if math.prod(self.shape) > LARGEST:
            raise ValueError(f"shape: {self.shape} has more than {LARGEST} entries")
        return self


class InputHeader(Said):
    """What a file says of a layer's input."""

    low: int = Field(ge=-128, le=0)
    high: int = Field(ge=1, le=255)
    bits: int = Field(ge=WIDTHS.start, lt=WIDTHS.stop)


class Header(Said):
    """What a file says of a model."""

    weights: dict[str, WeightHeader]
    inputs: dict[str, InputHeader]
    latent: list[str]
    rule: Literal["requantize", "slice"] | None
    tie: Literal["half_even", "half_up"]
    per_channel: bool
    about: dict[str, Any]


def read(file: Path | str) -> QuantizedModel:
    """The model of a file; InputError, naming it, if it is none, of a newer format, or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            header: Mapping[str, str] = opened.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{file}: is no model written by oscillations export")
            version = header.get("version", "")
            if version.isdecimal() and int(version) > VERSION:
                newer = f"format {version} is newer than {VERSION}, the newest that is read here"
                raise InputError(f"{file}: {newer}; update oscillations")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dictionary
        if version != str(VERSION):
            raise ValueError(f"version {version!r}")
        return _parsed(tensors, parse(Header, json.loads(header["model"]), f"{file}: is damaged"))
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is damaged, or no safetensors file ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: is damaged ({shortened(str(error), 200)})") from None


def _parsed(tensors: dict[str, Tensor], said: Header) -> QuantizedModel:
    weights = {}
    for name, about in said.weights.items():
        scale = tensors[f"{SCALE}{name}"]
        _check_scale(scale, [(), (about.shape[0], *[1] * (len(about.shape) - 1))], name)
        codes = unpacked(tensors[f"{CODES}{name}"], tuple(about.shape), grid_of(about.grid, about.bits), about.bits)
        weights[name] = QuantizedTensor(codes, scale, about.grid, about.bits)
    inputs = {}
    for layer, of in said.inputs.items():
        step = tensors[f"{STEP}{layer}"]
        _check_scale(step, [()], layer)
        inputs[layer] = QuantizedInput(step, of.low, of.high, of.bits)
    floats = {name.removeprefix(FLOAT): value for name, value in tensors.items() if name.startswith(FLOAT)}
    if not all(name in floats and floats[name].dtype in REAL and floats[name].numel() for name in said.latent):
        raise ValueError("latent weights that are none")
    if said.rule == SLICE and any(one.bits != SLICED or one.grid_name != "sym_odd" for one in weights.values()):
        raise ValueError(f"slices of other codes than {SLICED}-bit ones")
    return QuantizedModel(
        floats, weights, inputs, tuple(said.latent), said.rule, said.tie, said.per_channel, said.about
    )


def _check_scale(scale: Tensor, shapes: list[tuple[int, ...]], where: str) -> None:
    """ValueError unless a scale is a positive number, or one for each channel."""
    if scale.dtype not in REAL or tuple(scale.shape) not in shapes:
        raise ValueError(f"a scale of {scale.dtype} {tuple(scale.shape)} for {where}")
    if not (scale.isfinite().all() and (scale > 0).all()):
        raise ValueError(f"a scale of {where} that is no positive number")
