"""The errors a user can mend: shown as one message, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something in a study, a source or a file is wrong; the message names it and what would be right."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: the state is saved."""


SHOWN = 30  # names at most, where none is near: libraries know a thousand models


def did_you_mean(wrong: object, known: Iterable[object]) -> str:
    """'did you mean ...?' with the nearest known value, else the list of all, or of the first."""
    names = [str(value) for value in known]
    near = difflib.get_close_matches(str(wrong)[:100], names, 1, cutoff=0.5)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:SHOWN])}{more}"


def shortened(value: object, length: int = 80) -> str:
    """A value as one short line of a message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
