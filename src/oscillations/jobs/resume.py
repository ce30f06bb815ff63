"""The resume file of an unfinished run: named tensors with a checksum, written atomically, no pickle.

Layout: the sha256 of the rest as 64 hex digits, a newline, then a safetensors file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from oscillations.core.files import sha256, write_bytes

DIGEST = 64


def save(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write ``state`` and the plain values ``about``."""
    text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    tensors = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    content = format_tensors(_without_aliases(tensors) | {"about": text})
    write_bytes(path, sha256(content).encode() + b"\n" + content)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`save` wrote, or None if the file is damaged."""
    content = path.read_bytes()
    digest, payload = content[:DIGEST], content[DIGEST + 1 :]
    if sha256(payload).encode() != digest:
        return None
    state = parse_tensors(payload)
    return state, json.loads(state.pop("about").numpy().tobytes())


def _without_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights): give each its own."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        pointer = value.data_ptr()
        result[key] = value.clone() if value.numel() and pointer in seen else value
        seen.add(pointer)
    return result
