"""How the daemon waits for the kernel's next request: it looks, before it sleeps.

pyfuse3's loop asks trio to wait for the FUSE descriptor before every request: a lock is
handed on, a descriptor goes into epoll and comes back out, two tasks are scheduled. That
is more work than most requests are. `installed` puts an `EagerLoop` in the place of the
`trio` that pyfuse3 looks up as an attribute of its module (its asyncio adapter relies on
the same). It answers at once where a request is there already, and when there is none it
looks again and again for a short while, since a program's next call mostly comes within
microseconds; only then it sleeps, in trio. Measured: a getattr costs a third of the CPU.

Two bounds keep this polite. While requests keep coming, the other tasks (committer,
control, what waits for threads) get their turn every `SLICE`. And the spin adapts: one
that found nothing halves the next one, a sleep that turns out short brings it back. So an
idle mount uses no CPU, and one that is asked every few milliseconds does not spin.

Weighed and not chosen: trio's guest mode, whose host loop would run a thread for each
wait; a thread that reads requests, since handing each one over costs more than it saves.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

import pyfuse3
import trio

from .handshake import Handshake

_MODULE: Any = pyfuse3  # whose types do not tell of `trio`
SLICE = 1_000_000
"""Nanoseconds of uninterrupted requests after which other tasks are let in."""
SWITCH = 0.0001
"""Seconds for which a thread that ended its flush waits for the interpreter while requests keep that busy: a
fiftieth of the default, and an fsync beside other writers takes two thirds of its time."""
BUSY = 20_000
"""Nanoseconds that a look never takes, unless the CPU was given to somebody who was waiting for it."""


@contextlib.contextmanager
def installed(spin: float) -> Iterator[Loop]:
    """pyfuse3 waits by a Loop that spins up to *spin* seconds; with 0 it waits as it always does."""
    sys.setswitchinterval(SWITCH)
    found = _MODULE.trio
    loop = _MODULE.trio = EagerLoop(spin) if spin > 0 else Loop()
    try:
        yield loop
    finally:
        _MODULE.trio = found


class Loop:
    """What pyfuse3 uses of trio, as it is, but for the greeting."""

    ClosedResourceError = trio.ClosedResourceError
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)
    open_nursery: Any = staticmethod(trio.open_nursery)
    Lock: Any = trio.Lock

    def __init__(self) -> None:
        self.lowlevel = self
        self.handshake: Handshake | None = Handshake()

    async def wait_readable(self, fd: int) -> None:
        """Return once a request can be read from *fd*."""
        if not self._is_greeted(fd):
            return
        await trio.lowlevel.wait_readable(fd)

    def is_asked(self) -> bool:
        """Whether a request is there; True where nobody looks."""
        return True

    def _is_greeted(self, fd: int) -> bool:
        if self.handshake is not None:
            if not self.handshake.advance(fd):
                return False
            self.handshake = None
        return True


class EagerLoop(Loop):
    """Looks before it sleeps, for at most *spin* seconds."""

    def __init__(self, spin: float) -> None:
        super().__init__()
        self.turn = Turn()
        self.Lock = lambda: self.turn
        self._longest = self._spin = int(spin * 1e9)
        self._let_in = 0
        self._poll: select.poll | None = None
        self.at_once = self.by_spin = self.slept = 0

    @contextlib.asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Counting]:
        """A nursery that counts the tasks pyfuse3 starts in it."""
        async with trio.open_nursery() as nursery:
            yield _Counting(nursery, self.turn)

    async def wait_readable(self, fd: int) -> None:
        """Return once a request can be read from *fd*. Lets others in now and then, not each time."""
        poll = self._poll
        if poll is None:
            if not self._is_greeted(fd):
                return
            poll = self._poll = select.poll()
            poll.register(fd, select.POLLIN)
        now = time.perf_counter_ns()
        if now - self._let_in > SLICE:
            await trio.lowlevel.checkpoint()
            now = self._let_in = time.perf_counter_ns()
        if poll.poll(0):
            self.at_once += 1
            return
        # A request that waits for a thread needs the loop more than the next request does.
        if self._spin and not self.turn.others_at_work:
            if self._look(poll, now):
                return
            self._spin //= 2
        self.slept += 1
        await trio.lowlevel.wait_readable(fd)
        self._let_in = time.perf_counter_ns()
        if self._let_in - now < 2 * self._longest:
            self._spin = self._longest

    def is_asked(self) -> bool:
        """Whether a request is there."""
        return self._poll is not None and bool(self._poll.poll(0))

    def _look(self, poll: select.poll, now: int) -> bool:
        """Look for a request again and again; False once the spin is over, or if others need the CPU."""
        until = now + self._spin
        while now < until:
            os.sched_yield()
            if poll.poll(0):
                self.by_spin += 1
                self._spin = self._longest
                return True
            before, now = now, time.perf_counter_ns()
            if now - before > BUSY:
                break
        return False


class Turn:
    """A lock that costs nothing while one task can do it all.

    Letting go does not hand it on: the holder mostly comes back at once. It calls one of those that
    wait, which finds the turn free if the holder is held up by its request, and waits again if not.
    """

    def __init__(self) -> None:
        self.tasks = 0
        self._held = False
        self._called = False
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def others_at_work(self) -> bool:
        """True if a request other than the holder's next one is under way: its task waits for something."""
        return self.tasks - 1 - len(self._waiting) - self._called > 0

    async def __aenter__(self) -> Self:
        while self._held:
            try:
                await self._waiting.park()
            finally:
                self._called = False
        self._held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if not self._called and self._waiting:
            self._called = True
            self._waiting.unpark()


class _Counting:
    def __init__(self, nursery: trio.Nursery, turn: Turn) -> None:
        self._nursery = nursery
        self._turn = turn

    def start_soon(self, serve: Callable[..., Awaitable[Any]], _: Self, *limits: int, name: str) -> None:
        """Start one more of pyfuse3's tasks; they start each other in the nursery that they are given."""
        self._nursery.start_soon(self._serve, serve, *limits, name=name)

    async def _serve(self, serve: Callable[..., Awaitable[Any]], *limits: int) -> None:
        self._turn.tasks += 1
        try:
            await serve(self, *limits)
        finally:
            self._turn.tasks -= 1
