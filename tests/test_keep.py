"""Which weights a run keeps: of its best epoch, of the end of its training, or both."""

import csv
import json
import shutil
import signal

import pandas as pd
import pytest
import torch
from conftest import ROOT, plain_recipe
from safetensors.torch import load_file
from test_training import METHODS, run, trainer

from oscillations.core.files import file_hash
from oscillations.records import identity
from oscillations.records.rows import CHECK, EVALUATIONS, read_rows
from oscillations.report.results import MEASUREMENTS, Results, standing
from oscillations.study.variants import recipe_of

# -- the trainer -------------------------------------------------------------------------------------------


def held(made):
    with made.exported():
        return {key: value.clone() for key, value in made.network.trained().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_last_weights_are_those_at_the_end_and_the_best_those_of_the_best_epoch(recipe, blobs, method, monkeypatch):
    """Whatever a run keeps; the stopping rule stays that of the monitored accuracy."""
    recipe["training"] |= {"epochs": 20, "patience": 2}

    def made(keep):
        found, weights = trainer(recipe, blobs, method=method, training=recipe["training"] | {"keep": keep}), []
        metrics = iter([10.0, 30.0, 20.0, 20.0])

        def monitored(row):
            weights.append({key: value.clone() for key, value in found.network.trained().items()})  # as exported
            return next(metrics)

        monkeypatch.setattr(found, "monitored", monitored)
        return run(found), weights

    plain, _ = made("best")
    for keep in ("last", "both"):
        found, weights = made(keep)
        assert (found.progress.best_epoch, found.progress.epoch, found.progress.status) == (2, 4, "done")
        assert equal(found.weights("best"), weights[1])
        assert equal(found.weights("best"), plain.best)
        assert equal(found.weights("last"), weights[3])
        assert equal(found.weights("last"), held(found))
        assert not equal(found.weights("last"), found.weights("best"))


def test_averaged_weights_are_kept_at_the_end_and_not_the_trained_ones(recipe, blobs):
    made = run(trainer(recipe, blobs, method={"name": "ema", "bits": 3, "decay": 0.9, "warmup_steps": 10}))
    names = [key for key, value in made.model.state_dict().items() if value.is_floating_point()]
    last = made.weights("last")
    assert all(torch.equal(last[key], average) for key, average in zip(names, made.method.averages))
    assert not torch.equal(last["fc1.weight"], made.model.fc1.weight)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_last_weights_evaluate_as_the_last_epoch_did(recipe, blobs, method):
    made = run(trainer(recipe, blobs, method=method))
    row, again = made.progress.history[-1], trainer(recipe, blobs, method=method)
    again.network.load_trained(made.weights("last"))
    found = again.validate()
    assert {key: found[key] for key in found if key != "val_loss"} == {
        key: row[key] for key in found if key != "val_loss"
    }


# -- the recipe --------------------------------------------------------------------------------------------


def test_the_default_is_no_part_of_a_recipes_meaning(recipe):
    assert recipe_of(recipe).training.keep == "best"
    said = recipe | {"training": recipe["training"] | {"keep": "best"}}
    assert identity.meaning(said) == identity.meaning(recipe) == identity.meaning(recipe_of(recipe).plain())
    both = identity.meaning(recipe | {"training": recipe["training"] | {"keep": "both"}})
    assert identity.changed_keys(identity.meaning(recipe), both) == ["training.keep"]


def test_keys_are_of_one_checkpoint():
    record = {"recipe": plain_recipe(), "checkpoint_sha256": "c", "last_checkpoint_sha256": "l", "data_sha256": "d"}
    alone = record | {"checkpoint_sha256": "l"}
    assert identity.evaluation_key(record, checkpoint="last_checkpoint") == identity.evaluation_key(alone)
    assert identity.evaluation_key(record, checkpoint="last_checkpoint") != identity.evaluation_key(record)


# -- the tables --------------------------------------------------------------------------------------------


def measured(run, selection, accuracy, split="test"):
    about = {"run": run, "selection": selection, "accuracy": accuracy, "split": split, "bn": "keep", "status": "done"}
    about |= {"experiment": "a", "variant": run, "best_epoch": 2, "epochs_run": 5, "eval_bits": 3}
    return dict.fromkeys(MEASUREMENTS) | about


ROWS = [
    measured("old", None, 10.0), measured("best", "best", 20.0), measured("both", "best", 30.0),
    measured("both", "best", 1.0, "validation"), measured("both", "last", 35.0), measured("last", "last", 40.0),
]  # fmt: skip


def test_one_selection_stands_for_a_run():
    found = Results("study", pd.DataFrame(ROWS, columns=MEASUREMENTS))
    assert dict(zip(found.tests.run, found.tests.accuracy)) == {"old": 10, "best": 20, "both": 30, "last": 40}
    assert len(found.evaluations) == 4
    assert dict(zip(found.evaluations.run, found.evaluations.kept_epoch)) == {"old": 2, "best": 2, "both": 2, "last": 5}
    assert dict(zip(found.ends.run, found.ends.accuracy)) == {"both": 35, "last": 40}
    assert set(found.ends.kept_epoch) == {5}


def test_a_diverged_run_has_no_numbers_of_either_weights():
    table = pd.DataFrame(ROWS, columns=MEASUREMENTS).assign(status="diverged")
    found = Results("study", table)
    assert found.tests.empty
    assert found.ends.accuracy.isna().all() and found.ends.kept_epoch.isna().all()


def test_tables_from_before_there_was_a_choice_hold_the_best():
    table = pd.read_csv(ROOT / "results/paper-jpeg/measurements.csv").drop(columns="selection", errors="ignore")
    assert standing(table).equals(table)
    found = Results("paper-jpeg", table)
    assert len(found.tests) and found.ends.empty
    evaluations = ROOT / "results/paper-jpeg/runs/mlp5-scratch/evaluations.csv"
    assert set(read_rows([evaluations], EVALUATIONS).selection) == {"best"}


# -- the real rules ----------------------------------------------------------------------------------------

# the first epoch that is no better is the last one: the best weights are never the last
BOTH = "    setting: scratch\n    training: {keep: both, epochs: 99, patience: 1}\n"
ONLY = "mlp5-scratch/ema-3bit,mlp5-scratch/qat-3bit"
RUN = "mlp5-scratch/ema-3bit/seed0"
WIDTHS = ("32", "2", "3", "4", "8")


def prepare(project):
    project.edit("params/tiny.yaml", "    setting: scratch\n", BOTH)
    project.edit(
        "params/tiny.yaml", "      qat: {bits: 3}\n", "      qat: {bits: 3}\n      ema: {bits: 3, warmup_steps: 20}\n"
    )


def record_of(project, name, study="tiny"):
    return json.loads((project.folder / f"results/{study}/runs/{name}/run.json").read_text())


def files_of(project, name, study="tiny"):
    best = project.folder / f"checkpoints/{study}/{name}.safetensors"
    return best, best.with_suffix(".last.safetensors")


def trains(planned):
    return {rule for rule in planned if rule.startswith("train_")}


@pytest.mark.slow
def test_both_through_the_real_rules(project):
    prepare(project)
    project.snakemake("all", config=f"only={ONLY}")
    assert project.planned(config=f"only={ONLY}") == {}
    folder = project.folder / "results/tiny"
    evaluated, measured = (
        pd.read_csv(folder / "runs/mlp5-scratch/evaluations.csv"),
        pd.read_csv(folder / "measurements.csv"),
    )
    tests = measured[measured.split == "test"]
    for name in ONLY.split(","):
        for seed in (0, 1):
            run = f"{name}/seed{seed}"
            record, (best, last) = record_of(project, run), files_of(project, run)
            assert (file_hash(best), file_hash(last)) == (record["checkpoint_sha256"], record["last_checkpoint_sha256"])
            end = record["epochs_run"]
            assert end == record["best_epoch"] + 1 and best.read_bytes() != last.read_bytes()
            with (folder / f"runs/{run}/history.csv").open(newline="") as rows:
                history = {int(row["epoch"]): row for row in csv.DictReader(rows)}
            for key, epoch in (("validation_accuracy", record["best_epoch"]), ("validation_accuracy_at_end", end)):
                assert record[key] == {bits: float(history[epoch][f"val_acc_{bits}"]) for bits in WIDTHS}
            assert record["oscillations_at_end"]["iteration_crossings"] == int(history[end]["iteration_crossings"])
            for table, key in ((evaluated, run), (tests, f"results/tiny/runs/{run}")):
                kept = table[table.run == key].groupby("selection").eval_bits.apply(sorted)
                assert kept.to_dict() == {"best": [2, 3, 4, 8, 32], "last": [2, 3, 4, 8, 32]}
    assert set(measured[measured.split == "validation"].selection) == {"best", "last"}
    assert len(Results("tiny", measured).tests) == len(tests) / 2
    assert "3-bit, end of training" in (folder / "tables/comparison-mlp5.md").read_text()
    page = (folder / "runs/mlp5-scratch/ema-3bit.html").read_text()
    assert (
        f"checkpoints/tiny/{RUN}.last.safetensors" in page
        and record_of(project, RUN)["last_checkpoint_sha256"][:16] in page
    )

    # half of an evaluation is none
    (folder / "runs/mlp5-scratch/evaluations.csv").write_text(
        evaluated[evaluated.selection == "best"].to_csv(index=False)
    )
    assert "mlp5-scratch: 4 runs have no current evaluation" in project.cli("collect", "--study", "tiny")
    assert set(pd.read_csv(folder / "measurements.csv").split) == {"validation"}

    # a checkpoint that is gone is asked for and made again, and nothing else
    (_, last), content = files_of(project, RUN), files_of(project, RUN)[1].read_bytes()
    last.unlink()
    assert trains(project.planned(str(last.relative_to(project.folder)), config=f"only={ONLY}")) == {
        "train_mlp5_scratch"
    }
    assert "last.safetensors: missing, or not the checkpoint that" in project.cli(
        "evaluate", "--study", "tiny", "--experiment", "mlp5-scratch", ok=False
    )
    output = project.cli("train", "--study", "tiny", "--only", "mlp5-scratch/ema-3bit")
    assert f"{RUN}: starting" in output and "mlp5-scratch/ema-3bit/seed1: kept" in output
    assert last.read_bytes() == content

    # other studies: the same run, and what keeps less of it
    text = (project.folder / "params/tiny.yaml").read_text()
    for study, setting in (
        ("twin", BOTH),
        ("ended", BOTH.replace("both", "last")),
        ("plain", BOTH.replace("keep: both, ", "")),
    ):
        (project.folder / f"params/{study}.yaml").write_text(
            text.replace("study: tiny", f"study: {study}").replace(BOTH, setting)
        )
        output = project.cli("train", "--study", study, "--only", ONLY)
        assert output.count("the same run as in study tiny") == (4 if study == "twin" else 0)
    for name in ONLY.split(","):
        run = f"{name}/seed1"
        best, last = (file.read_bytes() for file in files_of(project, run))
        assert [file.read_bytes() for file in files_of(project, run, "twin")] == [best, last]
        assert files_of(project, run, "ended")[0].read_bytes() == last
        assert files_of(project, run, "plain")[0].read_bytes() == best
        for study in ("ended", "plain"):
            assert not files_of(project, run, study)[1].exists()
        both, ended, plain = (record_of(project, run, study) for study in ("tiny", "ended", "plain"))
        ends, bests = (
            ("validation_accuracy_at_end", "oscillations_at_end"),
            ("validation_accuracy", "oscillations_at_best"),
        )
        assert all(ended[key] == both[key] for key in (*ends, "monitored", "best_epoch", "epochs_run"))
        assert all(plain[key] == both[key] for key in (*bests, "monitored", "best_epoch", "epochs_run"))
        assert not {*bests, "last_checkpoint_sha256"} & set(ended) and not {*ends, "last_checkpoint_sha256"} & set(
            plain
        )
    project.cli("evaluate", "--study", "ended", "--experiment", "mlp5-scratch")
    project.cli("collect", "--study", "ended")
    ended = pd.read_csv(project.folder / "results/ended/measurements.csv")
    assert set(ended.selection) == {"last"} and set(ended.split) == {"test", "validation"}


@pytest.mark.slow
def test_an_interrupted_run_keeps_the_same_last_weights(project):
    """Also where it was killed while they were written."""
    prepare(project)
    command = ["train", "--study", "params/tiny.yaml", "--only", "mlp5-scratch/ema-3bit", "--save-every", "0"]
    project.cli("fetch", "--data", "digits")
    project.cli_apart(*command)
    made = [file.read_bytes() for file in files_of(project, RUN)]
    for moment, count in (("step", "30"), ("checkpoint", "2"), ("publish", "2")):
        for name in ("checkpoints", "results", "work"):
            shutil.rmtree(project.folder / name, ignore_errors=True)
        code, output = project.finish("python", str(ROOT / "tests/kill_at.py"), moment, count, *command)
        assert code == -signal.SIGKILL, output
        project.cli(*command)
        assert [file.read_bytes() for file in files_of(project, RUN)] == made


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "both"])
def test_a_diverged_run_is_whole_and_has_no_numbers(project, keep):
    prepare(project)
    project.edit("params/tiny.yaml", "keep: both", f"keep: {keep}")
    project.edit("src/oscillations/engine/recipe.py", "Field(gt=0, le=1000)", "Field(gt=0)")  # no study may say so
    project.edit("params/tiny.yaml", "lr: 2.0e-3", "lr: 1.0e+30")
    project.cli("fetch", "--data", "digits")
    project.cli("train", "--study", "tiny", "--only", ONLY)
    project.cli("evaluate", "--study", "tiny", "--experiment", "mlp5-scratch")
    project.cli("collect", "--study", "tiny")
    measured = pd.read_csv(project.folder / "results/tiny/measurements.csv")
    assert set(measured.status) == {"diverged"} and measured.accuracy.isna().all()
    assert set(measured.selection) == {"last"} | ({"best"} if keep == "both" else set())
    assert not load_file(files_of(project, RUN)[keep == "both"])["fc1.weight"].isfinite().all()


@pytest.mark.slow
def test_fine_tunes_and_post_training_methods_start_from_the_best(project):
    prepare(project)
    text = (project.folder / "params/tiny.yaml").read_text()
    fine = "  mlp5-finetune:\n    model: {name: mlp5, width: 16}\n    setting: finetune\n    start_from: mlp5-scratch\n"
    text = text.replace("tables:\n", f"{fine}    methods:\n      qat: {{bits: 3}}\ntables:\n", 1)
    text += "posttraining:\n  after: {of: [mlp5-scratch/baseline], bits: [3], methods: {adaround: {iterations: 2}}}\n"
    made = {}
    for study, keep in (("tiny", "both"), ("plain", "best")):
        changed = text.replace("study: tiny", f"study: {study}").replace("keep: both", f"keep: {keep}")
        (project.folder / f"params/{study}.yaml").write_text(changed)
        project.cli("fetch", "--study", study)
        project.cli("train", "--study", study, "--only", "mlp5-scratch/baseline")
        project.cli("train", "--study", study, "--only", "mlp5-finetune")
        project.cli("posttrain", "--study", study, "--name", "after")
        rows = pd.read_csv(project.folder / f"results/{study}/posttraining/after.csv").drop(columns=["seconds", CHECK])
        fine_tuned = [file.read_bytes() for file in project.folder.glob(f"checkpoints/{study}/mlp5-finetune/*/*")]
        made[study] = rows.to_csv(), sorted(fine_tuned)
    assert made["tiny"] == made["plain"]
    record = record_of(project, "mlp5-scratch/baseline/seed0")
    assert record["checkpoint_sha256"] != record["last_checkpoint_sha256"]
