"""What the jobs of a workflow inherit from the command that starts it, by environment variables.

Where data comes from and what computes are no part of a recipe: Snakemake compares params between runs, but not
the environment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oscillations.core.errors import InputError, did_you_mean
from oscillations.jobs.holders import name_workflow

KEYS = ("study", "only", "seeds", "source", "weights", "device", "at_once", "save_every", "longest", "container")
SOURCE = Path(__file__).resolve().parents[2]
DEVICES = ("auto", "cpu", "cuda")


def prepare(config: dict) -> int:
    """Check ``--config`` and set the jobs' environment; returns the GPUs a training job asks for.

    Jobs call ``python -m oscillations`` with this interpreter and this source, installed or not.
    """
    for key in config:
        if key not in KEYS:
            raise InputError(f"--config {key}=...: unknown key; {did_you_mean(key, KEYS)}")
    device = config.get("device", "auto")
    if device not in DEVICES:
        raise InputError(f"device={device}: {did_you_mean(device, DEVICES)}")
    numbers = {key: str(config[key]) for key in ("at_once", "save_every", "longest") if key in config}
    for key, number in numbers.items():
        if not number.isdecimal() or int(number) == 0:
            raise InputError(f"{key}={number}: not a positive number")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{SOURCE}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "OSCILLATIONS_DEVICE": device,
        **{f"OSCILLATIONS_{key.upper()}": number for key, number in numbers.items() if key != "longest"},
    }
    for key in ("source", "weights"):
        if key in config:
            path = Path(config[key])
            if not path.exists():
                raise InputError(f"{key}={path}: no such file or folder")
            environment[f"OSCILLATIONS_{key.upper()}"] = str(path.resolve())
    os.environ.update(environment)
    name_workflow()
    return int(device == "cuda" or (device == "auto" and Path("/dev/nvidiactl").exists()))


@contextmanager
def as_job(study: str, step: str, name: str) -> Iterator[None]:
    """What a rule's command does inside: SIGTERM ends it in order, and the log of one that fails is kept.

    Snakemake deletes a job's log when the job starts again; a second name outlives that.
    """
    log, second = Path("logs", study, step, f"{name}.log"), None
    with suppress(OSError):  # no log of a workflow's, or a file system without links
        if os.path.samestat(os.fstat(sys.stdout.fileno()), log.stat()):
            attempt = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{socket.gethostname()}-{os.getpid()}"
            second = log.with_name(f"{log.stem}.{attempt}.log")
            second.hardlink_to(log)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if second:
        second.unlink(missing_ok=True)
