"""kill -9 at exact moments, SIGTERM, and damaged or foreign resume files."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Project

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
    """Weights and records of the variant, timing fields aside."""
    found = {}
    for path in sorted([*project.folder.glob("results/**/*"), *project.folder.glob("checkpoints/**/*")]):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "run.json":
                content = json.dumps({k: v for k, v in json.loads(content).items() if k != "timing"}).encode()
            found[str(path.relative_to(project.folder))] = content
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("undisturbed") / "project")
    project.cli("fetch", "--data", "digits")
    project.cli(*TRAIN)
    return project


@pytest.fixture
def prepared(project, undisturbed):
    """A fresh project that has the data."""
    (project.folder / "data").symlink_to(undisturbed.folder / "data")
    return project


def kill(project, moment, count):
    script = Path(__file__).with_name("kill_at.py")
    process = project.start(sys.executable, str(script), moment, str(count), *TRAIN)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
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
