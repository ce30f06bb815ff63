"""Studies: strictness, names, narrowing, recipes; and X2, the transcription of the published tables."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY

from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.core.files import read_json
from oscillations.study import reading as studies
from oscillations.study.variants import recipe_of, select


@pytest.fixture
def load(tmp_path):
    """Load the tiny study after a change of its content (a function) or its text (two strings)."""

    def loader(change=None, text=None):
        source = TINY if text is None else TINY.replace(*text)
        if change:
            content = yaml.safe_load(source)
            change(content)
            source = yaml.safe_dump(content, sort_keys=False)
        file = tmp_path / "tiny.yaml"
        file.write_text(source)
        return studies.load(file)

    return loader


def scratch(content):
    return content["experiments"]["mlp5-scratch"]


BAD = {
    "misspelt key": (lambda c: c.update(sedes=[0]), r"unknown key 'sedes'; did you mean 'seeds'\?"),
    "misspelt training key": (
        lambda c: c["training"].update(batchsize=3), r"training: unknown key 'batchsize'; did you mean 'batch_size'\?"
    ),
    "misspelt experiment key": (
        lambda c: scratch(c).update(methds={}), r"experiments\.mlp5-scratch: unknown key 'methds'; did you mean 'methods'"
    ),
    "unknown method": (
        lambda c: scratch(c)["methods"].update(osciqant={"bits": 3}),
        r"experiments\.mlp5-scratch\.methods\.osciqant: unknown method 'osciqant'; did you mean 'osciquant'\?",
    ),
    "unknown model": (
        lambda c: scratch(c).update(model={"name": "resnet19"}), r"model\.name: unknown model 'resnet19'; did you mean 'resnet18'"
    ),
    "unknown model option": (
        lambda c: scratch(c).update(model={"name": "mlp5", "widht": 3}), r"model: unknown key 'widht'; did you mean 'width'"
    ),
    "heads that do not divide the width": (
        lambda c: scratch(c).update(model={"name": "vit-tiny", "width": 48, "heads": 5}), r"heads: 5 do not divide a width of 48"
    ),
    "model without a name": (lambda c: scratch(c).update(model={}), r"model: name is missing"),
    "unknown dataset": (lambda c: c.update(data="cifar"), r"data: unknown dataset 'cifar'; did you mean 'cifar10'\?"),
    "unknown layer": (
        lambda c: scratch(c).update(quant_layers=["fc7"]), r"quant_layers: 'fc7' matches no layer; did you mean 'fc[1-6]'"
    ),
    "unknown regularized layer": (
        lambda c: scratch(c)["methods"]["osciquant"].update(reg_layers=["conv1"]),
        r"methods\.osciquant\.reg_layers: 'conv1' matches no layer; did you mean 'fc1'",
    ),
    "bits below 2": (lambda c: scratch(c)["methods"].update(qat={"bits": 1}), r"methods\.qat: bits: .*greater than or equal to 2"),
    "bits not evaluated": (lambda c: scratch(c)["methods"].update(qat={"bits": 5}), r"bits: 5 is not among eval_bits"),
    "no bits": (lambda c: scratch(c)["methods"].update(qat={"bits": []}), r"methods\.qat\.bits: the list is empty"),
    "missing bits": (lambda c: scratch(c)["methods"].update(qat={}), r"methods\.qat: bits: this key is missing"),
    "empty seeds": (lambda c: c.update(seeds=[]), r"seeds: List should have at least 1 item"),
    "repeated seeds": (lambda c: c.update(seeds=[1, 1]), r"seeds: 1 stands twice"),
    "lambda not a number": (
        lambda c: scratch(c)["methods"]["osciquant"].update({"lambda": "much"}),
        r"methods\.osciquant: lambda: .*valid number.*'much'",
    ),
    "lambda infinite": (
        lambda c: scratch(c)["methods"]["osciquant"].update({"lambda": float("inf")}), r"lambda: .*finite number"
    ),
    "ptq asked to train": (
        lambda c: scratch(c)["methods"].update(ptq={"bits": 3}), r"methods\.ptq: PTQ trains nothing; it is an evaluation"
    ),
    "option of another method": (
        lambda c: scratch(c)["methods"].update(qat={"bits": 3, "lambda": 1}), r"methods\.qat: unknown key 'lambda'"
    ),
    "wrong choice": (
        lambda c: scratch(c)["methods"].update(qat={"bits": 3, "scale_grad": "flwo"}),
        r"scale_grad: 'flwo' is not allowed; did you mean 'flow'\?",
    ),
    "misspelt weights to keep": (
        lambda c: c["training"].update(keep="lats"), r"training\.keep: 'lats' is not allowed; did you mean 'last'\?"
    ),
    "misspelt preset": (
        lambda c: scratch(c)["methods"]["osciquant"].update(preset="ofical_code"),
        r"preset: unknown preset 'ofical_code'; did you mean 'official_code'\?$",
    ),
    "half precision beside published numbers": (
        lambda c: c.update(published="paper", training=c["training"] | {"precision": "bf16"}),
        r"training: precision: bf16 is not what published numbers are compared with; use tf32",
    ),
    "another epoch beside published numbers": (
        lambda c: c.update(published="paper", training=c["training"] | {"keep": "last"}),
        r"training: keep: last is not what published numbers are compared with; use both",
    ),
    "preset against option": (
        lambda c: scratch(c)["methods"]["osciquant"].update(preset="paper_text", reg_half=False),
        r"reg_half: False is not preset paper_text's \(True\); say preset: custom",
    ),
    "flow without a gradient": (
        lambda c: scratch(c)["methods"].update(qat={"bits": 3, "scale_source": "mse"}), r"say scale_grad: detach"
    ),
    "wrong eval bits": (lambda c: c.update(eval_bits=[32, 1]), r"eval_bits: 1 is not 2 to 8, nor 32"),
    "eval bits without latent": (lambda c: c.update(eval_bits=[2, 3]), r"eval_bits: must hold 32"),
    "unknown rule": (
        lambda c: c.update(cross_bit=["requantize", "slices"]), r"cross_bit\.1: 'slices' is not allowed; did you mean 'slice'"
    ),
    "slices alone": (lambda c: c.update(cross_bit=["slice"]), r"cross_bit: must hold requantize"),
    "slices of nothing": (
        lambda c: scratch(c).update(methods={"baseline": {}}) or c.update(eval_bits=[32, 8], cross_bit=["requantize", "slice"]),
        r"cross_bit: slice: eval_bits has no width below 8",
    ),
    "nothing left to train on": (lambda c: c.update(validation=1400), r"validation: 1400 of 1400 training images"),
    "fine-tune from nothing": (lambda c: scratch(c).update(setting="finetune"), r"setting: finetune needs start_from"),
    "fine-tune from the unknown": (
        lambda c: scratch(c).update(setting="finetune", start_from="mlp5-scrach"),
        r"start_from: unknown experiment 'mlp5-scrach'; did you mean 'mlp5-scratch'",
    ),
    "unknown class": (lambda c: scratch(c).update(classes=[0, 10]), r"classes: digits has no class number 10"),
    "table of nothing": (lambda c: c["tables"].update(table1=["x"]), r"tables\.table1: unknown experiment 'x'"),
    "sweep in a table of single cells": (
        lambda c: c["tables"].update(table1=["mlp5-lambda"]), r"tables\.table1: mlp5-lambda is a sweep; .* one run per cell"
    ),
    "reason for the unknown": (
        lambda c: c.update(not_run={"mlp5-lamda": "no time"}),
        r"not_run: unknown experiment 'mlp5-lamda'; did you mean 'mlp5-lambda'",
    ),
    "unknown table": (lambda c: c["tables"].update(table9=["mlp5-scratch"]), r"tables\.table9"),
    "figure of nothing": (
        lambda c: c["figures"]["figure7"].update(panels=["mlp5-scratch/qat-2bit"]),
        r"figures\.figure7\.panels: unknown variant 'mlp5-scratch/qat-2bit'; did you mean 'mlp5-scratch/qat-3bit'",
    ),
    "figure that is not drawn": (lambda c: c["figures"].update(figure4={}), r"figures: unknown key 'figure4'; did you mean 'figure[1-8]'"),
    "exact figure that is told something": (lambda c: c["figures"].update(figure1={"panels": []}), r"figures\.figure1: unknown key 'panels'"),
    "misspelt figure": (lambda c: c["figures"].update({"figrue7-qat": {}}), r"figures: unknown key 'figrue7-qat'; did you mean 'figure7'\?"),
    "bad label": (lambda c: c["figures"].update({"figure2-MLP": {}}), r"figures: 'figure2-MLP': a label is lower-case letters and digits, e\.g\. figure2-mlp5"),
    "key of another figure": (
        lambda c: c["figures"]["figure3"].update(layer="fc2.weight"), r"figures\.figure3: unknown key 'layer'"
    ),
    "sweep without bits": (lambda c: c["figures"]["figure6"].pop("bits"), r"figures\.figure6\.bits: this key is missing"),
    "sweep of nothing": (
        lambda c: c["figures"]["figure6"].update(experiments=["mlp5-lamda"]),
        r"figures\.figure6\.experiments: unknown experiment 'mlp5-lamda'; did you mean 'mlp5-lambda'",
    ),
    "search of nothing": (
        lambda c: c.update(rate_searches={"mlp5-scratch": ["mlp5-scrach"]}),
        r"rate_searches\.mlp5-scratch: unknown experiment 'mlp5-scrach'; did you mean 'mlp5-scratch'",
    ),
    "search without a baseline": (
        lambda c: c.update(rate_searches={"mlp5-scratch": ["mlp5-lambda"]}),
        r"rate_searches\.mlp5-scratch: mlp5-lambda trains no baseline",
    ),
    "one variant twice": (lambda c: scratch(c)["methods"].update(qat={"bits": [3, 3]}), r"methods\.qat\.bits: 3 stands twice"),
    "empty sweep": (lambda c: c["experiments"]["mlp5-lambda"].update(sweep={"lambda": []}), r"sweep\.lambda: List should have at least 1 item"),
    "learning rate below zero": (lambda c: c["experiments"]["mlp5-lambda"].update(sweep={"lambda": [1.0], "lr": [-1.0]}), r"sweep: lr: .*greater than 0"),
    "figure of an unknown layer": (lambda c: c["figures"]["figure2"].update(layer="fc9.weight"), r"figures\.figure2\.layer: 'fc9' is no layer of mlp5-scratch/qat-3bit; did you mean"),
    "one rule for two experiments": (
        lambda c: c["experiments"].update({"mlp5-1.5": scratch(c), "mlp5-1-5": scratch(c)}),
        r"experiments\.mlp5-1-5: as a rule of Snakemake its name is that of mlp5-1\.5",
    ),
    "another name": (lambda c: c.update(study="other"), r"study: 'other' is not the file's name 'tiny'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_studies_are_refused_by_file_and_key(load, tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        load(change)
    assert str(tmp_path / "tiny.yaml") in str(error.value)


def test_a_repeated_key_is_refused(load):
    with pytest.raises(InputError, match="key 'seeds' stands twice"):
        load(text=("seeds: [0, 1]", "seeds: [0, 1]\nseeds: [2]"))


def test_broken_yaml_is_refused(load):
    with pytest.raises(InputError, match="not valid YAML"):
        load(text=("seeds: [0, 1]", "seeds: [0, 1"))


def test_a_missing_study_names_the_nearest():
    with pytest.raises(InputError, match=r"no such study; did you mean 'quick'\?"):
        studies.load(ROOT / "params/quik.yaml")


def test_the_cli_says_it_in_one_message(capsys):
    assert main(["check", "--study", str(ROOT / "params/quik.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_names_of_variants(load):
    _, variants = load()
    assert [variant.path for variant in variants] == [
        "mlp5-scratch/baseline", "mlp5-scratch/qat-3bit", "mlp5-scratch/osciquant-ternary",
        "mlp5-scratch/osciquant-3bit", "mlp5-lambda/osciquant-3bit-lambda0", "mlp5-lambda/osciquant-3bit-lambda2",
    ]  # fmt: skip


def test_names_say_the_width_of_activations(load):
    def change(content):
        inputs = {"activations": {"bits": 4}, "start_from": "mlp5-scratch", "setting": "finetune", "histograms": None}
        content["experiments"]["w3a4"] = content["experiments"]["mlp5-scratch"] | inputs
        content["figures"] = {}

    _, variants = load(change)
    found = [variant for variant in variants if variant.experiment == "w3a4"]
    assert [variant.name for variant in found] == [
        "baseline-a4",
        "qat-3bit-a4",
        "osciquant-ternary-a4",
        "osciquant-3bit-a4",
    ]
    assert all(variant.recipe.activation_bits == 4 for variant in found)
    assert {variant.recipe.activation_bits for variant in variants if variant.experiment != "w3a4"} == {None}


def test_sweep_labels(load):
    def change(content):
        content["experiments"]["mlp5-lambda"]["sweep"] = {"lambda": [0.25], "lr": [3e-3, 2.5e-4]}
        content["figures"] = {}

    _, variants = load(change)
    names = [variant.name for variant in variants if variant.experiment == "mlp5-lambda"]
    assert names == ["osciquant-3bit-lambda0.25-lr3e-3", "osciquant-3bit-lambda0.25-lr2.5e-4"]
    assert [variant.recipe.training.lr for variant in variants[-2:]] == [3e-3, 2.5e-4]


def test_a_recipe_holds_everything_resolved(load):
    _, variants = load()
    osci = variants[2].recipe
    assert osci.method.get("reg_reduction") == "layer_mean"  # from the default preset
    assert osci.method.get("scale_grad") == "flow"
    assert osci.quant_layers == ("fc*",)
    plain = osci.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["method"] == {"name": "osciquant"} | osci.method.options.model_dump(mode="json", by_alias=True)
    assert [recipe_of(variant.recipe.plain()) for variant in variants] == [variant.recipe for variant in variants]


def test_selection(load):
    study, variants = load()

    def chosen(only=None, seeds=None):
        return select(study, variants, only, seeds).variants

    assert len(chosen("mlp5-lambda")) == 2
    assert [v.seeds for v in chosen("mlp5-scratch/baseline", 1)] == [(1,)]
    assert [v.seeds for v in chosen("mlp5-scratch/baseline", "0,1")] == [(0, 1)]
    assert chosen() == chosen("all") == variants
    with pytest.raises(InputError, match="did you mean 'mlp5-lambda'"):
        chosen("mlp5-lamda")
    with pytest.raises(InputError, match="no seed 7"):
        chosen(None, "0,7")
    with pytest.raises(InputError, match="whole numbers"):
        chosen(None, "one")


def test_a_selection_keeps_what_a_fine_tune_starts_from():
    kept = select(*studies.load(ROOT / "params/quick.yaml"), "vit-tiny-finetune/qat-3bit").variants
    assert [variant.path for variant in kept] == ["vit-tiny-pretrain/baseline", "vit-tiny-finetune/qat-3bit"]


def test_a_study_says_what_is_wanted_now(load):
    wanted = {"only": ["mlp5-scratch/qat-3bit", "mlp5-lambda"], "seeds": [1]}
    study, variants = load(lambda c: c.update(wanted=wanted))
    found = select(study, variants).variants
    assert [variant.path for variant in found] == [
        "mlp5-scratch/qat-3bit", "mlp5-lambda/osciquant-3bit-lambda0", "mlp5-lambda/osciquant-3bit-lambda2",
    ]  # fmt: skip
    assert {variant.seeds for variant in found} == {(1,)}
    assert select(study, variants, "all").variants == variants  # a command that says only= or seeds= has its way
    assert {variant.seeds for variant in select(study, variants, None, 0).variants} == {(0,)}
    with pytest.raises(InputError, match=r"wanted.only: no such experiment.*did you mean 'mlp5-lambda'"):
        load(lambda c: c.update(wanted={"only": ["mlp5-lamda"]}))


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_study_is_valid(file):
    study, variants = studies.load(file)
    assert study.study == file.stem
    assert len({variant.path for variant in variants}) == len(variants)


def test_an_extending_study_replaces_keys():
    paper, canonical = studies.load(ROOT / "params/paper.yaml")
    jpeg, other = studies.load(ROOT / "params/paper-jpeg.yaml")
    assert (paper.data, jpeg.data) == ("cifar10", "cifar10-jpeg")
    for a, b in zip(canonical, other):
        assert replace(a.recipe, data="") == replace(b.recipe, data="")


def test_the_schema_is_up_to_date():
    """Mend with: python -m oscillations schema"""
    assert read_json(ROOT / "params/schema.json") == json.loads(json.dumps(studies.json_schema()))


def test_checking_a_study_does_not_import_torch():
    code = (
        "import sys; from pathlib import Path; from oscillations.study import reading;"
        "reading.load(Path('params/quick.yaml')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_x2_transcription_of_the_published_tables():
    published = pd.read_csv(ROOT / "params/published.csv")
    assert published.table.value_counts().to_dict() == {"T1": 20, "T2": 20, "T3": 70, "T4": 14, "T5": 10}
    keys = ["model", "method", "train_bits", "eval_bits"]
    two, three = published[published.table == "T2"], published[published.table == "T3"]
    shared = two.merge(three, on=keys, suffixes=("_2", "_3"))
    assert len(shared) == 20
    assert (shared.mean_2 == shared.mean_3).all()
    assert (shared.std_2 == shared.std_3).all()


def test_published_vocabulary_is_the_studies():
    published = pd.read_csv(ROOT / "params/published.csv")
    assert set(published.model) == {"mlp5", "resnet18", "vit-tiny"}
    assert set(published.method) == {"baseline", "ptq", "qat", "osciquant"}
    assert Path(ROOT / "params/published.csv").read_text().count("\n") == 135


def test_the_paper_study_plans_every_published_table():
    """7 trainings a model and setting in tables 1 and 2; tables 4 and 5 hold every published lambda."""
    study, variants = studies.load(ROOT / "params/paper.yaml")
    published = pd.read_csv(ROOT / "params/published.csv")
    published = published[published.method != "ptq"]
    for table, cells in published.groupby("table"):
        planned = [v.recipe for v in variants if v.experiment in study.tables[f"table{table[1:]}"]]
        trained = {
            (r.model.name, r.method.name, r.bits) + ((r.method.get("lambda"),) if table in ("T4", "T5") else ())
            for r in planned
        }
        columns = ["model", "method", "train_bits"] + (["lambda"] if table in ("T4", "T5") else [])
        wanted = set(cells[columns].itertuples(index=False, name=None))
        assert wanted <= trained, table
        if table in ("T1", "T2"):
            assert len(planned) == len(wanted) == 14


def test_a_slice_of_the_images_is_part_of_the_recipe(load):
    images = {"train": 100, "validation": 50, "test": 20}
    _, (whole, *_) = load(lambda c: None)
    _, (part, *_) = load(lambda c: scratch(c).update(images=images))
    assert (whole.recipe.images, part.recipe.plain()["images"]) == (None, images)
