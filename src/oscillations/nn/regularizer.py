"""OsciQuant's regularizer (Eq. 22-24) as a term of any loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oscillations.core.config import parse
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.engine import forms
from oscillations.engine.layers import layer_of
from oscillations.engine.method import Moment
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import memory_order
from oscillations.methods.osciquant import OsciQuant, OsciQuantOptions
from oscillations.nn.latent import check_bits, check_weight, latent_weights, refuse_changed

#: Options of the method that a loop of one's own decides by what it does.
OF_THE_LOOP = {"bits", "lambda", "train_forward", "reg_when", "reg_layers", "select_metric", "bn_eval"}


class OsciQuantRegularizer:
    """lambda R(w), to be added to the loss: ``loss = criterion(model(x), y) + regularizer()``.

    R = [1/2] sum or mean over layers of q(w)^2 - w^2, q of Eq. 1-2 at ``bits``; its gradient is Eq. 24's in closed
    form, as the engine's. ``strength`` is lambda and may be changed at any time. ``layers`` and ``exclude`` are
    patterns of layer names. Only the weights of linear layers and convolutions are regularized: no norm layers, which
    the official code takes in. ``options`` are the method's (docs/methods.md): ``preset``, ``reg_reduction``,
    ``reg_half``, ``scale_grad``, ``scale_source``, ``per_channel``, ``tie``, ``quantize_bias``, ``reg_curvature``,
    ``lambda_schedule``.

    The model may be moved to a device, compiled or wrapped (DistributedDataParallel) before or after. With gradient
    accumulation divide the whole loss, this term included; with ``reg_curvature`` each part moves the running mean, and
    so does each process. Raises InputError, naming the layer or the option.

    >>> model = torch.nn.Linear(4, 2)
    >>> regularizer = OsciQuantRegularizer(model, bits=3)
    >>> (model(torch.ones(1, 4)).sum() + regularizer()).backward()
    """

    def __init__(
        self, model: nn.Module, bits: int = 3, strength: float = 1.0, *, layers: Sequence[str] = ("*",),
        exclude: Sequence[str] = (), **options: Any,
    ):  # fmt: skip
        check_bits(bits)
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= 1e38:
            raise InputError(f"strength: {shortened(strength)} is no number that weights could be multiplied by")
        known = {field.alias or name for name, field in OsciQuantOptions.model_fields.items()} - OF_THE_LOOP
        for key in options:
            if key not in known:
                raise InputError(f"OsciQuantRegularizer: no option {key!r}; {did_you_mean(key, sorted(known))}")
        given = {"bits": bits, "lambda": float(strength), "reg_when": "always", **options}
        self._method: OsciQuant[WeightQuantizer] = OsciQuant(parse(OsciQuantOptions, given, "OsciQuantRegularizer"))
        self._model = model
        self._parameters = latent_weights(model, layers, exclude)
        if self._method.options.quantize_bias:
            named, weights, self._parameters = dict(model.named_parameters()), self._parameters, {}
            for name, weight in weights.items():
                self._parameters[name] = weight
                if (bias := f"{layer_of(name)}.bias".removeprefix(".")) in named:
                    self._parameters[bias] = named[bias]
        self.strength = float(strength)
        self._quantizer: WeightQuantizer | None = None
        self._pending: dict[int, Tensor] = {}  # what the gradient of a tensor is still to be multiplied by
        if self._method.options.reg_curvature != "identity":
            for i, parameter in enumerate(self._parameters.values()):
                if parameter.requires_grad:
                    parameter.register_hook(lambda grad, i=i: self._curved(i, grad))

    def __call__(self, progress: float = 0.0) -> Tensor:
        """lambda R of the present weights, 0-dim.

        ``progress``: share of the training behind, in [0, 1], for a ``lambda_schedule``. A ``reg_curvature`` is in its
        gradient alone.
        """
        strength = self.strength * self._method.schedule(Moment(progress, progress))
        return _Penalty.apply(self, strength, *self._parameters.values())

    @torch.inference_mode(False)
    @torch.no_grad()
    def value(self, strength: float) -> Tensor:
        """``strength`` R, and the quantizer brought up to the present weights for its gradient."""
        quantizer = self._up_to_date()
        terms = zip(self._method.coefficients(quantizer), quantizer.quantized, quantizer.weights)
        flat = ((c, memory_order(q), memory_order(w)) for c, q, w in terms)
        total = sum((c * (torch.dot(q, q) - torch.dot(w, w)) for c, q, w in flat), quantizer.weights[0].new_zeros(()))
        return strength * total

    @torch.no_grad()
    def gradients(self, strength: float, upstream: Tensor) -> list[Tensor | None]:
        """``upstream`` times the gradient of ``strength`` R at the weights that :meth:`value` has seen."""
        quantizer = self._quantizer
        assert quantizer is not None
        if self._method.options.reg_curvature != "identity":  # added where the task's gradient is known: _curved
            for i in range(len(self._parameters)):
                self._pending[i] = self._pending.get(i, 0) + upstream * strength
            return [None] * len(self._parameters)
        if not forms.dense(upstream):
            strength *= upstream.item()
        grads = []
        for i, weight in enumerate(quantizer.weights):
            grad = torch.zeros_like(weight)
            scratch = self._scratch[: weight.numel()].as_strided(weight.shape, weight.stride())
            self._method.add_gradient(quantizer, i, grad, strength, out=scratch)
            grads.append(grad.mul_(upstream) if forms.dense(upstream) else grad)
        return list(grads)

    def _curved(self, i: int, grad: Tensor | None) -> Tensor | None:
        """The task's gradient of tensor ``i``, and the regularizer's under its curvature.

        A gradient that overflowed, which a loss scaler will skip, stays out of the running mean.
        """
        upstream = self._pending.pop(i, None)
        if grad is None or upstream is None or not grad.isfinite().all():
            return grad
        assert self._quantizer is not None
        own = torch.zeros_like(grad)
        self._method.add_gradient(self._quantizer, i, own, 1.0, self._method.curvature(i, grad))
        return grad + own.mul_(upstream)

    def _up_to_date(self) -> WeightQuantizer:
        """The quantizer of the present weights, made anew where they lie elsewhere than before (on a device, say)."""
        refuse_changed(self._model, self._parameters, "OsciQuantRegularizer")
        weights = [parameter.data for parameter in self._parameters.values()]
        quantizer = self._quantizer
        if quantizer is None or [w.data_ptr() for w in weights] != [w.data_ptr() for w in quantizer.weights]:
            for name, parameter in self._parameters.items():
                check_weight(parameter, name)
            made: WeightQuantizer = self._method.make_quantizer(dict(zip(self._parameters, weights)), {})
            if quantizer is not None:
                made.load_state(quantizer.state())
                self._method.load_state({key: mean.to(weights[0]) for key, mean in self._method.state().items()})
            quantizer = self._quantizer = made
            self._scratch = weights[0].new_empty(max(quantizer.sizes))
        quantizer.update()
        return quantizer

    def state_dict(self) -> dict[str, Tensor]:
        """What must be saved beside the model to go on as if never interrupted: the curvature's running means."""
        return self._method.state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._method.load_state(state)


class _Penalty(torch.autograd.Function):
    """A regularizer's value; backward, its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, regularizer: OsciQuantRegularizer, strength: float, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        ctx.regularizer, ctx.strength = regularizer, strength
        return regularizer.value(strength)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # refuses weights that were changed since
        return None, None, *ctx.regularizer.gradients(ctx.strength, upstream)
