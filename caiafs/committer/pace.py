"""Long work on the event loop, in little steps: a request that came meanwhile is answered after each.

The committer walks thousands of entries there, three times for each commit. A save is five requests,
and each would wait for the step that is under way. Weighed and not chosen: a turn for all tasks
after each little step, since a round of trio's loop takes as long as the step; to look whether there is a
request takes a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

LITTLE = 16
"""Entries captured, sent or settled before a request is answered that came meanwhile: 50 to 80 µs."""
CHUNK = 64
"""Entries after which all other tasks get their turn, asked for or not."""


class Pace:
    """Who works in steps, and for whom it gives way."""

    def __init__(self) -> None:
        self.is_asked: Callable[[], bool] = lambda: True
        """Whether a request waits to be answered, as far as is known."""
        self._done = 0

    async def step(self) -> None:
        """Called after at most LITTLE entries: others are let in if it is time."""
        self._done += LITTLE
        if self._done >= CHUNK or self.is_asked():
            self._done = 0
            await trio.lowlevel.checkpoint()
