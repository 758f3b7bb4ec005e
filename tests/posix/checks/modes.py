"""chmod and chown: who may, what changes, and which bits the kernel takes away."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from support.users import ALICE, BOB, CAROL, acting_as

from .kit import (
    DIRECTORY,
    KINDS,
    NOT_DIRECTORY,
    NOT_SYMLINK,
    REGULAR,
    SYMLINK,
    check,
    make,
    mode_of,
    opened,
    refused,
    same,
    times_of,
    write,
)

MODES = (0o000, 0o111, 0o421, 0o644, 0o777, 0o1000, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777)


@check(kind=NOT_SYMLINK, mode=MODES)
def check_chmod_sets_the_bits(d: Path, kind: str, mode: int) -> None:
    before = os.lstat(make(d / "x", kind))
    with times_of(d / "x", "c"), times_of(d, ""):
        os.chmod(d / "x", mode)
    after = os.lstat(d / "x")
    assert stat.S_IMODE(after.st_mode) == mode
    assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode)
    same(before, after, "mode", "ctime_ns")


@check(kind=(REGULAR, DIRECTORY), mode=MODES)
def check_fchmod_sets_the_bits(d: Path, kind: str, mode: int) -> None:
    make(d / "x", kind)
    with opened(d / "x", os.O_RDONLY) as fd:
        with times_of(fd, "c"):
            os.fchmod(fd, mode)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == mode
    assert mode_of(d / "x") == mode


@check(kind=NOT_SYMLINK)
def check_chmod_follows_a_symlink(d: Path, kind: str) -> None:
    make(d / "x", kind)
    (d / "link").symlink_to("x")
    before = os.lstat(d / "link")
    os.chmod(d / "link", 0o604)
    assert mode_of(d / "x") == 0o604
    same(before, os.lstat(d / "link"))


@check(kind=NOT_SYMLINK, root=True)
def check_chmod_is_for_the_owner(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o644)
    os.chown(d / "x", ALICE, ALICE)
    with times_of(d / "x", ""), acting_as(BOB, ALICE):
        refused(errno.EPERM, os.chmod, d / "x", 0o777)
    with acting_as(ALICE):
        os.chmod(d / "x", 0o600)
    assert mode_of(d / "x") == 0o600
    os.chmod(d / "x", 0o640)


@check(kind=NOT_SYMLINK, root=True)
def check_chmod_by_who_is_not_in_the_group_drops_set_gid(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o755)
    os.chown(d / "x", ALICE, BOB)
    with acting_as(ALICE):
        os.chmod(d / "x", 0o2755)
    assert mode_of(d / "x") == 0o755
    with acting_as(ALICE, BOB):
        os.chmod(d / "x", 0o2755)
    assert mode_of(d / "x") == 0o2755
    with acting_as(ALICE, ALICE, groups=[CAROL, BOB]):
        os.chmod(d / "x", 0o2750)
    assert mode_of(d / "x") == 0o2750
    with acting_as(ALICE):
        os.chmod(d / "x", 0o2711)
    assert mode_of(d / "x") == 0o711


@check(kind=NOT_SYMLINK, root=True)
def check_owner_may_set_the_sticky_and_set_uid_bits(d: Path, kind: str) -> None:
    make(d / "x", kind)
    os.chown(d / "x", ALICE, ALICE)
    with acting_as(ALICE):
        os.chmod(d / "x", 0o1644)
        assert mode_of(d / "x") == 0o1644
        os.chmod(d / "x", 0o4644)
        assert mode_of(d / "x") == 0o4644


@check(root=True)
def check_permission_is_judged_at_open(d: Path) -> None:
    """A descriptor goes on working when the mode that allowed it is gone."""
    d.chmod(0o777)
    with acting_as(ALICE):
        write(d / "x")
        with opened(d / "x", os.O_RDWR) as fd:
            os.chmod(d / "x", 0)
            os.pwrite(fd, b"DA", 0)
            assert os.pread(fd, 4, 0) == b"DAta"
            os.ftruncate(fd, 2)
            refused(errno.EACCES, os.open, d / "x", os.O_RDONLY)
            refused(errno.EACCES, os.truncate, d / "x", 0)
            os.fchmod(fd, 0o600)
        assert (d / "x").read_bytes() == b"DA"


ACCESSES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)


@check(who=("owner", "group", "supplementary", "other"), bits=tuple(range(8)), root=True)
def check_permission_bits_of_a_file(d: Path, who: str, bits: int) -> None:
    """Exactly the bits of the caller's class count, also where another class would allow more."""
    write(d / "x")
    os.chown(d / "x", ALICE, CAROL)
    shift = {"owner": 6, "group": 3, "supplementary": 3, "other": 0}[who]
    os.chmod(d / "x", 0o777 & ~(7 << shift) | bits << shift)
    uid, gid, groups = {
        "owner": (ALICE, CAROL, [CAROL]),
        "group": (BOB, CAROL, []),
        "supplementary": (BOB, BOB, [CAROL]),
        "other": (BOB, BOB, []),
    }[who]
    with acting_as(uid, gid, groups):
        for flags, need in zip(ACCESSES, (4, 2, 6), strict=True):
            if bits & need == need:
                os.close(os.open(d / "x", flags))
            else:
                refused(errno.EACCES, os.open, d / "x", flags)
        for flag, need in ((os.R_OK, 4), (os.W_OK, 2), (os.X_OK, 1), (os.R_OK | os.W_OK, 6)):
            assert os.access(d / "x", flag) == (bits & need == need)
        if not bits & 2:
            refused(errno.EACCES, os.truncate, d / "x", 0)
            refused(errno.EACCES, os.open, d / "x", os.O_RDONLY | os.O_TRUNC)


@check(who=("owner", "group", "supplementary", "other"), bits=tuple(range(8)), root=True)
def check_permission_bits_of_a_directory(d: Path, who: str, bits: int) -> None:
    (d / "x").mkdir()
    write(d / "x" / "file")
    os.chown(d / "x", ALICE, CAROL)
    shift = {"owner": 6, "group": 3, "supplementary": 3, "other": 0}[who]
    os.chmod(d / "x", 0o777 & ~(7 << shift) | bits << shift)
    uid, gid, groups = {
        "owner": (ALICE, CAROL, [CAROL]),
        "group": (BOB, CAROL, []),
        "supplementary": (BOB, BOB, [CAROL]),
        "other": (BOB, BOB, []),
    }[who]

    def allowed(condition: int, call: Callable[..., Any], *arguments: Any) -> None:
        if condition:
            call(*arguments)
        else:
            refused(errno.EACCES, call, *arguments)

    with acting_as(uid, gid, groups):
        allowed(bits & 4, os.listdir, d / "x")
        allowed(bits & 1, os.stat, d / "x" / "file")
        allowed(bits & 3 == 3, os.mkdir, d / "x" / "new")
        allowed(bits & 3 == 3, os.unlink, d / "x" / "file")


@check(root=True)
def check_access_of_root(d: Path) -> None:
    """Root reads and writes anything, and executes what anybody may execute."""
    write(d / "x")
    os.chmod(d / "x", 0)
    assert os.access(d / "x", os.R_OK | os.W_OK)
    assert not os.access(d / "x", os.X_OK)
    os.chmod(d / "x", 0o010)
    assert os.access(d / "x", os.X_OK)
    os.close(os.open(d / "x", os.O_RDWR))


# chown


def _ways(kind: str) -> Iterable[tuple[str, Callable[[Path, int, int], None]]]:
    yield "lchown", os.lchown
    if kind != SYMLINK:
        yield "chown", os.chown
    if kind in (REGULAR, DIRECTORY):
        yield "fchown", _fchown


def _fchown(path: Path, uid: int, gid: int) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fchown(fd, uid, gid)


@check(kind=KINDS, root=True)
def check_chown_sets_owner_and_group(d: Path, kind: str) -> None:
    for name, call in _ways(kind):
        before = os.lstat(make(d / name, kind))
        for uid, gid, then in (
            (123, 456, (123, 456)),
            (ALICE, -1, (ALICE, 456)),
            (-1, BOB, (ALICE, BOB)),
            (0, 0, (0, 0)),
            (2**32 - 2, 2**32 - 2, (2**32 - 2, 2**32 - 2)),
        ):
            with times_of(d / name, "c"):
                call(d / name, uid, gid)
            info = os.lstat(d / name)
            assert (info.st_uid, info.st_gid) == then
        same(before, os.lstat(d / name), "uid", "gid", "ctime_ns")


@check(kind=NOT_SYMLINK, root=True)
def check_chown_follows_a_symlink_and_lchown_does_not(d: Path, kind: str) -> None:
    make(d / "x", kind)
    (d / "link").symlink_to("x")
    os.chown(d / "link", 1, 2)
    os.lchown(d / "link", 3, 4)
    assert (os.lstat(d / "x").st_uid, os.lstat(d / "x").st_gid) == (1, 2)
    assert (os.lstat(d / "link").st_uid, os.lstat(d / "link").st_gid) == (3, 4)


@check(kind=KINDS, root=True)
def check_chown_by_others(d: Path, kind: str) -> None:
    """An owner may change the group to one of his; nothing else is for anybody but root."""
    make(d / "x", kind)
    os.lchown(d / "x", ALICE, ALICE)
    with times_of(d / "x", ""):
        with acting_as(BOB, BOB, [ALICE, BOB, CAROL]):
            for uid, gid in ((BOB, -1), (-1, BOB), (BOB, BOB), (-1, CAROL), (ALICE, CAROL)):
                refused(errno.EPERM, os.lchown, d / "x", uid, gid)
        with acting_as(ALICE):
            for uid, gid in ((BOB, -1), (-1, BOB), (BOB, BOB), (0, -1)):
                refused(errno.EPERM, os.lchown, d / "x", uid, gid)
    with acting_as(ALICE, ALICE, [CAROL]):
        os.lchown(d / "x", -1, CAROL)
        assert os.lstat(d / "x").st_gid == CAROL
        os.lchown(d / "x", ALICE, ALICE)
        assert os.lstat(d / "x").st_gid == ALICE
    with acting_as(ALICE, BOB):
        os.lchown(d / "x", -1, BOB)
    assert (os.lstat(d / "x").st_uid, os.lstat(d / "x").st_gid) == (ALICE, BOB)


@check(
    kind=tuple(kind for kind in NOT_DIRECTORY if kind != SYMLINK),
    mode=(0o6755, 0o4755, 0o2755, 0o6777, 0o4644),
    root=True,
)
def check_chown_takes_set_id_bits_away(d: Path, kind: str, mode: int) -> None:
    """By anyone, from anything but a directory; the set-gid bit only where the group may execute."""
    cleared = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        cleared &= ~stat.S_ISGID
    make(d / "root", kind)
    os.chmod(d / "root", mode)
    os.chown(d / "root", ALICE, ALICE)
    assert mode_of(d / "root") == cleared
    make(d / "owner", kind)
    os.chown(d / "owner", ALICE, BOB)
    os.chmod(d / "owner", mode)
    with acting_as(ALICE, BOB, [CAROL]):
        os.chown(d / "owner", -1, CAROL)
    assert mode_of(d / "owner") == cleared
    os.chmod(d / "owner", mode)
    with acting_as(ALICE, CAROL):
        os.chown(d / "owner", ALICE, CAROL)
    assert mode_of(d / "owner") == cleared


@check(mode=(0o4755, 0o2755), root=True)
def check_chown_of_nobody_by_a_stranger_takes_nothing(d: Path, mode: int) -> None:
    """chown(2) with -1 for both is allowed to everybody, unless set-id bits would go."""
    d.chmod(0o755)
    make(d / "x", REGULAR)
    os.chmod(d / "x", mode)
    with acting_as(ALICE):
        refused(errno.EPERM, os.chown, d / "x", -1, -1)
    assert mode_of(d / "x") == mode
    os.chmod(d / "x", 0o755)
    with acting_as(ALICE):
        os.chown(d / "x", -1, -1)


@check(root=True)
def check_set_gid_without_group_execution_stays_for_a_member(d: Path) -> None:
    """Mandatory locking's old mark: 02644 is no program."""
    make(d / "x", REGULAR)
    os.chown(d / "x", ALICE, BOB)
    os.chmod(d / "x", 0o2644)
    with acting_as(ALICE, BOB, [CAROL]):
        os.chown(d / "x", -1, CAROL)
    assert mode_of(d / "x") == 0o2644


@check(mode=(0o6755, 0o4755, 0o2755, 0o7777), root=True)
def check_chown_leaves_the_bits_of_a_directory(d: Path, mode: int) -> None:
    make(d / "x", DIRECTORY, mode)
    os.chown(d / "x", ALICE, BOB)
    assert mode_of(d / "x") == mode
    with acting_as(ALICE, BOB, [CAROL]):
        os.chown(d / "x", -1, CAROL)
    assert mode_of(d / "x") == mode


# Writing takes set-id bits away


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


def _truncate(path: Path) -> None:
    os.truncate(path, 1)


def _ftruncate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 1)


def _o_trunc(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


class _Writer:
    def __init__(self, call: Callable[[Path], None]) -> None:
        self.call = call
        self.name = call.__name__.strip("_")


WRITERS = tuple(map(_Writer, (_write, _append, _truncate, _ftruncate, _o_trunc)))


@check(way=WRITERS, mode=(0o4777, 0o2777, 0o6777, 0o4722, 0o2722, 0o1777), root=True)
def check_writing_takes_set_id_bits_away(d: Path, way: _Writer, mode: int) -> None:
    d.chmod(0o777)
    write(d / "x")
    os.chmod(d / "x", mode)
    with acting_as(ALICE):
        way.call(d / "x")
    cleared = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or mode & stat.S_ISGID:  # a stranger to the group loses it in any case
        cleared &= ~stat.S_ISGID
    assert mode_of(d / "x") == cleared, f"{mode_of(d / 'x'):o} instead of {cleared:o}"


@check(way=WRITERS, mode=(0o4777, 0o2777, 0o6777), root=True)
def check_writing_by_the_owner_takes_set_id_bits_away(d: Path, way: _Writer, mode: int) -> None:
    write(d / "x")
    os.chown(d / "x", ALICE, ALICE)
    os.chmod(d / "x", mode)
    with acting_as(ALICE):
        way.call(d / "x")
    assert mode_of(d / "x") == mode & 0o1777


@check(way=WRITERS, root=True)
def check_writing_by_root_leaves_set_id_bits(d: Path, way: _Writer) -> None:
    write(d / "x")
    os.chmod(d / "x", 0o6777)
    way.call(d / "x")
    assert mode_of(d / "x") == 0o6777


@check(root=True)
def check_write_through_an_old_descriptor_takes_set_id_bits_away(d: Path) -> None:
    d.chmod(0o777)
    with acting_as(ALICE):
        write(d / "x")
        with opened(d / "x", os.O_WRONLY) as fd:
            os.write(fd, b"1")
            os.fchmod(fd, 0o4755)
            os.write(fd, b"2")
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
    assert mode_of(d / "x") == 0o755
