"""Training methods, one per file, found by name.

A method is a file here with one :class:`~oscillations.engine.method.Method` subclass. It says which weights the
forward pass uses and what is added to their gradients after the backward pass, and where it must, how they are
quantized and stepped; the engine does everything else. What needs torch when it is imported stands in a file with an
underscore beside it, since studies are checked without torch.
"""

from __future__ import annotations

from oscillations.core import registry
from oscillations.engine.method import Method


def names() -> list[str]:
    """All method names."""
    return registry.names(__path__)


def find(name: str) -> type[Method]:
    """The class of method ``name``."""
    return registry.subclass(__name__, name, Method)
