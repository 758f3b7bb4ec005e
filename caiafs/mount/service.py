"""The mount as a service: what the service manager is told, and when.

Used by mount/__init__.py. The watchdog is fed from the event loop, so that a loop that hangs is
ended and started again; the status line is sent when it changes, and nothing is sent while
nothing happens. What takes long at the start and at the end (replaying a journal, a last commit)
asks for more time as long as it gets on: a start or a stop that hangs is not excused.

Where no service manager listens, none of this does anything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from .notify import Notifier

PAUSE = 1.0
"""Seconds between looks at the status line while there are changes or troubles."""
PATIENCE = 30.0
"""Seconds that are asked for each time something long was seen to get on."""
LOOK = 2.0
"""Seconds between looks at whether it does. Well below any TimeoutStartSec= and TimeoutStopSec=."""


class Watched(Protocol):
    """What the status line is made of; mount/__init__.py has it."""

    def status_line(self) -> str:
        """Health and what git does not have, in a few words."""

    def is_quiet(self) -> bool:
        """True if the line can only change after `stirred` has returned."""

    async def stirred(self) -> None:
        """Return once something happens that may change the line."""


async def feed_watchdog(notifier: Notifier) -> None:
    """Signs of life, three in the time that the manager waits for one; until cancelled."""
    if notifier.watchdog is None:
        return
    while True:
        notifier.alive()
        await trio.sleep(notifier.watchdog / 3)


async def report_status(notifier: Notifier, watched: Watched) -> None:
    """Keep the status line true, until cancelled. At rest nothing wakes up."""
    if not notifier.is_service:
        return
    while True:
        told = notifier.status(watched.status_line())
        if told and watched.is_quiet():
            await watched.stirred()
        await trio.sleep(PAUSE)


@contextlib.contextmanager
def patience(notifier: Notifier, progress: Callable[[], object], look: float = LOOK) -> Iterator[None]:
    """Ask for more time while *progress* gives ever new values. A thread: the loop may not run yet."""
    if not notifier.is_service:
        yield
        return
    over = threading.Event()

    def ask() -> None:
        last: object = None
        while True:
            if (now := progress()) != last:
                notifier.extend(PATIENCE)
                last = now
            if over.wait(look):
                return

    asking = threading.Thread(target=ask, name="patience", daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
