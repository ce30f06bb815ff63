"""Every command of the README and of docs/: planned or parsed here as it stands, run by another test, or said why not."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, Project

from oscillations.cli import parser, study_file
from oscillations.study.reading import load
from oscillations.study.variants import select

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "config/README.md",
    *sorted(f"docs/{f.name}" for f in ROOT.glob("docs/*.md")),
)
PROGRAMS = (
    "snakemake",
    "python",
    "python3",
    "dvc",
    "pip",
    "uv",
    "pytest",
    "git",
    "docker",
    "apptainer",
    "sbatch",
    "cd",
)
#: how the commands begin that are neither planned nor parsed here -> what runs them, or why nothing does
ELSEWHERE = {
    "python3 -m venv": ".ci/run runs the second, .github/workflows/test.yml both",
    "pip install": "what it installs is looked at in test_environment.py, and run by .ci/run",
    "uv ": "another installer of the same lock",
    "python tests/": "writes what the test of that name compares, or pictures to look at",
    "pytest": "this is it; its markers are those of pyproject.toml",
    "cd ": "test_acceptance.py compares two folders",
    "git ": "git's own; test_workflow.py clones, commits and pushes",
    "dvc ": "test_workflow.py: push, pull, repro, status, metrics; its remote is a bucket, too, where OBJECT_STORE is",
    "docker ": "needs an engine; test_environment.py holds the two containers to the same files, test.yml builds one",
    "apptainer ": "needs an engine, as docker",
    "sbatch ": "needs a cluster: test_cluster.py, by pytest -m cluster",
    "snakemake --software-deployment-method": "needs an engine, as docker",
    "snakemake --report": "test_workflow.py makes the report of a finished study and opens it",
    "snakemake --generate-unit-tests": "test_workflow.py: names that Python takes",
    "snakemake --snakefile": "test_elsewhere.py: another working folder",
    "(snakemake|python) .*shrink": "test_walkthrough.py adds that method",
}
OPEN = r"<study>|NAME|\.\.\.$"  #: what stands for a study
FILES = ("cifar-10-binary.tar.gz", "tiny-imagenet-200.zip")  #: that commands name as sources; all else are folders


def commands():
    """(document, command) of every line of a block, and of every span of code that is a whole command."""
    found = {}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
        blocks += re.findall(r"(?:^ {4,}\S.*\n)+", text, re.MULTILINE)
        lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines += [span for span in re.findall(r"(?<!`)`([^`\n]+)`", text) if " " in span]
        for line in lines:
            command = re.sub(r"\s+# .*", "", line).strip()
            command = re.sub(r"^(timeout \S+|[A-Z_]+=\S+) ", "", command)
            if command.split()[0] in PROGRAMS:
                found[command] = document
    return found


COMMANDS = commands()
OTHER = [command for command in COMMANDS if re.match("|".join(ELSEWHERE), command)]
OURS = [command for command in COMMANDS if command.startswith("python -m oscillations") and command not in OTHER]
BENCHMARKS = [command for command in COMMANDS if command.startswith("python benchmarks/")]
PLANNED = [command for command in COMMANDS if command.startswith("snakemake") and command not in OTHER]


def test_every_command_is_run_or_said_why_not():
    known = {*OURS, *BENCHMARKS, *OTHER, *PLANNED}
    left = {command: document for command, document in COMMANDS.items() if command not in known}
    assert left == {}
    assert len(COMMANDS) > 60 and len(PLANNED) > 12 and len(OURS) > 12
    unused = [begins for begins in ELSEWHERE if not any(re.match(begins, command) for command in OTHER)]
    assert unused == []


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_ours_is_one_and_names_what_there_is(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(re.sub(OPEN, "quick", command))[3:]
    if "--help" in arguments:
        return
    options = parser().parse_args(arguments)
    if "study" not in options:
        return
    study, variants = load(study_file(str(options.study)))
    chosen = select(study, variants, getattr(options, "only", None), getattr(options, "seeds", None) or None)
    assert chosen.variants
    assert getattr(options, "experiment", None) in {None, *study.experiments}
    if run := getattr(options, "exported_run", None):
        assert run in {one.name for variant in variants for one in variant.runs()}


@pytest.mark.parametrize("command", BENCHMARKS)
def test_a_benchmark_is_there(command):
    assert (ROOT / command.split()[1]).is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A scratch project with every study, and what the commands name as sources."""
    project = Project(tmp_path_factory.mktemp("documented") / "project")
    shutil.copytree(ROOT / "params", project.folder / "params", dirs_exist_ok=True)
    for name in FILES:
        (project.folder / name).touch()
    for name in ("FOLDER", "FOLDER-OF-IMAGES", "checkpoints-folder"):
        (project.folder / name).mkdir()
    return project


@pytest.mark.slow
@pytest.mark.parametrize("command", PLANNED)
def test_a_workflow_of_the_documentation_can_be_planned(command, whole, slurm):
    output = whole.run(*shlex.split(re.sub(OPEN, "quick", command)), "-n")
    assert "Job stats:" in output or "Nothing to be done" in output
