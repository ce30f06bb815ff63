"""How torch computes: what decides bits, the memory allocator, random numbers, and several runs on one device."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def set_up_torch(recipe: dict[str, Any], device: str = "auto") -> torch.device:
    """Fix all that decides bits: threads, denormals, precision, deterministic kernels. Returns the device."""
    torch.set_num_threads(recipe["threads"])
    torch.set_flush_denormal(True)  # Adam's moments of unused weights decay into denormals, which are slow
    keep_freed_memory()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a fill of every new tensor; none is read unset
        torch.backends.cudnn.benchmark = False
        tf32 = recipe["training"]["precision"] == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return torch.device(device)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of any size for the next allocation.

    By default it returns the large ones to the kernel, and every step pays for fresh, zeroed pages again.
    """
    m_mmap_threshold, m_trim_threshold = -3, -1
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25):  # the limit of older ones
            mallopt(m_trim_threshold, 1 << 30)


def random_state(cuda: bool) -> dict[str, Tensor]:
    """The state of torch's random numbers, on the CPU and on the GPU if it is used."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if cuda else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def in_turns(tasks: list[Iterator[None]], at_once: int, device: torch.device) -> None:
    """Advance up to ``at_once`` tasks step by step in turn; on a GPU each queues its work on a stream of its own.

    Each task sees its own random numbers, as if it were alone. One that fails or is interrupted starts no new
    one, and lets those at work end or save; its exception is raised when all have left.
    """
    waiting, active, failure = [Turn(task, device) for task in tasks], [], None
    while active or (waiting and not failure):
        while waiting and len(active) < at_once and not failure:
            active.append(waiting.pop(0))
        for turn in list(active):
            try:
                finished = turn.advance(swap_random=at_once > 1)
            except Exception as error:
                finished, failure = True, failure or error
            if finished:
                active.remove(turn)
    if failure:
        raise failure


class Turn:
    """A task with its stream and the state of its random numbers."""

    def __init__(self, task: Iterator[None], device: torch.device):
        self.task, self.random = task, None
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None

    def advance(self, swap_random: bool) -> bool:
        """Let the task go on to its next pause; True if it has ended."""
        if swap_random and self.random is not None:
            set_random_state(self.random)
        with torch.cuda.stream(self.stream):  # does nothing without one
            ended = next(self.task, self) is self
        if swap_random:
            self.random = random_state(self.stream is not None)
        return ended
