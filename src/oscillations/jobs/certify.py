"""Certification: whether the present source computes the numbers of the last certified one, bit for bit.

The tiny complete trainings of ``certify.yaml``, their evaluations and post-training results, and the reading of
datasets are made under both sources on this machine. A part whose every comparison agrees enters the ledger with its
present source: nothing that was made before is stale. One that differs is named with the first number that does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from oscillations import methods, models, posttraining
from oscillations.core.errors import InputError, did_you_mean
from oscillations.jobs import certify_inputs
from oscillations.jobs.certify_comparison import Compared, compared
from oscillations.records import numerics
from oscillations.records.identity import arithmetic, entry_parts
from oscillations.study import reading
from oscillations.study.schema import Study
from oscillations.study.variants import Variant, select

STUDY = Path(__file__).with_name("certify.yaml")
SOURCE = Path(__file__).parents[2]  #: the folder that holds the present source
INTERRUPTIONS = {"every-method": 1, "interrupted": 2, "interrupted-sgd": 1}  #: of every run of some experiments


@dataclass(frozen=True)
class Certified:
    """A folder with a certified source, and the versions of its parts."""

    source: Path
    versions: dict[str, int]


def certify(against: Path | None = None, new_versions: Iterable[str] = (), device: str = "cpu") -> bool:
    """Compare every unknown part with the last certified source, and enter what agrees; False if one differs.

    ``against``: folder of a certified source (``src`` of a checkout), instead of the newest in git's history.
    ``new_versions``: parts whose numbers are meant to change; each opens its next version. ``device``: what computes;
    code that only a GPU runs is compared only there. Raises InputError.
    """
    unknown, opened = numerics.unknown(), set(new_versions)
    for part in sorted(opened - set(unknown)):
        near = did_you_mean(part, unknown) if unknown else "every part is certified"
        raise InputError(f"--new-version {part}: no part with a changed source; {near}")
    if not unknown and against is None:
        print("every part computes what the ledger knows: nothing to certify")
        return True
    with TemporaryDirectory() as folder:
        certified = _certified(against) if against else last_certified(Path(folder))
        print(f"to be compared: {', '.join(unknown) or 'nothing'}", flush=True)
        made = list(comparisons(Path(folder), certified, unknown, device)) if unknown else []
    telling = [one for one in made if not opened.intersection(one.parts)]  # a new version explains what it decides
    opened |= {part for part in unknown if _only_explained(part, made, telling)}
    refused = {part: why for part in unknown if part not in opened and (why := _refused(part, telling, certified))}
    accepted = {part: numerics.source(part) for part in unknown if part not in refused}
    numerics.enter(accepted, certified.versions, opened)
    for part in unknown:
        if part not in certified.versions and part not in refused:
            print(f"{part}: new, nothing to compare with")
        print(f"{part}: {refused.get(part) or f'certified, version {numerics.version(part)}'}")
    if refused:
        parts = suspects(telling, unknown) or list(refused)
        print("if these numbers are meant to change: python -m oscillations certify"
              + "".join(f" --new-version {part}" for part in parts))  # fmt: skip
    return not refused


def _only_explained(part: str, made: list[Compared], telling: list[Compared]) -> bool:
    """Whether all that could show a part unchanged is what a new version changes: then it opens its next one, too."""
    return any(part in one.parts for one in made) and not any(part in one.parts for one in telling)


def _refused(part: str, telling: list[Compared], certified: Certified) -> str | None:
    """Why a part may not enter the version it was compared with: a number that differs, or nothing that tells."""
    about = [one.difference for one in telling if part in one.parts]
    if any(about):
        return next(difference for difference in about if difference)
    if part in certified.versions:
        return None if about else "nothing compares it: commit its certified source, or give that with --against"
    exercised = part.startswith("data/") or part in covered(*reading.load(STUDY))
    return None if exercised else f"new, and jobs/{STUDY.name} makes no run of it: add one"


def covered(study: Study, variants: list[Variant]) -> set[str]:
    """The parts that the trainings, evaluations and entries of a study exercise."""
    parts = {part for variant in variants for part in arithmetic(variant.recipe.plain())}
    parts |= {part for entry in study.posttraining.values() for part in entry_parts(entry)}
    return parts | {"evaluation"} | ({"aoq-toy"} if study.toy_regression else set())


def suspects(telling: list[Compared], unknown: list[str]) -> list[str]:
    """The parts that are most likely changed: those that never agreed, else the most special of what differs."""
    agreed = {part for one in telling if one.difference is None for part in one.parts}
    found = []
    for one in telling:
        if one.difference:
            candidates = [part for part in one.parts if part in unknown]
            found += [part for part in candidates if part not in agreed] or candidates[-1:]
    return list(dict.fromkeys(found))


def comparisons(folder: Path, certified: Certified, unknown: list[str], device: str) -> Iterator[Compared]:
    """Make everything that an unknown part decides under both sources, and compare it."""
    content = _readable(reading.read_yaml(certified.source / STUDY.relative_to(SOURCE)))
    projects = [folder / "certified", folder / "present"]
    for project in projects:
        (project / "params").mkdir(parents=True)
        (project / "params/certify.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    study, variants = reading.load(projects[1] / "params/certify.yaml")
    commands = list(_commands(study, variants, set(unknown), folder / "sources"))
    sources = (certified.source, SOURCE)
    jobs = [_start(project, source, commands, device) for project, source in zip(projects, sources)]
    for project, job in zip(projects, jobs):
        if job.wait():
            log = (project / "log").read_text().strip().splitlines()
            raise InputError(f"the {project.name} source failed: " + "\n".join(log[-15:]))
    yield from compared(projects, study, variants)


def _readable(content: dict[str, Any]) -> dict[str, Any]:
    """A certified study without the methods and models that are no more."""
    for name, experiment in list(content["experiments"].items()):
        present = {key: options for key, options in experiment["methods"].items() if key in methods.names()}
        experiment["methods"] = present
        model = experiment["model"]["name"]
        if not present or not (model in models.names() or "/" in model):
            del content["experiments"][name]
    for name, entry in list(content["posttraining"].items()):
        entry["of"] = [path for path in entry["of"] if path.split("/")[0] in content["experiments"]]
        known = {k: o for k, o in entry["methods"].items() if (o or {}).get("method", k) in posttraining.names()}
        entry["methods"] = known
        if not entry["of"] or not known:
            del content["posttraining"][name]
    return content


def last_certified(folder: Path) -> Certified:
    """The newest source in git's history whose own ledger knows all its parts, unpacked. Raises InputError."""
    root = SOURCE.parent
    log = ["git", "-C", str(root), "log", "--format=%H", "-50", "--", "src"]
    try:
        commits = subprocess.run(log, capture_output=True, text=True).stdout.split()
    except OSError:  # no git
        commits = []
    for commit in commits:
        target = folder / commit[:12]
        target.mkdir()
        archive = subprocess.run(["git", "-C", str(root), "archive", commit, "src"], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
        try:
            found = _certified(target / "src")
        except InputError:
            shutil.rmtree(target)
            continue
        print(f"certified source: commit {commit[:12]}", flush=True)
        return found
    raise InputError("git's history holds no certified source here; give one with --against FOLDER/src")


def _certified(source: Path) -> Certified:
    """A folder's source, whose own ledger must know all its parts. Raises InputError."""
    if not (source / "oscillations/cli.py").exists():
        raise InputError(f"--against {source}: holds no oscillations/cli.py; give the src folder of a checkout")
    probe = "import json; from oscillations.records import numerics as n; print(json.dumps(n.versions(n.parts())))"
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True)
    versions: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"its ledger": "missing"}
    unknown = [part for part, version in versions.items() if isinstance(version, str)]
    if unknown:
        raise InputError(f"--against {source}: is not certified itself ({', '.join(unknown)})")
    return Certified(source, versions)


# -- what is made ------------------------------------------------------------------------------------------

DRIVER = """
import json, os, signal, sys, threading, time
from pathlib import Path
from oscillations.cli import main

def stop_when_saved():
    since = time.time_ns()
    while not any(file.stat().st_mtime_ns > since for file in Path("work").glob("**/resume")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

for interruptions, command in json.load(open("commands.json")):
    for _ in range(interruptions):
        threading.Thread(target=stop_when_saved, daemon=True).start()
        if (code := main(command)) != 143:
            sys.exit(f"{command}: not interrupted, exit code {code}")
    if code := main(command):
        sys.exit(f"{command}: exit code {code}")
"""


def _start(project: Path, source: Path, commands: list[tuple[int, list[str]]], device: str) -> subprocess.Popen:
    """One process that runs all commands in a scratch project under a source."""
    (project / "commands.json").write_text(json.dumps(commands))
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OSCILLATIONS_DEVICE": device}
    with (project / "log").open("w") as log:
        return subprocess.Popen([sys.executable, "-c", DRIVER], cwd=project, env=environment, stdout=log, stderr=log)


def _commands(
    study: Study, variants: list[Variant], unknown: set[str], sources: Path
) -> Iterator[tuple[int, list[str]]]:
    """Commands whose results an unknown part decides; each with how often it is interrupted before it may end."""
    entries = [name for name, entry in study.posttraining.items() if unknown & {"engine", *entry_parts(entry)}]
    wanted = {variant.path for variant in variants if unknown & {"evaluation", *arithmetic(variant.recipe.plain())}}
    wanted |= {path for name in entries for path in study.posttraining[name].of}
    data = {variant.recipe.data for variant in variants if variant.path in wanted}
    for name in sorted(data | {part.removeprefix("data/") for part in unknown if part.startswith("data/")}):
        source = certify_inputs.make(name, sources)
        yield 0, ["fetch", "--data", name, *(["--source", str(source)] if source else [])]
    for variant in select(study, variants, ",".join(wanted)).variants if wanted else []:
        often = INTERRUPTIONS.get(variant.experiment, 0)
        yield often, ["train", "--study", "certify", "--only", variant.path, *(["--save-every", "0"] if often else [])]
    for experiment in dict.fromkeys(path.split("/")[0] for path in sorted(wanted)):
        yield 0, ["evaluate", "--study", "certify", "--experiment", experiment]
    for name in entries:
        yield 0, ["posttrain", "--study", "certify", "--name", name]
    if "aoq-toy" in unknown:
        yield 0, ["toy", "--study", "certify"]
