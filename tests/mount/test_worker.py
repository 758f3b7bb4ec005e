"""The commit worker dies: it is started again, and its batch is done again, once and whole."""

from __future__ import annotations

import os
import random
import signal
import time

from support.mounts import Mount, wait_until


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
