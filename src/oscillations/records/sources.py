"""What code computes, as a hash: told apart from how it is written down and from where it stands.

A *place* is a definition of a module (a function, a class, a constant), or what a module does when it is imported. Its
text is the syntax tree without what computes nothing: annotations, docstrings, texts of messages, limits of options.
Names in it stand for what they mean: those of this package for the text of their definition, others for where they are
imported from. So a definition may move, and an import that leads elsewhere is noticed.
"""

from __future__ import annotations

import ast
import atexit
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

from oscillations.core.errors import InputError
from oscillations.core.files import canonical_json, read_json, sha256, write_json

PACKAGE = "oscillations"
ROOT = Path(__file__).parents[1]
LENGTH = 16  # hex digits of a hash
REMEMBERED = f"__pycache__/sources.{sys.implementation.cache_tag}.json"  # beside the package's bytecode
WITHOUT_ARITHMETIC = ("core.config", "core.errors", "core.files", "records", "study")  # unless something begins there
IMPORTING = ""  #: name of the place that a module's other statements are

Place = tuple[str, str]  #: module and name
Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class Target(NamedTuple):
    """What a name means: a definition, a module of this package (name None), or something outside of it."""

    module: str
    name: str | None = None
    outside: bool = False


def hash_of(places: Iterable[Place]) -> str:
    """Hash of places, whatever modules they stand in."""
    texts = {_meaning(place)[0] for place in places}
    return sha256("\n".join(sorted(texts)).encode())[:LENGTH]


def remembered(function: Callable[..., str]) -> Callable[..., str]:
    """Of a function that hashes sources: each hash is worked out once, in whatever process, until a source changes."""

    @wraps(function)
    def look_up(*names: str) -> str:
        known, key = _known(), " ".join((function.__name__, *names))
        if key not in known:
            known[key] = function(*names)
        return known[key]

    return look_up


@cache
def _known() -> dict[str, str]:
    """The hashes that were worked out from the very same sources; what is added is written when the process ends."""
    file, tree = ROOT / REMEMBERED, _tree()
    known: dict[str, str] = {}
    with suppress(OSError, InputError, TypeError):  # none yet, or damaged
        found = read_json(file)
        if found["tree"] == tree and found["check"] == sha256(canonical_json(found["hashes"]).encode()):
            known = found["hashes"]
    before = len(known)

    def write() -> None:
        if len(known) > before and not sys.dont_write_bytecode and _tree() == tree:
            with suppress(OSError, InputError):  # a folder that is not this user's, or a full disk
                write_json(file, {"tree": tree, "hashes": known, "check": sha256(canonical_json(known).encode())})

    atexit.register(write)
    return known


def _tree() -> str:
    paths = sorted(ROOT.rglob("*.py"))
    return sha256("".join(f"{path.relative_to(ROOT)}\n{path.read_text()}" for path in paths).encode())


@remembered
def code(*roots: str) -> str:
    """Hash of all that some roots reach, for what is cheap to make again and so has no versions."""
    return hash_of(reached(places(*roots)))


def places(*roots: str) -> set[Place]:
    """Places by ``module`` (all of it) or ``module:name``, without the package's name."""
    found: set[Place] = set()
    for root in roots:
        module, _, name = root.partition(":")
        module = f"{PACKAGE}.{module}"
        found |= {(module, name)} if name else {(module, each) for each in _module(module).statements}
    return found


def reached(pending: set[Place], stops: Iterable[Place] = ()) -> set[Place]:
    """All places that some places need, themselves included, and what their modules do when imported."""
    found, pending, stops = set(), set(pending), set(stops)
    while pending:
        place = pending.pop()
        if place not in found and place not in stops:
            found.add(place)
            parts = place[0].split(".")
            pending |= {(".".join(parts[: i + 1]), IMPORTING) for i in range(len(parts))}
            pending |= _meaning(place)[1]
    return found


def clear() -> None:
    """Forget what was read; for sources that change while a process looks at them."""
    for function in (_known, _module, _meaning, _shallow):
        function.cache_clear()


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """A parsed file: its statements by the names that they define, without what computes nothing; and its imports."""

    statements: dict[str, list[ast.stmt]]
    imports: dict[str, Target]


@cache
def _module(module: str) -> Module:
    file = _file(module)
    if file is None:
        raise FileNotFoundError(f"no module {module}")
    body = ast.parse(file.read_text()).body
    imports = _imports((node for statement in body for node in _unscoped(statement)), module)
    statements: dict[str, list[ast.stmt]] = {IMPORTING: []}
    for statement in body:
        names = _bound(statement)
        local = {id(node): _imports([node], module) for node in ast.walk(statement) if isinstance(node, Importing)}
        plain = Arithmetic().visit(statement)
        if plain is None:
            continue
        plain.local = {name: target for found in local.values() for name, target in found.items()}
        for name in names if names and not _acts(plain) else [*names, IMPORTING]:
            statements.setdefault(name, []).append(plain)
    return Module(statements, imports)


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")[1:])
    candidates = (path / "__init__.py",) if module == PACKAGE else (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


Importing = (ast.Import, ast.ImportFrom)


def _unscoped(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is inside it, but for the bodies of functions and classes."""
    yield node
    for child in () if isinstance(node, Scope) else ast.iter_child_nodes(node):
        yield from _unscoped(child)


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module defines, but for imports."""
    if isinstance(statement, ast.If) and getattr(statement.test, "id", "") == "TYPE_CHECKING":
        return []
    found = [
        node.name if isinstance(node, Scope) and not isinstance(node, ast.Lambda) else node.id
        for node in _unscoped(statement)
        if (isinstance(node, Scope) and not isinstance(node, ast.Lambda))
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    return [name for name in dict.fromkeys(found) if name != "__all__"]


def _acts(statement: ast.stmt) -> bool:
    """Whether a statement of a module does more than to define names."""
    if isinstance(statement, ast.Assign):
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets)
    return not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _imports(nodes: Iterable[ast.AST], module: str) -> dict[str, Target]:
    """What import statements among the nodes bind."""
    found: dict[str, Target] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or name] = Target(name, None, name.split(".")[0] != PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            for alias in node.names:
                if alias.name == "*" and base.split(".")[0] == PACKAGE:
                    raise ImportError(f"{module}: import * of {base}: name what is imported, or no change is seen")
                found[alias.asname or alias.name] = _member(base, alias.name)
    return found


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    own = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*own[: len(own) + 1 - node.level], *([node.module] if node.module else [])])


def _member(module: str, name: str) -> Target:
    """What ``name`` of a module is, before anybody asks where that is defined."""
    if module.split(".")[0] != PACKAGE:
        return Target(f"{module}.{name}", None, outside=True)
    return Target(f"{module}.{name}") if _file(f"{module}.{name}") else Target(module, name)


def _defined(target: Target) -> Target:
    """The target itself, or where its module imports it from."""
    if target.outside or target.name is None:
        return target
    parsed = _module(target.module)
    if target.name in parsed.statements:
        return target
    if target.name in parsed.imports:
        return _defined(parsed.imports[target.name])
    raise ImportError(f"{target.module} defines no {target.name}")


# -- meaning -----------------------------------------------------------------------------------------------


@cache
def _meaning(place: Place) -> tuple[str, frozenset[Place]]:
    """What a place computes, as text, and the places that it needs."""
    module, name = place
    linked = Linked(module)
    text = [linked.text(statement, linked.names | statement.local) for statement in _module(module).statements[name]]  # type: ignore[attr-defined]
    return "\n".join(text), frozenset(linked.needed)


@cache
def _shallow(place: Place) -> str:
    """What stands for a place in the text of others: a hash of its own text, names as they are written."""
    module, name = place
    return sha256("\n".join(Linked(module).text(s, {}) for s in _module(module).statements[name]).encode())[:LENGTH]


class Linked:
    """The text of a syntax tree, in which names stand for what they mean; and the places that it needs."""

    def __init__(self, module: str):
        own = {name: Target(module, name) for name in _module(module).statements if name != IMPORTING}
        self.names: dict[str, Target] = _module(module).imports | own
        self.needed: set[Place] = set()

    def text(self, node: object, names: Mapping[str, Target]) -> str:
        """The same under every Python: without empty fields."""
        if isinstance(node, list):
            return "[" + ",".join(self.text(item, names) for item in node) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.Name | ast.Attribute) and (target := self._target(node, names)):
            return self._token(target)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            own = _local(node)
            names = {name: target for name, target in names.items() if name not in own}
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({','.join(f'{name}={self.text(value, names)}' for name, value in fields)})"

    def _target(self, node: ast.AST, names: Mapping[str, Target]) -> Target | None:
        if isinstance(node, ast.Name):
            return names.get(node.id) if isinstance(node.ctx, ast.Load) else None
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            return None
        base = self._target(node.value, names)
        if base is None or base.name is not None:
            return None
        return (
            Target(f"{base.module}.{node.attr}", None, outside=True)
            if base.outside
            else _member(base.module, node.attr)
        )

    def _token(self, target: Target) -> str:
        if target.outside:
            return f"<{target.module}>"
        if _exempt(target.module):
            return f"<{target.name or target.module.rpartition('.')[2]}>"
        target = _defined(target)
        if target.outside:
            return f"<{target.module}>"
        if target.name is None:  # a module as a value: whatever is in it
            self.needed |= {(target.module, name) for name in _module(target.module).statements}
            return "<module>"
        if _exempt(target.module):
            return f"<{target.name}>"
        self.needed.add((target.module, target.name))
        return f"<{_shallow((target.module, target.name))}>"


def _exempt(module: str) -> bool:
    return f"{module}.".startswith(tuple(f"{PACKAGE}.{name}." for name in WITHOUT_ARITHMETIC))


def _local(function: Any) -> set[str]:
    """The names that a function binds: its arguments, and what it assigns."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    body = function.body if isinstance(function.body, list) else [function.body]
    stored = (node for statement in body for node in _unscoped(statement))
    return {argument.arg for argument in every if argument} | {
        node.id for node in stored if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


class Arithmetic(ast.NodeTransformer):
    """Leaves of a syntax tree what computes."""

    def generic_visit(self, node: Any) -> ast.AST:
        super().generic_visit(node)
        if isinstance(getattr(node, "body", None), list) and not node.body:
            node.body = [ast.Pass()]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_FunctionDef(self, node: Any) -> ast.AST:
        node.returns, node.type_params = None, []
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: Any) -> ast.AST:
        node.type_params = []
        for field in node.body:  # the order of a class's fields stays; a class variable is no field
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).startswith("ClassVar"):
                field.is_field = True  # type: ignore[attr-defined]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if getattr(node, "is_field", False):
            node.annotation = ast.Constant(None)
            return self.generic_visit(node)
        return None if node.value is None else self.visit(ast.Assign(targets=[node.target], value=node.value))

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
        match node:
            case ast.Call(func=ast.Name(id="cast"), args=[_, value]):
                return self.visit(value)
            case ast.Call(func=ast.Name(id="Field")):  # an option: what it refuses computes nothing
                kept = ("default", "default_factory", "alias")
                node.keywords = [keyword for keyword in node.keywords if keyword.arg in kept]
        return self.generic_visit(node)

    def visit_Import(self, _node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _node: ast.ImportFrom) -> None:
        return None
