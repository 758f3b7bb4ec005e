"""Extended attributes: namespaces, sizes, flags, who may, and what a listing shows."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from support.syscalls import getxattr_size, listxattr_size
from support.users import ALICE, BOB, acting_as, is_root

from .kit import (
    DIRECTORY,
    FIFO,
    KINDS,
    NOT_SYMLINK,
    REGULAR,
    SYMLINK,
    check,
    make,
    opened,
    read,
    refused,
    same,
    skip,
    times_of,
    write,
)

SPACES = ("user.", "trusted.", "security.")


def names(path: Path | int) -> list[str]:
    """What a listing shows, without what the filesystem itself tells."""
    follow = isinstance(path, int)
    listed = os.listxattr(path) if follow else os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in listed if not name.startswith("user.caiafs."))


def need(space: str) -> None:
    if space != "user." and not is_root():
        skip(f"{space}* is for root")


def need_user(d: Path) -> None:
    write(d / ".probe")
    try:
        os.setxattr(d / ".probe", "user.probe", b"")
    except OSError as error:
        skip(f"no user.* attributes here: {error.strerror}")
    os.unlink(d / ".probe")


@check(kind=(REGULAR, DIRECTORY), space=SPACES)
def check_attribute_comes_back(d: Path, kind: str, space: str) -> None:
    need(space)
    need_user(d)
    before = os.lstat(make(d / "x", kind))
    with times_of(d / "x", "c"), times_of(d, ""):
        os.setxattr(d / "x", space + "one", b"1")
    same(before, os.lstat(d / "x"), "ctime_ns")
    os.setxattr(d / "x", space + "two", b"")
    os.setxattr(d / "x", space + "three", bytes(range(256)))
    assert names(d / "x") == sorted(space + name for name in ("one", "two", "three"))
    assert os.getxattr(d / "x", space + "one") == b"1"
    assert os.getxattr(d / "x", space + "two") == b""
    assert os.getxattr(d / "x", space + "three") == bytes(range(256))
    os.setxattr(d / "x", space + "one", b"longer value")
    assert os.getxattr(d / "x", space + "one") == b"longer value"
    with times_of(d / "x", "c"):
        os.removexattr(d / "x", space + "one")
    refused(errno.ENODATA, os.getxattr, d / "x", space + "one")
    refused(errno.ENODATA, os.removexattr, d / "x", space + "one")
    assert names(d / "x") == sorted(space + name for name in ("two", "three"))


@check(kind=KINDS, space=("trusted.", "security."))
def check_privileged_attributes_on_every_kind(d: Path, kind: str, space: str) -> None:
    need(space)
    make(d / "x", kind)
    os.setxattr(d / "x", space + "one", b"1", follow_symlinks=False)
    assert os.getxattr(d / "x", space + "one", follow_symlinks=False) == b"1"
    assert names(d / "x") == [space + "one"]
    os.removexattr(d / "x", space + "one", follow_symlinks=False)
    assert names(d / "x") == []


@check(kind=tuple(kind for kind in KINDS if kind not in (REGULAR, DIRECTORY)))
def check_user_attributes_are_for_files_and_directories(d: Path, kind: str) -> None:
    make(d / "x", kind)
    refused(errno.EPERM, os.setxattr, d / "x", "user.a", b"1", follow_symlinks=False)
    refused(errno.ENODATA, os.getxattr, d / "x", "user.a", follow_symlinks=False)


@check()
def check_attributes_follow_a_symlink_when_asked(d: Path) -> None:
    need_user(d)
    write(d / "x")
    make(d / "s", SYMLINK)
    os.unlink(d / "s")
    (d / "s").symlink_to("x")
    os.setxattr(d / "s", "user.a", b"1")
    assert os.getxattr(d / "x", "user.a") == b"1"
    assert names(d / "s") == []


@check()
def check_create_and_replace(d: Path) -> None:
    need_user(d)
    write(d / "x")
    refused(errno.ENODATA, os.setxattr, d / "x", "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(d / "x", "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, d / "x", "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(d / "x", "user.a") == b"1"
    os.setxattr(d / "x", "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(d / "x", "user.a") == b"3"
    refused(errno.EINVAL, os.setxattr, d / "x", "user.a", b"3", 64)


@check()
def check_sizes_and_erange(d: Path) -> None:
    need_user(d)
    write(d / "x")
    os.setxattr(d / "x", "user.ten", b"0123456789")
    os.setxattr(d / "x", "user.empty", b"")
    assert getxattr_size(d / "x", b"user.ten", 0) == 10
    assert getxattr_size(d / "x", b"user.ten", 10) == 10
    assert getxattr_size(d / "x", b"user.ten", 100) == 10
    refused(errno.ERANGE, getxattr_size, d / "x", b"user.ten", 9)
    refused(errno.ERANGE, getxattr_size, d / "x", b"user.ten", 1)
    assert getxattr_size(d / "x", b"user.empty", 0) == 0
    assert getxattr_size(d / "x", b"user.empty", 5) == 0
    total = listxattr_size(d / "x", 0)
    assert total >= len("user.ten") + len("user.empty") + 2
    assert listxattr_size(d / "x", total) == total
    refused(errno.ERANGE, listxattr_size, d / "x", total - 1)
    refused(errno.ERANGE, listxattr_size, d / "x", 1)


@check(size=(1, 255, 4096, 30_000, 65_536))
def check_value_of_any_size(d: Path, size: int) -> None:
    need_user(d)
    write(d / "x")
    value = os.urandom(size)
    os.setxattr(d / "x", "user.big", value)
    assert os.getxattr(d / "x", "user.big") == value
    assert getxattr_size(d / "x", b"user.big", 0) == size


@check()
def check_limits(d: Path) -> None:
    need_user(d)
    write(d / "x")
    refused((errno.E2BIG, errno.ENOSPC), os.setxattr, d / "x", "user.big", bytes(65_537))
    longest = "user." + "n" * 250
    os.setxattr(d / "x", longest, b"1")
    assert names(d / "x") == [longest]
    refused((errno.ERANGE, errno.ENAMETOOLONG), os.setxattr, d / "x", longest + "n", b"1")
    refused((errno.ERANGE, errno.EINVAL), os.setxattr, d / "x", "", b"1")


@check(name=("plain", "foreign.name", "system.unknown", "user", "user."))
def check_names_outside_the_namespaces(d: Path, name: str) -> None:
    write(d / "x")
    codes = (errno.EOPNOTSUPP, errno.EINVAL)
    refused(codes, os.setxattr, d / "x", name, b"1")
    refused((*codes, errno.ENODATA), os.getxattr, d / "x", name)
    assert names(d / "x") == []


@check()
def check_many_attributes(d: Path) -> None:
    need_user(d)
    write(d / "x")
    wanted = {f"user.name{number:03}": b"%d" % number * 20 for number in range(200)}
    for name, value in wanted.items():
        os.setxattr(d / "x", name, value)
    assert names(d / "x") == sorted(wanted)
    assert all(os.getxattr(d / "x", name) == value for name, value in wanted.items())
    for name in list(wanted)[::2]:
        os.removexattr(d / "x", name)
    assert names(d / "x") == sorted(list(wanted)[1::2])


@check()
def check_names_are_bytes(d: Path) -> None:
    need_user(d)
    write(d / "x")
    name = b"user.\xff\xfe \n" + bytes(range(1, 32))
    os.setxattr(d / "x", os.fsdecode(name), b"1")
    assert [os.fsencode(each) for each in names(d / "x")] == [name]


@check()
def check_attributes_through_descriptors_and_links(d: Path) -> None:
    need_user(d)
    write(d / "x")
    os.link(d / "x", d / "y")
    with opened(d / "x", os.O_RDONLY) as fd:
        os.setxattr(fd, "user.a", b"1")
        os.rename(d / "x", d / "z")
        assert os.getxattr(d / "y", "user.a") == b"1"
        os.unlink(d / "y")
        os.unlink(d / "z")
        assert names(fd) == ["user.a"]
        os.removexattr(fd, "user.a")
        assert names(fd) == []


@check(kind=(REGULAR, DIRECTORY), root=True)
def check_who_may_use_user_attributes(d: Path, kind: str) -> None:
    need_user(d)
    make(d / "x", kind, 0o704)
    os.chown(d / "x", ALICE, ALICE)
    with acting_as(ALICE):
        os.setxattr(d / "x", "user.a", b"1")
    with acting_as(BOB):
        assert os.getxattr(d / "x", "user.a") == b"1"
        refused(errno.EACCES, os.setxattr, d / "x", "user.a", b"2")
        refused(errno.EACCES, os.removexattr, d / "x", "user.a")
    os.chmod(d / "x", 0o702)
    with acting_as(BOB):
        refused(errno.EACCES, os.getxattr, d / "x", "user.a")
        os.setxattr(d / "x", "user.a", b"2")
    os.chmod(d / "x", 0o1707)
    with acting_as(BOB):
        if kind == DIRECTORY:
            refused(errno.EPERM, os.setxattr, d / "x", "user.a", b"3")
        else:
            os.setxattr(d / "x", "user.a", b"3")


@check(kind=NOT_SYMLINK, root=True)
def check_trusted_attributes_are_hidden_from_users(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o666)
    os.chown(d / "x", ALICE, ALICE)
    os.setxattr(d / "x", "trusted.a", b"1")
    with acting_as(ALICE):
        assert names(d / "x") == []
        refused((errno.ENODATA, errno.EPERM), os.getxattr, d / "x", "trusted.a")
        refused(errno.EPERM, os.setxattr, d / "x", "trusted.b", b"1")
        refused(errno.EPERM, os.removexattr, d / "x", "trusted.a")
    assert names(d / "x") == ["trusted.a"]


@check(kind=(REGULAR, DIRECTORY, FIFO), root=True)
def check_security_attributes_are_read_by_users_and_set_by_root(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o666)
    os.chown(d / "x", ALICE, ALICE)
    os.setxattr(d / "x", "security.test", b"1")
    with acting_as(ALICE):
        assert os.getxattr(d / "x", "security.test") == b"1"
        assert names(d / "x") == ["security.test"]
        refused(errno.EPERM, os.setxattr, d / "x", "security.test", b"2")
        refused(errno.EPERM, os.removexattr, d / "x", "security.test")


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective


@check(root=True)
def check_file_capabilities_end_with_a_write(d: Path) -> None:
    for name, change in (
        ("write", lambda path: write(path)),
        ("truncate", lambda path: os.truncate(path, 1)),
        ("chown", lambda path: os.chown(path, 5, 5)),
    ):
        write(d / name)
        refused(errno.EINVAL, os.setxattr, d / name, "security.capability", b"nonsense")
        os.setxattr(d / name, "security.capability", CAPABILITY)
        assert os.getxattr(d / name, "security.capability") == CAPABILITY
        os.chmod(d / name, 0o755)
        read(d / name)
        assert names(d / name) == ["security.capability"]
        change(d / name)
        assert names(d / name) == [], name
