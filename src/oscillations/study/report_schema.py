"""What a study file says about its report: figures, comparisons, margins of verdicts, hypotheses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, PositiveFloat, TypeAdapter, WithJsonSchema, model_validator

from oscillations.core.config import Strict
from oscillations.core.errors import did_you_mean


class Exact(Strict):
    """A figure that needs no run, and so is told nothing."""


class Panels(Strict):
    panels: list[str] = Field(min_length=1, description="experiment/variant of each panel")


class WeightPanels(Panels):
    layer: str = Field(description="weight whose distribution is drawn, e.g. fc2.weight")


class Film(Panels):
    layer: str = Field(description="weight whose histograms over the training are shown: what the panels record")


class SweepPanels(Strict):
    experiments: list[str] = Field(min_length=1)
    bits: Literal[2, 3, 4]


PTQ_BITS = 3  # at 2, PTQ of a plain network is at chance; at 4, it hardly loses


class RatePanels(Strict):
    experiment: str = Field(description="baseline, QAT and OsciQuant over learning rates")
    bits: Literal[2, 3, 4]


#: What each figure must be told.
FIGURES: dict[str, type[Exact | Panels | SweepPanels | RatePanels]] = {
    "figure1": Exact,
    "figure2": WeightPanels,
    "figure3": Panels,
    "figure5": SweepPanels,
    "figure6": SweepPanels,
    "figure7": Panels,
    "figure8": Panels,
    "figureA1": Exact,
    "figureA5": Exact,
    "figure-rates": RatePanels,
    "figure-film": Film,
}
LABEL = r"(-[a-z0-9.]+)*$"


def figure_number(name: str) -> str:
    """``figure2-mlp5`` is a ``figure2``; what is not the paper's has a word for a number: ``figure-heatmap-mlp5``."""
    found = re.match(r"figure(-[a-z]+|[^-]*)|[^-]*", name)
    assert found  # the second alternative matches anything
    return found[0]


def _figure_specs(content: Any) -> Any:
    """Each figure's spec as the class its number asks for."""
    if not isinstance(content, dict):
        return content
    specs: dict[str, Any] = {}
    for name, spec in content.items():
        number = figure_number(str(name))
        if number not in FIGURES:
            raise ValueError(f"unknown key {name!r}; {did_you_mean(number, FIGURES)}")
        if not re.fullmatch(number + LABEL, name):
            raise ValueError(f"{name!r}: a label is lower-case letters and digits, e.g. {number}-mlp5")
        kind: Any = GenericAlias(dict, (str, FIGURES[number]))
        specs |= TypeAdapter(kind).validate_python({name: spec})
    return specs


Figures = Annotated[
    dict[str, WeightPanels | Film | Panels | SweepPanels | RatePanels | Exact],
    BeforeValidator(_figure_specs),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {f"^{name}{LABEL}": spec.model_json_schema() for name, spec in FIGURES.items()},
            "additionalProperties": False,
        }
    ),
]


class ComparisonTable(Strict):
    """Which methods stand in one table: those of a model at one target bit width."""

    experiments: list[str] = Field(min_length=1, description="experiments of one model")
    posttraining: list[str] = Field([], description="post-training entries whose methods stand beside the trained ones")
    bits: int = Field(3, ge=2, le=8, description="target bit width (2 = ternary)")


SET_AFTER_RUNS: dict[str, JsonValue] = {"set_after_runs": True}  #: of margins that entered when runs had been seen


class Claims(Strict):
    """Margins of the verdicts, in percentage points unless said otherwise."""

    match_margin: PositiveFloat = Field(2.0, description="C2: OsciQuant matches QAT")
    near_baseline: PositiveFloat = Field(2.0, description="C4, C14: stays near the FP baseline")
    cross_margin: PositiveFloat = Field(
        2.0, description="C6: at another width no worse than what was trained for it", json_schema_extra=SET_AFTER_RUNS
    )
    near_full: PositiveFloat = Field(
        5.0, description="C7: near full precision at 3 bits and more", json_schema_extra=SET_AFTER_RUNS
    )
    chance_margin: PositiveFloat = Field(10.0, description="C5, C14: above chance by no more than this is near chance")
    similar_ratio: float = Field(
        1.25, gt=1, description="C8: counts that differ by no more than this factor are similar",
        json_schema_extra=SET_AFTER_RUNS,
    )  # fmt: skip
    flat_margin: PositiveFloat = Field(2.0, description="C9: flat in lambda")
    collapse: PositiveFloat = Field(10.0, description="C9, C15: a loss of more than this is a collapse")
    unstable_std: PositiveFloat = Field(
        5.0, description="C6, C14: a larger standard deviation over seeds is unstable", json_schema_extra=SET_AFTER_RUNS
    )
    bound_margin: PositiveFloat = Field(
        1.0, description="C11: another bit width exceeds the bound by no more than this; C18: as good as the best",
        json_schema_extra=SET_AFTER_RUNS,
    )  # fmt: skip
    epoch_margin: PositiveFloat = Field(
        10.0,
        description="C12: OsciQuant and QAT need equally many epochs (in epochs)",
        json_schema_extra=SET_AFTER_RUNS,
    )
    uniform_near: PositiveFloat = Field(
        0.1, description="C13: share of uniform weights near a threshold; Gaussian ones of any width have no more",
        json_schema_extra=SET_AFTER_RUNS,
    )  # fmt: skip

    def origin(self, margin: str) -> str:
        """What a reader must know of a margin: that it was set after runs had been seen."""
        extra = type(self).model_fields[margin].json_schema_extra
        return "margin set after runs had been seen" if extra == SET_AFTER_RUNS else ""


class GainRow(Strict):
    """One way to an accuracy at the table's width."""

    text: str
    of: str = Field(description="experiment/variant, of the study or its companions")
    posttraining: str | None = Field(None, description="label of a post-training method that is applied to it")


class Gain(Strict):
    """What explains the gain over PTQ: ways to quantize one network, beside one that they are compared with."""

    bits: Literal[2, 3, 4]
    against: str = Field(description="experiment/variant that all rows are compared with")
    rows: list[GainRow] = Field(min_length=1)


class Side(Strict):
    """One number per seed: what a variant measured, or the range over several variants."""

    variants: list[str] = Field(min_length=1, description="experiment/variant, of the study or its reference")
    bits: Literal[32, 2, 3, 4, 8] | None = Field(None, description="of the evaluation; else the training bits")
    bn: Literal["keep", "reestimate"] = "keep"


class Contrast(Strict):
    """A difference, paired by seed, or one side alone."""

    of: Side
    minus: Side | None = None

    @property
    def paths(self) -> list[str]:
        return [*self.of.variants, *(self.minus.variants if self.minus else [])]


class Tested(Contrast):
    """One comparison of a hypothesis: the mean over seeds of a contrast against a bound."""

    text: str
    measure: Literal[
        "accuracy", "per_step", "per_epoch", "near_threshold", "max_over_std", "kurtosis", "share_zero",
        "layer_distance", "layer_distance_last",
    ]  # fmt: skip
    than: Contrast | None = Field(None, description="contrast that is subtracted: a difference of differences")
    to: str | None = Field(
        None,
        description="layer_distance(_last): variant whose spread over layers (in the last epoch) is compared with",
    )
    expect: Literal["above", "below", "within"]
    bound: float = Field(0.0, description="within: the margin of equivalence")
    side: bool = Field(False, description="shown beside the comparisons that decide, and decides nothing")
    set_after_runs: bool = Field(False, description="its statement or bound entered after its runs had been seen")

    @model_validator(mode="after")
    def _consistent(self) -> Tested:
        if self.measure.startswith("layer_distance") != (self.to is not None):
            raise ValueError("to: belongs to measure: layer_distance or layer_distance_last, and only to them")
        sides = [side for contrast in (self, self.than) if contrast for side in (contrast.of, contrast.minus) if side]
        if self.measure != "accuracy" and any(side.bits or side.bn != "keep" for side in sides):
            raise ValueError(f"bits, bn: belong to measure: accuracy, not to {self.measure}")
        if self.expect == "within" and self.bound <= 0:
            raise ValueError("bound: a margin of equivalence is positive")
        return self

    @property
    def paths(self) -> list[str]:
        """All variants it names."""
        return [*super().paths, *(self.than.paths if self.than else []), *([self.to] if self.to else [])]

    def named(self) -> Iterator[tuple[str, str, int | None]]:
        """(key, variant, bits of its evaluation) of all variants it names."""
        sides: dict[str, Side | None] = {"of": self.of, "minus": self.minus}
        sides |= {"than.of": self.than.of, "than.minus": self.than.minus} if self.than else {}
        for key, side in sides.items():
            if side is not None:
                for variant in side.variants:
                    yield f"{key}.variants", variant, side.bits
        if self.to is not None:
            yield "to", self.to, None


class Hypothesis(Strict):
    statement: str
    comparisons: list[Tested] = Field(min_length=1)


Published = Annotated[  # what the columns of params/published.csv hold; lax, for YAML has no tuples
    tuple[
        Literal["mlp5", "resnet18", "vit-tiny"],
        Literal["scratch", "finetune", "sweep"],
        Literal["baseline", "ptq", "qat", "osciquant"],
        Literal[32, 2, 3, 4, 8],
    ],
    Field(strict=False),
]
