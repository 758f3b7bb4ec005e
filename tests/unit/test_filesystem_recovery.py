"""The core's recovery, by the same way as life: what the next daemon sees, and what it reads of git.

The machine at the end of this module plays random operations and compares, after every end that a
daemon can come to, all that can be seen of the tree.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.calls import FIFO, FILE, FOLDER, LINK, ROOT, fails, make, read, same, set_xattr, write
from support.core import WHO, Core, differences
from test_store_support import git

from caiafs.committer.process import WorkerProcess
from caiafs.errors import FSError, JournalDamaged, StoreError
from caiafs.records import RENAME_EXCHANGE, Remove, Write
from caiafs.tree import Directory, File, Node

# ---- the next daemon


def test_a_commit_that_was_asked_for_takes_what_came_after_a_failed_one(core: Core) -> None:
    make(core, b"first")
    core.committer._worker = _Failing()  # type: ignore[assignment]
    with pytest.raises(StoreError):
        trio.run(core.committer.commit, None, 1)
    core.committer._worker = cast(WorkerProcess, core.worker)
    make(core, b"second")
    core.commit()
    assert not core.fs.is_dirty
    assert git(core.git_dir, "ls-tree", "--name-only", "main").split() == [b"first", b"second"]


def test_replay_of_a_record_that_does_not_fit_is_damage(core: Core) -> None:
    core.journal.append(Remove(ROOT, 1, b"never made"))
    with pytest.raises(JournalDamaged, match="does not fit the tree"):
        core.crash()


def test_replay_of_a_write_to_nobody_is_damage(core: Core) -> None:
    core.journal.append(Write(77, 0, 1, b"x"))
    with pytest.raises(JournalDamaged, match="does not fit the tree"):
        core.crash()


def test_a_daemon_that_dies_between_git_and_the_release_replays_nothing_twice(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    trio.run(core.drop, b"a/file")
    trio.run(core.put, b"a/file", b"data again")
    before = core.dump()
    kept = tmp_path / "kept"
    shutil.copytree(core.state, kept)
    head = core.commit()
    core.close()
    shutil.rmtree(core.state)
    kept.rename(core.state)
    core = Core(tmp_path)
    assert core.fs.replayed == 0
    same(core, before)
    assert core.commit() == head
    core.close()


def test_a_journal_that_is_lost_whole_leaves_what_git_has(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"file", b"data")
    core.commit()
    before = core.dump()
    core.close()
    shutil.rmtree(core.state)
    core = Core(tmp_path)
    same(core, before)
    trio.run(core.put, b"file", b"more")
    before = core.dump()
    same(core := core.crash(), before)
    core.close()


# ---- loading


def test_only_what_is_looked_into_is_loaded(tmp_path: Path) -> None:
    core = Core(tmp_path)
    for path in (b"a/b/c/file", b"x/y/file", b"x/file"):
        trio.run(core.put, path, b"data")
    core.commit()
    core = core.crash()
    assert len(core.tree.nodes) == 1
    trio.run(core.find, b"x/file")
    assert len(core.tree.nodes) == 1 + 2 + 2
    core.close()


def test_tasks_that_want_one_directory_load_it_once(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    core.commit()
    core = core.crash()
    found: list[Node | None] = []

    async def look() -> None:
        found.append((await core.fs.children(core.tree.root))[b"a"])

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)

    trio.run(both)
    assert len(found) == 5
    assert len(set(map(id, found))) == 1
    core.close()


def test_a_directory_that_cannot_be_read_is_eio_and_can_be_read_later(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    core.commit()
    core = core.crash()
    real = core.fs._loader.directory
    core.fs._loader.directory = _raises  # type: ignore[method-assign, assignment]
    fails(errno.EIO, core.find, b"a")
    core.fs._loader.directory = real  # type: ignore[method-assign]
    assert read(core, trio.run(core.find, b"a/file")) == b"data"
    core.close()


def _raises(*_: Any) -> Any:
    raise StoreError("no")


# ---- the machine


NAMES = (b"a", b"b", b"c", b"d", b".git", b"GIT~1", b"back\\slash", b"c\\.git", b".gitmodules")
names = st.sampled_from(NAMES)
numbers = st.integers(0, 10**6)
contents = st.binary(max_size=40)
targets = st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text)
times = st.integers(0, 2**62)


class RecoveryMachine(RuleBasedStateMachine):
    """Random operations; then the daemon dies at some point, and the next one must see the same."""

    @initialize()
    def start(self) -> None:
        self.base = tempfile.mkdtemp()
        self.core = Core(self.base, segment_size=4000)
        self.batch: Any = None

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.core.close()
            shutil.rmtree(self.base)

    def _do(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """A call that may be refused, as a caller may ask for anything."""
        try:
            return trio.run(function, *arguments)
        except FSError as error:
            if error.errno in (errno.EIO, errno.ESTALE):
                raise
            return None

    def _pick(self, number: int, kind: type[Node] = Node) -> Node:
        found = [node for node in self.core.tree.nodes.values() if isinstance(node, kind) and node.links()]
        return found[number % len(found)] if found else self.core.tree.root

    def _folder(self, number: int) -> int:
        found = [
            n for n in self.core.tree.nodes.values() if isinstance(n, Directory) and (n.nlink or n.ino == 1)
        ]
        return found[number % len(found)].ino

    @rule(parent=numbers, name=names, mode=st.sampled_from([FILE, 0o100755, FOLDER, FOLDER, FIFO, 0o100000]))
    def create(self, parent: int, name: bytes, mode: int) -> None:
        self._do(self.core.fs.create, self._folder(parent), name, mode, WHO)

    @rule(parent=numbers, name=names, text=targets)
    def symlink(self, parent: int, name: bytes, text: bytes) -> None:
        self._do(self.core.fs.create, self._folder(parent), name, LINK, WHO, 0, text)

    @rule(which=numbers, offset=st.integers(0, 60), data=contents, stamp=st.booleans())
    def write(self, which: int, offset: int, data: bytes, stamp: bool) -> None:
        node = self._pick(which, File)
        if isinstance(node, File):
            self._do(self.core.fs.write, node, offset, data, stamp)

    @rule(which=numbers, size=st.integers(0, 60))
    def truncate(self, which: int, size: int) -> None:
        node = self._pick(which, File)
        if isinstance(node, File):
            self.core.fs.set_attributes(node.ino, size=size)

    @rule(which=numbers, mode=st.integers(0, 0o7777), uid=numbers, atime=times, mtime=times)
    def attributes(self, which: int, mode: int, uid: int, atime: int, mtime: int) -> None:
        node = self._pick(which)
        self.core.fs.set_attributes(node.ino, mode=mode, uid=uid, atime=atime, mtime=mtime)

    @rule(which=numbers, name=st.sampled_from([b"user.a", b"user.b"]), value=st.none() | contents)
    def xattr(self, which: int, name: bytes, value: bytes | None) -> None:
        node = self._pick(which)
        if value is not None:
            set_xattr(self.core, node.ino, name, value)
        elif node.xattrs and name in node.xattrs:
            self.core.fs.remove_xattr(node.ino, name)

    @rule(which=numbers, parent=numbers, name=names)
    def link(self, which: int, parent: int, name: bytes) -> None:
        self._do(self.core.fs.link, self._pick(which, File).ino, self._folder(parent), name)

    @rule(which=numbers)
    def remove(self, which: int) -> None:
        node = self._pick(which)
        if node.parent is not None:
            call = self.core.fs.rmdir if isinstance(node, Directory) else self.core.fs.unlink
            self._do(call, node.parent.ino, node.name)

    @rule(which=numbers, parent=numbers, name=names, flags=st.sampled_from([0, 0, RENAME_EXCHANGE]))
    def rename(self, which: int, parent: int, name: bytes, flags: int) -> None:
        node = self._pick(which)
        if node.parent is not None:
            self._do(self.core.fs.rename, node.parent.ino, node.name, self._folder(parent), name, flags)

    @rule(which=numbers)
    def use_an_unlinked_file(self, which: int) -> None:
        node = self._pick(which, File)
        if isinstance(node, File) and node.parent is not None and node.nlink == 1:
            fs = self.core.fs
            fs.open(node.ino, os.O_RDWR)
            before = read(self.core, node)
            trio.run(fs.unlink, node.parent.ino, node.name)
            write(self.core, node, len(before), b"more")
            assert read(self.core, node) == before + b"more"
            fs.release(node, os.O_RDWR)

    @rule()
    def unload(self) -> None:
        self.core.fs._sweep(0)

    @rule()
    def commit(self) -> None:
        self._commit()
        assert not self.core.fs.is_dirty

    def _commit(self) -> None:
        self.core.look()
        trio.run(self.core.committer.drain)

    @precondition(lambda self: self.core.fs.is_dirty)
    @rule()
    def begin_to_commit(self) -> None:
        """A commit that failed: frozen and captured, to be tried again."""
        self.core.committer._worker = _Failing()  # type: ignore[assignment]
        with pytest.raises(StoreError):
            trio.run(self.core.committer.commit, None, 1)
        self.core.committer._worker = cast(WorkerProcess, self.core.worker)

    @rule(keep_journal=st.booleans())
    def die(self, keep_journal: bool) -> None:
        """With the journal as it is, or after git took everything and before the journal was told."""
        before = self.core.dump()
        if not keep_journal:
            kept = self.base + "/kept"
            shutil.copytree(self.core.state, kept)
            self._commit()
            self.core.close()
            shutil.rmtree(self.core.state)
            os.rename(kept, self.core.state)
        self.core = self.core.crash() if keep_journal else Core(self.base, segment_size=4000)
        found = differences(before, self.core.dump())
        assert not found, "\n".join(found)

    @rule()
    def compare_with_git_alone(self) -> None:
        """A stranger who has the repository, and no journal."""
        self._commit()
        before = self.core.dump()
        with tempfile.TemporaryDirectory() as other:
            shutil.copytree(self.core.git_dir, other + "/repo.git")
            stranger = Core(other)
            found = differences(before, stranger.dump())
            stranger.close()
            assert not found, "\n".join(found)


class _Failing:
    async def ask(self, *_: Any, ahead: Any = ()) -> Any:
        raise StoreError("no")


TestRecovery = RecoveryMachine.TestCase
TestRecovery.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
