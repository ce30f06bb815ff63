"""Every command of the README and of docs/: planned or parsed here as it stands, run by another test, or said why not."""

import argparse
import importlib
import re
import shlex
import shutil
from pathlib import Path

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
#: with what code begins that is no command; whatever else begins with a bare word is one
PROSE = ("a", "an", "fetch", "module", "quantization", "rule", "train", "use")
#: commands that are neither planned nor parsed here, nor in test_workflow.py -> what runs them, or why nothing does
ELSEWHERE = {
    r"python3 -m venv .*|\. .*|pip install (-r|--no-deps) .*|apt-get install chromium": ".ci/run",
    r"pip install \.": ".ci/run installs the same, with the lock's versions; test_nn.py: it imports no more than that",
    r'pip install "\.\[workflow,slurm\]"': "test_environment.py: the lock, which .ci/run installs, has all extras",
    r"pip install snakemake pydantic .*": "test.yml, before it runs Snakemake outside of the container",
    r"uv .*": "test.yml",
    r"ruff (check|format) \.|snakefmt Snakefile workflow|mypy": "test_environment.py, as checks",
    r"pre-commit install": "is no dependency; what it would run, test_environment.py does",
    r"python tests/test_.*": "writes what the test of that name compares",
    r"python tests/screenshots\.py OUT": "test.yml: pictures to look at; test_pages.py opens the same pages",
    r"python benchmarks/targets\.py": "test_benchmarks.py",
    r"python benchmarks/cost\.py --check paper-jpeg": "test_benchmarks.py",
    r"python benchmarks/device\.py.*": "test_benchmarks.py, in small and on a CPU; all of it needs a GPU",
    r"python benchmarks/(?!targets|device)\w+\.py(?! --check).*": "measures for minutes or hours; parsed below",
    r"(OBJECT_STORE=\S+ )?pytest.*": "this is it; that its markers are there is tested below",
    r"cd .*|rm -r results/paper-jpeg": "test_acceptance.py compares two folders",
    r"rm results/rates-jpeg/runs/mlp5-finetune/evaluations\.csv": "test_archive.py measures the weights of a clone anew",
    r"find .* -exec touch .*": "find's own; test_workflow.py sets the times of files",
    r"git .*": "git's own; test_workflow.py clones, commits and pushes",
    r"dvc remote add -d store /some/folder": "test_workflow.py, with a folder that there is",
    r"dvc commit -f": "what never to do",
    r"SNAKEMAKE_PROFILE=\S+ dvc repro|sbatch .*": "needs a cluster: test_cluster.py, by pytest -m cluster",
    r"scontrol .*": "SLURM's own, about a fault of its plugin",
    r"(docker|apptainer|snakemake --software-deployment-method) .*": "needs an engine: test.yml builds and runs both",
    r"snakemake --report.*": "test_workflow.py makes the report of a finished study and opens it",
    r"snakemake --generate-unit-tests": "test_workflow.py: names that Python takes",
    r"snakemake --snakefile .*": "test_elsewhere.py: another working folder",
    r"(snakemake|python) .*shrink.*": "test_walkthrough.py adds that method",
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
            for command in re.sub(r"\s+# .*", "", line).strip().split(" && "):
                command = re.sub(r"^timeout \S+ ", "", command)
                begins = re.match(r"(?:[A-Z_]+=\S+ )?(\.|[a-z][a-z0-9-]*)(?: |$)", command)
                if begins and begins[1] not in PROSE:
                    found[command] = document
    return found


def in_a_test(command):
    """Whether test_workflow.py runs it as it stands, but for the study's name."""
    words = shlex.split(re.sub(r"\b(rates|paper)-jpeg\b", "tiny", command))
    return "run({})".format(", ".join(f'"{word}"' for word in words)) in WORKFLOW


COMMANDS = commands()
WORKFLOW = (ROOT / "tests/test_workflow.py").read_text()
OTHER = [command for command in COMMANDS if any(re.fullmatch(those, command) for those in ELSEWHERE)]
OURS = [command for command in COMMANDS if command.startswith("python -m oscillations") and command not in OTHER]
BENCHMARKS = [command for command in COMMANDS if command.startswith("python benchmarks/")]
PLANNED = [command for command in COMMANDS if command.startswith("snakemake") and command not in OTHER]
DVC = [command for command in COMMANDS if command.startswith("dvc") and in_a_test(command)]
REMOTE = [command for command in COMMANDS if re.match(r"dvc remote|printf .*\.dvc/", command) and command not in OTHER]


def test_every_command_is_run_or_said_why_not():
    known = {*OURS, *OTHER, *PLANNED, *DVC, *REMOTE}
    left = {command: document for command, document in COMMANDS.items() if command not in known}
    assert left == {}
    assert len(COMMANDS) > 80 and len(PLANNED) > 12 and len(OURS) > 12 and len(DVC) > 12
    unused = [those for those in ELSEWHERE if not any(re.fullmatch(those, command) for command in COMMANDS)]
    assert unused == []
    named = re.findall(r"test_\w+\.py", " ".join(ELSEWHERE.values()))
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_ours_is_one_and_names_what_there_is(command, monkeypatch):
    """Its study would take long, or is not there; the tests of every subcommand run it with a small one."""
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
def test_a_benchmark_takes_its_options(command, monkeypatch):
    """By its own parser, after which it ends."""
    script, *arguments = shlex.split(command)[1:]
    benchmark = importlib.import_module(Path(script).stem)
    if not hasattr(benchmark, "argparse"):
        assert arguments == []
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(its):
        parse(its, arguments)
        its.exit()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 0


def test_markers_are_those_of_the_tests(pytestconfig):
    named = {name for command in COMMANDS for name in re.findall(r'pytest .*-m (?:"not )?(\w+)', command)}
    assert named and named <= {line.split(":")[0] for line in pytestconfig.getini("markers")}


@pytest.mark.slow
def test_a_remote_is_set_up_as_it_stands(tmp_path):
    project = Project.at(tmp_path)
    for command in ("git init -q", "dvc init -q", *REMOTE):
        project.run("sh", "-c", command)
    shared, own, aws = ((tmp_path / ".dvc" / name).read_text() for name in ("config", "config.local", "aws"))
    assert "url = s3://BUCKET/oscillations" in shared and "configpath = aws" in shared
    assert "SECRET" in own and "SECRET" not in shared
    assert aws == "[default]\nresponse_checksum_validation = when_required\n"
    assert ".dvc/config.local" not in project.run("git", "status", "--short", "-uall")


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
