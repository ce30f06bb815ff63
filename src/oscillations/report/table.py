"""A table as people see it, in every format: what the tables wrote is what pages show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from oscillations.core.errors import InputError
from oscillations.core.files import read_json, write_text
from oscillations.core.text import markdown
from oscillations.report.text import count

SUFFIXES = ("csv", "md", "tex", "json")  # numbers; for forges, papers and pages
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "−": "$-$", "×": r"$\times$", "λ": r"$\lambda$", "→": r"$\rightarrow$", "†": r"\dag{}",
    "‡": r"\ddag{}", "§": r"\S{}",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: its cells by column (``**bold**``), the run folders behind it, what it is, and the heading above it."""

    cells: Mapping[str, str]
    runs: list[str] = field(default_factory=list)
    kind: str = ""
    group: str = ""


@dataclass(frozen=True)
class Missing:
    """What has not run of one experiment (or entry of post-training methods), and why if the study says so.

    ``cells``: what would stand in the table; ``variants``: ``experiment/variant`` of what has to be trained for it.
    """

    experiment: str
    reason: str
    cells: list[str]
    variants: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f" of {self.experiment} ({self.reason})" if self.experiment else f" {self.reason}"
        return f"{count(len(self.cells), 'cell')}{what}"


@dataclass(frozen=True)
class Table:
    """What is shown of a table; its numbers stand in its CSV.

    ``first``: the columns that are shown where there is little room, all if empty. ``linked``: the column that leads
    to the runs, else the first.
    """

    name: str
    title: str
    notes: list[str]
    rows: list[Row]
    missing: list[Missing] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    linked: str = ""

    @cached_property
    def columns(self) -> list[str]:
        """Those in which any row says something."""
        return [name for name in (self.rows[0].cells if self.rows else ()) if any(row.cells[name] for row in self.rows)]

    def write(self, folder: Path, numbers: pd.DataFrame) -> None:
        """All formats, as ``<name>.<suffix>``."""
        texts = (
            csv(numbers),
            self.markdown(),
            self.latex(),
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n",
        )
        for suffix, text in zip(SUFFIXES, texts):
            write_text(folder / f"{self.name}.{suffix}", text)

    @classmethod
    def read(cls, file: Path) -> Table:
        """From the JSON of :meth:`write`."""
        content = read_json(file)
        try:
            lists = {key: [kind(**one) for one in content[key]] for key, kind in (("rows", Row), ("missing", Missing))}
            return cls(**content | lists)
        except TypeError as error:
            raise InputError(f"{file}: is damaged: no table ({error})") from None

    @property
    def not_run(self) -> str:
        """One line of what is missing; nothing if all has run."""
        return f"Not run: {'; '.join(map(str, self.missing))}." if self.missing else ""

    def lines(self, columns: list[str]) -> list[list[str]]:
        """The cells of every row, a heading before the first of each group."""
        found: list[list[str]] = []
        for before, row in zip([None, *self.rows], self.rows):
            if row.group and (before is None or before.group != row.group):
                found.append([f"*{row.group}*", *[""] * (len(columns) - 1)])
            found.append([row.cells[name] for name in columns])
        return found

    def markdown(self) -> str:
        """A heading, the notes and the table."""
        texts = [f"### {self.title}", *self.notes, self.not_run]
        paragraphs = [*map(markdown, texts), self.grid(self.columns)]
        return "\n\n".join(filter(None, paragraphs)) + "\n"

    def grid(self, columns: list[str]) -> str:
        """Some columns as a table that any forge renders; nothing without rows."""
        if not self.rows:
            return ""
        lines = [columns, ["---"] * len(columns), *self.lines(columns)]
        # a bar behind a backslash would end its cell all the same
        rows = [
            " | ".join(markdown(cell).replace(r"\|", "&#124;").replace("|", r"\|") for cell in line) for line in lines
        ]
        return "\n".join(f"| {row} |" for row in rows)

    def latex(self) -> str:
        """A ``table`` for a paper that uses booktabs."""
        caption = latex(f"{self.title}. {' '.join([*self.notes, self.not_run])}".strip())
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        lines += [rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, self.columns)) + r" \\", r"\midrule"]
        rows = [" & ".join(map(latex, line)) + r" \\" for line in self.lines(self.columns)]
        lines += ["{}" + row if row[0] in "[*" else row for row in rows]  # or it would be an option of the \\ above
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex(text: str) -> str:
    """The text with every sign that LaTeX would take for its own written out; ``**bold**`` and ``*italics*`` kept."""
    plain = re.sub("[" + re.escape("".join(LATEX)) + "]", lambda sign: LATEX[sign[0]], " ".join(text.split()))
    return re.sub(r"\*(\S(?:.*?\S)?)\*", r"\\emph{\1}", re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", plain))


def csv(table: pd.DataFrame) -> str:
    """Six digits after the point; no more is worth comparing."""
    return table.round(6).to_csv(index=False, lineterminator="\n")
