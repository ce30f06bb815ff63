"""The errors a user can mend: shown as one message, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something in a study, a source or a file is wrong; the message names it and what would be right."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: the state is saved."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' with the nearest known value, else the list of all."""
    known = [str(value) for value in known]
    near = difflib.get_close_matches(str(wrong), known, 1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
