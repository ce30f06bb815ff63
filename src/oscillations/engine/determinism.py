"""How torch computes: what decides bits, the memory allocator, random numbers."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch
from torch import Tensor


def set_up_torch(threads: int, precision: str = "fp32", device: str = "auto") -> torch.device:
    """Fix all that decides bits: threads, denormals, precision, deterministic kernels. Returns the device."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # Adam's moments of unused weights decay into denormals, which are slow
    keep_freed_memory()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a fill of every new tensor; none is read unset
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it
        torch.backends.cudnn.benchmark = False
        tf32 = precision == "tf32"
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
