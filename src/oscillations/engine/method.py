"""What a method is to the engine: its options, and the hooks that it may override.

Importing this costs no torch, so that a study's options can be checked in no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import Field, model_validator

from oscillations.core.config import Strict
from oscillations.engine.layers import layer_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oscillations.engine.optimizer import Optimizer
    from oscillations.engine.quantizer import WeightQuantizer

# Names for the annotations of hooks; importing them costs no torch.
Quantizer: TypeAlias = "WeightQuantizer"
Tensors: TypeAlias = "list[Tensor]"
QuantizerT = TypeVar("QuantizerT", bound="WeightQuantizer")


class Moment(NamedTuple):
    """Where a step stands in a training: shares of the maximal number of steps, in [0, 1].

    ``begun``: made before it; ``ended``: made with it, which is how most released codes count.
    """

    begun: float
    ended: float


class MethodOptions(Strict):
    """What a study may say about a method; unknown options are refused.

    The properties are what a method declares about itself: nothing asks it for an option by name.
    """

    @property
    def whole_from(self) -> float:
        """Share of the training before which the method does only a part of what it does, or what it is built on.

        If there is one, the weights at the end of training are to be judged.
        """
        return 0.0

    @property
    def target_bits(self) -> int | None:
        """The bit width that is trained for; None trains without any quantizer."""
        return None

    @property
    def selection(self) -> str:
        """Which validation accuracy picks the best epoch."""
        return "fp_val"

    @property
    def reestimates_norms(self) -> bool:
        """Whether batch-norm statistics are re-estimated in the quantized validation while training."""
        return False

    @property
    def quantizes_biases(self) -> bool:
        """Whether biases of the quantized layers are quantized, too."""
        return False

    @property
    def scales_per_channel(self) -> bool:
        """Whether each output channel has a scale."""
        return False

    @property
    def learns_scales(self) -> bool:
        """Whether one learned scale stands for all levels of a tensor, so that it can be rescaled for other bits."""
        return False

    @property
    def regularized_layers(self) -> tuple[str, ...]:
        """Patterns of the layers that a regularizer acts on."""
        return ("*",)

    @property
    def multiplies_weights(self) -> bool:
        """Whether the network at the target bits computes with products of weights, which are no parameters."""
        return False

    @property
    def steps_weights(self) -> bool:
        """Whether the method updates the quantized weights by an optimizer of its own; the run's holds all others.

        One for scales, as LSQ has, is not meant.

        The run's weight decay is then not theirs, nor its schedule unless the method takes it. Their gradients are
        fresh in every step.
        """
        return False


class TargetOptions(MethodOptions):
    """Options of every method that trains for a bit width."""

    bits: int = Field(ge=2, le=8, description="target bit width (2 = ternary)")
    tie: Literal["half_even", "half_up"] = "half_even"
    bn_eval: Literal["keep", "reestimate"] = Field(
        "keep", description="batch-norm statistics in the quantized validation while training"
    )
    select_metric: Literal["quant_val_at_target", "fp_val", "mean_over_bits"] = Field(
        "quant_val_at_target", description="validation accuracy that picks the best epoch"
    )

    @property
    def target_bits(self) -> int:
        return self.bits

    @property
    def selection(self) -> str:
        return self.select_metric

    @property
    def reestimates_norms(self) -> bool:
        return self.bn_eval == "reestimate"


class SharedScaleOptions(TargetOptions):
    """Options of the methods that leave it to a study which weights share a scale."""

    quantize_bias: bool = Field(False, description="also quantize the biases of the quantized layers")
    per_channel: bool = Field(False, description="one scale for each output channel, not one for each tensor")

    @model_validator(mode="after")
    def _biases_have_no_channels(self) -> SharedScaleOptions:
        if self.quantize_bias and self.per_channel:
            raise ValueError("quantize_bias: a bias has one entry per channel; it cannot have per_channel scales")
        return self

    @property
    def quantizes_biases(self) -> bool:
        return self.quantize_bias

    @property
    def scales_per_channel(self) -> bool:
        return self.per_channel


class QuantizedOptions(SharedScaleOptions):
    """Options of the methods on the grid of Eq. 1-2, whose scale follows from the weights."""

    scale_source: Literal["dynamic_max", "frozen_max", "mse"] = Field(
        "dynamic_max", description="Eq. 2's scale of the present weights, that of the first ones, or the least squares'"
    )


class ScaleGradientOptions(QuantizedOptions):
    """Options of the methods whose gradient depends on the scale."""

    scale_grad: Literal["flow", "detach"] = Field("flow", description="gradient through the scale")

    def model_post_init(self, _context: Any) -> None:
        if self.scale_grad == "flow" and self.scale_source != "dynamic_max":
            raise ValueError(f"scale_grad: a {self.scale_source} scale has no gradient to flow; say scale_grad: detach")


class Method(Generic[QuantizerT]):
    """Base of all methods. Override what differs; the defaults train the latent weights as they are.

    Hooks are called in this order: ``attach`` and ``make_quantizer`` when a network is made, ``begin`` before a
    training; at every step ``forward_weights``, ``loss``, ``after_backward`` and ``step``, after which the quantizer is
    brought up to date; at the end of an epoch ``exported`` and ``penalty``.

    ``Options`` is the class of its options, for studies, and ``options`` says the same of the attribute. A method with
    a quantizer of its own names it, ``class Aoq(Method["AoqQuantizer"])``: its hooks then see that.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    options: MethodOptions

    def __init__(self, options: MethodOptions):
        self.options = options

    @property
    def bits(self) -> int | None:
        """Target bit width; None trains without any quantizer."""
        return self.options.target_bits

    def check(self, model: str, layers: list[str], patterns: list[str]) -> None:
        """Raise ValueError if a model of these layers, quantized where the patterns match, cannot be trained so."""

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> QuantizerT:
        """The quantizer of the latent weights; called once, if there are target bits.

        ``own_bits``: the widths of those parameters that do not have the target's, by name.

        This one is for :class:`QuantizedOptions`; it and the hooks that see a quantizer are never called without bits.
        """
        from oscillations.engine.scales import SOURCES

        o = self.options
        assert isinstance(o, QuantizedOptions)
        return self.quantizer_class()(
            parameters, o.bits, SOURCES[o.scale_source], tie=o.tie, per_channel=o.per_channel, own_bits=own_bits
        )

    def quantizer_class(self) -> type[QuantizerT]:
        """What :meth:`make_quantizer` makes."""
        from oscillations.engine.quantizer import WeightQuantizer

        return WeightQuantizer  # type: ignore[return-value]  # what QuantizerT is unless a method overrides this

    def attach(self, model: nn.Module) -> None:
        """See the freshly built network once, for methods that act on its layers."""

    def begin(self, quantizer: QuantizerT) -> None:
        """Make what only a training needs: optimizers of one's own, averages. Called once, with target bits only."""

    def forward_weights(self, quantizer: QuantizerT) -> Tensors | None:
        """Weights of the training forward pass; None means the latent ones."""
        return None

    def loss(self, loss: Tensor, parameters: Tensors, moment: Moment) -> Tensor:
        """The loss to differentiate, given the task's; for terms whose gradient has no closed form."""
        return loss

    def after_backward(self, quantizer: QuantizerT, grads: Tensors, moment: Moment) -> None:
        """Turn ``grads`` (dL/d forward weights, changed in place) into the latent weights' gradients."""

    def step(self, optimizer: Optimizer, quantizer: QuantizerT, moment: Moment) -> None:
        """Update the weights, and whatever else the method learns; the quantizer is brought up to date after it.

        On entry the quantizer's codes are those of the forward pass just made.
        """
        optimizer.step()

    def exported(self, quantizer: QuantizerT) -> AbstractContextManager[None]:
        """Inside it the network holds the weights that are validated and kept, if these are not the trained ones."""
        return nullcontext()

    def penalty(self, quantizer: QuantizerT, moment: Moment) -> Tensor | float | None:
        """What the validation loss counts beside the cross-entropy, if anything."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors a resumed run needs beside the engine's."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""


def regularized(quantizer: Quantizer, patterns: tuple[str, ...]) -> list[bool]:
    """For every quantized tensor, whether its layer matches one of the patterns."""
    return [any(fnmatchcase(layer_of(name), pattern) for pattern in patterns) for name in quantizer.names]
