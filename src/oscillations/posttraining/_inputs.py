"""Quantized activations in post-training: steps from a few images, learned with the rounding, dropped at random.

QDrop (Wei et al. 2022, arXiv:2203.05740) on the inputs of the quantized layers; its release quantizes outputs of layers
and of residual additions instead, with a zero point, and takes ranges of least 2.4-norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oscillations.engine.activations import SMALLEST_STEP, InputQuantizer

CANDIDATES = 100  # fractions of the largest |x|
RANGE_IMAGES = 256  # that the steps are taken from
ROUND_FIRST = 0.5  # the margin of the release's gradients, in steps


class DroppedInput(InputQuantizer):
    """The quantizer of one layer's input, whose step is that of the least squared error on some images."""

    def start(self, x: Tensor) -> None:
        with torch.no_grad():
            self.signed.fill_((x < 0).any())
            self.open()
            assert self.range is not None
            low, high = self.range
            steps = x.abs().amax() / max(high, 1) * torch.linspace(1 / CANDIDATES, 1, CANDIDATES, device=x.device)
            steps.clamp_(min=SMALLEST_STEP)
            errors = [((x / step).round_().clamp_(low, high).mul_(step) - x).square().sum() for step in steps]
            self.step.copy_(steps[torch.stack(errors).argmin()])

    def dropped(self, x: Tensor, share: float, draws: torch.Generator) -> Tensor:
        """x^ where a fresh draw says so, with probability ``share``, and x elsewhere."""
        quantized = self.quantized(x, ROUND_FIRST)
        if share == 1:
            return quantized
        return torch.where(torch.rand(x.shape, generator=draws, device=x.device) < share, quantized, x)


class DroppedInputs:
    """Quantizers of the inputs of some layers, ``bits`` by name; they act inside :meth:`on` only.

    Steps are taken from the model as it is, on ``images`` (normalised). ``seed`` draws what is dropped, and no draw is
    one of those that mix a unit's inputs, which begin with the seed itself.
    """

    def __init__(self, model: nn.Module, bits: Mapping[str, int], images: Tensor, seed: int):
        self.by_layer = {layer: DroppedInput(width, images.device) for layer, width in bits.items()}
        self.draws = torch.Generator(images.device).manual_seed(seed + 2**31)  # of a seed, 32 bits count
        self.share: float | None = None  # of the entries that are quantized; None: the quantizers are off
        self._hooks = [
            model.get_submodule(layer).register_forward_pre_hook(
                lambda module, inputs, quantizer=quantizer: self._input(quantizer, inputs[0])
            )
            for layer, quantizer in self.by_layer.items()
        ]
        with torch.no_grad():
            model(images[:RANGE_IMAGES])

    def _input(self, quantizer: DroppedInput, x: Tensor) -> Tensor | None:
        if quantizer.range is None:
            quantizer.start(x)
        return None if self.share is None else quantizer.dropped(x, self.share, self.draws)

    @contextmanager
    def on(self, share: float = 1.0) -> Iterator[None]:
        """Inside the block a ``share`` of every input's entries is quantized."""
        self.share = share
        try:
            yield
        finally:
            self.share = None

    def steps(self, layers: list[str]) -> list[Tensor]:
        """The steps of some layers' inputs, 0-dim each."""
        return [self.by_layer[layer].step for layer in layers]

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
