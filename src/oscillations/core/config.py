"""Strict typed configuration: unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from oscillations.core.errors import InputError, did_you_mean


class Strict(BaseModel):
    """Base of everything a study file can say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in values:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}; {did_you_mean(key, known)}")
        return values


def parse(model: type[BaseModel], values: Any, where: str) -> Any:
    """``values`` as ``model``; an error names ``where`` and the key inside it."""
    try:
        return model(**values) if isinstance(values, dict) else model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain(where, problem) for problem in error.errors())) from None


def _explain(where: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        choices = [text.strip("'") for text in re.split(r", | or ", problem["ctx"]["expected"])]
        message = f"{problem['input']!r} is not allowed; {did_you_mean(problem['input'], choices)}"
    elif problem["type"] == "missing":
        message = "this key is missing"
    elif "input" in problem and problem["type"] != "value_error":
        message += f" (found {problem['input']!r})"
    return f"{where}: {key}: {message}" if key else f"{where}: {message}"
