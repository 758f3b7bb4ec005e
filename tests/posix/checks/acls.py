"""POSIX access control lists, set and shown by setfacl and getfacl."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

from support.users import ALICE, BOB, CAROL, acting_as

from .kit import DIRECTORY, REGULAR, check, make, mode_of, opened, refused, skip, times_of, write


def setfacl(*words: str | Path) -> None:
    if not shutil.which("setfacl"):
        skip("setfacl is not installed")
    done = subprocess.run(["setfacl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def getfacl(path: Path) -> list[str]:
    words = ["getfacl", "--numeric", "--omit-header", "--absolute-names", "--no-effective", os.fspath(path)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


@check(kind=(REGULAR, DIRECTORY))
def check_plain_mode_is_a_small_acl(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o640)
    setfacl("-m", "u::rwx,g::r,o::-", d / "x")
    assert getfacl(d / "x") == ["user::rwx", "group::r--", "other::---"]
    assert mode_of(d / "x") == 0o740
    assert "system.posix_acl_access" not in os.listxattr(d / "x")


@check(kind=(REGULAR, DIRECTORY))
def check_an_acl_that_is_not_there_can_be_removed(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o640)
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.removexattr(d / "x", name)
    assert mode_of(d / "x") == 0o640


@check(kind=(REGULAR, DIRECTORY))
def check_named_entries_come_back(d: Path, kind: str) -> None:
    make(d / "x", kind, 0o640)
    with times_of(d / "x", "c"):
        setfacl("-m", f"u:{ALICE}:rwx,g:{BOB}:r,u:{CAROL}:-", d / "x")
    assert getfacl(d / "x") == [
        "user::rw-",
        f"user:{CAROL}:---",
        f"user:{ALICE}:rwx",
        "group::r--",
        f"group:{BOB}:r--",
        "mask::rwx",
        "other::---",
    ]
    assert mode_of(d / "x") == 0o670
    assert "system.posix_acl_access" in os.listxattr(d / "x")
    setfacl("-b", d / "x")
    assert getfacl(d / "x") == ["user::rw-", "group::r--", "other::---"]
    assert mode_of(d / "x") == 0o640


@check()
def check_chmod_moves_the_mask(d: Path) -> None:
    make(d / "x", REGULAR, 0o640)
    setfacl("-m", f"u:{ALICE}:rw", d / "x")
    os.chmod(d / "x", 0o604)
    assert getfacl(d / "x") == ["user::rw-", f"user:{ALICE}:rw-", "group::r--", "mask::---", "other::r--"]
    setfacl("-m", "m::r", d / "x")
    assert mode_of(d / "x") == 0o644


@check(root=True)
def check_entries_are_enforced(d: Path) -> None:
    write(d / "x")
    os.chown(d / "x", CAROL, CAROL)
    os.chmod(d / "x", 0o600)
    with acting_as(ALICE):
        refused(errno.EACCES, os.open, d / "x", os.O_RDONLY)
    setfacl("-m", f"u:{ALICE}:r,g:{BOB}:rw", d / "x")
    with acting_as(ALICE):
        os.close(os.open(d / "x", os.O_RDONLY))
        refused(errno.EACCES, os.open, d / "x", os.O_WRONLY)
    with acting_as(ALICE, BOB):  # the named user's entry is the only one that counts
        refused(errno.EACCES, os.open, d / "x", os.O_WRONLY)
    with acting_as(BOB):
        os.close(os.open(d / "x", os.O_RDWR))
    with acting_as(1234, 1234, [BOB]):
        os.close(os.open(d / "x", os.O_RDWR))
    setfacl("-m", "m::r", d / "x")
    with acting_as(BOB):
        refused(errno.EACCES, os.open, d / "x", os.O_RDWR)
        os.close(os.open(d / "x", os.O_RDONLY))
    setfacl("-m", f"u:{ALICE}:-,o::r", d / "x")
    with acting_as(ALICE):
        refused(errno.EACCES, os.open, d / "x", os.O_RDONLY)
    with acting_as(1234):
        os.close(os.open(d / "x", os.O_RDONLY))
    setfacl("-b", d / "x")
    with acting_as(BOB):
        refused(errno.EACCES, os.open, d / "x", os.O_WRONLY)


@check(root=True)
def check_entries_of_a_directory_are_enforced(d: Path) -> None:
    (d / "x").mkdir(0o700)
    write(d / "x" / "f")
    setfacl("-m", f"u:{ALICE}:rx,u:{BOB}:wx", d / "x")
    with acting_as(ALICE):
        assert os.listdir(d / "x") == ["f"]
        refused(errno.EACCES, os.mkdir, d / "x" / "new")
    with acting_as(BOB):
        refused(errno.EACCES, os.listdir, d / "x")
        os.mkdir(d / "x" / "new")
        os.unlink(d / "x" / "f")


@check(umask=(0o000, 0o022, 0o077))
def check_default_acl_is_inherited_and_the_umask_is_not_applied(d: Path, umask: int) -> None:
    (d / "x").mkdir()
    setfacl("-m", f"d:u::rwx,d:g::rx,d:o::-,d:u:{ALICE}:rwx", d / "x")
    os.umask(umask)
    (d / "x" / "sub").mkdir(0o777)
    os.close(os.open(d / "x" / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkfifo(d / "x" / "fifo", 0o666)
    os.mknod(d / "x" / "node", stat.S_IFREG | 0o640)
    os.symlink("t", d / "x" / "link")
    os.umask(0o022)
    assert mode_of(d / "x" / "sub") == 0o770
    assert mode_of(d / "x" / "file") == 0o660
    assert mode_of(d / "x" / "fifo") == 0o660
    assert mode_of(d / "x" / "node") == 0o640
    assert getfacl(d / "x" / "file") == [
        "user::rw-",
        f"user:{ALICE}:rwx",
        "group::r-x",
        "mask::rw-",
        "other::---",
    ]
    inherited = ["user::rwx", f"user:{ALICE}:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert getfacl(d / "x" / "sub") == [*inherited, *[f"default:{line}" for line in inherited]]
    assert os.listxattr(d / "x" / "link", follow_symlinks=False) == []
    (d / "x" / "sub" / "deeper").mkdir(0o700)
    assert getfacl(d / "x" / "sub" / "deeper")[5:] == [f"default:{line}" for line in inherited]
    assert mode_of(d / "x" / "sub" / "deeper") == 0o700


@check()
def check_default_acl_of_three_entries_is_a_mode(d: Path) -> None:
    (d / "x").mkdir()
    setfacl("-m", "d:u::rw,d:g::r,d:o::r", d / "x")
    os.umask(0o777)
    os.close(os.open(d / "x" / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.umask(0o022)
    assert mode_of(d / "x" / "file") == 0o644
    assert "system.posix_acl_access" not in os.listxattr(d / "x" / "file")
    setfacl("-k", d / "x")
    os.close(os.open(d / "x" / "later", os.O_CREAT | os.O_WRONLY, 0o666))
    assert mode_of(d / "x" / "later") == 0o644
    assert getfacl(d / "x") == ["user::rwx", "group::r-x", "other::r-x"]


@check()
def check_default_acl_is_for_directories(d: Path) -> None:
    write(d / "x")
    (d / "y").mkdir()
    setfacl("-m", f"d:u:{ALICE}:r", d / "y")
    value = os.getxattr(d / "y", "system.posix_acl_default")
    refused(errno.EACCES, os.setxattr, d / "x", "system.posix_acl_default", value)
    refused((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, d / "x", "system.posix_acl_access", b"nonsense")
    assert os.listxattr(d / "x") == []


@check(root=True)
def check_acl_is_set_by_the_owner(d: Path) -> None:
    d.chmod(0o777)
    write(d / "x")
    os.chown(d / "x", ALICE, ALICE)
    setfacl("-m", f"u:{CAROL}:r", d / "x")
    value = os.getxattr(d / "x", "system.posix_acl_access")
    with acting_as(BOB):
        refused(errno.EPERM, os.setxattr, d / "x", "system.posix_acl_access", value)
        refused(errno.EPERM, os.removexattr, d / "x", "system.posix_acl_access")
        assert os.getxattr(d / "x", "system.posix_acl_access") == value
    with acting_as(ALICE):
        os.removexattr(d / "x", "system.posix_acl_access")
        os.setxattr(d / "x", "system.posix_acl_access", value)


@check(root=True)
def check_setting_an_acl_takes_set_gid_from_a_stranger(d: Path) -> None:
    write(d / "x")
    os.chown(d / "x", ALICE, BOB)
    setfacl("-m", f"u:{CAROL}:rx", d / "x")
    value = os.getxattr(d / "x", "system.posix_acl_access")
    os.chmod(d / "x", 0o2755)
    with acting_as(ALICE):
        os.setxattr(d / "x", "system.posix_acl_access", value)
    assert not os.stat(d / "x").st_mode & stat.S_ISGID


@check()
def check_acl_travels_with_the_file(d: Path) -> None:
    (d / "sub").mkdir()
    write(d / "x")
    setfacl("-m", f"u:{ALICE}:r", d / "x")
    wanted = getfacl(d / "x")
    os.link(d / "x", d / "y")
    os.rename(d / "x", d / "sub" / "x")
    assert getfacl(d / "sub" / "x") == getfacl(d / "y") == wanted
    with opened(d / "y", os.O_RDWR | os.O_TRUNC) as fd:
        os.fchmod(fd, 0o600)
    assert "mask::---" in getfacl(d / "sub" / "x")


@check(root=True)
def check_write_permission_by_acl_lets_touch(d: Path) -> None:
    write(d / "x")
    os.chmod(d / "x", 0o600)
    setfacl("-m", f"u:{ALICE}:rw", d / "x")
    with acting_as(ALICE):
        os.utime(d / "x")
        os.truncate(d / "x", 1)
        assert os.access(d / "x", os.W_OK)
        assert not os.access(d / "x", os.X_OK)
