"""LSQ with a quantization correction at its end (Gupta and Asthana 2024).

When the weights have stopped, a scale and a shift of every output channel correct what their oscillation has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat

from oscillations.methods.lsq import Lsq, LsqOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from oscillations.engine.method import Moment, Tensors
    from oscillations.engine.optimizer import Optimizer
    from oscillations.methods._qc import CorrectedQuantizer


class QcOptions(LsqOptions):
    start: float = Field(11 / 12, ge=0, le=1, description="share of the training before the correction")
    correction_lr: PositiveFloat = Field(1e-3, description="learning rate of the correction's Adam; constant")

    @property
    def whole_from(self) -> float:
        return self.start


def fold(scale: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Scales ``[C, 1, ...]`` of the levels and biases ``[C]`` that need no correction any more; the codes stay.

    ``gamma`` and ``beta``: ``[C]`` of a linear layer, ``[C, 1, 1]`` of a convolution.
    """
    shift = beta.flatten()
    return scale * gamma.unsqueeze(-1), shift if bias is None else gamma.flatten() * bias + shift


class Qc(Lsq["CorrectedQuantizer"]):
    """LSQ up to the first step that begins at ``start`` or later; after it, only the corrections are learned.

    And the steps of inputs, where these are quantized.

    Weights, scales and batch-norm statistics stay as they are, and with them the codes. A correction is a part of the
    network: it acts on a layer's output at every bit width.
    """

    Options = QcOptions
    options: QcOptions

    def attach(self, model: nn.Module) -> None:
        self._model = model

    def quantizer_class(self) -> type[CorrectedQuantizer]:
        from oscillations.methods._qc import CorrectedQuantizer

        return CorrectedQuantizer

    def make_quantizer(self, parameters: dict[str, Tensor], own_bits: Mapping[str, int]) -> CorrectedQuantizer:
        from torch.nn.modules.batchnorm import _BatchNorm

        model, quantizer = self._model, super().make_quantizer(parameters, own_bits)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

        def keep_statistics(model: nn.Module, _: object) -> None:
            if quantizer.corrects and model.training:
                for norm in norms:
                    norm.eval()

        model.register_forward_pre_hook(keep_statistics)
        for layer in quantizer.gammas:
            model.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output, layer=layer: quantizer.corrected(layer, output)
            )
        return quantizer

    def begin(self, quantizer: CorrectedQuantizer) -> None:
        from oscillations.engine.optimizer import Adam

        super().begin(quantizer)
        self._quantizer = quantizer
        corrections = [*quantizer.gammas.values(), *quantizer.betas.values()]
        self.correction_optimizer = Adam(corrections, self.options.correction_lr)

    def after_backward(self, quantizer: CorrectedQuantizer, grads: Tensors, moment: Moment) -> None:
        if not quantizer.corrects:
            super().after_backward(quantizer, grads, moment)

    def step(self, optimizer: Optimizer, quantizer: CorrectedQuantizer, moment: Moment) -> None:
        if quantizer.corrects:
            self.correction_optimizer.step()
            self.correction_optimizer.zero_grad()
        else:
            super().step(optimizer, quantizer, moment)
            quantizer.corrects = moment.begun >= self.options.start

    def state(self) -> dict[str, Tensor]:
        import torch

        corrections = {f"correction/{key}": value for key, value in self.correction_optimizer.state().items()}
        return super().state() | corrections | {"corrects": torch.tensor(self._quantizer.corrects)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        prefix = "correction/"
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.correction_optimizer.load_state(own)
        self._quantizer.corrects = bool(state["corrects"])
