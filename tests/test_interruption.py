"""kill -9 at exact moments, SIGTERM, a full disk, and damaged or foreign resume files."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import UNDRAWN, Project
from safetensors import SafetensorError
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from oscillations.cli import main
from oscillations.core import files
from oscillations.core.files import SEAL, NoRoom, replacing
from oscillations.jobs import export
from oscillations.jobs import train as jobs
from oscillations.posttraining import _measurement
from oscillations.records.sources import REMEMBERED
from oscillations.report.findings import BEGIN, END

pytestmark = pytest.mark.slow

VARIANT = "mlp5-scratch/osciquant-3bit"
TRAIN = ["train", "--study", "params/tiny.yaml", "--only", VARIANT, "--save-every", "0"]
# 18 steps and 5 evaluations an epoch, 3 epochs, 2 seeds; a resume file after every step
MOMENTS = [
    ("step", 1), ("step", 30), ("evaluation", 3), ("evaluation", 12), ("write", 1), ("write", 20), ("write", 41),
    ("write", 60), ("checkpoint", 1), ("publish", 3),
]  # fmt: skip
AFTER_FIRST_SEED = [("step", 75), ("evaluation", 18), ("checkpoint", 2)]


def contents(project):
    """Weights and records of the variant, but for times and the hash of a record, which is of its times, too."""
    found = {}
    for path in sorted([*project.folder.glob("results/**/*"), *project.folder.glob("checkpoints/**/*")]):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "run.json":
                record = {key: value for key, value in json.loads(content).items() if key not in ("timing", SEAL)}
                del record["environment"]["git"]  # of the source: the project's, or this checkout's
                content = json.dumps(record).encode()
            found[str(path.relative_to(project.folder))] = content
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("undisturbed") / "project")
    project.cli("fetch", "--data", "digits")
    project.cli_apart(*TRAIN)
    return project


@pytest.fixture
def prepared(project, undisturbed):
    """A fresh project that has the data."""
    (project.folder / "data").symlink_to(undisturbed.folder / "data")
    return project


def kill(project, moment, count):
    script = Path(__file__).with_name("kill_at.py")
    code, output = project.finish(sys.executable, str(script), moment, str(count), *TRAIN)
    assert code == -signal.SIGKILL, output
    return output


@pytest.mark.parametrize(("moment", "count"), MOMENTS + AFTER_FIRST_SEED)
def test_killed_and_run_again_equals_undisturbed(prepared, undisturbed, moment, count):
    kill(prepared, moment, count)
    again = prepared.cli(*TRAIN)
    if (moment, count) in AFTER_FIRST_SEED:
        assert f"{VARIANT}/seed0: finished before" in again
        assert f"{VARIANT}/seed0: epoch" not in again
    if moment == "publish":
        assert "epoch" not in again, "finished seeds must not be trained again"
    assert contents(prepared) == contents(undisturbed)


def test_killed_again_and_again(prepared, undisturbed):
    for moment, count in [("write", 15), ("step", 12), ("write", 9), ("evaluation", 4), ("write", 26)]:
        kill(prepared, moment, count)
    assert "resuming" in prepared.cli(*TRAIN)
    assert contents(prepared) == contents(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(prepared, undisturbed, number):
    command = [part if part != "0" else "1000" for part in TRAIN]  # only the signal saves
    short, endless = "epochs: 3, patience: 5", "epochs: 99999, patience: 99999"  # only the signal ends it
    prepared.edit("params/tiny.yaml", short, endless)
    process = prepared.start(sys.executable, "-m", "oscillations", *command)
    log = prepared.folder / "work/tiny" / VARIANT / "seed0/progress.json"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.exists(), "it has not begun to train"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "saved in epoch" in output
    prepared.edit("params/tiny.yaml", endless, short)
    again = prepared.cli(*TRAIN)
    assert "of another recipe, version, data or device; starting again" in again
    assert contents(prepared) == contents(undisturbed)


def test_time_that_is_up_costs_a_run_nothing(prepared, undisturbed):
    """GNU timeout: what it ends is saved, and goes on in the time that it has next."""
    if shutil.which("timeout") is None:
        pytest.skip("needs timeout, of GNU coreutils")
    short, endless = "epochs: 3, patience: 5", "epochs: 99999, patience: 99999"
    prepared.edit("params/tiny.yaml", short, endless)
    said = ""
    for seconds in (4, 6, 12, 24, 48):  # a slow machine takes some to begin
        process = prepared.start("timeout", str(seconds), sys.executable, "-m", "oscillations", *TRAIN)
        output, _ = process.communicate()
        assert process.returncode in (124, -signal.SIGTERM), output
        said += output
        if "resuming in epoch" in said and "saved in epoch" in output:
            break
    assert "resuming in epoch" in said and said.count("saved in epoch") >= 2
    prepared.edit("params/tiny.yaml", endless, short)
    prepared.cli(*TRAIN)
    assert contents(prepared) == contents(undisturbed)


SEVERAL = ["baseline", "qat-3bit", "osciquant-3bit"]  # with both seeds 36 steps and 10 evaluations, all with a loss
IN_TURN = ["train", "--study", "params/tiny.yaml", "--only", ",".join(f"mlp5-scratch/{name}" for name in SEVERAL)]


def several_variants(project, undisturbed):
    (project.folder / "data").symlink_to(undisturbed.folder / "data")
    project.edit("params/tiny.yaml", "epochs: 3", "epochs: 1")
    return project


@pytest.fixture(scope="module")
def several(undisturbed):
    """One run after the other."""
    project = several_variants(Project(undisturbed.folder.with_name("several")), undisturbed)
    project.cli(*IN_TURN)
    return contents(project)


@pytest.mark.parametrize(
    ("moment", "count", "then"),
    [("step", 36 + 10 + 21, "resuming in epoch 1 after step 11"), ("evaluation", 10, "starting")],
    ids=["in the second", "as the first ends"],
)
def test_time_that_is_up_among_several_variants(project, undisturbed, several, moment, count, then):
    """What has ended is in place, what is at work is saved, what comes after has not begun."""
    several_variants(project, undisturbed)
    command, script = [*IN_TURN, "--at-once", "2"], Path(__file__).with_name("kill_at.py")
    code, output = project.finish(sys.executable, str(script), f"{moment}:SIGTERM", str(count), *command)
    assert code == 143, output
    assert contents(project) == {file: content for file, content in several.items() if SEVERAL[0] in file}
    assert not list(project.folder.glob(f"work/tiny/*/{SEVERAL[2]}"))
    again = project.cli(*command).splitlines()
    for name, begins in zip(SEVERAL, ("kept", then, "starting")):
        seeds = [f"mlp5-scratch/{name}/seed{seed}: {begins}" for seed in (0, 1)]
        assert [line for line in again if name in line][:2] == seeds
    assert contents(project) == several


def test_a_damaged_resume_file_starts_again_and_says_so(prepared, undisturbed):
    kill(prepared, "step", 30)
    file = prepared.folder / "work/tiny" / VARIANT / "seed0/resume"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert f"{VARIANT}/seed0/resume is damaged; starting again" in prepared.cli(*TRAIN)
    assert contents(prepared) == contents(undisturbed)


def test_a_checkpoint_of_another_run_is_refused(undisturbed, prepared):
    prepared.cli(*TRAIN)
    folder = prepared.folder / "checkpoints/tiny" / VARIANT
    (folder / "seed0.safetensors").write_bytes((folder / "seed1.safetensors").read_bytes())
    output = prepared.cli("evaluate", "--study", "params/tiny.yaml", "--experiment", "mlp5-scratch", ok=False)
    assert "seed0.safetensors: missing, or not the checkpoint that" in output
    assert "error: " in output


ROOM = "no room left to write it; make room and give the same command again"


def fills(function, count, error, place=0):
    """``function``, which has room for less than its COUNT-th file, argument number ``place``, and for none after it."""
    calls = 0

    def patched(*arguments):
        nonlocal calls
        calls += 1
        result = function(*arguments)
        if calls >= count:
            file = Path(arguments[place])
            with file.open("r+b") as half:
                half.truncate(file.stat().st_size // 2)
            raise error
        return result

    return patched


FULL = OSError(errno.ENOSPC, "No space left on device")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: no device that is always full")
QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded")
IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
NO_ROOM = [
    (Path, "write_bytes", 1, FULL, 0), (Path, "write_bytes", 20, QUOTA, 0), (Path, "write_bytes", 50, FULL, 0),
    (jobs, "save_file", 1, IN_RUST, 1), (jobs, "save_file", 2, IN_RUST, 1), (shutil, "copyfile", 1, FULL, 1),
    (shutil, "copyfile", 7, QUOTA, 1),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "count", "error", "place"), NO_ROOM)
def test_a_full_disk_loses_nothing_that_was_saved(
    prepared, undisturbed, monkeypatch, capsys, module, name, count, error, place
):
    monkeypatch.chdir(prepared.folder)
    with monkeypatch.context() as full:
        full.setattr(module, name, fills(getattr(module, name), count, error, place))
        assert main(TRAIN) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith("error: ") and ROOM in said
    assert not list(prepared.folder.glob("*/**/.*.part"))
    assert main(TRAIN) == 0
    again = capsys.readouterr().out
    if name == "write_bytes" and count == 1:
        assert f"{VARIANT}/seed0: starting" in again
    elif name == "copyfile":
        assert ": epoch" not in again, "finished seeds must not be trained again"
    else:
        assert "resuming in epoch" in again
    assert contents(prepared) == contents(undisturbed)


EVERYTHING = """\
figures:
  figure7: {panels: [mlp5-scratch/osciquant-3bit]}
  figure-film-mlp5: {layer: fc2.weight, panels: [mlp5-scratch/osciquant-3bit]}
posttraining: {after: {of: [mlp5-scratch/osciquant-3bit], bits: [3], methods: {adaround: {iterations: 2}}}}
exports: {mlp5: {of: [mlp5-scratch/osciquant-3bit], seeds: [0], bits: [3]}}
toy_regression: {seeds: [0], epochs: 1}
"""
WRITING = [  # all that write but train, above, certify, and report, which is several of these; each needs those before it
    "fetch", "weights --name torchvision/squeezenet1_1 --source squeezenet.pth", "fetch-weights --from {clone}",
    "evaluate --experiment mlp5-scratch", "collect", "oscillations", "tables", "figures", "films", "claims", "findings",
    "findings --readme README.md", "site", "landing", "schema", "posttrain --name after", "toy",
    f"export --run {VARIANT}/seed0", f"export --run {VARIANT}/seed0 --format torch", "export --name mlp5", "pack",
]  # fmt: skip
STRIDE = {"tables": 9, "figures": 7, "export --name mlp5": 9}  #: of many writes that are alike not all are tried


def no_room_from(count):
    """``Path.with_name``: parts of files, of which the COUNT-th and all after it lie on a disk that is full."""
    with_name, number = Path.with_name, itertools.count(1)

    def patched(path, name):
        part = with_name(path, name)
        if name.endswith(".part") and next(number) >= count:
            part.symlink_to("/dev/full")
        return part

    return patched


def in_rust(function):
    """``function`` of safetensors, which would put a file in the place of the link to the full disk."""

    def patched(tensors, file, **keywords):
        if Path(file).is_symlink():
            raise IN_RUST
        return function(tensors, file, **keywords)

    return patched


def files_of(folder):
    """Content by name, of all but unfinished work."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "work" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@needs_full
def test_a_full_disk_at_any_write_of_every_other_command(undisturbed, tmp_path, monkeypatch, capsys):
    """One sentence that names the file, nothing half written, and the same command makes the same bytes."""
    for module in (safetensors.torch, safetensors.numpy):
        monkeypatch.setattr(module, "serialize_file", in_rust(module.serialize_file))
    monkeypatch.setattr(export, "_latency", lambda *_: 1.0)  # seconds are never the same
    monkeypatch.setattr(_measurement, "time", SimpleNamespace(monotonic=lambda: 0.0))
    roomy, full, weights = tmp_path / "roomy", tmp_path / "full", squeezenet1_1().state_dict()
    for folder in (roomy, full):
        for name in ("params", "docs", "benchmarks"):
            shutil.copytree(undisturbed.folder / name, folder / name)
        (folder / "params/tiny.yaml").write_text(UNDRAWN + EVERYTHING)
        (folder / "README.md").write_text(f"{BEGIN}{END}\n")
        torch.save(weights, folder / "squeezenet.pth")
    for command in WRITING:
        arguments = [*command.format(clone=undisturbed.folder).split(), "--study", "params/tiny.yaml"]
        monkeypatch.chdir(roomy)
        assert main(arguments) == 0
        whole = files_of(roomy)
        monkeypatch.chdir(full)
        before = files_of(full)
        for count in itertools.count(1, STRIDE.get(command, 1)):
            capsys.readouterr()
            with monkeypatch.context() as context:
                context.setattr(Path, "with_name", no_room_from(count))
                code = main(arguments)
            if code == 0:
                break
            said = capsys.readouterr().err
            assert code == 2 and re.fullmatch(rf"error: \S+(?<!\.part): {ROOM}.*\n", said), (command, said)
            assert files_of(full).items() <= before.items() | whole.items(), command
            assert not list(full.rglob(".*.part")), command
        assert count > 1, f"{command} writes nothing"
        assert files_of(full) == whole, command


def test_a_temporary_file_that_there_is_no_room_for(undisturbed, prepared, monkeypatch, capsys):
    def full(*_):
        raise FULL

    monkeypatch.chdir(prepared.folder)
    fetch = ["fetch-weights", "--study", "params/tiny.yaml", "--from", str(undisturbed.folder)]
    with monkeypatch.context() as context:
        context.setattr(shutil, "copyfileobj", full)
        assert main(fetch) == 2
    assert capsys.readouterr().err.startswith(f"error: a temporary file, or what is printed: {ROOM}")
    assert main(fetch) == 0
    assert contents(prepared) == contents(undisturbed)


@needs_full
def test_what_is_remembered_of_the_source_needs_no_room(prepared):
    """Hashes, which are written as the process ends."""
    remembered = prepared.folder / "src/oscillations" / REMEMBERED
    remembered.unlink()
    remembered.with_name(f".{remembered.name}.part").symlink_to("/dev/full")
    assert "Traceback" not in prepared.cli("check", "--study", "params/tiny.yaml")
    assert not remembered.exists()


def test_a_log_without_room_ends_in_order(prepared, monkeypatch):
    """What cannot even be printed is no traceback, and no success."""

    class Full:
        def write(self, _text):
            raise FULL

        def flush(self):
            pass

        def fileno(self):
            raise FULL

    monkeypatch.chdir(prepared.folder)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Full())
    assert main(TRAIN) == 2


@pytest.fixture
def small(prepared, monkeypatch):
    """Mounts a small file system on a folder, of the project if it is no whole path; once more gives it another size."""
    mounted = []

    def mount(folder, kilobytes):
        path = prepared.folder / folder
        again = ["-o", f"remount,size={kilobytes}k"] if path in mounted else []
        path.mkdir(exist_ok=True)
        options = again or ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none"]
        done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs to mount a tmpfs, as root: {done.stderr.strip()}")
        mounted.append(path)

    if not shutil.which("mount"):
        pytest.skip("needs the program mount")
    monkeypatch.chdir(prepared.folder)
    yield mount
    for path in set(mounted):
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize(
    ("folder", "kilobytes"),
    [("work", 4), ("work", 16), ("work", 96), ("work", 128), ("results", 4), ("results", 16), ("checkpoints", 4),
     ("checkpoints", 12)],
)  # fmt: skip
def test_a_small_file_system_that_gets_larger(prepared, undisturbed, small, capsys, folder, kilobytes):
    small(folder, kilobytes)
    assert main(TRAIN) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith(f"error: {folder}/") and ROOM in said
    small(folder, 50_000)
    assert main(TRAIN) == 0
    assert contents(prepared) == contents(undisturbed)


def test_a_workflow_on_a_disk_that_gets_larger(undisturbed, small, tmp_path):
    """For Snakemake's own files, of which it speaks in its own words, the data, a part of the training, all."""
    disk = tmp_path / "disk"
    small(disk, 50_000)
    project = Project(disk / "project")
    for kilobytes in (8, 80, 200):
        small(disk, used(disk) + kilobytes)
        said = project.snakemake("runs", config=f"only={VARIANT}", ok=False)
        assert ROOM in said or "No space left on device" in said
        assert not list(project.folder.rglob(".*.part"))
    small(disk, 50_000)
    project.snakemake("runs", config=f"only={VARIANT}")
    made, expected = contents(project), contents(undisturbed)
    assert {name: made.get(name) for name in expected} == expected


def used(disk):
    """Kilobytes."""
    about = os.statvfs(disk)
    return (about.f_blocks - about.f_bfree) * about.f_frsize // 1024


def test_safetensors_has_words_of_its_own_for_a_full_disk(prepared, small):
    small("work", 8)
    with pytest.raises(NoRoom, match=r"^work/x: no room"), replacing(Path("work/x")) as part:
        save_file({"x": torch.zeros(10_000)}, part)
    assert not list(Path("work").iterdir())


def test_what_is_no_full_disk_is_not_called_one(tmp_path):
    with pytest.raises(PermissionError), replacing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not files.no_room(SafetensorError("invalid header (os error 2)"))
