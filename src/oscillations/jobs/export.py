"""Trained runs as files that compute the same elsewhere, and what such files cost and give."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from oscillations import datasets, models
from oscillations.core.bits import LATENT, REQUANTIZE, SLICE, SLICED
from oscillations.core.errors import InputError, did_you_mean
from oscillations.core.files import write_text
from oscillations.engine.accuracy import accuracy
from oscillations.engine.batches import ImageSet, image_sets
from oscillations.engine.determinism import set_up_torch
from oscillations.engine.network import Network
from oscillations.jobs.networks import trained
from oscillations.nn import export, onnx_file
from oscillations.nn.export import SUFFIXES, for_any_width, of_network, of_one_rule
from oscillations.nn.latent import check_bits
from oscillations.records.environment import processor
from oscillations.records.plans import Plan, current, plans
from oscillations.study.paths import DATA, exports_file
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

IMAGES = 500  #: test images on which a file must give the evaluation's classes
TIMED = 50  #: batches whose time is measured


class Source:
    """A finished run, ready to be exported: its network, a fresh model of its kind, and the test images."""

    def __init__(self, plan: Plan):
        self.plan, recipe = plan, plan.variant.recipe
        device = set_up_torch(recipe.threads, recipe.training.precision, "cpu")
        about, tensors = datasets.read(recipe.data, DATA)
        self.dataset = about
        self.test: ImageSet = image_sets(about, tensors, recipe, device)["test"]
        self.network: Network = trained(plan.variant, plan.run, about, device)
        self.images = self.test.batch(slice(0, IMAGES))[0].contiguous()
        self.classes = about["classes"] if recipe.classes is None else [about["classes"][i] for i in recipe.classes]
        self.measured: dict[tuple[int, str], float] = {}  # accuracies, each measured once for all files
        self.shape: tuple[int, int, int] = tuple(self.images.shape[1:])  # type: ignore[assignment]

    def fresh(self) -> nn.Module:
        """A model built as the run's was."""
        return models.build(self.plan.variant.recipe.model.plain(), self.shape, len(self.classes)).eval()

    @torch.no_grad()
    def logits(self, bits: int, rule: str) -> Tensor:
        """What the evaluation computes of the first test images."""
        self.network.model.eval()
        with self.network.at(bits, rule):
            found: Tensor = self.network.model(self.images)
        return found

    def accuracy(self, bits: int, rule: str = REQUANTIZE) -> float:
        """The evaluation's accuracy on all test images, in percent."""
        if (bits, rule) not in self.measured:
            with self.network.at(bits, rule):
                self.measured[bits, rule] = accuracy(self.network.model, self.test)[0]
        return self.measured[bits, rule]

    def card(self, widths: list[int], rule: str) -> dict[str, Any]:
        """What a reader of a file wants to know, with the accuracy measured at each width."""
        record, options = self.plan.result, self.plan.variant.recipe.model.plain()
        return {
            "run": str(self.plan.run.folder), "recipe": record["recipe"], "seed": record["seed"],
            "checkpoint_sha256": record["checkpoint_sha256"], "data": record["data"],
            "mean": self.dataset["mean"], "std": self.dataset["std"], "classes": self.classes,
            "model": {"options": options, "image_shape": self.shape, "classes": len(self.classes)},
            "rule": rule, "images": len(self.test),
            "test_accuracy": {str(bits): round(self.accuracy(bits, rule), 4) for bits in widths},
            "oscillations": _version(),
        }  # fmt: skip

    def write(
        self, file: Path, format: str, bits: int | None, rule: str = REQUANTIZE, opset: int = onnx_file.OPSET
    ) -> dict[int | None, Tensor]:
        """Write the run at a width (None: any), and try it; returns the logits that the file computes."""
        if bits is None:
            model, widths = for_any_width(self.network, rule), any_widths(rule)
            expected: dict[int | None, Tensor] = {width: self.logits(width, rule) for width in widths}
        else:
            model, widths = of_network(self.network, bits, rule), [bits]
            expected = {None: self.logits(bits, rule)}
        model.about = self.card(widths, rule)
        found = export.write(model, self.fresh(), file, format, self.images, expected, opset)
        self.difference = max(float((found[key] - expected[key]).abs().max()) for key in found)
        return found


def any_widths(rule: str) -> list[int]:
    """Widths that an any-width file is tried at."""
    return [*range(2, SLICED + 1)] if rule == REQUANTIZE else [*range(2, SLICED)]


def export_run(
    variants: list[Variant], run: str, width: int | Literal["any"] | None, format: str, rule: str, opset: int,
    file: Path | None,
) -> None:  # fmt: skip
    """Write one run as one file, and say what it computes.

    ``width``: None for the run's own. Raises InputError if there is no such run, or the file does not compute the same.
    """
    found = {plan.run.name: plan for plan in plans(variants)}
    if run not in found:
        raise InputError(f"--run {run}: no such run; {did_you_mean(run, found)}")
    plan = found[run]
    if not plan.current:
        raise InputError(f"--run {run}: {plan.stale or 'has not run'}; train it first")
    bits = None if width == "any" else plan.variant.recipe.bits if width is None else width
    if bits is not None:
        check_bits(bits, latent=True)
    if rule == SLICE and bits is not None and bits >= SLICED:
        raise InputError(f"--rule slice: has widths below {SLICED} only")
    name = "any" if bits is None else "fp32" if bits == LATENT else f"{bits}bit"
    name += "-slice" if rule == SLICE else ""
    if file is not None and file.suffix != SUFFIXES[format]:
        raise InputError(f"--out {file}: a file of format {format} ends in {SUFFIXES[format]}")
    file = file or Path("exports", plan.run.study, run, f"{name}{SUFFIXES[format]}")
    source = Source(plan)
    source.write(file, format, bits, rule, opset)
    print(f"{file}: {file.stat().st_size:,} bytes")
    tried = f"tried on {len(source.images)} test images: the same class for every one"
    print(f"{tried}, logits differ by up to {source.difference:.3g}")
    measured = source.measured.items()
    print("test accuracy: " + ", ".join(f"{value:.2f} at {_width(width)}" for (width, _), value in measured))


def _width(bits: int) -> str:
    return "FP32" if bits == LATENT else f"{bits} bits"


def export_entry(study: Study, variants: list[Variant], name: str) -> None:
    """Measure the files of all current runs of the study's entry ``name``: one row per file and width.

    Raises InputError if none of its runs is there.
    """
    entry = study.exports[name]
    rows: list[dict[str, Any]] = []
    finished = current(plan for plan in plans(variants) if entry.takes(plan.variant.path, plan.run.seed))
    if not finished:
        raise InputError(f"exports.{name}: none of its runs has been trained yet")
    for plan in finished:
        about = {"run": plan.run.name, "checkpoint_sha256": plan.result["checkpoint_sha256"], "machine": processor()}
        with tempfile.TemporaryDirectory() as folder:
            rows += [about | row for row in _measured(Source(plan), entry.bits, Path(folder))]
        print(f"{plan.run.name}: exported and measured", flush=True)
    write_text(exports_file(study.study, name), pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def _measured(source: Source, widths: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """A row per width of a file of its own, and per width of the two any-width files."""
    packed, graph = folder / "model.safetensors", folder / "model.onnx"
    for bits in (LATENT, *widths):
        source.write(packed, "safetensors", bits)
        of_torch = _accuracy(source, export.load(packed))
        source.write(graph, "onnx", bits)
        session = onnx_file.session(graph)
        of_onnx = _accuracy(source, partial(onnx_file.run, session))
        yield {
            "file": "own", "bits": bits, "bytes": packed.stat().st_size, "onnx_bytes": graph.stat().st_size,
            "accuracy": of_torch, "accuracy_onnx": of_onnx, "difference": source.difference,
            "latency_ms": _latency(session, source.images[: source.plan.variant.recipe.training.batch_size]),
        }  # fmt: skip
    kinds = {REQUANTIZE: "latent"} if of_one_rule(source.network) else {}
    for rule, kind in (kinds | {SLICE: "codes"}).items():
        source.write(packed, "safetensors", None, rule)
        for bits in (bits for bits in widths if bits in any_widths(rule)):
            found = _accuracy(source, export.load(packed, bits=bits))
            yield {"file": kind, "bits": bits, "bytes": packed.stat().st_size, "accuracy": found}


@torch.no_grad()
def _accuracy(source: Source, logits: Callable[[Tensor], Tensor]) -> float:
    """Accuracy on all test images of what computes logits of a batch, in percent."""
    correct = sum(int((logits(x.contiguous()).argmax(1) == y).sum()) for x, y in source.test.batches())
    return 100 * correct / len(source.test)


def _latency(session: Any, images: Tensor) -> float:
    """Milliseconds for a batch, the median of :data:`TIMED`."""
    times = []
    for _ in range(TIMED + 3):
        start = time.perf_counter()
        onnx_file.run(session, images)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def _version() -> str:
    try:
        return version("oscillations")
    except PackageNotFoundError:
        return "not installed"
