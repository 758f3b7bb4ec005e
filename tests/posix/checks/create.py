"""mkdir, mkfifo, mknod, symlink, bind and O_CREAT: what a new file is like, and what prevents it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.users import ALICE, BOB, CAROL, acting_as, together

from .kit import (
    BLOCK,
    CHAR,
    DEVICE,
    DIRECTORY,
    FIFO,
    KINDS,
    REGULAR,
    S_IFMT,
    SOCKET,
    SYMLINK,
    TICK,
    check,
    make,
    mode_of,
    opened,
    refused,
    same,
    times_of,
)


@dataclass(frozen=True)
class Maker:
    """One way to make a file: with a mode, which the umask then cuts."""

    name: str
    kind: str
    call: Callable[[Path, int], object]
    root: bool = False


def _open(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, mode))


def _bind(path: Path, mode: int) -> None:
    """bind(2) of a local socket; its mode is 0777 without the umask."""
    with opened(path.parent, os.O_PATH) as fd, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{fd}/{path.name}")


MAKERS = (
    Maker("open", REGULAR, _open),
    Maker("mkdir", DIRECTORY, os.mkdir),
    Maker("mkfifo", FIFO, os.mkfifo),
    Maker("mknod_regular", REGULAR, lambda p, m: os.mknod(p, stat.S_IFREG | m)),
    Maker("mknod_fifo", FIFO, lambda p, m: os.mknod(p, stat.S_IFIFO | m)),
    Maker("mknod_socket", SOCKET, lambda p, m: os.mknod(p, stat.S_IFSOCK | m)),
    Maker("mknod_block", BLOCK, lambda p, m: os.mknod(p, stat.S_IFBLK | m, DEVICE), True),
    Maker("mknod_char", CHAR, lambda p, m: os.mknod(p, stat.S_IFCHR | m, DEVICE), True),
    Maker("symlink", SYMLINK, lambda p, m: os.symlink("target", p)),
    Maker("bind", SOCKET, _bind),
)
WITH_MODE = tuple(maker for maker in MAKERS if maker.name not in ("symlink", "bind"))


@check(
    maker=WITH_MODE,
    mode=(0o000, 0o151, 0o345, 0o644, 0o755, 0o777),
    umask=(0o000, 0o022, 0o070, 0o345, 0o501),
    root=True,
)
def check_mode_is_cut_by_the_umask(d: Path, maker: Maker, mode: int, umask: int) -> None:
    os.umask(umask)
    maker.call(d / "x", mode)
    os.umask(0o022)
    info = os.lstat(d / "x")
    assert stat.S_IMODE(info.st_mode) == mode & ~umask
    assert stat.S_IFMT(info.st_mode) == S_IFMT[maker.kind]
    assert info.st_rdev == (DEVICE if maker.kind in (BLOCK, CHAR) else 0)
    assert info.st_nlink == (2 if maker.kind == DIRECTORY else 1)


@check(umask=(0o000, 0o022, 0o077))
def check_bound_socket_has_the_mode_of_the_umask(d: Path, umask: int) -> None:
    os.umask(umask)
    _bind(d / "x", 0)
    os.umask(0o022)
    assert os.lstat(d / "x").st_mode == stat.S_IFSOCK | 0o777 & ~umask


@check(bits=(stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX, 0o7000))
def check_set_id_bits_at_creation(d: Path, bits: int) -> None:
    """open and mknod take the set-id bits; mkdir(2) on Linux takes the sticky bit and ignores the others."""
    _open(d / "file", bits | 0o755)
    assert mode_of(d / "file") == bits | 0o755
    os.mkfifo(d / "fifo", bits | 0o755)
    assert mode_of(d / "fifo") == bits | 0o755
    os.mkdir(d / "dir", bits | 0o755)
    assert mode_of(d / "dir") == bits & stat.S_ISVTX | 0o755


@check(maker=MAKERS, root=True)
def check_owner_is_the_caller(d: Path, maker: Maker) -> None:
    d.chmod(0o777)
    if maker.root:
        maker.call(d / "x", 0o644)
        assert (os.lstat(d / "x").st_uid, os.lstat(d / "x").st_gid) == (0, 0)
        return
    for uid, gid in ((ALICE, ALICE), (ALICE, BOB), (BOB, CAROL)):
        with acting_as(uid, gid):
            maker.call(d / f"{uid}-{gid}", 0o644)
        info = os.lstat(d / f"{uid}-{gid}")
        assert (info.st_uid, info.st_gid) == (uid, gid)


@check(maker=MAKERS, root=True)
def check_group_comes_from_a_set_gid_directory(d: Path, maker: Maker) -> None:
    os.chown(d, CAROL, BOB)
    d.chmod(0o2777)
    maker.call(d / "root", 0o755)
    made = [d / "root"]
    if not maker.root:
        with acting_as(ALICE):
            maker.call(d / "alice", 0o755)
        made.append(d / "alice")
    for path in made:
        info = os.lstat(path)
        assert info.st_gid == BOB
        assert bool(info.st_mode & stat.S_ISGID) == (maker.kind == DIRECTORY)


@check(root=True)
def check_set_gid_spreads_down_a_tree(d: Path) -> None:
    os.chown(d, CAROL, BOB)
    d.chmod(0o2777)
    os.umask(0)
    with acting_as(ALICE):
        (d / "a" / "b" / "c").mkdir(parents=True)
        _open(d / "a" / "b" / "c" / "f", 0o644)
    assert mode_of(d / "a" / "b" / "c") == 0o2777
    assert os.lstat(d / "a" / "b" / "c" / "f").st_gid == BOB


@check(maker=("open", "mknod_regular"), mode=(0o2755, 0o2745, 0o6755, 0o2766), root=True)
def check_set_gid_is_refused_to_a_stranger_of_the_group(d: Path, maker: str, mode: int) -> None:
    """A set-gid program of the directory's group cannot be made by who is not in that group."""
    os.chown(d, CAROL, BOB)
    d.chmod(0o2777)
    call = next(each for each in MAKERS if each.name == maker).call
    os.umask(0)
    with acting_as(ALICE):
        call(d / "stranger", mode)
    with acting_as(ALICE, groups=[BOB]):
        call(d / "member", mode)
    call(d / "root", mode)
    kept = mode if not mode & stat.S_IXGRP else mode & ~stat.S_ISGID
    assert mode_of(d / "stranger") == kept
    assert mode_of(d / "member") == mode
    assert mode_of(d / "root") == mode


@check(maker=MAKERS)
def check_times_at_creation(d: Path, maker: Maker) -> None:
    os.utime(d, (1, 1))
    before = time.time_ns()
    time.sleep(TICK)
    with times_of(d, "mc"):
        maker.call(d / "x", 0o644)
    time.sleep(TICK)
    info = os.lstat(d / "x")
    for value in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns, os.lstat(d).st_mtime_ns):
        assert before <= value <= time.time_ns()
    assert os.lstat(d).st_mtime_ns == os.lstat(d).st_ctime_ns


@check(maker=MAKERS, kind=KINDS)
def check_existing_name(d: Path, maker: Maker, kind: str) -> None:
    before = os.lstat(make(d / "x", kind))
    code = errno.EADDRINUSE if maker.name == "bind" else errno.EEXIST
    with times_of(d, ""):
        refused(code, maker.call, d / "x", 0o600)
    same(before, os.lstat(d / "x"))


@check(maker=MAKERS)
def check_existing_name_beside_a_symlink_to_nothing(d: Path, maker: Maker) -> None:
    (d / "x").symlink_to("nothing")
    refused(errno.EADDRINUSE if maker.name == "bind" else errno.EEXIST, maker.call, d / "x", 0o600)
    assert os.listdir(d) == ["x"]


@check(maker=MAKERS)
def check_parent_was_removed(d: Path, maker: Maker) -> None:
    (d / "gone").mkdir()
    with opened(d / "gone", os.O_RDONLY) as fd:
        (d / "gone").rmdir()
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        refused(errno.ENOENT, maker.call, Path(f"/proc/self/fd/{fd}/x"), 0o644)


@check(kind=(BLOCK, CHAR), device=((0, 0), (1, 3), (240, 255), (8, 256), (4095, 1048575)))
def check_device_numbers(d: Path, kind: str, device: tuple[int, int]) -> None:
    os.mknod(d / "x", S_IFMT[kind] | 0o600, os.makedev(*device))
    info = os.lstat(d / "x")
    assert (os.major(info.st_rdev), os.minor(info.st_rdev)) == device
    assert stat.S_IFMT(info.st_mode) == S_IFMT[kind]
    assert info.st_size == 0


@check(kind=(BLOCK, CHAR), root=True)
def check_devices_are_for_root(d: Path, kind: str) -> None:
    d.chmod(0o777)
    with acting_as(ALICE):
        refused(errno.EPERM, os.mknod, d / "x", S_IFMT[kind] | 0o600, DEVICE)
    assert os.listdir(d) == []


@check()
def check_mknod_of_no_kind_and_of_wrong_kinds(d: Path) -> None:
    os.mknod(d / "plain", 0o640)
    assert os.lstat(d / "plain").st_mode == stat.S_IFREG | 0o640
    refused(errno.EPERM, os.mknod, d / "x", stat.S_IFDIR | 0o755)
    refused((errno.EINVAL, errno.EPERM), os.mknod, d / "x", stat.S_IFLNK | 0o755)
    refused(errno.EINVAL, os.mknod, d / "x", 0o170000 | 0o755)


@check(count=(0, 1, 5))
def check_links_of_a_directory_count_its_subdirectories(d: Path, count: int) -> None:
    for number in range(count):
        (d / str(number)).mkdir()
        make(d / f"file{number}", REGULAR)
    assert os.stat(d).st_nlink == 2 + count
    if count:
        (d / "0").rmdir()
        assert os.stat(d).st_nlink == 1 + count


@check(maker=tuple(maker for maker in MAKERS if not maker.root))
def check_only_one_of_many_makes_it(d: Path, maker: Maker) -> None:
    """Several processes make the same names: each name is made once, and the others see EEXIST."""

    def work(me: int) -> None:
        with open(d / f"log{me}", "w") as log:
            for number in range(25):
                try:
                    maker.call(d / f"n{number}", 0o644)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.EADDRINUSE):
                        raise
                else:
                    log.write(f"{number}\n")

    together(3, work)
    made = [line for me in range(3) for line in (d / f"log{me}").read_text().split()]
    assert sorted(made, key=int) == [str(number) for number in range(25)]


@check()
def check_socket_accepts_connections(d: Path) -> None:
    with (
        opened(d, os.O_PATH) as fd,
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        name = f"/proc/self/fd/{fd}/s"
        server.bind(name)
        server.listen()
        client.connect(name)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
    with socket.socket(socket.AF_UNIX) as late, opened(d, os.O_PATH) as fd:
        refused(errno.ECONNREFUSED, late.connect, f"/proc/self/fd/{fd}/s")


@check()
def check_fifo_carries_data(d: Path) -> None:
    os.mkfifo(d / "f")
    with opened(d / "f", os.O_RDONLY | os.O_NONBLOCK) as reader, opened(d / "f", os.O_WRONLY) as writer:
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
    assert os.lstat(d / "f").st_size == 0
