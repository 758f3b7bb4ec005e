"""When the journal fails, changes go straight to git: what is shared, undone, and kept in memory meanwhile.

Each test was seen to fail with its defence switched off; how is said where it is not plain (`off:`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing
from support.calls import ROOT
from support.core import WHO, differences
from support.stage import Call, Stage, played, refused

from caiafs.errors import FSError
from caiafs.operations import Operations
from caiafs.tree import File
from caiafs.virtual import Virtual

pytestmark = pytest.mark.usefixtures("without_threads")

CALLER = cast(pyfuse3.RequestContext, WHO)


def test_a_failing_journal_is_not_asked_again_before_its_pause_is_over(stage: Stage) -> None:
    """off: `_refused` without the look at `may_try`."""

    async def play() -> None:
        stage.fail("journal")
        await stage.core.put(b"one")
        calls = len(stage.disk.calls)
        await stage.core.put(b"two")
        assert len(stage.disk.calls) == calls, "the breaker is open"
        stage.time += 60
        await stage.core.put(b"three")
        assert len(stage.disk.calls) > calls, "a probe"
        stage.heal()
        await stage.core.put(b"four")
        assert stage.fs.is_dirty is False, "still straight to git"
        stage.time += 60
        await stage.core.put(b"five")
        assert stage.fs.is_dirty, "back to the journal"
        assert stage.fs.health.state == "healthy"
        assert stage.core.journal.statistics()["volatile_bytes"] == 0

    played(stage, play)


async def goes_on_behind_the_gap(stage: Stage) -> None:
    """Both tiers work again: what comes now is there after a crash, beside what came before."""
    stage.heal()
    stage.time += 60
    await stage.core.put(b"late", b"in the journal, behind the gap")
    before = await stage.core._dump()
    assert before.keys() == {b"", b"/early", b"/late"}
    assert not differences(before, await stage.crashed())


def test_changes_that_were_acknowledged_before_survive_a_journal_that_fails_later(stage: Stage) -> None:
    """They are in segments on disk, before a gap in the positions: recovery takes them in. off:
    `header.follows` taken from the end of volatile segments."""

    async def play() -> None:
        await stage.core.put(b"early", b"in the journal")
        stage.fail("both")
        await refused(lambda: stage.core.put(b"refused", b"x" * 5000))
        await goes_on_behind_the_gap(stage)

    played(stage, play)


def test_a_journal_that_tore_a_record_and_could_not_cut_it_off_loses_nothing_behind_the_gap(
    stage: Stage,
) -> None:
    """off: `_find_segments` looking at where the next segment begins, and not at what it follows."""

    async def play() -> None:
        await stage.core.put(b"early", b"in the journal")
        stage.disk.fail("truncate", errno.EIO, times=None)
        stage.disk.short = 20
        stage.disk.fail("writev", errno.EIO, times=None)
        stage.disk.fail("create", errno.EIO, times=None)
        stage.git.code = errno.EROFS
        error = await refused(lambda: stage.core.put(b"refused", b"x" * 5000))
        assert error.errno == errno.EROFS
        await goes_on_behind_the_gap(stage)

    played(stage, play)


def test_callers_that_come_while_git_writes_share_the_next_commit(stage: Stage) -> None:
    async def play() -> None:
        stage.fail("journal")
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(stage.core.put, b"file %d" % number)
        assert not stage.fs.is_dirty
        assert stage.git.asked.count("commit") <= 3
        assert len((await stage.core._dump()).keys()) == 51

    played(stage, play)


def test_one_refusal_undoes_all_that_waited_for_it(stage: Stage) -> None:
    """Later changes may rest on earlier ones: a file in a directory that never came to be."""

    async def play() -> None:
        await stage.core.put(b"kept", b"data")
        before = await stage.core._dump()
        stage.fail("both", errno.EROFS)
        errors: list[int] = []

        async def attempt(call: Call) -> None:
            try:
                await call()
            except FSError as error:
                errors.append(error.errno)

        async def below() -> None:
            folder = await stage.fs.lookup(ROOT, b"folder")
            assert folder is not None, "shown before it is kept"
            await stage.fs.create(folder.ino, b"inside", 0o100644, WHO)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, lambda: stage.fs.create(ROOT, b"folder", 0o040755, WHO))
            await trio.testing.wait_all_tasks_blocked(0)
            if await stage.fs.lookup(ROOT, b"folder"):
                nursery.start_soon(attempt, below)
            nursery.start_soon(attempt, lambda: stage.core.drop(b"kept"))
        assert set(errors) == {errno.EROFS}
        assert not differences(before, await stage.core._dump())
        assert [names for names, _ in stage.undone], "the kernel is told"
        assert stage.core.memory.held == sum(
            node.content.size + 200 for node in stage.core.tree.nodes.values() if isinstance(node, File)
        )

    played(stage, play)


def test_an_fsync_that_fails_becomes_a_commit(stage: Stage) -> None:
    """off: `sync` raising the journal's error."""

    async def play() -> None:
        node = await stage.core.put(b"file", b"data")
        stage.disk.fail("sync", errno.EIO)
        await stage.fs.sync()
        assert stage.fs.durability(node) == "committed"
        assert stage.fs.health.state == "degraded"
        assert stage.fallbacks("memory", "git") == 1
        stage.time += 60
        await stage.core.put(b"file", b"more")
        await stage.fs.sync()
        assert stage.fs.durability(node) == "durable"
        assert stage.fs.health.state == "healthy"
        stage.disk.fail("sync", errno.EIO)
        stage.git.code = errno.EROFS
        await stage.core.put(b"file", b"and more")
        error = await refused(stage.fs.sync)
        assert error.errno == errno.EROFS
        assert stage.fs.health.state == "degraded", "writes still have the journal"
        stage.heal()
        await stage.fs.sync()
        assert stage.fs.durability(node) == "committed", "what could not be synced once is not believed again"

    played(stage, play)


def test_without_fallback_an_fsync_that_fails_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, enable_fallback=False)

    async def play() -> None:
        await stage.core.put(b"file", b"data")
        stage.disk.fail("sync", errno.EIO)
        assert (await refused(stage.fs.sync)).errno == errno.EIO

    played(stage, play)
    stage.core.close()


def test_a_call_whose_change_git_has_is_not_failed_by_a_later_one(stage: Stage) -> None:
    """off: each request waiting for whatever change is newest when it is about to be answered."""

    async def play() -> None:
        file = await stage.core.put(b"file", b"data")
        await stage.core.committer.commit()
        requests = Operations(stage.fs, Virtual({}), stage.core.metrics, lambda: None, "/", lambda: "/")
        later: list[FSError] = []
        real = stage.git.real.ask

        async def change() -> None:
            later.append(await refused(lambda: stage.fs.create(ROOT, b"later", 0o100644, WHO)))

        async def ask(*message: Any, ahead: Iterable[tuple[Any, ...]] = ()) -> Any:
            answer = await real(*message, ahead=ahead)
            if message[0] == "commit":
                nursery.start_soon(change)
                await trio.testing.wait_all_tasks_blocked()
                stage.git.code = errno.ENOSPC
            return answer

        for request in (
            partial(requests.setxattr, file.ino, b"user.there", b"y", CALLER),
            partial(requests.unlink, ROOT, b"file", CALLER),
        ):
            later.clear()
            stage.fail("journal")
            async with trio.open_nursery() as nursery:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(stage.git.real, "ask", ask)
                    await request()
            assert [error.errno for error in later] == [errno.ENOSPC]
            stage.heal()
            stage.time += 60

    played(stage, play)


def test_the_state_of_a_file_on_its_way_past_the_journal_is_memory(stage: Stage) -> None:
    async def play() -> None:
        node = await stage.core.put(b"file", b"data")
        assert stage.fs.durability(node) == "journal"
        stage.fail("journal")
        stage.fs.set_attributes(node.ino, mode=0o600)
        assert stage.fs.durability(node) == "memory"
        await stage.fs.acknowledged()
        assert stage.fs.durability(node) == "committed"
        stage.heal()
        stage.fs.open(node.ino, os.O_RDONLY)
        await stage.core.drop(b"file")
        assert stage.fs.durability(node) == "memory", "without a name it ends with the daemon"
        stage.fs.release(node, os.O_RDONLY)

    played(stage, play)


def test_a_file_without_a_name_is_written_in_memory_while_the_disk_takes_nothing(stage: Stage) -> None:
    async def play() -> None:
        node = await stage.core.put(b"file", b"data")
        assert isinstance(node, File)
        stage.fs.open(node.ino, os.O_RDWR)
        await stage.core.drop(b"file")
        stage.fail("journal")
        await stage.fs.write(node, 0, b"DATA and more")
        node.content.extents[0].evict()
        assert await stage.fs.read(node, 0, 100) == b"DATA and more"
        await stage.core.put(b"other", b"x")
        assert await stage.fs.read(node, 0, 100) == b"DATA and more"
        stage.heal()
        stage.time += 60
        await stage.core.put(b"another", b"x")
        assert stage.fs.health.state == "healthy"
        for extent in node.content.extents:
            extent.evict()
        assert await stage.fs.read(node, 0, 100) == b"DATA and more"
        stage.fs.release(node, os.O_RDWR)
        await stage.core.committer.commit()
        await stage.core.put(b"last", b"x")
        await stage.core.committer.commit()
        assert stage.core.journal.statistics()["volatile_bytes"] == 0

    played(stage, play)


def test_memory_that_stands_in_for_the_disk_has_an_end(tmp_path: Path) -> None:
    """What is on its way into git counts against the budget, and there is a bound to it."""
    stage = Stage(tmp_path)
    stage.core.journal._memory.room = 300_000

    async def play() -> None:
        file = await stage.core.put(b"file")
        assert isinstance(file, File)
        stage.fail("journal")
        before = await stage.core._dump()
        assert (await refused(lambda: stage.fs.write(file, 0, bytes(400_000)))).errno == errno.ENOSPC
        assert not differences(before, await stage.core._dump())
        for number in range(10):
            await stage.fs.write(file, number * 200_000, bytes(200_000))
        assert stage.core.journal.volatile_bytes == 0

    played(stage, play)
    stage.core.close()
