"""Commands of the tests, forked from a process that has imported what they need.

The imports of Snakemake, torch and pandas take a process a second or two, and the tests start hundreds. A command runs
as it would in an interpreter of its own: the source it finds, its folder, environment, output, signals and exit code
are its own. What is killed by a test from outside, or starts others, is started as usual (``conftest.Project.start``).
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ("snakemake.cli", "dvc.cli.parser", "dvc.repo", "torch", "torchvision", "pandas", "matplotlib.pyplot")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(IMPORTED))
MODULES = ("snakemake", "dvc")
PYTESTS = {str(ROOT / name) for name in ("src", "benchmarks", "tests")}  #: what only the tests find


def runs_here(command: tuple[str, ...]) -> bool:
    """Whether a command is Snakemake, DVC or Python itself."""
    return command[0] in (*MODULES, "python", sys.executable) and "-c" not in command


def run(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code (a signal's number is negative) and all that a command says."""
    with tempfile.NamedTemporaryFile(prefix="output-") as output:
        process = SERVER.Process(target=_become, args=(command, folder, environment, output.name))
        process.start()
        process.join()
        return process.exitcode, Path(output.name).read_text()


def _become(command: tuple[str, ...], folder: Path, environment: dict[str, str], output: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    said = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    program, *arguments = command
    if program in MODULES:
        arguments = ["-m", program, *arguments]
    module = arguments.pop(0) == "-m"
    name, *sys.argv[1:] = arguments if module else command[1:]
    sys.argv[0] = name
    own = ["" if module else str(Path(name).parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = own + [path for path in sys.path if path not in PYTESTS]
    try:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
