"""A network whose weights can be held at any bit width: what evaluation, post-training and a trainer have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from oscillations.core.bits import LATENT, REQUANTIZE
from oscillations.engine.activations import QuantizedInputs
from oscillations.engine.layers import first_and_last, layer_of, quantized_parameters, weights_as
from oscillations.engine.method import Method, Tensors
from oscillations.engine.quantizer import WeightQuantizer, quantize
from oscillations.engine.recipe import Activations
from oscillations.engine.slices import sliced

QUANTIZER, INPUTS = "quantizer/", "activations/"  # begin the names of their tensors in a checkpoint


class Network:
    """A model, and the quantizer of its method (None without target bits), which reads the weights where they lie.

    ``patterns`` choose the layers that are quantized; the model must be freshly built, or hold its pretrained weights.
    ``activations``: how the inputs of these layers are quantized (None: not at all). ``first_last_bits``: the width of
    the model's first and last layer, where they are quantized, whatever that of the others is.
    """

    def __init__(
        self, model: nn.Module, method: Method, patterns: tuple[str, ...], activations: Activations | None = None,
        first_last_bits: int | None = None,
    ):  # fmt: skip
        self.model, self.method = model, method
        method.attach(model)
        parameters = quantized_parameters(model, patterns, method.options.quantizes_biases)
        self.names, self.parameters = list(parameters), list(parameters.values())
        ends = first_and_last(model)
        at_ends = [name for name in self.names if layer_of(name) in ends]
        self.own_bits = {} if first_last_bits is None else dict.fromkeys(at_ends, first_last_bits)
        self.inputs: QuantizedInputs | None = None
        if activations is not None:
            layers = dict.fromkeys(map(layer_of, self.names), activations.bits)
            self.inputs = QuantizedInputs(model, layers | dict.fromkeys(map(layer_of, at_ends), activations.first_last))
        self.quantizer: WeightQuantizer | None = None
        if method.bits is not None:
            self.quantizer = method.make_quantizer(parameters, self.own_bits)
            self.quantizer.update()

    def weights(self, bits: int, rule: str = REQUANTIZE) -> Tensors | None:
        """q(w) at ``bits``: the method's own quantizer at its target, Eq. 2 elsewhere; None for the latent weights.

        Weights with a width of their own (``own_bits``) have it at every one.

        By the rule ``slice``: slices of Eq. 2's codes of the latent weights (:func:`sliced`), at the target, too, and
        whatever grid and scale the method has of its own. Both rules take the method's ``tie`` and ``per_channel``.
        """
        quantizer = self.quantizer
        if bits == LATENT:
            return None
        if quantizer is not None and bits == quantizer.bits and rule == REQUANTIZE:
            return quantizer.quantized
        by_rule = quantize if rule == REQUANTIZE else sliced
        widths = [self.own_bits.get(name, bits) for name in self.names]
        how = ("half_even", False) if quantizer is None else (quantizer.tie, quantizer.scale.per_channel)
        return [by_rule(parameter.data, width, *how) for parameter, width in zip(self.parameters, widths)]

    @contextmanager
    def holding(self, values: Tensors | None) -> Iterator[None]:
        """The quantized parameters hold these values (None: the latent weights) inside the block.

        The quantizer is in use if they are its own ``quantized``: then layers may compute on its codes otherwise.
        """
        quantizer = self.quantizer
        if quantizer is not None:
            quantizer.in_use = values is quantizer.quantized
        try:
            with weights_as(self.parameters, values):
                yield
        finally:
            if quantizer is not None:
                quantizer.in_use = False

    def at(self, bits: int, rule: str = REQUANTIZE) -> AbstractContextManager[None]:
        """The network at a bit width, inside the block; as in :meth:`weights`. Quantized inputs keep their widths."""
        return self.holding(self.weights(bits, rule))

    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the model's state dict, and what the quantizers need, under names that say so."""
        quantizer = {} if self.quantizer is None else self.quantizer.state()
        inputs = {} if self.inputs is None else self.inputs.state()
        return (
            self.model.state_dict()
            | {f"{QUANTIZER}{key}": value for key, value in quantizer.items()}
            | {f"{INPUTS}{key}": value for key, value in inputs.items()}
        )

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Hold what :meth:`trained` gave, in place."""
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                value.copy_(tensors[key])
        if self.quantizer is not None:
            self.quantizer.load_state(under(tensors, QUANTIZER))
            self.quantizer.update()
        if self.inputs is not None:
            self.inputs.load_state(under(tensors, INPUTS))


def of_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own part of a checkpoint, which a fine-tune starts from."""
    return {key: value for key, value in tensors.items() if not key.startswith((QUANTIZER, INPUTS))}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
