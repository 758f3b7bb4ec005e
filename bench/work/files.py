"""System calls on files and directories, one at a time, in one process.

Each loop ends after *count* operations or *seconds*, whichever comes first: a slow peer gives fewer
samples, and does not hold up the others. Paths are made before the clock runs. Nothing is deleted
unless deleting is what is measured: ext4 without a journal searches long for inodes after deletions.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any

from bench.measure import latencies
from bench.requests import Meter

from .caches import drop_names

KIB4 = random.Random(4).randbytes(3072) + b"caiafs measures " * 64
MIB = random.Random(1).randbytes(1 << 20)
FEW = 30


def _each(call: Callable[[Any], object], over: Iterable[Any], seconds: float) -> list[int]:
    """Nanoseconds of each call, until *over* is empty or *seconds* are over; ten times that for FEW."""
    samples: list[int] = []
    note = samples.append
    now = perf_counter_ns
    stop = now() + int(seconds * 1e9)
    late = now() + int(seconds * 1e10)
    for argument in over:
        begun = now()
        call(argument)
        ended = now()
        note(ended - begun)
        if ended > stop and (len(samples) >= FEW or ended > late):
            break
    return samples


def _names(room: bytes, count: int, prefix: bytes = b"f") -> list[bytes]:
    return [b"%s/%s%05d" % (room, prefix, number) for number in range(count)]


def _save(path: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, KIB4)
    os.close(descriptor)


def _made(room: bytes, count: int, seconds: float) -> list[bytes]:
    names = _names(room, count)
    return names[: len(_each(_save, names, seconds))]


def create(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """open(O_CREAT), write 4 KiB, close."""
    names = _names(room, count)
    meter.begin()
    samples = _each(_save, names, seconds)
    meter.end(len(samples))
    return latencies(samples)


def save_again(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """What an editor does: write a temporary file, rename it over the old one."""
    target = room + b"/text"
    _save(target)
    names = _names(room, count, b"tmp")

    def replace(name: bytes) -> None:
        _save(name)
        os.rename(name, target)

    meter.begin()
    samples = _each(replace, names, seconds)
    meter.end(len(samples))
    return latencies(samples)


def stat_first(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """stat of a name that the kernel does not know at the moment."""
    names = _made(room, count, seconds)
    drop_names()
    meter.begin()
    samples = _each(os.stat, names, seconds)
    meter.end(len(samples))
    return latencies(samples)


def stat_absent(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """stat of a name that is not there, again: what compilers and interpreters do all day."""
    names = [room + b"/absent%d" % number for number in range(20)]

    def look(name: bytes) -> None:
        try:
            os.stat(name)
        except FileNotFoundError:
            return
        raise AssertionError(name)

    for name in names:
        look(name)
    meter.begin()
    samples = _each(look, names * (count // 20), seconds)
    meter.end(len(samples))
    return latencies(samples)


def stat_again(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """stat of names that the kernel knows, 100 at a time."""
    names = _made(room, 100, seconds)

    def all_of(names: list[bytes]) -> None:
        for name in names:
            os.stat(name)

    all_of(names)
    meter.begin()
    samples = _each(all_of, [names] * (count // 10), seconds)
    meter.end(len(samples) * len(names))
    return latencies(samples, len(names))


def rename(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    names = _made(room, count, seconds)
    pairs = list(zip(names, _names(room, count, b"to"), strict=False))
    meter.begin()
    samples = _each(lambda pair: os.rename(*pair), pairs, seconds)
    meter.end(len(samples))
    return latencies(samples)


def unlink(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    names = _made(room, count, seconds)
    meter.begin()
    samples = _each(os.unlink, names, seconds)
    meter.end(len(samples))
    return latencies(samples)


def mkdir(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    names = _names(room, count, b"d")
    meter.begin()
    samples = _each(os.mkdir, names, seconds)
    meter.end(len(samples))
    return latencies(samples)


def listing(room: bytes, meter: Meter, count: int, seconds: float, cold: bool) -> dict[str, Any]:
    """A directory with the attributes of all that is in it, as `ls -l` does; µs for each entry.

    *cold*: the kernel knows none of the names. Otherwise it has just listed them.
    """
    names = _made(room, count, seconds)

    def listed() -> int:
        with os.scandir(room) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size > 0 for entry in entries)

    assert listed() == len(names)
    samples: list[int] = []
    stop = perf_counter_ns() + int(seconds * 1e9)
    while len(samples) < (2 if cold else 10) and perf_counter_ns() < stop:
        if cold:
            drop_names()
        if not samples:
            meter.begin()
        begun = perf_counter_ns()
        listed()
        samples.append(perf_counter_ns() - begun)
        if len(samples) == 1:
            meter.end(1)
    return latencies(samples, len(names))


def open_read_close(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """open, read 4 KiB, close, of files whose bytes the kernel has."""
    names = _made(room, 100, seconds)

    def read(name: bytes) -> None:
        descriptor = os.open(name, os.O_RDONLY)
        os.pread(descriptor, 4096, 0)
        os.close(descriptor)

    for name in names:
        read(name)
    meter.begin()
    samples = _each(read, names * (count // 50), seconds)
    meter.end(len(samples))
    return latencies(samples)


def read_cached(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """4 KiB reads anywhere in an open file whose pages the kernel has."""
    descriptor = _filled(room, 8)
    places = [random.Random(number).randrange(2048) * 4096 for number in range(1000)]
    for place in range(0, 8 << 20, 1 << 20):
        os.pread(descriptor, 1 << 20, place)

    def read(places: list[int]) -> None:
        for place in places:
            os.pread(descriptor, 4096, place)

    meter.begin()
    samples = _each(read, [places[part : part + 100] for part in range(0, 1000, 100)] * 100, seconds)
    meter.end(len(samples) * 100)
    os.close(descriptor)
    return latencies(samples, 100)


def pwrite(room: bytes, meter: Meter, count: int, seconds: float) -> dict[str, Any]:
    """4 KiB writes into an open file, one after the other; "with_close_us" pays for write-back, too."""
    descriptor = _filled(room, 16)
    places = [number * 4096 % (16 << 20) for number in range(count)]
    meter.begin()
    begun = perf_counter_ns()
    samples = _each(lambda place: os.pwrite(descriptor, KIB4, place), places, seconds)
    os.close(descriptor)
    whole = perf_counter_ns() - begun
    meter.end(len(samples))
    return latencies(samples) | {"with_close_us": whole / len(samples) / 1000}


def _filled(room: bytes, mebibytes: int) -> int:
    """A file of *mebibytes*, written out, open for reading and writing."""
    path = room + b"/filled"
    with open(path, "wb", buffering=0) as stream:
        for _ in range(mebibytes):
            stream.write(MIB)
    return os.open(path, os.O_RDWR)


def sequential_write(room: bytes, meter: Meter, mebibytes: int, seconds: float) -> dict[str, Any]:
    """A new file in blocks of 1 MiB, until close() has returned."""
    blocks = [MIB[number:] + MIB[:number] for number in range(16)]  # no two blocks of the file alike
    now = perf_counter_ns
    meter.begin()
    begun = now()
    stop = begun + int(seconds * 1e9)
    descriptor = os.open(room + b"/large", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    done = 0
    while done < mebibytes and now() < stop:
        os.write(descriptor, blocks[done & 15])
        done += 1
    os.close(descriptor)
    whole = now() - begun
    meter.end(done)
    return {"mibs": done / (whole / 1e9), "mib": float(done)}


def sequential_read(room: bytes, meter: Meter, mebibytes: int, seconds: float) -> dict[str, Any]:
    """A file in blocks of 1 MiB, of which the kernel has no pages under this name.

    What lies beneath a mount (pages of the file that it passes on to, caiafs' memory tier) stays as
    writing left it.
    """
    path = room + b"/large"
    with open(path, "wb", buffering=0) as stream:
        stop = perf_counter_ns() + int(seconds * 2e9)
        done = 0
        while done < mebibytes and perf_counter_ns() < stop:
            stream.write(MIB)
            done += 1
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return _read_through(descriptor, meter, seconds)


def _read_through(descriptor: int, meter: Meter, seconds: float) -> dict[str, Any]:
    now = perf_counter_ns
    meter.begin()
    begun = now()
    stop = begun + int(seconds * 1e9)
    done = 0
    while part := os.read(descriptor, 1 << 20):
        done += len(part)
        if now() > stop:
            break
    whole = now() - begun
    os.close(descriptor)
    meter.end(max(1, done >> 20))
    return {"mibs": done / (1 << 20) / (whole / 1e9), "mib": done / (1 << 20)}


def fsync(room: bytes, meter: Meter, count: int, seconds: float, writers: int) -> dict[str, Any]:
    """New file, write 4 KiB, fsync, close; by *writers* at once. µs for each file of a writer's."""
    every: list[list[int]] = [[] for _ in range(writers)]
    ready = threading.Barrier(writers + 1)

    def save(path: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, KIB4)
        os.fsync(descriptor)
        os.close(descriptor)

    def write(number: int) -> None:
        names = _names(room, count, b"w%d-" % number)
        ready.wait()
        every[number] += _each(save, names, seconds)

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    meter.begin()
    ready.wait()
    begun = perf_counter_ns()
    for thread in threads:
        thread.join()
    whole = perf_counter_ns() - begun
    samples = [sample for one in every for sample in one]
    meter.end(len(samples))
    return latencies(samples) | {"files_per_s": len(samples) / (whole / 1e9)}
