"""What files hold: reads and writes at every offset, truncation, holes, and memory maps."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from support.users import ALICE, acting_as, in_child, join, together

from .kit import (
    BLOCK,
    CHAR,
    FIFO,
    LEAVES,
    SOCKET,
    check,
    make,
    opened,
    read,
    refused,
    same,
    times_of,
    write,
)

SIZES = (0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1_000_003)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@check(size=SIZES)
def check_written_is_read(d: Path, size: int) -> None:
    data = pattern(size)
    write(d / "x", data)
    assert os.stat(d / "x").st_size == size
    assert read(d / "x") == data
    info = os.stat(d / "x")
    assert info.st_blocks * 512 >= size
    assert info.st_blksize >= 512


@check(step=(1, 7, 511, 4096, 5000, 131_072))
def check_written_in_steps(d: Path, step: int) -> None:
    data = pattern(step * 40 + 3)
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        for start in range(0, len(data), step):
            assert os.write(fd, data[start : start + step]) == len(data[start : start + step])
            assert os.fstat(fd).st_size == min(start + step, len(data))
        for start in range(0, len(data), step):
            assert os.pread(fd, step, start) == data[start : start + step]
    assert read(d / "x") == data


@check(seed=tuple(range(8)))
def check_random_operations_on_one_file(d: Path, seed: int) -> None:
    """Against a bytearray: writes, reads, truncations and maps, on several descriptors, reopened."""
    dice = random.Random(seed)
    model = bytearray()
    limit = 300_000
    fds = [os.open(d / "x", os.O_CREAT | os.O_RDWR) for _ in range(3)]
    for step in range(150):
        fd = dice.choice(fds)
        start = dice.choice((0, dice.randrange(limit), dice.randrange(limit) & ~4095, len(model)))
        size = dice.choice((1, 100, 4096, dice.randrange(1, 70_000)))
        what = dice.randrange(10)
        if what < 4:
            data = dice.randbytes(size)
            assert os.pwrite(fd, data, start) == size
            if start > len(model):
                model += bytes(start - len(model))
            model[start : start + size] = data
        elif what < 6:
            assert os.pread(fd, size, start) == model[start : start + size]
        elif what == 6:
            os.ftruncate(fd, start)
            model = model[:start] + bytes(max(0, start - len(model)))
        elif what == 7 and model:
            with mmap.mmap(fd, 0) as memory:
                place = dice.randrange(len(model))
                data = dice.randbytes(min(size, len(model) - place))
                memory[place : place + len(data)] = data
                model[place : place + len(data)] = data
        elif what == 8:
            assert os.stat(d / "x").st_size == len(model)
            dice.choice((os.fsync, os.fdatasync, os.fstat))(fd)
        else:
            os.close(fds.pop())
            if step % 2:
                assert read(d / "x") == model
            fds.append(os.open(d / "x", os.O_RDWR))
    for fd in fds:
        os.close(fd)
    assert read(d / "x") == model


@check()
def check_vectors(d: Path) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"ab", b"", b"cde"]) == 5
        assert os.pwritev(fd, [b"X", b"YZ"], 4) == 3
        one, two = bytearray(3), bytearray(10)
        assert os.preadv(fd, [one, two], 0) == 7
        assert (bytes(one), bytes(two[:4])) == (b"abc", b"dXYZ")
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.readv(fd, [one]) == 3
        assert os.pwritev(fd, [b"end"], 100_000) == 3
        assert os.preadv(fd, [two], 99_999) == 4
        assert bytes(two[:4]) == b"\0end"


@check()
def check_reading_past_the_end(d: Path) -> None:
    write(d / "x", b"12345")
    with opened(d / "x", os.O_RDWR) as fd:
        assert os.pread(fd, 10, 3) == b"45"
        assert os.pread(fd, 10, 5) == b""
        assert os.pread(fd, 10, 2**40) == b""
        assert os.pread(fd, 0, 0) == b""
        with times_of(fd, ""):
            assert os.write(fd, b"") == 0
        refused(errno.EINVAL, os.pread, fd, 1, -1)
        refused(errno.EINVAL, os.pwrite, fd, b"x", -1)


@check()
def check_write_moves_the_times(d: Path) -> None:
    write(d / "x", b"12345")
    with opened(d / "x", os.O_RDWR) as fd:
        with times_of(fd, "mc"), times_of(d, ""):
            os.write(fd, b"1")
        with times_of(d / "x", "mc"):
            os.pwrite(fd, b"longer", 100)
        with times_of(d / "x", ""):
            os.pread(fd, 3, 0)
        with times_of(fd, "mc"):
            os.fsync(fd)
            os.write(fd, b"1")
        before = os.fstat(fd)
    same(before, os.stat(d / "x"))


@check()
def check_times_settle_at_the_write_not_at_the_close(d: Path) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"data")
        before = os.fstat(fd)
        time.sleep(0.05)
        os.fsync(fd)
        same(before, os.stat(d / "x"))
        time.sleep(0.05)
    same(before, os.stat(d / "x"))
    read(d / "x")
    same(before, os.stat(d / "x"))


# truncate


def _by_path(path: Path, size: int) -> None:
    os.truncate(path, size)


def _by_fd(path: Path, size: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, size)


class _Way:
    def __init__(self, name: str, call: Callable[[Path, int], None]) -> None:
        self.name, self.call = name, call


TRUNCATE = (_Way("truncate", _by_path), _Way("ftruncate", _by_fd))


@check(way=TRUNCATE, old=(0, 10, 4096, 150_000), new=(0, 1, 4095, 4096, 10_000, 300_000))
def check_truncate(d: Path, way: _Way, old: int, new: int) -> None:
    data = pattern(old)
    write(d / "x", data)
    before = os.stat(d / "x")
    if old != new:
        with times_of(d / "x", "mc"), times_of(d, ""):
            way.call(d / "x", new)
    else:
        way.call(d / "x", new)
    same(before, os.stat(d / "x"), "size", "mtime_ns", "ctime_ns")
    assert os.stat(d / "x").st_size == new
    assert read(d / "x") == data[:new] + bytes(max(0, new - old))


@check(way=TRUNCATE)
def check_truncate_and_extend_shows_zeros(d: Path, way: _Way) -> None:
    """What was cut off never comes back."""
    write(d / "x", b"s" * 10_000)
    way.call(d / "x", 100)
    way.call(d / "x", 10_000)
    assert read(d / "x") == b"s" * 100 + bytes(9_900)
    way.call(d / "x", 50)
    with opened(d / "x", os.O_WRONLY) as fd:
        os.pwrite(fd, b"end", 9_000)
    assert read(d / "x") == b"s" * 50 + bytes(8_950) + b"end"


@check(way=TRUNCATE)
def check_truncate_out_of_bounds(d: Path, way: _Way) -> None:
    write(d / "x")
    refused(errno.EINVAL, way.call, d / "x", -1)
    assert read(d / "x") == b"data"


@check()
def check_truncate_of_directories_and_special_files(d: Path) -> None:
    (d / "dir").mkdir()
    refused(errno.EISDIR, os.truncate, d / "dir", 0)
    for kind in LEAVES[1:]:
        if kind in (BLOCK, CHAR) and os.geteuid():
            continue
        make(d / kind, kind)
        refused(errno.EINVAL, os.truncate, d / kind, 0)


@check(root=True)
def check_truncate_needs_write_permission(d: Path) -> None:
    write(d / "x")
    os.chmod(d / "x", 0o644)
    with times_of(d / "x", ""), acting_as(ALICE):
        refused(errno.EACCES, os.truncate, d / "x", 0)
    os.chmod(d / "x", 0o646)
    with acting_as(ALICE):
        os.truncate(d / "x", 1)
    assert read(d / "x") == b"d"


@check()
def check_truncate_is_seen_by_every_descriptor(d: Path) -> None:
    write(d / "x", b"0123456789")
    with opened(d / "x", os.O_RDONLY) as reader, opened(d / "x", os.O_WRONLY) as writer:
        assert os.read(reader, 4) == b"0123"
        os.ftruncate(writer, 6)
        assert os.read(reader, 100) == b"45"
        os.truncate(d / "x", 0)
        assert os.pread(reader, 10, 0) == b""
        os.pwrite(writer, b"z", 3)
        assert os.pread(reader, 10, 0) == b"\0\0\0z"


# Holes and far offsets


@check()
def check_holes_are_zeros(d: Path) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        for place in (1_000_000, 10, 500_000):
            os.pwrite(fd, b"!", place)
        assert os.fstat(fd).st_size == 1_000_001
    model = bytearray(1_000_001)
    for place in (1_000_000, 10, 500_000):
        model[place] = ord("!")
    assert read(d / "x") == model


@check(offset=(2**31 - 2, 2**31, 2**32 - 2, 2**32, 5 * 2**30, 2**35))
def check_far_offsets(d: Path, offset: int) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"far away", offset)
        assert os.fstat(fd).st_size == offset + 8
        assert os.pread(fd, 20, offset - 4) == b"\0\0\0\0far away"
        assert os.pread(fd, 4, offset // 2) == bytes(4)
        assert os.lseek(fd, 0, os.SEEK_END) == offset + 8
        os.ftruncate(fd, offset + 2)
        assert os.pread(fd, 20, offset) == b"fa"
        os.ftruncate(fd, 3)
        assert os.pread(fd, 20, 0) == bytes(3)
    assert os.stat(d / "x").st_size == 3


@check()
def check_limits_of_size(d: Path) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        refused((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"xx", 2**63 - 2)
        assert os.fstat(fd).st_size == 0
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        with opened(d / "y", os.O_CREAT | os.O_RDWR) as fd:
            assert os.write(fd, bytes(8000)) == 5000
            refused(errno.EFBIG, os.write, fd, b"x")
            refused(errno.EFBIG, os.ftruncate, fd, 6000)
            refused(errno.EFBIG, os.truncate, d / "y", 6000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert os.stat(d / "y").st_size == 5000


@check()
def check_seek_data_and_hole(d: Path) -> None:
    """Holes may be reported or not; what is reported is true, and the end of file is a hole."""
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"a" * 4096, 0)
        os.pwrite(fd, b"b" * 4096, 1 << 20)
        end = (1 << 20) + 4096
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, end - 1, os.SEEK_DATA) == end - 1
        assert 4096 <= os.lseek(fd, 0, os.SEEK_HOLE) <= end
        assert os.lseek(fd, end - 1, os.SEEK_HOLE) == end
        assert os.lseek(fd, 8192, os.SEEK_DATA) in range(8192, (1 << 20) + 1)
        refused(errno.ENXIO, os.lseek, fd, end, os.SEEK_DATA)
        refused(errno.ENXIO, os.lseek, fd, end + 1, os.SEEK_HOLE)
        refused(errno.EINVAL, os.lseek, fd, 0, 17)


@check()
def check_posix_fallocate(d: Path) -> None:
    write(d / "x", b"data")
    with opened(d / "x", os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 10_000)
        assert os.fstat(fd).st_size == 10_000
        os.posix_fallocate(fd, 100, 50)
        assert os.fstat(fd).st_size == 10_000
        os.posix_fallocate(fd, 20_000, 1)
        assert os.pread(fd, 30_000, 0) == b"data" + bytes(19_997)
        refused(errno.EINVAL, os.posix_fallocate, fd, 0, 0)
        refused(errno.EINVAL, os.posix_fallocate, fd, -1, 5)
    with opened(d / "x", os.O_RDONLY) as fd:
        refused(errno.EBADF, os.posix_fallocate, fd, 0, 30_000)
    make(d / "f", FIFO)
    with opened(d / "f", os.O_RDWR) as fd:
        refused((errno.ESPIPE, errno.ENODEV), os.posix_fallocate, fd, 0, 10)


@check(size=(0, 10, 300_000))
def check_copies_inside_the_kernel(d: Path, size: int) -> None:
    data = pattern(size)
    write(d / "x", data)
    with opened(d / "x", os.O_RDONLY) as source, opened(d / "y", os.O_CREAT | os.O_RDWR) as target:
        left = size
        while left:
            left -= os.copy_file_range(source, target, left)
        assert os.pread(target, size + 1, 0) == data
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        place = 0
        while place < size:
            place += os.sendfile(target, source, place, size - place)
        assert os.pread(target, size + 1, 0) == data
        os.ftruncate(target, 0)
        reading, writing = os.pipe()
        os.write(writing, b"through a pipe")
        os.close(writing)
        os.splice(reading, target, 100, offset_dst=0)
        os.close(reading)
        assert os.pread(target, 100, 0) == b"through a pipe"


# mmap


@check()
def check_shared_map_and_file_are_one(d: Path) -> None:
    write(d / "x", bytes(10_000))
    with opened(d / "x", os.O_RDWR) as fd:
        with mmap.mmap(fd, 0) as memory:
            memory[5000:5004] = b"mmap"
            assert os.pread(fd, 4, 5000) == b"mmap"
            os.pwrite(fd, b"write", 20)
            assert memory[20:25] == b"write"
            with opened(d / "x", os.O_RDONLY) as other:
                assert os.pread(other, 4, 5000) == b"mmap"
            memory.flush()
            memory[0:3] = b"end"
        assert os.pread(fd, 3, 0) == b"end"
    assert read(d / "x")[5000:5004] == b"mmap"
    assert read(d / "x")[:3] == b"end"


@check()
def check_shared_map_outlives_its_descriptor(d: Path) -> None:
    write(d / "x", bytes(100))
    with opened(d / "x", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, 0)
    memory[0:5] = b"later"
    assert read(d / "x")[:5] == b"later"
    os.rename(d / "x", d / "y")
    memory[5:10] = b"still"
    memory.close()
    assert read(d / "y")[:10] == b"laterstill"


@check()
def check_map_of_an_unlinked_file(d: Path) -> None:
    write(d / "x", b"content" + bytes(5000))
    with opened(d / "x", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
        os.unlink(d / "x")
        memory[4000:4003] = b"new"
        memory.flush()
        assert (memory[:7], os.pread(fd, 3, 4000)) == (b"content", b"new")


@check()
def check_private_map_keeps_its_writes(d: Path) -> None:
    write(d / "x", b"original" + bytes(5000))
    with opened(d / "x", os.O_RDONLY) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as memory:
        memory[:7] = b"private"
        assert os.pread(fd, 8, 0) == b"original"
    assert read(d / "x")[:8] == b"original"


@check()
def check_tail_of_the_last_page_is_zero_and_not_written(d: Path) -> None:
    write(d / "x", b"x" * 100)
    with opened(d / "x", os.O_RDWR) as fd:
        with mmap.mmap(fd, 4096) if os.fstat(fd).st_size >= 4096 else mmap.mmap(fd, 0) as memory:
            memory[:1] = b"y"
        os.ftruncate(fd, 4096)
        assert os.pread(fd, 4096, 0) == b"y" + b"x" * 99 + bytes(3996)


@check()
def check_map_write_moves_the_times_once_written_back(d: Path) -> None:
    write(d / "x", bytes(5000))
    with opened(d / "x", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory, times_of(fd, "mc"):
        memory[:4] = b"time"
        memory.flush()
        os.fsync(fd)


@check()
def check_map_between_processes(d: Path) -> None:
    write(d / "x", bytes(4096 * 4))

    def work(me: int) -> None:
        with opened(d / "x", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
            for place in range(me, 4096 * 4, 3):
                memory[place] = me + 1

    together(3, work)
    assert read(d / "x") == bytes(place % 3 + 1 for place in range(4096 * 4))


@check()
def check_map_permissions(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDONLY) as fd:
        refused(errno.EACCES, mmap.mmap, fd, 0, access=mmap.ACCESS_WRITE)
        mmap.mmap(fd, 0, access=mmap.ACCESS_READ).close()
    with opened(d / "x", os.O_WRONLY) as fd:
        refused(errno.EACCES, mmap.mmap, fd, 0, access=mmap.ACCESS_READ)


# Two processes


@check()
def check_what_one_process_wrote_another_reads(d: Path) -> None:
    write(d / "x", b"")
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()

    def echo() -> None:
        with opened(d / "x", os.O_RDONLY) as fd:
            for number in range(50):
                os.read(to_child, 1)
                assert os.pread(fd, 100, number * 7) == b"%06d\n" % number
                assert os.stat(d / "x").st_size == (number + 1) * 7
                os.write(from_child, b".")

    pid = in_child(echo)
    os.close(from_child)
    with opened(d / "x", os.O_WRONLY | os.O_APPEND) as fd:
        for number in range(50):
            os.write(fd, b"%06d\n" % number)
            os.write(from_parent, b".")
            assert os.read(to_parent, 1) == b"."
    for fd in (to_child, from_parent, to_parent):
        os.close(fd)
    join(pid)


@check()
def check_writers_of_one_file_side_by_side(d: Path) -> None:
    write(d / "x", b"")

    def work(me: int) -> None:
        with opened(d / "x", os.O_WRONLY) as fd:
            for block in range(me, 120, 3):
                os.pwrite(fd, bytes([me + 1]) * 5000, block * 5000)

    together(3, work)
    assert read(d / "x") == b"".join(bytes([block % 3 + 1]) * 5000 for block in range(120))


@check(kind=(FIFO, SOCKET))
def check_special_files_hold_nothing(d: Path, kind: str) -> None:
    make(d / "x", kind)
    info = os.lstat(d / "x")
    assert (info.st_size, info.st_blocks) == (0, 0)
    assert stat.S_IFMT(info.st_mode) in (stat.S_IFIFO, stat.S_IFSOCK)
