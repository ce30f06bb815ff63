"""On a real SLURM cluster: whatever happens to jobs, the same command ends well, and with an undisturbed run's bytes.

    pytest -n 0 -m cluster --basetemp=/a/folder/that/every/node/sees

Accounts come from SBATCH_ACCOUNT; partitions from workflow/profiles/slurm/partitions.yaml. Without sbatch all is
skipped. A lost node cannot be tried by an ordinary user: docs/workflow.md has the record of one.
"""

import shutil
import signal
import subprocess
import time

import pytest
from conftest import Project

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STUDY = """
study: tiny
title: for interruptions
note: for interruptions
published: none
data: digits
validation: 300
seeds: [0, 1]
training: {lr: 3.0e-3, batch_size: 64, epochs: EPOCHS, patience: EPOCHS}
experiments:
  resnet18-scratch:
    model: {name: resnet18, width: 8}
    setting: scratch
    methods: {baseline: , qat: {bits: 3}, osciquant: {bits: 3, lambda: 1}}
tables: {table1: [resnet18-scratch]}
"""
PROFILE = ["--workflow-profile", "workflow/profiles/slurm", "runs", "--config", "study=tiny"]
RULE = "train_resnet18-scratch"
MINE = ["squeue", "--me", "--noheader", "--format=%A"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch here: these trials need a SLURM cluster (docs/workflow.md)")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("sinfo does not answer: these trials need a SLURM cluster that runs (docs/workflow.md)")


def made(folder, epochs=10):
    project = Project(folder)
    (project.folder / "params/tiny.yaml").write_text(STUDY.replace("EPOCHS", str(epochs)))
    return project


def weights(project):
    folder = project.folder / "checkpoints"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = made(tmp_path_factory.mktemp("local") / "project")
    project.snakemake("runs")
    assert len(weights(project)) == 6
    return weights(project)


def jobs():
    return subprocess.run(MINE, capture_output=True, text=True, check=True).stdout.split()


def until(condition, seconds=300):
    """Wait until the condition holds; the value it had."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, "waited too long"
        time.sleep(1)
    return value


def at_work(project):
    """Whether a training is well under way."""
    return list(project.folder.glob("work/**/resume"))


def test_a_study_on_the_cluster_is_the_local_one(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    project.run("snakemake", *PROFILE)
    assert weights(project) == undisturbed


def test_variants_may_share_a_job(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    said = project.run("snakemake", *PROFILE, "--group-components", "train=3")
    assert weights(project) == undisturbed
    assert said.count("has been submitted with SLURM jobid") == 1


def test_of_variants_that_share_a_job_one_may_fail(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    (project.folder / "checkpoints/tiny/resnet18-scratch").mkdir(parents=True)
    (project.folder / "checkpoints/tiny/resnet18-scratch/qat-3bit").touch()  # where a folder is to be
    project.run("snakemake", *PROFILE, "--group-components", "train=3", "--retries", "0", ok=False)
    (project.folder / "checkpoints/tiny/resnet18-scratch/qat-3bit").unlink()
    project.run("snakemake", *PROFILE, "--group-components", "train=3")
    assert weights(project) == undisturbed
    logs = [file.read_text() for file in project.folder.glob("logs/tiny/train/resnet18-scratch/*.log")]
    assert sum(text.count(": starting") for text in logs) == 6  # nothing was trained twice


def test_cancelled_jobs_go_on(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE)
    until(lambda: at_work(project))
    subprocess.run(["scancel", *jobs()], check=True)
    said, _ = workflow.communicate()
    assert workflow.returncode == 0, said
    assert weights(project) == undisturbed


def test_a_job_at_its_time_limit_goes_on(tmp_path):
    local, project = made(tmp_path / "local", 120), made(tmp_path / "project", 120)
    only = "only=resnet18-scratch/baseline seeds=0".split()
    local.snakemake("runs", config=" ".join(only))
    project.run("snakemake", *PROFILE, *only, "--set-resources", f"{RULE}:runtime=1")
    assert weights(project) == weights(local)
    kept = list(project.folder.glob("logs/tiny/train/resnet18-scratch/baseline.*.log"))
    assert kept  # of the attempts that met the limit


def test_a_job_that_needs_more_memory_gets_it(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    said = project.run("snakemake", *PROFILE, "--set-resources", f"{RULE}:mem_mb=attempt*350")
    assert weights(project) == undisturbed
    assert "OUT_OF_MEMORY" in said


def test_jobs_of_a_killed_workflow_are_waited_for(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE)
    until(lambda: at_work(project))
    workflow.send_signal(signal.SIGKILL)
    workflow.communicate()
    assert jobs()
    said = project.cli("status", "--study", "tiny")
    assert "left over by a workflow that is gone" in said and f"scancel {jobs()[0]}" in said
    project.run("snakemake", "--unlock", "--config", "study=tiny")
    project.run("snakemake", *PROFILE)
    assert weights(project) == undisturbed
    logs = [file.read_text() for file in project.folder.glob("logs/tiny/train/resnet18-scratch/*.log")]
    assert any("waiting for process" in text for text in logs)


def test_a_full_queue_is_waited_for(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    blockers = [
        subprocess.run(["sbatch", "--parsable", "--output=/dev/null", "--exclusive", "--wrap", "sleep 60"],
                       capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(6)
    ]  # fmt: skip
    try:
        project.run("snakemake", *PROFILE)
    finally:
        subprocess.run(["scancel", *blockers], check=False)
    assert weights(project) == undisturbed
