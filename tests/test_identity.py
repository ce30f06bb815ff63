"""What runs again after which change: every row of the table in docs/architecture.md, under the real rules."""

import ast
import json
import os
import re
import shutil
from typing import Literal, get_args, get_origin

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Project

from oscillations import posttraining
from oscillations.core.files import canonical_json, sealed, sha256
from oscillations.jobs import certify
from oscillations.records import identity, numerics, sources
from oscillations.records.rows import current_rows
from oscillations.study.reading import load

pytestmark = pytest.mark.slow

TABLE = "## This change, and what runs again"
REPORT = {"collect", "oscillations", "tables", "figures", "films", "claims", "findings", "site", "all"}
SOURCE = "src/oscillations"
RUN = "results/tiny/runs/mlp5-scratch/qat-3bit/seed0/run.json"


def rename_a_local(project):
    """In a method: both names of one variable."""
    file = project.folder / SOURCE / "methods/osciquant.py"
    text = file.read_text()
    assert len(re.findall(r"\bthrough_scale\b", text)) == 2
    file.write_text(re.sub(r"\bthrough_scale\b", "through_it", text))


def move_a_module(project):
    folder = project.folder / SOURCE
    (folder / "engine/optimizer.py").rename(folder / "engine/descent.py")
    for file in folder.rglob("*.py"):
        text = file.read_text()
        if "oscillations.engine.optimizer" in text:
            file.write_text(text.replace("oscillations.engine.optimizer", "oscillations.engine.descent"))


def write_it_otherwise(project):
    """Comments, docstrings and annotations away, and all formatted by Python itself."""
    file = project.folder / QUANTIZER
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            if ast.get_docstring(node) and len(node.body) > 1:
                del node.body[0]
    text = ast.unparse(tree)
    assert text != file.read_text()
    file.write_text(text)


def add_an_option(project):
    project.edit(
        f"{SOURCE}/methods/qat.py",
        "    options: ScaleGradientOptions\n",
        "    options: ScaleGradientOptions\n    EXTRA = False\n",
    )


def log_a_column(project):
    project.edit(
        f"{SOURCE}/engine/training.py",
        'row |= {"monitored": metric, ',
        'row |= {"monitored": metric, "rate": self.optimizer.lr, ',
    )


def make_with_another_torch(project):
    """As old as before: what is younger than what was made from it is asked for again, whatever it says."""
    file = project.folder / RUN
    record, times = json.loads(file.read_text()), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    record["environment"]["packages"]["torch"] = "2.6.0"
    file.write_text(json.dumps(sealed(record)))
    os.utime(file, ns=times)


def train_in_another_study(project):
    """The twin's own runs; see test_workflow for their being copied."""
    text = (project.folder / "params/tiny.yaml").read_text()
    (project.folder / "params/twin.yaml").write_text(text.replace("study: tiny", "study: twin"))
    output = project.cli("train", "--study", "twin", "--only", "mlp5-scratch/qat-3bit")
    assert output.count("the same run as in study tiny") == 2


def edit(file, old, new):
    return lambda project: project.edit(file, old, new)


OSCIQUANT, QUANTIZER = f"{SOURCE}/methods/osciquant.py", f"{SOURCE}/engine/quantizer.py"
TINY = "params/tiny.yaml"

#: first cell of the table's row -> the change, and the rules beside the report's that are planned after it
ROWS = {
    "a comment, a docstring, formatting, an annotation": (write_it_otherwise, {}),
    "the text of a message": (edit(f"{SOURCE}/methods/statsq.py", "leave qkr out", "drop qkr"), {}),
    "a module or a function moved to another place": (move_a_module, {}),
    "an option that says its default": (
        edit(TINY, "qat: {bits: 3}", "qat: {bits: 3, tie: half_even, bn_eval: keep}"), {},
    ),
    "another version of torch, torchvision or timm": (make_with_another_torch, {}),
    "another study with the same run": (train_in_another_study, {}),
    "an option of a method": (edit(TINY, "lambda: 1}", "lambda: 1.5}"), {"train_mlp5_scratch": 2, "evaluate": 1}),
    "a local name in a method": (rename_a_local, {"train_mlp5_scratch": 2, "train_mlp5_lambda": 2, "evaluate": 2}),
    "a new option that is off": (add_an_option, {"train_mlp5_scratch": 1, "evaluate": 1}),
    "a logged column": (log_a_column, {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2, "evaluate": 2}),
    "slices beside re-quantization (`cross_bit`)": (
        edit(TINY, "seeds: [0, 1]\n", "seeds: [0, 1]\ncross_bit: [requantize, slice]\n"), {"evaluate": 2},
    ),
    "the arithmetic of a method": (
        edit(OSCIQUANT, "2 * strength", "2.000001 * strength"),
        {"train_mlp5_scratch": 2, "train_mlp5_lambda": 2, "evaluate": 2},
    ),
    "the arithmetic of the engine": (
        edit(QUANTIZER, "else 0.5 - offset", "else 0.25 - offset"),
        {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2, "evaluate": 2},
    ),
    "the arithmetic of the evaluation": (
        edit(f"{SOURCE}/engine/crossbit.py", "sets[\"test\"])[0]", "sets[\"test\"])[0] / 2"), {"evaluate": 2},
    ),
}  # fmt: skip


def test_the_table_of_the_document_holds_these_rows():
    lines = (ROOT / "docs/architecture.md").read_text().split(TABLE)[1].split("\n## ")[0].splitlines()
    cells = [line.strip("|").split("|")[0].strip() for line in lines if line.startswith("|")]
    assert cells[2:] == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_what_is_planned_after_a_change(finished, row):
    change, expected = ROWS[row]
    change(finished)
    planned = finished.planned()
    assert {rule: count for rule, count in planned.items() if rule not in REPORT} == expected


COMPARED = (
    "baseline",
    "qat",
    "osciquant",
    "osciquant-freezing",
    "signed",
)  #: what tiny trains, and all that is built on it


def certified_source(project):
    """A copy of the project's source as it is now, in both of which fewer runs certify."""
    file = project.folder / SOURCE / "jobs/certify.yaml"
    study = yaml.safe_load(file.read_text())
    study["posttraining"] = {}
    del study["toy_regression"]
    every = study["experiments"]["every-method"]
    every["methods"] = {name: every["methods"][name] for name in COMPARED}
    study["experiments"] = {"every-method": every}
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    folder = project.folder.parent / "certified"
    shutil.copytree(project.folder / "src", folder)
    return str(folder)


def test_what_computes_the_same_is_certified_and_retrains_nothing(finished):
    """A renamed local, a moved module and a logged column at once."""
    source = certified_source(finished)
    for change in (rename_a_local, move_a_module, log_a_column):
        change(finished)
    assert "stale: mlp5-scratch/baseline/seed0: engine: its code is not certified" in finished.cli(
        "status", "--study", "tiny"
    )
    output = finished.cli("certify", "--against", source)
    assert "engine: certified, version 1" in output
    assert "method/osciquant: certified, version 1" in output
    assert finished.planned() == {}
    assert "nothing to certify" in finished.cli("certify")


def test_another_arithmetic_is_refused_with_the_part_and_the_number(finished):
    source, ledger = certified_source(finished), finished.folder / SOURCE / "records/ledger.json"
    before = ledger.read_text()
    ROWS["the arithmetic of a method"][0](finished)
    output = finished.cli("certify", "--against", source, ok=False)
    # parts that are built on OsciQuant differ, too, where they use what has changed
    assert re.search(r"^method/osciquant: results/certify/.*: \w+ was [\d.]+, is [\d.]+$", output, re.M), output
    assert "method/osciquant-freezing: results/certify/" in output
    assert "certify --new-version method/osciquant" in output
    changed = json.loads(ledger.read_text())
    assert changed["method/osciquant"] == json.loads(before)["method/osciquant"]

    parts = [part for part, kept in changed.items() if part in output and kept == json.loads(before)[part]]
    assert set(parts) == {"method/osciquant", "method/osciquant-freezing", "method/signed"}
    finished.cli("certify", "--against", source, *(f"--new-version={part}" for part in parts))
    assert set(json.loads(ledger.read_text())["method/osciquant"]) == {"1", "2"}
    status = finished.cli("status", "--study", "tiny")
    assert (
        "stale: mlp5-scratch/osciquant-3bit/seed0: method/osciquant: made by other arithmetic than version 2" in status
    )
    assert "baseline" not in status.split("stale:", 1)[1].split("about")[0]


def test_a_run_of_an_uncertified_source_is_current_until_that_changes(finished):
    """Whoever writes a method certifies it when it is done, not before every try."""
    ROWS["the arithmetic of a method"][0](finished)
    finished.snakemake("runs")
    assert finished.planned("runs") == {}
    record = json.loads((finished.folder / "results/tiny/runs/mlp5-scratch/osciquant-3bit/seed0/run.json").read_text())
    assert record["arithmetic"] == {
        "engine": 1,
        "model/mlp5": 1,
        "method/osciquant": record["arithmetic"]["method/osciquant"],
    }
    assert re.fullmatch("[0-9a-f]{16}", record["arithmetic"]["method/osciquant"])
    finished.edit(OSCIQUANT, "2.000001 * strength", "2.000002 * strength")
    assert "train_mlp5_scratch" in finished.planned("runs")


def test_mixed_versions_of_torch_are_said_aloud(finished):
    make_with_another_torch(finished)
    for command in ("status", "check"):
        output = finished.cli(command, "--study", "tiny")
        (warning,) = re.findall(r"warning: runs made with different versions of torch: (.*)", output)
        assert "2.6.0 (1)" in warning and "(11)" in warning
    finished.cli("report", "--study", "tiny")
    page = (finished.folder / "results/tiny/index.html").read_text()
    assert f"runs made with different versions of torch: {warning}" in page


# -- pieces ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_records(recipe):
    recipe["method"] = {"name": "qat", "bits": 3}
    whole = {"recipe": recipe, "checkpoint_sha256": "c", "data_sha256": "d", "seed": 0, "arithmetic": {}}
    return whole, json.loads(json.dumps(whole))


def test_a_recipe_by_meaning_has_no_defaults(recipe):
    recipe["method"] = {"name": "osciquant", "bits": 3, "lambda": 1.0}
    said = recipe | {"method": recipe["method"] | {"tie": "half_even", "reg_layers": ["*"], "preset": "official_code"}}
    assert identity.meaning(said) == identity.meaning(recipe)
    assert identity.meaning(recipe)["method"] == recipe["method"]
    assert identity.meaning(recipe)["training"] == {"lr": 2e-3, "batch_size": 32, "epochs": 4, "patience": 3}
    assert "images" not in identity.meaning(recipe)
    for option in ("images", "histograms"):
        assert identity.meaning(identity.meaning(recipe) | {option: None}) == identity.meaning(recipe)
    recorded = identity.meaning(recipe | {"histograms": "fc2.weight"})
    assert identity.changed_keys(identity.meaning(recipe), recorded) == ["histograms"]
    other = recipe | {"method": recipe["method"] | {"tie": "half_up"}}
    assert identity.changed_keys(identity.meaning(recipe), identity.meaning(other)) == ["method.tie"]


def test_keys_hold_the_checkpoint_and_no_training(two_records):
    before, after = two_records
    after["recipe"]["training"]["lr"] = 1.0
    after["arithmetic"] = {"engine": 7}
    assert identity.evaluation_key(before) == identity.evaluation_key(after)
    others = [
        before | {"checkpoint_sha256": "x"},
        before | {"data_sha256": "x"},
        before | {"recipe": before["recipe"] | {"eval_bits": [32, 2]}},
        before | {"recipe": before["recipe"] | {"model": {"name": "mlp5", "width": 13}}},
    ]
    assert len({identity.evaluation_key(record) for record in [before, *others]}) == 5
    inputs = {"activations": {"bits": 3}}
    keys = {
        identity.posttraining_key(record, method, posttraining.find(method).Options(**options), bits)
        for record, method, options, bits in [
            (before, "brecq", {"nu": 0.01}, 3), (after, "brecq", {"images": 1024}, 3), (before, "brecq", {"nu": 0.1}, 3),
            (before, "brecq", {"nu": 0.01}, 2), (before, "qdrop", {"nu": 0.01}, 3), (others[0], "brecq", {"nu": 0.01}, 3),
            (before, "qdrop", inputs, 3), (before, "qdrop", {"activations": {"bits": 3, "first_last": 8}}, 3),
            (before, "qdrop", {"activations": {"bits": 3, "first_last": 4}}, 3),
        ]
    }  # fmt: skip
    assert len(keys) == 7


def test_rows_are_of_the_versions_that_made_them(monkeypatch):
    known, now = (
        {"a": {"1": ["0" * 16, "1" * 16], "2": ["2" * 16]}, "b": {"1": ["3" * 16]}},
        {"a": "1" * 16, "b": "3" * 16},
    )
    monkeypatch.setattr(numerics, "ledger", lambda: known)
    monkeypatch.setattr(numerics, "source", now.get)
    assert numerics.written(["a", "b"]) == "a=1 b=1"
    table = pd.DataFrame(
        {"key": "k", "arithmetic": ["a=1 b=1", f"a={'0' * 16} b=1", f"a={'4' * 16} b=1", "a=2 b=1", "a=1", ""]}
    )
    assert current_rows(table, "k", ["a", "b"]).index.tolist() == [0, 1]  # what was certified since counts, too
    assert current_rows(table, "other", ["a", "b"]).empty
    now["a"] = "4" * 16  # not certified: only what it made itself
    assert current_rows(table, "k", ["a", "b"]).index.tolist() == [2]


@pytest.mark.parametrize("part", ["evaluation", "reconstruction"])
@pytest.mark.parametrize(
    "definition",
    [("engine.batches", "ImageSet"), ("engine.quantizer", "WeightQuantizer"), ("engine.network", "Network"),
     ("engine.scales", "mse_scale"), ("engine.accuracy", "accuracy"), ("core.bits", "largest_code")],
)  # fmt: skip
def test_what_evaluates_is_a_part_of_the_evaluation(part, definition):
    module, name = definition
    assert (f"oscillations.{module}", name) in sources.reached(numerics.part_roots(part))


def test_every_part_of_the_repository_is_certified():
    """Mend with: python -m oscillations certify"""
    assert numerics.unknown() == []
    assert set(numerics.ledger()) == set(numerics.parts())


def test_the_certification_exercises_every_part():
    """A method, model or post-training method without a run there could never be certified."""
    data = {part for part in numerics.parts() if part.startswith("data/")}
    assert set(numerics.parts()) == data | certify.covered(*load(ROOT / SOURCE / "jobs/certify.yaml"))


def declared(options):
    """(class that declares it, option) of everything that a class of options has."""
    for name, field in options.model_fields.items():
        owner = next(cls for cls in reversed(options.__mro__) if name in getattr(cls, "model_fields", {}))
        yield owner, field.alias or name, field.annotation


def choices(annotation):
    """The values that an option chooses from; none of a number's or a text's."""
    kinds = [annotation, *get_args(annotation)]
    return {value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)} or (
        {True, False} if annotation is bool else set()
    )


def test_the_certification_exercises_every_choice():
    """What no certified run does may change unseen. TF32 is the processor's float32."""
    study, variants = load(ROOT / SOURCE / "jobs/certify.yaml")
    chosen = [
        options for v in variants for options in (v.recipe.method.options, v.recipe.model.options, v.recipe.training)
    ]
    chosen += [
        options for entry in study.posttraining.values() for *_, options in entry.resolved()
    ]  # fmt: skip
    wanted, seen = {}, {}
    for options in chosen:
        values = options.model_dump(by_alias=True)
        for owner, option, annotation in declared(type(options)):
            wanted[owner.__name__, option] = choices(annotation)
            seen.setdefault((owner.__name__, option), set()).add(str(values[option]))
    missing = {key: {str(v) for v in values} - seen[key] for key, values in wanted.items()}
    assert {key: values for key, values in missing.items() if values} == {("Training", "precision"): {"tf32"}}
    assert set(study.cross_bit) == choices(get_args(type(study).model_fields["cross_bit"].annotation)[0])


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The source of module ``a`` of a package of some files."""
    folder = tmp_path / "oscillations"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(sources, "ROOT", folder)

    def of(**files):
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        sources.clear()
        return sources.code("a")

    yield of
    monkeypatch.undo()
    sources.clear()


def test_hashes_are_remembered_until_a_source_changes(tmp_path):
    project = Project(tmp_path / "project")
    file = project.folder / "src/oscillations" / sources.REMEMBERED
    ask = ("python", "-c", "from oscillations.records import numerics; print(numerics.source('method/qat'))")

    def asked():
        return project.run(*ask).strip(), json.loads(file.read_text())

    file.unlink()
    first, known = asked()
    assert known["hashes"] == {"source method/qat": first}
    other = {"source method/qat": "0" * 16}
    forged = known | {"hashes": other, "check": sha256(canonical_json(other).encode())}
    file.write_text(json.dumps(forged))
    assert asked()[0] == "0" * 16  # it is looked up
    for damaged in ("", "{", json.dumps(known | {"hashes": other})):
        file.write_text(damaged)
        assert asked() == (first, known)
    file.write_text(json.dumps(forged))
    project.edit("src/oscillations/methods/qat.py", "quantizer.quantized", "[2 * q for q in quantizer.quantized]")
    changed, known = asked()
    assert changed not in (first, "0" * 16)
    assert known["tree"] != forged["tree"]


G = "def g(x):\n    return 2 * x\n"
USES = "from oscillations.b import g\n\ndef f(x):\n    return g(x) + 1\n"


@pytest.mark.parametrize(
    "text",
    [
        'from oscillations.b import g\n\ndef f(x: int) -> int:\n    """Adds."""\n    return (g(x)\n            + 1)  # why\n',
        "from __future__ import annotations\nimport math\nfrom oscillations.b import g\n\ndef f(x):\n    return g(x) + 1\n",
        "def f(x):\n    from oscillations.b import g\n\n    return g(x) + 1\n",
        "from oscillations.b import g as other\n\ndef f(x):\n    return other(x) + 1\n",
        "from .b import g\n\ndef f(x):\n    return g(x) + 1\n",
        "import oscillations.b as b\n\ndef f(x):\n    return b.g(x) + 1\n",
        "from oscillations import b\n\ndef f(x):\n    return b.g(x) + 1\n",
        "from typing import cast\nfrom oscillations.b import g\n\ndef f(x):\n    return cast('int', g(x)) + 1\n",
        "def f(x):\n    return g(x) + 1\n\n" + G,
        "from oscillations.c import g\n\ndef f(x):\n    return g(x) + 1\n",
    ],
)
def test_what_is_written_otherwise_has_the_same_source(source, text):
    first = source(a=USES, b=G + "\ndef unused():\n    return 1\n")
    assert source(a=text, b=G, c="from oscillations.b import g\n") == first


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("from oscillations.b import g\n\ndef f(x):\n    return g(x) + 2\n", G),
        ("from oscillations.b import g\n\ndef f(x):\n    return g(x) + 1.0\n", G),
        ("from oscillations.b import g\n\ndef f(x):\n    return 1 + g(x)\n", G),
        (USES, "def g(x):\n    return 3 * x\n"),
        (USES.replace("import g", "import h as g"), G + "\ndef h(x):\n    return 3 * x\n"),
        (USES, "FACTOR = 2\n\ndef g(x):\n    return FACTOR * x\n"),
        (USES, G + "\ng = 1 * g\n"),
        (USES, "if True:\n    def g(x):\n        return 3 * x\n"),
        (USES, "try:\n    from fast import g\nexcept ImportError:\n    pass\n"),
        (USES, G + "\ng.factor = 3\n"),
        (USES, G + "\nTABLE = {}\nTABLE['g'] = 3\n"),
        (USES, G + "\nsetattr(g, 'factor', 3)\n"),
        (USES, "import torch\ntorch.set_default_dtype(torch.float64)\n\n" + G),
        (USES, "from math import sin as g\n"),
    ],
)
def test_what_computes_otherwise_has_another_source(source, a, b):
    assert source(a=USES, b=G) != source(a=a, b=b)


def test_what_is_imported_from_elsewhere_counts(source):
    text = "import math\nfrom torch.optim import Adam\n\ndef f(x):\n    return math.sin(x), Adam(x)\n"
    first = source(a=text)
    assert source(a=text.replace("import math", "import cmath as math")) != first
    assert source(a=text.replace("import Adam", "import SGD as Adam")) != first
    assert source(a=text.replace("import math", "from math import sin").replace("math.sin", "sin")) == first


def test_a_constant_that_is_used_counts_wherever_it_stands(source):
    text = "from oscillations.b import FACTOR\n\ndef f(x):\n    return FACTOR * x\n"
    first = source(a=text, b="FACTOR = 2\n")
    assert source(a=text, b="FACTOR: float = 2\n") == first != source(a=text, b="FACTOR = 3\n")


def test_a_star_is_refused(source):
    with pytest.raises(ImportError, match="name what is imported"):
        source(a="from oscillations.b import *\n\ndef f(x):\n    return g(x)\n", b=G)


def test_messages_and_limits_compute_nothing(source):
    text = (
        "class O:\n    n: int = Field(3, ge=1, description='one')\n\ndef f(x):\n    if x < 0:\n"
        "        raise ValueError(f'bad {x}')\n    print('now')\n    return x\n"
    )
    first = source(a=text)
    assert source(a=text.replace("bad {x}", "below 0")) == first
    assert source(a=text.replace("'now'", "'soon', x")) == first
    assert source(a=text.replace("ge=1, description='one'", "ge=2, description='two'")) == first
    assert source(a=text.replace("Field(3", "Field(4")) != first
    assert source(a=text.replace("x < 0", "x <= 0")) != first
    assert source(a=text.replace("ValueError", "KeyError")) != first
