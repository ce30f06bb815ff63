"""Which workflows are at work in a folder, and whether Snakemake's lock there still has an owner.

Snakemake locks the files of a command and leaves the lock behind when it is killed. So every main process leaves a card
for as long as it lives: where nobody plans or is at work the lock is lifted, and whoever is at work can be named.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Thread
from time import sleep

from oscillations.core.files import write_json
from oscillations.jobs.holders import BEAT, EXPIRES, Holder

PLANNING = ""  #: in the place of a study: a process that may lock files soon
CARDS, LOCKS = Path(".snakemake/workflows"), Path(".snakemake/locks")


def enter(study: str) -> None:
    """Leave a card of this process, a main process at work on a study or :data:`PLANNING`, until it ends."""
    card = _own().absolute()  # the process may end in another folder
    write_json(card, {"study": study, "holder": asdict(Holder.present())})
    _keep(card)


def at_work() -> dict[str, Holder]:
    """Studies that others work on here (or :data:`PLANNING`), and their main processes."""
    return dict(_others())


def left_over(holders: Iterable[Holder]) -> list[Holder]:
    """Those that a workflow has started which is gone, wherever it was."""
    living = {main.process for _, main in _others()}
    return [holder for holder in holders if holder.workflow and holder.workflow not in living]


def _others() -> list[tuple[str, Holder]]:
    """What others do here, and their main processes; ended ones' cards are removed.

    A process of another host, or from before a reboot, is taken for dead without a sign of life for
    :data:`~oscillations.jobs.holders.EXPIRES`, by the file system's clock.
    """
    present, found = Holder.present(), []
    for card in set(CARDS.glob("*.json")) - {_own()}:
        with suppress(FileNotFoundError):  # it has just ended
            silence = _now() - card.stat().st_mtime
            try:
                about = json.loads(card.read_text())
                study, holder = about["study"], Holder(**about["holder"])
            except (ValueError, TypeError, KeyError):  # damaged: nobody's
                study, holder, silence = "", Holder(), EXPIRES
            unseen = not holder.seen_from(present)  # else a clock that jumps, or a pause, is no sign of death
            if (silence >= EXPIRES and unseen) or holder.over(present):
                card.unlink()
            else:
                found.append((study, holder))
    return found


def lift_lock() -> None:
    """Remove the lock that a killed workflow has left; only where nobody else is at work."""
    if any(LOCKS.glob("*.lock")):
        print("a snakemake was killed here; the lock it has left is lifted", file=sys.stderr)
        shutil.rmtree(LOCKS)


def _own() -> Path:
    return CARDS / f"{socket.gethostname()}.{os.getpid()}.json"


@cache
def _keep(card: Path) -> None:
    """Let a card give signs of life until this process ends."""
    atexit.register(card.unlink, missing_ok=True)
    Thread(target=_beat, args=(card,), daemon=True).start()


def _beat(card: Path) -> None:
    while True:
        sleep(BEAT)
        with suppress(OSError):
            os.utime(card)


def _now() -> float:
    """Seconds, by the clock of the file system that the cards lie in."""
    clock = CARDS / ".clock"
    clock.touch()
    return clock.stat().st_mtime
