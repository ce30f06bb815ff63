"""Pretrained weights: conversion, what is verified, what does not fit, and a fine-tune's label wherever it is shown."""

import dataclasses
import errno
import json

import pandas as pd
import pytest
import torch
from conftest import ROOT, image_sets, job_counts, make_trainer, reported
from safetensors.torch import load_file, save_file

from oscillations import datasets, models
from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.core.files import file_hash, read_json
from oscillations.engine.layers import load_weights
from oscillations.jobs import train as runs
from oscillations.jobs.networks import new_network
from oscillations.records.identity import OTHER_WEIGHTS
from oscillations.records.plans import plans
from oscillations.report.collect import start_label
from oscillations.report.results import MEASUREMENTS
from oscillations.report.tables.published import agreement_cells, published_table, table_cells
from oscillations.study import pretrained as weights
from oscillations.study import reading as studies

RESNET, DEIT = "torchvision/resnet18", "timm/deit_tiny_patch16_224"


def resnet_state(classes=1000, seed=0):
    """The weights of an ImageNet-sized ResNet-18, freshly initialised."""
    torch.manual_seed(seed)
    return models.build(weights.KNOWN[RESNET].model, (3, 224, 224), classes).state_dict()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint file of torchvision's layout."""
    file = tmp_path_factory.mktemp("checkpoint") / "mine.pth"
    torch.save(resnet_state(), file)
    return file


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known_by(monkeypatch, name, file):
    """Let the published hash of ``name`` be that of ``file``."""
    known = weights.KNOWN[name]
    url = known.url.replace(known.digits, file_hash(file)[:8])
    monkeypatch.setitem(weights.KNOWN, name, dataclasses.replace(known, url=url))


def test_the_published_file_is_verified(here, checkpoint, monkeypatch):
    known_by(monkeypatch, RESNET, checkpoint)
    weights.write(RESNET, checkpoint)
    about = read_json(here / "data/weights/torchvision-resnet18.json")
    assert about == {
        "name": RESNET, "trained_on": "ImageNet-1k", "verified": True, "source": "local file mine.pth",
        "source_sha256": file_hash(checkpoint), "label": "torchvision/resnet18 (ImageNet-1k)",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "sha256": file_hash(here / "data/weights/torchvision-resnet18.safetensors"),
    }  # fmt: skip
    assert about["label"] in weights.IMAGENET_LABELS
    stored, original = weights.read(RESNET), resnet_state()
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[key], original[key]) for key in original)


def test_a_full_disk_is_not_the_librarys_fault(here, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", full)
    assert main(["weights", "--name", "torchvision/squeezenet1_1"]) == 2
    assert capsys.readouterr().err.startswith("error: the cache of torchvision: no room left to write it")


def test_any_other_file_says_that_it_is_not_verified(here, checkpoint):
    weights.write(RESNET, checkpoint)
    about = weights.read_about(RESNET)
    assert (about["verified"], about["trained_on"]) == (False, "unknown (local file mine.pth)")
    assert about["label"] == "local file mine.pth, not verified"
    assert about["label"] not in weights.IMAGENET_LABELS


def test_every_form_of_a_file_gives_the_same_bytes(here, checkpoint):
    state = resnet_state()
    (here / "folder").mkdir()
    torch.save({"model": state, "epoch": 3}, here / "wrapped.pth")
    save_file(state, here / "plain.safetensors")
    torch.save(state, here / "folder" / weights.KNOWN[RESNET].file)
    hashes = set()
    for source in (checkpoint, here / "wrapped.pth", here / "plain.safetensors", here / "folder"):
        weights.write(RESNET, source)
        hashes.add(weights.read_about(RESNET)["sha256"])
    assert len(hashes) == 1


def test_the_hashes_are_those_in_the_published_names():
    assert weights.KNOWN[RESNET].digits == "f37072fd"
    assert weights.KNOWN[DEIT].digits == "a1311bcf"


class Malice:
    def __reduce__(self):
        return print, ("code ran",)


def test_files_that_are_no_state_dict_are_refused(here, capsys):
    torch.save(Malice(), here / "code.pth")
    with pytest.raises(InputError, match=r"code\.pth: not a state dict that can be read without running code"):
        weights.write(RESNET, here / "code.pth")
    assert "code ran" not in capsys.readouterr().out
    (here / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"broken\.safetensors: not a state dict"):
        weights.write(RESNET, here / "broken.safetensors")
    torch.save({"epoch": 3}, here / "empty.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        weights.write(RESNET, here / "empty.pth")
    with pytest.raises(
        InputError, match=r"none of the files resnet18-f37072fd\.pth, torchvision-resnet18\.safetensors"
    ):
        weights.write(RESNET, here)
    assert not (here / "data").exists()


def test_what_does_not_fit_is_reported_in_groups(here):
    state = resnet_state()
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["stem.weight"] = state.pop("bn1.weight")
    for key in [key for key in state if key.startswith("layer4.")][:15]:
        del state[key]
    torch.save(state, here / "mine.pth")
    with pytest.raises(InputError) as error:
        weights.write(RESNET, here / "mine.pth")
    first, missing, unexpected, shapes = str(error.value).splitlines()
    assert first.startswith("torchvision/resnet18, local file mine.pth: the checkpoint does not fit the model")
    assert missing.startswith("  missing (16): bn1.weight, layer4.0.conv1.weight, ")
    assert missing.endswith(" and 6 more")
    assert unexpected == "  unexpected (1): stem.weight"
    assert shapes == "  of another shape (1): conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)"
    assert not (here / "data").exists()


def test_the_head_may_have_any_number_of_classes(here):
    torch.save(resnet_state(classes=7), here / "mine.pth")
    weights.write(RESNET, here / "mine.pth")
    assert weights.read(RESNET)["fc.weight"].shape == (7, 512)


@pytest.mark.slow
@pytest.mark.parametrize("name", [RESNET, DEIT])
def test_the_libraries_own_weights_fit(here, name):
    """State dicts as the libraries save them, 1,000 classes, load into our models with another head."""
    if name == DEIT:
        import timm

        state = timm.create_model("deit_tiny_patch16_224", pretrained=False).state_dict()
    else:
        from torchvision.models import resnet18

        state = resnet18().state_dict()
    torch.save({"model": state}, here / "mine.pth")
    weights.write(name, here / "mine.pth")
    ours = models.build(weights.KNOWN[name].model, (3, 224, 224), 10)
    head = models.head(weights.KNOWN[name].model["name"], ours)
    load_weights(ours, weights.read(name), head)
    for key, value in ours.state_dict().items():
        assert key.startswith(f"{head}.") or torch.equal(value, state[key]), key


@pytest.mark.slow
def test_the_table_says_what_the_libraries_say():
    import timm
    from torchvision.models import ResNet18_Weights

    theirs = ResNet18_Weights.IMAGENET1K_V1
    assert weights.KNOWN[RESNET].url == theirs.url
    assert list(weights.IMAGENET_MEAN) == theirs.transforms().mean
    assert list(weights.IMAGENET_STD) == theirs.transforms().std
    deit = timm.get_pretrained_cfg("deit_tiny_patch16_224")
    assert weights.KNOWN[DEIT].url == deit.url
    assert (deit.mean, deit.std, deit.input_size) == (weights.IMAGENET_MEAN, weights.IMAGENET_STD, (3, 224, 224))


def test_the_command_line(here, checkpoint, capsys):
    assert main(["weights", "--name", RESNET, "--source", "nowhere.pth"]) == 2
    assert "weights=nowhere.pth: no such file or folder" in capsys.readouterr().err
    assert main(["weights", "--name", "resnet18"]) == 2
    assert (
        "'resnet18' is not timm/NAME or torchvision/NAME; did you mean 'torchvision/resnet18'?"
        in capsys.readouterr().err
    )
    assert main(["weights", "--name", RESNET, "--source", str(checkpoint)]) == 0
    with pytest.raises(InputError, match=r"python -m oscillations weights --name timm/deit_tiny_patch16_224"):
        weights.read(DEIT)
    file = here / "data/weights/torchvision-resnet18.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="content differs from the hash"):
        weights.read(RESNET)


# -- studies -------------------------------------------------------------------------------------------------

FINETUNE = """\
study: tuned
title: Fine-tunes
note: For the tests.
published: paper
data: cifar10
validation: 20
seeds: [0]
training: {lr: 1.0e-3, batch_size: 16, epochs: 1, patience: 1}
experiments:
  resnet18-finetune:
    model: {name: resnet18, stem: imagenet, stem_maxpool: true}
    setting: finetune
    pretrained: torchvision/resnet18
    methods:
      baseline:
      qat: {bits: 3}
tables:
  table2: [resnet18-finetune]
"""


def load(folder, *changes):
    text = FINETUNE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "tuned.yaml").write_text(text)
    return studies.load(folder / "tuned.yaml")


def test_a_recipe_holds_the_checkpoint_and_its_normalisation(tmp_path):
    recipe = load(tmp_path)[1][0].recipe
    assert recipe.plain()["pretrained"] == {
        "name": RESNET,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


MODEL = "{name: resnet18, stem: imagenet, stem_maxpool: true}"
BAD = {
    "neither": ([("    pretrained: torchvision/resnet18\n", "")], r"setting: finetune needs start_from or pretrained"),
    "both": (
        [("    pretrained:", "    start_from: resnet18-finetune\n    pretrained:")], r"start_from and pretrained: a network starts from one"
    ),
    "no library": ([("torchvision/resnet18", "resnet18")], r"pretrained: 'resnet18' is not timm/NAME or torchvision/NAME; did you mean"),
    "another model": (
        [(MODEL, "{name: resnet18}")],
        r"pretrained: torchvision/resnet18 fits model \{name: torchvision/resnet18\} or \{name: resnet18, width: 64, stem: imagenet",
    ),
    "another side": (
        [("torchvision/resnet18", DEIT), (MODEL, "{name: vit-tiny}")], r"takes images of side 224; say resize: 224"
    ),
    "grey images": ([("data: cifar10", "data: digits")], r"takes images of 3 channels, the data's have 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_starts_are_refused_by_key(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, *changes)
    assert "tuned.yaml: experiments.resnet18-finetune" in str(error.value)


@pytest.mark.slow
def test_an_unknown_checkpoint_of_a_library_names_the_nearest(tmp_path):
    changes = [("torchvision/resnet18", "timm/tiny_vit_5m_244"), (MODEL, "{name: timm/tiny_vit_5m_244}")]
    with pytest.raises((InputError, ValueError), match="tiny_vit_5m_224"):
        load(tmp_path, *changes)
    changes = [("torchvision/resnet18", "timm/tiny_vit_5m_224.dist_in22k"), (MODEL, "{name: timm/tiny_vit_5m_224}")]
    recipe = load(tmp_path, *changes, ("methods:", "resize: 224\n    methods:"))[1][0].recipe
    assert recipe.pretrained.name == "timm/tiny_vit_5m_224.dist_in22k"
    assert recipe.pretrained.mean == [0.485, 0.456, 0.406]


def test_studies_name_their_checkpoints():
    assert studies.load(ROOT / "params/tiny-imagenet.yaml")[0].checkpoints == {RESNET, DEIT}


# -- runs ----------------------------------------------------------------------------------------------------


def small_cifar():
    """A dataset of CIFAR-10's shape with 60 training images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(80) % 10
    about = {
        "name": "cifar10", "source": "made up", "sha256": "0", "train": 60, "test": 20, "image_shape": [3, 32, 32],
        "classes": list("abcdefghij"), "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    tensors = {
        "train_images": images[:60], "train_labels": labels[:60], "test_images": images[60:], "test_labels": labels[60:]
    }  # fmt: skip
    return about, tensors


def test_inputs_are_normalised_as_the_checkpoints(recipe):
    about, tensors = small_cifar()
    recipe["validation"] = 20
    own = image_sets(about, tensors, recipe, torch.device("cpu"))["test"].batch(slice(0, 5))[0]
    recipe["pretrained"] = {"name": RESNET, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    found = image_sets(about, tensors, recipe, torch.device("cpu"))["test"].batch(slice(0, 5))[0]
    pixels = tensors["test_images"][:5].double() / 255
    mean, std = torch.tensor(recipe["pretrained"]["mean"]), torch.tensor(recipe["pretrained"]["std"])
    expected = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.double(), (pixels - 0.5) / 0.25, rtol=0, atol=1e-5)


@pytest.fixture
def trained(here, checkpoint, monkeypatch):
    """A fine-tune from an unverified file, through the real training job."""
    weights.write(RESNET, checkpoint)
    monkeypatch.setattr(datasets, "read", lambda *_: small_cifar())
    study, variants = load(here)
    runs.train(variants[0], runs.StopSignal(), device="cpu")
    return study, variants[0]


@pytest.mark.slow
def test_a_run_knows_what_it_started_from(trained, here):
    _, variant = trained
    run = variant.runs()[0]
    record = read_json(run.record)
    about = weights.read_about(RESNET)
    assert record["start_sha256"] == about["sha256"]
    assert record["start"] == {key: about[key] for key in ("name", "trained_on", "verified", "label", "sha256")}
    assert start_label(variant.recipe, record) == "local file mine.pth, not verified"
    network = new_network(variant, run, small_cifar()[0], torch.device("cpu"))
    start, own = resnet_state(), network.model.state_dict()
    assert all(torch.equal(own[key], start[key]) for key in start if not key.startswith("fc."))
    assert own["fc.weight"].shape == (10, 512)
    assert load_file(run.checkpoint)["fc.weight"].shape == (10, 512)


@pytest.mark.slow
def test_other_weights_make_a_run_stale(trained, here):
    _, variant = trained
    assert plans([variant])[0].stale is None
    torch.save(resnet_state(seed=1), here / "other.pth")
    weights.write(RESNET, here / "other.pth")
    assert plans([variant])[0].stale == OTHER_WEIGHTS


@pytest.mark.slow
def test_tiny_vit_5m_fine_tunes_from_another_number_of_classes(recipe):
    spec = {"name": "timm/tiny_vit_5m_224", "arguments": {}}
    layers = ["*.attn.qkv", "*.attn.proj", "*.mlp.fc1", "*.mlp.fc2"]
    recipe |= {
        "model": spec, "quant_layers": layers, "resize": 224, "setting": "finetune", "validation": 20,
        "method": {"name": "osciquant", "bits": 3, "lambda": 1}, "pretrained": {"name": "x", "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    start = models.build(spec, (3, 224, 224), 1000).state_dict()
    about, tensors = small_cifar()
    sets = image_sets(about, tensors, recipe, torch.device("cpu"))
    trainer = make_trainer(recipe, 0, about, sets, torch.device("cpu"), start)
    own = trainer.model.state_dict()
    assert all(torch.equal(own[key], start[key]) for key in start if not key.startswith("head.fc."))
    assert own["head.fc.weight"].shape == (10, 320)
    assert len(trainer.network.parameters) == 40
    assert torch.isfinite(trainer.step(*sets["train"].batch(slice(0, 2))))


# -- tables --------------------------------------------------------------------------------------------------


def measured(start, accuracy=88.5):
    """Three seeds of the fine-tuned FP baseline of Table 2, whose published mean is 88.50."""
    row = dict.fromkeys(MEASUREMENTS) | {
        "experiment": "resnet18-finetune", "variant": "baseline", "model": "resnet18", "setting": "finetune",
        "method": "baseline", "train_bits": 32, "eval_bits": 32, "lambda": float("nan"), "lr": 1e-3, "bn": "keep",
        "split": "test", "accuracy": accuracy, "best_epoch": 4, "status": "done", "start": start,
    }  # fmt: skip
    return pd.DataFrame([row | {"seed": seed, "run": f"runs/seed{seed}"} for seed in range(3)])


@pytest.mark.parametrize(
    ("start", "judged"),
    [
        ("torchvision/resnet18 (ImageNet-1k)", True),
        ("local file x.pth, not verified", False),
        ("resnet18-pretrain", False),
        ("", False),
    ],
)
def test_only_starts_like_the_papers_are_judged_and_all_are_shown(tmp_path, start, judged):
    study, variants = load(tmp_path)
    report = reported(study, variants, measured(start))
    cells = table_cells(report, "table2")
    cell = cells[(cells.model == "resnet18") & (cells.method == "baseline")].iloc[0]
    assert cell.difference == pytest.approx(0)
    assert cell.agreement == "compatible" if judged else pd.isna(cell.agreement)
    shown = published_table(report, "table2", cells)
    assert [row.cells["Fine-tuned from"] for row in shown.rows] == [start]
    agreement = agreement_cells(report)
    mine = agreement[agreement.n > 0]
    assert set(mine.start) == {start}
    assert mine.agreement.notna().all() == judged


def test_a_study_beside_no_published_numbers_shows_none(tmp_path):
    study, variants = load(tmp_path, ("published: paper", "published: none"))
    report = reported(study, variants, measured("torchvision/resnet18 (ImageNet-1k)"))
    cells = table_cells(report, "table2")
    assert len(cells) == 1
    assert pd.isna(cells["published_mean"]).all()
    shown = published_table(report, "table2", cells)
    assert "Published" not in shown.columns and "Difference" not in shown.columns
    assert [row.cells["Reproduced"] for row in shown.rows] == ["88.50 ± 0.00"]
    assert agreement_cells(report).empty


# -- the workflow --------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(project, checkpoint):
    (project.folder / "params/tuned.yaml").write_text(FINETUNE)
    project.checkpoint = checkpoint
    return project


@pytest.mark.slow
def test_the_workflow_makes_the_weights_before_it_trains(tuned):
    def planned():
        command = ["snakemake", "--cores", "2", "-n", "all", "--config", "study=tuned", f"weights={tuned.checkpoint}"]
        return job_counts(tuned.run(*command))

    first = planned()
    assert first["weights"] == first["fetch"] == 1
    assert first["train_resnet18_finetune"] == 2
    command = ["snakemake", "--cores", "1", "data/weights/torchvision-resnet18.json"]
    tuned.run(*command, "--config", "study=tuned", f"weights={tuned.checkpoint}")
    about = json.loads((tuned.folder / "data/weights/torchvision-resnet18.json").read_text())
    assert about["source"] == "local file mine.pth"
    assert "weights" not in planned()
    output = tuned.run("snakemake", "-n", "all", "--config", "study=tuned", "weights=nowhere", ok=False)
    assert "weights=nowhere: no such file or folder" in output
