"""What is committed is what the present code makes of the committed records: pages, tables, verdicts, the README."""

import os
import re
import shutil
import subprocess
from functools import cache
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from oscillations.cli import main
from oscillations.report import findings
from oscillations.report.results import Report

STUDIES = sorted(page.parent.name for page in (ROOT / "results").glob("*/index.html") if page.parent.name != "quick")
MADE = ("measurements.csv", "oscillations.csv", "metrics.json", "agreement.csv", "coverage.csv", "claims.csv", "claims_evidence.csv",
        "findings.csv", "findings.md", "README.md", "index.html", "making.html", "summary.json")  # fmt: skip
LANDING = (Path("results/index.html"), Path("results/README.md"))
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
    folder = Path("results", study)
    for page in folder.rglob("*.html"):
        page.unlink()  # so that one nobody makes any more is missed
    for step in ("collect", "oscillations", "tables", "claims", "findings", "site"):
        assert main([step, "--study", study]) == 0
    pages = {str(page) for page in folder.rglob("*.html")}
    assert pages == {str(page.relative_to(ROOT)) for page in (ROOT / folder).rglob("*.html")}
    for file in [*(folder / name for name in MADE), *sorted(folder.glob("tables/*")), *sorted(map(Path, pages))]:
        assert same(file.read_text(), (ROOT / file).read_text()), f"{file} is not what its records give"


def test_every_stage_of_a_study_is_recorded():
    """``dvc status`` and ``dvc pull`` fail in every clone for a stage, or an output of one, that was never recorded."""
    stages, recorded = (
        yaml.safe_load((ROOT / "results" / name).read_text())["stages"] for name in ("dvc.yaml", "dvc.lock")
    )
    assert set(stages) == set(recorded) == set(STUDIES)
    for name, stage in stages.items():
        hashes = {out["path"]: out.get("md5") for out in recorded[name]["outs"]}
        assert {path for out in stage["outs"] for path in out} == set(hashes)
        assert all(hashes.values())


def test_the_readme_holds_what_was_found(project):
    text = (ROOT / "README.md").read_text()
    report = Report.load(ROOT / "params/paper-jpeg.yaml")
    assert findings.with_findings(text, report.study, findings.findings(report)) == text


def test_the_landing_page_is_over_all_studies(project):
    for page in LANDING:
        page.unlink()
    assert main(["landing"]) == 0
    for page in LANDING:
        assert page.read_text() == (ROOT / page).read_text()


def test_a_damaged_summary_is_named_and_left_out_of_the_landing_page(project, capsys):
    Path("results/damaged").mkdir()
    for summary in ("{", "[]", '{"study": "a"}', '{"study": "a", "published": "elsewhere"}'):
        Path("results/damaged/summary.json").write_text(summary)
        assert main(["landing"]) == 0
        assert "results/damaged/summary.json: left out: " in capsys.readouterr().err
        for page in LANDING:
            assert page.read_text() == (ROOT / page).read_text()
    Path("results/damaged/summary.json").unlink()
    Path("results/damaged/summary.json").symlink_to("gone")  # between the look for it and its reading
    assert main(["landing"]) == 0 and not capsys.readouterr().err


def compared():
    """(start of the comparison's text, two sides as method, trained bits and evaluated bits, bound, both-sided margin)."""
    name = {32: "FP32", 2: "ternary", 3: "3-bit", 4: "4-bit", 8: "8-bit"}
    for trained in (2, 3, 4):
        for bits in {32, 8, 4, 3, 2} - {trained}:
            text = f"MLP5 (scratch), trained {name[trained]}, at {name[bits]}: OsciQuant - QAT"
            yield "C17", text, ("osciquant", trained, bits), ("qat", trained, bits), 0.0, None
        text = f"MLP5 (scratch), {name[trained]}: OsciQuant - PTQ"
        yield "C1", text, ("osciquant", trained, trained), ("ptq", 32, trained), 0.0, None
    yield "C3", "MLP5 (scratch), ternary: QAT", ("qat", 2, 2), ("osciquant", 2, 2), 0.0, None
    for bits, other in ((3, 4), (4, 3)):
        yield "C2", f"MLP5 (scratch), {name[bits]}: |Osci", ("osciquant", bits, bits), ("qat", bits, bits), 0.0, 2.0
        text = f"MLP5 (scratch), trained {name[bits]}, at {name[other]}: OsciQuant - the one"
        yield "C6", text, ("osciquant", bits, other), ("osciquant", other, other), -2.0, None


@pytest.mark.parametrize("claim, text, one, other, bound, margin", list(compared()))
def test_twenty_committed_comparisons_by_another_route(claim, text, one, other, bound, margin):
    """From measurements.csv, by statsmodels: mean, interval and both p values of the comparisons of MLP5."""
    table = pd.read_csv(ROOT / "results/paper-jpeg/measurements.csv")
    table = table[(table.experiment == "mlp5-scratch") & (table.split == "test") & (table.bn == "keep")]
    sides = [
        table[(table.method == method) & (table.train_bits == trained) & (table.eval_bits == bits)].set_index("seed")
        for method, trained, bits in (one, other)
    ]
    differences = (sides[0].accuracy - sides[1].accuracy).dropna()
    evidence = pd.read_csv(ROOT / "results/paper-jpeg/claims_evidence.csv")
    (row,) = evidence[(evidence.claim == claim) & evidence.comparison.str.startswith(text)].itertuples()
    found = DescrStatsW(differences)
    assert (row.n, row.estimate) == (len(differences), pytest.approx(found.mean, abs=2e-6))
    assert (row.low, row.high) == pytest.approx(found.tconfint_mean(0.05), abs=2e-6)
    greater, less = (found.ttest_mean(bound, way)[1] for way in ("larger", "smaller"))
    if margin is None:
        assert (row.support, row.against) == pytest.approx((min(1, 2 * greater), min(1, 2 * less)), abs=2e-6)
    else:
        nothing = np.zeros(len(differences))
        assert row.support == pytest.approx(ttost_paired(differences, nothing, -margin, margin)[0], abs=2e-6)


def test_the_comparison_knows_another_number_and_another_word():
    assert same("a 1.0000001 b", "a 1.0000002 b")
    assert not same("a 1.001 b", "a 1.002 b")
    assert not same("a 1.0 b", "a 1.0 c")


def test_status_and_page_agree(project, capsys):
    for study in STUDIES:
        main(["status", "--study", study, "--only", "all"])
        done = int(re.search(r": (\d+) done", capsys.readouterr().out)[1])
        pages = [page.read_text() for page in Path("results", study).glob("runs/*/*.html")]
        assert sum(page.count('/run.json">') for page in pages) == done, study
        assert re.search(r"(\d+) of \d+ runs done", Path("results", study, "index.html").read_text())[1] == str(done)


@cache
def committed() -> frozenset[str]:
    """Every committed file, and every folder one is in."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(file) for file in listed.split("\0") if file]
    # whoever has made the quick study finds it on the landing page, too
    for folder in ("results/quick", "figures/quick"):
        files += [file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file()]
    return frozenset(str(path) for file in files for path in (file, *file.parents))


def slugs(markdown: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


@cache
def read(file: str) -> tuple[frozenset[str], frozenset[str]]:
    """(links, anchors) of a page or document."""
    text = (ROOT / file).read_text()
    if file.endswith(".md"):
        prose = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.M | re.S)
        return frozenset(re.findall(r"\]\(([^)\s]+)\)", prose)), frozenset(slugs(text))
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), f"{file}: two elements of one id"
    return frozenset(map(unescape, re.findall(r'\s(?:href|src)="([^"]*)"', text))), frozenset(map(unescape, ids))


def dead(file: str) -> list[str]:
    """The links of a committed page or document whose file or anchor is not committed."""
    found = []
    for link in read(file)[0]:
        address, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", address):
            continue  # what is elsewhere is not ours to test
        path = (ROOT / file).parent / address if address else ROOT / file
        target = os.path.relpath(os.path.normpath(path), ROOT)
        if target not in committed() or (anchor and anchor not in read(target)[1]):
            found.append(link)
    return found


def test_no_committed_link_is_dead():
    files = [file for file in committed() if file.endswith(".md") or re.fullmatch(r"results/.*\.html", file)]
    assert {file: links for file in sorted(files) if (links := dead(file))} == {}


def test_every_committed_figure_stands_on_a_page():
    """And no other file: what is no longer drawn is gone."""
    for study in STUDIES:
        page = (ROOT / "results" / study / "index.html").read_text()
        for file in (ROOT / "figures" / study).glob("*.*"):
            assert f"/{file.name}" in page, file


def test_the_landing_page_leads_to_every_study():
    assert {f"{study}/index.html" for study in STUDIES} <= read("results/index.html")[0]
