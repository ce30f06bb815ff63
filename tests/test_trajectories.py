"""A few steps of every method and model, within a tolerance that holds on any processor.

``python tests/test_trajectories.py`` writes tests/trajectories.json; a changed number there is a changed arithmetic.
"""

import json

import pytest
import torch
from conftest import ROOT, blobs_dataset, image_sets, make_trainer, plain_recipe

from oscillations import methods, models

FILE = ROOT / "tests/trajectories.json"
STEPS = {"mobilenetv2": 1}  # of a network so deep and narrow, rounding makes another one in a few
TOLERANCE = 1e-3  # relative; rounding differs between processors by 1e-5 at most, another arithmetic by more
MLP = {"name": "mlp5", "width": 12}
OPTIONS = {
    "cga": {"start": 0.5}, "dampening": {"lambda": 1.0, "start": 0.0}, "ema": {"warmup_steps": 5}, "qc": {"start": 0.5},
    "freezing": {"momentum": 0.1, "start": 0.3, "threshold_final": 0.02}, "gradient-l1": {"share": 1.0},
    "osciquant": {"lambda": 1.0}, "osciquant-freezing": {"lambda": 1.0, "momentum": 0.1, "start": 0.3},
    "parq": {"steepness": 1.0},
    "osci-reset": {"start": 0.0, "window": 2, "period": 3, "tau": 1.0}, "q-ema": {"decay": 0.9, "warmup_steps": 2},
    "range-penalty": {"lambda": 1.0}, "signed": {"lambda_start": 1.0, "lambda_end": -1.0},
    "trs": {"optimizer": "sgd", "eta": 1.0}, "q-ramping": {"period": 3, "window": 2, "alpha": 0.5, "beta": 1},
}  # fmt: skip
NETWORKS = {
    "mobilenetv2": {"width": 0.1, "smallest": 2}, "resnet18": {"width": 8},
    "vit-tiny": {"patch_size": 4, "width": 12, "depth": 2, "heads": 3},
}  # fmt: skip
CASES = {f"mlp5 {name}": (MLP, {"name": name, "bits": 3} | OPTIONS.get(name, {})) for name in methods.names()}
CASES["mlp5 baseline"] = MLP, {"name": "baseline"}
CASES |= {
    f"{model} {method['name']}": ({"name": model} | options, method)
    for model, options in NETWORKS.items()
    for method in ({"name": "baseline"}, {"name": "qat", "bits": 3}, {"name": "osciquant", "bits": 4, "lambda": 1.0})
}


def trajectory(model, method):
    """The loss of every step, and how far each parameter has moved after the last.

    With SGD: Adam's first steps are signs of gradients, and those of almost nothing are a matter of rounding.
    """
    cpu = torch.device("cpu")
    about, tensors = blobs_dataset()
    recipe = plain_recipe() | {"model": model, "method": method, "quant_layers": ["*"]}
    recipe["training"] |= {
        "optimizer": "sgd",
        "lr": 0.05,
        "epochs": 1,
        "patience": 1,
        "batch_size": 50,
    }  # the six steps are the whole training
    trainer = make_trainer(recipe, 0, about, image_sets(about, tensors, recipe, cpu), cpu)
    train = trainer.sets["train"]
    order, losses = train.order(0, 0), []
    start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.model.train()
    for step in range(STEPS.get(model["name"], 6)):
        trainer.progress.step = step
        losses.append(trainer.step(*train.batch(order[50 * step : 50 * (step + 1)])).item())
    moved = [(now - before).double().norm().item() for now, before in zip(trainer.model.parameters(), start)]
    return {"losses": losses, "moved": moved}


@pytest.mark.parametrize("case", CASES)
def test_a_trajectory_is_the_known_one(case):
    known, found = json.loads(FILE.read_text())[case], trajectory(*CASES[case])
    assert found["losses"] == pytest.approx(known["losses"], rel=TOLERANCE)
    assert found["moved"] == pytest.approx(known["moved"], rel=TOLERANCE, abs=1e-5)


def test_another_arithmetic_leaves_the_tolerance():
    model, method = CASES["mlp5 osciquant"]
    found = trajectory(model, method | {"lambda": 1.01})
    known = json.loads(FILE.read_text())["mlp5 osciquant"]
    assert found["moved"] != pytest.approx(known["moved"], rel=TOLERANCE, abs=1e-5)


def test_every_method_and_model_has_one():
    assert set(json.loads(FILE.read_text())) == set(CASES)
    assert {case.split()[1] for case in CASES} == set(methods.names())
    assert {case.split()[0] for case in CASES} == set(models.names())


if __name__ == "__main__":
    FILE.write_text(json.dumps({case: trajectory(*parts) for case, parts in CASES.items()}, indent=1) + "\n")
