"""Strict typed configuration: unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from oscillations.core.errors import InputError, did_you_mean, shortened

MAPPING, LIST = {"dict_type", "model_type", "model_attributes_type"}, {"list_type", "tuple_type"}  # pydantic's names
Parsed = TypeVar("Parsed", bound=BaseModel)
EXPONENT = re.compile(r"([+-]?\d+)(\.\d*)?e([+-]?)(\d+)", re.IGNORECASE)


class Strict(BaseModel):
    """Base of everything a study file can say.

    No value is converted (a bool is no number, "64" is no 64; but 1 is also a float), no number is infinite or NaN,
    and nothing stands twice in a list.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for key in values:
            if key not in fields:
                raise ValueError(f"unknown key {shortened(key)}; {did_you_mean(key, fields)}")
        # YAML and JSON have no tuples
        tuples = {key for key in values if get_origin(fields[key].annotation) is tuple}
        return {k: tuple(value) if k in tuples and isinstance(value, list) else value for k, value in values.items()}

    @model_validator(mode="after")
    def _nothing_twice(self) -> Strict:
        for name, field in type(self).model_fields.items():
            value, key = getattr(self, name), field.alias or name
            refuse_repeats(value, key)
            if isinstance(value, dict):
                for inner, listed in value.items():
                    refuse_repeats(listed, f"{key}.{inner}")
        return self


def refuse_repeats(values: Any, key: str) -> None:
    """Raise ValueError, naming ``key``, if ``values`` is a list that holds something twice."""
    if isinstance(values, list | tuple):
        seen: set[Any] | list[Any] = set() if all(map(_hashable, values)) else []
        for value in values:
            if value in seen:
                raise ValueError(f"{key}: {shortened(value)} stands twice")
            seen.add(value) if isinstance(seen, set) else seen.append(value)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def parse(model: type[Parsed], values: Any, where: str) -> Parsed:
    """``values`` as ``model``; InputError with one line, which names ``where`` and the key of the first fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(values, error.errors())}") from None


def _explain(values: Any, problems: list[Any]) -> str:
    """The first fault; what else is wrong with the same value are the other alternatives of its type."""
    places = [_place(values, problem) for problem in problems]
    same = [i for i, place in enumerate(places) if place[: len(places[0])] == places[0][: len(place)]]
    deepest = max((places[i] for i in same), key=len)
    messages = dict.fromkeys(_message(problems[i]) for i in same if places[i] == deepest)
    text = ": ".join([*([".".join(map(str, deepest))] if deepest else []), "; or ".join(messages)])
    more = len({places[i] for i in range(len(places)) if i not in same})
    return text + (f" (and {more} more faults)" if more else "")


def _place(values: Any, problem: Any) -> tuple:
    """The keys that lead to the fault, without pydantic's names for the alternatives of a type."""
    place: list[Any] = []
    for part in problem["loc"]:
        keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
        if inside := part in keys:
            values = values[part]
        if inside or (problem["type"] == "missing" and part == problem["loc"][-1]):
            place.append(part)
    return tuple(place)


def _message(problem: Any) -> str:
    kind, found = problem["type"], problem.get("input")
    if kind == "literal_error":
        choices = [text.strip("'") for text in re.split(r", | or ", problem["ctx"]["expected"])]
        return f"{shortened(found)} is not allowed; {did_you_mean(found, choices)}"
    if kind == "missing":
        return "this key is missing"
    if kind == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    text = "must be a mapping of keys" if kind in MAPPING else "must be a list" if kind in LIST else problem["msg"]
    return f"{text} (found {shortened(found)}{_as_number(found) if kind in ('int_type', 'float_type') else ''})"


def _as_number(found: Any) -> str:
    """How YAML wants the number written that a string spells: 1e-3 without a point is a string to it."""
    if not isinstance(found, str):
        return ""
    if parts := EXPONENT.fullmatch(found):
        digits, fraction, sign, power = parts.groups()
        return f", a string; write {digits}{fraction or '.0'}e{sign or '+'}{power}"
    return ", a string; write it without quotes" if re.fullmatch(r"[+-]?\d+(\.\d*)?", found) else ""
