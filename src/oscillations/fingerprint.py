"""A hash of what Python code means: layout, comments and docstrings do not count.

A run's fingerprint covers the modules that can change its numbers and no others, so that an edited comment
or a new method's file retrains nothing, while edited arithmetic is noticed.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from oscillations.files import sha256

ROOT = Path(__file__).parent
PACKAGE = ROOT.name
WITHOUT_ARITHMETIC = {"config", "errors", "files"}  # strictness, messages and atomic writes change no number


def fingerprint(*modules: str) -> str:
    """Hash of the named modules (``training``, ``methods.qat``) and of all modules of this package they import."""
    closure = set(WITHOUT_ARITHMETIC)
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in closure:
            closure.add(module)
            pending += _parsed(module)[1]
    return sha256("\n".join(f"{name} {_parsed(name)[0]}" for name in sorted(closure - WITHOUT_ARITHMETIC)).encode())[
        :16
    ]


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of one module's meaning, and the modules of this package that it imports."""
    file = _file(module)
    if file is None:
        raise FileNotFoundError(f"no module {PACKAGE}.{module}")
    tree = ast.parse(file.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            base = (node.module or "")[len(PACKAGE) + 1 :]
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            imported |= {name for name in [base, *names] if name and _file(name)}
    return sha256(_meaning(tree).encode()), tuple(sorted(imported))


def _meaning(node: object) -> str:
    """The syntax tree without docstrings and empty fields, so that it is the same under every Python."""
    if isinstance(node, list):
        return "[" + ",".join(_meaning(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list) and value and _is_docstring(value[0]):
            value = value[1:] or [ast.Pass()]
        if value not in (None, []):
            parts.append(f"{name}={_meaning(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
