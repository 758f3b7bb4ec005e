"""flock, record locks and locks of open file descriptions, between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.users import in_child, join, together

from .kit import check, opened, refused, write

_FLOCK = "hhqqi4x"  # struct flock on 64-bit Linux
F_OFD_SETLK = 37


def probe(path: Path, work: Callable[[int], None]) -> None:
    """Runs *work* on a descriptor of *path* in another process, which must end well."""

    def inside() -> None:
        with opened(path, os.O_RDWR) as fd:
            work(fd)

    join(in_child(inside))


@contextmanager
def holder(path: Path, take: Callable[[int], None]) -> Iterator[int]:
    """Another process holds what *take* took on its own descriptor, until the body ends; gives its pid."""
    ready, tell_ready = os.pipe()
    done, tell_done = os.pipe()

    def inside() -> None:
        os.close(tell_done)
        fd = os.open(path, os.O_RDWR)
        take(fd)
        os.write(tell_ready, b".")
        os.read(done, 1)

    pid = in_child(inside)
    os.close(done)
    assert os.read(ready, 1) == b"."
    try:
        yield pid
    finally:
        os.close(tell_done)
        join(pid)
        os.close(ready)
        os.close(tell_ready)


@check()
def check_flock_excludes_other_processes(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)

        def refuse(other: int) -> None:
            refused(errno.EWOULDBLOCK, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused(errno.EWOULDBLOCK, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)

        probe(d / "x", refuse)
        fcntl.flock(fd, fcntl.LOCK_SH)
        probe(d / "x", lambda other: fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB))
        fcntl.flock(fd, fcntl.LOCK_UN)
        probe(d / "x", lambda other: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))


@check()
def check_flock_belongs_to_the_open_file(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDWR) as one:
        fcntl.flock(one, fcntl.LOCK_EX)
        with opened(d / "x", os.O_RDONLY) as two:
            refused(errno.EWOULDBLOCK, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy = os.dup(one)
    probe(d / "x", lambda fd: refused(errno.EWOULDBLOCK, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.close(copy)
    probe(d / "x", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))


@check()
def check_flock_ends_with_its_process(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDWR) as fd:
        with holder(d / "x", lambda other: fcntl.flock(other, fcntl.LOCK_EX)):
            refused(errno.EWOULDBLOCK, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@check()
def check_flock_waits_its_turn(d: Path) -> None:
    write(d / "x")

    def brief(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)

    with opened(d / "x", os.O_RDWR) as fd:
        ready, tell = os.pipe()

        def inside() -> None:
            with opened(d / "x", os.O_RDWR) as mine:
                brief(mine)
                os.write(tell, b".")
                time.sleep(0.1)

        pid = in_child(inside)
        os.read(ready, 1)
        begin = time.monotonic()
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert time.monotonic() - begin > 0.03
        join(pid)
        os.close(ready)
        os.close(tell)


@check()
def check_record_locks_guard_ranges(d: Path) -> None:
    write(d / "x", b"0" * 100)

    def take(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 10)
        fcntl.lockf(fd, fcntl.LOCK_SH, 10, 30)

    with holder(d / "x", take) as pid, opened(d / "x", os.O_RDWR) as fd:
        busy = (errno.EAGAIN, errno.EACCES)
        refused(busy, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 19)
        refused(busy, fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 8)
        refused(busy, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 30)
        refused(busy, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 30)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 2**40)
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 100, 0)
        kind, _, start, length, owner = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        assert (kind, start, length, owner) == (fcntl.F_WRLCK, 10, 10, pid)
    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@check()
def check_record_locks_split_and_join(d: Path) -> None:
    write(d / "x", b"0" * 100)
    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 30, 0)
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 10)
        fcntl.lockf(fd, fcntl.LOCK_SH, 5, 20)

        def look(other: int) -> None:
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
            fcntl.lockf(other, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 20)
            for start in (0, 9, 25, 29):
                refused(
                    (errno.EAGAIN, errno.EACCES), fcntl.lockf, other, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, start
                )

        probe(d / "x", look)


@check()
def check_record_locks_end_when_any_descriptor_closes(d: Path) -> None:
    """The famous trap of POSIX, which programs know and rely on."""
    write(d / "x")
    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.close(os.open(d / "x", os.O_RDONLY))
        probe(d / "x", lambda other: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB))


@check()
def check_record_locks_are_not_inherited(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)

        def inside() -> None:
            refused((errno.EAGAIN, errno.EACCES), fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

        join(in_child(inside))


@check()
def check_deadlock_is_noticed(d: Path) -> None:
    write(d / "x", b"0" * 10)

    def take(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)

    ready, tell = os.pipe()

    def inside() -> None:
        with opened(d / "x", os.O_RDWR) as fd:
            take(fd)
            os.write(tell, b".")
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)

    with opened(d / "x", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
        pid = in_child(inside)
        os.read(ready, 1)
        time.sleep(0.1)
        refused(errno.EDEADLK, fcntl.lockf, fd, fcntl.LOCK_EX, 1, 1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        join(pid)
    os.close(ready)
    os.close(tell)


@check()
def check_locks_of_open_file_descriptions(d: Path) -> None:
    write(d / "x", b"0" * 10)

    def lock(fd: int, start: int, length: int) -> None:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))

    with opened(d / "x", os.O_RDWR) as one, opened(d / "x", os.O_RDWR) as two:
        lock(one, 0, 5)
        refused((errno.EAGAIN, errno.EACCES), lock, two, 4, 2)
        lock(two, 5, 5)
        os.close(os.open(d / "x", os.O_RDONLY))
        refused((errno.EAGAIN, errno.EACCES), lock, two, 0, 1)


@check()
def check_locks_need_the_right_descriptor(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDONLY) as fd:
        refused(errno.EBADF, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@check()
def check_lock_files_count_up_without_a_gap(d: Path) -> None:
    """Three processes increment one counter under a lock."""
    write(d / "counter", b"0")

    def work() -> None:
        for _ in range(30):
            with opened(d / "counter", os.O_RDWR) as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX)
                value = int(os.pread(fd, 20, 0))
                os.pwrite(fd, b"%d" % (value + 1), 0)

    together(3, lambda _: work())
    assert (d / "counter").read_bytes() == b"90"
