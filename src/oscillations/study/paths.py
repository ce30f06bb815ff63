"""Where everything lies, relative to the working folder. Paths are made here and nowhere else.

What is made lies in the working folder. What comes with the workflow is looked for there, too, and else beside the
source: so a clone serves several folders, and its own records name its files by relative paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]  #: of the clone, unless the package is installed without one


def shipped(name: str) -> Path:
    """What comes with the workflow: the working folder's own if it is there, else the clone's."""
    own, ours = Path(name), ROOT / name
    return ours if ours.exists() and not own.exists() else own


DATA = Path("data")
DOWNLOADS = DATA / "downloads"
RESULTS = Path("results")
PUBLISHED = shipped("params/published.csv")
COST = shipped("benchmarks/results/cost.csv")  #: measured speeds
MEMORY = shipped("benchmarks/results/memory.csv")  #: measured peaks of jobs' processes
CHOICES = shipped("docs/choices.md")
#: what a record calls a checkpoint (``checkpoint_sha256``), and how its file's name ends: of the weights that stand for
#: the run, and of the end of training where the best epoch's are kept beside it
CHECKPOINTS = {"checkpoint": ".safetensors", "last_checkpoint": ".last.safetensors"}
WEIGHTS = "weights.csv"  #: histograms over the training: a row for the start and for every epoch, none without a grid


def study_file(name: str) -> Path:
    """The file of a study."""
    return shipped(f"params/{name}.yaml")


def results(study: str) -> Path:
    """What a study has made, but for weights and figures."""
    return RESULTS / study


def measurements_file(study: str) -> Path:
    """Every accuracy of every current run, tidy."""
    return results(study) / "measurements.csv"


def figures(study: str) -> Path:
    """Its figures, PNG and PDF."""
    return Path("figures", study)


def checkpoints(study: str) -> Path:
    """Its weights."""
    return Path("checkpoints", study)


def provenance_file(study: str) -> Path:
    """Snakemake's records of what the study has made."""
    return results(study) / "provenance.json"


def dataset_files(name: str) -> tuple[Path, Path]:
    """Sidecar and tensor file of a dataset."""
    return DATA / f"{name}.json", DATA / f"{name}.safetensors"


def fetch_work(name: str) -> Path:
    """Undeclared folder that says who prepares a dataset or public weights, which several studies may ask for."""
    return Path("work", ".fetch", name)


def study_work(study: str) -> Path:
    """Undeclared folder of all that is unfinished of a study: Snakemake never deletes it."""
    return Path("work", study)


def posttraining_work(study: str, name: str) -> Path:
    """Undeclared folder of an unfinished post-training entry."""
    return study_work(study) / "posttraining" / name


def evaluation_work(study: str, experiment: str) -> Path:
    """Undeclared folder that says who evaluates an experiment."""
    return study_work(study) / "evaluate" / experiment


def evaluation_files(study: str, experiment: str) -> tuple[Path, Path]:
    """Accuracies, and histograms of the weights, of one experiment."""
    folder = results(study) / "runs" / experiment
    return folder / "evaluations.csv", folder / "histograms.csv"


def posttraining_files(study: str, name: str) -> tuple[Path, Path]:
    """Accuracies, and reconstruction losses per unit, of one post-training entry."""
    folder = results(study) / "posttraining"
    return folder / f"{name}.csv", folder / f"{name}-reconstruction.csv"


def exports_file(study: str, name: str) -> Path:
    """What the exported files of one entry cost and give."""
    return results(study) / "exports" / f"{name}.csv"


def toy_file(study: str) -> Path:
    """What AOQ's toy experiment found."""
    return results(study) / "toy-regression.csv"


def experiment_of(path: str) -> str:
    """Of ``experiment/variant``."""
    return path.split("/")[0]


def rule_name(experiment: str) -> str:
    """Of the rule that trains an experiment: what Python, and so every tool around Snakemake, takes as a name."""
    return "train_" + re.sub(r"\W", "_", experiment)


def variant_page(study: str, path: str) -> Path:
    """The page of a variant's runs."""
    return results(study) / "runs" / f"{path}.html"


def run_files(histograms: bool) -> list[str]:
    """What a run's folder holds; the record last, for it vouches for the rest."""
    return ["history.csv", "layers.csv", *([WEIGHTS] if histograms else []), "run.json"]


@dataclass(frozen=True)
class Run:
    """One training: a variant with one seed. All its paths are derived here and nowhere else."""

    study: str
    experiment: str
    variant: str
    seed: int

    @classmethod
    def of(cls, folder: str) -> Run:
        """The run that a table names by its folder."""
        _, study, _, experiment, variant, seed = Path(folder).parts
        return cls(study, experiment, variant, int(seed.removeprefix("seed")))

    @property
    def path(self) -> str:
        """``experiment/variant``."""
        return f"{self.experiment}/{self.variant}"

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.variant}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        return results(self.study) / "runs" / self.name

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        """Of the weights that stand for the run."""
        return self.checkpoints(["checkpoint"])["checkpoint"]

    def checkpoints(self, names: Iterable[str]) -> dict[str, Path]:
        """By name, some of :data:`CHECKPOINTS`."""
        return {name: checkpoints(self.study) / f"{self.name}{CHECKPOINTS[name]}" for name in names}

    @property
    def work(self) -> Path:
        """Undeclared folder of an unfinished run."""
        return study_work(self.study) / self.name

    @property
    def command(self) -> str:
        """What makes it, or what is missing or damaged of it."""
        return f"python -m oscillations train --study {self.study} --only {self.path} --seeds {self.seed}"
