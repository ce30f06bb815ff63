"""Confirming runs after a change of the code."""

import json

RECORD = "results/tiny/runs/mlp5-scratch/osciquant-3bit/seed1/run.json"


def test_a_change_of_form_is_confirmed_and_retrains_nothing(finished):
    record = json.loads((finished.folder / RECORD).read_text())
    finished.edit(
        "src/oscillations/optimizer.py",
        "BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8",
        "BETA1 = 1 - 0.1\nBETA2, EPSILON = 0.999, 1e-8",
    )
    assert "5 stale" not in finished.cli("confirm", "--study", "tiny")
    confirmed = json.loads((finished.folder / RECORD).read_text())
    assert confirmed["fingerprint"] != record["fingerprint"]
    assert [entry["fingerprint"] for entry in confirmed["confirmed"]] == [record["fingerprint"]]
    assert confirmed["confirmed"][0]["epochs_replayed"] == 1
    assert {k: v for k, v in confirmed.items() if k not in ("fingerprint", "confirmed")} == {
        k: v for k, v in record.items() if k != "fingerprint"
    }
    finished.snakemake("all")
    log = (finished.folder / "logs/tiny/train/mlp5-scratch/osciquant-3bit.log").read_text()
    assert log.count(": kept") == 2
    assert finished.planned() == {}


def test_a_change_of_arithmetic_is_not_confirmed(finished):
    before = (finished.folder / RECORD).read_text()
    finished.edit("src/oscillations/methods/osciquant.py", "factor = 2 * strength", "factor = 2.000001 * strength")
    output = finished.cli("confirm", "--study", "tiny", ok=False)
    assert "mlp5-scratch/osciquant-3bit/seed1: history.csv, epoch 1: train_loss was" in output
    assert "baseline" not in output  # its code is the same: nothing to confirm
    assert (finished.folder / RECORD).read_text() == before


def test_another_recipe_has_to_be_trained(finished):
    finished.edit("params/tiny.yaml", "osciquant: {bits: [2, 3], lambda: 1}", "osciquant: {bits: [2, 3], lambda: 1.5}")
    output = finished.cli("confirm", "--study", "tiny", "--only", "mlp5-scratch/osciquant-3bit", ok=False)
    assert "mlp5-scratch/osciquant-3bit/seed0: not replayed, another recipe" in output
