"""What JSON files must hold: the record of a run, the sidecars of its data and first weights, a study's summary.

Only what something relies on; whatever else they hold may be of any form.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**63 - 1)]
Seconds = Annotated[float, Field(ge=0)]
Accuracies = dict[Annotated[str, Field(pattern=r"^\d{1,2}$")], float | None]  # by bits; a diverged run may have none


class Contents(BaseModel):
    """Base: no value of another type, no number that is none."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Start(Contents):
    """Where first weights are from, and the sidecar of weights."""

    name: str
    trained_on: str
    verified: bool
    label: str
    sha256: str


class Data(Contents):
    name: str
    source: str
    sha256: str


class Sidecar(Data):
    """Of a dataset."""

    classes: list[str] = Field(min_length=2)
    image_shape: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(min_length=3, max_length=3)
    mean: list[float] = Field(min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    train: Positive
    test: Positive


class Split(Contents):
    train: Count
    validation: Count
    test: Count


class Git(Contents):
    commit: str = ""
    dirty: bool = False


class Slurm(Contents):
    job: str | int
    node: str


class Environment(Contents):
    device: str
    dtype: str
    threads: Positive
    platform: str
    python: str
    packages: dict[str, str | None]
    git: Git
    slurm: Slurm | None = None


class Timing(Contents):
    wall_s: Seconds
    interruptions: Count
    at_once: Positive
    finished: str


class Quantizer(Contents):
    grid: str
    levels: Positive
    calibration: str


class Record(Contents):
    """Of a run: ``run.json``."""

    recipe: dict[str, Any]
    arithmetic: dict[str, int | str]
    seed: Count
    data: Data
    data_sha256: str | None
    start: Start | None = None
    start_sha256: str | None
    checkpoint_sha256: str
    last_checkpoint_sha256: str = ""
    split: Split
    status: Literal["done", "diverged"]
    best_epoch: Count
    epochs_run: Count
    steps_per_epoch: Positive
    monitored: float | None
    validation_accuracy: Accuracies = {}  # none of a run that keeps the last weights alone
    validation_accuracy_at_end: Accuracies = {}
    quantizer: Quantizer | None = None
    environment: Environment
    timing: Timing


class Sentence(Contents):
    """A finding, and where its numbers stand."""

    text: str
    target: str


class Summary(Contents):
    """Of a study, for the page over all: ``summary.json``."""

    study: str
    title: str
    note: str
    published: Literal["paper", "other-data", "miniature", "none"]
    data: str
    progress: str
    cells: Annotated[list[Count], Field(min_length=2, max_length=2)] | None  # published ones: that have run, all
    verdicts: dict[str, Count]
    findings: list[Sentence]
