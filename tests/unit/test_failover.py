"""What happens to a call when a tier fails: every operation, each failing tier, either primary, with
and without fallback. And what brings a tier back.

The journal's disk is a FailingDisk, git the commit worker in this process behind a `Faulty` one. The
calls are those that operations.py makes. Each test was seen to fail with its defence switched off; how
is said where it is not plain (`off:`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyfuse3
import pytest
import trio
import trio.testing
from support.core import WHO, Core, Dump, LocalWorker, differences
from support.disks import FailingDisk
from test_store_support import fsck
from test_store_support import git as run_git
from trio.testing import MockClock

from caiafs.committer.probes import Probes
from caiafs.committer.process import Refused, WorkerGone
from caiafs.errors import FSError, ObjectCorrupt
from caiafs.filesystem import Filesystem
from caiafs.operations import Operations
from caiafs.policy import Policy
from caiafs.records import RENAME_EXCHANGE
from caiafs.tree import File, Node
from caiafs.virtual import Virtual

ROOT = 1
CALLER = cast(pyfuse3.RequestContext, WHO)


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


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.core.close()


async def refused(stage: Stage, call: Call) -> FSError:
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


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the core does in threads is done at once: a clock that jumps would not wait for them."""

    async def at_once(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


# ---- the journal fails


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


def test_changes_that_were_acknowledged_before_survive_a_journal_that_fails_later(stage: Stage) -> None:
    """They are in segments on disk, before a gap in the positions: recovery takes them in. off:
    `header.follows` taken from the end of volatile segments."""

    async def play() -> None:
        await stage.core.put(b"early", b"in the journal")
        stage.fail("both")
        await refused(stage, lambda: stage.core.put(b"refused", b"x" * 5000))
        stage.heal()
        stage.time += 60
        await stage.core.put(b"late", b"in the journal, behind the gap")
        before = await stage.core._dump()
        assert before.keys() == {b"", b"/early", b"/late"}
        assert not differences(before, await stage.crashed())

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
        error = await refused(stage, lambda: stage.core.put(b"refused", b"x" * 5000))
        assert error.errno == errno.EROFS
        stage.heal()
        stage.time += 60
        await stage.core.put(b"late", b"in the journal, behind the gap")
        before = await stage.core._dump()
        assert before.keys() == {b"", b"/early", b"/late"}
        assert not differences(before, await stage.crashed())

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
        error = await refused(stage, stage.fs.sync)
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
        assert (await refused(stage, stage.fs.sync)).errno == errno.EIO

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
            later.append(await refused(stage, lambda: stage.fs.create(ROOT, b"later", 0o100644, WHO)))

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
        assert (await refused(stage, lambda: stage.fs.write(file, 0, bytes(400_000)))).errno == errno.ENOSPC
        assert not differences(before, await stage.core._dump())
        for number in range(10):
            await stage.fs.write(file, number * 200_000, bytes(200_000))
        assert stage.core.journal.volatile_bytes == 0

    played(stage, play)
    stage.core.close()


# ---- git fails, too


def test_git_that_does_not_answer_is_a_timeout_and_nothing_is_done(stage: Stage) -> None:
    """off: `_write` without a deadline (the call waits for ever)."""

    async def play() -> None:
        node = await stage.core.put(b"file", b"data")
        before = await stage.core._dump()
        stage.fail("journal")
        stage.git.hangs = True
        started = trio.current_time()
        error = await refused(stage, lambda: stage.core.put(b"new"))
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
        error = await refused(stage, lambda: stage.core.drop(b"file"))
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
        await refused(stage, lambda: stage.core.put(b"a/late"))
        await refused(stage, lambda: stage.core.drop(b"a/early"))
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
        real = stage.git.real.do_commit
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
                errors.append((await refused(stage, lambda: stage.fs.write(node, 5, b"late"))).errno)

            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            assert await stage.fs.read(node, 0, 10) == b"01234late9"
            stage.git.code = errno.EROFS
            gate.set()
        assert errors == [errno.EROFS]
        assert real is not None
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


# ---- tiers come back


def test_probes_bring_tiers_back_without_a_call(stage: Stage) -> None:
    """off: `Probes.run` doing nothing."""
    probes = Probes(stage.fs, stage.core.committer)

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probes.run)
            await trio.testing.wait_all_tasks_blocked()
            stage.fail("both")
            assert not probes.noticed.is_set()
            await refused(stage, lambda: stage.core.put(b"one"))
            assert stage.fs.health.state == "failed"
            assert probes.noticed.is_set(), "whoever shows the health is woken"
            await trio.sleep(100)
            assert stage.fs.health.state == "failed"
            assert stage.fs.health.git.failures > 4
            asked = stage.git.asked.count("probe")
            await trio.sleep(30 * 60)
            assert stage.git.asked.count("probe") - asked <= 30 * 60 / 15 + 1, "pauses grow up to a ceiling"
            stage.heal()
            await trio.sleep(31)
            assert stage.fs.health.state == "healthy", stage.fs.health.reasons
            nursery.cancel_scope.cancel()

    played(stage, play, quick())


def test_a_damaged_object_is_named_until_it_is_mended(stage: Stage) -> None:
    """EIO for the one file; health says which object. off: `ask` without the note."""
    trio.run(stage.core.put, b"bad", os.urandom(2000))
    trio.run(stage.core.put, b"good", b"good")
    trio.run(stage.core.committer.commit)
    oid = run_git(stage.core.git_dir, "rev-parse", "main:bad").decode().strip()
    core = stage.core.crash()
    fs, blob = core.fs, core.store.blob
    damaged = True

    def read(wanted: bytes, *more: Any) -> bytes:
        if damaged and wanted.hex() == oid:
            raise ObjectCorrupt(f"object {oid} is damaged")
        return blob(wanted, *more)

    core.store.blob = read  # type: ignore[method-assign]
    probes = Probes(fs, core.committer)

    async def play() -> None:
        nonlocal damaged
        bad, good = await core.find(b"bad"), await core.find(b"good")
        assert isinstance(bad, File)
        assert isinstance(good, File)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probes.run)
            with pytest.raises(FSError) as caught:
                await fs.read(bad, 0, 10)
            assert caught.value.errno == errno.EIO
            assert await fs.read(good, 0, 10) == b"good"
            assert fs.health.state == "degraded"
            assert any(oid in reason for reason in fs.health.reasons)
            await trio.sleep(100)
            assert fs.health.state == "degraded"
            damaged = False
            await trio.sleep(40)
            assert fs.health.state == "healthy"
            assert len(await fs.read(bad, 0, 2000)) == 2000
            nursery.cancel_scope.cancel()

    trio.run(play, clock=quick())
    core.close()


def test_pauses_grow_with_jitter_up_to_the_ceiling() -> None:
    policy = Policy(retry_pause=0.2, retry_ceiling=30)
    pauses = [[policy.pause(attempt) for _ in range(200)] for attempt in range(1, 20)]
    for attempt, found in enumerate(pauses):
        longest = min(30, 0.2 * 2**attempt)
        assert longest / 2 <= min(found) < max(found) <= longest
        assert max(found) - min(found) > longest / 4, "spread out"
    assert policy.pause(50, ceiling=1) <= 1
