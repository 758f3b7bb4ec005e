"""When git fails, too: calls time out and are undone, and commits that git had after all are kept.

Each test was seen to fail with its defence switched off; how is said where it is not plain (`off:`).
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.core import differences
from support.stage import Faulty, Stage, played, quick, refused
from test_store_support import fsck
from test_store_support import git as run_git

from caiafs.tree import File

pytestmark = pytest.mark.usefixtures("without_threads")

# ---- behind a journal that fails


def test_git_that_does_not_answer_is_a_timeout_and_nothing_is_done(stage: Stage) -> None:
    """off: `_write` without a deadline (the call waits for ever)."""

    async def play() -> None:
        node = await stage.core.put(b"file", b"data")
        before = await stage.core._dump()
        stage.fail("journal")
        stage.git.hangs = True
        started = trio.current_time()
        error = await refused(lambda: stage.core.put(b"new"))
        assert error.errno == errno.ETIMEDOUT
        assert trio.current_time() - started < 2 * stage.core.config.operation_timeout + 0.1
        assert not differences(before, await stage.core._dump())
        assert stage.fs.durability(node) == "journal"
        stage.heal()
        await stage.core.put(b"new")
        assert stage.fs.health.journal.is_healthy, "asked again, since git does not work"

    played(stage, play, quick())


@pytest.mark.parametrize("how", ["refuses", "dies", "hangs"])
def test_a_commit_that_failed_after_git_had_it_is_kept(stage: Stage, how: str) -> None:
    """The worker's last word was lost: the side ref knows. off: `_has_landed` saying False."""

    async def play() -> None:
        stage.fail("journal")
        stage.git.late = True
        if how == "refuses":
            stage.git.code = errno.EIO
        else:
            setattr(stage.git, how, True)
        await stage.core.put(b"file")
        after = await stage.core._dump()
        assert b"/file" in after
        assert not differences(after, await stage.crashed())
        stage.heal()
        await stage.core.put(b"other")
        await stage.core.committer.commit()
        assert not stage.fs.is_dirty

    played(stage, play, quick())
    log = run_git(stage.core.git_dir, "log", "--format=%s", "main").decode().split("\n")
    assert log[:2] == ["Add other", "Add file"], "made once"


def test_a_commit_of_which_nobody_can_tell_is_put_right_by_the_next(stage: Stage) -> None:
    """The call fails with a timeout; git had it all the same, and is told that it did not happen.
    off: `_resolve` doing nothing (the branch is taken for somebody else's), or `unmark=True` always."""

    async def play() -> None:
        await stage.core.put(b"file", b"data")
        await stage.core.committer.commit()
        before = await stage.core._dump()
        stage.fail("journal")
        stage.git.hangs = stage.git.late = True
        real = stage.git.real.do_side
        stage.git.real.do_side = lambda: (_ for _ in ()).throw(OSError(errno.EIO, "no"))  # type: ignore[method-assign]
        error = await refused(lambda: stage.core.drop(b"file"))
        assert error.errno == errno.ETIMEDOUT
        assert not differences(before, await stage.core._dump())
        assert not run_git(stage.core.git_dir, "ls-tree", "main"), "git had it"
        stage.git.real.do_side = real  # type: ignore[method-assign]
        stage.heal()
        stage.time += 60
        await stage.core.committer.commit()
        assert not differences(before, await stage.core._dump())
        assert not differences(before, await stage.crashed())
        assert run_git(stage.core.git_dir, "cat-file", "blob", "main:file") == b"data"
        assert not stage.core.committer.moved_outside

    played(stage, play, quick())
    fsck(stage.core.git_dir)


def test_a_lock_that_goes_away_in_time_costs_no_call(stage: Stage) -> None:
    """off: `_write` raising Refused at once."""

    async def play() -> None:
        stage.fail("journal")
        stage.git.locked = 3
        await stage.core.put(b"file")
        assert not stage.fs.is_dirty

    played(stage, play, quick())


def test_earlier_changes_stay_when_a_later_one_is_undone_with_its_batch(stage: Stage) -> None:
    """A batch holds what the journal keeps and what only waits: only the latter is undone. off: `thaw`."""

    async def play() -> None:
        await stage.core.put(b"a/early", b"in the journal")
        await stage.core.put(b"a/gone", b"x")
        await stage.core.drop(b"a/gone")
        stage.fail("both")
        await refused(lambda: stage.core.put(b"a/late"))
        await refused(lambda: stage.core.drop(b"a/early"))
        before = await stage.core._dump()
        assert before.keys() == {b"", b"/a", b"/a/early"}
        stage.heal()
        await stage.core.committer.commit()
        assert not stage.fs.is_dirty
        assert not differences(before, await stage.crashed())

    played(stage, play)
    assert run_git(stage.core.git_dir, "ls-tree", "-r", "--name-only", "main").split() == [b"a/early"]


def test_a_write_that_is_undone_while_an_earlier_batch_lands_leaves_what_git_has(stage: Stage) -> None:
    """The file's extents become a base blob between the write and its undoing. off: `settle` without the
    copies that `try_out` made (the file then points into segments that are gone)."""

    async def play() -> None:
        node = await stage.core.put(b"file", b"0123456789" * 100)
        assert isinstance(node, File)
        gate = trio.Event()
        begun = trio.Event()

        async def slow(*message: Any, **more: Any) -> Any:
            if message[0] != "commit" or gate.is_set():
                return await Faulty.ask(stage.git, *message, **more)
            begun.set()
            answer = await stage.git.real.ask(*message, **more)
            await gate.wait()
            return answer

        stage.git.ask = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.core.committer.commit)
            await begun.wait()
            stage.fail("journal")
            errors: list[int] = []

            async def late() -> None:
                errors.append((await refused(lambda: stage.fs.write(node, 5, b"late"))).errno)

            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            assert await stage.fs.read(node, 0, 10) == b"01234late9"
            stage.git.code = errno.EROFS
            gate.set()
        assert errors == [errno.EROFS]
        assert await stage.fs.read(node, 0, 2000) == b"0123456789" * 100
        assert node.content.oid is not None, "it is a blob of git's now"
        assert not stage.fs.is_dirty

    played(stage, play)


# ---- primary = git


def test_git_that_failed_is_not_waited_for_by_each_call(tmp_path: Path) -> None:
    """One call waits for the timeout, the others do not; when git works again it is in front again.
    off: `_prefer_git` without the look at health."""
    stage = Stage(tmp_path, primary="git")

    async def play() -> None:
        stage.git.hangs = True
        started = trio.current_time()
        await stage.core.put(b"one")
        await stage.fs.acknowledged()
        assert trio.current_time() - started == pytest.approx(5, abs=0.2)
        for number in range(20):
            await stage.core.put(b"more %d" % number)
            await stage.fs.acknowledged()
        assert trio.current_time() - started < 6
        assert stage.fs.health.state == "degraded"
        assert stage.fallbacks("git", "memory") == 21
        before = await stage.core._dump()
        assert not differences(before, await stage.crashed())
        stage.heal()
        await stage.core.committer.commit()
        assert stage.fs.health.state == "healthy"
        await stage.core.put(b"last")
        await stage.fs.acknowledged()
        assert not stage.fs.is_dirty

    played(stage, play, quick())
    stage.core.close()
