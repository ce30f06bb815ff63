"""docs/methods.md on adding a method, followed to the letter in a scratch copy of the project."""

import re
import shutil

import pandas as pd
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def blocks():
    """The walk-through's code blocks, by language, in their order."""
    text = (ROOT / "docs/methods.md").read_text().split("## Adding a method")[1]
    found = {}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.S):
        found.setdefault(language, []).append(code)
    return found


@pytest.fixture
def extended(project, blocks):
    """A copy of the project with the walk-through's file and line."""
    shutil.copy(ROOT / "params/quick.yaml", project.folder / "params")
    (project.folder / "src/oscillations/methods/shrink.py").write_text(blocks["python"][0])
    methods = "    methods: &methods\n      baseline:\n"
    project.edit("params/quick.yaml", methods, methods + blocks["yaml"][0])
    return project


def test_an_option_that_is_not_the_methods_is_refused_by_name(extended, blocks):
    extended.edit("params/quick.yaml", blocks["yaml"][0], blocks["yaml"][1])
    output = extended.cli("check", "--study", "quick", ok=False)
    assert "experiments.mlp5-scratch.methods.shrink" in output
    assert "strenght" in output
    assert "strength" in output.replace("strenght", "")  # what was meant


@pytest.mark.slow
def test_a_method_is_one_file_and_one_line(extended, blocks):
    check, run = blocks["sh"][0].splitlines()
    assert "mlp5-scratch/shrink-3bit  seeds 0,1" in extended.run(*check.split())
    extended.run(*run.split())
    results = extended.folder / "results/quick"
    measured = pd.read_csv(results / "measurements.csv")
    mine = measured[(measured.variant == "shrink-3bit") & (measured.split == "test")]
    assert set(mine.method) == {"shrink"}
    assert sorted(mine.eval_bits) == [2, 3, 4, 8, 32]
    assert mine.accuracy[mine.eval_bits == 3].item() > 30  # ten classes
    assert "| shrink | 3-bit |" in (results / "tables/table1.md").read_text()
    assert '<a href="runs/mlp5-scratch/shrink-3bit.html">' in (results / "index.html").read_text()
    assert "<svg" in (results / "runs/mlp5-scratch/shrink-3bit.html").read_text()
