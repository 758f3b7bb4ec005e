"""kill -9 of the daemon at a moment nobody chose: whatever was closed is there afterwards, byte for byte.

What was closed is recorded outside the mount by whoever closed it. A round counts only if the journal
held something that git did not have when the daemon died. CAIAFS_KILL_SEED repeats a run.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts
from support.snapshots import digest
from support.users import in_child

SEED = int(os.environ.get("CAIAFS_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROUNDS = int(os.environ.get("CAIAFS_KILL_ROUNDS", "1"))


@pytest.fixture(params=range(ROUNDS))
def dice(request: pytest.FixtureRequest) -> random.Random:
    seed = SEED + request.param
    print(f"CAIAFS_KILL_SEED={seed}")  # shown if the test fails
    return random.Random(seed)


def pending(mount: Mount) -> int:
    return int(mount.stats()["storage_stats"]["commits"]["uncommitted_changes"])


def kill_while_pending(mount: Mount, delay: float, before: Callable[[], str] = str) -> str:
    """After *delay*, at the first moment when git lacks something, without giving it time to catch up.

    Gives what *before* said in the last moment.
    """
    time.sleep(delay)
    deadline = time.monotonic() + 5
    while not pending(mount):
        assert time.monotonic() < deadline, "nothing was pending for 5 s: the round shows nothing"
    said = before()
    mount.kill()
    return said


def reap(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Manifest:
    """Lines, each written whole and at once: promises of a process that may be killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)

    def add(self, *words: object) -> None:
        os.write(self._fd, ("\t".join(map(str, words)) + "\n").encode())

    def lines(self) -> Iterator[list[str]]:
        for line in self.path.read_text().splitlines():
            yield line.split("\t")


def write_and_record(root: Path, manifest: Manifest, seed: int) -> None:
    """Creates, overwrites, appends, renames and removes files of a few names until it is killed.

    A line "begin" before and "done" after each operation, so that what was under way is known too.
    """
    dice = random.Random(seed)
    number = 0
    while True:
        number += 1
        folder = root / f"d{dice.randrange(5)}"
        folder.mkdir(exist_ok=True)
        path = folder / f"f{dice.randrange(40)}"
        name = path.relative_to(root)
        data = dice.randbytes(dice.choice((10, 3000, 5000, 70_000, 300_000)))
        what = dice.randrange(6)
        if what < 4:
            manifest.add("begin", name)
            with path.open("wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                file.write(data[len(data) // 2 :])
            manifest.add("done", name, hashlib.sha1(data).hexdigest())
        elif what == 4:
            temporary = folder / f"new{number}"
            manifest.add("begin", name)
            temporary.write_bytes(data)
            os.rename(temporary, path)
            manifest.add("done", name, hashlib.sha1(data).hexdigest())
        elif path.exists():
            manifest.add("begin", name)
            path.unlink()
            manifest.add("done", name, "gone")


def promised(manifest: Manifest) -> tuple[dict[str, str], set[str]]:
    """What each name must hold, and the names that were being changed at the end."""
    held: dict[str, str] = {}
    open_: set[str] = set()
    for words in manifest.lines():
        if words[0] == "begin":
            open_.add(words[1])
        elif len(words) == 3:
            open_.discard(words[1])
            held[words[1]] = words[2]
    return held, open_


def check_promises(root: Path, manifest: Manifest) -> int:
    held, unsure = promised(manifest)
    kept = 0
    for name, wanted in held.items():
        if name in unsure:
            continue
        path = root / name
        if wanted == "gone":
            assert not path.exists(), f"{name} was removed and is back"
        else:
            assert path.exists(), f"{name} was closed and is gone"
            assert digest(path) == wanted, f"{name} was closed and reads back differently"
        kept += 1
    return kept


@pytest.mark.timeout(120)
def test_closed_files_survive_kill_9_of_the_daemon(
    mounts: Mounts, dice: random.Random, scratch: Path
) -> None:
    """Twice in a row: the second time on top of what the first recovery left in the journal."""
    mount = mounts("commit_quiet=0.3s", "commit_interval=0.7s")
    manifest = Manifest(mount.base / "manifest")
    for _ in range(2):
        pid = in_child(lambda: write_and_record(mount.path, manifest, dice.randrange(10**9)))
        try:
            kill_while_pending(mount, dice.uniform(0.3, 2))
        finally:
            reap(pid)
        mount.start()
        assert check_promises(mount.path, manifest) > 5
    mount.remount()
    check_promises(mount.path, manifest)
    mount.kill()
    mount.start()
    check_promises(mount.path, manifest)


def make_tar(path: Path, dice: random.Random) -> dict[str, str]:
    """A tree of some thousand small files and a few large ones; the digest of each."""
    sums = {}
    with tarfile.open(path, "w") as tar:
        for number in range(3000):
            name = f"t{number % 37}/s{number % 7}/f{number}"
            data = dice.randbytes(dice.choice((0, 100, 2000, 9000)) if number % 300 else 2_000_000)
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = (
                len(data),
                dice.choice((0o644, 0o755, 0o600)),
                1_500_000_000 + number,
            )
            tar.addfile(info, io.BytesIO(data))
            sums[name] = hashlib.sha1(data).hexdigest()
    return sums


@pytest.mark.timeout(120)
def test_untar_and_kill_9(mounts: Mounts, dice: random.Random) -> None:
    """tar says the name of each member as it begins with it: all but the last were closed."""
    mount = mounts("commit_quiet=0.3s", "commit_interval=0.7s")
    archive = mount.base / "tree.tar"
    sums = make_tar(archive, dice)
    listing = mount.base / "listing"
    with (
        listing.open("wb") as out,
        subprocess.Popen(
            ["tar", "-C", mount.path, "-xvpf", archive], stdout=out, stderr=subprocess.DEVNULL
        ) as tar,
    ):
        try:
            began = kill_while_pending(mount, dice.uniform(0.3, 1.2), listing.read_text).splitlines()
        finally:
            tar.kill()
    mount.start()
    done = began[:-1]
    assert len(done) > 20
    for name in done:
        assert digest(mount.path / name) == sums[name], f"{name} was closed and reads back differently"
    mount.commit()
    mount.kill()
    mount.start()
    for name in done[:: max(1, len(done) // 200)]:
        assert digest(mount.path / name) == sums[name]
    names = mount.git("ls-tree", "-r", "--name-only", "HEAD").splitlines()
    assert set(done) <= set(names)


@pytest.mark.timeout(120)
def test_kill_9_of_the_worker_makes_no_gap_and_no_duplicate(mounts: Mounts, dice: random.Random) -> None:
    """The committer dies again and again during writes; it is restarted, and git gets everything, once."""
    mount = mounts("commit_quiet=0.05s", "commit_interval=0.1s")
    mount.expect_log("(?i)worker")
    for number in range(60):
        (mount.path / f"f{number}").write_text(f"{number}\n" * 50)
        if number % 12 == 5:
            time.sleep(dice.uniform(0, 0.1))
            for process in mount.family()[1:]:
                process.end()
    mount.commit()
    names = mount.git("ls-tree", "-r", "--name-only", "main").split()
    assert sorted(names) == sorted(f"f{number}" for number in range(60))
    changed = mount.git("log", "--format=", "--name-status", "main").split("\n")
    added = [line for line in changed if line.startswith("A")]
    assert len(added) == len(set(added)) == 60
    trees = mount.git("log", "--format=%T", "main").split()
    assert len(trees) == len(set(trees)), "two commits in a row hold the same tree"


@pytest.mark.timeout(120)
def test_kill_9_of_everything_at_once(mounts: Mounts, dice: random.Random) -> None:
    """Daemon and worker together, in the middle of a commit as likely as not."""
    mount = mounts("commit_quiet=0.05s", "commit_interval=0.1s")
    manifest = Manifest(mount.base / "manifest")
    pid = in_child(lambda: write_and_record(mount.path, manifest, dice.randrange(10**9)))
    try:
        time.sleep(dice.uniform(0.3, 1.5))
        for process in reversed(mount.family()):
            process.end()
        mount.kill()
    finally:
        reap(pid)
    mount.start()
    assert check_promises(mount.path, manifest) > 5
