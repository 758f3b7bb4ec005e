"""utimensat in all its forms, and access times."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from support.syscalls import UTIME_NOW, UTIME_OMIT, futimens, utimensat
from support.users import ALICE, BOB, acting_as

from .kit import (
    DIRECTORY,
    KINDS,
    NOT_SYMLINK,
    REGULAR,
    SYMLINK,
    TICK,
    check,
    make,
    opened,
    read,
    refused,
    same,
    times_of,
    write,
)

NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
DAY = 86_400


@check(kind=KINDS)
def check_nanoseconds(d: Path, kind: str) -> None:
    before = os.lstat(make(d / "x", kind))
    with times_of(d, ""):
        time.sleep(TICK)
        utimensat(d / "x", (1_000_000_000, 123_456_789), (1_600_000_000, 987_654_321), follow=False)
    info = os.lstat(d / "x")
    assert info.st_atime_ns == 1_000_000_000_123_456_789
    assert info.st_mtime_ns == 1_600_000_000_987_654_321
    assert info.st_ctime_ns > before.st_ctime_ns
    same(before, info, "mtime_ns", "ctime_ns")


@check(
    kind=(REGULAR, DIRECTORY, SYMLINK),
    seconds=(0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 4_102_444_800, 2**33),
)
def check_years_near_and_far(d: Path, kind: str, seconds: int) -> None:
    make(d / "x", kind)
    utimensat(d / "x", (seconds, 1), (seconds, 999_999_999), follow=False)
    info = os.lstat(d / "x")
    assert (info.st_atime_ns, info.st_mtime_ns) == (seconds * 10**9 + 1, seconds * 10**9 + 999_999_999)


@check(kind=(REGULAR, DIRECTORY, SYMLINK), seconds=(-1, -(2**31)))
def check_years_before_1970(d: Path, kind: str, seconds: int) -> None:
    make(d / "x", kind)
    utimensat(d / "x", (seconds, 0), (seconds, 250_000_000), follow=False)
    info = os.lstat(d / "x")
    assert (info.st_atime_ns, info.st_mtime_ns) == (seconds * 10**9, seconds * 10**9 + 250_000_000)


@check(kind=KINDS, one=("set", "now", "omit"), two=("set", "now", "omit"))
def check_now_and_omit(d: Path, kind: str, one: str, two: str) -> None:
    make(d / "x", kind)
    utimensat(d / "x", (1000, 1), (2000, 2), follow=False)
    words = {"set": (3000, 3), "now": NOW, "omit": OMIT}
    begin = time.time_ns()
    time.sleep(TICK)
    with times_of(d / "x", {"omit": ""}.get(two, "m") + ("" if one == two == "omit" else "c")):
        utimensat(d / "x", words[one], words[two], follow=False)
    info = os.lstat(d / "x")
    for word, value, old in (
        (one, info.st_atime_ns, 1000 * 10**9 + 1),
        (two, info.st_mtime_ns, 2000 * 10**9 + 2),
    ):
        if word == "set":
            assert value == 3000 * 10**9 + 3
        elif word == "omit":
            assert value == old
        else:
            assert begin <= value <= time.time_ns() + 10**7
    if one == two == "now":
        assert info.st_atime_ns == info.st_mtime_ns


@check()
def check_invalid_nanoseconds(d: Path) -> None:
    write(d / "x")
    with times_of(d / "x", ""):
        refused(errno.EINVAL, utimensat, d / "x", (1, 10**9), (1, 1))
        refused(errno.EINVAL, utimensat, d / "x", (1, 1), (1, -1))


@check(kind=NOT_SYMLINK)
def check_utimensat_follows_only_when_asked(d: Path, kind: str) -> None:
    make(d / "x", kind)
    (d / "s").symlink_to("x")
    utimensat(d / "s", (10, 1), (20, 2))
    utimensat(d / "s", (30, 3), (40, 4), follow=False)
    assert (os.lstat(d / "x").st_mtime_ns, os.lstat(d / "s").st_mtime_ns) == (20 * 10**9 + 2, 40 * 10**9 + 4)


@check()
def check_times_through_a_descriptor(d: Path) -> None:
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"data")
        futimens(fd, (10, 1), (20, 2))
        assert os.fstat(fd).st_mtime_ns == 20 * 10**9 + 2
        os.fsync(fd)
    info = os.stat(d / "x")
    assert (info.st_atime_ns, info.st_mtime_ns) == (10 * 10**9 + 1, 20 * 10**9 + 2)
    os.close(os.open(d / "x", os.O_RDWR))
    same(info, os.stat(d / "x"))


@check()
def check_write_after_setting_times_moves_them_again(d: Path) -> None:
    """The order of a copy that preserves times, and the wrong order."""
    with opened(d / "x", os.O_CREAT | os.O_RDWR) as fd:
        futimens(fd, (10, 1), (20, 2))
        begin = time.time_ns() - 10**7
        os.write(fd, b"data")
    assert os.stat(d / "x").st_mtime_ns >= begin


@check(kind=NOT_SYMLINK, root=True)
def check_who_may_set_times(d: Path, kind: str) -> None:
    """Any time: the owner. The present: whoever may write. Nothing: anybody."""
    make(d / "x", kind, 0o644)
    os.chown(d / "x", ALICE, ALICE)
    with acting_as(ALICE):
        os.chmod(d / "x", 0)
        utimensat(d / "x", (1, 1), (2, 2))
        utimensat(d / "x", NOW, NOW)
        os.chmod(d / "x", 0o644)
    with times_of(d / "x", ""), acting_as(BOB):
        refused(errno.EPERM, utimensat, d / "x", (1, 1), (2, 2))
        refused(errno.EACCES, utimensat, d / "x", NOW, NOW)
        refused(errno.EPERM, utimensat, d / "x", NOW, OMIT)
        refused(errno.EPERM, utimensat, d / "x", OMIT, NOW)
        utimensat(d / "x", OMIT, OMIT)
    os.chmod(d / "x", 0o646)
    with acting_as(BOB):
        refused(errno.EPERM, utimensat, d / "x", (1, 1), (2, 2))
        refused(errno.EPERM, utimensat, d / "x", NOW, (2, 2))
        refused(errno.EPERM, utimensat, d / "x", NOW, OMIT)
        with times_of(d / "x", "mc"):
            utimensat(d / "x", NOW, NOW)


# Access times: relatime is what every system has by default. The pages are dropped first, since a
# filesystem may not hear of reads that the kernel answers by itself.


def age(path: Path, days: float) -> int:
    """Sets the access time back, with an older modification; gives it."""
    drop_pages(path)
    past = time.time_ns() - int(days * DAY) * 10**9
    os.utime(path, ns=(past, past - 10**9), follow_symlinks=False)
    return past


def drop_pages(path: Path) -> None:
    if path.is_file():
        with opened(path, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@check()
def check_reading_moves_an_old_access_time(d: Path) -> None:
    write(d / "x")
    past = age(d / "x", 3)
    before = os.stat(d / "x")
    assert read(d / "x") == b"data"
    info = os.stat(d / "x")
    assert info.st_atime_ns > past + 2 * DAY * 10**9
    same(before, info)


@check()
def check_reading_moves_an_access_time_older_than_the_last_change(d: Path) -> None:
    write(d / "x")
    drop_pages(d / "x")
    now = time.time_ns()
    os.utime(d / "x", ns=(now - 10**10, now - 10**9))
    read(d / "x")
    assert os.stat(d / "x").st_atime_ns > now - 10**9


@check()
def check_listing_moves_an_old_access_time(d: Path) -> None:
    (d / "x").mkdir()
    make(d / "x" / "y", REGULAR)
    past = age(d / "x", 3)
    before = os.stat(d / "x")
    assert os.listdir(d / "x") == ["y"]
    info = os.stat(d / "x")
    assert info.st_atime_ns > past + 2 * DAY * 10**9
    same(before, info)


@check()
def check_noatime_leaves_the_access_time(d: Path) -> None:
    write(d / "x")
    past = age(d / "x", 3)
    with opened(d / "x", os.O_RDONLY | os.O_NOATIME) as fd:
        assert os.read(fd, 10) == b"data"
    assert os.stat(d / "x").st_atime_ns == past


@check(kind=(REGULAR, DIRECTORY))
def check_access_time_stays_without_reading(d: Path, kind: str) -> None:
    make(d / "x", kind)
    past = age(d / "x", 3)
    os.close(os.open(d / "x", os.O_PATH))
    os.access(d / "x", os.R_OK)
    os.chmod(d / "x", 0o700)
    os.rename(d / "x", d / "y")
    assert os.stat(d / "y").st_atime_ns == past
