"""What people browse: pages that open from disk, and READMEs that a forge shows.

Pages show what the tables, figures, claims and findings wrote; how it was made they take from the records.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from oscillations.core.files import write_text
from oscillations.study.paths import Run, results, variant_page

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, file: Path, **content: Any) -> None:
    """Write a page: everything that a template names, with the style and the script in it."""
    write_text(file, _environment().get_template(template).render(**content))


@cache
def _environment() -> jinja2.Environment:
    """With the templates that were compiled so far."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["bold"] = bold
    return environment


def bold(text: str) -> Markup:
    """Markdown's ``**bold**`` and `` `code` `` as HTML."""
    found = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text)))
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", found))


def links(study: str, runs: list[str]) -> list[tuple[str, str]]:
    """(address on a page of the study, name) of the variants behind run folders, each once."""
    found: dict[str, str] = {}
    for run in map(Run.of, runs):
        page = variant_page(run.study, run.path).relative_to(results(run.study)).as_posix()
        own = run.study == study
        found[page if own else f"../{run.study}/{page}"] = run.path if own else f"{run.study}: {run.path}"
    return list(found.items())
