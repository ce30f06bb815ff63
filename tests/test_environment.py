"""The lock, environment.yml, the README's commands and the style: what a fresh clone relies on.

``python tests/test_environment.py`` writes environment.yml from the lock.
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Python from conda-forge, everything else by pip, with the pins of requirements.lock.
# Written by: python tests/test_environment.py
name: oscillations
channels:
  - conda-forge
dependencies:
  - python=3.12
  - pip
  - pip:
"""


def pins():
    """Requirements of the lock with their markers, without hashes."""
    lock = (ROOT / "requirements.lock").read_text()
    return [line.removesuffix(" \\").strip() for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)]


def environment():
    return HEADER + "".join(f'      - "{pin}"\n' for pin in pins())


def test_environment_has_the_pins_of_the_lock():
    assert (ROOT / "environment.yml").read_text() == environment()


def test_every_pin_is_hashed_and_no_index_is_named():
    lock = (ROOT / "requirements.lock").read_text()
    assert all("==" in pin for pin in pins())
    assert lock.count("--hash=sha256:") >= len(pins())
    assert "://" not in lock


def test_the_lock_holds_all_direct_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extras.pop("bench")  # others' quantizers, for one comparison; not part of the environment
    direct = project["dependencies"] + [name for extra in extras.values() for name in extra]
    locked = {re.split(r"[=\[ ]", pin)[0].lower() for pin in pins()}
    assert {re.split(r"[>=<\[]", name)[0].lower() for name in direct} - {project["name"]} <= locked


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (\S+): ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^python3 -m venv .* pytest$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 1
    assert "requirements.lock" in commands[0]
    script = (ROOT / ".ci/run").read_text()
    assert "README.md" in script
    assert 'eval "$test_command"' in script


def test_forks_run_the_same_script_on_every_supported_python():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    minimum = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert minimum == f">={min(jobs['test']['strategy']['matrix']['python'])}"


def without_docstrings(node):
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            inner.body = body[1:]
    return ast.unparse(node)


def test_the_readmes_method_is_the_real_one():
    """The example is QAT's file without docstrings."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if "class QAT" in block]
    source = ast.parse((ROOT / "src/oscillations/methods/qat.py").read_text())
    code = [node for node in source.body if isinstance(node, ast.ImportFrom | ast.ClassDef)]
    real = [without_docstrings(node) for node in code if getattr(node, "module", "") != "__future__"]
    assert [without_docstrings(node) for node in ast.parse(textwrap.dedent(snippet)).body] == real


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"],
        ["snakefmt", "--check", "Snakefile", "workflow"],
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_style(command):
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_snakemake_lint_is_silent():
    program = Path(sys.executable).parent / "snakemake"
    done = subprocess.run([program, "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Congratulations" in done.stdout + done.stderr, done.stdout + done.stderr


def test_both_containers_hold_the_same_files():
    """What the Dockerfile copies (all that .dockerignore lets through) is what apptainer.def copies."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    docker = {line[1:] for line in ignore if line.startswith("!")} - {"profiles"}  # a link, which apptainer.def makes
    section = re.search(r"%files\n(.*?)\n%post", (ROOT / "apptainer.def").read_text(), re.DOTALL)
    apptainer = {line.split()[0] for line in section[1].splitlines() if line.strip()}
    assert docker == apptainer
    assert all((ROOT / name).exists() for name in docker)


@pytest.mark.parametrize("index", ["lock", "https://example.org/cpu"])
def test_what_a_container_installs(tmp_path, index):
    """The lock as it is; or torch from another index at the lock's versions, and all but the GPU's libraries of the rest."""
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@" >> calls\nfor last; do :; done\ncp "$last" installed || true\n')
    (tmp_path / "pip").chmod(0o755)
    lock = (ROOT / "requirements.lock").read_text()
    (tmp_path / "requirements.lock").write_text(lock)
    path = f"{tmp_path}:{os.environ['PATH']}"
    script = ROOT / "workflow/container/install.sh"
    subprocess.run(["sh", script, "lock"], cwd=tmp_path, env={"PATH": path, "TORCH_INDEX": index}, check=True)
    calls, installed = (tmp_path / "calls").read_text(), (tmp_path / "installed").read_text()
    if index == "lock":
        assert installed == lock and len(calls.splitlines()) == 1
        return
    assert f"--index-url {index} torch==" in calls and " torchvision==" in calls
    names, kept = (set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)) for text in (lock, installed))
    left_out = names - kept
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= left_out
    assert all(re.match(r"torch$|torchvision$|triton$|nvidia-|cuda-", name) for name in left_out)
    assert {"torchmetrics", "snakemake"} <= kept


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment())
