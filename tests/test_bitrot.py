"""One flipped byte in every kind of file: noticed before it can reach a table, named, and mended by what is printed."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.core.files import SEAL, Damaged, read_json, sealed, write_json
from oscillations.jobs import resume
from oscillations.jobs import train as training
from oscillations.records import provenance, rows
from oscillations.records.damage import TABLES, damage
from oscillations.records.plans import plans
from oscillations.study import pretrained
from oscillations.study.paths import Run
from oscillations.study.reading import load

pytestmark = pytest.mark.slow

RUN = Run("tiny", "mlp5-scratch", "qat-3bit", 0)
EVALUATE = ["evaluate", "--study", "tiny", "--experiment", "mlp5-scratch"]
COLLECT = ["collect", "--study", "tiny"]
EVALUATIONS = Path("results/tiny/runs/mlp5-scratch/evaluations.csv")
TRAINED = "python -m oscillations train --study tiny --only mlp5-scratch/qat-3bit --seeds 0"
FETCHED = "python -m oscillations fetch --data digits"
EVALUATED = "python -m oscillations evaluate --study tiny --experiment mlp5-scratch"
#: kind -> its file, the command that reads it, the one that mends it
KINDS = {
    "data": (Path("data/digits.safetensors"), EVALUATE, FETCHED),
    "sidecar": (Path("data/digits.json"), COLLECT, FETCHED),
    "checkpoint": (RUN.checkpoint, EVALUATE, TRAINED),
    "record": (RUN.record, COLLECT, TRAINED),
    "history": (RUN.folder / "history.csv", COLLECT, TRAINED),
    "layers": (RUN.folder / "layers.csv", ["oscillations", "--study", "tiny"], TRAINED),
    "weights": (RUN.folder / "weights.csv", ["films", "--study", "tiny"], TRAINED),
    "evaluations": (EVALUATIONS, COLLECT, EVALUATED),
}


@pytest.fixture
def here(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def places(file, number=5):
    """Some bytes of a file, the first and the last among them."""
    size = file.stat().st_size
    return [(size - 1) * part // (number - 1) for part in range(number)]


def tables():
    return {file: file.read_bytes() for file in Path("results/tiny").glob("*.csv")}


def without_time(record):
    return {key: value for key, value in record.items() if key not in ("timing", SEAL, "environment")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_named_and_mended_by_the_command_that_is_printed(here, capsys, kind):
    file, command, mend = KINDS[kind]
    whole, before, record = file.read_bytes(), tables(), read_json(RUN.record)
    evaluated = EVALUATIONS.read_bytes()
    for place in [*places(file), None]:
        if place is not None:
            flip(file, place)
        else:  # what is printed mends the last one
            flip(file, len(whole) // 3)
        if command == EVALUATE:  # reads neither data nor weights as long as all is evaluated
            EVALUATIONS.unlink()
        assert main(command) == 2, place
        said = capsys.readouterr().err
        assert said.startswith("error: ") and str(file) in said and mend in said
        assert tables() == before
        if place is not None:
            file.write_bytes(whole)
            EVALUATIONS.write_bytes(evaluated)
    assert main(shlex.split(mend)[3:]) == 0
    if command == EVALUATE:
        assert main(EVALUATE) == 0
    if kind == "record":
        assert without_time(read_json(file)) == without_time(record)
    else:
        assert file.read_bytes() == whole
    assert main(command) == 0
    assert main(COLLECT) == 0
    assert tables() == before


def test_only_what_was_damaged_is_evaluated_again(here, capsys):
    whole = EVALUATIONS.read_bytes()
    flip(EVALUATIONS, whole.index(b"qat-3bit/seed0,"))  # a run's name
    assert main(EVALUATE) == 0
    said = capsys.readouterr()
    assert f"{EVALUATIONS}: is damaged (lines " in said.err
    assert "mlp5-scratch: 1 checkpoints evaluated" in said.out
    assert EVALUATIONS.read_bytes() == whole


def test_rows_that_are_missing_are_noticed(here, capsys):
    lines = EVALUATIONS.read_text().splitlines(keepends=True)
    EVALUATIONS.write_text("".join(lines[:3] + lines[4:]))
    assert main(COLLECT) == 2
    assert "is damaged (lines 2 to 5)" in capsys.readouterr().err


def test_a_damaged_run_is_not_copied_into_another_study(here, capsys):
    text = Path("params/tiny.yaml").read_text()
    Path("params/twin.yaml").write_text(text.replace("study: tiny", "study: twin"))
    flip(RUN.folder / "history.csv", 200)
    flip(Run("tiny", "mlp5-scratch", "qat-3bit", 1).record, 200)
    assert main(["train", "--study", "twin", "--only", "mlp5-scratch/qat-3bit"]) == 0
    assert "the same run" not in capsys.readouterr().out


def test_a_record_that_comes_after_the_plan_is_not_damaged(here):
    """Another job of the workflow puts it into place, at any moment."""
    content = RUN.record.read_bytes()
    RUN.record.unlink()
    planned = next(plan for plan in plans(load(Path("params/tiny.yaml"))[1]) if plan.run == RUN)
    RUN.record.write_bytes(content)
    assert planned.record is None and planned.damage is None


def test_an_experiment_is_evaluated_whatever_befalls_the_records_of_others(here, capsys):
    flip(Run("tiny", "mlp5-lambda", "osciquant-3bit-lambda0", 0).record, 200)
    assert main(EVALUATE) == 0
    assert "mlp5-scratch: 0 checkpoints evaluated" in capsys.readouterr().out
    assert main(COLLECT) == 2


def test_a_film_waits_for_the_runs_that_it_shows_alone(here):
    (Run("tiny", "mlp5-scratch", "osciquant-ternary", 0).folder / "history.csv").unlink()
    assert main(["films", "--study", "tiny"]) == 0
    (RUN.folder / "history.csv").unlink()
    assert main(["films", "--study", "tiny"]) == 2


def test_rows_of_what_started_from_a_damaged_record_stay(here):
    study = Path("params/tiny.yaml")
    later = """\
  later:
    model: {name: mlp5, width: 16}
    setting: finetune
    start_from: mlp5-scratch
    seeds: [0]
    methods: {qat: {bits: 3}}
"""
    study.write_text(study.read_text().replace("tables:\n", f"{later}tables:\n", 1))
    evaluate = ["evaluate", "--study", "tiny", "--experiment", "later"]
    assert main(["train", "--study", "tiny", "--only", "later"]) == main(evaluate) == 0
    rows_of_it = Path("results/tiny/runs/later/evaluations.csv")
    before = rows_of_it.read_bytes()
    parent = Run("tiny", "mlp5-scratch", "baseline", 0)
    write_json(parent.record, old(parent) | {"timing": None})
    assert main(evaluate) == 0 and rows_of_it.read_bytes() == before
    assert main(COLLECT) == 2


def test_a_copy_of_another_studys_run_is_tried(here, capsys, monkeypatch):
    """That study's workflow may make the run anew while it is copied."""
    text = Path("params/tiny.yaml").read_text()
    Path("params/twin.yaml").write_text(text.replace("study: tiny", "study: twin"))
    copies = []

    def copied(sources, targets, copy=training._copy):
        copy(sources, targets)
        copies.append(targets)
        if len(copies) == 1:
            flip(next(file for file in targets if file.suffix == ".safetensors"), 1000)

    monkeypatch.setattr(training, "_copy", copied)
    assert main(["train", "--study", "twin", "--only", "mlp5-scratch/qat-3bit", "--seeds", "0"]) == 0
    said = capsys.readouterr().out
    assert "the same run as in study tiny" in said and "epoch 1/3" in said
    twin = Run("twin", "mlp5-scratch", "qat-3bit", 0)
    assert twin.checkpoint.read_bytes() == RUN.checkpoint.read_bytes()


def old(run):
    """A finished run as if its record were from before there were hashes in it; its record."""
    record = {key: value for key, value in read_json(run.record).items() if key not in (SEAL, TABLES)}
    write_json(run.record, record)
    return record


def test_a_record_without_hashes_is_as_good_as_ever(here):
    for variant in load(Path("params/tiny.yaml"))[1]:
        for run in variant.runs():
            old(run)
    before = tables()
    for plan in plans(load(Path("params/tiny.yaml"))[1]):
        assert plan.current and not plan.damage
    assert main(COLLECT) == main(["oscillations", "--study", "tiny"]) == 0
    assert tables() == before


def changed(name, change):
    def damaged(record):
        file = RUN.folder / name
        file.write_text(change(file.read_text()))

    return damaged


def says(key, value):
    def damaged(record):
        write_json(RUN.record, record | {key: value})

    return damaged


IMPLAUSIBLE = {
    "no number": changed("history.csv", lambda text: text.replace(".", "x", 1)),
    "an epoch that is missing": changed("history.csv", lambda text: "".join(text.splitlines(True)[:-1])),
    "epochs that do not count up": changed("layers.csv", lambda text: text.replace("\n2,", "\n3,")),
    "a cell too many": changed("layers.csv", lambda text: text.replace("\n2,", "\n2,1,", 1)),
    "another name of a column": changed("history.csv", lambda text: text.replace("val_loss", "val^loss")),
    "another accuracy": says("validation_accuracy", {"32": 1.0}),
    "another best epoch": says("best_epoch", 99),
    "fewer epochs": says("epochs_run", 2),
    "no epochs": says("epochs_run", None),
    "another metric": says("monitored", 101.0),
}


@pytest.mark.parametrize("case", IMPLAUSIBLE)
def test_what_cannot_be_is_noticed_without_hashes(here, capsys, case):
    IMPLAUSIBLE[case](old(RUN))
    before = tables()
    assert main(COLLECT) == 2
    said = capsys.readouterr().err
    assert f"error: {RUN.folder}: a table or run.json is damaged (" in said and TRAINED in said
    assert tables() == before


def test_a_record_that_no_run_could_have_written_names_its_key(here, capsys):
    write_json(RUN.record, old(RUN) | {"timing": None})
    before = tables()
    assert main(COLLECT) == 2
    said = capsys.readouterr().err
    assert f"error: {RUN.record}: is damaged: timing" in said and TRAINED in said
    assert tables() == before
    assert main(shlex.split(TRAINED)[3:]) == main(COLLECT) == 0
    assert tables() == before


IMPLAUSIBLE_ROWS = {
    "no number": lambda text: text.replace(",keep,", ",keep,x", 1),
    "no percentage": lambda text: text.replace(",keep,", ",keep,9", 1),
    "another key": lambda text: text.replace("/seed0,", "/seed0,f", 1),
    "another version": lambda text: text.replace("evaluation=", "evaluation=9", 1),
    "another run": lambda text: text.replace("/seed0,", "/seed7,", 1),
    "another name of a column": lambda text: text.replace("accuracy", "accurady"),
    "no line": lambda text: text.replace("\n", "x", 1),
}


@pytest.mark.parametrize("case", IMPLAUSIBLE_ROWS)
def test_evaluations_without_hashes_must_be_plausible(here, capsys, case):
    header, *lines = EVALUATIONS.read_text().splitlines()
    text = "".join(f"{line.rpartition(',')[0]}\n" for line in (header, *lines))
    EVALUATIONS.write_text(text)
    before = tables()
    assert main(COLLECT) == 0
    assert tables() == before
    EVALUATIONS.write_text(IMPLAUSIBLE_ROWS[case](text))
    assert main(COLLECT) == 2
    said = capsys.readouterr().err
    assert f"error: {EVALUATIONS}: is damaged (" in said and EVALUATED in said
    assert main(EVALUATE) == 0
    assert main(COLLECT) == 0
    assert tables() == before


def test_a_seal_says_whether_anything_was_changed(tmp_path):
    record = {"a": {"2": 0.1, "10": [1, None]}, "b": "text"}
    write_json(tmp_path / "x", sealed(record))
    assert read_json(tmp_path / "x") == sealed(record) == sealed(sealed(record))
    text = (tmp_path / "x").read_text()
    for old_text, new in (("0.1", "0.3"), ('"b"', '"c"'), ("text", "texu"), ("null", "true")):
        (tmp_path / "x").write_text(text.replace(old_text, new))
        with pytest.raises(Damaged, match="is damaged"):
            read_json(tmp_path / "x")


def test_no_flipped_byte_of_a_resume_file_is_loaded(tmp_path):
    import torch

    file = tmp_path / "resume"
    resume.save(file, {"weights": torch.arange(6.0)}, {"epoch": 3})
    whole = file.read_bytes()
    for place in range(len(whole)):
        flip(file, place, place % 8)
        assert place == resume.DIGEST or resume.load(file) is None  # but for the line break after the hash
        file.write_bytes(whole)


def test_no_flipped_byte_of_provenance_is_believed(here):
    file = provenance.provenance_file("tiny")
    whole = file.read_bytes()
    for place in places(file, number=200):
        flip(file, place, place % 8)
        with pytest.raises(InputError, match=r"provenance\.json: is damaged"):
            provenance.restore("tiny")
        file.write_bytes(whole)


def test_damaged_provenance_is_named_and_mended_by_the_command_that_is_printed(finished):
    file = finished.folder / provenance.provenance_file("tiny")
    whole = file.read_bytes()
    flip(file, len(whole) // 2)
    output = finished.snakemake("-n", "all", ok=False)
    assert "results/tiny/provenance.json: is damaged" in output and "git checkout -- results/tiny" in output
    assert "Traceback" not in output
    (command,) = re.findall(r"\((rm .*?)\)", output)
    finished.run(*command.split())
    assert finished.planned() == {}
    assert file.read_bytes() == whole


ABOUT = {"name": "torchvision/resnet18", "source": "local file x.pth", "label": "local file x.pth, not verified",
         "trained_on": "unknown (local file x.pth)", "verified": False, "sha256": "0" * 64}  # fmt: skip


@pytest.mark.parametrize("change", [{"label": "local file y.pth, not verified"}, {"verified": True}, {"name": "x"}])
def test_a_damaged_sidecar_of_public_weights_is_named(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    sidecar = pretrained.files(ABOUT["name"])[0]
    write_json(sidecar, ABOUT)
    assert pretrained.described(ABOUT["name"]) == ABOUT
    sidecar.write_text(json.dumps(ABOUT | change))
    with pytest.raises(InputError, match=r"is damaged; .*python -m oscillations weights --name torchvision/resnet18"):
        pretrained.described(ABOUT["name"])


def test_post_training_rows_that_are_damaged_are_left_out(tmp_path, monkeypatch, capsys):
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    file = Path("results/tiny/posttraining/ptq-reconstruction.csv")
    made = [{"run": f"e/v/seed{seed}", "key": f"k{seed}", "arithmetic": "reconstruction=1", "label": "nearest",
             "eval_bits": 3, "place": place, "unit": f"fc{place}", "group": "1", "loss": 0.1 * place}
            for seed in (0, 1) for place in (1, 2)]  # fmt: skip
    rows.write_rows(file, [pd.DataFrame(made)], rows.RECONSTRUCTED)
    assert len(rows.read_rows([file], rows.RECONSTRUCTED)) == 4
    flip(file, file.stat().st_size - 20)
    with pytest.raises(InputError, match=r"posttrain --study tiny --name ptq$"):
        rows.read_rows([file], rows.RECONSTRUCTED)
    rows.leave_out_damaged(file, rows.RECONSTRUCTED)
    assert set(rows.read_rows([file], rows.RECONSTRUCTED).run) == {"e/v/seed0"}
    assert "lines 4 to 5" in capsys.readouterr().err


def test_committed_results_are_undamaged(monkeypatch):
    """What was written before there were hashes, too."""
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    for file in Path("results").glob("*/runs/*/evaluations.csv"):
        rows.read_rows([file], rows.EVALUATIONS)
    for file in Path("results").glob("*/runs/*/*/*/run.json"):
        record = read_json(file)
        selections = [name for name, key in (("best", "validation_accuracy"), ("last", "validation_accuracy_at_end"))
                      if key in record]  # fmt: skip
        assert damage(file.parent, record, ["history.csv", "layers.csv"], selections) is None


def test_an_archive_with_a_damaged_table_is_refused(here, tmp_path, capsys):
    assert main(["pack", "--study", "tiny", "--out", str(tmp_path / "tiny.zip")]) == 0
    shutil.unpack_archive(tmp_path / "tiny.zip", tmp_path / "unpacked")
    flip(tmp_path / "unpacked" / RUN.folder / "history.csv", 200)
    shutil.rmtree(RUN.folder)
    assert main(["fetch-weights", "--study", "tiny", "--from", str(tmp_path / "unpacked")]) == 2
    assert f"the record of {RUN.name}, or a table beside it, is damaged" in capsys.readouterr().err
    assert not RUN.record.exists()
