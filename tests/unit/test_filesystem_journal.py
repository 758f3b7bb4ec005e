"""The core on a journal that fails, is full, or has to be kept small."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.calls import FILE, FOLDER, ROOT, fails, make, read, refuses, same, set_xattr, write
from support.core import BRANCH, WHO, Core
from support.disks import FailingDisk
from trio.testing import MockClock

from caiafs.errors import FSError
from caiafs.records import RENAME_EXCHANGE
from caiafs.tree import File

# ---- the journal fails


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_change_that_the_journal_cannot_keep_does_not_happen(tmp_path: Path, code: int) -> None:
    disk = FailingDisk()
    core = Core(tmp_path, disk, enable_fallback=False)
    fs = core.fs
    folder = make(core, b"folder", FOLDER)
    file = make(core, b"file", data=b"data")
    set_xattr(core, file.ino, b"user.x", b"y")
    before = core.dump()
    assert isinstance(file, File)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: fs.create(ROOT, b"new", FILE, WHO),
        lambda: fs.create(folder.ino, b"new", FOLDER, WHO),
        lambda: fs.link(file.ino, ROOT, b"new"),
        lambda: fs.unlink(ROOT, b"file"),
        lambda: fs.rmdir(ROOT, b"folder"),
        lambda: fs.rename(ROOT, b"file", folder.ino, b"new", 0),
        lambda: fs.rename(ROOT, b"file", ROOT, b"folder", RENAME_EXCHANGE),
        lambda: fs.write(file, 2, b"other"),
    ]
    disk.fail("writev", code, times=None)
    for call in calls:
        fails(code, call)
        same(core, before)
    for change in (
        lambda: fs.set_attributes(file.ino, mode=0o100600, uid=5, size=1),
        lambda: set_xattr(core, file.ino, b"user.z", b"y"),
        lambda: fs.remove_xattr(file.ino, b"user.x"),
        lambda: fs.open(file.ino, os.O_WRONLY | os.O_TRUNC),
    ):
        refuses(code, change)
        same(core, before)
    assert (file.opens, file.writers) == (0, 0)
    disk.heal()
    write(core, file, 0, b"DATA")
    before = core.dump()
    same(core := core.crash(disk=None), before)
    core.close()


def test_a_journal_disk_that_the_journal_filled_itself_recovers_with_the_commit(tmp_path: Path) -> None:
    """B12: what git has is released first, and the note of it is written into the room that gives."""
    disk = FailingDisk(str(tmp_path / "state"), room=200_000)
    core = Core(tmp_path, disk, enable_fallback=False)
    file = make(core, b"file")
    at, size, full = 0, 65536, 0
    while size:
        try:
            write(core, file, at, b"x" * size)
            at += size
        except FSError as error:
            full, size = error.errno, size // 2
    assert full == errno.ENOSPC
    assert at > 190_000
    before = core.dump()
    core.commit()
    assert core.journal.size < 1000
    same(core, before)
    write(core, file, 0, b"y" * 1000)
    before = core.dump()
    same(core := core.crash(disk=None), before)
    core.close()


def test_a_commit_is_kept_although_the_journal_cannot_be_told(tmp_path: Path) -> None:
    disk = FailingDisk()
    core = Core(tmp_path, disk)
    trio.run(core.put, b"file", b"data")
    before = core.dump()
    disk.fail("writev", times=None)
    head = core.commit()
    disk.heal()
    assert head == core.store.read_ref(BRANCH)
    same(core := core.crash(disk=None), before)
    assert core.fs.replayed == 0
    core.close()


def test_syncs_share_the_flush(core: Core) -> None:
    make(core, b"file")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(core.fs.sync)

    trio.run(both)
    assert core.journal.durable == core.journal.end


# ---- the journal is full


def test_writers_wait_for_room_as_long_as_git_drains(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    file = make(core, b"file")
    assert isinstance(file, File)

    async def work() -> None:
        async def commits() -> None:
            while True:
                await core.fs.pressure.wait()
                await core.committer.commit()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits)
            with trio.fail_after(30):
                for number in range(80):
                    await core.fs.write(file, number * 65536, b"%04d" % number * 16384)
                    assert core.journal.size <= (1 << 20) + 1000
            nursery.cancel_scope.cancel()

    trio.run(work)
    assert read(core, file, 79 * 65536) == b"0079" * 16384
    before = core.dump()
    core = core.crash()
    same(core, before)
    core.close()


def test_a_full_journal_is_enospc_when_git_is_in_trouble(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20)
    file = make(core, b"file", data=b"x" * 900_000)
    core.fs.health.git.trouble("the disk is full")
    before = core.dump()

    async def write_more() -> None:
        assert isinstance(file, File)
        started = trio.current_time()
        with pytest.raises(FSError) as caught:
            await core.fs.write(file, 0, b"y" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert trio.current_time() - started == core.config.operation_timeout, "git gets time to recover"

    trio.run(write_more, clock=MockClock(autojump_threshold=0))
    core.fs.health.git.worked()
    assert core.dump().keys() == before.keys()
    core.commit()
    write(core, file, 0, b"z")
    core.close()


def test_the_largest_request_fits_into_the_smallest_journal(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20)
    file = make(core, b"file")
    assert isinstance(file, File)
    core.commit()

    async def hand_over(number: int) -> None:
        with trio.fail_after(20):
            await core.fs.write(file, number << 20, b"%d" % number * (1 << 20))

    for number in range(3):
        trio.run(hand_over, number)
        assert core.journal.size < 3 << 19, "and takes half of it too much, at most"
        core.commit()
    assert read(core, file, 2 << 20, 5) == b"22222"
    core.close()


def test_writes_to_unlinked_files_do_not_fill_the_journal_for_good(tmp_path: Path) -> None:
    """B14: git has nothing to take, so nothing would ever have been released."""
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    file = make(core, b"file")
    assert isinstance(file, File)
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"file")
    core.commit()

    async def rewrite() -> None:
        with trio.fail_after(20):
            for number in range(40):
                await core.fs.write(file, number % 4 * 65536, b"%02d" % number * 32768)

    trio.run(rewrite)
    assert core.journal.size <= 1 << 20
    assert read(core, file, 3 * 65536) == b"39" * 32768

    async def fill() -> None:
        with trio.fail_after(20):
            for number in range(40):
                await core.fs.write(file, number * 65536, b"x" * 65536)

    fails(errno.ENOSPC, fill)
    core.fs.release(file, os.O_RDWR)
    before = core.dump()
    make(core, b"later")
    core.commit()
    assert core.journal.size < 1000
    assert core.dump().keys() == {*before, b"/later"}
    core.close()


def test_a_compacted_journal_recovers_what_came_after(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    trio.run(core.put, b"a/b/file", b"data")
    file = make(core, b"gone")
    assert isinstance(file, File)
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"gone")
    core.commit()

    async def rewrite() -> None:
        with trio.fail_after(20):
            while not core.journal.statistics()["kept_segments"]:
                await core.fs.write(file, 0, b"x" * 65536)

    trio.run(rewrite)
    trio.run(core.put, b"a/b/file", b"newer")
    trio.run(core.put, b"a/b/other", b"other")
    before = core.dump()
    same(core := core.crash(), before)
    core.commit()
    same(core := core.crash(), before)
    core.close()
