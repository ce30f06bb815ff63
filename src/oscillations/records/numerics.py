"""Versions of the arithmetic: what computes numbers, told apart from how it is written down.

A *part* (the engine, a method, a model, ...) computes what all definitions compute that it reaches: functions, classes
and constants, found by following names through imports. Its *source* is a hash of them that leaves out what computes
nothing: where a definition stands, imports, annotations, docstrings, texts of messages. The *ledger* holds, for every
part, the sources that are known to compute the numbers of a version. A part whose present source is not in the ledger
is *unknown* until ``certify`` has compared it; its version is then the source itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from oscillations.core.files import read_json, sha256, write_json

PACKAGE = "oscillations"
ROOT = Path(__file__).parents[1]
LEDGER = Path(__file__).with_name("ledger.json")
WITHOUT_ARITHMETIC = tuple(f"{PACKAGE}.{name}" for name in (
    "core.config", "core.errors", "core.files", "core.registry", "records", "study",
))  # fmt: skip

LENGTH = 16  # hex digits of a source

Definition = tuple[str, str]  #: module and name
Version = int | str  #: a number of the ledger, or the source of what is unknown

#: What parts begin with: modules, or single definitions of them. Those of the kinds in FOUND are files.
PARTS = {
    "engine": (
        "engine.training", "engine.recipe:Training", "engine.batches:image_sets", "engine.determinism:set_up_torch",
        "jobs.trainers",
    ),
    "reduced-splits": ("engine.batches:evenly",),
    "evaluation": ("engine.crossbit", "engine.batches:image_sets", "jobs.trainers"),
    "reconstruction": (
        "posttraining._measurement", "posttraining._reconstruction", "posttraining._units", "engine.batches:image_sets",
        "jobs.trainers",
    ),
    "aoq-toy": ("jobs.aoq_toy",),
}  # fmt: skip
FOUND = {"method": "methods", "model": "models", "data": "datasets", "posttraining": "posttraining"}
COMMON = {"method": "engine", "model": "engine", "posttraining": "reconstruction"}  # whose definitions are not theirs
ON_REQUEST = "reduced-splits"  # called only for recipes that ask for it, and so no other part's


def parts() -> list[str]:
    """All parts: ``engine``, ``method/qat``, ``model/mlp5``, ... ``model/library`` is timm's and torchvision's."""
    files = {kind: sorted((ROOT / package).glob("*.py")) for kind, package in FOUND.items()}
    found = [
        f"{kind}/{file.stem.replace('_', '-')}"
        for kind, members in files.items()
        for file in members
        if not file.stem.startswith("_")
    ]
    return [*PARTS, *found, "model/library"]


@cache
def source(part: str) -> str:
    """Hash of what a part computes with."""
    kind = part.partition("/")[0]
    shared = reached(part_roots(COMMON[kind])) if kind in COMMON else set()
    stops = set() if part == ON_REQUEST else part_roots(ON_REQUEST)
    return source_of(reached(part_roots(part), stops) - shared)


def part_roots(part: str) -> set[Definition]:
    """The definitions that a part begins with."""
    if part in PARTS:
        return roots(*PARTS[part])
    kind, name = part.split("/")
    return roots(f"{FOUND[kind]}.{'_library' if name == 'library' else name.replace('-', '_')}")


def source_of(definitions: Iterable[Definition]) -> str:
    """Hash of definitions, whatever modules they stand in."""
    meanings = {_meaning(definition)[0] for definition in definitions}
    return sha256("\n".join(sorted(meanings)).encode())[:LENGTH]


def code(*places: str) -> str:
    """Hash of all that some places reach, for what is cheap to make again and so has no versions."""
    return source_of(reached(roots(*places)))


def roots(*places: str) -> set[Definition]:
    """Definitions by ``module`` (all of it) or ``module:name``, without the package's name."""
    found: set[Definition] = set()
    for place in places:
        module, _, name = place.partition(":")
        module = f"{PACKAGE}.{module}"
        found |= {(module, name)} if name else {(module, each) for each in _module(module).statements}
    return found


def reached(pending: set[Definition], stops: Iterable[Definition] = ()) -> set[Definition]:
    """All definitions that some definitions need, themselves included; ``stops`` are left out."""
    found, pending, stops = set(), set(pending), set(stops)
    while pending:
        definition = pending.pop()
        if definition not in found and definition not in stops:
            found.add(definition)
            pending |= _meaning(definition)[1]
    return found


@dataclass(frozen=True)
class Module:
    """A parsed file: its statements by the names that they define, and what it imports from this package.

    ``imports``: by local name the module, and the name in it ("" for the module itself).
    """

    statements: dict[str, ast.stmt]
    imports: dict[str, tuple[str, str]]


@cache
def _module(module: str) -> Module:
    file = _file(module)
    if file is None:
        raise FileNotFoundError(f"no module {module}")
    body = ast.parse(file.read_text()).body
    return Module({name: statement for statement in body for name in _bound(statement)}, _imports(body))


@cache
def _meaning(definition: Definition) -> tuple[str, frozenset[Definition]]:
    """What a definition computes, as text, and the definitions that it needs."""
    module, name = definition
    statement, imports = _module(module).statements[name], _module(module).imports
    imports = imports | _imports(ast.walk(statement))
    plain = Arithmetic().visit(statement)  # in place: what is stripped already stays as it is
    return _text(plain), frozenset(_needed(plain, module, imports))


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module defines, but for imports."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import() | ast.ImportFrom() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return []
    return [
        node.id for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id != "__all__"
    ]  # fmt: skip


def _imports(nodes: Iterable[ast.AST]) -> dict[str, tuple[str, str]]:
    """What import statements among the nodes bind from this package."""
    found: dict[str, tuple[str, str]] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found[alias.asname or alias.name] = (inner, "") if _file(inner) else (node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            found |= {a.asname: (a.name, "") for a in node.names if a.asname and a.name.split(".")[0] == PACKAGE}
    return found


def _needed(node: ast.AST, module: str, imports: dict[str, tuple[str, str]]) -> Iterator[Definition]:
    """The definitions that a stripped statement names."""
    own = _module(module).statements
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if imports.get(name, ("", "-"))[1] == "":
                yield from _resolve(imports[name][0], attribute)
            case ast.Name(id=name) if name in imports and imports[name][1]:
                yield from _resolve(*imports[name])
            case ast.Name(id=name) if name in own:
                yield module, name


def _resolve(module: str, name: str) -> Iterator[Definition]:
    """Where ``name`` of a module is defined: there, or where that imports it from."""
    if module.startswith(WITHOUT_ARITHMETIC):
        return
    if _file(f"{module}.{name}"):  # a module in a package
        return
    parsed = _module(module)
    if name in parsed.statements:
        yield module, name
    elif name in parsed.imports and parsed.imports[name][1]:
        yield from _resolve(*parsed.imports[name])


class Arithmetic(ast.NodeTransformer):
    """Leaves of a definition what computes."""

    def generic_visit(self, node: Any) -> ast.AST:
        super().generic_visit(node)
        if isinstance(getattr(node, "body", None), list) and not node.body:
            node.body = [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns, node.type_params = None, []  # type: ignore[attr-defined]  # of Python 3.12 on
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.type_params = []  # type: ignore[attr-defined]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)  # the order of a class's fields stays
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        match node.value:
            case ast.Constant(value=str()) | ast.Call(func=ast.Name(id="print")):
                return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=raised, cause=None)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return self.generic_visit(ast.Assert(test=node.test, msg=None))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "Field":  # an option: what it refuses computes nothing
            node.keywords = [keyword for keyword in node.keywords if keyword.arg in ("default", "alias")]
        return self.generic_visit(node)

    def visit_Import(self, _node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _node: ast.ImportFrom) -> None:
        return None


def _text(node: object) -> str:
    """A syntax tree without empty fields, so that it is the same under every Python."""
    if isinstance(node, list):
        return "[" + ",".join(_text(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"


# -- the ledger --------------------------------------------------------------------------------------------


@cache
def ledger() -> dict[str, dict[str, list[str]]]:
    """Part -> version -> sources that compute its numbers."""
    return read_json(LEDGER) if LEDGER.exists() else {}


def version_of(part: str, found: Version) -> Version:
    """The version that a source of a part has; what is a version already, or unknown, stays."""
    known = ledger().get(part, {})
    return next((int(number) for number, sources in known.items() if found in sources), found)


def version(part: str) -> Version:
    """The version of a part as it is now."""
    return version_of(part, source(part))


def versions(names: Iterable[str]) -> dict[str, Version]:
    """The present versions of some parts."""
    return {part: version(part) for part in names}


def written(names: Iterable[str]) -> str:
    """The present versions of some parts as a table holds them: ``evaluation=1 model/mlp5=1``."""
    return " ".join(f"{part}={number}" for part, number in versions(names).items())


def made_by(text: str, names: Iterable[str]) -> bool:
    """Whether versions that :func:`written` gave, some time ago, are the present ones of these parts."""
    made = dict(entry.split("=") for entry in str(text).split() if "=" in entry)
    found = {part: number if len(number) == LENGTH else int(number) for part, number in made.items()}
    return all(version_of(part, found.get(part, "unknown")) == version(part) for part in names)


def unknown() -> list[str]:
    """The parts whose source the ledger does not hold."""
    return [part for part in parts() if isinstance(version(part), str)]


def enter(sources: dict[str, str], new_version: Iterable[str] = ()) -> None:
    """Write sources into the ledger: into the present version of their part, or into a new one."""
    known = {part: dict(numbers) for part, numbers in ledger().items()}
    for part, found in sources.items():
        numbers = known.setdefault(part, {})
        last = max(map(int, numbers), default=0)
        number = str(last + 1 if part in new_version or not last else last)
        numbers[number] = [*numbers.get(number, []), found]
    write_json(LEDGER, known)
    ledger.cache_clear()
