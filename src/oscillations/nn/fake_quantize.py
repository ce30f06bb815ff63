"""Layers that compute on quantized weights, through ``torch.nn.utils.parametrize``, and any model at any width.

The methods here are those that act by what the forward pass sees alone. What acts on the loss is
:class:`~oscillations.nn.OsciQuantRegularizer`'s kind; what acts on the optimizer's step is trained by the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from oscillations import methods
from oscillations.core.bits import Grid, grid_of
from oscillations.core.config import parse
from oscillations.core.errors import InputError, did_you_mean
from oscillations.engine.layers import weights_as
from oscillations.engine.method import TargetOptions
from oscillations.engine.quantizer import quantize, rounded
from oscillations.engine.scales import max_scale, mse_scale
from oscillations.methods import dual_lsq, lsq
from oscillations.methods.dual_lsq import DualLsqOptions
from oscillations.methods.lsq import SMALLEST_SCALE, LsqOptions
from oscillations.methods.pseudo_noise import PseudoNoiseOptions
from oscillations.methods.statsq import StatsqOptions
from oscillations.nn.latent import (
    HELD,
    WeightParametrization,
    check_bits,
    chosen_layers,
    latent_weights,
    matrix_layers,
    own_parametrization,
)

#: Options that a loop of one's own decides by what it does, or that belong to whole networks.
OF_THE_LOOP = {"bits", "scale_lr", "scale_source", "select_metric", "bn_eval", "quantize_bias", "qkr"}


class FakeQuantizer(WeightParametrization):
    """Computes a layer's weight from its latent weight: q(w) at ``bits``, or what the method trains on.

    ``width`` is the width that the layer computes at now; at others than ``bits`` it is Eq. 2's quantization of the
    latent weights.
    """

    grid_name = "sym_odd"

    def __init__(self, weight: Tensor, options: Any):
        super().__init__()
        self.options, self.bits, self.width = options, options.bits, options.bits
        self.grid: Grid = grid_of(self.grid_name, self.bits)

    def forward(self, weight: Tensor) -> Tensor:
        if self.width != self.bits:
            return quantize(weight, self.width, self.options.tie, self.options.scales_per_channel)
        return self.at_target(weight)

    def at_target(self, weight: Tensor) -> Tensor:
        """What the layer computes on at ``bits``, with the method's gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def thresholds(self, weight: Tensor) -> Tensor:
        """The scale whose half-integer multiples are the thresholds: 0-dim, or ``[C, 1, ...]``."""
        return max_scale(weight, self.grid, self.options.scales_per_channel)

    @torch.no_grad()
    def levels(self, weight: Tensor) -> Tensor:
        """The scale that spaces the levels."""
        return self.thresholds(weight)

    def codes(self, weight: Tensor, scale: Tensor | float | None = None, out: Tensor | None = None) -> Tensor:
        """Integer codes of the weights, as floats; ``scale``: the thresholds', if known; ``out`` has their shape."""
        u = torch.div(weight.detach(), self.thresholds(weight) if scale is None else scale, out=out)
        return rounded(u, self.options.tie, self.grid.offset, out=u).clamp_(self.grid.low, self.grid.high)

    def extra_repr(self) -> str:
        return f"bits={self.bits}" + (f", width={self.width}" if self.width != self.bits else "")


class QatFunction(torch.autograd.Function):
    """s round(w / s); the gradient at the weights is the identity (straight-through), at s that of s (q - w) / s."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, tie: str) -> Tensor:
        quantized = rounded(weight / scale, tie) * scale  # torch.compile mistakes an operation in place here
        ctx.save_for_backward(weight, scale, quantized)
        return quantized

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        of_scale = None
        if ctx.needs_input_grad[1]:
            weight, scale, quantized = ctx.saved_tensors
            of_scale = (quantized - weight).mul_(upstream[0]).sum_to_size(scale.shape) / scale
        return upstream[0], of_scale, None


class Qat(FakeQuantizer):
    """Eq. 1-2 with the straight-through estimator; ``scale_grad: flow`` lets the gradient reach max|w|."""

    def at_target(self, weight: Tensor) -> Tensor:
        flows = self.options.scale_grad == "flow"
        scale = max_scale(weight if flows else weight.detach(), self.grid, self.options.per_channel)
        return QatFunction.apply(weight, scale, self.options.tie)


class PseudoNoise(FakeQuantizer):
    """w + s xi with fresh noise while the layer is in training mode, and q(w) in evaluation mode."""

    def at_target(self, weight: Tensor) -> Tensor:
        o = self.options
        if not self.training:
            return quantize(weight, self.bits, o.tie, o.per_channel)
        if weight.numel() <= o.min_size:
            return weight
        if o.range == "minmax":
            step = (weight.amax() - weight.amin()) / (2**self.bits - 1)
        else:
            step = max_scale(weight, self.grid, o.per_channel)
        noise = torch.empty_like(weight)
        noise = noise.uniform_(-0.5, 0.5) if o.noise == "uniform" else noise.normal_(0, 0.5)
        return weight + (step if o.scale_grad == "flow" else step.detach()) * noise


class StatsQ(FakeQuantizer):
    """2^b levels around zero, spaced by a statistic of each output channel; the gradient is the identity."""

    grid_name = "mid_rise"

    def at_target(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            error = (self.codes(weight) + self.grid.offset) * self.thresholds(weight) - weight
        return weight + error

    @torch.no_grad()
    def thresholds(self, weight: Tensor) -> Tensor:
        from oscillations.methods._statsq import statistic_scale

        return statistic_scale(weight, self.grid)


class Bounded(torch.autograd.Function):
    """A scale, no less than LSQ's smallest; its gradient is the identity, so that one below comes back."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        return scale.clamp_min(SMALLEST_SCALE)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0]


class LearnedScaleQuantizer(FakeQuantizer):
    """Base of LSQ and Dual-LSQ: ``scale``, a parameter for any optimizer (LSQ's own rate for it is 1e-4)."""

    def __init__(self, weight: Tensor, options: Any):
        self.grid_name = options.grid
        super().__init__(weight, options)
        first = lsq.initial_scale if options.scale_init == "lsq" else mse_scale
        self.scale = nn.Parameter(first(weight.detach(), self.grid, options.per_channel).clamp_min(SMALLEST_SCALE))
        shared_by = weight.numel() / self.scale.numel()
        self.divisor = math.sqrt(shared_by * self.grid.high) if options.grad_scale else 1.0
        self.margin = 0.5 if options.clip_order == "round_first" else 0.0

    @torch.no_grad()
    def thresholds(self, weight: Tensor) -> Tensor:
        return self.scale.clamp_min(SMALLEST_SCALE)


class LsqFunction(torch.autograd.Function):
    """s round(clip(w / s)) for codes that are known, with LSQ's gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, codes: Tensor, own: Any) -> Tensor:
        ctx.save_for_backward(weight, scale, codes)
        ctx.own = own
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        (weight, scale, codes), own = ctx.saved_tensors, ctx.own
        inner, of_scale = lsq.gradients(weight, scale, codes, upstream[0], own.grid, own.margin)
        return inner, of_scale / own.divisor, None, None


class Lsq(LearnedScaleQuantizer):
    """A learned scale for each tensor or channel."""

    def at_target(self, weight: Tensor) -> Tensor:
        scale = Bounded.apply(self.scale)
        return LsqFunction.apply(weight, scale, self.codes(weight), self)


class DualLsqFunction(torch.autograd.Function):
    """s_post round(clip(w / s_pre)) for codes that are known, with Dual-LSQ's gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, pre: Tensor, post: Tensor, codes: Tensor, own: Any) -> Tensor:
        ctx.save_for_backward(weight, pre, post, codes)
        ctx.own = own
        return codes * post

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        (weight, pre, post, codes), own = ctx.saved_tensors, ctx.own
        inner, *of_scales = dual_lsq.gradients(weight, pre, post, codes, upstream[0], own.grid, own.margin)
        return inner, *(gradient / own.divisor for gradient in of_scales), None, None


class DualLsq(LearnedScaleQuantizer):
    """One learned scale for the thresholds (``scale``), one for the levels (``level_scale``)."""

    def __init__(self, weight: Tensor, options: Any):
        super().__init__(weight, options)
        self.level_scale = nn.Parameter(self.scale.detach().clone())
        self.scale.requires_grad_(options.learnable in ("both", "pre"))
        self.level_scale.requires_grad_(options.learnable in ("both", "post"))

    def at_target(self, weight: Tensor) -> Tensor:
        pre, post = Bounded.apply(self.scale), Bounded.apply(self.level_scale)
        return DualLsqFunction.apply(weight, pre, post, self.codes(weight), self)

    @torch.no_grad()
    def levels(self, weight: Tensor) -> Tensor:
        return self.level_scale.clamp_min(SMALLEST_SCALE)


#: method -> what computes a layer's weight, and its options in a study
FORWARD_METHODS: dict[str, tuple[type[FakeQuantizer], type[TargetOptions]]] = {
    "qat": (Qat, methods.find("qat").Options),  # type: ignore[dict-item]  # options of a method with target bits
    "lsq": (Lsq, LsqOptions),
    "dual-lsq": (DualLsq, DualLsqOptions),
    "statsq": (StatsQ, StatsqOptions),
    "pseudo-noise": (PseudoNoise, PseudoNoiseOptions),
}


def fake_quantize(
    model: nn.Module, bits: int, *, method: str = "qat", layers: Sequence[str] = ("*",),
    exclude: Sequence[str] = (), **options: Any,
) -> nn.Module:  # fmt: skip
    """Let the chosen layers of ``model`` compute on quantized weights from now on, in place; returns the model.

    ``method``: qat, lsq, dual-lsq, statsq or pseudo-noise; ``options`` are the method's (docs/methods.md). Learned
    scales are parameters of the model (``...parametrizations.weight.0.scale``), so make the optimizer afterwards. Call
    it again, with other ``layers``, for layers of another width. To undo it, leaving quantized weights or latent ones,
    is ``torch.nn.utils.parametrize.remove_parametrizations``'s. Raises InputError, naming the layer or the option.

    >>> model = fake_quantize(torch.nn.Linear(4, 2), bits=3, method="lsq")
    >>> sorted(name for name, _ in model.named_parameters())
    ['bias', 'parametrizations.weight.0.scale', 'parametrizations.weight.original']
    """
    check_bits(bits)
    if not isinstance(method, str) or method not in FORWARD_METHODS:
        if method in methods.names():
            raise InputError(
                f"fake_quantize: {method} does more than the forward pass shows; a study trains it (docs/methods.md). "
                f"Here are {', '.join(FORWARD_METHODS)}"
            )
        raise InputError(f"fake_quantize: no method {method!r}; {did_you_mean(method, list(FORWARD_METHODS))}")
    kind, options_of = FORWARD_METHODS[method]
    known = {field.alias or name for name, field in options_of.model_fields.items()} - OF_THE_LOOP
    for key in options:
        if key not in known:
            raise InputError(f"fake_quantize: {method} has no option {key!r}; {did_you_mean(key, sorted(known))}")
    chosen = parse(options_of, {"bits": bits, **options}, f"fake_quantize: {method}")
    weights = latent_weights(model, layers, exclude)
    targets = chosen_layers(model, layers, exclude)
    for name, layer in targets.items():
        if own_parametrization(layer) is not None:
            raise InputError(f"fake_quantize: {name} is quantized already; leave it out: exclude=[{name!r}]")
    for layer, weight in zip(targets.values(), weights.values()):
        parametrize.register_parametrization(layer, "weight", kind(weight, chosen), unsafe=True)
    return model


def fake_quantizers(model: nn.Module) -> dict[str, FakeQuantizer]:
    """What :func:`fake_quantize` has put into the model, by layer."""
    found = {name: own_parametrization(layer) for name, layer in matrix_layers(model).items()}
    return {name: one for name, one in found.items() if isinstance(one, FakeQuantizer)}


@contextmanager
def at_bits(
    model: nn.Module, bits: int, *, layers: Sequence[str] = ("*",), exclude: Sequence[str] = (),
    per_channel: bool = False,
) -> Iterator[nn.Module]:  # fmt: skip
    """Inside the block the model computes on its weights at ``bits`` (2 to 8, or 32: the latent ones).

    Of a model with fake-quantized layers these alone change, each by its method at its own width and by Eq. 1-2 at any
    other; the arguments that choose layers then have no say. Of any other model the chosen layers are quantized by
    Eq. 1-2. Blocks may be nested. For evaluation: do not train inside, nor load weights. Batch-norm statistics stay as
    they are. Raises InputError.

    >>> model = torch.nn.Linear(4, 2)
    >>> with at_bits(model, 3), torch.no_grad():
    ...     y = model(torch.ones(1, 4))
    """
    check_bits(bits, latent=True)
    quantizers = fake_quantizers(model)
    if not quantizers:
        parameters: list[Tensor] = list(latent_weights(model, layers, exclude).values())
        outermost = [parameter for parameter in parameters if not hasattr(parameter, HELD)]
        for parameter in outermost:
            setattr(parameter, HELD, parameter.data)
        latent = [getattr(parameter, HELD) for parameter in parameters]
        try:
            with weights_as(parameters, [quantize(weight, bits, per_channel=per_channel) for weight in latent]):
                yield model
        finally:
            for parameter in outermost:
                delattr(parameter, HELD)
        return
    widths = {name: one.width for name, one in quantizers.items()}
    try:
        for one in quantizers.values():
            one.width = bits
        yield model
    finally:
        for name, one in quantizers.items():
            one.width = widths[name]
