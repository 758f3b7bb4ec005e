"""open and its flags."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

from support.users import ALICE, BOB, acting_as, together

from .kit import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    KINDS,
    NOT_DIRECTORY,
    NOT_SYMLINK,
    REGULAR,
    SOCKET,
    SYMLINK,
    TICK,
    check,
    make,
    mode_of,
    opened,
    read,
    refused,
    same,
    times_of,
    write,
)

O_TMPFILE = getattr(os, "O_TMPFILE", 0)


@check(kind=KINDS)
def check_excl_refuses_whatever_is_there(d: Path, kind: str) -> None:
    before = os.lstat(make(d / "x", kind))
    refused(errno.EEXIST, os.open, d / "x", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    refused(errno.EEXIST, os.open, d / "x", os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_TRUNC)
    same(before, os.lstat(d / "x"))


@check()
def check_creat_through_a_dangling_symlink_makes_the_target(d: Path) -> None:
    (d / "sub").mkdir()
    (d / "s").symlink_to("sub/x")
    write(d / "s", b"through")
    assert read(d / "sub" / "x") == b"through"
    assert os.readlink(d / "s") == "sub/x"


@check()
def check_creat_leaves_an_existing_file_alone(d: Path) -> None:
    write(d / "x")
    os.chmod(d / "x", 0o640)
    with times_of(d, ""), times_of(d / "x", ""):
        os.close(os.open(d / "x", os.O_CREAT | os.O_RDWR, 0o777))
    assert (mode_of(d / "x"), read(d / "x")) == (0o640, b"data")


@check(mode=(0o000, 0o200, 0o400, 0o444))
def check_new_file_is_open_whatever_its_mode(d: Path, mode: int) -> None:
    with opened(d / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
        assert os.write(fd, b"works") == 5
        assert os.pread(fd, 5, 0) == b"works"
    assert mode_of(d / "x") == mode


@check(root=True)
def check_new_file_is_open_for_an_ordinary_user_whatever_its_mode(d: Path) -> None:
    d.chmod(0o777)
    with acting_as(ALICE):
        with opened(d / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0) as fd:
            os.write(fd, b"works")
            assert os.pread(fd, 5, 0) == b"works"
        refused(errno.EACCES, os.open, d / "x", os.O_RDONLY)
        refused(errno.EACCES, os.open, d / "x", os.O_CREAT | os.O_WRONLY)


@check(size=(0, 1, 5000, 200_000))
def check_trunc_empties_the_file(d: Path, size: int) -> None:
    write(d / "x", b"x" * size)
    before = os.stat(d / "x")
    with opened(d / "x", os.O_RDONLY) as reader:
        with times_of(d / "x", "mc"), times_of(d, ""):
            os.close(os.open(d / "x", os.O_WRONLY | os.O_TRUNC))
        assert os.read(reader, 10) == b""
    same(before, os.stat(d / "x"), "size", "mtime_ns", "ctime_ns")
    assert os.stat(d / "x").st_size == 0


@check()
def check_trunc_works_on_a_read_only_open(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0


@check()
def check_append_writes_at_the_end(d: Path) -> None:
    with (
        opened(d / "x", os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd,
        opened(d / "x", os.O_WRONLY) as other,
    ):
        os.write(fd, b"one")
        os.write(other, b"ONE and more")
        os.write(fd, b"|two")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"|three")
        os.pwrite(fd, b"|four", 2)  # Linux appends in spite of the offset
        os.ftruncate(fd, 5)
        os.write(fd, b"|five")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10
        assert os.pread(fd, 100, 0) == b"ONE a|five"
    assert read(d / "x") == b"ONE a|five"


@check(writers=(2, 4))
def check_concurrent_appends_lose_nothing(d: Path, writers: int) -> None:
    def work(me: int) -> None:
        with opened(d / "x", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(100):
                line = b"%d %03d " % (me, number)
                os.write(fd, line + b"." * (50 + 37 * number % 300) + b"\n")

    together(writers, work)
    lines = read(d / "x").splitlines()
    assert len(lines) == 100 * writers
    for me in range(writers):
        mine = [line for line in lines if line.startswith(b"%d " % me)]
        assert [int(line[2:5]) for line in mine] == list(range(100))


@check()
def check_nofollow(d: Path) -> None:
    write(d / "x")
    (d / "s").symlink_to("x")
    (d / "dir").mkdir()
    (d / "dirlink").symlink_to("dir")
    refused(errno.ELOOP, os.open, d / "s", os.O_RDONLY | os.O_NOFOLLOW)
    refused(errno.ELOOP, os.open, d / "s", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW)
    refused(
        (errno.ENOTDIR, errno.ELOOP), os.open, d / "dirlink", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY
    )
    os.close(os.open(d / "x", os.O_RDONLY | os.O_NOFOLLOW))
    write(d / "dirlink" / "y")
    os.close(os.open(d / "dirlink" / "y", os.O_RDONLY | os.O_NOFOLLOW))


@check(kind=NOT_DIRECTORY)
def check_directory_flag(d: Path, kind: str) -> None:
    make(d / "x", kind)
    refused((errno.ENOTDIR, errno.ENOENT), os.open, d / "x", os.O_RDONLY | os.O_DIRECTORY)
    os.close(os.open(d, os.O_RDONLY | os.O_DIRECTORY))


@check()
def check_directories_are_not_written(d: Path) -> None:
    (d / "x").mkdir()
    for flags in (
        os.O_WRONLY,
        os.O_RDWR,
        os.O_RDONLY | os.O_TRUNC,
        os.O_CREAT | os.O_RDONLY,
        os.O_WRONLY | os.O_APPEND,
    ):
        refused(errno.EISDIR, os.open, d / "x", flags)
    with opened(d / "x", os.O_RDONLY) as fd:
        refused(errno.EISDIR, os.read, fd, 1)
        refused((errno.EBADF, errno.EISDIR), os.write, fd, b"x")
        refused((errno.EINVAL, errno.EBADF), os.ftruncate, fd, 0)


@check()
def check_special_files_without_a_peer(d: Path) -> None:
    make(d / "f", FIFO)
    refused(errno.ENXIO, os.open, d / "f", os.O_WRONLY | os.O_NONBLOCK)
    os.close(os.open(d / "f", os.O_RDONLY | os.O_NONBLOCK))
    make(d / "s", SOCKET)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        refused(errno.ENXIO, os.open, d / "s", flags)


@check(kind=(BLOCK, CHAR))
def check_device_that_does_not_exist(d: Path, kind: str) -> None:
    """Number 240 is free for local use: opening it finds no driver, or no devices are allowed here."""
    make(d / "x", kind)
    refused((errno.ENXIO, errno.EACCES, errno.ENODEV), os.open, d / "x", os.O_RDONLY)


@check()
def check_flags_that_contradict_the_descriptor(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDONLY) as fd:
        refused(errno.EBADF, os.write, fd, b"x")
        refused((errno.EINVAL, errno.EBADF), os.ftruncate, fd, 0)
    with opened(d / "x", os.O_WRONLY) as fd:
        refused(errno.EBADF, os.read, fd, 1)


@check(kind=NOT_SYMLINK)
def check_path_descriptor(d: Path, kind: str) -> None:
    info = os.lstat(make(d / "x", kind))
    with opened(d / "x", os.O_PATH) as fd:
        assert os.fstat(fd).st_ino == info.st_ino
        refused(errno.EBADF, os.read, fd, 1)
        refused(errno.EBADF, os.fchmod, fd, 0o600)
        assert os.stat(f"/proc/self/fd/{fd}").st_ino == info.st_ino


@check()
def check_path_descriptor_of_a_symlink(d: Path) -> None:
    (d / "s").symlink_to("x")
    with opened(d / "s", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "x"


def open_if_offered(path: Path, flags: int, refusals: tuple[int, ...]) -> int | None:
    """A descriptor, or None where the filesystem declines with one of *refusals*."""
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        if error.errno in refusals:
            return None
        raise


@check()
def check_tmpfile(d: Path) -> None:
    """A file without a name, linked in later, where the filesystem offers it; else no trace."""
    fd = open_if_offered(d, O_TMPFILE | os.O_RDWR, (errno.EOPNOTSUPP, errno.EISDIR))
    if fd is not None:
        os.write(fd, b"nameless")
        assert os.listdir(d) == []
        here = os.open(d, os.O_RDONLY)
        os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=here, follow_symlinks=True)
        os.close(here)
        os.close(fd)
        assert read(d / "named") == b"nameless"
        os.unlink(d / "named")
    assert os.listdir(d) == []


@check()
def check_direct_io(d: Path) -> None:
    """O_DIRECT works with aligned buffers, or is refused with EINVAL at open."""
    data = mmap.mmap(-1, 8192)
    data[:] = b"d" * 8192
    fd = open_if_offered(d / "x", os.O_CREAT | os.O_RDWR | os.O_DIRECT, (errno.EINVAL,))
    if fd is None:
        return
    with opened(d / "x", os.O_RDWR) as plain:
        assert os.write(fd, data) == 8192
        assert os.pread(plain, 8192, 0) == b"d" * 8192
        os.pwrite(plain, b"plain", 4096)
        assert os.preadv(fd, [data], 0) == 8192
        assert data[4096:4102] == b"plaind"
        assert os.preadv(fd, [data], 8192) == 0
    os.close(fd)
    assert os.stat(d / "x").st_size == 8192


@check(flags=(os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NOCTTY, os.O_CLOEXEC, os.O_NONBLOCK))
def check_flags_without_visible_effect(d: Path, flags: int) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR | flags) as fd:
        os.write(fd, b"data")
        os.fsync(fd)
        os.fdatasync(fd)
        assert os.pread(fd, 10, 0) == b"data"
    assert read(d / "x") == b"data"


@check(root=True)
def check_noatime_is_for_the_owner(d: Path) -> None:
    write(d / "x")
    with acting_as(ALICE):
        refused(errno.EPERM, os.open, d / "x", os.O_RDONLY | os.O_NOATIME)


@check()
def check_fsync_of_a_directory(d: Path) -> None:
    (d / "sub").mkdir()
    write(d / "sub" / "x")
    with opened(d / "sub", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)


@check()
def check_many_descriptors_of_one_file(d: Path) -> None:
    write(d / "x", b"")
    fds = [os.open(d / "x", os.O_RDWR) for _ in range(200)]
    for number, fd in enumerate(fds):
        os.pwrite(fd, bytes([number]), number)
    assert os.pread(fds[0], 300, 0) == bytes(range(200))
    for fd in fds:
        os.close(fd)
    assert read(d / "x") == bytes(range(200))


@check()
def check_positions_of_descriptors(d: Path) -> None:
    """Opened twice: two positions. Duplicated: one."""
    write(d / "x", b"abcdef")
    with opened(d / "x", os.O_RDONLY) as one, opened(d / "x", os.O_RDONLY) as two:
        assert os.read(one, 2) == b"ab"
        assert os.read(two, 3) == b"abc"
        three = os.dup(one)
        assert os.read(three, 2) == b"cd"
        assert os.read(one, 2) == b"ef"
        os.close(three)
        refused(errno.EINVAL, os.lseek, one, -1, os.SEEK_SET)
        assert os.lseek(one, -2, os.SEEK_END) == 4
        assert os.lseek(one, 100, os.SEEK_CUR) == 104
        assert os.read(one, 1) == b""


def _program(d: Path) -> Path:
    source = shutil.which("sleep")
    assert source
    shutil.copy(source, d / "program")
    (d / "program").chmod(0o755)
    return d / "program"


@check()
def check_running_program_is_busy(d: Path) -> None:
    program = _program(d)
    with subprocess.Popen([program, "30"]) as child:
        try:
            deadline = time.monotonic() + 5
            while os.readlink(f"/proc/{child.pid}/exe") != os.fspath(program) and time.monotonic() < deadline:
                time.sleep(0.005)
            refused(errno.ETXTBSY, os.open, program, os.O_WRONLY)
            refused(errno.ETXTBSY, os.open, program, os.O_RDWR | os.O_TRUNC)
            refused(errno.ETXTBSY, os.truncate, program, 0)
            os.rename(program, d / "renamed")
            os.unlink(d / "renamed")
            assert child.poll() is None
        finally:
            child.send_signal(signal.SIGTERM)


@check()
def check_program_that_is_written_does_not_run(d: Path) -> None:
    program = _program(d)
    with opened(program, os.O_WRONLY):
        refused(errno.ETXTBSY, os.posix_spawn, program, ["program", "0"], {})
    assert subprocess.run([program, "0"], check=False).returncode == 0


@check(root=True)
def check_programs_run_by_their_mode(d: Path) -> None:
    program = _program(d)
    program.chmod(0o644)
    refused(errno.EACCES, os.posix_spawn, program, ["program", "0"], {})
    program.chmod(0o711)
    with acting_as(BOB):
        assert subprocess.run([program, "0"], check=False).returncode == 0
    write(d / "script", b"#!/bin/sh\necho from a script\n")
    (d / "script").chmod(0o755)
    assert subprocess.run([d / "script"], check=False, capture_output=True).stdout == b"from a script\n"


@check(kind=(REGULAR, DIRECTORY, SYMLINK, FIFO))
def check_fifo_and_others_are_not_opened_by_looking(d: Path, kind: str) -> None:
    """stat of whatever is there never blocks and never changes a time."""
    make(d / "x", kind)
    time.sleep(TICK)
    with times_of(d / "x", ""), times_of(d, ""):
        os.lstat(d / "x")
        os.access(d / "x", os.F_OK)
        os.listdir(d)
        os.listxattr(d / "x", follow_symlinks=False)


@check()
def check_parents_descriptor_still_works_after_a_move(d: Path) -> None:
    (d / "a").mkdir()
    with opened(d / "a", os.O_RDONLY) as fd:
        os.rename(d / "a", d / "b")
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.rename("x", "y", src_dir_fd=fd, dst_dir_fd=fd)
        assert os.stat("y", dir_fd=fd).st_size == 0
        os.symlink("y", "s", dir_fd=fd)
        os.unlink("y", dir_fd=fd)
    assert os.listdir(d / "b") == ["s"]
