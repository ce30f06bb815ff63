"""Who holds a run: processes that wait, die, stand still, or are started again by SLURM."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest
from conftest import Project

from oscillations.core.errors import InputError
from oscillations.jobs import holders, status, workflows
from oscillations.jobs.holders import Holder, held, holder_of

ELSEWHERE = Holder(host="n7", pid=4711, started="1", boot="another", since="yesterday")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(holders, "POLL", 0.01)
    monkeypatch.setattr(holders, "BEAT", 5.0)
    monkeypatch.setattr(holders, "EXPIRES", 0.5)


def holding(folder, holder, number=1):
    """Let another process hold a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"holder.{number}"
    file.write_text(json.dumps(asdict(holder)))
    return file


def in_a_step(monkeypatch, cluster="lab", step="0", nodes="1"):
    """As in step 0 of SLURM job 12."""
    values = {"CLUSTER_NAME": cluster, "JOB_ID": "12", "STEP_ID": step, "NNODES": nodes}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_folder_is_held_and_given_back(tmp_path):
    folder = tmp_path / "work" / "run"
    with held([folder]) as (hold,):
        holder, _ = holder_of(folder)
        assert (holder.pid, holder.host) == (os.getpid(), Holder.present().host)
        (folder / "resume").touch()
        hold.check()
    assert holder_of(folder) is None
    with held([folder]) as (hold,):
        assert hold.number == 2  # numbers are not used again while there is work


def test_of_a_folder_in_which_nothing_was_done_nothing_is_left(tmp_path):
    with held([tmp_path / "work/study/experiment/variant/seed0"]):
        pass
    assert not (tmp_path / "work/study").exists()


def test_whoever_comes_second_waits_and_may_leave(tmp_path, capsys):
    holding(tmp_path, replace(ELSEWHERE, slurm_job="12"))

    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), held([tmp_path], leave):
        raise AssertionError("held by two")
    assert "waiting for process 4711 on n7, SLURM job 12, since yesterday" in capsys.readouterr().out


@pytest.mark.parametrize("offset", [-1e6, 0, 1e6], ids=["clock behind", "same clock", "clock ahead"])
def test_a_silent_holder_on_another_host_is_taken_for_dead_by_the_clock_of_the_one_that_waits(tmp_path, offset):
    file = holding(tmp_path, ELSEWHERE)
    os.utime(file, (time.time() + offset,) * 2)
    started = time.monotonic()
    with held([tmp_path]) as (hold,):
        assert time.monotonic() - started >= 0.5
        assert hold.number == 2


def test_silence_of_several_holders_counts_at_once(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(holders.time, "monotonic", lambda: now)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        holding(folder, ELSEWHERE)

    def wait():
        nonlocal now
        now += 0.2

    with held(folders, wait):
        assert now == pytest.approx(0.6)  # the first look after half a second


@pytest.mark.parametrize(
    "other",
    [
        {"nodes": "2"},  # a job of several nodes may train on each
        {"step": ""},  # the shell of an allocation, on another host than its steps
        {"cluster": "another"},  # jobs are numbered by cluster
    ],
    ids=["several nodes", "no step", "another cluster"],
)
def test_a_job_of_the_same_number_may_be_another_process(monkeypatch, other):
    in_a_step(monkeypatch)
    holder = replace(Holder.present(), host="n7", boot="another")
    assert holder.over(Holder.present())
    in_a_step(monkeypatch, **other)
    assert not holder.over(Holder.present())


@pytest.mark.parametrize(
    "other", [{"boot": "0000 pid:[1]"}, {"boot": ""}], ids=["another host of this name", "unknown"]
)
def test_what_cannot_be_seen_is_given_time(tmp_path, other):
    holding(tmp_path, replace(Holder.present(), pid=2**22 + 1, **other))
    started = time.monotonic()
    with held([tmp_path]):
        assert time.monotonic() - started >= 0.5


def test_while_a_process_stands_still_itself_it_sees_no_silence(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(holders.time, "monotonic", lambda: now)
    holding(tmp_path, ELSEWHERE)
    watch = holders.Watch()
    assert watch.silence(tmp_path) == 0
    now = 0.1
    assert watch.silence(tmp_path) == pytest.approx(0.1)
    now = 1000.0  # a file server that hung, say
    assert watch.silence(tmp_path) == 0


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "work").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a broken link is in its way"), held([tmp_path / "work/run"]):
        pass


def test_a_folder_made_anew_is_not_the_one_that_was_held(tmp_path):
    """Its numbers begin again: what stood still while its run was finished and cleared away may not go on."""
    with held([tmp_path / "run"]) as (hold,):
        hold.file.unlink()
        with pytest.raises(InputError, match="taken over"):
            hold.check()
        holding(tmp_path / "run", ELSEWHERE)
        with pytest.raises(InputError, match="taken over by process 4711"):
            hold.check()
    assert Holder.read(tmp_path / "run/holder.1") == ELSEWHERE  # nor is another's given back


def test_a_holder_that_gives_signs_of_life_is_waited_for(tmp_path):
    file = holding(tmp_path, ELSEWHERE)
    looks = 0

    def beat():
        nonlocal looks
        looks += 1
        os.utime(file, (looks, looks))
        if looks == 100:  # twice as long as silence would be borne
            file.write_text(json.dumps(asdict(replace(ELSEWHERE, ended="now"))))

    with held([tmp_path], beat):
        assert looks == 100


@pytest.mark.parametrize(
    "other",
    [
        {"pid": 2**22 + 1},  # no process has this number
        {"started": "1"},  # its number is another process's now
        {"host": "n7", "boot": "another", "slurm_step": "lab/12/0"},  # SLURM runs it at one place at a time
    ],
    ids=["gone", "number used again", "requeued"],
)
def test_a_holder_that_is_seen_to_be_dead_is_not_waited_for(tmp_path, monkeypatch, other):
    in_a_step(monkeypatch)
    holding(tmp_path, replace(Holder.present(), **({"slurm_step": ""} | other)))

    def wait():
        raise AssertionError("waited")

    with held([tmp_path], wait) as (hold,):
        assert hold.number == 2


def test_a_process_that_was_taken_over_may_not_write(tmp_path):
    with held([tmp_path / "run"]) as (hold,):
        holding(tmp_path / "run", ELSEWHERE, 2)
        with pytest.raises(InputError, match="taken over by process 4711 on n7"):
            hold.check()
    assert Holder.read(tmp_path / "run/holder.2") == ELSEWHERE  # nor give back what is another's


def test_a_holder_whose_file_is_not_written_yet_is_given_time(tmp_path):
    (tmp_path / "holder.1").touch()
    started = time.monotonic()
    with held([tmp_path]):
        assert time.monotonic() - started >= 0.5


def contend(folder, inside, done):
    """Take the folder, be alone in it for a moment, and die without giving it back."""
    with held([folder]):
        inside.mkdir()  # fails if another is in it
        time.sleep(0.02)
        inside.rmdir()
        (done / str(os.getpid())).touch()
        os._exit(0)


def test_of_many_processes_one_at_a_time_takes_over_from_a_dead_one(tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/resume").touch()
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "run", tmp_path / "inside", tmp_path / "done")
    processes = [context.Process(target=contend, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(list((tmp_path / "done").iterdir())) == 8


def test_status_names_who_holds_what_and_what_ends_it(folder, capsys, monkeypatch):
    monkeypatch.setattr(status, "EXPIRES", 100)
    gone = f"{Holder.present().host} {2**22 + 1} 1"
    file = holding(folder / "work/tiny/mlp5-scratch/qat-3bit/seed0", replace(ELSEWHERE, slurm_job="12", workflow=gone))
    os.utime(file, (time.time() - 600,) * 2)
    holding(folder / "work/tiny/evaluate/mlp5-scratch", ELSEWHERE)
    holding(folder / "work/tiny/posttraining/entry", replace(ELSEWHERE, ended="today"))
    holding(folder / "work/another/evaluate/mlp5-scratch", ELSEWHERE)
    status.print_holders("tiny")
    assert capsys.readouterr().out.splitlines() == [
        "  held: evaluate/mlp5-scratch by process 4711 on n7, since yesterday: at work",
        "  held: mlp5-scratch/qat-3bit/seed0 by process 4711 on n7, SLURM job 12, since yesterday: "
        "no sign of life for 10 minutes",
        "  left over by a workflow that is gone; the next one waits until it ends. What ends it, saved:",
        "    scancel 12",
    ]


def test_jobs_that_wait_for_a_node_and_whose_workflow_is_gone_are_named(folder, capsys, monkeypatch):
    """``squeue`` as SLURM 22.05 answers: what somebody submitted by hand, or elsewhere, is nobody's orphan."""
    answer = folder / "squeue"
    lines = (
        f"7 rule_train_a_wildcards_b {folder}",
        f"8 (null) {folder}",
        "9 rule_train_a /elsewhere",
        f"10 rule_c {folder}",
    )
    answer.write_text("#!/bin/sh\ncat <<EOF\n" + "\n".join(lines) + "\nEOF\n")
    answer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    status.print_unclaimed()
    assert capsys.readouterr().out.splitlines()[1:] == ["    scancel 7 10"]
    card(replace(Holder.present(), pid=os.getppid(), started=holders._started(os.getppid())))
    status.print_unclaimed()
    assert capsys.readouterr().out == ""


def named(host):
    """What starts a command on this machine under another name of its, where that may be done."""
    under = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*under, "true"], capture_output=True).returncode:
        pytest.skip("no process here may give the machine another name")
    return under


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [None, ("n7", "n8")], ids=["one host", "two host names"])
def test_two_trainings_of_one_variant_make_it_once(tmp_path, hosts):
    """Under two names neither sees the other's process: the second waits for signs of life, and for the end."""
    project = Project(tmp_path / "project")
    project.cli("fetch", "--data", "digits")
    command = [sys.executable, "-m", "oscillations", "train", "--study", "params/tiny.yaml"]
    places = [named(host) for host in hosts] if hosts else [[], []]
    both = [project.start(*place, *command, "--only", "mlp5-scratch/qat-3bit") for place in places]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(text.count(": starting") for text in said) == [0, 2]  # two seeds, by one of them
    assert sum("kept" in text for text in said) == 1


def card(holder, silent_for=0.0):
    """Let another main process have left a card."""
    workflows.CARDS.mkdir(parents=True, exist_ok=True)
    file = workflows.CARDS / f"{holder.host}.{holder.pid}.json"
    file.write_text(json.dumps({"study": "tiny", "holder": asdict(holder)}))
    then = time.time() - silent_for
    os.utime(file, (then, then))
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflows, "EXPIRES", 100)
    return tmp_path


@pytest.mark.parametrize(("silent_for", "gone"), [(60, False), (200, True)])
def test_what_the_workflow_of_another_host_left_is_known_when_its_card_expires(folder, silent_for, gone):
    main = replace(ELSEWHERE, host="login", pid=12, started="3")
    job = replace(ELSEWHERE, workflow=main.process)
    card(main, silent_for)
    assert workflows.left_over([job, ELSEWHERE]) == ([job] if gone else [])


def test_what_a_killed_workflow_left_is_known(folder, monkeypatch):
    """Of two that plan at once, too."""
    monkeypatch.setenv(holders.WORKFLOW, "")  # so that what is set here is taken back
    monkeypatch.delenv(holders.WORKFLOW)
    main = replace(Holder.present(), pid=os.getppid(), started=holders._started(os.getppid()))
    card(main)
    card(replace(ELSEWHERE, host="login"))
    here, killed = replace(ELSEWHERE, workflow=main.process), replace(ELSEWHERE, workflow=f"{main.host} {2**22 + 1} 1")
    assert workflows.left_over([here, killed]) == [killed]
    holders.name_workflow()
    assert os.environ[holders.WORKFLOW] == Holder.present().process


def test_a_workflow_at_work_is_named(folder):
    other = replace(Holder.present(), pid=os.getppid(), started=holders._started(os.getppid()))
    card(other)
    assert workflows.at_work() == {"tiny": other}


def test_a_clock_that_jumps_ends_no_workflow_that_can_be_seen(folder):
    other = replace(Holder.present(), pid=os.getppid(), started=holders._started(os.getppid()))
    for silent_for in (100_000, -100_000):
        card(other, silent_for)
        assert workflows.at_work() == {"tiny": other}


@pytest.mark.parametrize(("silent_for", "lives"), [(60, True), (200, False)])
@pytest.mark.parametrize("other", [ELSEWHERE, replace(Holder.present(), pid=4711, boot="before")], ids=["host", "boot"])
def test_a_workflow_that_cannot_be_seen_lives_for_as_long_as_it_gives_signs(folder, other, silent_for, lives):
    file = card(other, silent_for)
    assert workflows.at_work() == ({"tiny": other} if lives else {})
    assert file.exists() == lives


def test_the_card_of_a_process_whose_number_is_another_s_now_is_removed(folder):
    file = card(replace(Holder.present(), pid=os.getppid(), started="1"))
    assert workflows.at_work() == {}
    assert not file.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "tiny"}', '{"study": "tiny", "holder": {"no": 1}}'])
def test_a_damaged_card_is_nobody_s(folder, content):
    file = card(ELSEWHERE)
    file.write_text(content)
    assert workflows.at_work() == {}
    assert not file.exists()


def test_a_process_does_not_see_itself(folder):
    kept = len(threading.enumerate())
    card(Holder.present())  # of a process that had the same number
    for study in (workflows.PLANNING, "tiny"):
        workflows.enter(study)
        assert len(threading.enumerate()) == kept + 1
        (file,) = workflows.CARDS.glob("*.json")
        assert json.loads(file.read_text())["study"] == study
        assert workflows.at_work() == {}


def test_a_lock_is_left_alone_while_another_plans(tmp_path):
    """Who plans may have locked its files, and says what it works on only after that."""
    project = Project(tmp_path / "project")
    lock = project.folder / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    other = replace(Holder.present(), pid=os.getppid(), started=holders._started(os.getppid()))
    file = project.folder / workflows.CARDS / "planning.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"study": workflows.PLANNING, "holder": asdict(other)}))
    assert "Job stats" in project.snakemake("-n", "data")
    assert lock.exists()
    file.unlink()
    assert "the lock it has left is lifted" in project.snakemake("-n", "data")
    assert not lock.exists()
    assert not list(file.parent.glob("*.json"))


def test_a_holder_for_which_there_is_no_room_leaves_nothing_to_wait_for(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(holders.json, "dumps", full)
        with pytest.raises(InputError, match=r"holder\.1: no room left"), held([tmp_path / "run"]):
            pass
    with held([tmp_path / "run"]) as holds:
        assert holds[0].number == 1
