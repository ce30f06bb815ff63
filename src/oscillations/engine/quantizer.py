"""The paper's weight quantizer (Eq. 1-2), and a form of it that a training loop can afford at every step.

Notation: ``w`` latent weights of one tensor, ``b`` bits, ``Q = 2^(b-1) - 1``, scale ``s = max|w| / Q``,
integer code ``k = round(w / s)``, quantized weight ``q = s k``, error ``e = q - w``. Other methods of the field
need other grids (:class:`oscillations.core.bits.Grid`) and other scales (:mod:`oscillations.engine.scales`): a
quantizer is composed of one of each, so that one pass over the weights serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from oscillations.core.bits import LATENT, Grid, grid_of
from oscillations.engine.scales import Scale, following_max, max_scale

ScaleT = TypeVar("ScaleT", bound=Scale)


def rounded(u: Tensor, tie: str, offset: float = 0.0, out: Tensor | None = None) -> Tensor:
    """Codes of weights ``u`` in steps, where code k stands for the level k + ``offset``; ``out`` may be ``u`` itself.

    A weight on a threshold goes to the even code (``half_even``) or to the upper one (``half_up``). With an offset of
    one half the upper one is the floor itself: a weight just below the threshold 0 stays below it.
    """
    even = tie == "half_even"
    if shift := -offset if even else 0.5 - offset:
        u = torch.add(u, shift, out=out)
    return (torch.round if even else torch.floor)(u, out=out)


def quantize(weight: Tensor, bits: int, tie: str = "half_even", per_channel: bool = False) -> Tensor:
    """q(w) of Eq. 1-2 for one tensor, scale recomputed; ``bits == 32`` returns the weights as they are."""
    if bits == LATENT:
        return weight
    scale = max_scale(weight, grid_of("sym_odd", bits), per_channel)
    return rounded(weight / scale, tie) * scale


class WeightQuantizer(Generic[ScaleT]):
    """Quantizes all weight tensors of a network at once, into buffers made once.

    ``weights`` are the latent tensors by name, read where they lie. After :meth:`update`, ``codes`` (int8, all
    tensors one after another, each in its memory order; ``code_views`` are its parts in the weights' shapes) and
    ``quantized`` (one tensor per weight) belong to the weights' present values, and so do the ``scale``'s. The engine
    calls it once after every optimizer step, so that the next forward pass, the gradients and the counters all share
    one pass over the weights. After the backward pass a method may use ``quantized`` for something else, until then.

    ``scale`` makes the scale from the tensors, their grids and ``per_channel``; ``grid`` is a name of
    :func:`oscillations.core.bits.grid_of`, ``tie`` one of :func:`rounded`. ``own_bits``: the widths of tensors that do
    not have the target ``bits`` (a network's first and last layer, say).
    """

    def __init__(
        self, weights: dict[str, Tensor], bits: int,
        scale: Callable[[list[Tensor], list[Grid], bool], ScaleT] = following_max,  # type: ignore[assignment]
        *, grid: str = "sym_odd", tie: str = "half_even", per_channel: bool = False,
        own_bits: Mapping[str, int] = MappingProxyType({}),
    ):  # fmt: skip
        # the parameters' memory, but tensors of their own: their .grad is another
        self.names, self.weights = list(weights), [w.detach() for w in weights.values()]
        self.bits, self.tie = bits, tie
        self.grid_name, self.grid = grid, grid_of(grid, bits)
        self.widths = [own_bits.get(name, bits) for name in self.names]
        self.grids = [grid_of(grid, width) for width in self.widths]
        self.scale = scale(self.weights, self.grids, per_channel)
        latent = self.weights
        self.sizes = [w.numel() for w in latent]
        self.codes = torch.empty(sum(self.sizes), dtype=torch.int8, device=latent[0].device)
        self.code_views = [c.as_strided(w.shape, w.stride()) for c, w in zip(self.codes.split(self.sizes), latent)]
        self.quantized = [torch.empty_like(w) for w in latent]
        self.in_use = False  #: whether the network holds ``quantized``, for layers that compute otherwise then

    @property
    def scales(self) -> Sequence[Tensor]:
        """The scale of every tensor."""
        return self.scale.values

    @torch.no_grad()
    def update(self) -> None:
        """Recompute codes and quantized weights from the latent weights, and scales where these follow them."""
        self.scale.compute()
        clamps = self.scale.clamps
        tensors = zip(self.weights, self.grids, self.scales, self.scale.levels, self.code_views, self.quantized)
        for weight, grid, scale, level, codes, quantized in tensors:
            torch.div(weight, scale, out=quantized)
            rounded(quantized, self.tie, grid.offset, out=quantized)
            if clamps:
                quantized.clamp_(grid.low, grid.high)
            codes.copy_(quantized)
            if grid.offset:
                quantized.add_(grid.offset)
            quantized.mul_(level)

    def position(self, i: int) -> Tensor:
        """u of tensor ``i``, in steps: codes are the nearest integers, thresholds lie at half-integers."""
        return self.weights[i] / self.scales[i] - self.grids[i].offset

    def error(self, i: int, out: Tensor | None = None) -> Tensor:
        """e = q - w of tensor ``i``.

        After the backward pass it may take the place of q (``out=self.quantized[i]``), which is faster.
        """
        return torch.sub(self.quantized[i], self.weights[i], out=out)

    def state(self) -> dict[str, Tensor]:
        """What the trained network needs beside its weights, as tensors."""
        return self.scale.state(self.names)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave; the next update shows it."""
        for key, value in self.state().items():
            value.copy_(state[key])
