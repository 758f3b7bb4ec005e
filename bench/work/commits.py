"""Commits: caiafs' against git's own and dulwich's porcelain, of the same files on the same disk.

Each contestant makes its files first. What is timed is what a user waits for who wants it in history:
for git `add -A` and `commit`, for caiafs the answer to a commit asked for over its socket, as `caiafs
commit` asks. caiafs syncs objects, index, refs and directories before it answers; git, as it comes,
syncs no loose object and no ref. Here caiafs commits only when told to, so that nothing has been done before.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from dulwich import porcelain
from dulwich.repo import Repo

from bench.measure import Figures, latencies, quantile
from bench.peers.base import GIT_SETTINGS
from bench.peers.caiafs import Caiafs
from bench.requests import Meter

from . import materials
from .files import KIB4
from .materials import place_of, run

MANUAL = ("commit_quiet=1h", "commit_interval=1d", "journal_max=64g")
OURS, GIT, DULWICH = "caiafs/disk", "plain+git/disk", "plain+dulwich/disk"
WHO = f"{GIT_SETTINGS['GIT_AUTHOR_NAME']} <{GIT_SETTINGS['GIT_AUTHOR_EMAIL']}>".encode()


def _caiafs(place: Path, *options: str, repository: Path | None = None) -> Caiafs:
    peer = Caiafs(OURS, "disk", place, *options, repository=repository)
    peer.start()
    return peer


def _commit(place: Path) -> None:
    run("git", "add", "-A", cwd=place)
    run("git", "commit", "-q", "-m", "Save", cwd=place)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _fill(top: Path, files: int) -> None:
    """4 KiB files that deflate somewhat, 100 a folder, no two alike."""
    for number in range(files):
        if number % 100 == 0:
            folder = os.fsencode(top / f"d{number // 100:03d}")
            os.mkdir(folder)
        path = b"%s/f%05d" % (folder, number)
        with open(path, "wb", buffering=0) as stream:
            stream.write(random.Random(number).randbytes(2048) + KIB4[2048:])


# ---- many files, one commit


def batch(room: bytes, meter: Meter, memory: str, files: int, dulwich: bool) -> dict[str, Any]:
    """*files* new files of 4 KiB into one commit."""
    top = Path(os.fsdecode(room))
    return {
        "peers": {
            OURS: _batch_caiafs(top / "c", files),
            GIT: _batch_git(top / "g", files),
            **({DULWICH: _batch_dulwich(top / "d", files)} if dulwich else {}),
        }
    }


def _batch_caiafs(place: Path, files: int) -> Figures:
    peer = _caiafs(place, *MANUAL)
    try:
        stored = _timed(lambda: _fill(peer.room, files))
        spent = _timed(peer.commit)
        _check(peer.repository, files)
    finally:
        peer.stop()
    return {"s": spent, "store_s": stored, "whole_s": stored + spent, "files_per_s": files / spent}


def _batch_git(place: Path, files: int) -> Figures:
    run("git", "init", "-q", place)
    stored = _timed(lambda: _fill(place, files))
    spent = _timed(lambda: _commit(place))
    _check(place, files)
    return {"s": spent, "store_s": stored, "whole_s": stored + spent, "files_per_s": files / spent}


def _batch_dulwich(place: Path, files: int) -> Figures:
    place.mkdir()
    with Repo.init(place) as repo:
        stored = _timed(lambda: _fill(place, files))

        def commit() -> None:
            porcelain.add(repo, paths=[os.fspath(place)])
            porcelain.commit(repo, message=b"Save", author=WHO, committer=WHO)

        spent = _timed(commit)
    return {"s": spent, "store_s": stored, "whole_s": stored + spent, "files_per_s": files / spent}


def _check(repository: Path, files: int) -> None:
    """The commit holds what was stored: a figure for something else would be worth nothing."""
    held = len(run("git", "ls-tree", "-r", "--name-only", "main", cwd=repository).splitlines())
    if held != files:
        raise AssertionError(f"the commit holds {held} files, not {files}")


# ---- one file among many


def one(
    room: bytes, meter: Meter, memory: str, files: int, flat: bool, times: int, dulwich: bool
) -> dict[str, Any]:
    """One changed file among *files*, as a commit; the first one, which reads the tree, is not counted."""
    top = Path(os.fsdecode(room))
    peers = {OURS: _one_caiafs(top, files, flat, times), GIT: _one_git(top, files, flat, times)}
    if dulwich:
        peers[DULWICH] = _one_dulwich(top / "g", files, flat)
    return {"peers": peers}


def _repeat(top: Path, files: int, flat: bool, times: int, commit: Callable[[bytes], object]) -> Figures:
    samples = []
    for number in range(times + 1):
        name = place_of(number * 997 % files, files, flat)
        with open(os.path.join(os.fsencode(top), name), "wb", buffering=0) as stream:
            stream.write(b"%d" % number + KIB4)
        begun = perf_counter_ns()
        commit(name)
        samples.append(perf_counter_ns() - begun)
    return {
        "ms": quantile(samples[1:], 0.5) / 1e6,
        "max_ms": max(samples[1:]) / 1e6,
        "first_ms": samples[0] / 1e6,
    }


def _one_caiafs(top: Path, files: int, flat: bool, times: int) -> Figures:
    peer = _caiafs(top / "c", *MANUAL, repository=materials.repository(files, flat, top / "r.git"))
    try:
        return _repeat(peer.room, files, flat, times * 3, partial(_ours, peer))
    finally:
        peer.stop()


def _one_git(top: Path, files: int, flat: bool, times: int) -> Figures:
    place = top / "g"
    run("git", "clone", "-q", materials.repository(files, flat, top / "o.git"), place)
    return _repeat(place, files, flat, times, lambda name: _commit(place))


def _one_dulwich(place: Path, files: int, flat: bool) -> Figures:
    with Repo(place) as repo:

        def commit(name: bytes) -> None:
            porcelain.add(repo, paths=[os.path.join(os.fsencode(place), name)])
            porcelain.commit(repo, message=b"Save", author=WHO, committer=WHO)

        return _repeat(place, files, flat, 3, commit)


def growth(room: bytes, meter: Meter, memory: str, sizes: list[int], times: int) -> dict[str, Any]:
    """What a commit of one changed file costs in trees of growing size."""
    top = Path(os.fsdecode(room))
    found: dict[str, Figures] = {}
    for files in sizes:
        place = top / str(files)
        place.mkdir()
        peer = _caiafs(place, *MANUAL, repository=materials.repository(files, False, place / "r.git"))
        try:
            before = _bytes_in(peer.repository)
            figures = _repeat(peer.room, files, False, times, partial(_ours, peer))
            figures["kib"] = (_bytes_in(peer.repository) - before) / (times + 1) / 1024
        finally:
            peer.stop()
        found[f"caiafs, {files:,} files"] = figures
    return {"peers": found}


def _ours(peer: Caiafs, name: bytes) -> None:
    peer.commit()


def _bytes_in(repository: Path) -> int:
    return sum(path.stat().st_size for path in (repository / "objects" / "pack").iterdir())


# ---- one document


def document(
    room: bytes, meter: Meter, memory: str, documents: int, times: int, dulwich: bool
) -> dict[str, Any]:
    """One document more, of three files, among *documents*: stored and acknowledged.

    Through the mount that is when the last close returned; with git, when its commit is made.
    """
    top = Path(os.fsdecode(room))
    peers: dict[str, Figures] = {}
    for base, place in (("disk", top / "c"), ("tmpfs", Path(memory) / f"doc{os.getpid()}-{time.time_ns()}")):
        peer = _caiafs(place)
        try:
            for number in range(documents):
                _store(peer.room, number)
            peer.settle()
            peers[f"caiafs/{base}"] = _documents(peer.room, documents, times * 20, lambda names: None)
        finally:
            peer.stop()
    place = top / "g"
    run("git", "init", "-q", place)
    for number in range(documents):
        _store(place, number)
    _commit(place)
    peers[GIT] = _documents(place, documents, times, lambda names: _commit(place))
    if dulwich:
        with Repo(place) as repo:

            def commit(names: list[bytes]) -> None:
                porcelain.add(repo, paths=names)
                porcelain.commit(repo, message=b"Save", author=WHO, committer=WHO)

            peers[DULWICH] = _documents(place, documents + times, max(3, times // 2), commit)
    return {"peers": peers}


def _store(top: Path, number: int) -> list[bytes]:
    folder = os.fsencode(top / f"doc{number:05d}")
    os.mkdir(folder)
    names = []
    for name, data in ((b"metadata.json", b'{"id": %d}\n' % number), (b"content.txt", KIB4), (b"raw", KIB4)):
        names.append(folder + b"/" + name)
        descriptor = os.open(names[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, data)
        os.close(descriptor)
    return names


def _documents(top: Path, first: int, times: int, commit: Callable[[list[bytes]], object]) -> Figures:
    samples = []
    for number in range(first, first + times):
        begun = perf_counter_ns()
        commit(_store(top, number))
        samples.append(perf_counter_ns() - begun)
    return latencies(samples)


# ---- saving while a large commit runs


def save_during(room: bytes, meter: Meter, memory: str, files: int) -> dict[str, Any]:
    """A 4 KiB file saved again and again, 1 ms between: idle, then while *files* others are committed."""
    top = Path(os.fsdecode(room))
    peer = _caiafs(top / "c", *MANUAL)
    try:
        _fill(peer.room, files)
        ours = _saves(peer.room, peer.commit)
    finally:
        peer.stop()
    place = top / "g"
    run("git", "init", "-q", place)
    _fill(place, files)
    return {"peers": {OURS: ours, GIT: _saves(place, lambda: _commit(place))}}


def _saves(top: Path, commit: Callable[[], object]) -> Figures:
    path = os.fsencode(top / "draft")

    def save_until(over: Callable[[], bool]) -> list[int]:
        samples = []
        while not over():
            begun = perf_counter_ns()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(descriptor, KIB4)
            os.close(descriptor)
            samples.append(perf_counter_ns() - begun)
            time.sleep(0.001)
        return samples

    stop = time.monotonic() + 1.5
    idle = save_until(lambda: time.monotonic() > stop)
    thread = threading.Thread(target=commit)
    begun = time.monotonic()
    thread.start()
    busy = save_until(lambda: not thread.is_alive())
    figures = {"commit_s": time.monotonic() - begun}
    for name, samples in (("idle_", idle), ("", busy)):
        figures |= {name + metric: value for metric, value in latencies(samples or [0]).items()}
    return figures
