"""What makes a file this study's result: its recipe by meaning, its data, its start, and the arithmetic.

Identities are plain JSON values. A record holds that of its run as it was when the run was made; versions of the
arithmetic in it may be sources that were unknown then (:mod:`oscillations.records.numerics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from oscillations import methods, models
from oscillations.core.bits import REQUANTIZE
from oscillations.core.files import canonical_json, sha256
from oscillations.engine.recipe import Activations, Training
from oscillations.posttraining import PostTrainingOptions
from oscillations.records import numerics
from oscillations.study.schema import PostTrainingEntry

OTHER_DATA = "made from other data"
OTHER_WEIGHTS = "started from other pretrained weights"
SEEN_BY_EVALUATION = (  # of a recipe; how the weights came about is in their hash
    "data", "validation", "split_seed", "images", "classes", "resize", "model", "quant_layers", "pretrained", "method",
    "eval_bits", "threads", "activations", "first_last_bits",
)  # fmt: skip


def meaning(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what is at its default: an option that is not there equals one that says the default."""
    whole = {key: value for key, value in recipe.items() if value is not None}
    whole["method"] = _chosen(methods.find(recipe["method"]["name"]).Options, recipe["method"])
    whole["model"] = _chosen(models.find(recipe["model"]["name"]).Options, recipe["model"])
    if activations := whole.get("activations"):
        whole["activations"] = _chosen(Activations, activations)
    return whole | {"training": _chosen(Training, recipe["training"])}


def _chosen(options: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(options)
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


@cache
def _defaults(options: type[BaseModel]) -> dict[str, Any]:
    """JSON values of the options that need not be said."""
    fields = {field.alias or name: field for name, field in options.model_fields.items() if not field.is_required()}
    values = {name: field.get_default() for name, field in fields.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _of(options: PostTrainingOptions) -> dict[str, Any]:
    """Options by meaning, also those inside of an option."""
    chosen = _chosen(type(options), options.model_dump(mode="json"))
    if options.activations:
        chosen["activations"] = _chosen(type(options.activations), chosen["activations"])
    return chosen


def arithmetic(recipe: Mapping[str, Any]) -> list[str]:
    """The parts whose arithmetic decides a run's numbers, the general ones first."""
    model = recipe["model"]["name"]
    family = "library" if model.split("/")[0] in models.LIBRARIES else model
    drawn = ["reduced-splits"] if recipe.get("images") else []
    return ["engine", f"model/{family}", f"method/{recipe['method']['name']}", *drawn]


def difference(record: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    """Why a record is not that of the run with this identity; None if it is. What the identity holds as None is open.

    Data and start weights may not be at hand; the record then stands for them.
    """
    if changed := changed_keys(_comparable(record["recipe"]), identity["recipe"]):
        return f"made with another recipe ({', '.join(changed)})"
    made = record.get("arithmetic", {})
    for part, wanted in identity["arithmetic"].items():
        if numerics.version_of(part, made.get(part, "unknown")) != wanted:
            return _other_arithmetic(part, wanted)
    if identity["data_sha256"] not in (None, record["data_sha256"]):
        return OTHER_DATA
    if identity["start_sha256"] not in (None, record["start_sha256"]):
        start = identity["recipe"].get("start_from")
        return f"started from other weights than {start}/baseline has now" if start else OTHER_WEIGHTS
    return None


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded recipe by meaning; of a method or model that is no more, as it is."""
    try:
        return meaning(recipe)
    except ModuleNotFoundError:
        return dict(recipe)


def _other_arithmetic(part: str, wanted: numerics.Version) -> str:
    if isinstance(wanted, str):
        return f"{part}: its code is not certified to compute the same; python -m oscillations certify settles it"
    return f"{part}: made by other arithmetic than version {wanted}"


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the options that differ, those inside a mapping one by one."""
    changed = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(prefix + key)
    return changed


def evaluation_key(record: Mapping[str, Any], rule: str = REQUANTIZE, checkpoint: str = "checkpoint") -> str:
    """Names what an evaluation belongs to: a checkpoint, by its name in the record, and what is evaluated how."""
    return _key(record, {} if rule == REQUANTIZE else {"rule": rule}, checkpoint)


def evaluation_parts(recipe: Mapping[str, Any]) -> list[str]:
    """The parts whose arithmetic decides an evaluation's numbers: the forward pass is the model's and the method's."""
    return ["evaluation", *arithmetic(recipe)[1:]]


def posttraining_key(record: Mapping[str, Any], method: str, options: PostTrainingOptions, bits: int) -> str:
    """Names what a post-training result belongs to: a checkpoint, the method and its options by meaning."""
    return _key(record, {"method": method, "options": _of(options), "bits": bits, "seed": record["seed"]})


def posttraining_parts(method: str) -> list[str]:
    """The parts whose arithmetic decides a post-training method's numbers, whatever network it is applied to."""
    return ["reconstruction", f"posttraining/{method}"]


def entry_parts(entry: PostTrainingEntry) -> list[str]:
    """The parts of all methods of one entry of a study."""
    return list(dict.fromkeys(part for _, method, _ in entry.resolved() for part in posttraining_parts(method)))


def entry_meaning(entry: PostTrainingEntry) -> dict[str, Any]:
    """What one entry of a study asks for, its methods' options by meaning."""
    methods_of = {label: {"method": method, "options": _of(options)} for label, method, options in entry.resolved()}
    return {"of": entry.of, "bits": entry.bits, "methods": methods_of}


def _key(record: Mapping[str, Any], about: Mapping[str, Any], checkpoint: str = "checkpoint") -> str:
    recipe = _comparable(record["recipe"])
    whole = {
        "checkpoint": record[f"{checkpoint}_sha256"],
        "data": record["data_sha256"],
        "recipe": {key: recipe[key] for key in SEEN_BY_EVALUATION if key in recipe},
        "about": about,
    }
    return sha256(canonical_json(whole).encode())[:16]
