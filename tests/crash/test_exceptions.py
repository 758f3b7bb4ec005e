"""An exception anywhere: it costs a call, or the daemon, but nothing that was acknowledged.

At the height of the core: a workload runs, and at a function call of caiafs that a seed chose an
exception is raised that nobody foresees. If life goes on, what it shows must be what the journal
gives back; if it ends, the next one must show what was before the call, or after it.
CAIAFS_EXCEPTION_SEED repeats a run.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from support.core import WHO, Core, Dump, differences
from support.drill.forks import ForkedDaemon, ForkServer
from support.mounts import clear_stale_mount, need_fuse

from caiafs.check import run_check
from caiafs.errors import Broken, CaiafsError
from caiafs.tree import Directory, File

SEED = int(os.environ.get("CAIAFS_EXCEPTION_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROUNDS = int(os.environ.get("CAIAFS_EXCEPTION_ROUNDS", "12"))
PLACES = (
    "caiafs/filesystem/",
    "caiafs/journal/",
    "caiafs/tree/",
    "caiafs/committer/schedule",
    "caiafs/memory",
    "caiafs/records/",
)


class Injected(Exception):
    """What nobody foresees."""


@contextmanager
def raising_at(number: int) -> Iterator[list[str]]:
    """The *number*-th call of a function of caiafs raises; the list gets its name."""
    left, where = number, []

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event != "call" or not any(place in frame.f_code.co_filename for place in PLACES):
            return
        left -= 1
        if left == 0:
            where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
            raise Injected(where[0])

    sys.setprofile(look)
    try:
        yield where
    finally:
        sys.setprofile(None)


def steps(core: Core, rng: random.Random, number: int) -> Callable[[], Any]:
    """One call of the core, or a commit."""
    fs = core.fs
    nodes = [fs.tree.nodes[ino] for ino in sorted(fs.tree.nodes)]
    folders = [node for node in nodes if isinstance(node, Directory) and node.children is not None]
    files = [node for node in nodes if isinstance(node, File)]
    parent, other = rng.choice(folders), rng.choice(folders)
    name = rng.choice([b"none", *sorted(parent.children or ())])
    fresh = b"n%d" % number
    kind = rng.choice(
        (
            "create",
            "create",
            "mkdir",
            "unlink",
            "rename",
            "link",
            "attributes",
            "xattr",
            "write",
            "write",
            "commit",
        )
    )
    if kind == "create":
        return lambda: fs.create(parent.ino, fresh, 0o100644, WHO)
    if kind == "mkdir":
        return lambda: fs.create(parent.ino, fresh, 0o040755, WHO)
    if kind == "unlink":
        return lambda: fs.unlink(parent.ino, name)
    if kind == "rename":
        return lambda: fs.rename(parent.ino, name, other.ino, fresh, 0)
    if kind == "commit":
        return lambda: core.committer.commit(tries=1)
    if not files:
        return lambda: fs.create(parent.ino, fresh, 0o100644, WHO)
    file = rng.choice(files)
    if kind == "link":
        return lambda: fs.link(file.ino, parent.ino, fresh)
    if kind == "attributes":
        return lambda: _now(lambda: fs.set_attributes(file.ino, size=rng.randrange(5000), uid=number))
    if kind == "xattr":
        return lambda: _now(lambda: fs.set_xattr(file.ino, b"user.x", b"%d" % number, lambda _: True))
    return lambda: fs.write(file, rng.randrange(3000), rng.randbytes(rng.choice((1, 2000))))


async def _now(function: Callable[[], Any]) -> None:
    function()


def unwrapped(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@pytest.mark.timeout(max(120, ROUNDS * 2))
def test_an_exception_anywhere_loses_nothing(tmp_path: Path) -> None:
    print(f"CAIAFS_EXCEPTION_SEED={SEED}")  # shown if the test fails
    rng = random.Random(SEED)
    core = Core(tmp_path)
    os.chmod(core.state, 0o700)
    ends: dict[str, int] = {"answered": 0, "ended": 0, "not reached": 0}
    try:
        for number in range(ROUNDS):
            core.dump()  # loads every directory
            for extra in range(5):
                _quietly(steps(core, rng, 10 * number + extra))
            before = core.dump()
            seed = rng.randrange(1 << 30)
            step = steps(core, random.Random(seed), 10 * number + 9)
            done = _done(tmp_path, seed, 10 * number + 9)
            with raising_at(rng.randint(1, 40)) as where:
                end = _ending(step)
            ends[end] += 1
            live = None if end == "ended" else core.dump()
            core = core.crash()
            after = core.dump()
            if live is not None:
                _assert_same(live, after, f"{where}: lives on, and shows otherwise than the journal")
            else:
                core_again = core.crash()
                _assert_same(after, core_again.dump(), f"{where}: recovery is not the same twice")
                core = core_again
            times = ("atime", "mtime", "ctime")
            half = differences(before, after, times) and differences(done, after, times)
            assert not half, f"{where}: neither as before nor as after the call, but {half[:6]}"
            core.commit()
            said: list[str] = []
            core.close()
            state = str(tmp_path / "state")
            assert run_check(core.git_dir, "main", state, False, said.append) == 0, (where, said)
            core = Core(tmp_path)
    finally:
        core.close()
    assert ends["ended"] + ends["answered"] > ROUNDS // 5, ends


@pytest.mark.parametrize("place", ["caiafs.tree:Tree.apply", "caiafs.journal:Journal.release"])
def test_an_error_between_journal_and_tree_ends_the_daemon_and_loses_nothing(
    scratch: Path, place: str
) -> None:
    """A real mount: it ends with status 1 and commits nothing any more; the next one has every file."""
    with _armed(scratch, place) as (daemon, again):
        names = [f"f{number}" for number in range(30)]
        done = []
        os.kill(daemon.pid, signal.SIGUSR2)
        try:
            for name in names:
                (daemon.mountpoint / name).write_text(name)
                done.append(name)
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)  # noqa: PT017
        assert daemon.wait(30) == 1
        assert "internal error" in daemon.log.read_text()
        mount = again()
        for name in done:
            assert (mount / name).read_text() == name


def test_an_error_elsewhere_costs_one_call(scratch: Path) -> None:
    with _armed(scratch, "caiafs.filesystem:Filesystem.lookup") as (daemon, _):
        (daemon.mountpoint / "there").write_text("x")
        os.kill(daemon.pid, signal.SIGUSR2)
        with pytest.raises(OSError, match="Input/output error"):
            (daemon.mountpoint / "not there").stat()
        assert not (daemon.mountpoint / "not there").exists()
        assert (daemon.mountpoint / "there").read_text() == "x"
        assert "a bug, put here by a test" in daemon.log.read_text()


@contextmanager
def _armed(scratch: Path, place: str) -> Iterator[tuple[ForkedDaemon, Callable[[], Path]]]:
    """A mount in which *place* raises once after SIGUSR2, and a way to mount again."""
    need_fuse()
    base = Path(tempfile.mkdtemp(dir=scratch))
    server = ForkServer()
    mountpoint = base / "m"
    mountpoint.mkdir()
    places = base / "r.git", mountpoint, base / "log"
    options = ["commit_quiet=0.05s", "commit_interval=0.1s"]
    daemon = server.mount([*options, "init"], *places, ("daemon_errs", [place, "before"]))
    daemons = [daemon]

    def again() -> Path:
        clear_stale_mount(mountpoint)
        daemons.append(server.mount(options, *places))
        assert daemons[-1].wait_serving(), daemon.log.read_text()
        return mountpoint

    try:
        assert daemon.wait_serving(), daemon.log.read_text()
        yield daemon, again
        daemons[-1].signal(signal.SIGTERM)
        assert daemons[-1].wait(60) == 0
        assert run_check(str(base / "r.git"), None, None, False, lambda _: None) == 0
    finally:
        server.close()
        clear_stale_mount(mountpoint)
        shutil.rmtree(base)


def _done(base: Path, seed: int, number: int) -> Dump:
    """What the same call leaves where nothing comes between: tried on a copy."""
    twin = base / "twin"
    shutil.copytree(base / "repo.git", twin / "repo.git")
    shutil.copytree(base / "state", twin / "state")
    core = Core(twin)
    core.dump()
    _quietly(steps(core, random.Random(seed), number))
    found = core.dump()
    core.close()
    shutil.rmtree(twin)
    return found


def _assert_same(one: Dump, other: Dump, text: str) -> None:
    found = differences(one, other, ("atime",))
    assert not found, f"{text}: {found[:6]}"


def _quietly(step: Callable[[], Any]) -> None:
    async def run() -> None:
        try:
            await step()
        except CaiafsError:
            pass

    trio.run(run)


def _ending(step: Callable[[], Any]) -> str:
    """What operations.py makes of an exception: an answer, unless it is one that ends the daemon."""

    async def run() -> str:
        try:
            await step()
        except CaiafsError:
            return "answered"
        except Exception:
            return "answered"
        return "not reached"

    try:
        return trio.run(run)
    except BaseException as error:
        if not isinstance(unwrapped(error), Broken):
            raise
        return "ended"
