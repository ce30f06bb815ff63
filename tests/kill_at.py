"""Runs the CLI and kills its own process with SIGKILL at an exact moment: kill_at.py MOMENT[:SIGNAL] COUNT ARGUMENTS...

MOMENT: ``step`` (inside an optimizer step), ``evaluation`` (inside the validation after an epoch), ``write``
(half of a file written), ``checkpoint`` (half of the checkpoint written), ``publish`` (half of a file copied
into place). It happens at the COUNT-th time. A SIGNAL that is no death is for the first two: no half is left.
"""

import os
import pathlib
import shutil
import signal
import sys

from oscillations.cli import main
from oscillations.engine import training as training
from oscillations.jobs import train as runs

(moment, _, name), count = sys.argv[1].partition(":"), int(sys.argv[2])
calls = 0


def die():
    os.kill(os.getpid(), signal.Signals[name or "SIGKILL"])


def now() -> bool:
    global calls
    calls += 1
    return calls == count


def before(function):
    def patched(*arguments, **keywords):
        if now():
            die()
        return function(*arguments, **keywords)

    return patched


def write_half(function):
    def patched(path, content):
        if now():
            function(path, content[: len(content) // 2])
            die()
        return function(path, content)

    return patched


def halve(function, place):
    """Let ``function`` make its file (argument number ``place``), cut it in half, die."""

    def patched(*arguments):
        result = function(*arguments)
        if now():
            os.truncate(arguments[place], pathlib.Path(arguments[place]).stat().st_size // 2)
            die()
        return result

    return patched


if moment == "step":
    training.F.cross_entropy = before(training.F.cross_entropy)
elif moment == "evaluation":
    training.accuracy = before(training.accuracy)
elif moment == "write":
    pathlib.Path.write_bytes = write_half(pathlib.Path.write_bytes)
elif moment == "checkpoint":
    runs.save_file = halve(runs.save_file, 1)
elif moment == "publish":
    shutil.copyfile = halve(shutil.copyfile, 1)
else:
    sys.exit(f"unknown moment {moment}")
sys.exit(main(sys.argv[3:]))
