"""Reading studies: ``params/<name>.yaml``, checked in full before anything starts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from oscillations.core.config import parse
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.study import checks
from oscillations.study.paths import ROOT, study_file
from oscillations.study.schema import Study
from oscillations.study.variants import Variant, variants_of

# Beyond these, a file is no study but an attack: the largest so far has 13,000 bytes, and keys of 29 characters.
LARGEST = 2**18  # bytes of the file, and values of it with every alias written out
LONGEST = 100  # characters of a key, which names files


class _Loader(yaml.SafeLoader):
    """YAML where a key that stands twice is an error, not a silent replacement, and whose texts can be shown."""

    def construct_document(self, node: yaml.Node) -> Any:
        if _size(node, {}) > LARGEST:
            raise InputError(f"{self.name}: its aliases stand for more than {LARGEST} values")
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError) as error:  # of PyYAML, for a tag that its text belies
            problem = f"{shortened(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of a node; ``known``: those of nodes, each counted once, however often it is meant."""
    if id(node) not in known:
        known[id(node)] = 0  # what holds itself has no end, which the constructor says
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
    for key in scalars:
        if not key.value.isprintable() or len(key.value) > LONGEST:
            said = f"key {shortened(key.value)} (line {key.start_mark.line + 1})"
            raise InputError(f"{loader.name}: {said}: a key is one line of at most {LONGEST} printable characters")
    repeated = sorted(key for key, count in Counter(key.value for key in scalars).items() if count > 1)
    if repeated:
        line = node.start_mark.line + 1
        raise InputError(f"{loader.name}: key {repeated[0]!r} stands twice (mapping at line {line})")
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    """Escapes spell what a file may not hold: signs that steer a terminal, and halves of signs that none can write."""
    text = yaml.SafeLoader.construct_yaml_str(loader, node)
    if any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" for sign in text):
        problem = f"{shortened(text)} holds a sign that cannot be shown"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return text


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    """YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means."""
    if not re.fullmatch(r"[+-]?(0|[1-9][0-9_]*)", node.value):
        problem = f"{shortened(node.value)} is not a plain decimal number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)


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
    if (size := path.stat().st_size) > LARGEST:
        raise InputError(f"{path}: {size:,} bytes; a study has at most {LARGEST:,}")
    try:
        with path.open(encoding="utf-8") as handle:
            content = yaml.load(handle, _Loader)  # a SafeLoader
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
        raise InputError(f"{path}: study: {shortened(study.study)} is not the file's name {path.stem!r}")
    checks.check_experiments(study, path)
    variants = variants_of(study, path)
    checks.check_references(study, {variant.path: variant for variant in variants}, path)
    return study, variants


def json_schema() -> dict[str, Any]:
    """JSON schema of a study file; options of methods and models live in their own files (``check`` knows them)."""
    return Study.model_json_schema()
