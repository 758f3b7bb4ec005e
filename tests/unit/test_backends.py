"""One suite over every storage backend, and what the hybrid does when one of its two fails.

A new backend is one more function in MAKERS.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.disks import FailingDisk
from test_store_support import fsck
from test_store_support import git as run_git

from caiafs.backends import Backend, walk
from caiafs.backends.git import GitBackend
from caiafs.backends.hybrid import HybridBackend
from caiafs.backends.journaled import JournaledBackend
from caiafs.backends.memory import MemoryBackend
from caiafs.errors import FSError
from caiafs.journal import Journal
from caiafs.policy import Policy
from caiafs.store import Store


def in_memory(base: Path) -> Backend:
    return MemoryBackend()


def in_memory_with_a_journal(base: Path) -> Backend:
    place = base / "journal"
    place.mkdir(exist_ok=True)
    return JournaledBackend(Journal(str(place)), limit=1 << 20)


def in_git(base: Path) -> Backend:
    place = base / "repo.git"
    return GitBackend(Store.open(str(place)) if place.exists() else Store.create(str(place)))


def hybrid_with_memory_in_front(base: Path) -> Backend:
    return HybridBackend(in_memory_with_a_journal(base), in_git(base))


def hybrid_with_git_in_front(base: Path) -> Backend:
    return HybridBackend(in_git(base), in_memory_with_a_journal(base))


Maker = Callable[[Path], Backend]
MAKERS = [
    in_memory, in_memory_with_a_journal, in_git, hybrid_with_memory_in_front, hybrid_with_git_in_front,
]  # fmt: skip
KEPT = MAKERS[1:]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__.replace("_", " "))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made: Backend = request.param(tmp_path)
    yield made
    made.close()


def refuses(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(FSError) as caught:
        call()
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


def test_a_document_comes_back_as_it_was_stored(backend: Backend) -> None:
    documents = {
        b"a": b"one", b"folder/b": b"", b"folder/deep/c": bytes(range(256)), "ü\n".encode(): b"\0" * 70_000,
        b"not utf-8 \xff": os.urandom(3000),
    }  # fmt: skip
    for path, data in documents.items():
        backend.store(path, data)
    assert {path: backend.get(path) for path in documents} == documents
    assert set(walk(backend)) == set(documents)


def test_a_document_is_replaced_whole(backend: Backend) -> None:
    for data in (b"first, and long", b"second", b"", b"third"):
        backend.store(b"a/b", data)
        assert backend.get(b"a/b") == data
    assert backend.list(b"a") == [b"b"]


def test_names_are_listed_and_directories_told_apart(backend: Backend) -> None:
    assert backend.list() == []
    for path in (b"z", b"a/x", b"a/y/z", b"b"):
        backend.store(path, b"x")
    assert backend.list() == [b"a/", b"b", b"z"]
    assert backend.list(b"a") == [b"x", b"y/"]
    assert backend.list(b"a/y") == [b"z"]


def test_what_is_not_there_or_cannot_be(backend: Backend) -> None:
    backend.store(b"file", b"x")
    backend.store(b"folder/file", b"x")
    refuses(errno.ENOENT, lambda: backend.get(b"none"))
    refuses(errno.ENOENT, lambda: backend.get(b"folder/none"))
    refuses(errno.ENOENT, lambda: backend.list(b"none"))
    refuses(errno.EISDIR, lambda: backend.get(b"folder"))
    refuses(errno.ENOTDIR, lambda: backend.list(b"file"))
    refuses(errno.ENOTDIR, lambda: backend.get(b"file/below"))
    refuses(errno.EISDIR, lambda: backend.store(b"folder", b"x"))
    refuses(errno.ENOTDIR, lambda: backend.store(b"file/below", b"x"))
    for path in (
        b"",
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b"//b",
        b"../a",
        b"a/./b",
        b"a\0b",
        b"a\0b/c",
        b"folder/..",
    ):
        refuses(errno.EINVAL, lambda path=path: backend.store(path, b"x"))  # type: ignore[misc]
    refuses(errno.ENAMETOOLONG, lambda: backend.store(b"x" * 256, b"x"))
    refuses(errno.ENAMETOOLONG, lambda: backend.store(b"new/" + b"x" * 256 + b"/a", b"x"))
    backend.store(b"x" * 255, b"x")
    assert sorted(walk(backend)) == [b"file", b"folder/file", b"x" * 255]


@pytest.mark.parametrize("theirs", [in_memory, in_git], ids=["memory", "git"])
def test_merging_keeps_both_sides(backend: Backend, theirs: Maker, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    other = theirs(place)
    for path, data in ((b"same", b"same"), (b"both", b"ours"), (b"ours", b"x"), (b"a", b"a document")):
        backend.store(path, data)
    for path, data in ((b"same", b"same"), (b"both", b"theirs"), (b"new/deep", b"y"), (b"a/b", b"below")):
        other.store(path, data)
    conflicts = backend.merge(other)
    assert b"both" in conflicts
    assert b"same" not in conflicts
    found = {path: backend.get(path) for path in walk(backend)}
    assert found[b"both"] == b"ours"
    assert found[b"both.theirs"] == b"theirs"
    assert (found[b"new/deep"], found[b"ours"], found[b"a"]) == (b"y", b"x", b"a document")
    assert backend.merge(other) == conflicts, "once more changes nothing"
    assert {path: backend.get(path) for path in walk(backend)} == found
    other.close()


def test_it_tells_how_it_is(backend: Backend) -> None:
    assert isinstance(backend, Backend)
    assert backend.health()["state"] == "healthy"
    assert backend.health()["reasons"] == []
    before = backend.statistics()["documents_stored"]
    backend.store(b"a", b"x")
    assert backend.statistics()["documents_stored"] == before + 1


@pytest.mark.parametrize("maker", KEPT, ids=lambda maker: maker.__name__.replace("_", " "))
def test_what_was_stored_outlives_the_process(maker: Maker, tmp_path: Path) -> None:
    """Nothing is closed first: as after kill -9."""
    first = maker(tmp_path)
    for number in range(10):
        first.store(b"folder/%d" % number, b"%d" % number * 1000)
    first.store(b"folder/3", b"replaced")
    again = maker(tmp_path)
    assert again.get(b"folder/3") == b"replaced"
    assert again.get(b"folder/9") == b"9" * 1000
    assert len(again.list(b"folder")) == 10
    again.close()


def test_memory_evicts_to_its_journal_and_is_full_without_one(tmp_path: Path) -> None:
    kept = in_memory_with_a_journal(tmp_path)
    for number in range(40):
        kept.store(b"%d" % number, b"%02d" % number * 50_000)
    figures = kept.statistics()
    assert figures["held_bytes"] + figures["inode_bytes"] <= 1 << 20
    assert all(kept.get(b"%d" % number) == b"%02d" % number * 50_000 for number in range(40))
    kept.close()
    alone = MemoryBackend(limit=1 << 20)
    alone.store(b"a", bytes(1 << 19))
    refuses(errno.ENOSPC, lambda: alone.store(b"b", bytes(1 << 20)))
    refuses(errno.ENOSPC, lambda: alone.store(b"a", bytes(1 << 21)))
    assert alone.get(b"a") == bytes(1 << 19)
    assert alone.list() == [b"a"], "nothing half done"


def test_memory_counts_at_least_what_documents_take() -> None:
    backend = MemoryBackend(limit=1 << 20)

    def fill() -> None:
        for number in range(1 << 20):
            backend.store(b"%d/%d/document" % (number % 7, number), b"%d" % number)

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        refuses(errno.ENOSPC, fill)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (1 << 19) < after - before < 1 << 20
    figures = backend.statistics()
    backend.store(b"0/0/document", b"")
    assert backend.statistics()["held_bytes"] < figures["held_bytes"] <= 1 << 20


def test_a_memory_that_cannot_journal_keeps_nothing(tmp_path: Path) -> None:
    disk = FailingDisk()
    backend = JournaledBackend(Journal(str(tmp_path), disk))
    backend.store(b"a", b"x")
    disk.fail("writev", errno.ENOSPC, times=None)
    refuses(errno.ENOSPC, lambda: backend.store(b"a", b"y"))
    refuses(errno.ENOSPC, lambda: backend.store(b"new/b", b"y"))
    assert backend.health()["state"] == "failed"
    assert (backend.get(b"a"), backend.list()) == (b"x", [b"a"])
    disk.heal()
    backend.store(b"a", b"y")
    assert backend.health()["state"] == "healthy"
    backend.close()


def test_git_commits_each_document_beside_what_others_commit(tmp_path: Path) -> None:
    backend = in_git(tmp_path)
    repository = tmp_path / "repo.git"
    backend.store(b"docs/a.txt", b"one\n")
    backend.store(b"docs/a.txt", b"two\n")
    other = GitBackend(Store.open(str(repository)))
    other.store(b"docs/b.txt", b"other\n")
    backend.store(b"c", b"three\n")
    backend.store(b"c", b"three\n")
    log = run_git(repository, "log", "--format=%s", "main").decode().splitlines()
    assert log == ["Add c", "Add docs/b.txt", "Update docs/a.txt", "Add docs/a.txt"]
    assert run_git(repository, "cat-file", "blob", "main:docs/a.txt") == b"two\n"
    refuses(errno.EINVAL, lambda: backend.store(b".git/config", b"x"))
    backend.close()
    other.close()
    fsck(repository)


def test_git_waits_for_a_lock_and_no_longer_than_a_call_may(tmp_path: Path) -> None:
    backend = GitBackend(Store.create(str(tmp_path / "repo.git")), policy=Policy(operation_timeout=0.3))
    lock = tmp_path / "repo.git/refs/heads/main.lock"
    lock.touch()
    refuses(errno.EAGAIN, lambda: backend.store(b"a", b"x"))
    assert backend.health()["state"] == "degraded"
    lock.unlink()
    backend.store(b"a", b"x")
    assert backend.health()["state"] == "healthy"
    backend.close()


# ---- the hybrid when one of the two fails


class Failing:
    """A backend that takes nothing, or gives nothing either, as long as it is told to."""

    def __init__(self, real: Backend) -> None:
        self.real = real
        self.name = real.name
        self.code = 0
        self.asked = 0
        self.merge, self.health = real.merge, real.health
        self.statistics, self.close = real.statistics, real.close

    def _ask(self) -> None:
        self.asked += 1
        if self.code:
            raise FSError(self.code)

    def store(self, path: bytes, data: bytes) -> None:
        self._ask()
        self.real.store(path, data)

    def get(self, path: bytes) -> bytes:
        self._ask()
        return self.real.get(path)

    def list(self, path: bytes = b"") -> list[bytes]:
        self._ask()
        return self.real.list(path)


@pytest.mark.parametrize("fallback", [True, False], ids=["fallback", "no-fallback"])
@pytest.mark.parametrize("failing", ["primary", "fallback", "both"])
@pytest.mark.parametrize("front", ["memory", "git"])
def test_the_hybrid_when_a_tier_fails(tmp_path: Path, front: str, failing: str, fallback: bool) -> None:
    makers = [in_memory_with_a_journal, in_git]
    first, second = (Failing(make(tmp_path)) for make in (makers if front == "memory" else makers[::-1]))
    now = 0.0
    hybrid = HybridBackend(first, second, enable_fallback=fallback, clock=lambda: now)
    hybrid.store(b"before", b"x")
    first.code = errno.ENOSPC if failing != "fallback" else 0
    second.code = errno.EROFS if failing != "primary" else 0
    succeeds = failing == "fallback" or (failing == "primary" and fallback)
    if succeeds:
        hybrid.store(b"a/b", b"y")
        assert hybrid.get(b"a/b") == b"y"
        assert hybrid.list() == [b"a/", b"before"] or failing == "primary"
        assert (second.real.statistics()["documents_stored"] == 1) is (failing == "primary")
    else:
        refuses(errno.EROFS if fallback else errno.ENOSPC, lambda: hybrid.store(b"a/b", b"y"))
        assert hybrid.health()["state"] == "failed"
    first.code = second.code = 0
    now = 100.0
    if not succeeds:
        refuses(errno.ENOENT, lambda: hybrid.get(b"a/b"))
    hybrid.store(b"after", b"z")
    assert hybrid.health()["backends"][first.name]["state"] == "healthy"
    assert first.real.get(b"after") == b"z", "the one in front again"
    if succeeds:
        assert first.real.get(b"a/b") == b"y", "brought home"
    assert set(walk(hybrid)) == {b"before", b"after"} | ({b"a/b"} if succeeds else set())
    hybrid.close()


def test_a_primary_that_fails_is_not_asked_each_time(tmp_path: Path) -> None:
    first, second = Failing(in_git(tmp_path)), Failing(in_memory(tmp_path))
    now = 0.0
    hybrid = HybridBackend(first, second, clock=lambda: now)
    first.code = errno.EIO
    hybrid.store(b"0", b"x")
    asked = first.asked
    for number in range(1, 20):
        hybrid.store(b"%d" % number, b"x")
    assert first.asked == asked
    assert hybrid.statistics()["documents_away"] == 20
    first.code = 0
    now = 100.0
    assert hybrid.get(b"5") == b"x"
    assert hybrid.statistics()["documents_away"] == 0
    assert len(first.real.list()) == 20
    hybrid.close()
    assert subprocess.run(
        ["git", "-C", os.fspath(tmp_path / "repo.git"), "rev-list", "--count", "main"],
        capture_output=True, check=True,
    ).stdout.strip() == b"20"  # fmt: skip
