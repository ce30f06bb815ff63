"""Which of two forms of the same arithmetic a tensor is computed with: chosen once, when an object is made."""

from __future__ import annotations

from torch import Tensor


def dense(tensor: Tensor) -> bool:
    """Whether all entries are computed with, as on a device, where reading one value makes the host wait.

    On the CPU reading costs nothing: what concerns few entries is sparse there, and touches only those.
    """
    return tensor.device.type != "cpu"
