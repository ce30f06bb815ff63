"""Pretrained weights: public ImageNet classifiers, each one checked tensor file beside a sidecar.

A study names them ``torchvision/<model>`` or ``timm/<model>``. ``write`` makes ``data/weights/<name>.safetensors``
and a sidecar ``.json`` from a download or a local file; training reads only these. A checkpoint in ``KNOWN`` is
verified by the hash that its file's name carries; what cannot be verified says so wherever its runs are shown.
Studies are checked before every command, so torch and the libraries are imported only inside functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from oscillations import models
from oscillations.core.errors import InputError, did_you_mean, shortened
from oscillations.core.files import (
    Damaged,
    FileObject,
    NoRoom,
    file_hash,
    no_room,
    read_json,
    replacing,
    write_json,
)
from oscillations.datasets._sources import download
from oscillations.engine.layers import load_weights
from oscillations.study.paths import DATA, DOWNLOADS

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = DATA / "weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: what torch's readers of old and new formats raise beside their own errors, of what is none of them
WRONG_FORM = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
WRAPPERS = ("model", "state_dict")  # keys under which training scripts store the state dict


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint; the name of its file carries the first 8 hex digits of its sha256."""

    name: str
    url: str
    model: dict[str, Any]  # the project's own model that it fits, besides the library's
    side: int | None = None  # the only side length of images that it fits, if there is only one
    trained_on: str = "ImageNet-1k"

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def digits(self) -> str:
        found = re.search(r"-([0-9a-f]{8})\.", self.file)
        assert found
        return found[1]

    @property
    def label(self) -> str:
        return f"{self.name} ({self.trained_on})"

    def download(self) -> Path:
        return download([self.url], DOWNLOADS / self.file, self.digits, "sha256", "weights")


KNOWN = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            "torchvision/resnet18",
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",  # IMAGENET1K_V1
            {"name": "resnet18", "width": 64, "stem": "imagenet", "stem_maxpool": True},
        ),
        Checkpoint(
            "timm/deit_tiny_patch16_224",
            "https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth",
            {"name": "vit-tiny", "patch_size": 16, "width": 192, "depth": 12, "heads": 3},
            side=224,  # by its position embedding
        ),
    )
}
IMAGENET_LABELS = frozenset(checkpoint.label for checkpoint in KNOWN.values())  #: starts like the paper's


def files(name: str) -> tuple[Path, Path]:
    """Sidecar and tensor file of a checkpoint."""
    stem = name.replace("/", "-", 1)
    return FOLDER / f"{stem}.json", FOLDER / f"{stem}.safetensors"


def resolve(name: str, model: dict[str, Any], image_shape: tuple[int, int, int], where: str) -> dict[str, Any]:
    """What a recipe holds of a checkpoint: its name, and the mean and std its inputs are normalised with.

    Raises InputError, naming ``where``, unless it exists and fits the model spec and the images.
    """
    known, own, channels = KNOWN.get(name), library_model(name, where), len(IMAGENET_MEAN)
    norm = normalisation(name, where)  # says first if there is no such checkpoint
    if model["name"] != own and (known is None or model != known.model):
        fitting = [f"{{name: {own}}}"] + ([_as_yaml(known.model)] if known else [])
        raise InputError(f"{where}: {name} fits model {' or '.join(fitting)}, not {_as_yaml(model)}")
    if image_shape[0] != channels:
        raise InputError(f"{where}: {name} takes images of {channels} channels, the data's have {image_shape[0]}")
    if known and known.side and image_shape[1:] != (known.side, known.side):
        raise InputError(f"{where}: {name} takes images of side {known.side}; say resize: {known.side}")
    return {"name": name} | norm


def library_model(name: str, where: str) -> str:
    """``timm/<architecture>`` of ``timm/<architecture>.<tag>``; ``torchvision/<model>`` as it is."""
    library, _, kind = name.partition("/")
    if library not in models.LIBRARIES or not kind:
        raise InputError(
            f"{where}: {shortened(name)} is not timm/NAME or torchvision/NAME; {did_you_mean(name, KNOWN)}"
        )
    return f"{library}/{kind.split('.')[0]}"


def _as_yaml(model: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in model.items()) + "}"


def normalisation(name: str, where: str) -> dict[str, list[float]]:
    """Mean and std per channel, of pixels in [0, 1], that the checkpoint was trained with."""
    if name in KNOWN:
        return {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    library, kind = name.split("/", 1)
    if library == "timm":
        import timm

        exists, known = timm.is_model_pretrained(kind), timm.list_pretrained()
        found = timm.get_pretrained_cfg(kind) if exists else None
    else:
        from torchvision.models import get_model_weights, list_models

        known = list_models()
        found = get_model_weights(kind).DEFAULT.transforms() if kind in known else None
    if found is None:
        raise InputError(
            f"{where}: {library} has no pretrained classifier {shortened(kind)}; {did_you_mean(kind, known)}"
        )
    return {"mean": list(found.mean), "std": list(found.std)}


def write(name: str, source: Path | None = None) -> None:
    """Make the tensor file and the sidecar of checkpoint ``name``.

    ``source`` is a local state dict (.safetensors, or .pth read without running code), or a folder that holds one
    under the checkpoint's own file name; without it, the checkpoint is downloaded. Raises InputError if it does
    not fit the model it is for.
    """
    from safetensors.torch import save_file

    library_model(name, "--name")
    about = {"name": name} | normalisation(name, "--name")
    known, (sidecar, tensor_file) = KNOWN.get(name), files(name)
    file = _local(name, source) if source else known.download() if known else None
    weights, origin = _from_library(name) if file is None else (_read(file), _origin(name, file, source))
    _check_fit(name, weights, origin["source"])
    with replacing(tensor_file) as part:
        save_file({key: value.contiguous() for key, value in weights.items()}, part)
    write_json(sidecar, about | origin | {"sha256": file_hash(tensor_file)})


def _local(name: str, source: Path) -> Path:
    """The file for a checkpoint: ``source``, or the one of its name in that folder."""
    if source.is_file():
        return source
    stem = files(name)[1].stem
    names = ([KNOWN[name].file] if name in KNOWN else []) + [f"{stem}.safetensors", f"{stem}.pth"]
    for candidate in names:
        if (source / candidate).is_file():
            return source / candidate
    raise InputError(f"weights={source}: {name} is in none of the files {', '.join(names)} of this folder")


def _origin(name: str, file: Path, source: Path | None) -> dict[str, Any]:
    """Where weights are from, and whether the file is the published one."""
    known, found = KNOWN.get(name), file_hash(file)
    origin = {"source": f"local file {file.name}" if source or known is None else known.url, "source_sha256": found}
    if known and found.startswith(known.digits):
        return origin | {"trained_on": known.trained_on, "verified": True, "label": known.label}
    label = f"{origin['source']}, not verified"
    return origin | {"trained_on": f"unknown ({origin['source']})", "verified": False, "label": label}


def _from_library(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights as timm or torchvision downloads them, and their origin; no published hash is known."""
    library, kind = name.split("/", 1)
    try:
        if library == "timm":
            import timm

            network: Any = timm.create_model(kind, pretrained=True)  # with attributes that no type tells
            weights, tag = network.state_dict(), network.pretrained_cfg["tag"]
        else:
            from torchvision.models import get_model_weights

            chosen = get_model_weights(kind).DEFAULT
            weights, tag = chosen.get_state_dict(progress=True, check_hash=True, weights_only=True), chosen.name
    except (OSError, RuntimeError) as error:
        if no_room(error):
            raise NoRoom(f"the cache of {library}") from error
        raise InputError(
            f"{name}: {library} could not download it; give a local copy with --config weights=PATH "
            f"(or --source PATH)\n  {error}"
        ) from error
    source = f"downloaded through {library} {version(library)}"
    origin = {"source": source, "source_sha256": None, "verified": False, "label": f"{name}, not verified"}
    return weights, origin | {"trained_on": f"{tag}, by {library}'s word"}


def _read(file: Path) -> dict[str, Tensor]:
    """A state dict: named tensors, at the top of the file or under a key that training scripts use."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, EOFError, OSError, *WRONG_FORM) as error:
        raise InputError(f"{file}: not a state dict that can be read without running code ({error})") from error
    for candidate in (content, *(content.get(key) for key in WRAPPERS if isinstance(content, dict))):
        if isinstance(candidate, dict) and all(map(_named_tensor, candidate.items())):
            return dict(candidate)
    raise InputError(f"{file}: holds no state dict (named tensors), also not under {' or '.join(WRAPPERS)}")


def _named_tensor(item: tuple[Any, Any]) -> bool:
    """Whether an entry is a name and a tensor with numbers of its own: no sparse one, none without memory."""
    import torch

    name, value = item
    whole = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and whole and not value.is_quantized


def _check_fit(name: str, weights: dict[str, Tensor], source: str) -> None:
    """Names and shapes are those of the model, whatever its head."""
    spec = KNOWN[name].model if name in KNOWN else {"name": library_model(name, "--name")}
    network = models.build(spec, (len(IMAGENET_MEAN), 224, 224), 1000)
    try:
        load_weights(network, weights, models.head(spec["name"], network))
    except InputError as error:
        raise InputError(f"{name}, {source}: {error}") from error


def described(name: str) -> FileObject | None:
    """The sidecar of a checkpoint, None if there is none. Raises Damaged if it is not what :func:`write` writes.

    Its hash of the tensors is compared with them where they are read.
    """
    sidecar = files(name)[0]
    if not sidecar.exists():
        return None
    try:
        found: FileObject = read_json(sidecar)
        known, source = KNOWN.get(name), found["source"]
        if found["verified"]:
            whole = known is not None and (found["trained_on"], found["label"]) == (known.trained_on, known.label)
        else:
            whole = found["label"] in (f"{source}, not verified", f"{name}, not verified")
        damaged = not whole or found["name"] != name or not {"sha256", "trained_on"} <= {*found}
    except (InputError, ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise Damaged(f"{sidecar}: is damaged; {again(name)}")
    return found


def again(name: str) -> str:
    """What makes a damaged checkpoint and its sidecar again."""
    return f"make both again with: python -m oscillations weights --name {name}"


def read_about(name: str) -> dict[str, Any]:
    """The sidecar of a checkpoint."""
    about, tensor_file = described(name), files(name)[1]
    if about is None or not tensor_file.exists():
        raise InputError(
            f"{tensor_file}: no such weights yet; make them with: python -m oscillations weights --name {name}"
        )
    return about


def read(name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, checked against the sidecar's hash."""
    from safetensors.torch import load_file

    about, (sidecar, tensor_file) = read_about(name), files(name)
    if file_hash(tensor_file) != about["sha256"]:
        raise InputError(f"{tensor_file}: content differs from the hash in {sidecar}; {again(name)}")
    return load_file(tensor_file)
