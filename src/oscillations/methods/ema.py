"""LSQ whose exported weights are averages over the training steps (Gupta and Asthana 2024).

A weight that oscillates about a threshold has an average that lies on the side it visits more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from oscillations.methods.lsq import Lsq, LsqOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oscillations.engine.method import Moment, Quantizer
    from oscillations.engine.optimizer import Optimizer


class EmaOptions(LsqOptions):
    decay: float = Field(0.999, ge=0, lt=1, description="weight of the past in the averages, after the warm-up")
    warmup_steps: PositiveInt = Field(2000, description="steps after which the decay has reached 63 % of its value")


def average(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """averages <- decay averages + (1 - decay) values, in place."""
    import torch

    with torch.no_grad():
        torch._foreach_lerp_(averages, values, 1 - decay)


class Ema(Lsq):
    """Trains as LSQ does; validates and keeps exponential moving averages.

    Averaged are the latent weights, the scales, and all else the model learns or tracks: biases, norm layers, and
    their running statistics, so that these belong to the weights; not the steps of quantized inputs.
    Step t's decay is d (1 - exp(-t / warm-up)).
    """

    Options = EmaOptions
    options: EmaOptions

    def attach(self, model: nn.Module) -> None:
        self._values = [value for value in model.state_dict().values() if value.is_floating_point()]

    def begin(self, quantizer: Quantizer) -> None:
        super().begin(quantizer)
        self._values += quantizer.scales
        self.averages = [value.clone() for value in self._values]
        self.steps = 0

    def step(self, optimizer: Optimizer, quantizer: Quantizer, moment: Moment) -> None:
        super().step(optimizer, quantizer, moment)
        self.steps += 1
        share = 1 - math.exp(-self.steps / self.options.warmup_steps)
        average(self.averages, self._values, self.options.decay * share)

    @contextmanager
    def exported(self, quantizer: Quantizer) -> Iterator[None]:
        import torch

        trained = [value.clone() for value in self._values]
        with torch.no_grad():
            torch._foreach_copy_(self._values, self.averages)
            quantizer.update()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._values, trained)
                quantizer.update()

    def state(self) -> dict[str, Tensor]:
        import torch

        averages = {f"average/{i}": value for i, value in enumerate(self.averages)}
        return super().state() | averages | {"steps": torch.tensor(self.steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        for i, value in enumerate(self.averages):
            value.copy_(state[f"average/{i}"])
        self.steps = int(state["steps"])
