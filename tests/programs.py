"""Commands of the tests, forked from a process that has imported what they need.

The imports of Snakemake, torch and pandas take a process a second or two, and the tests start hundreds. A forked command
has a folder, an environment, a ``sys.path`` and an output of its own, and imports the source that these lead to. It
shares with all others of its server what is imported already, the seed of hashes and the variables that Python reads at
its start: two sides that must agree whatever these are come from ``conftest.Project.start``, as does what a test
signals from outside. Jobs that a forked Snakemake or DVC starts are processes as usual.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ["snakemake.cli", "dvc.cli.parser", "dvc.repo", "torch", "torchvision", "pandas", "matplotlib.pyplot"]
FORKED = sys.platform == "linux"  # elsewhere libraries of the system do not live through it
MODULES = ("snakemake", "dvc")  #: programs that are modules, too
if FORKED:
    SERVER = multiprocessing.get_context("forkserver")
    SERVER.set_forkserver_preload(IMPORTED)


def run(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code (a signal's number is negative) of a command that nobody disturbs, and all that it says."""
    program, *arguments = command
    python = program in ("python", sys.executable) and (arguments[0] == "-m" or arguments[0].endswith(".py"))
    with tempfile.NamedTemporaryFile(prefix="output-") as output:
        if FORKED and (python or program in MODULES):
            arguments = arguments if python else ["-m", program, *arguments]
            process = SERVER.Process(target=_become, args=(arguments, folder, environment, output.name))
            process.start()
            process.join()
            code = process.exitcode
        else:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
        return code, Path(output.name).read_text()


def _become(arguments: list[str], folder: Path, environment: dict[str, str], output: str) -> None:
    """Be ``python ARGUMENTS``: ``-m MODULE ...`` or ``FILE.py ...``."""
    said = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    of_tests = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    module = arguments[0] == "-m"
    name, *sys.argv[1:] = arguments[1:] if module else arguments
    sys.argv[0] = name
    own = ["." if module else Path(name).parent, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    installed = [path for path in sys.path if path not in of_tests and not _in_checkout(Path(path))]
    sys.path[:] = [str(folder / path) for path in own] + installed
    try:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _in_checkout(path: Path) -> bool:
    """Whether a folder is of this checkout, and not of an environment that lies in it."""
    return path.resolve().is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)
