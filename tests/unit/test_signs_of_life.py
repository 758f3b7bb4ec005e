"""What takes long tells that it gets on: else the daemon takes the commit worker for hung, and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_store_support import git as run_git

from caiafs.store import Store, pack, repack
from caiafs.store.objects import BLOB, COMMIT, encode_commit

WHO = b"A <a@example.org>"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(str(tmp_path / "r.git"))
    os.makedirs(tmp_path / "tmp")
    return made


class Counter:
    def __init__(self) -> None:
        self.signs = 0

    def __call__(self) -> None:
        self.signs += 1


def test_a_large_pack_is_synced_and_hashed_step_by_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single step of what follows the writing is longer than _SYNC_EVERY."""
    monkeypatch.setattr(pack, "_IN_MEMORY", 1 << 16)
    monkeypatch.setattr(pack, "_COPY", 1 << 16)
    monkeypatch.setattr(pack, "_SYNC_EVERY", 1 << 18)
    alive = store.alive = Counter()
    unsynced, most, real = 0, 0, {"sync": os.fsync, "data": os.fdatasync, "write": os.pwrite}

    def synced(kind: str, fd: int) -> None:
        nonlocal unsynced, most
        most, unsynced = max(most, unsynced), 0
        real[kind](fd)

    def pwrite(fd: int, data: bytes, position: int) -> int:
        nonlocal unsynced
        written: int = real["write"](fd, data, position)
        unsynced += written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", lambda fd: synced("sync", fd))
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced("data", fd))
    size = 2 << 20
    with store.pack_writer(str(tmp_path / "tmp")) as writer:
        oid = writer.add_stream(size, (os.urandom(1 << 16) for _ in range(size >> 16)))
        written = alive.signs
        kept = writer.finish()
    assert kept is not None
    assert written >= 20, "while it is written"
    assert alive.signs - written >= 30, "while it is hashed"
    assert most <= (1 << 18) + (1 << 17)
    assert store.blob_size(oid) == size
    kept.release()


def test_a_pack_that_shrinks_while_it_is_written_is_synced_all_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_IN_MEMORY", 1 << 12)
    monkeypatch.setattr(pack, "_COPY", 1 << 12)
    monkeypatch.setattr(pack, "_SYNC_EVERY", 1 << 14)
    with store.pack_writer(str(tmp_path / "tmp")) as writer:
        data = os.urandom(1 << 16)
        first = writer.add_stream(len(data), [data])
        assert writer.add_stream(len(data), [data]) == first
        second = writer.add(BLOB, b"x")
        kept = writer.finish()
    assert kept is not None
    kept.release()
    assert store.blob(first) == data
    assert store.blob(second) == b"x"


def test_a_long_history_is_walked_with_signs(store: Store, tmp_path: Path) -> None:
    with store.pack_writer(str(tmp_path / "tmp")) as writer:
        tree = writer.add(2, b"")
        tip: tuple[bytes, ...] = ()
        for number in range(100):
            tip = (writer.add(COMMIT, encode_commit(tree, tip, WHO, WHO, number, number, 0, b"x")),)
        other = writer.add(COMMIT, encode_commit(tree, (), WHO, WHO, 1, 1, 0, b"y"))
        kept = writer.finish()
    alive = store.alive = Counter()
    assert not store.is_ancestor(other, tip[0])
    assert alive.signs >= 100
    assert kept is not None
    kept.release()


class Git:
    """A process that ends with the last of *looks*, each of which found so much time that it had used."""

    pid = 1

    def __init__(self, looks: list[int]) -> None:
        self.looks = looks

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        if self.looks:
            raise subprocess.TimeoutExpired("git", timeout)
        return b"", b"said"


def test_git_that_joins_packs_is_alive_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, git = Counter(), Git([1, 1, 1, 2, 3, 3, 3])
    monkeypatch.setattr(repack, "_ticks", lambda session: git.looks.pop(0))
    assert repack._wait(git, 60, alive) == b"said"  # type: ignore[arg-type]
    assert alive.signs == 3
    git.looks.append(1)
    with pytest.raises(subprocess.TimeoutExpired):
        repack._wait(git, 0, alive)  # type: ignore[arg-type]


def test_git_works_also_where_a_process_that_it_started_does() -> None:
    inner = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    words = [sys.executable, "-c", outer]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        ticks = repack._ticks(process.pid)
        process.communicate()
    assert ticks >= 0.25 * os.sysconf("SC_CLK_TCK")
    assert repack._ticks(process.pid) == 0


def test_joining_packs_still_works(store: Store, tmp_path: Path) -> None:
    for number in range(4):
        with store.pack_writer(str(tmp_path / "tmp")) as writer:
            writer.add(BLOB, b"%d" % number)
            kept = writer.finish()
        assert kept is not None
        kept.release()
    for git in ("git", None):
        store.consolidate(str(tmp_path / "tmp"), more_than=1, git=git)
    assert b"count: 0" in run_git(store.git_dir, "count-objects", "-v")
