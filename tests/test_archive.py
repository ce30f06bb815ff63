"""Archives: a study's weights travel, and come back only as what the records vouch for."""

import hashlib
import json
import shutil
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import BUCKET, NEEDS_BUCKET, ROOT, Project

from oscillations.cli import main

RUN = "mlp5-scratch/osciquant-3bit/seed0"
WEIGHTS = Path("checkpoints/tiny") / f"{RUN}.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with three trained runs, and the archive of them."""
    folder = tmp_path_factory.mktemp("trained")
    Project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("CITATION.cff").write_text("cff-version: 1.2.0\n")
        assert main(["fetch", "--study", "tiny"]) == 0
        for variant, seeds in (("baseline", "0"), ("osciquant-3bit", "0,1")):
            assert main(["train", "--study", "tiny", "--only", f"mlp5-scratch/{variant}", "--seeds", seeds]) == 0
        assert main(["evaluate", "--study", "tiny", "--experiment", "mlp5-scratch"]) == 0
        assert main(["collect", "--study", "tiny"]) == 0
        assert main(["pack", "--study", "tiny", "--out", "tiny.zip"]) == 0
    return folder


@pytest.fixture
def stranger(trained, tmp_path, monkeypatch):
    """A clone with the records of the runs, but without weights."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "tiny.zip"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fetched(source, *more, code=0):
    assert main(["fetch-weights", "--study", "tiny", "--from", str(source), *more]) == code


def same_weights(trained):
    return WEIGHTS.read_bytes() == (trained / WEIGHTS).read_bytes()


def test_an_archive_holds_what_it_says(trained):
    with zipfile.ZipFile(trained / "tiny.zip") as archive:
        names = set(archive.namelist())
        sums = dict(reversed(line.split("  ")) for line in archive.read("SHA256SUMS").decode().splitlines())
        assert names == {*sums, "SHA256SUMS", "ro-crate-metadata.json"}
        assert all(hashlib.sha256(archive.read(name)).hexdigest() == digest for name, digest in sums.items())
        crate = {one["@id"]: one for one in json.loads(archive.read("ro-crate-metadata.json"))["@graph"]}
        card = archive.read("cards/mlp5-scratch/osciquant-3bit.md").decode()
    assert {
        str(WEIGHTS),
        f"results/tiny/runs/{RUN}/run.json",
        "CITATION.cff",
        "params/tiny.yaml",
        "data/digits.json",
    } <= names
    assert {one["@id"] for one in crate["./"]["hasPart"]} == set(sums) < set(crate)
    assert crate[str(WEIGHTS)]["sha256"] == sums[str(WEIGHTS)]
    assert sums[str(WEIGHTS)] in card and "trained for 3 bits" in card and '"lambda": 1' in card and "| 3 |" in card


def test_the_same_study_is_the_same_archive(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    assert main(["pack", "--study", "tiny", "--out", str(tmp_path / "again.zip")]) == 0
    assert (tmp_path / "again.zip").read_bytes() == (trained / "tiny.zip").read_bytes()


def test_weights_come_from_an_archive_a_folder_and_another_clone(trained, stranger, capsys):
    fetched(trained / "tiny.zip")
    assert "3 runs placed, 0 were there" in capsys.readouterr().out and same_weights(trained)
    fetched(trained / "tiny.zip")
    assert "0 runs placed, 3 were there" in capsys.readouterr().out
    assert main(["export", "--study", "tiny", "--run", RUN]) == 0  # without a training
    for source in (stranger / "unpacked", trained):
        shutil.rmtree("checkpoints")
        with zipfile.ZipFile(trained / "tiny.zip") as archive:
            archive.extractall(stranger / "unpacked")
        fetched(source, "--only", "mlp5-scratch/osciquant-3bit")
        assert same_weights(trained)


@contextmanager
def served(folder):
    """The address of a folder's files on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.parametrize("signature", ["", "?X-Amz-Expires=60&X-Amz-Signature=0a1b"])
def test_weights_come_over_the_network(trained, stranger, capsys, signature):
    with served(trained) as address:
        fetched(f"{address}/tiny.zip{signature}")
    assert same_weights(trained)
    assert "Signature" not in capsys.readouterr().out
    assert not list(Path("data/downloads").iterdir())  # what was downloaded is gone


@NEEDS_BUCKET
def test_weights_come_from_a_bucket(trained, stranger):
    archive = f"{BUCKET}/archives/tiny.zip"
    s3fs = pytest.importorskip("s3fs")
    store = s3fs.S3FileSystem(config_kwargs={"signature_version": "s3v4"})
    store.put_file(trained / "tiny.zip", archive)
    fetched(store.sign(archive, expiration=60))
    assert same_weights(trained)


@pytest.mark.slow
def test_a_clone_measures_the_published_weights_anew(finished, tmp_path):
    """git clone, fetch-weights, data, evaluate: nothing is trained, and every digit is the archive's."""
    finished.cli("pack", "--study", "tiny", "--out", "../served/tiny.zip")
    shutil.copy(ROOT / ".gitignore", finished.folder)
    finished.run("git", "init", "-q")
    finished.run("git", "add", "-A")
    finished.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "results")
    clone = Project.at(tmp_path / "clone")
    finished.run("git", "clone", "-q", ".", str(clone.folder))
    assert not [name for name in ("checkpoints", "data", ".snakemake") if (clone.folder / name).exists()]
    with served(tmp_path / "served") as address:
        said = clone.cli("fetch-weights", "--study", "tiny", "--from", f"{address}/tiny.zip")
    assert "12 runs placed, 0 were there, 0 are not in" in said
    clone.snakemake("data")
    assert clone.planned("runs") == {}
    with zipfile.ZipFile(tmp_path / "served/tiny.zip") as archive:
        for experiment, checkpoints in {"mlp5-scratch": 8, "mlp5-lambda": 4}.items():
            recorded = f"results/tiny/runs/{experiment}/evaluations.csv"
            (clone.folder / recorded).unlink()  # current rows are kept
            said = clone.cli("evaluate", "--study", "tiny", "--experiment", experiment)
            assert f"{experiment}: {checkpoints} checkpoints evaluated" in said
            assert (clone.folder / recorded).read_bytes() == archive.read(recorded)
    assert clone.run("git", "status", "--short") == ""
    assert clone.planned() == {}


def test_records_come_along_where_there_are_none(trained, stranger, capsys):
    shutil.rmtree("results")
    fetched(trained / "tiny.zip")
    assert same_weights(trained)
    capsys.readouterr()
    assert main(["train", "--study", "tiny", "--only", "mlp5-scratch/osciquant-3bit"]) == 0
    assert "epoch" not in capsys.readouterr().out  # nothing was trained
    assert main(["evaluate", "--study", "tiny", "--experiment", "mlp5-scratch"]) == 0


@pytest.mark.slow
def test_seeds_of_a_study_made_in_two_clones_are_one(tmp_path):
    """By the commands of docs/scaling.md: what the other has made comes along, and nothing is trained again."""
    here, there = (Project(tmp_path / name) for name in ("here", "there"))
    variant = "only=mlp5-scratch/qat-3bit"
    for project, seed in ((here, 0), (there, 1)):
        project.snakemake("runs", config=f"{variant} seeds={seed}")
    there.cli("pack", "--study", "tiny", "--out", "../there.zip")
    assert here.planned("runs", config=variant) == {"train_mlp5_scratch": 1, "runs": 1}
    said = here.cli("fetch-weights", "--study", "tiny", "--from", "../there.zip")
    assert "1 runs placed, 1 were there, 10 are not in" in said
    assert here.planned("results/tiny/measurements.csv", config=variant) == {"evaluate": 1, "collect": 1}


@pytest.mark.parametrize("name", ["run.json", "history.csv"])
def test_a_damaged_file_beside_the_weights_comes_back(trained, stranger, capsys, name):
    fetched(trained / "tiny.zip")
    file = Path(f"results/tiny/runs/{RUN}/{name}")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"1", b"2", 1))
    assert main(["collect", "--study", "tiny"]) == 2
    capsys.readouterr()
    fetched(trained / "tiny.zip")
    assert "1 runs placed, 2 were there" in capsys.readouterr().out
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("file", "old", "new"), [("run.json", b'"best_epoch": ', b'"best_epoch": 1'), ("history.csv", b"\n1,", b"\n2,")]
)
def test_a_damaged_record_or_table_of_an_archive_is_refused(trained, stranger, capsys, file, old, new):
    shutil.rmtree("results")
    damaged = f"results/tiny/runs/{RUN}/{file}"
    repacked(trained, "bad.zip", lambda name, content: content.replace(old, new, 1) if name == damaged else content)
    fetched("bad.zip", code=2)
    assert f"the record of {RUN}, or a table beside it, is damaged" in capsys.readouterr().err
    assert not WEIGHTS.exists() and not Path(damaged).exists()


def repacked(trained, target, change):
    """The archive with members changed: name -> content, or None to leave it out."""
    with zipfile.ZipFile(trained / "tiny.zip") as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("with_records", [True, False])
def test_other_weights_than_the_records_are_refused(trained, stranger, capsys, with_records):
    if not with_records:
        shutil.rmtree("results")
    repacked(trained, "bad.zip", lambda name, content: flipped(content) if name == str(WEIGHTS) else content)
    fetched("bad.zip", code=2)
    assert f"the weights of {RUN} are not those that its record vouches for" in capsys.readouterr().err
    assert not WEIGHTS.exists()


def test_another_studys_record_is_refused(trained, stranger, capsys):
    shutil.rmtree("results")
    record = f"results/tiny/runs/{RUN}/run.json"
    repacked(
        trained,
        "bad.zip",
        lambda name, content: content.replace(b'"lr": 0.002', b'"lr": 0.003') if name == record else content,
    )
    fetched("bad.zip", code=2)
    assert f"{RUN} is not this study's run" in capsys.readouterr().err and not WEIGHTS.exists()


def test_what_an_archive_lacks_is_said(trained, stranger, capsys):
    repacked(trained, "less.zip", lambda name, content: None if "osciquant" in name else content)
    fetched("less.zip")
    assert "1 runs placed, 0 were there, 11 are not in less.zip" in capsys.readouterr().out
    fetched("less.zip", "--only", "mlp5-scratch/qat-3bit", code=2)


@pytest.mark.parametrize(
    ("source", "said"),
    [("nothing.zip", "is no folder and no whole zip"), ("ftp://here/a.zip", "begins with https://"), ("params", "holds nothing")],
)  # fmt: skip
def test_what_is_no_archive_is_refused(stranger, capsys, source, said):
    fetched(source, "--only", "mlp5-lambda", code=2)
    assert said in capsys.readouterr().err


def test_a_truncated_and_a_compressed_archive_are_refused(trained, stranger, capsys):
    whole = (trained / "tiny.zip").read_bytes()
    Path("half.zip").write_bytes(whole[: len(whole) // 2])
    fetched("half.zip", code=2)
    assert "no whole zip archive" in capsys.readouterr().err
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(str(WEIGHTS), b"\0" * 1_000_000)
    fetched("bomb.zip", "--only", "mlp5-scratch/osciquant-3bit", code=2)
    assert "is compressed" in capsys.readouterr().err


def test_weights_that_are_not_here_are_not_packed(stranger, capsys):
    assert main(["pack", "--study", "tiny"]) == 2
    assert "weights are not here" in capsys.readouterr().err
    assert not Path("exports/tiny.zip").exists()
