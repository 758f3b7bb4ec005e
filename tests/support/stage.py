"""A core with both of its tiers in the test's hands, for the tests of failover.

The journal's disk is a FailingDisk, git the commit worker in this process behind a `Faulty` one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from caiafs.committer.process import Refused, WorkerGone
from caiafs.errors import FSError
from caiafs.filesystem import Filesystem
from support.core import Core, Dump, LocalWorker
from support.disks import FailingDisk


class Faulty:
    """A worker that refuses (with an errno), or does not answer, as long as it is told to.

    *late*: it refuses, or goes silent, after git has everything.
    """

    def __init__(self, real: LocalWorker) -> None:
        self.real = real
        self.code = 0
        self.hangs = False
        self.dies = False
        self.late = False
        self.locked = 0
        self.healed = trio.Event()
        self.asked: list[str] = []

    async def ask(self, *message: Any, ahead: Iterable[tuple[Any, ...]] = ()) -> Any:
        self.asked.append(message[0])
        trouble = message[0] in ("commit", "probe") and (self.code or self.hangs or self.dies or self.locked)
        if not trouble:
            return await self.real.ask(*message, ahead=ahead)
        if self.late:
            await self.real.ask(*message, ahead=ahead)
        self.real._directories = {}
        if self.locked:
            self.locked -= 1
            raise Refused("main.lock exists", True, errno.EAGAIN, untouched=True)
        if self.hangs:
            await self.healed.wait()
        if self.dies:
            raise WorkerGone("the commit worker ended")
        raise Refused(os.strerror(self.code), False, self.code, untouched=not self.late)

    def heal(self) -> None:
        self.code = self.locked = 0
        self.hangs = self.dies = self.late = False
        self.healed.set()
        self.healed = trio.Event()


class Stage:
    """A core with both tiers in the test's hands."""

    def __init__(self, base: Path, **options: Any) -> None:
        self.base = base
        self.disk = FailingDisk()
        self.core = Core(base, self.disk, **options)
        self.git = Faulty(cast(LocalWorker, self.core.worker))
        self.core.use(self.git)
        self.undone: list[tuple[list[tuple[int, bytes]], set[int]]] = []
        self.core.fs.forget_in_kernel = lambda names, inodes: self.undone.append((names, inodes))
        self.time = 0.0
        for tier in self.core.fs.health.tiers:
            tier.clock = lambda: self.time

    @property
    def fs(self) -> Filesystem:
        return self.core.fs

    def fail(self, tier: str, code: int = errno.ENOSPC) -> None:
        if tier in ("journal", "both"):
            self.disk.fail("writev", code, times=None)
            self.disk.fail("create", code, times=None)
        if tier in ("git", "both"):
            self.git.code = code

    def heal(self) -> None:
        self.disk.heal()
        self.git.heal()

    def fallbacks(self, origin: str, to: str) -> float:
        for line in self.core.metrics.exposition().decode().splitlines():
            if line.startswith(f'caiafs_fallbacks_total{{from="{origin}",to="{to}"}}'):
                return float(line.split()[-1])
        return 0.0

    async def crashed(self) -> Dump:
        """What the next mount shows, if the daemon is killed now. The stage goes on as if it had not been."""
        other = self.base / "crashed"
        other.mkdir()
        for name in ("repo.git", "state"):
            shutil.copytree(self.base / name, other / name)
        core = Core(other)
        dump = await core._dump()
        core.close()
        shutil.rmtree(other)
        return dump


Call = Callable[[], Awaitable[Any]]


async def refused(call: Call) -> FSError:
    with pytest.raises(FSError) as caught:
        await call()
    return caught.value


def played(stage: Stage, play: Callable[[], Awaitable[Any]], clock: MockClock | None = None) -> None:
    if clock is not None:
        for tier in stage.fs.health.tiers:
            tier.clock = trio.current_time
    trio.run(play, clock=clock)


def quick() -> MockClock:
    """A clock that jumps to the next deadline when nobody has anything to do."""
    return MockClock(autojump_threshold=0)
