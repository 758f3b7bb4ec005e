"""Other people's git in the repository while programs write into the mount.

Nothing the mount needs is pruned, and nothing from outside is overwritten or lost. One drill for
the whole module: its writers keep manifests, its last act is a drained unmount and both checks.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.drill.faults import OUTSIDE, Outsider
from support.drill.kill import Drill
from support.mounts import need_fuse, run

SECONDS = 0.4


@pytest.fixture(scope="module")
def drilled(scratch: Path) -> Iterator[Drill]:
    need_fuse()
    base = Path(tempfile.mkdtemp(dir=scratch)) / "d"
    with Drill(base, random.SystemRandom().randrange(1, 10**6)) as made:
        made.begin()
        yield made
        made.end()
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def outsider(drilled: Drill) -> Outsider:
    return Outsider(drilled.repository, drilled.base / "clone")


@pytest.fixture
def load(drilled: Drill) -> Iterator[Drill]:
    """Writers are at work meanwhile; afterwards they did something, and all of it is there."""
    begun = [writer.number for writer in drilled.writers]
    for writer in drilled.writers:
        writer.start()
    wait_for_a_commit(drilled)
    yield drilled
    time.sleep(0.1)
    for writer in drilled.writers:
        writer.stop()
    drilled.prove()
    assert all(writer.number > number for writer, number in zip(drilled.writers, begun, strict=True))


def tip(drilled: Drill) -> str:
    ref = "refs/heads/main"
    return run("git", "-C", drilled.repository, "for-each-ref", "--format=%(objectname)", ref).stdout.strip()


def wait_for_a_commit(drilled: Drill, before: str | None = None) -> str:
    """The mount commits, now, after all that was done before: its next commit, or the next after *before*."""
    before = tip(drilled) if before is None else before
    deadline = time.monotonic() + 30
    while tip(drilled) in ("", before):
        assert time.monotonic() < deadline, "no commit under load"
        time.sleep(0.05)
    return tip(drilled)


def wait_for_outside(drilled: Drill, outsider: Outsider) -> None:
    deadline = time.monotonic() + 20
    while wrong := outsider.wrong(drilled.mountpoint):
        assert time.monotonic() < deadline, wrong[:5]
        time.sleep(0.1)


@pytest.mark.parametrize("act", OUTSIDE)
def test_act_of_others_under_load(load: Drill, outsider: Outsider, act: str) -> None:
    """git push, update-ref, gc --prune=now, repack -ad, pack-refs --all, prune: again and again."""
    dice = random.Random(load.seed)
    until = time.monotonic() + SECONDS
    done = 0
    while time.monotonic() < until or (not done and time.monotonic() < until + 20):
        done += outsider.act(act, dice)
        wait_for_a_commit(load)
    assert done, f"{act} never came through"
    wait_for_outside(load, outsider)


def test_history_rewritten_under_load(load: Drill, outsider: Outsider) -> None:
    """The tip is amended, and the branch forced there: the mount goes on from what it became."""
    for _ in range(20):
        made = amended(load)
        if made is not None:
            break
    assert made is not None, "every race was lost"
    wait_for_a_commit(load)
    wait_for_a_commit(load)
    run("git", "-C", load.repository, "merge-base", "--is-ancestor", made, "refs/heads/main")
    load.history.begin_anew()
    outsider.commits.clear()  # one of them may have been the tip


@pytest.mark.parametrize("moment", ["the pack is published", "the side ref is moved"])
@pytest.mark.parametrize("words", [("gc", "-q", "--prune=now"), ("repack", "-adq")], ids=["gc", "repack"])
def test_what_is_on_its_way_is_not_pruned(scratch: Path, words: tuple[str, ...], moment: str) -> None:
    """Objects to which no ref leads yet, as gc finds them: the worker is stopped between pack and ref."""
    need_fuse()
    base = Path(tempfile.mkdtemp(dir=scratch)) / "d"
    with Drill(base, 1, writers=1) as made:
        daemon = made.start(("worker_ends", [moment, 1, False, int(signal.SIGSTOP)]))
        assert daemon.wait_serving()
        (made.mountpoint / "first").write_text("first")
        worker = made.worker_that_waits(daemon)
        wait_for_a_commit(made)
        os.kill(worker, signal.SIGUSR2)
        (made.mountpoint / "second").write_text("second")
        deadline = time.monotonic() + 20
        while Path(f"/proc/{worker}/stat").read_text().split()[2] != "T":
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.01)
        run("git", "-C", made.repository, *words)
        before = tip(made)
        os.kill(worker, signal.SIGCONT)
        wait_for_a_commit(made, before)
        assert run("git", "-C", made.repository, "show", "main:second").stdout == "second"
        made.end()
    shutil.rmtree(base)


def amended(drilled: Drill) -> str | None:
    """The tip with another message, if the branch was still there when it was to be moved."""
    git = ["git", "-C", str(drilled.repository)]
    old = tip(drilled)
    words = ["commit-tree", f"{old}^{{tree}}", "-m", "amended"]
    for parent in run(*git, "rev-parse", f"{old}^@").stdout.split():
        words += ["-p", parent]
    made = run(*git, *words).stdout.strip()
    moved = run(*git, "update-ref", "refs/heads/main", made, old, status=None)
    return made if moved.returncode == 0 else None


def test_branch_deleted_under_load(load: Drill, outsider: Outsider) -> None:
    """Nothing is taken from the mount, and the next commit makes the branch again, history and all."""
    git = ["git", "-C", str(load.repository)]
    for _ in range(20):
        old = tip(load)
        if run(*git, "update-ref", "-d", "refs/heads/main", old, status=None).returncode == 0:
            break
    run(*git, "gc", "-q", "--prune=now", status=None)
    deadline = time.monotonic() + 20
    while not tip(load):
        assert time.monotonic() < deadline, "the branch was not made again"
        time.sleep(0.05)
    run(*git, "merge-base", "--is-ancestor", old, "refs/heads/main")
    load.history.begin_anew()
