"""The commit worker dies, or cannot even die: its batch is done again by the next one, once and whole."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, wait_until

FREEZER = Path("/sys/fs/cgroup/freezer")
"""Of cgroup v1: what is frozen there does not even end by SIGKILL, as what waits for a dead disk."""


def test_killed_worker_leaves_no_gap_and_no_duplicate(mount: Mount) -> None:
    """Every save is one line more in a file: the history must show each state at most once, in order."""
    mount.expect_log("commit failed, will be tried again: the commit worker")
    rng = random.Random(7)
    killed = 0
    for number in range(1, 13):
        (mount.path / "count").write_text(f"{number}\n")
        (mount.path / f"big{number}").write_bytes(rng.randbytes(300_000))
        time.sleep(rng.uniform(1.0, 1.15))  # around the moment when the quiet second is over
        for worker in mount.family()[1:]:
            os.kill(worker.pid, signal.SIGKILL)
            killed += 1
    assert killed >= 6
    mount.commit()
    wait_until(lambda: mount.stats()["storage_stats"]["commits"]["uncommitted_changes"] == 0)
    commits = mount.git("rev-list", "--reverse", "main").split()
    seen = [int(mount.git("show", f"{commit}:count")) for commit in commits]
    assert seen == sorted(set(seen)), "a state was committed twice or out of order"
    assert seen[-1] == 12
    assert sorted(mount.git("ls-tree", "--name-only", "main").split()) == sorted(
        ["count", *(f"big{number}" for number in range(1, 13))]
    )
    assert mount.stats("health.json")["healthy"] is True


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[Callable[[], object]]:
    """The process waits for the kernel until what this gives is called."""
    group = FREEZER / f"caiafs-test-{os.getpid()}"
    group.mkdir()
    thaw = lambda: (group / "freezer.state").write_text("THAWED")  # noqa: E731
    try:
        (group / "cgroup.procs").write_text(f"{pid}\n")
        (group / "freezer.state").write_text("FROZEN")
        yield thaw
    finally:
        thaw()
        for line in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (FREEZER / "cgroup.procs").write_text(line)
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, "nothing in the group")
        group.rmdir()


@pytest.mark.skipif(not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="needs cgroup v1, and root")
def test_a_worker_that_cannot_be_killed_is_waited_for(mounts: Mounts) -> None:
    """Nobody else waits: there is no second worker beside one that may still write, and nothing is lost."""
    mount = mounts(
        "worker_timeout=1s", "operation_timeout=500ms", "commit_quiet=100ms", "retry_ceiling=300ms"
    )
    mount.expect_log("commit failed, will be tried again|commit worker")
    (mount.path / "before").write_bytes(b"1")
    mount.commit()
    (worker,) = mount.family()[1:]
    with frozen(worker.pid) as thaw:
        (mount.path / "meanwhile").write_bytes(b"2")
        wait_until(
            lambda: any("hangs in the kernel" in reason for reason in mount.stats("health.json")["reasons"]),
            20, "health says that it hangs",
        )  # fmt: skip
        assert mount.stats("health.json")["state"] in ("degraded", "failed")
        assert [process.pid for process in mount.family()[1:]] == [worker.pid], "no second worker beside it"
        for number in range(20):
            (mount.path / f"more{number}").write_bytes(b"3")
            assert (mount.path / f"more{number}").read_bytes() == b"3"
        assert os.getxattr(mount.path / "meanwhile", "user.caiafs.state") in (b"journal", b"durable")
        thaw()
        wait_until(lambda: mount.stats("health.json")["healthy"] is True, 20, "healthy")
    wait_until(lambda: mount.stats()["storage_stats"]["commits"]["uncommitted_changes"] == 0)
    names = mount.git("ls-tree", "--name-only", "main").split()
    assert sorted(names) == sorted(["before", "meanwhile", *(f"more{number}" for number in range(20))])
