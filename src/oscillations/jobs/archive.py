"""A study's weights, records and results as one archive that a release page takes, and weights out of such a one.

What comes out of an archive is placed under names that this project makes, and only if it is what a record vouches
for by hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from oscillations.core.errors import InputError
from oscillations.core.files import Damaged, as_sealed, file_hash, no_room, read_unsealed, replacing
from oscillations.core.text import markdown
from oscillations.datasets._sources import BROKEN_ARCHIVE, download
from oscillations.records.damage import damage
from oscillations.records.plans import Plan, current, plans, vouches_for, why_stale
from oscillations.records.rows import read_csv
from oscillations.study.paths import DOWNLOADS, dataset_files, figures, measurements_file, results, shipped, study_file
from oscillations.study.schema import Study
from oscillations.study.variants import Variant

SUMS, CRATE, CITATION = "SHA256SUMS", "ro-crate-metadata.json", "CITATION.cff"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
SHOWN = 10  # names of a list in a message
LARGEST_TABLE = 2**28  # bytes of an unpacked table or record, of which a small archive may hold any number
UNDATED = (1980, 1, 1, 0, 0, 0)  # the same content is the same archive, byte for byte


def pack(study: Study, variants: list[Variant], chosen: list[Variant], file: Path) -> None:
    """Write all current runs of the chosen variants, with their weights, and the study's results.

    ``variants``: all of the study. Raises InputError if weights are not here, or there are no runs.
    """
    paths = {variant.path for variant in chosen}
    found = [plan for plan in current(plans(variants)) if plan.variant.path in paths]  # all results are packed
    if not found:
        raise InputError(f"{study.study}: nothing that was chosen has run")
    missing = [plan.run.name for plan in found if not vouches_for(plan.run.record, _checkpoints(plan))]
    if missing:
        raise InputError(f"{study.study}: weights are not here, or not those of the record: {_listed(missing)}")
    files = [file for plan in found for file in plan.files]
    files += _files_of(results(study.study)) + _files_of(figures(study.study)) + _sidecars(found)
    texts = {f"cards/{path}.md": card(study, list(runs)) for path, runs in groupby(found, lambda p: p.variant.path)}
    asked = [study_file(name) for name in (study.study, study.extends) if name]
    texts |= {f"params/{file.name}": file.read_text() for file in asked if file.exists()}
    texts |= {CITATION: citation.read_text()} if (citation := shipped(CITATION)).exists() else {}
    sums = {str(file): file_hash(file) for file in dict.fromkeys(files)}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    sizes = {name: len(texts[name].encode()) if name in texts else Path(name).stat().st_size for name in sums}
    texts[CRATE] = json.dumps(crate(study, found, sums, sizes), indent=1, sort_keys=True) + "\n"
    texts[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    with replacing(file) as part, zipfile.ZipFile(part, "w") as archive:
        for name in sorted({*sums, *texts}):
            weights = name.endswith(".safetensors")  # floats do not shrink
            entry = zipfile.ZipInfo(name, UNDATED)
            entry.compress_type = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            if name in texts:
                archive.writestr(entry, texts[name])
            else:
                with Path(name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    print(f"{file}: {len(found)} runs, {file.stat().st_size:,} bytes, sha256 {file_hash(file)}")


def _checkpoints(plan: Plan) -> dict[str, Path]:
    return plan.run.checkpoints(plan.kept.values())


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _sidecars(found: list[Plan]) -> list[Path]:
    """Of the runs' data."""
    files = {dataset_files(plan.variant.recipe.data)[0] for plan in found}
    return sorted(file for file in files if file.exists())


def card(study: Study, found: list[Plan]) -> str:
    """The model card of a variant: what it is, how it was made, what it can do, in Markdown."""
    recipe, record = found[0].variant.recipe, found[0].result
    lines = [
        f"# {found[0].variant.path}", "", markdown(study.note), "",
        f"Method `{recipe.method.name}`, model `{recipe.model.name}`, data `{recipe.data}`; "
        f"{'full precision' if recipe.bits == 32 else f'trained for {recipe.bits} bits'}. Licence: Apache-2.0.", "",
        "| seed | weights | sha256 | finished |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for plan in found:
        for name, path in _checkpoints(plan).items():
            digest, finished = plan.result[f"{name}_sha256"], plan.result["timing"]["finished"]
            lines.append(f"| {plan.run.seed} | `{path}` | `{digest}` | {finished} |")
    if (accuracies := _accuracies(study, found[0].variant)) is not None:
        lines += ["", "Test accuracy (%), best epoch, batch-norm statistics kept:", "", *accuracies]
    made = json.dumps(record["recipe"], indent=1, sort_keys=True)
    git = record["environment"]["git"] or {}
    lines += ["", f"Recipe (source: commit {git.get('commit', 'unknown')}):", "", "```json", made, "```", ""]
    first = found[0].run.name
    lines += [f"To use it: `python -m oscillations export --study {study.study} --run {first}`.", ""]
    return "\n".join(lines)


def _accuracies(study: Study, variant: Variant) -> list[str] | None:
    """Rows of mean and number of seeds by width, if the study has collected its measurements."""
    file = measurements_file(study.study)
    if not file.exists():
        return None
    rows = read_csv(file)
    mine = rows[(rows.experiment == variant.experiment) & (rows.variant == variant.name)]
    mine = mine[(mine.split == "test") & (mine.bn == "keep")]
    for column, value in (("rule", "requantize"), ("selection", "best")):
        if column in mine:
            mine = mine[mine[column].fillna(value) == value]
    if mine.empty:
        return None
    said = [f"| {bits} | {g.accuracy.mean():.2f} | {g.accuracy.count()} |" for bits, g in mine.groupby("eval_bits")]
    return ["| bits | mean | seeds |", "| --- | --- | --- |", *said]


def crate(study: Study, found: list[Plan], sums: dict[str, str], sizes: dict[str, int]) -> dict[str, Any]:
    """RO-Crate 1.1 metadata: what the archive is, and every file with its size and hash."""
    files = [
        {"@id": name, "@type": "File", "contentSize": sizes[name], "sha256": digest} for name, digest in sums.items()
    ]
    finished = max(plan.result["timing"]["finished"] for plan in found)
    root = {
        "@id": "./", "@type": "Dataset", "name": study.title, "description": study.note, "license": {"@id": LICENSE},
        "datePublished": finished[:10], "hasPart": [{"@id": name} for name in sums],
        "citation": {"@id": "https://arxiv.org/abs/2502.00490"},
    }  # fmt: skip
    about = {
        "@id": CRATE, "@type": "CreativeWork", "about": {"@id": "./"},
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
    }  # fmt: skip
    paper = {
        "@id": "https://arxiv.org/abs/2502.00490", "@type": "ScholarlyArticle",
        "name": "Oscillations Make Neural Networks Robust to Quantization",
    }  # fmt: skip
    licence = {"@id": LICENSE, "@type": "CreativeWork", "name": "Apache License 2.0"}
    return {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [about, root, licence, paper, *files]}


# -- out of an archive -----------------------------------------------------------------------------------------


class Source:
    """An archive, or a folder that holds what one does (an unpacked one, another clone)."""

    def __init__(self, path: Path):
        self.path = path
        self._archive = None if path.is_dir() else self._opened()

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except BROKEN_ARCHIVE as error:
            raise InputError(f"--from {self.path}: is no folder and no whole zip archive ({error})") from None

    def copy(self, name: Path, target: Path) -> bool:
        """Copy a member to ``target``; False if there is none of that name."""
        try:
            with self._reader(name) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            return True
        except (KeyError, FileNotFoundError):
            return False
        except BROKEN_ARCHIVE as error:
            if no_room(error):
                raise
            raise InputError(f"--from {self.path}: {name} is damaged ({error})") from None

    def _reader(self, name: Path) -> BinaryIO:
        if self._archive is None:
            return (self.path / name).open("rb")
        entry = self._archive.getinfo(name.as_posix())
        if name.suffix == ".safetensors" and entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"--from {self.path}: {name} is compressed, which no archive of this project's is")
        if name.suffix != ".safetensors" and entry.file_size > LARGEST_TABLE:
            raise InputError(f"--from {self.path}: {name} has {entry.file_size:,} bytes, more than any table or record")
        return self._archive.open(entry)  # type: ignore[return-value]


@contextmanager
def opened(source: str) -> Iterator[Source]:
    """The archive or folder at a path or a URL; what is downloaded is there inside the block alone."""
    if "://" not in source:
        yield Source(Path(source))
        return
    if not source.startswith(("http://", "https://")):
        raise InputError(f"--from {source}: give a path, or a URL that begins with https:// or http://")
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
        yield Source(download([source], Path(folder, "archive.zip"), "", "sha256", "from", most=None))


def fetch_weights(variants: list[Variant], chosen: Iterable[Variant], source: str) -> None:
    """Place the weights of the chosen variants' runs, and the records of those that have none here.

    ``variants``: all of the study. A checkpoint must be the one that its record vouches for, a record its run's result.
    Raises InputError if anything is not what it should be, or the source holds nothing that was asked for.
    """
    paths = {variant.path for variant in chosen}
    placed, there, missing = 0, 0, []
    with opened(source) as archive:
        for plan in [plan for plan in plans(variants) if plan.variant.path in paths]:
            if _whole(plan) and vouches_for(plan.run.record, _checkpoints(plan)):
                there += 1
            elif _place(archive, plan):
                placed += 1
                print(f"{plan.run.name}: placed", flush=True)
            else:
                missing.append(plan.run.name)
    shown = source.partition("?")[0] if "://" in source else source  # a signature opens what is private
    print(f"{placed} runs placed, {there} were there, {len(missing)} are not in {shown}")
    if missing and not placed and not there:
        raise InputError(f"--from {shown}: holds nothing of what was asked for: {_listed(missing)}")


def _whole(plan: Plan) -> bool:
    """Whether a run's record is in place, and neither it nor a table beside it is damaged."""
    return plan.current and not plan.damage


def _place(archive: Source, plan: Plan) -> bool:
    """Copy what a run lacks: checkpoints that its record vouches for, and without a whole record all of its files."""
    run, checkpoints = plan.run, _checkpoints(plan)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS if DOWNLOADS.exists() else None) as folder:

        def here(file: Path) -> Path:
            return Path(folder, file.name)

        if _whole(plan):
            record, files = run.record, list(checkpoints.values())
        else:
            record, files = (
                here(run.record),
                [*checkpoints.values(), *(f for f in plan.files if f.parent == run.folder)],
            )
        if not all(archive.copy(file, here(file)) for file in files):
            return False
        if not _whole(plan):
            _check(archive.path, plan, Path(folder))
        if not vouches_for(record, {name: here(file) for name, file in checkpoints.items()}):
            raise InputError(f"{archive.path}: the weights of {run.name} are not those that its record vouches for")
        for file in files:  # the record last: it vouches for the rest
            with replacing(file) as part:
                shutil.copyfile(here(file), part)
    return True


def _check(archive: Path, plan: Plan, folder: Path) -> None:
    """Raise InputError if a record out of an archive is not the run's, or it or a table beside it is damaged."""
    name = plan.run.name
    try:
        record = read_unsealed(folder / plan.run.record.name)
    except Damaged:
        raise InputError(f"{archive}: the record of {name} is damaged") from None
    if other := why_stale(record, plan.identity):
        raise InputError(f"{archive}: {name} is not this study's run ({other})")
    if not as_sealed(record) or damage(folder, record, plan.tables, plan.kept):
        raise InputError(f"{archive}: the record of {name}, or a table beside it, is damaged")


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
