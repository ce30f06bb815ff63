"""A network whose weights can be held at any bit width: what evaluation, post-training and a trainer have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oscillations.core.bits import LATENT, REQUANTIZE
from oscillations.engine.layers import quantized_parameters, weights_as
from oscillations.engine.method import Method, Tensors
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.engine.slices import sliced

QUANTIZER = "quantizer/"  # begins the names of the quantizer's tensors in a checkpoint


class Network:
    """A model, and the quantizer of its method (None without target bits), which reads the weights where they lie.

    ``patterns`` choose the layers that are quantized; the model must be freshly built, or hold its pretrained weights.
    """

    def __init__(self, model: nn.Module, method: Method, patterns: tuple[str, ...]):
        self.model, self.method = model, method
        method.attach(model)
        parameters = quantized_parameters(model, patterns, method.options.quantizes_biases)
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.quantizer: WeightQuantizer | None = None
        if method.bits is not None:
            self.quantizer = method.make_quantizer(parameters)
            self.quantizer.update()

    def weights(self, bits: int, rule: str = REQUANTIZE) -> Tensors | None:
        """q(w) at ``bits``: the method's own quantizer at its target, Eq. 2 elsewhere; None for the latent weights.

        By the rule ``slice``: slices of Eq. 2's codes of the latent weights (:func:`sliced`), at the target, too, and
        whatever grid and scale the method has of its own. Both rules take the method's ``tie`` and ``per_channel``.
        """
        quantizer = self.quantizer
        if bits == LATENT:
            return None
        by_rule = quantize if rule == REQUANTIZE else sliced
        if quantizer is None:
            return [by_rule(parameter.data, bits) for parameter in self.parameters]
        if bits == quantizer.bits and rule == REQUANTIZE:
            return quantizer.quantized
        return [by_rule(weight, bits, quantizer.tie, quantizer.scale.per_channel) for weight in quantizer.weights]

    @contextmanager
    def holding(self, values: Tensors | None) -> Iterator[None]:
        """The quantized parameters hold these values (None: the latent weights) inside the block."""
        quantizer = self.quantizer
        if quantizer is not None:
            quantizer.in_use = values is quantizer.quantized
        try:
            with weights_as(self.parameters, values):
                yield
        finally:
            if quantizer is not None:
                quantizer.in_use = False

    def at(self, bits: int, rule: str = REQUANTIZE):  # type: ignore[no-untyped-def]  # what :meth:`holding` gives
        """The network at a bit width, inside the block; as in :meth:`weights`."""
        return self.holding(self.weights(bits, rule))

    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the network's state dict, and under ``quantizer/`` what its quantizer needs."""
        quantizer = {} if self.quantizer is None else self.quantizer.state()
        return self.model.state_dict() | {f"{QUANTIZER}{key}": value for key, value in quantizer.items()}

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Hold what :meth:`trained` gave, in place."""
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                value.copy_(tensors[key])
        if self.quantizer is not None:
            self.quantizer.load_state(under(tensors, QUANTIZER))
            self.quantizer.update()


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
