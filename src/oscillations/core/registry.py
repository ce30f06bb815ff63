"""Parts found by name: a method, a model, a dataset, a post-training method is a file of its package.

The file's name is the part's, dashes for underscores; a leading underscore hides a file that is no part.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def names(folders: Iterable[str]) -> list[str]:
    """All parts in a package's folders (its ``__path__``)."""
    found = [module.name for module in pkgutil.iter_modules(folders)]
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def module(package: str, name: str) -> ModuleType:
    """The file of part ``name``, imported. Raises ModuleNotFoundError."""
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def subclass(package: str, name: str, base: type[Base]) -> type[Base]:
    """The class of part ``name``: the subclass of ``base`` that its file defines, last if it needs others."""
    file = module(package, name)
    found = [
        value for value in vars(file).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == file.__name__
    ]  # fmt: skip
    return found[-1]
