"""Texts that others wrote, in forms of ours."""

from __future__ import annotations

import re


def markdown(text: str) -> str:
    """A text in one line of Markdown; what would be HTML there is written out."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()))
