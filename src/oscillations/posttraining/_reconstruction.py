"""AdaRound's optimisation (Nagel et al. 2020, arXiv:2004.10568) of the weights of one unit or of several at once.

Every weight w with scale s may go to one of its two neighbouring levels: w_hat = s (floor(w/s) + h(V)), where the
rectified sigmoid h(V) in [0, 1] is learned so that the unit's output comes near that of the latent weights, and is
driven to 0 or 1 by a rounding term. Codes beyond the grid are clamped to its ends, as in nearest rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from oscillations.core.bits import Grid
from oscillations.engine.activations import SMALLEST_STEP
from oscillations.engine.layers import layer_of, weights_as
from oscillations.engine.optimizer import Adam
from oscillations.engine.quantizer import rounded
from oscillations.posttraining import ReconstructionOptions
from oscillations.posttraining._inputs import DroppedInputs
from oscillations.posttraining._units import Chain, Unit

ZETA, GAMMA = 1.1, -0.1  # h = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)
WARM_UP = 0.2  # share of the iterations without the rounding term
FIRST_BETA, LAST_BETA = 20.0, 2.0
FORWARD_BATCH = 256  # images at a time, where nothing is learned


class Calibration:
    """A network being quantized: its units, its weights, the images, and what has been quantized so far.

    ``weights`` are the latent weights by parameter name, ``scales`` theirs (0-dim or ``[C, 1, ...]``), ``images``
    normalised ``[n, channels, height, width]``. The model must be in evaluation mode, so that batch norm keeps its
    statistics. ``quantized`` begins with no entry; an input "of the quantized predecessors" sees its entries and
    otherwise latent weights. No parameter must require a gradient. ``steps`` counts optimizer steps. ``grids``: each
    weight's. ``inputs`` quantizes the layers' inputs wherever weights are, if activations are quantized at all.
    """

    def __init__(
        self, model: nn.Module, weights: dict[str, Tensor], scales: dict[str, Tensor], bits: int,
        grids: dict[str, Grid], images: Tensor, seed: int, inputs: DroppedInputs | None = None,
    ):  # fmt: skip
        self.chain = Chain(model, list(weights))
        self.weights, self.scales, self.images = weights, scales, images
        self.bits, self.grids, self.inputs = bits, grids, inputs
        self.quantized: dict[str, Tensor] = {}
        self.steps = 0
        self.batches = torch.Generator().manual_seed(seed)
        self.mixing = torch.Generator(images.device).manual_seed(seed)  # its own, so that batches do not depend on it

    def nearest(self, name: str) -> Tensor:
        """The weight rounded to its nearest level, ties upwards."""
        weight, scale, grid = self.weights[name].data, self.scales[name], self.grids[name]
        return rounded(weight / scale, "half_up").clamp_(grid.low, grid.high) * scale

    def with_inputs(self, share: float = 1.0) -> AbstractContextManager[None]:
        """Inside it this share of the entries of all layers' inputs is quantized, if activations are."""
        return nullcontext() if self.inputs is None else self.inputs.on(share)

    @torch.no_grad()
    def latent(self, node: Node, weights: dict[str, Tensor] | None = None) -> Tensor:
        """A tensor of the latent network for all images, with some weights replaced by others."""
        if node is self.chain.input:
            return self.images
        part, replaced = self.chain.module(self.chain.input, node), weights or {}
        with weights_as([self.weights[name] for name in replaced], list(replaced.values())):
            return torch.cat([part(x) for x in self.images.split(FORWARD_BATCH)])

    def value(self, node: Node) -> Tensor:
        """A tensor of the network for all images, as far as it has been quantized."""
        with self.with_inputs():
            return self.latent(node, self.quantized)

    def reconstruct(
        self, unit: Unit, options: ReconstructionOptions, *, prob: float = 1.0, fisher: bool = False
    ) -> None:
        """Learn the rounding of a unit's weights on its output and put the rounded weights into ``quantized``.

        Target: the latent network's output. Input: that of the quantized predecessors, whose entries are replaced
        by the latent network's with probability 1 - ``prob`` (QDrop); so are the entries of the inputs inside, where
        these are quantized, and their steps are learned with the rounding. ``fisher`` weighs squared errors by the
        squared gradients of :meth:`fisher_weights` (BRECQ).
        """
        if not unit.weights:
            return
        target, inputs = self.latent(unit.stop), self.value(unit.start)
        latent_inputs = self.latent(unit.start) if prob < 1 else None
        importance = self.fisher_weights(unit, options.batch_size) if fisher else None
        part = self.chain.module(unit.start, unit.stop)
        parameters = [self.weights[name].requires_grad_() for name in unit.weights]
        roundings = [Rounding(self.weights[name].data, self.scales[name], self.grids[name]) for name in unit.weights]
        optimizer = Adam([rounding.v for rounding in roundings], options.lr)
        steps = [] if self.inputs is None else self.inputs.steps([layer_of(name) for name in unit.weights])
        step_optimizer = Adam([step.requires_grad_() for step in steps], options.step_lr)
        for iteration in range(options.iterations):
            chosen, x = self._draw(inputs, latent_inputs, options.batch_size, prob)
            with weights_as(parameters, [rounding.soft() for rounding in roundings]), self.with_inputs(prob):
                error = (part(x) - target.index_select(0, chosen)).square()
                if importance is not None:
                    error = error * importance.index_select(0, chosen)
                loss = error.sum() * (channels(error) / error.numel())
                gradients = torch.autograd.grad(loss, [*parameters, *steps])
            for rounding, gradient in zip(roundings, gradients):
                rounding.v.grad = rounding.gradient(gradient, options.nu, beta((iteration + 1) / options.iterations))
            optimizer.step()
            if steps:
                learn_steps(step_optimizer, gradients[len(parameters) :], iteration / options.iterations, options)
        for tensor in (*parameters, *steps):
            tensor.requires_grad_(False)
        self.steps += options.iterations
        self.quantized |= {name: rounding.hard() for name, rounding in zip(unit.weights, roundings)}

    def _draw(
        self, inputs: Tensor, latent_inputs: Tensor | None, batch_size: int, prob: float
    ) -> tuple[Tensor, Tensor]:
        """Places of a batch among the images, and its inputs, a share 1 - ``prob`` of whose entries is latent."""
        chosen = torch.randperm(len(inputs), generator=self.batches)[:batch_size].to(inputs.device)
        x = inputs.index_select(0, chosen)
        if latent_inputs is not None:
            use = torch.rand(x.shape, generator=self.mixing, device=x.device) < prob
            x = torch.where(use, x, latent_inputs.index_select(0, chosen))
        return chosen, x

    def fisher_weights(self, unit: Unit, batch_size: int) -> Tensor:
        """(|g| + 1)^2 at the unit's output, g the gradient of KL(quantized || latent) of the network's answers.

        Quantized are the predecessors; the unit itself is latent, as the soft weights that it starts from in BRECQ's
        released code (Li et al. 2021, arXiv:2102.05426) equal the latent ones: the first unit's are all 1. No
        activation is quantized for them: the release takes those up after the weights.
        """
        outputs, answers = self.latent(unit.stop, self.quantized), self.latent(self.chain.output)
        rest = self.chain.module(unit.stop, self.chain.output)
        gradients: list[Tensor] = []
        for z, answer in zip(outputs.split(batch_size), answers.split(batch_size)):
            z.requires_grad_()
            loss = F.kl_div(rest(z).log_softmax(1), answer.softmax(1), reduction="batchmean")
            gradients += torch.autograd.grad(loss, z)
        return (torch.cat(gradients).view_as(outputs).abs() + 1).square()

    @torch.no_grad()
    def losses(self) -> list[float]:
        """Relative reconstruction loss |z_q - z|^2 / |z|^2 after every unit, over all images."""
        modules = [self.chain.module(unit.start, unit.stop) for unit in self.chain.units]
        parameters = [self.weights[name] for name in self.quantized]
        wrong, size = torch.zeros(2, len(modules), dtype=torch.float64, device=self.images.device)
        for x in self.images.split(FORWARD_BATCH):
            latent = quantized = x
            for place, module in enumerate(modules):
                latent = module(latent)
                with weights_as(parameters, list(self.quantized.values())), self.with_inputs():
                    quantized = module(quantized)
                wrong[place] += (quantized - latent).double().square().sum()
                size[place] += latent.double().square().sum()
        return (wrong / size).tolist()


class Rounding:
    """The learned rounding of one weight tensor: V, the soft weights, the hard ones, and dLoss/dV in closed form."""

    def __init__(self, weight: Tensor, scale: Tensor, grid: Grid):
        position = weight / scale
        below = position.floor()
        self.v = initial_v(position - below)
        movable = (below >= grid.low) & (below < grid.high)  # the others are clamped, whatever h is
        self.span = movable * scale
        self.base = below.clamp(grid.low, grid.high) * scale
        self.scale = scale
        self._sigmoid, self._raw, self._h, self._soft, self._grad, self._side, self._power = (
            torch.empty_like(self.v) for _ in range(7)
        )

    def soft(self) -> Tensor:
        """s clip(floor(w/s) + h(V))."""
        torch.sigmoid(self.v, out=self._sigmoid)
        torch.mul(self._sigmoid, ZETA - GAMMA, out=self._raw).add_(GAMMA)
        torch.clamp(self._raw, 0, 1, out=self._h)
        return torch.addcmul(self.base, self._h, self.span, out=self._soft)

    def hard(self) -> Tensor:
        """s (floor(w/s) + 1[V >= 0]), exactly on the levels."""
        return ((self.base / self.scale).round() + ((self.v >= 0) & (self.span > 0))) * self.scale

    def gradient(self, upstream: Tensor, nu: float, beta: float | None) -> Tensor:
        """dLoss/dV for dLoss/dw_hat = ``upstream``; without ``beta``, without the rounding term.

        The term is nu sum(1 - |2h - 1|^beta).
        """
        grad = torch.mul(upstream, self.span, out=self._grad)
        if beta is not None and nu:
            side = torch.mul(self._h, 2, out=self._side).sub_(1)
            power = torch.abs(side, out=self._power).log_().mul_(beta - 1).exp_()  # three times as fast as pow
            grad.addcmul_(power, side.sign_(), value=-2 * nu * beta)
        torch.ops.aten.sigmoid_backward.grad_input(grad, self._sigmoid, grad_input=grad)
        torch.ops.aten.hardtanh_backward.grad_input(grad, self._raw, 0, 1, grad_input=grad)
        return grad.mul_(ZETA - GAMMA)


def learn_steps(optimizer: Adam, gradients: Sequence[Tensor], progress: float, options: ReconstructionOptions) -> None:
    """A step of Adam on the steps of inputs, its rate half a cosine from ``step_lr`` to 0 over the iterations."""
    optimizer.lr = options.step_lr * (1 + math.cos(math.pi * progress)) / 2
    for step, gradient in zip(optimizer.parameters, gradients):
        step.grad = gradient
    optimizer.step()
    for step in optimizer.parameters:
        step.detach().clamp_(min=SMALLEST_STEP)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_v(remainder: Tensor) -> Tensor:
    """V with h(V) = ``remainder``, in [0, 1): the soft weights start where the latent ones are."""
    return torch.log((remainder - GAMMA) / (ZETA - remainder))


def beta(progress: float) -> float | None:
    """The rounding term's exponent: none during the warm-up, then linearly from 20 to 2.

    ``progress`` is the share of the iterations with the present one, in (0, 1], as the release counts it.
    """
    if progress < WARM_UP:
        return None
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (progress - WARM_UP) / (1 - WARM_UP)


def channels(output: Tensor) -> int:
    """Of feature maps ``[n, channels, height, width]``, tokens ``[n, tokens, features]`` or ``[n, features]``."""
    return output.shape[1 if output.dim() == 4 else -1]
