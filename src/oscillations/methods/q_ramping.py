"""Q-Ramping: larger batches for oscillating weights (TetraJet, ICML 2025, arXiv:2502.20853), here by a window.

The rule is that of thu-ml/TetraJet-MXFP4Training@bbe9bd6, with a substitute for how it measures oscillation: there by
30 steps at every epoch's start, which are then undone; here by the last 30 real steps of the epoch before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors
from oscillations.engine.recipe import WeightDecay

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.engine.optimizer import Optimizer

SMALLEST_PATH = 1e-8


class QRampingOptions(QuantizedOptions):
    period: PositiveInt = Field(
        description="steps after which weights are measured anew, an epoch's; no weight waits longer"
    )
    window: PositiveInt = Field(30, description="steps at the end of a period that are measured")
    alpha: PositiveFloat = Field(16.0, description="ratio of the paths of q and w from which a weight waits")
    beta: NonNegativeInt = Field(5, description="steps that it waits longer for each such ratio")
    weight_decay: WeightDecay = Field(0.0, description="of the quantized weights: w - lr decay w in every step")

    @model_validator(mode="after")
    def _window_within_a_period(self) -> QRampingOptions:
        if self.window >= self.period:
            raise ValueError(f"window: {self.window} steps are no part of a period of {self.period}; say less")
        return self

    @property
    def steps_weights(self) -> bool:
        return True


def period_of(q_path: Tensor, w_path: Tensor, alpha: float, beta: int, longest: int) -> Tensor:
    """N = min(floor((D_q / alpha) / (D_w + 1e-8)) beta + 1, longest) of every weight."""
    return (q_path / alpha / (w_path + SMALLEST_PATH)).floor_().mul_(beta).add_(1).clamp_(max=longest)


class QRamping(Method):
    """Forward and backward pass on q(w); its gradient is the latent weights', whose AdamW is the method's.

    D_w adds up how far a weight moves from step to step, D_q how far its level does: by codes, times the scale at the
    window's end, so that a scale that moves counts as no motion. In the first period every N is 1.
    """

    Options = QRampingOptions
    options: QRampingOptions

    def begin(self, quantizer: Quantizer) -> None:
        import torch

        from oscillations.methods._q_ramping import RampedAdam

        weights = quantizer.weights
        self.own = RampedAdam(weights, 0.0, self.options.weight_decay)  # at the run's rate at every step
        self.steps = 0
        self.w_path, self.last = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
        self.code_path, self.last_codes = torch.zeros_like(quantizer.codes, dtype=torch.int32), quantizer.codes.clone()

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        return quantizer.quantized

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        for weight, grad in zip(quantizer.weights, grads):
            weight.grad = grad

    def step(self, optimizer: Optimizer, quantizer: Quantizer, moment: Moment) -> None:
        self.measure(quantizer)
        self.steps += 1
        self.own.lr = optimizer.lr
        self.own.step()
        self.own.zero_grad()
        optimizer.step()

    def measure(self, quantizer: Quantizer) -> None:
        """Add what the step before has moved, if it is in a window; at the window's end set the periods.

        Called before a step, when the codes are those of the present weights.
        """
        import torch

        o = self.options
        since = self.steps - (o.period - o.window)  # the first window began
        done = since % o.period  # steps, since the last one did
        if since < 0 or done > o.window:
            return
        paths = [*self.w_path, self.code_path]
        if done == 0:
            torch._foreach_zero_(paths)
        else:
            torch._foreach_sub_(self.last, quantizer.weights)
            torch._foreach_abs_(self.last)
            torch._foreach_add_(self.w_path, self.last)
            self.code_path += (quantizer.codes.short() - self.last_codes).abs_()
        torch._foreach_copy_(self.last, quantizer.weights)
        self.last_codes.copy_(quantizer.codes)
        if done == o.window:
            tensors = zip(self.code_path.split(quantizer.sizes), quantizer.scales, self.w_path, self.own.periods)
            for codes, scale, path, period in tensors:
                q_path = codes.as_strided(path.shape, path.stride()) * scale
                period.copy_(period_of(q_path, path, o.alpha, o.beta, o.period))

    def state(self) -> dict[str, Tensor]:
        import torch

        return self.own.state() | self._window() | {"steps": torch.tensor(self.steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.own.load_state(state)
        for key, value in self._window().items():
            value.copy_(state[key])
        self.steps = int(state["steps"])

    def _window(self) -> dict[str, Tensor]:
        """What the window in progress has measured."""
        paths = {f"path/{i}": path for i, path in enumerate(self.w_path)}
        paths |= {f"last/{i}": last for i, last in enumerate(self.last)}
        return paths | {"path/codes": self.code_path, "last/codes": self.last_codes}
