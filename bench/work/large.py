"""Size and time: a million files, gigabytes, a day of saving, a crash, and nothing at all.

Each starts its own mounts. Memory is what the daemon and its worker hold together (PSS: pages that they
share are counted once), looked at twice a second while they work.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from bench import processes
from bench.measure import Figures, quantile
from bench.peers.caiafs import Caiafs
from bench.requests import Meter

from . import materials
from .caches import drop_everything
from .commits import MANUAL, OURS
from .files import KIB4, MIB
from .materials import place_of, run

MEBI = 1 << 20
SIZED = 500
"""Saves from which on the repository's size says something: before, it is the packs not yet joined."""


def _mount(place: Path, *options: str, repository: Path | None = None) -> Caiafs:
    peer = Caiafs(OURS, "disk", place, *options, repository=repository)
    peer.start()
    return peer


# ---- a million files


def mounting(room: bytes, meter: Meter, memory: str, sizes: list[int], times: int) -> dict[str, Any]:
    """From the command to the first listing and the first read, in repositories of several sizes."""
    top = Path(os.fsdecode(room))
    found: dict[str, Figures] = {}
    for files in sizes:
        place = top / str(files)
        place.mkdir()
        repository = materials.repository(files, False, place / "r.git")
        runs = [_first_use(place, repository, files) for _ in range(times)]
        found[f"caiafs, {files:,} files"] = {
            name: quantile([one[name] for one in runs], 0.5) for name in runs[0]
        }
    return {"peers": found}


def _first_use(place: Path, repository: Path, files: int) -> Figures:
    begun = time.perf_counter()
    peer = _mount(place, repository=repository)
    mounted = time.perf_counter()
    try:
        name = place_of(files // 2, files, False)
        folder = os.path.join(os.fsencode(peer.room), os.path.dirname(name))
        os.listdir(peer.room)
        with os.scandir(folder) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
        listed = time.perf_counter()
        with open(os.path.join(os.fsencode(peer.room), name), "rb") as stream:
            stream.read()
        read = time.perf_counter()
    finally:
        peer.stop()
    return {
        "s": read - begun,
        "mount_s": mounted - begun,
        "list_s": listed - mounted,
        "read_s": read - listed,
    }


def walk(room: bytes, meter: Meter, memory: str, files: int, budget: int) -> dict[str, Any]:
    """Every file's attributes, in the order of its tree, with *budget* MiB for the memory tier."""
    top = Path(os.fsdecode(room))
    repository = materials.repository(files, False, top / "r.git")
    peer = _mount(top / "c", f"memory={budget}MiB", repository=repository)
    try:
        with processes.Watch(peer.pid) as watch:
            fresh = watch.look()
            begun = time.perf_counter()
            seen = _walk(os.fsencode(peer.room))
            spent = time.perf_counter() - begun
        if seen != files:
            raise AssertionError(f"{seen} files were seen of {files}")
    finally:
        peer.stop()
    return {
        "peers": {
            "caiafs": {
                "over_mib": watch.peak / MEBI - budget, "peak_mib": watch.peak / MEBI,
                "fresh_mib": fresh / MEBI, "us": spent / files * 1e6, "files": float(files),
                "budget_mib": float(budget),
            }
        }
    }  # fmt: skip


def _walk(path: bytes) -> int:
    seen, folders = 0, []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                entry.stat(follow_symlinks=False)
                seen += 1
    return seen + sum(map(_walk, folders))


def inode(room: bytes, meter: Meter, memory: str, files: int) -> dict[str, Any]:
    """What the daemon's memory grows by for each file whose attributes were looked at."""
    top = Path(os.fsdecode(room))
    peer = _mount(top / "c", repository=materials.repository(files, False, top / "r.git"))
    try:
        os.listdir(peer.room)
        before = processes.anonymous([peer.pid])
        _walk(os.fsencode(peer.room))
        grown = processes.anonymous([peer.pid]) - before
    finally:
        peer.stop()
    return {"peers": {"caiafs": {"bytes": grown / files}}}


# ---- gigabytes


def stream(room: bytes, meter: Meter, memory: str, mebibytes: int, budget: int) -> dict[str, Any]:
    """Far more than the budget written, committed, and read again from git."""
    top = Path(os.fsdecode(room))
    parts = max(2, mebibytes // 1024)
    each = mebibytes // parts
    peer = _mount(top / "c", f"memory={budget}MiB")
    try:
        with processes.Watch(peer.pid) as watch:
            begun = time.perf_counter()
            for part in range(parts):
                _write(peer.room / f"part{part}", each, part)
            written = time.perf_counter()
            peer.commit()
            committed = time.perf_counter()
            after_write = watch.peak
            for part in range(parts):
                _read(peer.room / f"part{part}", each)
            read = time.perf_counter()
    finally:
        peer.stop()
    total = parts * each
    return {
        "peers": {
            "caiafs": {
                "over_mib": watch.peak / MEBI - budget, "peak_mib": watch.peak / MEBI,
                "peak_writing_mib": after_write / MEBI, "budget_mib": float(budget), "mib": float(total),
                "write_mibs": total / (written - begun), "commit_s": committed - written,
                "read_mibs": total / (read - committed),
            }
        }
    }  # fmt: skip


def _write(path: Path, mebibytes: int, seed: int) -> None:
    with path.open("wb", buffering=0) as file:
        for number in range(mebibytes):
            place = (seed * 7919 + number * 13) % MEBI
            file.write(MIB[place:] + MIB[:place])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path, mebibytes: int) -> None:
    done = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(MEBI):
            done += len(part)
            if done % (64 * MEBI) == 0:
                os.posix_fadvise(file.fileno(), 0, done, os.POSIX_FADV_DONTNEED)
    if done != mebibytes * MEBI:
        raise AssertionError(f"{path.name} has {done} bytes")


# ---- a day


def churn(room: bytes, meter: Meter, memory: str, saves: int, seconds: float, budget: int) -> dict[str, Any]:
    """A text that grows and is saved again and again, each save a commit; files that come and go beside it.

    Memory is compared between the end of the first quarter and the last; the repository with what
    `git gc` makes of a copy of it.
    """
    top = Path(os.fsdecode(room))
    chance = random.Random(8)
    words = [chance.randbytes(3).hex() for _ in range(2000)]
    lines = [" ".join(chance.choices(words, k=10)) for _ in range(400)]
    peer = _mount(top / "c", f"memory={budget}MiB", *MANUAL)
    stop = time.monotonic() + seconds
    marks: list[int] = []
    try:
        with processes.Watch(peer.pid, every=1.0) as watch:
            done = 0
            begun = time.perf_counter()
            while done < saves and time.monotonic() < stop:
                lines[chance.randrange(len(lines))] = " ".join(chance.choices(words, k=10))
                _save_text(peer.room, "\n".join(lines), done)
                peer.commit()
                done += 1
                if done * 4 % saves < 4 and done * 4 // saves > len(marks):
                    marks.append(watch.look())
            spent = time.perf_counter() - begun
            marks.append(watch.look())
        descriptors = max(processes.descriptors(pid) for pid in peer.family())
    finally:
        peer.stop()
    sizes = _size_figures(peer.repository, top) if done >= SIZED else {}
    return {"peers": {"caiafs": sizes | {
        "saves": float(done), "ms": spent / done * 1000, "peak_mib": watch.peak / MEBI,
        "over_mib": watch.peak / MEBI - budget, "grown_mib": (marks[-1] - marks[0]) / MEBI,
        "budget_mib": float(budget), "descriptors": float(descriptors),
    }}}  # fmt: skip


def _save_text(top: Path, text: str, number: int) -> None:
    new = top / "draft.txt.new"
    new.write_text(text)
    new.rename(top / "draft.txt")
    (top / f"note{number % 50}").write_bytes(KIB4[: number % 4096])
    if number >= 25:
        (top / f"note{(number + 25) % 50}").unlink(missing_ok=True)


def _size_figures(repository: Path, top: Path) -> Figures:
    copy = top / "copy.git"
    run("cp", "-a", repository, copy)
    run("git", "gc", "-q", "--prune=now", cwd=copy)
    kept, least = _objects_size(repository), _objects_size(copy)
    packs = len(list((repository / "objects" / "pack").glob("*.pack")))
    return {
        "size_mib": kept / MEBI, "gc_mib": least / MEBI, "times_gc": kept / least, "packs": float(packs)
    }  # fmt: skip


def _objects_size(repository: Path) -> int:
    return sum(path.stat().st_size for path in (repository / "objects").rglob("*") if path.is_file())


# ---- after a crash


BACKED = 3.0
"""Seconds after which a virtual machine's host has what its kernel let go of (two, in Linux). Pages that are
asked for sooner cost a third of the time, so who reads right after a drop has what seems a faster disk."""


def recovery(room: bytes, meter: Meter, memory: str, mebibytes: int) -> dict[str, Any]:
    """Mounting after kill -9 with a journal of *mebibytes*, and reading it with cat; both from disk."""
    top = Path(os.fsdecode(room))
    peer = _mount(top / "c", *MANUAL)
    _write(peer.room / "large", mebibytes * 3 // 4, 1)
    for number in range(mebibytes * 16):  # a quarter of it in small records
        with open(peer.room / f"f{number % 4096}", "ab", buffering=0) as file:
            file.write(KIB4 * 4)
    peer.kill()
    state = peer.repository / "caiafs" / "main"
    segments = [path for path in state.rglob("*") if path.is_file() and path.stat().st_size > 65536]
    size = sum(path.stat().st_size for path in segments)
    if size < mebibytes * MEBI * 0.9:
        raise AssertionError(f"only {size / MEBI:.0f} MiB of journal were found of {mebibytes}")
    os.sync()
    drop_everything()
    time.sleep(BACKED)
    begun = time.perf_counter()
    for path in segments:
        run("sh", "-c", 'cat "$1" >/dev/null', "sh", path)
    read = time.perf_counter() - begun
    drop_everything()
    time.sleep(BACKED)
    begun = time.perf_counter()
    peer.start()
    mounted = time.perf_counter() - begun
    peer.stop()
    return {"peers": {
        "caiafs": {"s": mounted, "times_cat": mounted / read, "mib": size / MEBI}, "cat": {"s": read}
    }}  # fmt: skip


# ---- nothing


def idle(room: bytes, meter: Meter, memory: str, seconds: float) -> dict[str, Any]:
    """A mount that was used and is left alone: processor, disk and wakeups of daemon and worker."""
    top = Path(os.fsdecode(room))
    peer = _mount(top / "c")
    try:
        for number in range(100):
            (peer.room / f"f{number}").write_bytes(KIB4)
        peer.settle()
        time.sleep(2.0)
        family = peer.family()
        before = [processes.cpu_seconds(family), processes.written_bytes(family), processes.wakeups(family)]
        time.sleep(seconds)
        after = [processes.cpu_seconds(family), processes.written_bytes(family), processes.wakeups(family)]
    finally:
        peer.stop()
    cpu, written, woken = (now - then for now, then in zip(after, before, strict=True))
    return {"peers": {"caiafs": {
        "cpu_percent": cpu / seconds * 100, "written_bytes": float(written),
        "wakeups_per_s": woken / seconds, "s": seconds,
    }}}  # fmt: skip
