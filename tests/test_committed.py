"""What is committed is what the present code makes of the committed records: pages, tables, verdicts, the README."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from oscillations.cli import main
from oscillations.report import findings
from oscillations.study.reading import load

STUDIES = sorted(page.parent.name for page in (ROOT / "results").glob("*/index.html") if page.parent.name != "quick")
MADE = ("measurements.csv", "oscillations.csv", "agreement.csv", "coverage.csv", "claims.csv", "claims_evidence.csv",
        "findings.csv", "findings.md", "README.md", "index.html")  # fmt: skip
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The committed files without code, their results to be written over."""
    for name in ("params", "docs", "benchmarks", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(made: str, committed: str) -> bool:
    """Equal but for the last digits of numbers, which another processor may round otherwise."""
    if NUMBER.sub("#", made) != NUMBER.sub("#", committed):
        return False
    pairs = zip(NUMBER.findall(made), NUMBER.findall(committed))
    return all(a == b or abs(float(a) - float(b)) <= 2e-6 * max(1.0, abs(float(b))) for a, b in pairs)


@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_page_is_the_one_its_records_give(project, study):
    for step in ("collect", "oscillations", "tables", "claims", "findings", "site"):
        assert main([step, "--study", study]) == 0
    tables = sorted(Path("results", study).glob("tables/*"))
    for file in [*(Path("results", study, name) for name in MADE), *tables]:
        assert same(file.read_text(), (ROOT / file).read_text()), f"{file} is not what its records give"


def test_the_readme_holds_what_was_found(project):
    text = (ROOT / "README.md").read_text()
    study = load(ROOT / "params/paper-jpeg.yaml")[0]
    assert findings.with_findings(text, study, findings.findings(study)) == text


def test_the_comparison_knows_another_number_and_another_word():
    assert same("a 1.0000001 b", "a 1.0000002 b")
    assert not same("a 1.001 b", "a 1.002 b")
    assert not same("a 1.0 b", "a 1.0 c")


def test_status_and_page_agree(project, capsys):
    for study in STUDIES:
        main(["status", "--study", study, "--only", "all"])
        done = int(re.search(r": (\d+) done", capsys.readouterr().out)[1])
        page = Path("results", study, "index.html").read_text()
        assert len(re.findall(r'/run.json">', page)) == done, study
