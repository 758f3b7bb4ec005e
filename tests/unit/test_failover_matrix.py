"""What happens to a call when a tier fails: every operation, each failing tier, either primary, with
and without fallback. The calls are those that operations.py makes.

It was seen to fail with each defence switched off that it names (`off:`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from support.calls import ROOT
from support.core import WHO, differences
from support.stage import Call, Stage
from test_store_support import fsck

from caiafs.errors import FSError
from caiafs.records import RENAME_EXCHANGE
from caiafs.tree import File, Node

pytestmark = pytest.mark.usefixtures("without_threads")


class Operation(NamedTuple):
    """One kind of call: *prepare* makes what it needs, and gives the call."""

    name: str
    prepare: Callable[[Stage, bytes], Awaitable[Call]]


def operations() -> list[Operation]:
    found: list[Operation] = []

    def operation(prepare: Callable[[Stage, bytes], Awaitable[Call]]) -> None:
        found.append(Operation(prepare.__name__, prepare))

    async def a_file(stage: Stage, name: bytes) -> File:
        node = await stage.core.put(name, b"some data")
        assert isinstance(node, File)
        stage.fs.set_xattr(node.ino, b"user.there", b"y", lambda gid: True)
        return node

    async def a_folder(stage: Stage, name: bytes) -> Node:
        return await stage.fs.create(ROOT, name, 0o040755, WHO)

    def acknowledged(stage: Stage, change: Callable[[], Any]) -> Call:
        async def call() -> None:
            change()
            await stage.fs.acknowledged()

        return call

    @operation
    async def create(stage: Stage, name: bytes) -> Call:
        return lambda: stage.fs.create(ROOT, name, 0o100644, WHO)

    @operation
    async def mkdir(stage: Stage, name: bytes) -> Call:
        return lambda: stage.fs.create(ROOT, name, 0o040755, WHO)

    @operation
    async def symlink(stage: Stage, name: bytes) -> Call:
        return lambda: stage.fs.create(ROOT, name, 0o120777, WHO, target=b"goal")

    @operation
    async def mknod(stage: Stage, name: bytes) -> Call:
        return lambda: stage.fs.create(ROOT, name, 0o010600, WHO)

    @operation
    async def link(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return lambda: stage.fs.link(node.ino, ROOT, name + b" too")

    @operation
    async def unlink(stage: Stage, name: bytes) -> Call:
        await a_file(stage, name)
        return lambda: stage.fs.unlink(ROOT, name)

    @operation
    async def unlink_one_of_two(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        await stage.fs.link(node.ino, ROOT, name + b" too")
        return lambda: stage.fs.unlink(ROOT, name)

    @operation
    async def rmdir(stage: Stage, name: bytes) -> Call:
        await a_folder(stage, name)
        return lambda: stage.fs.rmdir(ROOT, name)

    @operation
    async def rename(stage: Stage, name: bytes) -> Call:
        await a_file(stage, name)
        folder = await a_folder(stage, name + b" folder")
        return lambda: stage.fs.rename(ROOT, name, folder.ino, b"new", 0)

    @operation
    async def rename_over(stage: Stage, name: bytes) -> Call:
        await a_file(stage, name)
        await stage.core.put(name + b" other", b"other data")
        return lambda: stage.fs.rename(ROOT, name, ROOT, name + b" other", 0)

    @operation
    async def exchange(stage: Stage, name: bytes) -> Call:
        await a_file(stage, name)
        folder = await a_folder(stage, name + b" folder")
        await stage.fs.create(folder.ino, b"inside", 0o040755, WHO)
        return lambda: stage.fs.rename(ROOT, name, ROOT, name + b" folder", RENAME_EXCHANGE)

    @operation
    async def hide(stage: Stage, name: bytes) -> Call:
        folder = await a_folder(stage, name)
        below = await stage.fs.create(folder.ino, b"below", 0o040755, WHO)
        await stage.fs.create(below.ino, b"file", 0o100644, WHO)
        return lambda: stage.fs.rename(folder.ino, b"below", folder.ino, b".git", 0)

    @operation
    async def write(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return lambda: stage.fs.write(node, 2, b"OTHER")

    @operation
    async def append(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return lambda: stage.fs.write(node, 100_000, b"x" * 1000)

    @operation
    async def truncate(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return acknowledged(stage, lambda: stage.fs.set_attributes(node.ino, size=3))

    @operation
    async def open_truncating(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)

        async def call() -> None:
            stage.fs.open(node.ino, os.O_WRONLY | os.O_TRUNC)
            try:
                await stage.fs.acknowledged()
            finally:
                stage.fs.release(node, os.O_WRONLY)

        return call

    @operation
    async def attributes(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return acknowledged(
            stage, lambda: stage.fs.set_attributes(node.ino, mode=0o600, uid=5, gid=6, atime=7, mtime=8)
        )

    @operation
    async def set_xattr(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return acknowledged(stage, lambda: stage.fs.set_xattr(node.ino, b"user.new", b"v", lambda gid: True))

    @operation
    async def remove_xattr(stage: Stage, name: bytes) -> Call:
        node = await a_file(stage, name)
        return acknowledged(stage, lambda: stage.fs.remove_xattr(node.ino, b"user.there"))

    return found


OPERATIONS = operations()


def outcome(primary: str, fallback: bool, failing: str) -> bool:
    """Whether a call succeeds, as the design's table has it."""
    if failing == "both":
        return False
    if primary == "memory":
        return failing == "git" or fallback
    return failing == "journal" or fallback


@pytest.mark.parametrize("failing", ["journal", "git", "both"])
@pytest.mark.parametrize("fallback", [True, False], ids=["fallback", "no-fallback"])
@pytest.mark.parametrize("primary", ["memory", "git"])
def test_the_failover_matrix(tmp_path: Path, primary: str, fallback: bool, failing: str) -> None:
    """off: `_append` raising the journal's error; `take_back` doing nothing; `thaw` left out."""
    stage = Stage(tmp_path, primary=primary, enable_fallback=fallback)
    succeeds = outcome(primary, fallback, failing)
    turn = ["journal", "git", "both"].index(failing) + (primary == "git")
    expected = "degraded" if succeeds else "failed"
    if (primary, failing) == ("memory", "git") or (primary, fallback, failing) == ("git", False, "journal"):
        expected = "healthy"  # nobody asked the tier that fails

    async def attempt(call: Call) -> FSError | None:
        """The call, as operations.py makes it."""
        try:
            await call()
            await stage.fs.acknowledged()
        except FSError as error:
            return error
        return None

    async def play() -> None:
        for number, operation in enumerate(OPERATIONS):
            call = await operation.prepare(stage, b"%d" % number)
            await stage.core.committer.commit()
            before = await stage.core._dump()
            counted = stage.fallbacks("memory", "git"), stage.fallbacks("git", "memory")
            stage.fail(failing)
            error = await attempt(call)
            found = differences(before, await stage.core._dump())
            assert (error is None) is succeeds, f"{operation.name}: {error}"
            if error is not None:
                assert error.errno == errno.ENOSPC
                assert not found, f"{operation.name} failed, and did this: {found}"
                if (number + turn) % 4 == 0:  # each operation in one combination or another
                    assert not differences(before, await stage.crashed()), f"{operation.name} came back"
                assert not stage.fs.is_dirty, operation.name
            else:
                assert found, operation.name
                if failing == "journal":
                    assert not stage.fs.is_dirty, f"{operation.name}: acknowledged before git had it"
            assert stage.fs.health.state == expected, (operation.name, stage.fs.health.reasons)
            used = succeeds and failing == ("journal" if primary == "memory" else "git")
            forth = stage.fallbacks("memory", "git") > counted[0]
            back = stage.fallbacks("git", "memory") > counted[1]
            assert (forth, back) == (used and primary == "memory", used and primary == "git"), operation.name
            stage.heal()
            stage.time += 60
            if not succeeds:  # without a remount, without anybody's help
                assert await attempt(call) is None, operation.name
                assert differences(before, await stage.core._dump()), operation.name
            await stage.core.committer.commit()
            await stage.core.put(b"probe", b"%d" % number)
            assert stage.fs.health.state == "healthy", stage.fs.health.reasons

    trio.run(play)
    before = stage.core.dump()
    core = stage.core.crash(disk=None)
    assert not differences(before, core.dump())
    core.commit()
    core.close()
    fsck(core.git_dir)
