"""MRECG: neighbouring units of unequal capacity are reconstructed together (Ma et al. 2023, arXiv:2303.11906).

The paper calls the jumps of the reconstruction loss along the depth an oscillation, and traces them to units of
small capacity behind ones of large capacity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from oscillations.core.errors import InputError, did_you_mean
from oscillations.engine.layers import layer_of, quantized_layers
from oscillations.posttraining.brecq import Brecq, BrecqOptions

if TYPE_CHECKING:
    from oscillations.engine.recipe import Recipe
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit

Piece = TypeVar("Piece")

# Places (from 1) of the units that the released configurations join, and how many units the network has. The release
# cuts MobileNetV2 into 18 modules: the stem with the first block, each further block, and the last convolution with
# the classifier; here these are 20 units. Its lists join features 3 and 4, 6 and 7, 9 to 11, 12 to 14, 16 and 17: each
# reaches over a change of stage, as those of ResNet-18 do.
RELEASED = {
    "resnet18": (10, [[3, 4], [5, 6]]),
    "mobilenetv2": (20, [[1, 2], [4, 5], [7, 8], [10, 11, 12], [13, 14, 15], [17, 18], [19, 20]]),
}


class MrecgOptions(BrecqOptions):
    prob: float = Field(1.0, ge=0, le=1, description="below 1: QDrop's mixing of the inputs")
    capacity: Literal["log_ratio", "diff2", "data_dependent"] = Field(
        "log_ratio",
        description="score of neighbours: log ratio or squared difference of ModCap, or the squared difference of "
        "their own errors; with k: 2 only the first joins what the release joins in ResNet-18",
    )
    k: NonNegativeInt | None = Field(None, description="so many pairs of neighbours are merged")
    exclude_first_last: bool = Field(True, description="never merge the first and the last unit")
    stride_factor: PositiveFloat = Field(1.6, description="ModCap's factor of layers with stride 2")
    scheme: Literal["released"] | Annotated[list[list[str]], Field(min_length=1)] | None = Field(
        None, description="the units to merge, by name, instead of k; released: those of the authors' configurations"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> MrecgOptions:
        if (self.k is None) == (self.scheme is None):
            raise ValueError("k, scheme: give one of the two")
        return self


class Mrecg(Brecq):
    Options = MrecgOptions
    options: MrecgOptions

    @property
    def share_quantized(self) -> float:
        return self.options.prob

    def groups(self, calibration: Calibration) -> list[list[Unit]]:
        o, units = self.options, calibration.chain.units
        if o.scheme == "released":
            joined = next((joined for count, joined in RELEASED.values() if count == len(units)), None)
            if joined is None:
                raise InputError(f"mrecg: scheme: released: no released network has {len(units)} units")
            return cut(units, {place - 1 for group in joined for place in group[:-1]})
        if o.scheme is not None:
            try:
                return cut(units, named_joints(o.scheme, [unit.name for unit in units]))
            except ValueError as error:
                raise InputError(f"mrecg: {error}") from None
        if o.capacity == "data_dependent":
            capacities = [-error for error in own_errors(calibration)]
        else:
            capacities = [capacity(calibration, unit, o.stride_factor) for unit in units]
        joinable = eligible([bool(unit.weights) for unit in units], o.exclude_first_last)
        assert o.k is not None  # without a scheme
        if o.k > sum(joinable):
            raise InputError(f"mrecg: {too_many(o.k, joinable)}")
        return cut(units, largest(scores(capacities, o.capacity), joinable, o.k))

    def check(self, recipe: Recipe, layers: list[str]) -> None:
        """The released schemes are of two networks; others join units that there are, and no more than there are."""
        o, model = self.options, recipe.model.name
        if o.scheme == "released":
            if model not in RELEASED:
                raise ValueError(f"scheme: released: there is none for {model}; known: {', '.join(RELEASED)}")
        elif "/" not in model:  # of a library's network, only the traced network tells
            units = units_of(layers)
            if o.scheme is None:
                assert o.k is not None
                chosen = quantized_layers(layers, recipe.quant_layers)
                weighty = [any(name in chosen for name in inside) for inside in units.values()]
                joinable = eligible(weighty, o.exclude_first_last)
                if o.k > sum(joinable):
                    raise ValueError(too_many(o.k, joinable))
            else:
                named_joints(o.scheme, list(units))


def units_of(layers: list[str]) -> dict[str, list[str]]:
    """The layers of every unit of this project's networks, by the unit's name: a block's, or the layer's own.

    :class:`oscillations.posttraining._units.Chain` finds the same in the network itself, for which it needs torch.
    """
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        found = re.match(r".*?\.\d+(?=\.)", layer)
        blocks.setdefault(found[0] if found else layer, []).append(layer)
    return {block if len(inside) > 1 else inside[0]: inside for block, inside in blocks.items()}


def eligible(weighty: list[bool], exclude_first_last: bool) -> list[bool]:
    """Of each unit and the next, whether they may be merged: both hold quantized weights."""
    pairs = [left and right for left, right in pairwise(weighty)]
    if exclude_first_last:
        pairs[:1] = pairs[-1:] = [False]
    return pairs


def too_many(k: int, joinable: list[bool]) -> str:
    return f"k: {k} pairs of {len(joinable) + 1} units; only {sum(joinable)} can be merged"


def mod_cap(layers: Iterable[tuple[int, int, int]], stride_factor: float) -> float:
    """Capacity of a unit from its layers' ``(parameters, stride, bits)``: all bits, a layer of stride 2 weighted."""
    return float(sum(count * bits * (stride_factor if stride > 1 else 1.0) for count, stride, bits in layers))


def capacity(calibration: Calibration, unit: Unit, stride_factor: float) -> float:
    layers = []
    for name in unit.weights:
        layer = calibration.chain.traced.get_submodule(layer_of(name))
        width = calibration.grids[name].high.bit_length() + 1
        layers.append((layer.get_parameter("weight").numel(), max(getattr(layer, "stride", (1,))), width))
    return mod_cap(layers, stride_factor)


def own_errors(calibration: Calibration) -> list[float]:
    """Squared error of every unit's output on its latent input when its weights are rounded to nearest."""
    errors = []
    for unit in calibration.chain.units:
        rounded = {name: calibration.nearest(name) for name in unit.weights}
        errors.append((calibration.latent(unit.stop, rounded) - calibration.latent(unit.stop)).square().sum().item())
    return errors


def scores(capacities: list[float], kind: str) -> list[float]:
    """How unequal each unit and the next are: squared difference, or |log| of the ratio."""
    if kind == "log_ratio":
        return [abs(math.log(b / a)) if a and b else 0.0 for a, b in pairwise(capacities)]
    return [(a - b) ** 2 for a, b in pairwise(capacities)]


def largest(values: list[float], eligible: list[bool], k: int) -> set[int]:
    """Places (from 0) of the ``k`` largest values among the eligible; of equal ones the first.

    Values that differ by rounding only are equal: the stages of a ResNet all have the same ratio.
    """
    places = [place for place, allowed in enumerate(eligible) if allowed]
    return set(sorted(places, key=lambda place: (-float(f"{values[place]:.9g}"), place))[:k])


def cut(units: list[Piece], joints: set[int]) -> list[list[Piece]]:
    """Groups of neighbours: the list cut behind every place (from 0) that is not among ``joints``."""
    groups = [[units[0]]]
    for place, unit in enumerate(units[1:]):
        if place in joints:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def named_joints(scheme: list[list[str]], names: list[str]) -> set[int]:
    """Where a scheme joins; ValueError unless its groups are two or more neighbouring units each."""
    joints: set[int] = set()
    for group in scheme:
        for name in group:
            if name not in names:
                raise ValueError(f"scheme: no unit {name!r}; {did_you_mean(name, names)}")
        places = [names.index(name) for name in group]
        if len(group) < 2 or places != list(range(places[0], places[0] + len(group))):
            raise ValueError(f"scheme: {group} are not two or more neighbours; the units: {', '.join(names)}")
        joints |= set(places[:-1])
    return joints
