"""How a path is resolved, for every system call that takes one: the errnos before the call itself begins."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.syscalls import RENAME_NOREPLACE, renameat2
from support.users import ALICE, acting_as

from .kit import (
    DIRECTORY,
    FIFO,
    KINDS,
    LEAVES,
    NAME_MAX,
    NOT_SYMLINK,
    PATH_MAX,
    REGULAR,
    S_IFMT,
    SYMLINK,
    check,
    make,
    mode_of,
    read,
    refused,
    write,
)

NEW, OLD = "new", "old"  # whether the call makes its last component, or needs it


@dataclass(frozen=True)
class Op:
    """One system call on one path."""

    name: str
    wants: str
    call: Callable[[Any, Path], Any]  # the path, and a directory with a file "spare" to help
    follows: bool = True
    kind: str = REGULAR
    writes_parent: bool = False


def _close(fd: int) -> None:
    os.close(fd)


OPS = (
    Op("open", OLD, lambda p, d: _close(os.open(p, os.O_RDONLY))),
    Op(
        "open_create",
        NEW,
        lambda p, d: _close(os.open(p, os.O_CREAT | os.O_WRONLY, 0o644)),
        writes_parent=True,
    ),
    Op("mkdir", NEW, lambda p, d: os.mkdir(p), False, DIRECTORY, True),
    Op("mkfifo", NEW, lambda p, d: os.mkfifo(p), False, FIFO, True),
    Op("mknod", NEW, lambda p, d: os.mknod(p, stat.S_IFREG | 0o644), False, writes_parent=True),
    Op("symlink", NEW, lambda p, d: os.symlink("test", p), False, SYMLINK, True),
    Op("link_to", NEW, lambda p, d: os.link(d / "spare", p), False, writes_parent=True),
    Op("rename_to", NEW, lambda p, d: os.rename(d / "spare", p), False, writes_parent=True),
    Op(
        "renameat2_to",
        NEW,
        lambda p, d: renameat2(d / "spare", p, RENAME_NOREPLACE),
        False,
        writes_parent=True,
    ),
    Op("link_from", OLD, lambda p, d: os.link(p, d / "other", follow_symlinks=False), False),
    Op("rename_from", OLD, lambda p, d: os.rename(p, d / "other"), False, writes_parent=True),
    Op("unlink", OLD, lambda p, d: os.unlink(p), False, writes_parent=True),
    Op("rmdir", OLD, lambda p, d: os.rmdir(p), False, DIRECTORY, True),
    Op("chmod", OLD, lambda p, d: os.chmod(p, 0o640)),
    Op("chown", OLD, lambda p, d: os.chown(p, os.getuid(), os.getgid())),
    Op("lchown", OLD, lambda p, d: os.lchown(p, os.getuid(), os.getgid()), False),
    Op("truncate", OLD, lambda p, d: os.truncate(p, 10)),
    Op("utimensat", OLD, lambda p, d: os.utime(p, ns=(1, 2))),
    Op("lutimensat", OLD, lambda p, d: os.utime(p, ns=(1, 2), follow_symlinks=False), False),
    Op("stat", OLD, lambda p, d: os.stat(p)),
    Op("lstat", OLD, lambda p, d: os.lstat(p), False),
    Op("readlink", OLD, lambda p, d: os.readlink(p), False, SYMLINK),
    Op("access", OLD, lambda p, d: _access(p)),
    Op("opendir", OLD, lambda p, d: os.listdir(p), True, DIRECTORY),
    Op("statfs", OLD, lambda p, d: os.statvfs(p)),
    Op("setxattr", OLD, lambda p, d: os.setxattr(p, "user.test", b"1")),
    Op("getxattr", OLD, lambda p, d: os.getxattr(p, "user.here"), True),
    Op("listxattr", OLD, lambda p, d: os.listxattr(p)),
)
OLD_OPS = tuple(op for op in OPS if op.wants == OLD)
NEW_OPS = tuple(op for op in OPS if op.wants == NEW)
FOLLOWING = tuple(op for op in OPS if op.follows)
WRITING = tuple(op for op in OPS if op.writes_parent)


def _access(path: Any) -> None:
    # os.access hides the errno; chdir would not, but changes the process: faccessat through stat's sibling.
    if not os.access(path, os.R_OK):
        os.stat(path)
        raise PermissionError(errno.EACCES, "access")


def spare(d: Path) -> None:
    write(d / "spare")


def prepare(op: Op, path: Any) -> None:
    """Makes what an OLD call needs at *path*."""
    if op.wants == OLD:
        make(path, op.kind)
        if op.name == "getxattr":
            os.setxattr(path, "user.here", b"1")


@check(kind=LEAVES, op=OPS)
def check_prefix_is_not_a_directory(d: Path, kind: str, op: Op) -> None:
    spare(d)
    make(d / "x", kind)
    refused(errno.ENOTDIR, op.call, d / "x" / "test", d)


@check(op=OPS)
def check_prefix_does_not_exist(d: Path, op: Op) -> None:
    spare(d)
    refused(errno.ENOENT, op.call, d / "none" / "test", d)


@check(op=OPS)
def check_prefix_dangles(d: Path, op: Op) -> None:
    spare(d)
    (d / "link").symlink_to("nowhere")
    refused(errno.ENOENT, op.call, d / "link" / "test", d)


@check(op=OLD_OPS)
def check_last_component_does_not_exist(d: Path, op: Op) -> None:
    spare(d)
    refused(errno.ENOENT, op.call, d / "none", d)


@check(op=OPS)
def check_empty_path(d: Path, op: Op) -> None:
    spare(d)
    refused(errno.ENOENT, op.call, "", d)


@check(op=OPS)
def check_prefix_is_a_loop(d: Path, op: Op) -> None:
    spare(d)
    (d / "a").symlink_to("b")
    (d / "b").symlink_to("a")
    refused(errno.ELOOP, op.call, d / "a" / "test", d)


@check(op=FOLLOWING)
def check_last_component_is_a_loop(d: Path, op: Op) -> None:
    spare(d)
    (d / "a").symlink_to("b")
    (d / "b").symlink_to("a")
    refused(errno.ELOOP, op.call, d / "a", d)


@check(op=OPS)
def check_longest_name_works(d: Path, op: Op) -> None:
    spare(d)
    path = d / ("n" * NAME_MAX)
    prepare(op, path)
    op.call(path, d)


@check(op=OPS)
def check_name_too_long(d: Path, op: Op) -> None:
    spare(d)
    refused(errno.ENAMETOOLONG, op.call, d / ("n" * (NAME_MAX + 1)), d)


@check(op=OPS)
def check_prefix_too_long(d: Path, op: Op) -> None:
    spare(d)
    refused(errno.ENAMETOOLONG, op.call, d / ("n" * (NAME_MAX + 1)) / "test", d)


def deep(d: Path, length: int) -> bytes:
    """A path of exactly *length* bytes below *d*; everything but the last component exists."""
    path = os.fsencode(d)
    while length - len(path) > 2 * NAME_MAX:
        path += b"/" + b"x" * 200
        os.mkdir(path)
    if length - len(path) - 1 > NAME_MAX:
        path += b"/" + b"y" * 250
        os.mkdir(path)
    return path + b"/" + b"z" * (length - len(path) - 1)


@check(op=OPS)
def check_longest_path(d: Path, op: Op) -> None:
    spare(d)
    path = deep(d, PATH_MAX - 1)
    refused(errno.ENAMETOOLONG, op.call, path + b"z", d)
    prepare(op, path)
    op.call(path, d)


@check(op=OPS, root=True)
def check_no_search_permission(d: Path, op: Op) -> None:
    d.chmod(0o777)
    spare(d)
    os.chown(d / "spare", ALICE, ALICE)
    (d / "closed").mkdir()
    prepare(op, d / "closed" / "test")
    os.chown(d / "closed", ALICE, ALICE)
    if op.wants == OLD:
        os.lchown(d / "closed" / "test", ALICE, ALICE)
    for mode in (0o677, 0o000):
        (d / "closed").chmod(mode)
        with acting_as(ALICE):
            refused(errno.EACCES, op.call, d / "closed" / "test", d)
    (d / "closed").chmod(0o700)
    with acting_as(ALICE):
        op.call(d / "closed" / "test", d)


@check(op=WRITING, root=True)
def check_no_write_permission_on_the_parent(d: Path, op: Op) -> None:
    d.chmod(0o777)
    spare(d)
    os.chown(d / "spare", ALICE, ALICE)
    (d / "closed").mkdir()
    prepare(op, d / "closed" / "test")
    os.chown(d / "closed", ALICE, ALICE)
    if op.wants == OLD:
        os.lchown(d / "closed" / "test", ALICE, ALICE)
    (d / "closed").chmod(0o577)
    with acting_as(ALICE):
        refused(errno.EACCES, op.call, d / "closed" / "test", d)
    (d / "closed").chmod(0o300)
    with acting_as(ALICE):
        op.call(d / "closed" / "test", d)


@check(count=(1, 39, 40, 41, 42))
def check_length_of_a_chain_of_symlinks(d: Path, count: int) -> None:
    write(d / "0")
    for number in range(count):
        (d / str(number + 1)).symlink_to(str(number))
    if count <= 40:
        assert read(d / str(count)) == b"data"
    else:
        refused(errno.ELOOP, os.stat, d / str(count))


@check(op=NEW_OPS, kind=KINDS)
def check_trailing_slash_on_a_new_name(d: Path, op: Op, kind: str) -> None:
    """Only a directory can be made under a name that ends in a slash; nothing existing is harmed."""
    spare(d)
    before = os.lstat(make(d / "there", kind))
    codes = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOENT)
    if not (kind == SYMLINK and op.name == "mkdir"):
        refused(codes, op.call, os.fspath(d / "there") + "/", d)
        assert os.lstat(d / "there").st_ino == before.st_ino
    if op.name == "mkdir":
        os.mkdir(os.fspath(d / "new") + "/")
        assert (d / "new").is_dir()
    else:
        refused((errno.EISDIR, errno.ENOENT, errno.ENOTDIR), op.call, os.fspath(d / "new") + "/", d)
        assert not (d / "new").exists()
    assert (d / "spare").exists()


@check(op=OLD_OPS, kind=LEAVES)
def check_trailing_slash_on_something_else_than_a_directory(d: Path, op: Op, kind: str) -> None:
    spare(d)
    make(d / "x", kind)
    refused(errno.ENOTDIR, op.call, os.fspath(d / "x") + "/", d)


@check()
def check_trailing_slash_on_a_directory(d: Path) -> None:
    (d / "sub").mkdir()
    (d / "link").symlink_to("sub")
    name = os.fspath(d / "sub")
    assert os.path.samestat(os.lstat(name + "/"), os.lstat(name + "//"))
    assert stat.S_ISDIR(os.lstat(os.fspath(d / "link") + "/").st_mode)
    refused(errno.ENOTDIR, os.rmdir, os.fspath(d / "link") + "/")
    refused((errno.EISDIR, errno.ENOTDIR), os.unlink, name + "/")
    os.rename(name + "/", os.fspath(d / "moved") + "/")
    os.rmdir(os.fspath(d / "moved") + "/")


@check()
def check_dot_and_dotdot(d: Path) -> None:
    (d / "a" / "b").mkdir(parents=True)
    here = os.lstat(d / "a").st_ino
    assert os.lstat(f"{d}/a/.").st_ino == os.lstat(f"{d}/a/b/..").st_ino == here
    refused(errno.EINVAL, os.rmdir, f"{d}/a/b/.")
    refused(errno.ENOTEMPTY, os.rmdir, f"{d}/a/b/..")
    refused(errno.EEXIST, os.mkdir, f"{d}/a/.")
    refused(errno.EEXIST, os.mkdir, f"{d}/a/b/..")
    refused((errno.EISDIR, errno.EINVAL), os.unlink, f"{d}/a/b/.")
    refused((errno.EISDIR, errno.ENOTEMPTY), os.unlink, f"{d}/a/b/..")
    for last in (".", ".."):
        refused((errno.EBUSY, errno.EINVAL), os.rename, f"{d}/a/b/{last}", f"{d}/c")
        refused(
            (errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST), os.rename, f"{d}/a/b", f"{d}/a/{last}"
        )


@check(kind=KINDS)
def check_other_filesystem(d: Path, kind: str) -> None:
    """Nothing is linked or moved across filesystems."""
    make(d / "x", kind)
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        write(outside / "there")
        refused(errno.EXDEV, os.rename, d / "x", outside / "x")
        refused((errno.EXDEV, errno.EPERM), os.link, d / "x", outside / "x", follow_symlinks=False)
        refused(errno.EXDEV, os.link, outside / "there", d / "y")
        refused(errno.EXDEV, os.rename, outside / "there", d / "y")
        assert os.listdir(outside) == ["there"]
    assert os.listdir(d) == ["x"]


@check(kind=(REGULAR, DIRECTORY))
def check_every_byte_is_allowed_in_a_name(d: Path, kind: str) -> None:
    top = os.fsencode(d)
    names = {bytes([byte]) for byte in range(1, 256)} - {b"/", b"."}
    names |= {
        b"a\xff\xfe",
        b"\xc3\xa9",
        b"e\xcc\x81",
        b"\xed\xa0\x80",
        b"new\nline",
        b" ",
        b"  x ",
        b"-rf",
        b"...",
        b"a\\b",
    }
    names |= {bytes(range(1, 47)) + bytes(range(48, 256)), b"\xff" * NAME_MAX, ("\u20ac" * 85).encode()}
    for name in names:
        path = os.path.join(top, name)
        make(path, kind)
        if kind == REGULAR:
            write(path, name)
    assert set(os.listdir(top)) == names
    for name in names:
        path = os.path.join(top, name)
        assert stat.S_IFMT(os.lstat(path).st_mode) == S_IFMT[kind]
        if kind == REGULAR:
            assert read(path) == name


GIT_NAMES = (
    b".git",
    b".GIT",
    b".Git",
    b".git ",
    b".git.",
    b"git~1",
    b"GIT~1",
    b".g\xe2\x80\x8cit",
    b".gitmodules",
    b".gitattributes",
    b".gitignore",
    b".gitkeep",
    b"gitmod~1",
    b".git::$INDEX_ALLOCATION",
    b"HEAD",
    b"refs",
    b"CON",
    b"aux.txt",
    b"a:b",
    b"a\\..\\b",
    b".caiafs",
)


@check(kind=KINDS, name=tuple(name.decode() for name in GIT_NAMES))
def check_names_that_mean_something_to_git(d: Path, kind: str, name: str) -> None:
    path = make(d / name, kind)
    if kind == REGULAR:
        write(path)
    if kind == DIRECTORY:
        write(path / "config")
        (path / ".git").mkdir()
        write(path / ".git" / "HEAD", b"not a ref\n")
        assert sorted(os.listdir(path)) == [".git", "config"]
    assert os.listdir(d) == [name]
    os.rename(path, d / "moved")
    os.rename(d / "moved", path)
    assert stat.S_IFMT(os.lstat(path).st_mode) == S_IFMT[kind]


@check()
def check_names_that_differ_only_in_case_or_normal_form(d: Path) -> None:
    names = ["Readme", "README", "readme", "\u00e9", "e\u0301", "\u212b", "\u00c5"]
    for name in names:
        write(d / name, name.encode())
    assert sorted(os.listdir(d)) == sorted(names)
    assert all(read(d / name) == name.encode() for name in names)


@check()
def check_names_that_git_sorts_in_its_own_way(d: Path) -> None:
    """git orders a directory as if its name ended in a slash."""
    for name in ("a", "b", "a.b", "a-b"):
        make(d / name, DIRECTORY)
        write(d / name / "x", name.encode())
    for name in ("a.", "a0", "a-", "b.c", "b0", "a_b", "a!"):
        write(d / name, name.encode())
    assert len(os.listdir(d)) == 11


@check(kind=NOT_SYMLINK)
def check_symlink_in_the_prefix_is_followed(d: Path, kind: str) -> None:
    (d / "sub").mkdir()
    (d / "link").symlink_to("sub")
    make(d / "link" / "x", kind, 0o640)
    assert mode_of(d / "sub" / "x") == 0o640
    assert os.lstat(d / "sub" / "x").st_ino == os.lstat(d / "link" / "x").st_ino


@check()
def check_deep_tree(d: Path) -> None:
    """A tree far deeper than PATH_MAX, walked with relative paths; find and rm do the same."""
    fds = [os.open(d, os.O_RDONLY)]
    for _ in range(30):
        os.mkdir(b"x" * NAME_MAX, dir_fd=fds[-1])
        fds.append(os.open(b"x" * NAME_MAX, os.O_RDONLY, dir_fd=fds[-1]))
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fds[-1]))
    assert os.listdir(fds[-1]) == ["end"]
    assert os.stat("..", dir_fd=fds[-1]).st_ino == os.fstat(fds[-2]).st_ino
    for fd in fds:
        os.close(fd)
