"""rename and renameat2: every kind over every kind, what moves, what stays, and who may."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from support.users import ALICE, BOB, acting_as, in_child, together

from .kit import (
    DIRECTORY,
    KINDS,
    NOT_DIRECTORY,
    REGULAR,
    S_IFMT,
    check,
    make,
    opened,
    read,
    refused,
    same,
    times_of,
    write,
)


@check(kind=KINDS)
def check_rename_moves_the_file_as_it_is(d: Path, kind: str) -> None:
    (d / "from").mkdir()
    (d / "to").mkdir()
    before = os.lstat(make(d / "from" / "x", kind))
    if kind == DIRECTORY:
        write(d / "from" / "x" / "inside")
        before = os.lstat(d / "from" / "x")
    with times_of(d / "from", "mc"), times_of(d / "to", "mc"), times_of(d, ""):
        os.rename(d / "from" / "x", d / "to" / "y")
    after = os.lstat(d / "to" / "y")
    same(before, after, "ctime_ns")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (os.listdir(d / "from"), os.listdir(d / "to")) == ([], ["y"])
    refused(errno.ENOENT, os.lstat, d / "from" / "x")
    if kind == DIRECTORY:
        assert read(d / "to" / "y" / "inside") == b"data"
        assert os.stat(d / "to" / "y" / "..").st_ino == os.stat(d / "to").st_ino
        assert (os.stat(d / "from").st_nlink, os.stat(d / "to").st_nlink) == (2, 3)


@check(kind=NOT_DIRECTORY, victim=NOT_DIRECTORY)
def check_rename_over_a_file(d: Path, kind: str, victim: str) -> None:
    before = os.lstat(make(d / "a", kind))
    make(d / "b", victim)
    os.link(d / "b", d / "kept", follow_symlinks=False)
    with times_of(d / "kept", "c"), times_of(d, "mc"):
        os.rename(d / "a", d / "b")
    same(before, os.lstat(d / "b"), "ctime_ns")
    assert os.lstat(d / "kept").st_nlink == 1
    assert sorted(os.listdir(d)) == ["b", "kept"]


@check()
def check_rename_over_an_empty_directory(d: Path) -> None:
    (d / "a").mkdir()
    write(d / "a" / "inside")
    (d / "b").mkdir()
    before = os.lstat(d / "a")
    with opened(d / "b", os.O_RDONLY) as fd:
        os.rename(d / "a", d / "b")
        assert os.fstat(fd).st_nlink == 0
        refused(errno.ENOENT, os.mkdir, "x", dir_fd=fd)
    same(before, os.lstat(d / "b"), "ctime_ns")
    assert (os.listdir(d), os.listdir(d / "b"), os.stat(d).st_nlink) == (["b"], ["inside"], 3)


@check(kind=KINDS)
def check_rename_over_a_full_directory(d: Path, kind: str) -> None:
    (d / "a").mkdir()
    (d / "b").mkdir()
    make(d / "b" / "inside", kind)
    with times_of(d, ""), times_of(d / "a", ""), times_of(d / "b", ""):
        refused((errno.ENOTEMPTY, errno.EEXIST), os.rename, d / "a", d / "b")


@check(kind=NOT_DIRECTORY)
def check_rename_between_directory_and_file(d: Path, kind: str) -> None:
    make(d / "file", kind)
    (d / "dir").mkdir()
    with times_of(d, ""), times_of(d / "file", ""), times_of(d / "dir", ""):
        refused(errno.ENOTDIR, os.rename, d / "dir", d / "file")
        refused(errno.EISDIR, os.rename, d / "file", d / "dir")


@check()
def check_rename_of_a_directory_into_itself(d: Path) -> None:
    (d / "a" / "b" / "c").mkdir(parents=True)
    for target in ("a/x", "a/b/x", "a/b/c/x"):
        refused(errno.EINVAL, os.rename, d / "a", d / target)
    refused((errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL), os.rename, d / "a" / "b", d / "a")
    os.rename(d / "a" / "b" / "c", d / "a" / "c")
    os.rename(d / "a" / "b", d / "a" / "c" / "b")
    assert (d / "a" / "c" / "b").is_dir()


@check(kind=NOT_DIRECTORY)
def check_rename_between_links_of_one_file_does_nothing(d: Path, kind: str) -> None:
    make(d / "a", kind)
    os.link(d / "a", d / "b", follow_symlinks=False)
    with times_of(d, ""), times_of(d / "a", ""):
        os.rename(d / "a", d / "b")
    assert sorted(os.listdir(d)) == ["a", "b"]
    assert os.lstat(d / "a").st_nlink == 2


@check(kind=KINDS)
def check_rename_to_itself_does_nothing(d: Path, kind: str) -> None:
    make(d / "a", kind)
    with times_of(d, ""), times_of(d / "a", ""):
        os.rename(d / "a", d / "a")
    assert os.listdir(d) == ["a"]


@check()
def check_rename_over_an_open_file(d: Path) -> None:
    write(d / "new", b"new")
    write(d / "old", b"old")
    with opened(d / "old", os.O_RDWR) as fd, opened(d / "new", os.O_RDWR) as moved:
        os.rename(d / "new", d / "old")
        assert os.pread(fd, 10, 0) == b"old"
        os.pwrite(fd, b"OLDER", 0)
        assert (os.pread(fd, 10, 0), os.fstat(fd).st_nlink) == (b"OLDER", 0)
        assert read(d / "old") == b"new"
        os.pwrite(moved, b"NEWER", 0)
        assert read(d / "old") == b"NEWER"
        assert os.fstat(moved).st_nlink == 1
    assert os.listdir(d) == ["old"]


@check()
def check_rename_of_an_open_directory(d: Path) -> None:
    (d / "a").mkdir()
    write(d / "a" / "1")
    with opened(d / "a", os.O_RDONLY) as fd:
        os.rename(d / "a", d / "b")
        os.mkdir("2", dir_fd=fd)
        assert sorted(os.listdir(fd)) == ["1", "2"]
    assert sorted(os.listdir(d / "b")) == ["1", "2"]


@check()
def check_rename_carries_a_deep_tree(d: Path) -> None:
    (d / "t" / "a" / "b").mkdir(parents=True)
    write(d / "t" / "a" / "b" / "f", b"deep")
    (d / "t" / "s").symlink_to("a/b/f")
    (d / "u").mkdir()
    os.rename(d / "t", d / "u" / "v")
    assert read(d / "u" / "v" / "s") == b"deep"
    write(d / "u" / "v" / "a" / "b" / "f", b"deeper")
    os.rename(d / "u" / "v" / "a", d / "t")
    assert read(d / "t" / "b" / "f") == b"deeper"
    refused(errno.ENOENT, os.stat, d / "u" / "v" / "s")


# Flags


@check(kind=KINDS, there=KINDS)
def check_noreplace_over_an_existing_name(d: Path, kind: str, there: str) -> None:
    make(d / "a", kind)
    before = os.lstat(make(d / "b", there))
    with times_of(d, ""):
        refused(errno.EEXIST, renameat2, d / "a", d / "b", RENAME_NOREPLACE)
    same(before, os.lstat(d / "b"))


@check(kind=KINDS)
def check_noreplace_to_a_new_name(d: Path, kind: str) -> None:
    before = os.lstat(make(d / "a", kind))
    renameat2(d / "a", d / "b", RENAME_NOREPLACE)
    same(before, os.lstat(d / "b"), "ctime_ns")
    refused(errno.ENOENT, renameat2, d / "a", d / "c", RENAME_NOREPLACE)


@check(kind=KINDS, other=KINDS)
def check_exchange(d: Path, kind: str, other: str) -> None:
    for folder in ("p", "q"):
        (d / folder).mkdir()
    first, second = os.lstat(make(d / "p" / "a", kind)), os.lstat(make(d / "q" / "b", other))
    with times_of(d / "p", "mc"), times_of(d / "q", "mc"):
        renameat2(d / "p" / "a", d / "q" / "b", RENAME_EXCHANGE)
    same(second, os.lstat(d / "p" / "a"), "ctime_ns")
    same(first, os.lstat(d / "q" / "b"), "ctime_ns")
    assert stat.S_IFMT(os.lstat(d / "p" / "a").st_mode) == S_IFMT[other]
    assert os.stat(d / "p").st_nlink == 2 + (other == DIRECTORY)
    assert os.stat(d / "q").st_nlink == 2 + (kind == DIRECTORY)
    if other == DIRECTORY:
        assert os.stat(d / "p" / "a" / "..").st_ino == os.stat(d / "p").st_ino


@check()
def check_exchange_refusals(d: Path) -> None:
    (d / "a" / "b").mkdir(parents=True)
    write(d / "a" / "b" / "f")
    refused(errno.ENOENT, renameat2, d / "a", d / "none", RENAME_EXCHANGE)
    refused(errno.ENOENT, renameat2, d / "none", d / "a", RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, d / "a", d / "a" / "b", RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, d / "a" / "b", d / "a", RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, d / "a" / "b" / "f", d / "a", RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, d / "a", d / "c", RENAME_EXCHANGE | RENAME_NOREPLACE)
    refused(errno.EINVAL, renameat2, d / "a", d / "c", 1 << 10)
    write(d / "f")
    os.link(d / "f", d / "g")
    renameat2(d / "f", d / "g", RENAME_EXCHANGE)
    assert (os.stat(d / "f").st_nlink, sorted(os.listdir(d))) == (2, ["a", "f", "g"])


@check()
def check_exchange_of_full_directories(d: Path) -> None:
    for name in ("a", "b"):
        (d / name).mkdir()
        write(d / name / f"in_{name}")
    renameat2(d / "a", d / "b", RENAME_EXCHANGE)
    assert (os.listdir(d / "a"), os.listdir(d / "b")) == (["in_b"], ["in_a"])
    write(d / "a" / "in_b", b"new")
    renameat2(d / "b", d / "a", RENAME_EXCHANGE)
    assert read(d / "b" / "in_b") == b"new"


# Permissions


@check(kind=KINDS, root=True)
def check_rename_needs_both_directories(d: Path, kind: str) -> None:
    for name in ("from", "to"):
        (d / name).mkdir()
        os.chown(d / name, ALICE, ALICE)
    make(d / "from" / "x", kind)
    os.lchown(d / "from" / "x", ALICE, ALICE)
    for closed in ("from", "to"):
        (d / closed).chmod(0o555)
        with acting_as(ALICE), times_of(d / "from", ""), times_of(d / "to", ""):
            refused(errno.EACCES, os.rename, d / "from" / "x", d / "to" / "x")
        (d / closed).chmod(0o755)
    with acting_as(ALICE):
        os.rename(d / "from" / "x", d / "to" / "x")


@check(root=True)
def check_moving_a_directory_needs_write_permission_on_it(d: Path) -> None:
    """Its ".." changes. Within one parent it does not."""
    d.chmod(0o777)
    (d / "to").mkdir()
    (d / "to").chmod(0o777)
    (d / "x").mkdir()
    os.chown(d / "x", BOB, BOB)
    with acting_as(ALICE):
        refused(errno.EACCES, os.rename, d / "x", d / "to" / "x")
        os.rename(d / "x", d / "y")
    (d / "y").chmod(0o757)
    with acting_as(ALICE):
        os.rename(d / "y", d / "to" / "x")


@check()
def check_name_is_always_there_while_it_is_replaced(d: Path) -> None:
    """The promise that every editor and every config writer relies on."""
    write(d / "x", b"0" * 100)

    def replace() -> None:
        for number in range(100):
            write(d / "tmp", b"%d" % (number % 10) * 100)
            os.rename(d / "tmp", d / "x")

    pid = in_child(replace)
    looks = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        content = read(d / "x")
        assert len(content) == 100
        assert len(set(content)) == 1
        looks += 1
    assert looks > 1


@check()
def check_renames_of_many_processes(d: Path) -> None:
    """Each of many tokens is moved by exactly one process."""
    for number in range(60):
        make(d / f"t{number}", REGULAR)

    def take(me: int) -> None:
        (d / f"p{me}").mkdir()
        for number in range(60):
            try:
                os.rename(d / f"t{number}", d / f"p{me}" / f"t{number}")
            except FileNotFoundError:
                continue

    together(3, take)
    taken = [name for me in range(3) for name in os.listdir(d / f"p{me}")]
    assert sorted(taken) == sorted(f"t{number}" for number in range(60))
