"""The latent weights of any torch model: which there are, and which cannot be quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from oscillations.core.bits import LATENT
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.engine.layers import is_matrix_layer

#: Widths a weight can be quantized to: codes are int8, and two levels have no zero.
WIDTHS = range(2, 9)
NO_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # which may have weights of two dimensions
PRODUCTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


HELD = "_latent_while_held"  #: attribute of a parameter that holds quantized weights: its latent ones


class WeightParametrization(nn.Module):
    """Base of what computes a layer's weight from its latent weight, which torch keeps as ``original``."""


def check_bits(bits: int, latent: bool = False) -> None:
    """Raise InputError unless weights can have this width; ``latent``: 32, the weights as they are, is one."""
    if type(bits) is not int or not (bits in WIDTHS or (latent and bits == LATENT)):
        beside = f", or {LATENT} for the latent weights" if latent else ""
        raise InputError(f"bits: {bits!r} is no width of weights; give {WIDTHS.start} to {WIDTHS.stop - 1}{beside}")


def own_parametrization(layer: nn.Module) -> WeightParametrization | None:
    """What :func:`fake_quantize` has put on the layer's weight, if that alone computes it."""
    return source_of(layer)[1]


def matrix_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that multiply by a weight, by name: linear ones and convolutions. No norms, no embeddings."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"{name}: a lazy layer has no weight before its first batch; call the model once")
    layers = [(name, layer) for name, layer in model.named_modules() if not isinstance(layer, NO_MATRICES)]
    return {
        name: layer
        for name, layer in layers
        if isinstance(layer, PRODUCTS) or is_matrix_layer(layer) or _parametrized_matrix(layer)
    }


def _parametrized_matrix(layer: nn.Module) -> bool:
    """Whether a layer's weight is a matrix that a parametrization computes; nothing is computed to know."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    tensors = layer.parametrizations.get_submodule("weight")  # type: ignore[union-attr]
    return any(tensor.dim() >= 2 for name, tensor in tensors.named_parameters() if name.startswith("original"))


def chosen_layers(model: nn.Module, layers: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that a pattern of ``layers`` matches and none of ``exclude`` does; InputError if there are none."""
    known = matrix_layers(model)
    if not known:
        raise InputError("the model has no layer that multiplies by a weight: nothing to quantize")
    for argument, patterns in (("layers", layers), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise InputError(f"{argument}: give a list of patterns, [{patterns!r}]")
        if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"{argument}: give a list of patterns of layer names, not {shortened(patterns)}")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise InputError(f"{argument}: {pattern!r} matches no layer; {did_you_mean(pattern, list(known))}")
    chosen = {
        name: layer
        for name, layer in known.items()
        if any(fnmatchcase(name, pattern) for pattern in layers)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise InputError("layers, exclude: no layer is left")
    return chosen


def latent_weights(model: nn.Module, layers: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Parameter]:
    """The latent weights of the chosen layers, by the name ``<layer>.weight``.

    Raises InputError for what cannot be quantized as it should: shared, meta, complex, half-precision or sharded
    weights, and weights that something else computes already.
    """
    found: dict[str, nn.Parameter] = {}
    owners = _owners(model)
    for name, layer in chosen_layers(model, layers, exclude).items():
        where = f"{name or 'the model'}.weight"
        weight = latent_weight(layer)
        if weight is None:
            raise InputError(
                f"{where}: something else computes it (a parametrization, weight norm, pruning); leave it out: "
                f"exclude=[{name!r}]"
            )
        if len(same := owners[id(weight)]) > 1:
            shared = " and ".join(same)
            raise InputError(f"{where}: {shared} are one tensor, and one grid cannot serve both; exclude=[{name!r}]")
        check_weight(weight, where)
        found[f"{name}.weight" if name else "weight"] = weight
    kinds = {f"{weight.dtype} on {weight.device}" for weight in found.values()}
    if len(kinds) > 1:
        raise InputError(f"layers: weights are {' and '.join(sorted(kinds))}; choose layers of one kind at a time")
    return found


def latent_weight(layer: nn.Module) -> nn.Parameter | None:
    """The parameter that a layer's weight is, or is quantized from; None if something else computes the weight."""
    return source_of(layer)[0]


def source_of(layer: nn.Module, kind: str = "weight") -> tuple[nn.Parameter | None, WeightParametrization | None]:
    """A layer's latent weight (bias) and what :func:`fake_quantize` quantizes it by; two None if others compute it."""
    if "parametrizations" not in layer._modules or not parametrize.is_parametrized(layer, kind):
        return layer._parameters.get(kind), None
    tensors = layer.parametrizations.get_submodule(kind)  # type: ignore[union-attr]
    first, *others = tensors.children()
    if others or not isinstance(first, WeightParametrization):
        return None, None
    assert isinstance(tensors.original, nn.Parameter)
    return tensors.original, first


def refuse_changed(
    model: nn.Module, weights: dict[str, nn.Parameter], what: str,
    quantizers: Mapping[str, WeightParametrization | None] | None = None,
) -> None:  # fmt: skip
    """Raise InputError if a layer has another weight than when ``what`` was made, or computes at another width now.

    ``quantizers``: what computed the layers' weights then, by the weights' names, if that matters.
    """
    for name, weight in weights.items():
        *path, kind = name.split(".")
        layer: nn.Module | None = model
        for part in path:  # get_submodule in a tenth of its time, and without an error for a layer that is gone
            layer = None if layer is None else layer._modules.get(part)
        now, own = source_of(layer, kind) if layer is not None else (None, None)
        if now is not weight:
            raise InputError(f"{what}: {name} is another parameter than when it was made; make it anew")
        if hasattr(weight, HELD):
            raise InputError(f"{what}: inside at_bits the weights are quantized ones; call it outside")
        if quantizers is not None and own is not quantizers[name]:
            raise InputError(f"{what}: {name} is quantized otherwise than when it was made; make it anew")


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of every parameter, by its identity; a layer that is used twice is one owner."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False):
            owners.setdefault(id(parameter), []).append(own)
    return owners


def check_weight(weight: nn.Parameter, where: str) -> None:
    """Raise InputError if this latent weight cannot be quantized as it should."""
    if weight.is_meta:
        raise InputError(f"{where}: a weight on the meta device has no values; materialize the model first")
    if weight.is_complex() or not weight.is_floating_point():
        raise InputError(f"{where}: {weight.dtype} has no grid; weights must be float32 or float64")
    if weight.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{where}: latent weights of {weight.dtype} are too coarse to move between thresholds; keep them in "
            "float32 and compute in half precision by torch.autocast"
        )
    if not weight.numel():
        raise InputError(f"{where}: an empty weight has nothing to quantize; leave its layer out")
    if torch.empty_like(weight).stride() != weight.stride():
        raise InputError(f"{where}: entries of the weight lie apart, or share memory; make it contiguous first")
    if type(weight.data) is not torch.Tensor:
        raise InputError(
            f"{where}: a {type(weight.data).__name__} is only a part of a weight; quantize before sharding"
        )
