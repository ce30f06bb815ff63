"""
What all rules share: the checked study, the variants this command is narrowed to, and their files.
"""

import json
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, "src")
from oscillations import study as studies
from oscillations.errors import InputError
from oscillations.fingerprint import fingerprint

# Rules call "python -m oscillations": the same interpreter and the same source as this file, installed or not.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
os.environ["PYTHONPATH"] = f"src:{os.environ.get('PYTHONPATH', '')}".rstrip(":")

STUDY_FILE = f"params/{config.get('study', 'quick')}.yaml"
try:
    unknown = set(config) - {"study", "only", "seeds", "source"}
    if unknown:
        raise InputError(f"--config {unknown.pop()}=...: unknown key; known: study, only, seeds, source")
    STUDY, VARIANTS = studies.load(Path(STUDY_FILE))
    CHOSEN = studies.narrow(VARIANTS, config.get("only"), config.get("seeds"))
    if "source" in config and not Path(config["source"]).exists():
        raise InputError(f"source={config['source']}: no such file or folder")
except InputError as error:
    raise WorkflowError(str(error))

# Where data comes from is no part of a recipe: an environment variable is not compared between runs.
if "source" in config:
    os.environ["OSCILLATIONS_SOURCE"] = str(Path(config["source"]).resolve())

GPUS = 1 if Path("/dev/nvidiactl").exists() else 0  # a job takes the device if there is one


def run_files(run):
    """Declared files of one run: record, histories, checkpoint."""
    return [str(run.folder / name) for name in ("run.json", "history.csv", "layers.csv")] + [str(run.checkpoint)]


def as_json(value):
    """Params are compared as unordered values: one string with sorted keys per job."""
    return json.dumps(value, sort_keys=True)


def start_files(variant):
    """Records and checkpoints that a fine-tune starts from; the record's hash stands for the checkpoint."""
    parents = [parent for seed in variant.seeds if (parent := variant.parent(seed))]
    return [str(parent.record) for parent in parents] + [ancient(str(parent.checkpoint)) for parent in parents]
