"""The quantizer of quantization correction (:mod:`oscillations.methods.qc`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oscillations.engine.layers import layer_of
from oscillations.engine.quantizer import WeightQuantizer
from oscillations.engine.scales import LearnedScale


class CorrectedQuantizer(WeightQuantizer[LearnedScale]):
    """LSQ's, with the corrections as a part of what a checkpoint holds."""

    def __init__(self, weights: dict[str, Tensor], *args: Any, **kwargs: Any):
        super().__init__(weights, *args, **kwargs)
        layers = {layer_of(name): w for name, w in weights.items() if w.dim() > 1}
        shapes = {layer: (len(w), *[1] * (w.dim() - 2)) for layer, w in layers.items()}  # of an output's channels
        self.gammas = {layer: w.new_ones(shapes[layer]).requires_grad_() for layer, w in layers.items()}
        self.betas = {layer: w.new_zeros(shapes[layer]).requires_grad_() for layer, w in layers.items()}
        self.corrects = False  # until then no layer's output is touched

    def corrected(self, layer: str, output: Tensor) -> Tensor:
        if not self.corrects:
            return output
        return (output * self.gammas[layer] + self.betas[layer]).to(output.dtype)

    def state(self) -> dict[str, Tensor]:
        gammas = {f"gamma/{layer}": gamma.detach() for layer, gamma in self.gammas.items()}
        betas = {f"beta/{layer}": beta.detach() for layer, beta in self.betas.items()}
        return super().state() | gammas | betas

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        changed = [gamma != 1 for gamma in self.gammas.values()] + [beta != 0 for beta in self.betas.values()]
        self.corrects = any(values.any().item() for values in changed)
