"""link, unlink, rmdir and symlink, and the sticky directories that restrict who may remove."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from support.users import ALICE, BOB, CAROL, acting_as

from .kit import (
    BLOCK,
    CHAR,
    DIRECTORY,
    KINDS,
    LEAVES,
    NAME_MAX,
    NOT_DIRECTORY,
    NOT_SYMLINK,
    PATH_MAX,
    REGULAR,
    SYMLINK,
    check,
    make,
    mode_of,
    opened,
    read,
    refused,
    remove,
    same,
    times_of,
    write,
)


def link(source: Path, target: Path) -> None:
    os.link(source, target, follow_symlinks=False)


@check(kind=NOT_DIRECTORY)
def check_link_is_the_same_file(d: Path, kind: str) -> None:
    (d / "sub").mkdir()
    before = os.lstat(make(d / "a", kind))
    with times_of(d / "a", "c"), times_of(d / "sub", "mc"), times_of(d, ""):
        link(d / "a", d / "sub" / "b")
    same(before, os.lstat(d / "sub" / "b"), "nlink", "ctime_ns")
    same(os.lstat(d / "a"), os.lstat(d / "sub" / "b"))
    assert os.lstat(d / "a").st_nlink == 2
    link(d / "sub" / "b", d / "c")
    assert [os.lstat(d / name).st_nlink for name in ("a", "sub/b", "c")] == [3, 3, 3]
    with times_of(d / "a", "c"), times_of(d, ""), times_of(d / "sub", "mc"):
        os.unlink(d / "sub" / "b")
    assert os.lstat(d / "c").st_nlink == 2
    os.unlink(d / "a")
    same(before, os.lstat(d / "c"), "ctime_ns")


@check(kind=LEAVES, root=True)
def check_links_share_attributes(d: Path, kind: str) -> None:
    make(d / "a", kind)
    link(d / "a", d / "b")
    os.chmod(d / "a", 0o604)
    os.chown(d / "b", 12, 34)
    os.utime(d / "a", ns=(10**18 + 1, 10**18 + 2))
    info = os.lstat(d / "b")
    assert (mode_of(d / "b"), info.st_mtime_ns) == (0o604, 10**18 + 2)
    same(os.lstat(d / "a"), info)


@check()
def check_links_share_content(d: Path) -> None:
    write(d / "a", b"one")
    link(d / "a", d / "b")
    with opened(d / "a", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b" two")
        assert os.stat(d / "b").st_size == 7
        assert read(d / "b") == b"one two"
    os.truncate(d / "b", 3)
    assert read(d / "a") == b"one"
    os.unlink(d / "a")
    assert read(d / "b") == b"one"


@check(kind=NOT_DIRECTORY, there=KINDS)
def check_link_over_an_existing_name(d: Path, kind: str, there: str) -> None:
    make(d / "a", kind)
    before = os.lstat(make(d / "b", there))
    with times_of(d / "a", ""), times_of(d, ""):
        refused(errno.EEXIST, link, d / "a", d / "b")
    same(before, os.lstat(d / "b"))


@check()
def check_link_of_a_directory(d: Path) -> None:
    (d / "a").mkdir()
    refused(errno.EPERM, link, d / "a", d / "b")
    assert os.listdir(d) == ["a"]


@check()
def check_link_follows_a_symlink_only_when_asked(d: Path) -> None:
    write(d / "x")
    (d / "s").symlink_to("x")
    link(d / "s", d / "of_link")
    assert os.readlink(d / "of_link") == "x"
    fd = os.open(d, os.O_RDONLY)
    os.link("s", "of_file", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert os.lstat(d / "of_file").st_ino == os.lstat(d / "x").st_ino


@check()
def check_unlinked_file_cannot_be_linked_again(d: Path) -> None:
    write(d / "x")
    with opened(d / "x", os.O_RDONLY) as fd:
        os.unlink(d / "x")
        here = os.open(d, os.O_RDONLY)
        refused(errno.ENOENT, os.link, f"/proc/self/fd/{fd}", "y", dst_dir_fd=here, follow_symlinks=True)
        os.close(here)


@check(count=(300,))
def check_many_links(d: Path, count: int) -> None:
    write(d / "0")
    for number in range(1, count):
        link(d / str(number - 1), d / str(number))
    assert os.stat(d / "0").st_nlink == count
    assert len({os.stat(d / name).st_ino for name in os.listdir(d)}) == 1
    for number in range(0, count, 2):
        os.unlink(d / str(number))
    assert os.stat(d / "1").st_nlink == count // 2


# unlink and rmdir


@check(kind=NOT_DIRECTORY)
def check_unlink_removes_the_name(d: Path, kind: str) -> None:
    make(d / "x", kind)
    with times_of(d, "mc"):
        os.unlink(d / "x")
    refused(errno.ENOENT, os.lstat, d / "x")
    refused(errno.ENOENT, os.unlink, d / "x")
    assert os.listdir(d) == []
    make(d / "x", DIRECTORY)
    assert (d / "x").is_dir()


@check()
def check_unlink_of_a_directory(d: Path) -> None:
    (d / "x").mkdir()
    with times_of(d, ""), times_of(d / "x", ""):
        refused((errno.EISDIR, errno.EPERM), os.unlink, d / "x")


@check()
def check_unlink_does_not_follow(d: Path) -> None:
    write(d / "x")
    (d / "s").symlink_to("x")
    os.unlink(d / "s")
    assert read(d / "x") == b"data"


@check()
def check_unlinked_file_lives_while_it_is_open(d: Path) -> None:
    write(d / "x", b"before")
    with opened(d / "x", os.O_RDWR) as fd, opened(d / "x", os.O_RDONLY) as second:
        with times_of(fd, "c"):
            os.unlink(d / "x")
        assert os.fstat(fd).st_nlink == 0
        write(d / "x", b"another file")
        os.pwrite(fd, b"AFTER!!", 1)
        assert os.pread(second, 100, 0) == b"bAFTER!!"
        assert os.fstat(second).st_size == 8
        os.ftruncate(fd, 100_000)
        assert os.pread(second, 3, 99_998) == b"\0\0"
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(5, 6))
        assert (os.fstat(fd).st_mtime_ns, stat.S_IMODE(os.fstat(second).st_mode)) == (6, 0o600)
        os.setxattr(fd, "user.a", b"1")
        assert os.getxattr(second, "user.a") == b"1"
        os.fsync(fd)
        assert os.fstat(fd).st_ino != os.stat(d / "x").st_ino
    assert read(d / "x") == b"another file"


@check()
def check_file_created_and_unlinked_at_once_is_scratch_space(d: Path) -> None:
    fds = []
    for number in range(20):
        fds.append(os.open(d / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR))
        os.unlink(d / "x")
        os.write(fds[-1], b"%d" % number)
    assert [os.pread(fd, 10, 0) for fd in fds] == [b"%d" % number for number in range(20)]
    assert os.listdir(d) == []
    for fd in fds:
        os.close(fd)


@check()
def check_rmdir_removes_an_empty_directory(d: Path) -> None:
    (d / "x").mkdir()
    assert os.stat(d).st_nlink == 3
    with times_of(d, "mc"):
        os.rmdir(d / "x")
    assert os.stat(d).st_nlink == 2
    refused(errno.ENOENT, os.rmdir, d / "x")
    refused(errno.ENOENT, os.listdir, d / "x")


@check(kind=KINDS)
def check_rmdir_of_a_full_directory(d: Path, kind: str) -> None:
    (d / "x").mkdir()
    make(d / "x" / "inside", kind)
    with times_of(d, ""), times_of(d / "x", ""):
        refused((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, d / "x")
    remove(d / "x" / "inside")
    os.rmdir(d / "x")


@check(kind=NOT_DIRECTORY)
def check_rmdir_of_something_else(d: Path, kind: str) -> None:
    make(d / "x", kind)
    with times_of(d, ""):
        refused(errno.ENOTDIR, os.rmdir, d / "x")


@check()
def check_rmdir_of_an_open_directory(d: Path) -> None:
    (d / "x").mkdir()
    with opened(d / "x", os.O_RDONLY) as fd:
        os.rmdir(d / "x")
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        refused(errno.ENOENT, os.mkdir, "y", dir_fd=fd)
        (d / "x").mkdir()
        assert os.fstat(fd).st_ino != os.stat(d / "x").st_ino


@check()
def check_rmdir_of_the_working_directory(d: Path) -> None:
    (d / "x").mkdir()
    here = os.open(".", os.O_RDONLY)
    os.chdir(d / "x")
    try:
        os.rmdir(d / "x")
        refused(errno.ENOENT, os.getcwd)
        refused(errno.ENOENT, os.mkdir, "y")
        assert os.listdir(".") == []
        refused(errno.EINVAL, os.rmdir, ".")
    finally:
        os.fchdir(here)
        os.close(here)


@check(kind=KINDS, folder=(ALICE, BOB), owner=(ALICE, BOB), root=True)
def check_sticky_directory_guards_its_names(d: Path, kind: str, folder: int, owner: int) -> None:
    """In a sticky directory only the owner of the file, the owner of the directory and root remove a name."""
    (d / "s").mkdir()
    (d / "free").mkdir()
    for path, mode in ((d / "s", 0o1777), (d / "free", 0o777)):
        os.chown(path, folder, folder)
        path.chmod(mode)
    for name in ("a", "b", "c"):
        make(d / "s" / name, kind)
        os.lchown(d / "s" / name, owner, owner)
    make(d / "s" / "d", kind)
    make(d / "free" / "new", kind)
    os.lchown(d / "free" / "new", ALICE, ALICE)
    with acting_as(ALICE):
        if ALICE in (folder, owner):
            remove(d / "s" / "a")
            os.rename(d / "s" / "b", d / "s" / "moved")
            os.rename(d / "free" / "new", d / "s" / "c")
        else:
            refused((errno.EPERM, errno.EACCES), remove, d / "s" / "a")
            refused((errno.EPERM, errno.EACCES), os.rename, d / "s" / "b", d / "s" / "moved")
            refused((errno.EPERM, errno.EACCES), os.rename, d / "free" / "new", d / "s" / "c")
            assert sorted(os.listdir(d / "s")) == ["a", "b", "c", "d"]
    remove(d / "s" / "d")


@check(root=True)
def check_sticky_directory_guards_the_destination_of_a_rename(d: Path) -> None:
    (d / "s").mkdir()
    os.chown(d / "s", CAROL, CAROL)
    (d / "s").chmod(0o1777)
    for name, owner in (("mine", ALICE), ("also_mine", ALICE), ("yours", BOB)):
        write(d / "s" / name)
        os.chown(d / "s" / name, owner, owner)
    with acting_as(ALICE):
        refused((errno.EPERM, errno.EACCES), os.rename, d / "s" / "mine", d / "s" / "yours")
        os.rename(d / "s" / "mine", d / "s" / "also_mine")


# symlink


@check(length=(1, 2, 60, 255, 1000, PATH_MAX - 1))
def check_symlink_target_of_any_length(d: Path, length: int) -> None:
    target = b"t" * length
    os.symlink(target, os.fsencode(d / "s"))
    assert os.readlink(os.fsencode(d / "s")) == target
    info = os.lstat(d / "s")
    assert (info.st_size, stat.S_IMODE(info.st_mode), info.st_nlink) == (length, 0o777, 1)


@check()
def check_symlink_target_out_of_bounds(d: Path) -> None:
    refused(errno.ENAMETOOLONG, os.symlink, "t" * PATH_MAX, d / "s")
    refused(errno.ENOENT, os.symlink, "", d / "s")
    assert os.listdir(d) == []


@check()
def check_symlink_target_is_bytes(d: Path) -> None:
    target = bytes(range(1, 256))
    os.symlink(target, os.fsencode(d / "s"))
    assert os.readlink(os.fsencode(d / "s")) == target
    os.symlink("../x//y/", d / "t")
    assert os.readlink(d / "t") == "../x//y/"


@check(kind=NOT_SYMLINK)
def check_readlink_of_something_else(d: Path, kind: str) -> None:
    make(d / "x", kind)
    refused(errno.EINVAL, os.readlink, d / "x")


@check()
def check_symlink_points_while_its_target_comes_and_goes(d: Path) -> None:
    (d / "s").symlink_to("x")
    refused(errno.ENOENT, os.stat, d / "s")
    write(d / "x", b"one")
    assert read(d / "s") == b"one"
    os.unlink(d / "x")
    refused(errno.ENOENT, os.stat, d / "s")
    (d / "x").mkdir()
    write(d / "s" / "inside")
    assert os.listdir(d / "x") == ["inside"]


@check(root=True)
def check_symlink_readable_by_all_without_permission_on_it(d: Path) -> None:
    (d / "s").symlink_to("somewhere")
    with acting_as(ALICE):
        assert os.readlink(d / "s") == "somewhere"


@check(kind=(REGULAR, DIRECTORY, SYMLINK, BLOCK, CHAR))
def check_name_is_free_at_once(d: Path, kind: str) -> None:
    """Names come and go and come back as something else, without a trace of the former."""
    for other in KINDS:
        make(d / "x", kind)
        remove(d / "x")
        make(d / "x", other)
        assert os.listdir(d) == ["x"]
        assert os.lstat(d / "x").st_nlink == (2 if other == DIRECTORY else 1)
        remove(d / "x")
    refused(errno.ENOENT, os.lstat, d / "x")
    refused(errno.ENOENT, os.lstat, d / ("n" * NAME_MAX))
