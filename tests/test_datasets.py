"""Datasets: conversion, sources, and everything that can be wrong with an archive."""

import errno
import hashlib
import http.server
import io
import tarfile
import threading
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from oscillations import datasets
from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.core.files import read_json
from oscillations.datasets import _sources as sources
from oscillations.datasets import cifar10, cifar10_jpeg, digits, tiny_imagenet


@pytest.fixture(autouse=True)
def small_cifar(monkeypatch):
    """Two images per class for training, one for testing: complete, but small."""
    for module in (cifar10, cifar10_jpeg):
        monkeypatch.setattr(module, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(cifar10, "TEST_IMAGES", 10)


def pixels(seed):
    return np.random.RandomState(seed).randint(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(seed, suffix):
    out = io.BytesIO()
    Image.fromarray(pixels(seed)).save(out, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return out.getvalue()


def folder_files(suffix="png", prefix=""):
    """{path: content} of an image folder."""
    return {
        f"{prefix}{split}/{label}/{i:04d}.{suffix}": encoded(100 * place + 10 * (split == "test") + i, suffix)
        for split, count in (("train", 2), ("test", 1))
        for place, label in enumerate(cifar10.CLASSES)
        for i in range(count)
    }


def binary_files():
    """The canonical form of the same images, four images to a batch."""
    rows = {"train": [], "test": []}
    for split, count in (("train", 2), ("test", 1)):
        for place in range(10):
            for i in range(count):
                image = pixels(100 * place + 10 * (split == "test") + i).transpose(2, 0, 1).tobytes()
                rows[split].append(bytes([place]) + image)
    batches = {
        f"cifar-10-batches-bin/data_batch_{b + 1}.bin": b"".join(rows["train"][4 * b : 4 * b + 4]) for b in range(5)
    }
    return batches | {"cifar-10-batches-bin/test_batch.bin": b"".join(rows["test"])}


def write_folder(path, files):
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return path


def write_tar(path, files):
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in reversed(files.items()):  # order must not matter
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


SOURCES = {
    "folder": lambda tmp: write_folder(tmp / "images", folder_files()),
    "zip": lambda tmp: write_zip(tmp / "images.zip", folder_files(prefix="deep/er/")),
    "tar": lambda tmp: write_tar(tmp / "images.tar", folder_files(prefix="./")),
    "tar.gz": lambda tmp: write_tar(tmp / "images.tar.gz", folder_files()),
    "tar.xz": lambda tmp: write_tar(tmp / "images.tar.xz", folder_files()),
    "tar.bz2": lambda tmp: write_tar(tmp / "images.tar.bz2", folder_files()),
    "canonical folder": lambda tmp: write_folder(tmp / "canonical", binary_files()),
    "canonical archive": lambda tmp: write_tar(tmp / "canonical.tar.gz", binary_files()),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_images(kind, tmp_path):
    images = cifar10.prepare(SOURCES[kind](tmp_path), tmp_path)
    reference = cifar10.prepare(SOURCES["folder"](tmp_path / "reference"), tmp_path)
    order = np.argsort(images.train_labels, kind="stable")
    assert (images.train_images[order] == reference.train_images).all()
    assert (images.test_images == reference.test_images).all()
    assert images.train_images.shape == (20, 3, 32, 32)
    assert np.bincount(images.train_labels).tolist() == [2] * 10


def test_jpeg_is_another_dataset(tmp_path):
    source = write_folder(tmp_path / "images", folder_files("jpg"))
    with pytest.raises(InputError, match="data: cifar10-jpeg"):
        cifar10.prepare(source, tmp_path)
    assert cifar10_jpeg.prepare(source, tmp_path).source == "image folder, JPEG"


def test_jpeg_needs_a_source(tmp_path):
    with pytest.raises(InputError, match="source=PATH"):
        cifar10_jpeg.prepare(None, tmp_path)


def without(files, start):
    return {name: content for name, content in files.items() if not name.startswith(start)}


BAD = {
    "missing class": (lambda t: write_folder(t / "x", without(folder_files(), "train/cat")), r"train/ has no image of class cat"),
    "unknown class": (lambda t: write_folder(t / "x", folder_files() | {"train/cow/1.png": encoded(1, "png")}), r"train/cow/1\.png: unknown class 'cow'"),
    "unreadable image": (lambda t: write_folder(t / "x", folder_files() | {"train/cat/0000.png": b"no image"}), r"train/cat/0000\.png: unreadable image"),
    "truncated image": (
        lambda t: write_folder(t / "x", folder_files() | {"train/cat/0000.png": encoded(3, "png")[:900]}), r"train/cat/0000\.png: unreadable image"
    ),
    "too few images": (lambda t: write_folder(t / "x", without(folder_files(), "train/cat/0001")), r"train has 19 images, CIFAR-10 has 20"),
    "zip out of its folder": (lambda t: write_zip(t / "x.zip", {"../evil.png": b""}), r"'\.\./evil\.png' lies outside"),
    "tar out of its folder": (lambda t: write_tar(t / "x.tar", {"a/../../evil.png": b""}), r"lies outside"),
    "absolute path": (lambda t: write_tar(t / "x.tar", {"/etc/evil.png": b""}), r"lies outside"),
    "python form": (lambda t: write_folder(t / "x", {"cifar-10-batches-py/data_batch_1": b"pickle"}), r"Python form, whose pickles are never loaded"),
    "truncated batch": (lambda t: write_folder(t / "x", binary_files() | {"cifar-10-batches-bin/data_batch_3.bin": b"1234"}), r"data_batch_3\.bin is missing or truncated \(4 bytes\)"),
    "missing batch": (lambda t: write_folder(t / "x", without(binary_files(), "cifar-10-batches-bin/test")), r"test_batch\.bin is missing or truncated"),
    "no archive": (lambda t: write_folder(t, {"x.tar.gz": b"garbage"}) / "x.tar.gz", r"not a whole zip or tar archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_refused_by_name(case, tmp_path):
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        cifar10.prepare(make(tmp_path), tmp_path)
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_truncated_archives_are_refused(kind, tmp_path):
    path = SOURCES[kind](tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a whole zip or tar archive"):
        cifar10.prepare(path, tmp_path)


def test_links_in_archives_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("train/cat/1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InputError, match="is a link"):
        cifar10.prepare(path, tmp_path)


def test_the_canonical_archive_is_checked_by_its_published_md5(tmp_path):
    archive = write_tar(tmp_path / "x.tar.gz", binary_files()).rename(tmp_path / cifar10.ARCHIVE)
    with pytest.raises(InputError, match=r"that of the canonical archive is c32a1d4ab5d03f1284b67883e8d87530"):
        cifar10.prepare(archive, tmp_path)


def test_a_missing_source_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "--data", "cifar10", "--source", "nowhere"]) == 2
    assert "source=nowhere: no such file or folder" in capsys.readouterr().err
    assert main(["fetch", "--data", "cifar"]) == 2
    assert "did you mean 'cifar10'" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path):
    """A file server on this machine; ``/flaky`` fails twice before it gives the file."""
    content, failures, ended = b"archive" * 1000, {"/flaky": 2}, threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if failures.get(self.path, 0):
                failures[self.path] -= 1
                self.send_error(503)
            elif self.path.startswith("/gone"):
                self.send_error(404)
            elif self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
            elif self.path in ("/half", "/stalled"):  # of what is announced
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:3000])
                self.wfile.flush()
                if self.path == "/stalled":
                    ended.wait(60)
            else:
                body = content[:100] if self.path == "/truncated" else content
                self.send_response(200)
                if self.path != "/unannounced":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", content
        ended.set()
        running.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda _: None)


@pytest.mark.parametrize("paths", [["/whole"], ["/flaky"], ["/gone", "/truncated", "/whole"]])
def test_download_retries_and_goes_on_to_the_next_mirror(server, tmp_path, paths):
    address, content = server
    target = tmp_path / "file"
    sources.download([address + path for path in paths], target, hashlib.md5(content).hexdigest())
    assert target.read_bytes() == content


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    address, _ = server
    with pytest.raises(InputError, match=r"md5 is .*, published is 0000"):
        sources.download([f"{address}/whole"], tmp_path / "file", "0000")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("digits", ["", hashlib.md5(b"archive" * 1000).hexdigest()])
def test_half_a_file_is_none_even_without_a_published_hash(server, tmp_path, digits):
    address, content = server
    with pytest.raises(InputError, match=r"/half \(try 3\): ended after 3,000 of 7,000 bytes"):
        sources.download([f"{address}/half"], tmp_path / "file", digits)
    assert not any(tmp_path.iterdir())
    assert sources.download([f"{address}/half", f"{address}/whole"], tmp_path / "file", digits).read_bytes() == content


@pytest.mark.parametrize(
    ("path", "said"),
    [("whole", "announces 7,000 bytes, more than 6,999"), ("unannounced", "sends more than 6,999 bytes")],
)
def test_a_server_that_sends_too_much_is_given_up(server, tmp_path, path, said):
    address, content = server
    with pytest.raises(InputError, match=said):
        sources.download([f"{address}/{path}"], tmp_path / "file", "", most=6_999)
    assert not any(tmp_path.iterdir())
    assert sources.download([f"{address}/whole"], tmp_path / "file", "", most=7_000).read_bytes() == content


def test_a_server_that_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SILENCE", 0.5)
    address, content = server
    target = sources.download([f"{address}/stalled", f"{address}/whole"], tmp_path / "file", "")
    assert target.read_bytes() == content
    with pytest.raises(InputError, match=r"/stalled \(try 3\): .*timed out"):
        sources.download([f"{address}/stalled"], tmp_path / "other", "")


@pytest.mark.parametrize("new", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:text/plain,archive"])
def test_a_redirect_to_another_scheme_is_not_followed(server, tmp_path, new):
    with pytest.raises(InputError, match=r"which is not followed|is not allowed"):
        sources.download([f"{server[0]}/to/{new}"], tmp_path / "file", "")
    assert not any(tmp_path.iterdir())


def test_a_redirect_stays_with_https_but_may_lead_there(server, tmp_path):
    address, content = server
    target = sources.download([f"{address}/to/{address}/whole"], tmp_path / "file", "")
    assert target.read_bytes() == content
    handler = sources.SafeRedirects()

    def followed(old, new):
        return handler.redirect_request(urllib.request.Request(old), None, 302, "Found", {}, new).full_url

    assert followed("http://a/x", "https://b/x") == followed("https://a/x", "https://b/x") == "https://b/x"
    for new in ("http://b/x", "HTTP://b/x", "ftp://b/x", "file:///x"):
        with pytest.raises(InputError, match="redirects from https to"):
            followed("https://a/x", new)


@pytest.mark.parametrize(
    "address",
    ["{}/gone?X-Signature=secret#x", "{}/to/ftp://b/file?X-Signature=secret", "http://me:secret@127.0.0.1:1/x",
     "http://[x?secret", "{}/a b?secret"],
)  # fmt: skip
def test_a_secret_in_an_address_stays_out_of_messages(server, tmp_path, capsys, address):
    with pytest.raises(InputError) as error:
        sources.download([address.format(server[0])], tmp_path / "file", "")
    assert "secret" not in f"{error.value}{capsys.readouterr()}"


def test_a_full_disk_is_not_the_mirrors_fault(server, tmp_path, monkeypatch):
    asked = []

    def full(url, part, most):
        asked.append(url)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "_fetch", full)
    with pytest.raises(InputError, match=r"file: no room left to write it"):
        sources.download([f"{server[0]}/whole", f"{server[0]}/flaky"], tmp_path / "file", "")
    assert len(asked) == 1


def test_a_whole_download_is_kept(server, tmp_path):
    _, content = server
    target = tmp_path / "file"
    target.write_bytes(content)
    sources.download(["http://127.0.0.1:9/none"], target, hashlib.md5(content).hexdigest())


def test_digits_become_one_checked_file(tmp_path):
    datasets.write("digits", tmp_path)
    _, tensors = datasets.read("digits", tmp_path)
    assert tensors["train_images"].shape == (1400, 1, 8, 8)
    assert tensors["test_labels"].bincount().min() >= 30
    train = tensors["train_images"].float() / 255
    assert train.mean().item() == pytest.approx(digits.MEAN[0], abs=0.01)
    assert train.std().item() == pytest.approx(digits.STD[0], abs=0.01)
    before = (tmp_path / "digits.json").read_bytes()
    datasets.write("digits", tmp_path)
    assert (tmp_path / "digits.json").read_bytes() == before, "a second fetch must not look like other data"


def test_a_changed_tensor_file_is_refused(tmp_path):
    datasets.write("digits", tmp_path)
    file = tmp_path / "digits.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="content differs from the hash"):
        datasets.read("digits", tmp_path)


def test_digits_need_no_source_and_ignore_that_of_other_datasets(tmp_path):
    datasets.write("digits", tmp_path / "without")
    datasets.write("digits", tmp_path / "with", tmp_path)
    files = [tmp_path / folder / "digits.safetensors" for folder in ("without", "with")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_dataset_that_was_not_fetched_names_the_command(tmp_path):
    with pytest.raises(InputError, match="python -m oscillations fetch --data digits"):
        datasets.read("digits", tmp_path)


WNIDS = ["n02", "n01", "n03"]  # not sorted: wnids.txt decides the order


def tiny_image(number):
    """A JPEG of one grey level, so that it survives its encoding; every third is a grey-scale file."""
    mode = "L" if number % 3 == 0 else "RGB"
    out = io.BytesIO()
    Image.new(mode, (64, 64), number if mode == "L" else (number,) * 3).save(out, "JPEG", quality=100)
    return out.getvalue()


def tiny_imagenet_files(prefix="tiny-imagenet-200/"):
    """Three classes of the official layout: two images to train on, one to test on; unlabelled ones are left out."""
    files = {"wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(), "words.txt": b"n02\tfrog"}
    rows = []
    for place, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x"
        for i in range(2):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = tiny_image(40 * place + i)
        files[f"val/images/val_{2 - place}.JPEG"] = tiny_image(200 + place)
        rows.append(f"val_{2 - place}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    files["val/val_annotations.txt"] = "".join(rows).encode()
    files["test/images/test_0.JPEG"] = tiny_image(9)
    return {prefix + name: content for name, content in files.items()}


def read_tiny(source):
    return tiny_imagenet.read_layout(sources.entries(source), source, classes=3, train=6, test=3)


@pytest.mark.parametrize("kind", ["zip", "folder", "folder of the archive's folder"])
def test_tiny_imagenet_is_read_in_its_official_layout(kind, tmp_path):
    files = tiny_imagenet_files("" if kind == "folder" else "tiny-imagenet-200/")
    source = write_zip(tmp_path / "x.zip", files) if kind == "zip" else write_folder(tmp_path / "x", files)
    splits, classes = read_tiny(source)
    assert classes == WNIDS
    images, labels = splits["train"]
    assert (images.shape, images.dtype, labels.dtype) == ((6, 3, 64, 64), np.uint8, np.int64)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images[:, :, 5, 5].tolist() == [[grey] * 3 for grey in (0, 1, 40, 41, 80, 81)]
    images, labels = splits["test"]
    assert labels.tolist() == [0, 1, 2]
    assert images[:, 0, 5, 5].tolist() == [200, 201, 202]


BAD_TINY = {
    "no wnids": (lambda f: f.pop("wnids.txt"), r"wnids\.txt is missing; this is not the layout of tiny-imagenet-200\.zip"),
    "no annotations": (lambda f: f.pop("val/val_annotations.txt"), r"val_annotations\.txt is missing"),
    "class count": (lambda f: f.update({"wnids.txt": b"n02\nn01\n"}), r"wnids\.txt has 2 classes, Tiny-ImageNet has 3"),
    "unknown class": (lambda f: f.update({"train/n09/images/n09_0.JPEG": tiny_image(3)}), r"n09_0\.JPEG is of class 'n09', not in wnids"),
    "unlabelled": (lambda f: f.update({"val/images/val_9.JPEG": tiny_image(3)}), r"val_9\.JPEG is of class 'no annotation'"),
    "missing image": (lambda f: f.pop("train/n02/images/n02_0.JPEG"), r"train has 5 images, Tiny-ImageNet has 6"),
    "missing class": (
        lambda f: f.update({"train/n01/images/n01_7.JPEG": f.pop("train/n02/images/n02_0.JPEG"), "train/n01/images/n01_8.JPEG": f.pop("train/n02/images/n02_1.JPEG")}),
        r"train has no image of class n02",
    ),
    "another size": (lambda f: f.update({"val/images/val_0.JPEG": encoded(1, "jpg")}), r"val_0\.JPEG: image is 32x32, expected 64x64"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TINY)
def test_bad_copies_of_tiny_imagenet_are_refused_by_name(case, tmp_path):
    change, message = BAD_TINY[case]
    files = tiny_imagenet_files("")
    change(files)
    with pytest.raises(InputError, match=message):
        read_tiny(write_folder(tmp_path / "x", files))


def test_tiny_imagenets_sidecar_holds_its_classes_and_the_md5_found(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "CLASSES", ["0", "1", "2"])
    monkeypatch.setattr(tiny_imagenet, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(tiny_imagenet, "TEST_IMAGES", 3)
    archive = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet_files())
    datasets.write("tiny-imagenet", tmp_path, archive)
    about, tensors = datasets.read("tiny-imagenet", tmp_path)
    assert about["classes"] == WNIDS
    assert (about["train"], about["test"], about["image_shape"]) == (6, 3, [3, 64, 64])
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    assert (
        about["source"] == f"official layout, md5 {found}, not the one widely given, not verified by an official source"
    )
    assert set(tensors) == {"train_images", "train_labels", "test_images", "test_labels"}
    monkeypatch.setattr(tiny_imagenet, "MD5", found)
    datasets.write("tiny-imagenet", tmp_path, archive)
    assert "as widely given, not verified" in read_json(tmp_path / "tiny-imagenet.json")["source"]


def test_a_download_without_a_published_hash_is_kept_as_it_is(server, tmp_path):
    address, content = server
    target = sources.download([f"{address}/whole"], tmp_path / "file", "")
    assert target.read_bytes() == content
    found = hashlib.sha256(content).hexdigest()
    sources.download([f"{address}/whole"], tmp_path / "other", found[:8], "sha256", "weights")
    with pytest.raises(InputError, match=r"--config weights=PATH.*\n.*sha256 is .*, published is 0000"):
        sources.download([f"{address}/whole"], tmp_path / "third", "0000", "sha256", "weights")


@pytest.mark.network
def test_the_canonical_archive_can_be_fetched(tmp_path, monkeypatch):
    monkeypatch.undo()
    datasets.write("cifar10", tmp_path)
    assert read_json(tmp_path / "cifar10.json")["train"] == 50_000
