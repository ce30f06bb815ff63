"""Several runs on one device, taking turns step by step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from oscillations.engine.determinism import random_state, set_random_state


def in_turns(tasks: list[Iterator[None]], at_once: int, device: torch.device) -> None:
    """Advance up to ``at_once`` tasks step by step in turn; on a GPU each queues its work on a stream of its own.

    Each task sees its own random numbers, as if it were alone. One that fails or is interrupted starts no new
    one, and lets those at work end or save; its exception is raised when all have left.
    """
    waiting = [Turn(task, device) for task in tasks]
    active: list[Turn] = []
    failure: Exception | None = None
    while active or (waiting and not failure):
        while waiting and len(active) < at_once and not failure:
            active.append(waiting.pop(0))
        for turn in list(active):
            try:
                finished = turn.advance(swap_random=at_once > 1)
            except Exception as error:
                finished, failure = True, failure or error
            if finished:
                active.remove(turn)
    if failure:
        raise failure


class Turn:
    """A task with its stream and the state of its random numbers."""

    def __init__(self, task: Iterator[None], device: torch.device):
        self.task = task
        self.random: dict[str, Tensor] | None = None
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None

    def advance(self, swap_random: bool) -> bool:
        """Let the task go on to its next pause; True if it has ended."""
        if swap_random and self.random is not None:
            set_random_state(self.random)
        with torch.cuda.stream(self.stream):  # does nothing without one
            ended = next(self.task, self) is self
        if swap_random:
            self.random = random_state(self.stream is not None)
        return ended
