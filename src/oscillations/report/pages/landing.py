"""``results/index.html`` and ``results/README.md``: every study that has results, and what it found.

They are over all studies, so no study's rule has them as outputs: each writes them anew after its own page.
"""

from __future__ import annotations

from typing import Any

from oscillations.core.files import read_json, write_text
from oscillations.core.text import markdown
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
    """From the summary that each study's page has left."""
    found = [read_json(file) for file in RESULTS.glob("*/summary.json")]
    studies = sorted(found, key=lambda one: (list(RELATION).index(one["published"]), one["study"]))
    render("landing.html", RESULTS / "index.html", heading=TITLE, studies=studies)
    write_text(RESULTS / "README.md", "\n\n".join([f"# {TITLE}", *map(_described, studies), MORE]) + "\n")


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
