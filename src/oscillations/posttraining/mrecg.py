"""MRECG: neighbouring units of unequal capacity are reconstructed together (Ma et al. 2023, arXiv:2303.11906).

The paper calls the jumps of the reconstruction loss along the depth an oscillation, and traces them to units of
small capacity behind ones of large capacity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from oscillations import models
from oscillations.core.errors import InputError, did_you_mean
from oscillations.posttraining.brecq import Brecq, BrecqOptions

if TYPE_CHECKING:
    from oscillations.posttraining._reconstruction import Calibration
    from oscillations.posttraining._units import Unit

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
    capacity: Literal["diff2", "log_ratio", "data_dependent"] = Field(
        "diff2",
        description="score of neighbours: squared difference or log ratio of ModCap, or the squared difference of "
        "their own errors",
    )
    k: NonNegativeInt | None = Field(None, description="so many pairs of neighbours are merged")
    exclude_first_last: bool = Field(True, description="never merge the first and the last unit")
    stride_factor: PositiveFloat = Field(1.6, description="ModCap's factor of layers with stride 2")
    scheme: Literal["released"] | list[list[str]] | None = Field(
        None, description="the units to merge, by name, instead of k; released: those of the authors' configurations"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> MrecgOptions:
        if (self.k is None) == (self.scheme is None):
            raise ValueError("k, scheme: give one of the two")
        return self


class Mrecg(Brecq):
    Options = MrecgOptions

    def groups(self, calibration: Calibration) -> list[list[Unit]]:
        o, units = self.options, calibration.chain.units
        if o.scheme == "released":
            joined = next((joined for count, joined in RELEASED.values() if count == len(units)), None)
            if joined is None:
                raise InputError(f"mrecg: scheme: released: no released network has {len(units)} units")
            return cut(units, {place - 1 for group in joined for place in group[:-1]})
        if o.scheme is not None:
            return cut(units, named_joints(o.scheme, [unit.name for unit in units]))
        if o.capacity == "data_dependent":
            capacities = [-error for error in own_errors(calibration)]
        else:
            capacities = [capacity(calibration, unit, o.stride_factor) for unit in units]
        eligible = [bool(left.weights and right.weights) for left, right in pairwise(units)]
        if o.exclude_first_last:
            eligible[0] = eligible[-1] = False
        if o.k > sum(eligible):
            raise InputError(f"mrecg: k: {o.k} pairs of {len(units)} units; only {sum(eligible)} can be merged")
        return cut(units, largest(scores(capacities, o.capacity), eligible, o.k))

    @classmethod
    def check(cls, options: MrecgOptions, recipe: dict[str, Any]) -> None:
        """The released schemes are of two networks; a scheme's names begin names of the network's layers."""
        model = recipe["model"]["name"]
        if options.scheme == "released" and model not in RELEASED:
            raise ValueError(f"scheme: released: there is none for {model}; known: {', '.join(RELEASED)}")
        if isinstance(options.scheme, list):
            module = models.find(model)
            parts = [layer.split(".") for layer in module.layers(module.Options(**recipe["model"]))]
            known = dict.fromkeys(".".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1))
            for name in (name for group in options.scheme for name in group):
                if name not in known:
                    raise ValueError(f"scheme: {model} has no unit {name!r}; {did_you_mean(name, known)}")


def mod_cap(layers: Iterable[tuple[int, int]], bits: int, stride_factor: float) -> float:
    """Capacity of a unit from its layers' ``(parameters, stride)``: their bits, a layer of stride 2 weighted."""
    return float(sum(count * bits * (stride_factor if stride > 1 else 1.0) for count, stride in layers))


def capacity(calibration: Calibration, unit: Unit, stride_factor: float) -> float:
    layers = []
    for name in unit.weights:
        layer = calibration.chain.traced.get_submodule(name.rpartition(".")[0])
        layers.append((layer.weight.numel(), max(getattr(layer, "stride", (1,)))))
    return mod_cap(layers, calibration.bits, stride_factor)


def own_errors(calibration: Calibration) -> list[float]:
    """Squared error of every unit's output on its latent input when its weights are rounded to nearest."""
    errors = []
    for unit in calibration.chain.units:
        rounded = {name: calibration.nearest(name) for name in unit.weights}
        errors.append((calibration.value(unit.stop, rounded) - calibration.value(unit.stop, {})).square().sum().item())
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


def cut(units: list, joints: set[int]) -> list[list]:
    """Groups of neighbours: the list cut behind every place (from 0) that is not among ``joints``."""
    groups = [[units[0]]]
    for place, unit in enumerate(units[1:]):
        if place in joints:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def named_joints(scheme: list[list[str]], names: list[str]) -> set[int]:
    """Where a scheme joins; its groups must be two or more neighbouring units each."""
    joints: set[int] = set()
    for group in scheme:
        for name in group:
            if name not in names:
                raise InputError(f"mrecg: scheme: no unit {name!r}; {did_you_mean(name, names)}")
        places = [names.index(name) for name in group]
        if len(group) < 2 or places != list(range(places[0], places[0] + len(group))):
            raise InputError(f"mrecg: scheme: {group} are not two or more neighbours; the units: {', '.join(names)}")
        joints |= set(places[:-1])
    return joints
