"""Several runs on one device, and what a job imports."""

import json
import subprocess
import sys

import pytest
import torch

from oscillations.core.errors import Interrupted
from oscillations.core.files import SEAL
from oscillations.engine.determinism import keep_freed_memory
from oscillations.jobs.turns import in_turns

CPU = torch.device("cpu")


def drawing(count, out, seed):
    """A task that draws a random number in every turn."""
    torch.manual_seed(seed)
    for _ in range(count):
        out.append(torch.rand(()).item())
        yield


def alone(count, seed):
    numbers = []
    in_turns([drawing(count, numbers, seed)], 1, CPU)
    return numbers


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_tasks_see_random_numbers_as_if_alone(at_once):
    found = {seed: [] for seed in range(4)}
    in_turns([drawing(3 + seed, numbers, seed) for seed, numbers in found.items()], at_once, CPU)
    assert found == {seed: alone(3 + seed, seed) for seed in range(4)}


def test_turns_are_taken_by_as_many_as_asked():
    order = []

    def task(name):
        for _ in range(2):
            order.append(name)
            yield

    in_turns([task(name) for name in "abc"], 2, CPU)
    assert "".join(order) == "ababcc"


def test_an_interruption_lets_the_others_save_and_starts_no_new_ones():
    saved = []

    def task(name):
        for _ in range(3):
            yield
        saved.append(name)
        raise Interrupted(name)

    with pytest.raises(Interrupted):
        in_turns([task(name) for name in "abc"], 2, CPU)
    assert saved == ["a", "b"]


@pytest.mark.slow
def test_runs_at_once_equal_single_runs(project):
    """Weights, histories and records of two seeds that took turns are those of two that ran one after another."""
    project.cli("fetch", "--data", "digits")
    command = ["train", "--study", "params/tiny.yaml", "--only", "mlp5-scratch/osciquant-3bit"]

    def made():
        files = [*project.folder.glob("checkpoints/**/*.safetensors"), *project.folder.glob("results/**/seed*/*")]
        contents = {}
        for file in files:
            contents[file] = file.read_bytes()
            if file.name == "run.json":
                record = json.loads(contents[file])
                contents[file] = {key: value for key, value in record.items() if key not in ("timing", SEAL)}
                at_once.add(record["timing"]["at_once"])
            file.unlink()
        for file in project.folder.glob("work/**/run.json"):
            file.unlink()
        return contents

    at_once = set()
    project.cli(*command)
    single = made()
    project.cli(*command, "--at-once", "2")
    assert len(single) == 2 * 5  # weights, record, history, layers, histograms
    assert made() == single
    assert at_once == {1, 2}


def test_a_training_job_imports_only_what_it_needs(project):
    """Start-up is most of a short job: torch's compiler alone costs more than a second."""
    project.cli("fetch", "--data", "digits")
    code = (
        "import sys; from oscillations.cli import main; "
        "code = main(['train', '--study', 'params/tiny.yaml', '--only', 'mlp5-scratch/qat-3bit', '--seeds', '0']); "
        "print('loaded', *sorted({m.split('.')[0] for m in sys.modules} | {'torch._dynamo'} & set(sys.modules))); "
        "sys.exit(code)"
    )
    process = project.start(sys.executable, "-c", code)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    loaded = set(output.rpartition("loaded ")[2].split())
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "torchvision", "timm", "pandas", "matplotlib", "scipy", "snakemake", "dvc"}


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_freed_memory_is_kept():
    """A block of 64 MB that is freed and asked for again costs no page fault; by default it costs thousands."""
    code = (
        "import resource, torch; {}\n"
        "def use(): torch.empty(1 << 24).fill_(1.0)\n"
        "for _ in range(20): use()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): use()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    call = f"from {keep_freed_memory.__module__} import keep_freed_memory; keep_freed_memory()"

    def faults(line):
        done = subprocess.run([sys.executable, "-c", code.format(line)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(call) < 100 < faults("")
