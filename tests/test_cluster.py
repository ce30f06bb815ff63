"""On a real SLURM cluster: whatever happens to jobs, the same command ends well, and with an undisturbed run's bytes.

    pytest -n 0 -m cluster --basetemp=/a/folder/that/every/node/sees

Accounts come from SBATCH_ACCOUNT; partitions from workflow/profiles/slurm/partitions.yaml. Without sbatch all is
skipped. Every trial adds a row to trials.csv in that folder. To try a lost node, which an ordinary user cannot make,
NODE_DOWN and NODE_UP hold commands that power a node off and on, in which NODE stands for its name.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import psutil
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
RULE = "train_resnet18_scratch"
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


def ended_well(trial, project, expected, process):
    """The workflow ended with exit code 0 and every checkpoint has the undisturbed run's bytes; what it said."""
    began = psutil.Process(process.pid).create_time()
    said, _ = process.communicate()
    seconds = round(time.time() - began)
    said += "".join(head.read_text() for head in project.folder.glob("head.log"))
    found = weights(project)
    differing = sum(found.get(name) != content for name, content in expected.items())
    submissions = said.count("has been submitted with SLURM jobid")
    table = project.folder.parents[1] / "trials.csv"
    if not table.exists():
        table.write_text("trial,exit_code,checkpoints,differing,submissions,seconds\n")
    with table.open("a") as rows:
        rows.write(f"{trial},{process.returncode},{len(expected)},{differing},{submissions},{seconds}\n")
    assert process.returncode == 0, said
    assert not differing
    return said


def jobs():
    return subprocess.run(MINE, capture_output=True, text=True, check=True).stdout.split()


def nodes_at_work():
    """Nodes that our jobs run on."""
    return subprocess.run([*MINE[:-1], "--format=%N", "--states=R"], capture_output=True, text=True).stdout.split()


def until(condition, seconds=300):
    """Wait until the condition holds; the value it had."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, "waited too long"
        time.sleep(1)
    return value


def at_work(project):
    """Whether a training is under way."""
    return list(project.folder.glob("work/**/progress.json"))


def test_a_study_on_the_cluster_is_the_local_one(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    ended_well("none", project, undisturbed, project.start("snakemake", *PROFILE))


def test_variants_may_share_a_job(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE, "--group-components", "train=3")
    said = ended_well("three variants in a job", project, undisturbed, workflow)
    assert said.count("has been submitted with SLURM jobid") == 1


def test_of_variants_that_share_a_job_one_may_fail(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    in_its_way = project.folder / "checkpoints/tiny/resnet18-scratch/qat-3bit"  # a file where a folder is to be
    in_its_way.parent.mkdir(parents=True)
    in_its_way.touch()
    project.run("snakemake", *PROFILE, "--group-components", "train=3", "--retries", "0", ok=False)
    assert len(list(project.folder.glob("work/**/run.json"))) == 6  # the others were trained all the same
    in_its_way.unlink()
    workflow = project.start("snakemake", *PROFILE, "--group-components", "train=3")
    ended_well("one of three in a job fails", project, undisturbed, workflow)
    logs = [file.read_text() for file in project.folder.glob("logs/tiny/train/resnet18-scratch/*.log")]
    assert sum(text.count("finished before, not in place yet") for text in logs) >= 6  # nothing was trained twice


def test_cancelled_jobs_go_on(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE)
    until(lambda: at_work(project))
    subprocess.run(["scancel", *jobs()], check=True)
    ended_well("all jobs cancelled", project, undisturbed, workflow)


@pytest.mark.skipif("NODE_DOWN" not in os.environ, reason="no command that powers off a node: NODE_DOWN, NODE_UP")
def test_jobs_of_a_lost_node_go_on(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE)
    until(lambda: at_work(project))
    node = nodes_at_work()[0]
    subprocess.run([*shlex.split(os.environ["NODE_DOWN"].replace("NODE", node))], check=True)
    try:
        ended_well("a node lost", project, undisturbed, workflow)
    finally:
        subprocess.run([*shlex.split(os.environ["NODE_UP"].replace("NODE", node))], check=True)


def test_a_job_at_its_time_limit_goes_on(tmp_path):
    local, project = made(tmp_path / "local", 400), made(tmp_path / "project", 400)  # more than a minute
    only = ["only=resnet18-scratch/baseline", "seeds=0"]
    local.snakemake("runs", config=" ".join(only))
    workflow = project.start("snakemake", *PROFILE, *only, "--set-resources", f"{RULE}:runtime=1")
    ended_well("a time limit of one minute", project, weights(local), workflow)
    assert list(project.folder.glob("logs/tiny/train/resnet18-scratch/baseline.*.log"))  # of the attempts that met it


def test_a_job_that_needs_more_memory_gets_it(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE, "--set-resources", f"{RULE}:mem_mb=attempt*350")
    said = ended_well("too little memory at first", project, undisturbed, workflow)
    killed = "exceeded (job )?memory limit|out.of.memory|oom.kill"  # by polling; by the kernel
    assert re.search(killed, said, re.IGNORECASE)


def test_jobs_of_a_killed_workflow_are_waited_for(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE)
    until(lambda: at_work(project))
    workflow.send_signal(signal.SIGKILL)
    workflow.communicate()
    left = jobs()
    assert left
    said = project.cli("status", "--study", "tiny")
    assert "left over by a workflow that is gone" in said
    assert any(f"scancel {job}" in said for job in left)
    ended_well("the main process killed", project, undisturbed, project.start("snakemake", *PROFILE))
    logs = [file.read_text() for file in project.folder.glob("logs/tiny/train/resnet18-scratch/*.log")]
    assert not any(": starting" in text for text in logs)  # waited for, or found whole


@pytest.mark.skipif(shutil.which("faketime") is None, reason="no faketime: clocks of nodes cannot be set apart")
def test_clocks_of_nodes_need_not_agree(tmp_path, undisturbed):
    """Two nodes whose clocks differ by 20 minutes, more than any expiry, want the same runs at the same time."""
    project, variant = made(tmp_path / "project"), "resnet18-scratch/qat-3bit"
    project.snakemake("data")
    train = ["python", "-m", "oscillations", "train", "--study", "tiny", "--only", variant]
    early = project.start("srun", "--ntasks=1", "faketime", "-f", "-10m", *train)
    until(lambda: at_work(project))
    (elsewhere,) = nodes_at_work()
    late = project.start("srun", "--ntasks=1", f"--exclude={elsewhere}", "faketime", "-f", "+10m", *train)
    expected = {name: content for name, content in undisturbed.items() if name.startswith(f"tiny/{variant}/")}
    assert len(expected) == 2
    said_early, _ = early.communicate()
    said_late = ended_well("clocks of two nodes 20 minutes apart", project, expected, late)
    assert early.returncode == 0 and "epoch" in said_early, said_early
    assert "waiting for process" in said_late and "epoch" not in said_late


def test_a_full_queue_is_waited_for(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    block = ["sbatch", "--parsable", "--output=/dev/null", "--exclusive", "--wrap", "sleep 60"]
    blockers = [subprocess.run(block, capture_output=True, text=True, check=True).stdout.strip() for _ in range(6)]
    try:
        ended_well("a full queue", project, undisturbed, project.start("snakemake", *PROFILE))
    finally:
        subprocess.run(["scancel", *blockers], check=False)


def test_jobs_of_a_killed_workflow_that_have_not_started_are_named(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    later = ["--set-resources", f"{RULE}:slurm_extra='--begin=now+1hour'"]
    workflow = project.start("snakemake", *PROFILE, *later)
    until(lambda: len(jobs()) == 3)
    waiting = jobs()
    workflow.send_signal(signal.SIGKILL)
    workflow.communicate()
    (command,) = re.findall("scancel .*", project.cli("status", "--study", "tiny"))
    assert sorted(command.split()[1:]) == sorted(waiting)
    project.run(*command.split())
    until(lambda: not jobs())
    ended_well("killed before its jobs start", project, undisturbed, project.start("snakemake", *PROFILE))


def test_the_main_process_may_be_a_job(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    head = ["sbatch", "--wait", "--output=head.log", "--wrap", shlex.join(["snakemake", *PROFILE])]
    ended_well("the main process in a job", project, undisturbed, project.start(*head))


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_the_main_process_outlives_a_terminal(tmp_path, undisturbed):
    """Started in a session of tmux that nobody is attached to."""
    project = made(tmp_path / "project")
    inside = f"{shlex.join(['snakemake', *PROFILE])} > head.log 2>&1; echo $? > code"
    session = f"tmux -L trial new-session -d {shlex.quote(inside)}"
    wait = "while [ ! -s code ]; do sleep 1; done; exit $(cat code)"
    ended_well("the main process in tmux", project, undisturbed, project.start("sh", "-ec", f"{session}; {wait}"))


def test_dvc_submits_the_same_jobs(tmp_path, undisturbed):
    project = made(tmp_path / "project")
    stage = {"cmd": "snakemake runs --config study=tiny", "outs": [{"checkpoints/tiny": {"persist": True}}]}
    (project.folder / "dvc.yaml").write_text(json.dumps({"stages": {"tiny": stage | {"deps": ["params/tiny.yaml"]}}}))
    project.run("dvc", "init", "--no-scm", "--quiet")
    dvc = project.start("env", "SNAKEMAKE_PROFILE=workflow/profiles/slurm", "dvc", "repro")
    ended_well("dvc repro", project, undisturbed, dvc)
    assert "up to date" in project.run("dvc", "status")


def test_jobs_that_ask_for_a_gpu_go_to_its_partition(tmp_path, undisturbed):
    nodes = subprocess.run(
        ["sinfo", "-h", "-p", "gpu", "-N", "-o", "%N"], capture_output=True, text=True
    ).stdout.split()
    if not nodes:
        pytest.skip("no partition named gpu")
    project = made(tmp_path / "project")
    workflow = project.start("snakemake", *PROFILE, "--set-resources", f"{RULE}:gpu=1")
    ended_well("jobs for a partition with GPUs", project, undisturbed, workflow)
    records = [json.loads(file.read_text()) for file in project.folder.glob("results/**/run.json")]
    assert {record["environment"]["slurm"]["node"] for record in records} <= set(nodes)
