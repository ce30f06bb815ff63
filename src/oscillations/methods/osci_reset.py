"""OsciReset: oscillating weights are put back on their level (TetraJet-v2, arXiv:2510.27527).

As released in thu-ml/TetraJet-v2-NVFP4Training@ca5953f (``oscillation_reset.py``, ``calibrate.py``), and without its
pause in AMD-AGI/Primus@fd1eeabb (``weight_deosc.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from oscillations.engine.method import Method, Moment, QuantizedOptions, Quantizer, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from oscillations.engine.optimizer import Optimizer

EDGE = 0.495  # steps between weight and level from which on `bin_edge` takes a weight to be at its threshold


class OsciResetOptions(QuantizedOptions):
    rule: Literal["ratio", "bin_edge"] = Field(
        "ratio", description="which weights are reset: by their motion in a window, or all that lie at a threshold"
    )
    motion: Literal["codes", "values"] = Field(
        "codes", description="of q: changes of the code in present steps, or of q itself, the scale's too (released)"
    )
    tau: PositiveFloat = Field(8.0, description="motion of q for each unit of w's from which on a weight is reset")
    window: PositiveInt = Field(
        50, description="steps watched in a period; the reset is one step later, or at once where it takes all"
    )
    period: PositiveInt = Field(200, description="steps from one window, or one reset by bin_edge, to the next")
    start: float = Field(0.6, ge=0, lt=1, description="share of the training before the first window")

    @property
    def whole_from(self) -> float:
        return self.start

    @model_validator(mode="after")
    def _windows_fit(self) -> OsciResetOptions:
        if self.rule == "bin_edge":
            for name in ("motion", "tau", "window"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: rule bin_edge watches no motion; leave {name} out")
        elif self.window > self.period:
            raise ValueError(f"window: {self.window} steps do not fit into a period of {self.period}; say at most that")
        return self


class OsciReset(Method):
    """QAT whose scale has no gradient, until ``start``; then weights that oscillate are set to q(w), w <- q(w).

    With ``ratio``, D_w = sum |w_t - w_{t-1}| and D_q = s sum |k_t - k_{t-1}| (or sum |q_t - q_{t-1}|) over the steps of
    a window; a weight with D_w > 0 and D_q >= tau D_w is reset. The first weights of a window are those that its first
    step starts from. ``bin_edge`` resets all with |w - q(w)| > 0.495 s. Neither touches what the optimizer remembers.
    """

    Options = OsciResetOptions
    options: OsciResetOptions

    def begin(self, quantizer: Quantizer) -> None:
        import torch

        self.steps = 0  # made since `start`
        kept = [*quantizer.weights, *quantizer.weights] if self.options.rule == "ratio" else []
        self.before = [torch.zeros_like(weight) for weight in kept]  #: all w_{t-1}, then all k_{t-1} or q_{t-1}
        self.moved = [torch.zeros_like(weight) for weight in kept]  #: all D_w, then all D_q, of codes without s

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        return quantizer.quantized

    def step(self, optimizer: Optimizer, quantizer: Quantizer, moment: Moment) -> None:
        o = self.options
        if moment.begun < o.start:
            optimizer.step()
            return
        at, ratio = self.steps % o.period, o.rule == "ratio"
        last = min(o.window, o.period - 1) if ratio else 0
        self.steps += 1
        if ratio and at <= last:
            self._watch(quantizer, first=at == 0)
        optimizer.step()
        if at == last:
            quantizer.update()
            if ratio and o.window == o.period:
                self._watch(quantizer)
            self._reset(quantizer)

    def _watch(self, quantizer: Quantizer, first: bool = False) -> None:
        """Add what has moved since the last call, or, at the ``first`` of a window, only see the weights."""
        import torch

        now = [*quantizer.weights, *(quantizer.code_views if self.options.motion == "codes" else quantizer.quantized)]
        if first:
            torch._foreach_zero_(self.moved)
        else:
            torch._foreach_sub_(self.before, now)
            torch._foreach_abs_(self.before)
            torch._foreach_add_(self.moved, self.before)
        torch._foreach_copy_(self.before, now)

    def _reset(self, quantizer: Quantizer) -> None:
        for i, (weight, quantized) in enumerate(zip(quantizer.weights, quantizer.quantized)):
            weight.copy_(quantized.where(self._oscillates(quantizer, i), weight))

    def _oscillates(self, quantizer: Quantizer, i: int) -> Tensor:
        """Whether each weight of tensor ``i`` is to be reset."""
        scale = quantizer.scales[i]
        if self.options.rule == "bin_edge":
            return quantizer.error(i).abs_() > EDGE * scale
        of_w, of_q = self.moved[i], self.moved[i + len(quantizer.weights)]
        if self.options.motion == "codes":
            of_q = of_q * scale
        return (of_w > 0) & (of_q >= self.options.tau * of_w)

    def _kept(self) -> dict[str, Tensor]:
        lists = {"before": self.before, "moved": self.moved}
        return {f"{key}/{i}": value for key, values in lists.items() for i, value in enumerate(values)}

    def state(self) -> dict[str, Tensor]:
        import torch

        return {"steps": torch.tensor(self.steps)} | self._kept()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for key, value in self._kept().items():
            value.copy_(state[key])
