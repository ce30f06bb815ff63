"""The examples, the notebook and the documentation's code, executed."""

import json
import os
import re
import sys
from importlib.util import find_spec

import programs
import pytest
from conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"hugging_face": "transformers", "lightning_module": "lightning"}


def run(code, folder):
    (folder / "example.py").write_text(code)
    exit_code, output = programs.run((sys.executable, "example.py"), folder, dict(os.environ))
    assert exit_code == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(tmp_path, example):
    needed = NEEDS.get(example.stem, "torch")
    if find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    code = example.read_text()
    assert len(code.splitlines()) <= 40
    assert "near_threshold" in (said := run(code, tmp_path)) or "frequency" in said


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(tmp_path):
    notebook = json.loads((ROOT / "examples/oscillations.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in notebook["cells"][4:] if cell["cell_type"] == "code")
    shorter = "\n".join(["import matplotlib", "matplotlib.use('agg')", *cells]).replace("epochs=20", "epochs=3")
    assert shorter.count("epochs=3") == 1
    checks = """
counted = {name: monitor.table().corrected.sum() for name, monitor in
           {"qat": of_qat, "osciquant": of_osciquant, "plain": of_plain}.items()}
assert counted["osciquant"] > counted["qat"] > counted["plain"] > 0, counted
"""
    run(shorter + checks, tmp_path)


def blocks(file, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


def test_the_documentations_code_runs(tmp_path):
    run("\n".join(blocks("docs/own-loop.md")), tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_the_readmes_code_runs(tmp_path):
    (code,) = [block for block in blocks("README.md") if "OsciQuantRegularizer" in block]
    before = "\n".join(
        [
            "import torch",
            "from torch import nn",
            "model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))",
            "criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters())",
            "images = torch.randn(20, 1, 8, 8)",
            "loader = [(images, torch.randint(0, 4, (20,)))]",
        ]
    )
    run(f"{before}\n{code}", tmp_path)
    assert (tmp_path / "model.onnx").exists()
