"""LSQ with bin regularization: every bin's weights are pulled to its level (Han et al. 2021, ICCV)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from oscillations.engine.recipe import Strength
from oscillations.methods.lsq import Lsq, LsqOptions

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.core.bits import Grid
    from oscillations.engine.method import Moment, Quantizer, Tensors


class BinRegularizationOptions(LsqOptions):
    lambda_: Strength = Field(1.0, alias="lambda", description="strength of the regularizer")
    start: float = Field(0.25, ge=0, le=1, description="share of the training, with LSQ alone, before the regularizer")
    scale_gradient: bool = Field(True, description="whether the regularizer also moves the levels, through the scale")

    @property
    def whole_from(self) -> float:
        return self.start


def bin_shares(codes: Tensor, grid: Grid) -> Tensor:
    """1 / V for every weight, V the number of weights of its tensor with its code."""
    import torch

    places = (codes.int() - grid.low).flatten()
    ones = torch.ones((), device=codes.device).expand(len(places))
    counts = torch.zeros(grid.levels, device=codes.device).index_add_(0, places, ones)
    return counts.reciprocal().index_select(0, places).view(codes.shape)


class BinRegularization(Lsq):
    """Adds lambda times the sum over tensors and bins of (mean of the bin - level)^2 + variance of the bin.

    That is the mean of (w - level)^2 over the bin: dampening, normalised for each bin. Which bin a weight is in is
    constant. A weight alone in its bin has no variance, but a mean that is pulled.
    """

    Options = BinRegularizationOptions
    options: BinRegularizationOptions

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        from oscillations.engine.scales import reduced

        super().after_backward(quantizer, grads, moment)
        if moment.begun < self.options.start:
            return
        for i, (scale, grad, codes) in enumerate(zip(quantizer.scales, grads, quantizer.code_views)):
            pull = quantizer.error(i).mul_(bin_shares(codes, quantizer.grids[i])).mul_(2 * self.options.lambda_)
            grad.sub_(pull)
            if self.options.scale_gradient:
                scale.grad += (pull * codes).sum(reduced(grad, scale.dim() > 0), keepdim=scale.dim() > 0)

    def penalty(self, quantizer: Quantizer, moment: Moment) -> Tensor | float | None:
        if moment.begun < self.options.start:
            return None
        tensors = enumerate(quantizer.code_views)
        losses = [
            quantizer.error(i).square_().mul_(bin_shares(codes, quantizer.grids[i])).sum() for i, codes in tensors
        ]
        return self.options.lambda_ * sum(losses)
