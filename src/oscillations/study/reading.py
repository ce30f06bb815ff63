"""Reading studies: ``params/<name>.yaml``, checked in full before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from oscillations.core.config import parse
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.study import checks
from oscillations.study.paths import ROOT, study_file
from oscillations.study.schema import Study
from oscillations.study.variants import Variant, variants_of


class _UniqueKeys(yaml.SafeLoader):
    """YAML where a key that stands twice is an error, not a silent replacement."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        line = node.start_mark.line + 1
        raise InputError(f"{loader.name}: key {sorted(repeated)[0]!r} stands twice (mapping at line {line})")
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _plain_int(loader: _UniqueKeys, node: yaml.ScalarNode) -> int:
    """YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means."""
    if not re.fullmatch(r"[+-]?(0|[1-9][0-9_]*)", node.value):
        problem = f"{shortened(node.value)} is not a plain decimal number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _plain_int)


def _yaml_fault(error: Exception) -> str:
    """One line for what PyYAML says in several."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    return said if mark is None else f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def sibling(path: Path, name: object, where: str) -> Path:
    """The file of another study, beside this one or of the workflow; InputError, naming ``where``, if neither is."""
    known = _studies(path.parent)
    if name not in known:
        raise InputError(f"{where}: no such study {shortened(name)}; {did_you_mean(name, known)}")
    beside = path.with_name(f"{name}.yaml")
    return beside if beside.is_file() else study_file(str(name))


def _studies(folder: Path) -> list[str]:
    """Names of the studies in a folder, or of the workflow's where that is the working folder's ``params``."""
    folders = {folder, ROOT / "params"} if folder == Path("params") else {folder}
    return sorted({file.stem for each in folders for file in each.glob("*.yaml") if file.is_file()})


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such study; {did_you_mean(path.stem, _studies(path.parent))}")
    try:
        with path.open(encoding="utf-8") as handle:
            content = yaml.load(handle, _UniqueKeys)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a day or a number that is none
        raise InputError(f"{path}: not valid YAML: {_yaml_fault(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a study is a mapping of keys")
    return content


def load(path: Path) -> tuple[Study, list[Variant]]:
    """The checked study in ``path`` and its variants, in the file's order. Raises InputError."""
    study, variants = _load(path)
    known = {variant.path: variant for variant in variants}
    if study.reference is not None:
        where = f"{path}: reference"
        if study.reference == study.study:
            raise InputError(f"{where}: {study.reference} is the study itself; leave reference out")
        known = {variant.path: variant for variant in _load(sibling(path, study.reference, where))[1]} | known
    checks.check_hypotheses(study, known, path)
    if study.gain is not None:
        for name in study.companions:
            others = _load(sibling(path, name, f"{path}: companions"))[1]
            known = {variant.path: variant for variant in others} | known
        named = [study.gain.against, *(row.of for row in study.gain.rows)]
        checks.refuse_unknown(named, known, f"{path}: gain", "variant")
    return study, variants


def _load(path: Path) -> tuple[Study, list[Variant]]:
    """All that :func:`load` checks but for the hypotheses, which name variants of another study, too."""
    content = read_yaml(path)
    if (base := content.get("extends")) is not None:
        parent = sibling(path, base, f"{path}: extends")
        whole = read_yaml(parent)
        if "extends" in whole:
            raise InputError(f"{path}: extends: {base} extends another study; one level is the limit")
        _load(parent)  # its faults are its own, and name its file
        content = whole | content
    study: Study = parse(Study, content, str(path))
    if study.study != path.stem:
        raise InputError(f"{path}: study: {study.study!r} is not the file's name {path.stem!r}")
    checks.check_experiments(study, path)
    variants = variants_of(study, path)
    checks.check_references(study, {variant.path: variant for variant in variants}, path)
    return study, variants


def json_schema() -> dict[str, Any]:
    """JSON schema of a study file; options of methods and models live in their own files (``check`` knows them)."""
    return Study.model_json_schema()
