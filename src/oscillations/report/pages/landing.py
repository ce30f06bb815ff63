"""``results/index.html`` and ``results/README.md``: every study that has results, and what it found.

They are over all studies, so no study's rule has them as outputs: each writes them anew after its own page.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from oscillations.core.files import Damaged, read_json, write_text
from oscillations.core.text import markdown
from oscillations.records.contents import Summary
from oscillations.report.findings import Finding
from oscillations.report.pages import render
from oscillations.study.paths import RESULTS

RELATION = {
    "paper": "Same data as the paper: distances to the published numbers are meaningful.",
    "other-data": "Other data than the paper's: distances to the published numbers also hold the change of data.",
    "miniature": "A miniature: published numbers stand beside for orientation only and are never coloured.",
    "none": "No published numbers are set beside these.",
}
TITLE = "Oscillations and quantization: results"


def write_landing() -> None:
    """From the summary that each study's page has left; one that is damaged is named and left out."""
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two studies' last jobs may be here at once
        studies = sorted(_summaries(), key=lambda one: (list(RELATION).index(one["published"]), one["study"]))
        render("landing.html", RESULTS / "index.html", heading=TITLE, studies=studies)
        write_text(RESULTS / "README.md", "\n\n".join([f"# {TITLE}", *map(_described, studies), MORE]) + "\n")
    finally:
        os.close(folder)


def _summaries() -> Iterator[dict[str, Any]]:
    for file in RESULTS.glob("*/summary.json"):
        try:
            yield Summary.model_validate(read_json(file)).model_dump()
        except FileNotFoundError:  # its study has just begun to make it anew
            continue
        except (Damaged, ValidationError) as error:
            print(f"{file}: left out: {str(error).splitlines()[0]}", file=sys.stderr)


MORE = "[index.html](index.html) is the same as a page that opens from disk."


def _described(one: dict[str, Any]) -> str:
    """A study as a forge shows it."""
    name = one["study"]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in one["verdicts"].items())
    cells = f"; {one['cells'][0]} of {one['cells'][1]} published cells" if one["cells"] else ""
    lines = [f"## [{markdown(one['title'])}]({name}/README.md)", markdown(one["note"]), f"*{one['progress']}{cells}.*"]
    lines += [f"Verdicts: {verdicts}." if verdicts else ""]
    lines += ["\n".join(Finding(**row).markdown(name, f"{name}/") for row in one["findings"])]
    return "\n\n".join(filter(None, lines))
