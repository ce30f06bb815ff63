"""Only one process works on a run: the folder of unfinished work says who holds it.

Holders are numbered files. Whoever makes the next number, which a file system gives to one process alone, holds the
folder; the number before it is over, even if its process comes back. A holder is taken for dead if its process is
gone (seen from the same host), if SLURM has started its job anew on another host, or if its file has not been touched
for as long as :data:`EXPIRES`, by the clock of the one that waits: to decide, clocks of two hosts are never compared.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from threading import Event, Thread

from oscillations.core.errors import InputError
from oscillations.core.files import NoRoom, no_room, write_json

BEAT = 20.0  #: seconds between a holder's signs of life
EXPIRES = 300.0  #: seconds without one after which it is taken for dead; file systems may show a change a minute late
POLL = 2.0  #: seconds between two looks at a holder
PREFIX = "holder."
WORKFLOW = "OSCILLATIONS_WORKFLOW"  #: environment variable: the main process of the workflow that started a job


@dataclass(frozen=True)
class Holder:
    """A process, so that others can tell whether it still lives; empty strings are what is not known."""

    host: str = ""
    pid: int = 0
    started: str = ""  #: of the process, in ticks since ``boot``: numbers of processes are used again
    boot: str = ""  #: the host's boot and namespace of processes
    slurm_job: str = ""
    slurm_step: str = ""  #: of a job of one node: cluster, job and step
    workflow: str = ""  #: :attr:`process` of the workflow's main process
    since: str = ""
    ended: str = ""  #: when it gave the folder back

    @classmethod
    def present(cls) -> Holder:
        """This process."""
        return cls(
            socket.gethostname(), os.getpid(), _started(os.getpid()), _boot(), os.environ.get("SLURM_JOB_ID", ""),
            _slurm_step(), os.environ.get(WORKFLOW, ""), _now(),
        )  # fmt: skip

    @classmethod
    def read(cls, file: Path) -> Holder:
        """Of a file; nothing is known of one that is not written yet, or is gone."""
        try:
            return cls(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def over(self, other: Holder) -> bool:
        """Whether this process is seen to have ended, by process ``other``."""
        if self.ended:
            return True
        if self.slurm_step and self.slurm_step == other.slurm_step and self.host != other.host:
            return True  # such a step is at one place at a time: its job was started anew
        return self.seen_from(other) and _started(self.pid) != self.started

    def seen_from(self, other: Holder) -> bool:
        """Whether process ``other`` can see whether this one lives."""
        return self.host == other.host and bool(self.boot) and self.boot == other.boot

    @property
    def process(self) -> str:
        """Host, number and start of the process."""
        return f"{self.host} {self.pid} {self.started}"

    @property
    def stop_command(self) -> str:
        """What ends this process."""
        return f"scancel {self.slurm_job}" if self.slurm_job else f"kill {self.pid}  # on {self.host}"

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}" if self.host else "an unknown process"


def holder_of(folder: Path) -> tuple[Holder, float] | None:
    """Who holds a folder, and the seconds since its last sign of life; None if nobody does."""
    number, file = _newest(folder)
    if not number or (holder := Holder.read(file)).ended:
        return None
    with suppress(OSError):
        return holder, time.time() - file.stat().st_mtime
    return None


class Hold:
    """A folder that this process holds."""

    def __init__(self, folder: Path, number: int, holder: Holder):
        self.folder, self.number, self._holder = folder, number, holder
        self.file = _file(folder, number)

    def _mine(self) -> bool:
        """Whether nobody has taken the folder over; asked of the content, for numbers begin again in a new folder."""
        return Holder.read(_newest(self.folder)[1]) == self._holder

    def check(self) -> None:
        """Raise InputError if another process has taken the folder over: nothing may be written there any more."""
        if not self._mine():
            successor = Holder.read(_newest(self.folder)[1])
            raise InputError(f"{self.folder}: taken over by {successor}, while this process stood still")

    def beat(self) -> None:
        """Give a sign of life."""
        with suppress(OSError):  # of the file system, for a moment
            os.utime(self.file)

    def release(self) -> None:
        """Give the folder back; one in which there is no work is removed."""
        if not self._mine():
            return
        if all(file.name.startswith(PREFIX) for file in self.folder.iterdir()):
            for number in range(1, self.number + 1):  # a successor's is not among them
                _file(self.folder, number).unlink(missing_ok=True)
            remove_empty(self.folder)
        else:
            try:
                write_json(self.file, asdict(self._holder) | {"ended": _now()})
            except NoRoom:  # without a word of its end there must be nobody to wait for
                self.file.unlink(missing_ok=True)


def name_workflow() -> None:
    """Let the jobs that this process starts, on whatever host, know it."""
    os.environ.setdefault(WORKFLOW, Holder.present().process)


@contextmanager
def held(folders: Iterable[Path], waiting: Callable[[], None] = lambda: None) -> Iterator[list[Hold]]:
    """Hold folders, waiting for whoever holds them; ``waiting`` is called between two looks and may raise."""
    watch = Watch()
    with ExitStack() as stack:
        holds: list[Hold] = []
        for folder in sorted(folders):  # in one order, so that two processes never wait for each other
            watch.silence(folder)
        for folder in sorted(folders):
            holds.append(_acquired(folder, waiting, watch))
            stack.callback(holds[-1].release)
            if len(holds) == 1:
                stack.enter_context(_beating(holds))
        yield holds


class Watch:
    """For how long the holders of folders have given no sign of life, as seen from here."""

    def __init__(self) -> None:
        self._last: dict[Path, tuple[tuple[int, int], float]] = {}
        self._looked = time.monotonic()

    def silence(self, folder: Path) -> float:
        """Seconds, in which this process has looked all the time: while it stood still, nobody else could be seen."""
        sign, now = _sign(folder), time.monotonic()
        if now - self._looked > 3 * BEAT:
            self._last.clear()
        self._looked = now
        if self._last.get(folder, (None,))[0] != sign:
            self._last[folder] = sign, now
        return now - self._last[folder][1]


def _acquired(folder: Path, waiting: Callable[[], None], watch: Watch) -> Hold:
    """A folder, as soon as its holder has ended or gives no sign of life."""
    present, said = Holder.present(), None
    while True:
        number, newest = _newest(folder)
        holder = Holder.read(newest)
        silence = watch.silence(folder)
        if not number or holder.over(present) or silence > EXPIRES:
            hold = Hold(folder, number + 1, present)
            with suppress(FileNotFoundError):  # another has removed the folder
                _make(folder)
                with suppress(FileExistsError), hold.file.open("xb", buffering=0) as handle:  # else another was faster
                    _write(handle, present)
                    return hold
        elif said != holder:
            print(f"{folder}: waiting for {holder}", flush=True)
            said = holder
        waiting()
        time.sleep(POLL)


def _write(handle: FileIO, holder: Holder) -> None:
    """Into the file of a holder; without room for it there is none, or the next one would wait for nobody."""
    try:
        handle.write(json.dumps(asdict(holder)).encode())
    except OSError as error:
        Path(handle.name).unlink()
        if no_room(error):
            raise NoRoom(handle.name) from error
        raise


@contextmanager
def _beating(holds: list[Hold]) -> Iterator[None]:
    """Signs of life for all of a list that may grow."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            for hold in list(holds):
                hold.beat()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder}: cannot be made, for a file or a broken link is in its way") from None


def remove_empty(folder: Path) -> None:
    """Remove an empty folder of work, and those above it that are empty then."""
    with suppress(OSError):  # not empty: other runs are at work
        while folder.name:
            folder.rmdir()
            if folder.name == "work":
                break
            folder = folder.parent


def _file(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number}"


def _newest(folder: Path) -> tuple[int, Path]:
    """The highest number and its file; 0 if there is none."""
    with suppress(OSError):
        numbers = [file.name.removeprefix(PREFIX) for file in folder.iterdir() if file.name.startswith(PREFIX)]
        number = max((int(text) for text in numbers if text.isdecimal()), default=0)
        return number, _file(folder, number)
    return 0, _file(folder, 0)


def _sign(folder: Path) -> tuple[int, int]:
    """Changes with every new holder and every sign of life."""
    number, file = _newest(folder)
    with suppress(OSError):
        return number, file.stat().st_mtime_ns
    return number, 0


def _started(pid: int) -> str:
    """When a process started; empty if there is none. Where there is no /proc only whether there is one is known."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else others[18]
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is read
        if Path("/proc/self/stat").exists():
            return ""
    with suppress(OSError):
        os.kill(pid, 0)
        return "yes"
    return ""


def _slurm_step() -> str:
    """The step of SLURM that this process is in; empty outside of one, and in a job of several nodes."""
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
    whole = all(os.environ.get(name) for name in names) and os.environ.get("SLURM_NNODES") == "1"
    return "/".join(os.environ[name] for name in names) if whole else ""


def _boot() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return "unknown"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
