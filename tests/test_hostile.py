"""What nobody writes in good faith: bombs, paths for names, pickles for tables, and studies made at random.

Each is one message that names the file, and the key where one is at fault; exit code 2, and never a traceback.
"""

import copy
import io
import json
import pickle
import re
import shutil
import tarfile
import zipfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_refusals import base

from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.core.files import read_json
from oscillations.datasets import _sources as sources
from oscillations.datasets import cifar10, digits, tiny_imagenet
from oscillations.jobs import archive
from oscillations.records.damage import damage
from oscillations.records.identity import meaning
from oscillations.records.plans import made_in_another_study, plans, vouches_for, why_stale
from oscillations.records.rows import read_csv
from oscillations.report.pages import render
from oscillations.report.results import Results
from oscillations.report.table import Row, Table
from oscillations.study import pretrained, reading
from oscillations.study.schema import Study

PICKLE = pickle.dumps({"seed": 0, "train": [1, 2, 3]})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(what, *arguments):
    """The one line that an InputError says."""
    with pytest.raises(InputError) as error:
        what(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- studies -----------------------------------------------------------------------------------------------


def chain(first, link):
    """Nine levels, each ten times the one before: a thousand million from 600 bytes."""
    rows = [link.format(name=chr(98 + i), ten=",".join([f"*{chr(97 + i)}"] * 10)) for i in range(9)]
    return "\n".join([f"a: &a {first}", *rows, "title: *j", ""])


STUDIES = {
    "laughs": (chain("[x]", "{name}: &{name} [{ten}]"), r"its aliases stand for more than \d+ values"),
    "merges": (chain("{x: 1}", "{name}: &{name} {{<<: [{ten}]}}"), r"its aliases stand for more than \d+ values"),
    "a merge of itself": ("a: &a {<<: *a}\n", r"unknown key 'a'|nested too deeply"),
    "too large": ("#" * reading.LARGEST + "\n", r"262,145 bytes; a study has at most 262,144"),
    "a pickle": (PICKLE, "not UTF-8|not valid YAML"),
    "a long key": (f"{'x' * 101}: 1\n", r"key 'x+\.\.\. \(line 1\): a key is one line of at most 100 printable"),
    "a key of two lines": ('"ab\\nerror: all is well": 1\n', r"key 'ab\\nerror: all is well' \(line 1\)"),
    "a key that steers a terminal": ('seeds: {"\\e[2J": 1}\n', r"key '\\x1b\[2J' \(line 1\)"),
    "a text that steers a terminal": ('title: "\\e[2J"\n', r"'\\x1b\[2J' holds a sign .* \(line 1, column 8\)"),
    "a text with a NUL": ('title: "a\\0b"\n', r"'a\\x00b' holds a sign"),
    "a word for a day": ("title: !!timestamp x\n", r"not valid YAML: 'x' is no timestamp \(line 1, column 8\)"),
    "a word for a truth": ("title: !!bool x\n", r"not valid YAML: 'x' is no bool \(line 1, column 8\)"),
    "nothing for a number": ('title: !!float ""\n', r"not valid YAML: '' is no float \(line 1, column 8\)"),
    "half a sign": ('title: "\\uD800"\n', r"'\\ud800' holds a sign"),
    "a name that no file can have": (
        TINY.replace("mlp5-lambda", "x" * 300), r"key 'x+\.\.\. \(line 18\): a key is one line of at most 100",
    ),
    "a million runs": (
        TINY.replace("sweep: {lambda: [0, 2]}", f"sweep: {{lambda: {list(range(1000))}, lr: {[i / 1e4 for i in range(1, 1000)]}}}"),
        r"experiments\.mlp5-lambda: with its runs, the study has more than 20,000; ask for fewer",
    ),
    "a million seeds": (
        TINY.replace("seeds: [0, 1]", f"seeds: {list(range(30000))}"),
        r"experiments\.mlp5-scratch: with its runs, the study has more than 20,000",
    ),
    "an experiment that is a path": (TINY.replace("mlp5-lambda:", "../../mlp5:"), r"experiments\.\.\./\.\./mlp5: .*should match"),
    "a study that is a path": (TINY.replace("study: tiny", "study: ../tiny"), r"study: .*should match"),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDIES)
def test_a_hostile_study_is_refused(here, capsys, case):
    text, said = STUDIES[case]
    file = here / "tiny.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["check", "--study", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {file}: ") and err.count("\n") == 1
    assert err[:-1].isprintable() and len(err) < 1000
    assert re.search(said, err), err


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "/dev/zero.yaml", "a\0b", "x" * 5000])
@pytest.mark.parametrize(
    "command", [["check"], ["train"], ["report"], ["fetch-weights", "--from", "."]], ids=lambda c: c[0]
)
def test_a_study_s_name_leads_to_no_other_file(here, capsys, name, command):
    assert main([*command, "--study", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "no such study" in err or "File name too long" in err


# -- studies made at random --------------------------------------------------------------------------------

#: small ones, of which two extend others; and one with every key
BASES = ("quick", "rehearsal-jpeg", "tiny-imagenet", "widths-jpeg", "tiny")
WORDS = (
    "", "\n", "a\nb", "\0", "\x1b[31m", "é", "\u202e", "\ud800", "../..", "/", "[", "(", "*", "\\", "%s", "{}", "null", "x" * 200,
    "__class__", "_resnet", "ptq", "qat", "lambda", "baseline", "mlp5\n", "fc*", "tiny", "quick", "table1", "figure2", "1e999", "3",
    "timm/", "torchvision/../x", "mlp5-scratch/qat-3bit", "<b>",
)  # fmt: skip
NUMBERS = (
    0,
    -1,
    2,
    3,
    32,
    33,
    2**31,
    2**63,
    10**30,
    10**400,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("nan"),
    1.5,
    True,
    None,
)
SCALARS = st.sampled_from([*WORDS, *NUMBERS])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2), max_leaves=6
)
FUZZ = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@cache
def studies():
    """By name, the text and the content of a study that is valid."""
    more = {
        "reference": "quick", "companions": ["quick"], "rate_searches": {"mlp5-scratch": ["mlp5-scratch"]},
        "exports": {"e": {"of": ["mlp5-scratch/qat-3bit"], "bits": [3]}}, "wanted": {"only": ["mlp5-scratch"], "seeds": [0]},
        "not_run": {"vit": "later"}, "fitted": [["mlp5", "scratch", "qat", 3]], "toy_regression": {"seeds": [0]},
        "gain": {"bits": 3, "against": "mlp5-scratch/osciquant-3bit", "rows": [{"text": "x", "of": "mlp5-scratch/qat-3bit"}]},
        "claims": {"collapse": 3.0},
    }  # fmt: skip
    texts = {name: (ROOT / f"params/{name}.yaml").read_text() for name in BASES if name != "tiny"}
    texts["tiny"] = yaml.safe_dump(base() | more, sort_keys=False)
    return {name: (text, yaml.safe_load(text)) for name, text in texts.items()}


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "params"
    shutil.copytree(ROOT / "params", folder)
    (folder / "tiny.yaml").write_text(studies()["tiny"][0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        yield folder


def places(content):
    """(container, key) of everything in it."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in ((content, key), *places(content[key]))]


def mutated(draw, content):
    """The content with one to three faults: another value, a key that is lost, renamed, twice or from elsewhere."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(content)):
            break
        inner, key = draw(st.sampled_from(found))
        other, place = draw(st.sampled_from(found))
        match draw(st.sampled_from(["value", "drop", "rename", "add", "copy", "twice"])):
            case "value":
                inner[key] = draw(VALUES)
            case "drop":
                del inner[key]
            case "rename" if isinstance(inner, dict):
                inner[draw(SCALARS | st.sampled_from([place for _, place in found]))] = inner.pop(key)
            case "add" if isinstance(inner, dict):
                inner[draw(SCALARS)] = draw(VALUES)
            case "copy":
                inner[key] = copy.deepcopy(other[place])
            case "twice" if isinstance(inner, list):
                inner.append(inner[key])
    return content


def checked(params, name, text, capsys):
    """Check the study: it is valid, or refused in one line that begins with its file and a key of studies."""
    file = params / f"{name}.yaml"
    file.write_bytes(text)
    try:
        code = main(["check", "--study", str(file)])
    finally:
        file.write_text(studies()[name][0])
    err = capsys.readouterr().err
    assert code in (0, 2)
    if code == 2:
        assert (
            err.startswith(f"error: {file}: ") and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 2000
        ), err
        said = err.removeprefix(f"error: {file}: ")
        whole = ("not valid YAML: ", "not UTF-8", "unknown key ", "key ", "a study is a mapping", "its aliases ")
        assert said.startswith(whole) or re.match(r"\w+", said)[0] in Study.model_fields, err


def dumped(content):
    return yaml.dump(content, sort_keys=False, width=10**6, allow_unicode=True).encode(errors="surrogatepass")


@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_a_study_with_random_faults_is_valid_or_refused(params, capsys, data):
    name = data.draw(st.sampled_from(BASES))
    checked(params, name, dumped(mutated(data.draw, studies()[name][1])), capsys)


TOKENS = (
    b"\t", b"\n", b"&a ", b"*a", b"*methods", b"<<: ", b"!!python/object:os.system ", b"!!set ", b"!!binary ", b"!!float ", b"!!omap ",
    b"!!timestamp ", b"{", b"}", b"[", b"]", b": ", b"- ", b"? ", b'"', b"'", b"#", b"|", b">", b"%", b"@", b"\xff", b"\0",
    b"\xef\xbb\xbf", b"---\n", b"...\n", b"0x1F", b"1_000", b".inf", b"~", b"2001-01-01", b"=",
)  # fmt: skip


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_a_study_of_random_text_is_valid_or_refused(params, capsys, data):
    name = data.draw(st.sampled_from(BASES))
    text = bytearray(studies()[name][0].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
        text[start : start + length] = data.draw(st.sampled_from(TOKENS) | st.binary(max_size=3))
    checked(params, name, bytes(text), capsys)


# -- archives ----------------------------------------------------------------------------------------------


def zipped(file, *members, encrypted=False, nameless=False):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
        if nameless:
            opened.infolist()[0].filename = ""
    if encrypted:  # its flag, in the header of the member and in the directory at the end
        content = bytearray(file.read_bytes())
        for start, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(start) + flag] |= 1
        file.write_bytes(content)
    return file


def tarred(file, *members):
    with tarfile.open(file, "w:gz") as opened:
        for name, change in members:
            member = tarfile.TarInfo(name)
            for key, value in change.items():
                setattr(member, key, value)
            opened.addfile(member, io.BytesIO(b"\0" * member.size))
    return file


ARCHIVES = {
    "a zip bomb": (lambda f: zipped(f, ("a.png", b"\0" * 100_000)), r"'a.png': more than 100 files or 10,000 bytes"),
    "a tar bomb": (lambda f: tarred(f, ("a.png", {"size": 100_000})), r"'a.png': more than 100 files or 10,000 bytes"),
    "a bomb in parts": (lambda f: zipped(f, *((f"{i}.png", b"\0" * 4_000) for i in range(3))), r"'2.png': more than 100 files"),
    "a million files": (lambda f: tarred(f, *((f"{i}.png", {}) for i in range(101))), r"'100.png': more than 100 files"),
    "a header that is a bomb": (lambda f: tarred(f, ("a.png", {"pax_headers": {"comment": "x" * 100_000}})), r"a header of 1000\d\d bytes"),
    "a hard link": (lambda f: tarred(f, ("a.png", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})), r"'a.png' is a link or a device"),
    "a device": (lambda f: tarred(f, ("a.png", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})), r"'a.png' is a link or a device"),
    "a queue": (lambda f: tarred(f, ("a.png", {"type": tarfile.FIFOTYPE})), r"'a.png' is a link or a device"),
    "backslashes": (lambda f: tarred(f, ("a\\..\\..\\b.png", {"size": 1})), r"lies outside the archive's folder"),
    "encrypted": (lambda f: zipped(f, ("a.png", b"x"), encrypted=True), r"not a whole zip or tar archive .*encrypted"),
    "no name": (lambda f: zipped(f, ("a.png", b"x"), nameless=True), r"not a whole zip or tar archive"),
    "a pickle": (lambda f: f.write_bytes(PICKLE) and f, r"not a whole zip or tar archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_hostile_archive_is_refused_and_nothing_written(tmp_path, monkeypatch, case):
    monkeypatch.setattr(sources, "MOST_FILES", 100)
    monkeypatch.setattr(sources, "MOST_BYTES", 10_000)
    make, said = ARCHIVES[case]
    file = make(tmp_path / "images")
    error = refused(lambda: list(sources.entries(file)))
    assert error.startswith(f"{file}: ") and re.search(said, error), error
    assert list(tmp_path.iterdir()) == [file]


def test_an_archive_at_its_limits_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    file = zipped(tmp_path / "images.zip", ("a", b"a" * 60), ("b", b"b" * 40))
    assert list(sources.entries(file)) == [("a", b"a" * 60), ("b", b"b" * 40)]


def test_a_folder_has_the_limits_of_an_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    for name, size in (("b", 40), ("a/c", 60)):
        file = tmp_path / "images" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)
    assert [(name, len(content)) for name, content in sources.entries(tmp_path / "images")] == [("a/c", 60), ("b", 40)]
    (tmp_path / "images/b").write_bytes(b"x" * 41)
    assert "member 'b': more than 2 files or 100 bytes with it" in refused(
        lambda: list(sources.entries(tmp_path / "images"))
    )
    (tmp_path / "images/b").write_bytes(b"")
    (tmp_path / "images/d").write_bytes(b"")
    assert "member 'd': more than 2 files" in refused(lambda: list(sources.entries(tmp_path / "images")))


def test_a_folder_with_a_file_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"x")

    def closed(path, *how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", closed)
    assert "not a folder whose files can be read ([Errno 13] Permission denied" in refused(
        lambda: list(sources.entries(tmp_path / "images"))
    )


def encoded(kind, size=(32, 32)):
    out = io.BytesIO()
    Image.new("RGB", size).save(out, kind)
    return out.getvalue()


def declared(side):
    """A PNG of 32x32 pixels that says it is a square of another side."""
    content = bytearray(encoded("PNG"))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


IMAGES = {
    "another size": (encoded("PNG", (33, 32)), "image is 33x32, expected 32x32"),
    "five thousand pixels wide": (declared(5_000), "image is 5000x5000, expected 32x32"),
    "a bomb": (declared(60_000), "unreadable image .*decompression bomb"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n", "unreadable image"),
    "another format": (encoded("GIF"), "unreadable image"),
    "a pickle": (PICKLE, "unreadable image"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_hostile_image_is_refused_before_it_is_decoded(monkeypatch, case):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("was decoded"))
    content, said = IMAGES[case]
    assert re.match(f"a.png: {said}", refused(sources.decode, content, (3, 32, 32), "a.png"))


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    for name in cifar10.BATCHES:
        rows = np.zeros((4, 3073), np.uint8)
        rows[2, 0] = 10 if name == "data_batch_2.bin" else 9
        (tmp_path / name).write_bytes(rows.tobytes())
    assert (
        refused(cifar10.prepare, tmp_path, tmp_path) == f"{tmp_path}: data_batch_2.bin: no class has number 10; 0 to 9"
    )


@pytest.mark.parametrize(
    ("annotations", "wnids", "said"),
    [
        (b"a.JPEG\n", b"n1", "test: a.JPEG is of class 'no annotation', not in wnids.txt"),
        (b"a.JPEG n1\n", b"n1 n1", "wnids.txt has 1 classes, Tiny-ImageNet has 2"),
        (b"a.JPEG \xff\xfe\n", b"n1", "test: a.JPEG is of class '\ufffd\ufffd', not in wnids.txt"),
    ],
)
def test_tiny_imagenet_with_a_broken_text_is_refused(annotations, wnids, said):
    image = encoded("PNG", (64, 64))
    files = {
        "train/n1/images/b.JPEG": image,
        "val/images/a.JPEG": image,
        "wnids.txt": wnids,
        "val/val_annotations.txt": annotations,
    }
    assert refused(tiny_imagenet.read_layout, iter(files.items()), Path("x"), len(wnids.split()), 1, 1) == f"x: {said}"


def test_a_record_that_unpacks_to_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST_TABLE", 1000)
    source = archive.Source(zipped(tmp_path / "a.zip", ("run.json", b" " * 1001), ("small.json", b" " * 1000)))
    error = refused(source.copy, Path("run.json"), tmp_path / "out")
    assert error.endswith("run.json has 1,001 bytes, more than any table or record")
    assert source.copy(Path("small.json"), tmp_path / "out") and (tmp_path / "out").read_bytes() == b" " * 1000
    encrypted = archive.Source(zipped(tmp_path / "b.zip", ("run.json", b"{}"), encrypted=True))
    assert "run.json is damaged" in refused(encrypted.copy, Path("run.json"), tmp_path / "out")


# -- weights -----------------------------------------------------------------------------------------------

WEIGHTS = {
    "names that are numbers": {1: torch.ones(2)},
    "a sparse tensor": {"fc.weight": torch.eye(3).to_sparse()},
    "a tensor without memory": {"fc.weight": torch.ones(2, device="meta")},
    "a list": [torch.ones(2)],
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_what_is_no_state_dict_is_refused(tmp_path, case):
    torch.save(WEIGHTS[case], tmp_path / "a.pth")
    assert refused(pretrained._read, tmp_path / "a.pth").startswith(f"{tmp_path / 'a.pth'}: holds no state dict")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [PICKLE, b"", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 9], ids=range(5)
)
def test_a_file_that_holds_no_tensors_is_refused(tmp_path, suffix, content):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        pretrained._read(file)
    assert str(error.value).startswith(f"{file}: ")


# -- records, sidecars, tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [PICKLE, b"", b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"null", b"[]", b"7", b'"x"'],
    ids=range(9),
)
def test_a_file_that_holds_no_object_names_itself(tmp_path, content):
    file = tmp_path / "run.json"
    file.write_bytes(content)
    assert refused(read_json, file).startswith(f"{file}: is damaged: no JSON")


def test_a_key_that_a_file_lacks_is_named(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"timing": {"wall_s": 1}}')
    assert read_json(file)["timing"]["wall_s"] == 1
    assert refused(lambda: read_json(file)["timing"]["at_once"]) == f"{file}: is damaged: has no at_once"
    assert read_json(file).get("seed") is None


@cache
def recorded():
    """A record, and the identity of its run."""
    record = json.loads(next(iter(sorted(ROOT.glob("results/*/runs/*/*/seed0/run.json")))).read_text())
    return record, {"recipe": meaning(record["recipe"]), "arithmetic": {}, "data_sha256": None, "start_sha256": None}


ABSURD = [
    ("timing", None), ("timing.wall_s", "soon"), ("timing.wall_s", -1), ("timing.wall_s", float("inf")), ("timing.at_once", 0),
    ("timing.finished", 2026), ("environment.packages", []), ("environment.packages.torch", {}), ("environment.git", "clean"),
    ("environment.threads", True), ("epochs_run", "many"), ("epochs_run", -1), ("epochs_run", 10**30), ("steps_per_epoch", 0),
    ("status", "<script>"), ("monitored", "x"), ("monitored", float("nan")), ("validation_accuracy", {"x": 1.0}),
    ("validation_accuracy", [1]), ("validation_accuracy.32", "99"), ("data", "cifar10"), ("data.name", 3), ("split.train", -1),
    ("checkpoint_sha256", None), ("quantizer", []), ("start", 7), ("seed", -1), ("seed", 1.5), ("arithmetic", {"engine": None}),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), ABSURD, ids=[f"{place}-{value}"[:40] for place, value in ABSURD])
def test_a_record_with_an_absurd_value_is_no_result(place, value):
    record, identity = copy.deepcopy(recorded()[0]), recorded()[1]
    *keys, last = place.split(".")
    inner = record
    for key in keys:
        inner = inner[key]
    inner[last] = value
    why = why_stale(record, identity)
    assert why.startswith(f"its record is damaged: {place}"), why


@pytest.mark.parametrize("key", ["timing", "epochs_run", "data", "environment", "checkpoint_sha256", "status"])
def test_a_record_without_a_key_is_no_result(key):
    record = {name: value for name, value in recorded()[0].items() if name != key}
    assert why_stale(record, recorded()[1]) == f"its record is damaged: {key}: this key is missing"


@pytest.mark.parametrize("content", [7, "x", [], None], ids=str)
def test_a_record_that_is_none_is_no_result(content):
    assert why_stale(content, recorded()[1]).startswith("its record is damaged")


SIDECAR = {
    "name": "digits", "sha256": "0", "source": "scikit-learn", "classes": [*digits.CLASSES], "image_shape": [1, 8, 8],
    "mean": [*digits.MEAN], "std": [*digits.STD], "train": 1400, "test": 397,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"image_shape": [1, 10**9, 8]}, "image_shape"), ({"image_shape": [8]}, "image_shape"), ({"std": [0]}, "std"),
        ({"classes": "ab"}, "classes"), ({"train": -1}, "train"), ({"sha256": None}, "sha256"), ({"mean": ["x"]}, "mean"),
    ],
)  # fmt: skip
def test_a_damaged_sidecar_names_its_key(here, capsys, change, key):
    Path("tiny.yaml").write_text(TINY)
    Path("data").mkdir()
    Path("data/digits.json").write_text(json.dumps(SIDECAR))
    assert main(["check", "--study", "tiny.yaml"]) == 0
    capsys.readouterr()
    Path("data/digits.json").write_text(json.dumps(SIDECAR | change))
    assert main(["check", "--study", "tiny.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data/digits.json: is damaged") and f": {key}" in said and said.count("\n") == 1


@pytest.mark.parametrize("content", [PICKLE, b"[]", b"null", b"{}"], ids=range(4))
def test_a_damaged_record_stops_nothing(here, content):
    """Whatever lies under the name of a run, in this study or in another, is not it."""
    Path("tiny.yaml").write_text(TINY)
    variants = reading.load(Path("tiny.yaml"))[1]
    run = variants[0].run(0)
    other = replace(run, study="other")
    for one in (run, other):
        for file in (one.record, one.checkpoint):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    plan = plans(variants)[0]
    assert not plan.current and "is damaged" in f"{plan.damage} {plan.stale}"
    assert not vouches_for(run.record, {"checkpoint": run.checkpoint})
    assert made_in_another_study(plan) is None


def test_accuracies_that_a_record_lacks_are_missed_beside_its_history(tmp_path):
    """Which it must have is up to the weights that its run keeps, so its form alone does not say."""
    record, folder = recorded()[0], next(iter(sorted(ROOT.glob("results/*/runs/*/*/seed0"))))
    tables = ["history.csv", "layers.csv"]
    assert damage(folder, record, tables, ["best"]) is None
    del record["validation_accuracy"]
    assert "'validation_accuracy'" in damage(folder, record, tables, ["best"])


def test_more_epochs_than_memory_holds_are_not_counted(tmp_path):
    for name in ("history.csv", "layers.csv"):
        (tmp_path / name).write_text("epoch,train_loss,val_loss,monitored\n1,1,1,1\n")
    record = recorded()[0] | {"epochs_run": 2**62}
    assert "epochs are not 1 to" in damage(tmp_path, record, ["history.csv", "layers.csv"], ["best"])


@pytest.mark.parametrize("depth", [*range(100, 1000, 50)])
def test_a_sealed_record_may_be_of_any_depth(tmp_path, depth):
    file = tmp_path / "run.json"
    file.write_text('{"record_sha256": "0", "a": ' + "[" * depth + "]" * depth + "}")
    assert refused(read_json, file).startswith(f"{file}: is damaged")


TABLES = {
    "a pickle": (PICKLE, "no table"),
    "nothing": (b"", "no table"),
    "bytes": (b"\xff\xfe\xfa,\n", "no table"),
    "an open quote": (b'epoch,layer\n1,"\n2,x', "no table"),
    "another table": (b"a,b\n1,2\n", "has no column epoch"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_file_that_is_no_table_names_itself(tmp_path, case):
    content, said = TABLES[case]
    (tmp_path / "history.csv").write_bytes(content)
    error = refused(read_csv, tmp_path / "history.csv", ["epoch"])
    assert error.startswith(f"{tmp_path / 'history.csv'}: is damaged: {said}")


@pytest.mark.parametrize("name", ["measurements", "oscillations", "posttraining", "reconstruction"])
@pytest.mark.parametrize("content", [PICKLE, b"", b"\0" * 100, b"a,b\n1,2\n"], ids=range(4))
def test_a_collected_table_that_is_none_names_itself(here, name, content):
    file = Path(f"results/tiny/{name}.csv")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert refused(Results.read, "tiny").startswith(f"{file}: is damaged: ")


# -- texts on pages, in Markdown and in LaTeX --------------------------------------------------------------

SCRIPT = "<script>alert('1')</script>"


def test_html_in_texts_is_text_on_a_page(tmp_path):
    study = {
        "study": SCRIPT, "title": f"{SCRIPT} **b**", "data": SCRIPT, "progress": SCRIPT, "note": SCRIPT, "cells": None,
        "verdicts": {SCRIPT: 1}, "findings": [{"text": f"**{SCRIPT}** `{SCRIPT}`", "target": '"><b>'}],
    }  # fmt: skip
    render("landing.html", tmp_path / "index.html", heading=SCRIPT, studies=[study])
    page = (tmp_path / "index.html").read_text()
    assert page.count("<script>") == 1, "only the page's own"
    assert '"><b>' not in page
    assert page.count("&lt;script&gt;") >= 9


def test_html_and_bars_in_texts_are_text_in_markdown():
    row = Row({"a|b": SCRIPT, "c": "x\\|y | z\nnext <b>"}, group="g")
    table = Table("t", f"A title\n# of two lines {SCRIPT}", [f"A note. {SCRIPT}", "p < 0.05"], [row])
    written = table.markdown()
    assert "<script" not in written and "</script" not in written and "<b>" not in written and "p < 0.05" in written
    heading, *_ = written.splitlines()
    assert heading == "### A title # of two lines &lt;script>alert('1')&lt;/script>"
    *_, group, last = written.splitlines()
    assert group == "| *g* |  |"
    assert last == "| &lt;script>alert('1')&lt;/script> | x&#124;y \\| z next &lt;b> |"


def test_commands_in_texts_are_text_in_latex():
    rows = [Row({"a": "[1ex] \\input{/etc/passwd}"}), Row({"a": "*"}), Row({"a": "\\\\ & % $x$\n\nnext"})]
    written = Table("t", "A title\n\nof two \\write18{ls}", [], rows).latex()
    assert "\\input" not in written and "\\write" not in written and "\n\n" not in written
    assert r"{}[1ex] \textbackslash{}input\{/etc/passwd\} \\" in written
    assert "\n{}* \\\\\n" in written
    assert r"\textbackslash{}\textbackslash{} \& \% \$x\$ next \\" in written
