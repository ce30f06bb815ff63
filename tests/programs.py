"""Commands of the tests, forked from a process that has imported what they need.

The imports of Snakemake, torch and pandas take a process a second or two, and the tests start hundreds. A forked command
has a folder, an environment, a ``sys.path``, an output and a process of its own, and imports the source that these lead
to; so have the jobs that it starts, because its ``python`` asks the server, too. They share with all others
of their server what is imported already, the seed of hashes and the variables that Python reads at its start: two
sides that must agree whatever these are come from ``conftest.Project.start``, as does what a test signals from outside.

Run as a program this file is the server (one argument, the address) or ``python`` (the address, and its arguments).
"""

import array
import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ("snakemake.cli", "dvc.cli.parser", "dvc.repo", "torch", "torchvision", "pandas", "matplotlib.pyplot")
MODULES = ("snakemake", "dvc")  #: programs that are modules, too
FORKED = sys.platform == "linux"  # elsewhere libraries of the system do not live through it


def run(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code (a signal's number is negative) of a command that nobody disturbs, and all that it says."""
    import tempfile

    program, *arguments = command
    if program in MODULES:
        program, arguments = "python", ["-m", program, *arguments]
    with tempfile.TemporaryFile() as output:
        if FORKED and program in ("python", sys.executable) and _one_that_is_forked(arguments):
            address = _server()
            code = ask(address, arguments, folder, environment, [output.fileno()] * 2)
        else:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
        output.seek(0)
        return code, output.read().decode()


def _one_that_is_forked(arguments: list[str]) -> bool:
    return arguments[0] == "-m" or arguments[0].endswith(".py")


def ask(address: str, arguments: list[str], folder: Path | str, environment: dict[str, str], said: list[int]) -> int:
    """Let the server run ``python ARGUMENTS`` and wait for its exit code; ``said``: its standard output and error."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", said))])
        connection.sendall(json.dumps([arguments, str(folder), environment]).encode())
        connection.shutdown(socket.SHUT_WR)
        return int(connection.makefile().read())


@cache
def _server() -> str:
    """The address of this process's server; in its folder lies a ``python`` that asks it."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="programs-"))
    address = f"{folder}/address"
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} {address} "$@"\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen([sys.executable, __file__, address], env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout and server.stdout.readline() == "ready\n"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    return address


def serve(address: str) -> None:
    """Fork a process for every connection; it forks the command, waits for it, and says how it ended."""
    for name in IMPORTED:
        with suppress(ImportError):
            __import__(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _, said, _, _ = socket.recv_fds(connection, 1, 2)
            arguments, folder, environment = json.loads(connection.makefile().read())
            if (process := os.fork()) == 0:
                connection.close()
                _become(arguments, folder, environment, said)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            with suppress(BrokenPipeError):
                connection.sendall(str(code).encode())
            os._exit(0)
        connection.close()


def _become(arguments: list[str], folder: str, environment: dict[str, str], said: list[int]) -> None:
    """Be ``python ARGUMENTS`` (``-m MODULE ...`` or ``FILE.py ...``) in a folder."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for standard, own in enumerate(said, 1):
        os.dup2(own, standard)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(Path(sys.argv[1]).with_name("python"))  # Snakemake's jobs find it first
    module = arguments[0] == "-m"
    name, *sys.argv[1:] = arguments[1:] if module else arguments
    sys.argv[0] = name
    paths = ["." if module else Path(name).parent, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [str(Path(folder, path)) for path in paths] + INSTALLED
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
    if len(sys.argv) == 2:
        INSTALLED = sys.path[1:]
        serve(sys.argv[1])
    elif _one_that_is_forked(sys.argv[2:]):
        ended = ask(sys.argv[1], sys.argv[2:], Path.cwd(), dict(os.environ), [1, 2])
        if ended < 0:
            os.kill(os.getpid(), -ended)
        os._exit(ended)
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
