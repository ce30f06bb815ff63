"""Commands of the tests, forked from a process that has imported what they need.

The imports of Snakemake, torch and pandas take a process a second or two, and the tests start hundreds. A forked command
has a folder, an environment, a ``sys.path``, an output and a process of its own, and imports the source that these lead
to; so have the commands that it starts, because its ``python`` and ``snakemake`` ask the server, too. They share with
all others of their server what is imported already, the seed of hashes and the variables that Python reads at its
start: two sides that must agree whatever these are come from ``conftest.Project.start``, as does what a test signals
from outside.

Run as a program this file is the server (one argument, its address) or ``python`` (the address, and its arguments).
"""

import atexit
import json
import os
import runpy
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

IMPORTED = (
    "snakemake.cli", "snakemake.report.html_reporter", "snakemake.storage", "dvc.cli.parser", "dvc.repo", "dvc.repo.metrics",
    "dvc.repo.plots", "dulwich.worktree", "torch", "torchvision", "safetensors.torch", "pydantic.dataclasses", "pandas",
    "matplotlib.pyplot", "seaborn",
)  # fmt: skip
MODULES = ("snakemake", "dvc")  #: programs that are modules, too
FORKED = hasattr(os, "pidfd_open")  # Linux; elsewhere libraries of the system do not live through it


def run(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code (a signal's number is negative) of a command that nobody disturbs, and all that it says."""
    program, *arguments = command
    if program in MODULES:
        program, arguments = "python", ["-m", program, *arguments]
    with tempfile.TemporaryFile() as output:
        if FORKED and program in ("python", sys.executable) and _can_be_forked(arguments):
            code = ask(_server(), arguments, folder, environment, output.fileno(), output.fileno())
        else:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
        output.seek(0)
        return code, output.read().decode()


def _can_be_forked(arguments: list[str]) -> bool:
    return arguments[0] == "-m" or arguments[0].endswith(".py")


def ask(address: str, arguments: list[str], folder: Path, environment: dict[str, str], *said: int) -> int:
    """Have the server run ``python ARGUMENTS``, and wait for its exit code; ``said``: its standard output and error."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"-"], said)
        connection.sendall(json.dumps([arguments, str(folder), environment]).encode())
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(16))


@cache
def _server() -> str:
    """The address of this process's server, which ends with it; beside it lie programs that ask it."""
    folder = Path(tempfile.mkdtemp(prefix="programs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"{folder}/address"
    for program, module in {"python": "", **{name: f"-m {name}" for name in MODULES}}.items():
        text = f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{address}" {module} "$@"\n'
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, __file__, address], env=environment, text=True, **pipes)
    assert server.stdout.readline() == "ready\n"
    atexit.register(server.communicate)
    return address


def serve(address: str) -> None:
    """Fork a process for every request and say how it ended, until who started this has ended."""
    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("ready", flush=True)
    with selectors.DefaultSelector() as events:
        events.register(sys.stdin, selectors.EVENT_READ)
        events.register(listening, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listening:
                    process, connection = _forked(listening, Path(address).parent)
                    events.register(os.pidfd_open(process), selectors.EVENT_READ, (process, connection))
                else:
                    events.unregister(key.fileobj)
                    os.close(key.fileobj)
                    _say_how_it_ended(*key.data)


def _forked(listening: socket.socket, programs: Path) -> tuple[int, socket.socket]:
    """The process of a request that waits, and who wants to know of its end."""
    connection, _ = listening.accept()
    _, said, _, _ = socket.recv_fds(connection, 1, 2)
    request = json.loads(connection.makefile().read())
    if (process := os.fork()) == 0:
        _become(*request, said, programs)
    for descriptor in said:
        os.close(descriptor)
    return process, connection


def _say_how_it_ended(process: int, connection: socket.socket) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with connection, suppress(BrokenPipeError):
        connection.sendall(str(code).encode())


def _become(arguments: list[str], folder: str, environment: dict[str, str], said: list[int], programs: Path) -> None:
    """Be ``python ARGUMENTS`` (``-m MODULE ...`` or ``FILE.py ...``) in a folder, whose own programs are these."""
    for standard, own in enumerate([os.open(os.devnull, os.O_RDONLY), *said]):
        os.dup2(own, standard)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, PATH=f"{programs}:{environment['PATH']}")
    sys.executable = str(programs / "python")  # beside which Snakemake's jobs look first
    module = arguments[0] == "-m"
    name, *sys.argv[1:] = arguments[1:] if module else arguments
    sys.argv[0] = name
    own = ["." if module else Path(name).parent, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [str(Path(folder, path)) for path in own] + sys.path[1:]
    code = 0
    try:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    address, *arguments = sys.argv[1:]
    if not arguments:
        serve(address)
    elif _can_be_forked(arguments):
        code = ask(address, arguments, Path.cwd(), dict(os.environ), 1, 2)
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    else:
        os.execv(sys.executable, [sys.executable, *arguments])
