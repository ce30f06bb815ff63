"""Quantized activations: a learned step on the input of every quantized layer (LSQ, Esser et al. 2020).

x^ = s clip(round(x / s), n, p), per tensor; n = 0, p = 2^b - 1 if the input cannot be negative, as the first training
batch says, else n = -2^(b-1), p = 2^(b-1) - 1. Activations have no latent values, so nothing of them is counted as an
oscillation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oscillations.core.errors import InputError
from oscillations.engine.optimizer import Adam

SMALLEST_STEP = 1e-8


class LearnedStep(torch.autograd.Function):
    """x^ and its gradients: dx^/dx is 1 inside the range, dx^/ds is round(u) - u there and the clipped code outside.

    ``margin`` widens the inside, in steps: 0 for clipping before rounding, 1/2 for rounding first. ``factor``
    multiplies the step's gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, margin: float, factor: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.range = (low, high, margin, factor)
        wide = x if x.dtype == step.dtype else x.to(step.dtype)  # bfloat16 could not tell 8-bit codes apart
        return (wide / step).round_().clamp_(low, high).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, step), (low, high, margin, factor) = upstream, ctx.saved_tensors, ctx.range
        u = x.to(step.dtype) / step
        inside = (u >= low - margin) & (u <= high + margin)
        per_step = u.round().clamp(low, high) - u * inside
        return grad * inside, (grad.to(step.dtype) * per_step).sum() * factor, None, None, None, None


class InputQuantizer:
    """Quantizes the input of one layer, to ``bits``, from the first training batch on that reaches the layer.

    ``step``: 0-dim; 2 mean|x| / sqrt(p) of that batch, then whatever an optimizer makes of it.
    """

    def __init__(self, bits: int, device: torch.device):
        self.bits = bits
        self.step = torch.zeros((), device=device)  # until it is known
        self.signed = torch.zeros((), dtype=torch.bool, device=device)
        self.range: tuple[int, int] | None = None

    def start(self, x: Tensor) -> None:
        """Take sign and step from a batch of inputs."""
        with torch.no_grad():
            self.signed.fill_((x < 0).any())
            self.open()
            assert self.range is not None
            first = 2 * x.abs().mean() / math.sqrt(self.range[1])
            self.step.copy_(torch.where(first > 0, first, torch.full_like(first, SMALLEST_STEP)))

    def open(self) -> None:
        """Fix the range that the sign implies."""
        half = 2 ** (self.bits - 1)
        self.range = (-half, half - 1) if self.signed.item() else (0, 2 * half - 1)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """x^ of a batch of inputs, whatever their shape."""
        if self.range is None:
            if not training:
                raise InputError("activations: a layer was evaluated before any training batch had reached it")
            self.start(x)
        return self.quantized(x)

    def quantized(self, x: Tensor, margin: float = 0.0) -> Tensor:
        """x^ of inputs whose range is known; ``margin`` as in :class:`LearnedStep`."""
        assert self.range is not None
        low, high = self.range
        return LearnedStep.apply(x, self.step, low, high, margin, 1 / math.sqrt(high * x.numel()))

    def state(self) -> dict[str, Tensor]:
        return {"step": self.step.detach(), "signed": self.signed}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.step.copy_(state["step"])
        self.signed.copy_(state["signed"])
        if self.step > 0:
            self.open()


class QuantizedInputs:
    """The input quantizers of a network's layers, by the layers' names; ``bits`` says each one's width."""

    def __init__(self, model: nn.Module, bits: Mapping[str, int]):
        device = next(model.parameters()).device
        self.by_layer = {layer: InputQuantizer(width, device) for layer, width in bits.items()}
        for layer, quantizer in self.by_layer.items():
            model.get_submodule(layer).register_forward_pre_hook(
                lambda module, inputs, quantizer=quantizer: (quantizer(inputs[0], module.training), *inputs[1:])
            )

    def begin(self, lr: float) -> None:
        """Make the steps' optimizer; call once, before a training."""
        steps = [quantizer.step.requires_grad_() for quantizer in self.by_layer.values()]
        self.optimizer = Adam(steps, lr)

    def learn(self) -> None:
        """One step of the optimizer, after a backward pass. Raises InputError if no input of some layer was seen."""
        for layer, quantizer in self.by_layer.items():
            if quantizer.range is None:
                raise InputError(f"activations: {layer} computes without being called: its input cannot be quantized")
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for quantizer in self.by_layer.values():
                quantizer.step.clamp_(min=SMALLEST_STEP)

    def state(self) -> dict[str, Tensor]:
        """Steps and signs, for a checkpoint."""
        return {f"{layer}/{key}": value for layer, one in self.by_layer.items() for key, value in one.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for layer, quantizer in self.by_layer.items():
            quantizer.load_state({key: state[f"{layer}/{key}"] for key in quantizer.state()})
