"""Random operations on a mount and on a plain directory, side by side.

Whatever one refuses, the other refuses with the same errno; whatever both do leaves the same trees. In
between the mount is committed, unmounted and mounted again, or killed. The plain directory is on tmpfs,
so its answers are those of the kernel's simplest filesystem.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.mounts import Mount, Mounts, need_fuse, run
from support.snapshots import Node, Snapshot, differences, snapshot
from support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

NAMES = ("a", "b", "c", "\u00e9", ".git", "a.b")
# Few names and shallow paths, so that operations meet each other.
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
offsets = st.one_of(st.integers(0, 20), st.sampled_from((4095, 4096, 4097, 70_000, 131_072, 200_000)))
contents = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.binary(min_size=1, max_size=3), st.sampled_from((1000, 4096, 50_000))).map(
        lambda pair: pair[0] * pair[1]
    ),
)
modes = st.sampled_from((0o644, 0o600, 0o755, 0o444, 0o000, 0o4755, 0o2711, 0o1777))
times = st.sampled_from((0, 1, 10**9, 1_234_567_890_123_456_789, 2**33 * 10**9 + 7))
attributes = st.sampled_from(("user.a", "user.b"))


@dataclass
class Handle:
    """A file open on both sides."""

    ours: int
    theirs: int


class Sides:
    """The mount and its model. One of each for all examples; every example has a fresh directory in both."""

    def __init__(self, mount: Mount, model: Path) -> None:
        self.mount = mount
        self.model_root = model
        self.numbers = itertools.count()
        self.ours = self.theirs = Path()

    def fresh(self) -> None:
        name = f"example{next(self.numbers)}"
        self.ours, self.theirs = self.mount.path / name, self.model_root / name
        self.ours.mkdir()
        self.theirs.mkdir()


SIDES: Sides | None = None


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        assert SIDES is not None
        self.sides = SIDES
        self.sides.fresh()
        self.handles: list[Handle] = []

    def teardown(self) -> None:
        self.close_all()
        self.compare()

    def both(self, call: Callable[[Path], Any]) -> Any:
        ours, theirs = outcome(lambda: call(self.sides.ours)), outcome(lambda: call(self.sides.theirs))
        assert ours == theirs, f"the mount says {ours!r:.300}, the model {theirs!r:.300}"
        return ours

    def compare(self) -> None:
        ours, theirs = snapshot(self.sides.ours), snapshot(self.sides.theirs)
        ignore = {"inode", "atime_ns", "ctime_ns", "mtime_ns", "size"}
        lines = differences(theirs, ours, ignore)
        lines += [
            f"{path!r}: size" for path in ours if path in theirs and sizes_differ(ours[path], theirs[path])
        ]
        lines += times_that_differ(theirs, ours)
        lines += links_that_differ(theirs, ours)
        assert not lines, "\n".join(lines[:20])

    # Names

    @rule(path=paths, mode=modes)
    def create(self, path: tuple[str, ...], mode: int) -> None:
        self.both(
            lambda root: os.close(os.open(root.joinpath(*path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        )

    @rule(path=paths)
    def make_directory(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: os.mkdir(root.joinpath(*path)))

    @rule(path=paths)
    def make_fifo(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: os.mkfifo(root.joinpath(*path)))

    @rule(path=paths)
    def unlink(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: os.unlink(root.joinpath(*path)))

    @rule(path=paths)
    def remove_directory(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: os.rmdir(root.joinpath(*path)))

    @rule(source=paths, new=paths, flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename(self, source: tuple[str, ...], new: tuple[str, ...], flags: int) -> None:
        self.both(lambda root: renameat2(root.joinpath(*source), root.joinpath(*new), flags))

    @rule(source=paths, new=paths)
    def link(self, source: tuple[str, ...], new: tuple[str, ...]) -> None:
        self.both(lambda root: os.link(root.joinpath(*source), root.joinpath(*new), follow_symlinks=False))

    @rule(path=paths, goal=st.sampled_from(("a", "../b", "nowhere", "c/a", "." * 300)))
    def symlink(self, path: tuple[str, ...], goal: str) -> None:
        self.both(lambda root: os.symlink(goal, root.joinpath(*path)))

    @rule(path=paths)
    def listdir(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: sorted(os.listdir(root.joinpath(*path))))

    @rule(path=paths)
    def remove_tree(self, path: tuple[str, ...]) -> None:
        self.both(lambda root: shutil.rmtree(root.joinpath(*path)) if root.joinpath(*path).is_dir() else None)

    # Attributes

    @rule(path=paths, mode=modes)
    def chmod(self, path: tuple[str, ...], mode: int) -> None:
        self.both(lambda root: os.chmod(root.joinpath(*path), mode))

    @rule(path=paths, atime=times, mtime=times)
    def utime(self, path: tuple[str, ...], atime: int, mtime: int) -> None:
        self.both(lambda root: os.utime(root.joinpath(*path), ns=(atime, mtime), follow_symlinks=False))

    @precondition(lambda self: os.geteuid() == 0)
    @rule(path=paths, uid=st.sampled_from((-1, 0, 1234)), gid=st.sampled_from((-1, 0, 5678)))
    def chown(self, path: tuple[str, ...], uid: int, gid: int) -> None:
        self.both(lambda root: os.lchown(root.joinpath(*path), uid, gid))

    @rule(path=paths, name=attributes, value=st.binary(max_size=20), flags=st.sampled_from((0, 1, 2)))
    def setxattr(self, path: tuple[str, ...], name: str, value: bytes, flags: int) -> None:
        self.both(lambda root: os.setxattr(root.joinpath(*path), name, value, flags))

    @rule(path=paths, name=attributes)
    def removexattr(self, path: tuple[str, ...], name: str) -> None:
        self.both(lambda root: os.removexattr(root.joinpath(*path), name))

    @rule(path=paths, name=attributes)
    def getxattr(self, path: tuple[str, ...], name: str) -> None:
        self.both(lambda root: os.getxattr(root.joinpath(*path), name))

    # Content

    @rule(path=paths, data=contents)
    def write_whole(self, path: tuple[str, ...], data: bytes) -> None:
        def write(root: Path) -> None:
            with open_at(root.joinpath(*path), os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NONBLOCK) as fd:
                os.write(fd, data)

        self.both(write)

    @rule(path=paths, data=contents, offset=offsets)
    def write_at(self, path: tuple[str, ...], data: bytes, offset: int) -> None:
        def write(root: Path) -> int:
            with open_at(root.joinpath(*path), os.O_RDWR | os.O_NONBLOCK) as fd:
                return os.pwrite(fd, data, offset)

        self.both(write)

    @rule(path=paths, data=contents)
    def append(self, path: tuple[str, ...], data: bytes) -> None:
        def write(root: Path) -> None:
            with open_at(root.joinpath(*path), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK) as fd:
                os.write(fd, data)
                os.write(fd, data[:3])

        self.both(write)

    @rule(path=paths, size=offsets)
    def truncate(self, path: tuple[str, ...], size: int) -> None:
        self.both(lambda root: os.truncate(root.joinpath(*path), size))

    @rule(path=paths, offset=offsets, size=st.sampled_from((1, 100, 5000, 200_000)))
    def read(self, path: tuple[str, ...], offset: int, size: int) -> None:
        def look(root: Path) -> bytes:
            with open_at(root.joinpath(*path), os.O_RDONLY | os.O_NONBLOCK) as fd:
                return b"" if stat.S_ISFIFO(os.fstat(fd).st_mode) else os.pread(fd, size, offset)

        self.both(look)

    # Files that stay open, whatever becomes of their names

    @rule(path=paths, more=st.sampled_from((0, os.O_CREAT, os.O_APPEND, os.O_TRUNC)))
    def open(self, path: tuple[str, ...], more: int) -> None:
        fds: list[int] = []

        def try_open(root: Path) -> None:
            fds.append(os.open(root.joinpath(*path), os.O_RDWR | os.O_NONBLOCK | more, 0o644))

        if self.both(try_open) is None and fds:
            self.handles.append(Handle(*fds))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 100), data=contents, offset=offsets)
    def write_open(self, which: int, data: bytes, offset: int) -> None:
        self.through(which, lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 100), offset=offsets)
    def read_open(self, which: int, offset: int) -> None:
        self.through(which, lambda fd: os.pread(fd, 100_000, offset))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 100), size=offsets)
    def truncate_open(self, which: int, size: int) -> None:
        self.through(which, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 100))
    def look_at_open(self, which: int) -> None:
        def look(fd: int) -> tuple[int, int, int]:
            info = os.fstat(fd)
            return info.st_size, info.st_nlink, info.st_mode

        self.through(which, look)
        self.through(which, os.fsync)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 100))
    def close(self, which: int) -> None:
        handle = self.handles.pop(which % len(self.handles))
        os.close(handle.ours)
        os.close(handle.theirs)

    def through(self, which: int, call: Callable[[int], Any]) -> None:
        handle = self.handles[which % len(self.handles)]
        ours, theirs = outcome(lambda: call(handle.ours)), outcome(lambda: call(handle.theirs))
        assert ours == theirs, f"the mount says {ours!r:.300}, the model {theirs!r:.300}"

    def close_all(self) -> None:
        while self.handles:
            self.close(0)

    @rule(how=st.sampled_from(("commit", "remount", "kill")))
    def what_only_the_mount_notices(self, how: str) -> None:
        mount = self.sides.mount
        if how == "commit":
            mount.commit()
            return
        self.close_all()
        if how == "kill":
            mount.kill()
        mount.remount()
        self.compare()

    @rule()
    def look_at_everything(self) -> None:
        self.compare()

    @invariant()
    def daemon_lives(self) -> None:
        assert self.sides.mount.daemon is not None
        assert self.sides.mount.daemon.poll() is None

    @initialize()
    def begin(self) -> None:
        """Some things to begin with, so that short examples meet something."""
        for path in (("a",), ("a", "b"), ("c",)):
            self.make_directory(path)
        self.write_whole(("b",), b"begin")
        self.write_whole(("a", "a"), b"x" * 5000)


@contextmanager
def open_at(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def sizes_differ(one: Node, two: Node) -> bool:
    return not stat.S_ISDIR(one.mode) and one.size != two.size


def times_that_differ(theirs: Snapshot, ours: Snapshot) -> list[str]:
    """Times that were set by hand are equal; others differ by what lies between two calls."""
    lines = []
    for path in theirs.keys() & ours.keys():
        one, two = theirs[path].mtime_ns, ours[path].mtime_ns
        if abs(one - two) > 10 * 10**9:
            lines.append(f"{path!r}: mtime {one} in the model, {two} in the mount")
    return lines


def links_that_differ(theirs: Snapshot, ours: Snapshot) -> list[str]:
    """The same names are links of one file on both sides."""

    def groups(tree: Snapshot) -> set[frozenset[bytes]]:
        found: dict[int, set[bytes]] = {}
        for path, node in tree.items():
            if not stat.S_ISDIR(node.mode) and node.links > 1:
                found.setdefault(node.inode, set()).add(path)
        return {frozenset(names) for names in found.values()}

    return [f"links: {sorted(group)}" for group in groups(theirs) ^ groups(ours)]


@pytest.fixture(scope="module")
def sides(scratch: Path) -> Iterator[Sides]:
    need_fuse()
    base = Path(tempfile.mkdtemp(dir=scratch))
    mounts = Mounts(base)
    model = base / "model"
    model.mkdir()
    if os.geteuid() == 0:
        run("mount", "-t", "tmpfs", "-o", "size=512m", "caiafs-model", model)
    yield Sides(mounts("commit_quiet=0.2s", "commit_interval=1s"), model)
    try:
        mounts.finish()
    finally:
        if os.geteuid() == 0:
            run("umount", "-l", model)


@pytest.mark.timeout(300)
def test_random_operations_agree_with_a_plain_directory(sides: Sides) -> None:
    global SIDES
    SIDES = sides
    examples = int(os.environ.get("CAIAFS_MODEL_EXAMPLES", "8"))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=80,
            deadline=None,
            derandomize="CAIAFS_MODEL_EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
