"""An ordinary user's mount, through fusermount3, with and without allow_other; and root's, for all.

Whether ordinary users may use FUSE at all, and allow_other, is the machine's decision: the mode of
/dev/fuse and a line in /etc/fuse.conf. Each test of an ordinary user decides that for itself, in a
mount namespace of its own that ends with its process, so nothing changes outside.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, need_fuse, run
from support.users import (
    ALICE,
    BOB,
    acting_as,
    as_user,
    in_child,
    join,
    need_root,
    own_namespace,
    words_as_nobody,
)


def with_a_users_mount(
    disk: Path, work: Callable[[Mount], None], *options: str, others: bool = False
) -> None:
    """In a child with mounts of its own: *work* on a prepared mount whose daemon will be an ordinary user's.

    *others*: whether the administrator allows allow_other. The mount is verified as any other.
    """
    need_root()
    need_fuse()
    if not shutil.which("setpriv") or not Path("/etc/fuse.conf").exists():
        pytest.skip("setpriv or /etc/fuse.conf is missing")

    def inside() -> None:
        own_namespace()
        os.mknod(disk / "fuse", stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        (disk / "fuse").chmod(0o666)
        (disk / "fuse.conf").write_text("user_allow_other\n" if others else "")
        (disk / "fuse.conf").chmod(0o644)
        run("mount", "--bind", disk / "fuse", "/dev/fuse")
        run("mount", "--bind", disk / "fuse.conf", "/etc/fuse.conf")
        mounts = Mounts(disk)
        mount = mounts.prepare(*options, prefix=words_as_nobody())
        for path in (mount.base, mount.path):
            os.chown(path, ALICE, ALICE)
        try:
            work(mount)
            mounts.finish()
        finally:
            mount.close()

    join(in_child(inside))


def test_ordinary_user_mounts_for_himself(disk: Path) -> None:
    def work(mount: Mount) -> None:
        def inside() -> None:
            (mount.path / "a").write_text("mine\n")
            (mount.path / "sub").mkdir()
            assert (mount.path / "a").stat().st_uid == ALICE
            assert os.listdir(mount.path / ".stats")

        mount.start()
        as_user(ALICE, inside)
        for look in (lambda: os.listdir(mount.path), lambda: os.stat(mount.path / "a")):
            with pytest.raises(PermissionError):  # not even root gets in
                look()
        commit = mount.commit()
        mount.umount()
        assert mount.git("show", "main:a") == "mine\n"
        assert mount.tip() == commit
        mount.start()
        as_user(ALICE, lambda: (mount.path / "a").rename(mount.path / "b"))

    with_a_users_mount(disk, work)


def test_allow_other_needs_the_administrator(disk: Path) -> None:
    def work(mount: Mount) -> None:
        with pytest.raises(pytest.fail.Exception, match="user_allow_other"):
            mount.start()

    with_a_users_mount(disk, work, "allow_other")


def test_ordinary_user_mounts_for_all(disk: Path) -> None:
    def work(mount: Mount) -> None:
        mount.start()
        with acting_as(ALICE):
            (mount.path / "a").write_text("mine\n")
            (mount.path / "a").chmod(0o640)
            (mount.path / "all").mkdir()
            (mount.path / "all").chmod(0o777)
        with acting_as(BOB):
            with pytest.raises(PermissionError):
                (mount.path / "a").read_text()
            (mount.path / "all" / "bob").write_text("his\n")
        assert (mount.path / "all" / "bob").stat().st_uid == BOB

    with_a_users_mount(disk, work, "allow_other", others=True)


def test_ordinary_user_cannot_do_what_only_root_may(disk: Path) -> None:
    def work(mount: Mount) -> None:
        def inside() -> None:
            (mount.path / "a").write_text("mine\n")
            with pytest.raises(OSError, match="not permitted"):
                os.chown(mount.path / "a", BOB, -1)
            with pytest.raises(OSError, match="not permitted"):
                os.mknod(mount.path / "dev", 0o20600, os.makedev(1, 3))

        mount.start()
        as_user(ALICE, inside)

    with_a_users_mount(disk, work)


def test_killed_users_daemon_leaves_nothing_behind(disk: Path) -> None:
    def work(mount: Mount) -> None:
        mount.start()
        as_user(ALICE, lambda: (mount.path / "a").write_text("mine\n"))
        mount.kill()
        mount.start()

        def inside() -> None:
            assert (mount.path / "a").read_text() == "mine\n"

        as_user(ALICE, inside)

    with_a_users_mount(disk, work)


def test_root_mount_without_allow_other_is_closed_to_users(mounts: Mounts) -> None:
    need_root()
    mount = mounts()
    (mount.path / "a").write_text("root's\n")
    (mount.path / "a").chmod(0o644)
    with acting_as(ALICE), pytest.raises(PermissionError):
        os.stat(mount.path / "a")


def test_root_mount_with_allow_other_goes_by_the_modes(mounts: Mounts) -> None:
    need_root()
    mount = mounts("allow_other")
    (mount.path / "open").write_text("for all\n")
    (mount.path / "closed").write_text("for root\n")
    (mount.path / "closed").chmod(0o600)
    (mount.path / "shared").mkdir()
    (mount.path / "shared").chmod(0o1777)
    with acting_as(ALICE):
        assert (mount.path / "open").read_text() == "for all\n"
        with pytest.raises(PermissionError):
            (mount.path / "closed").read_text()
        (mount.path / "shared" / "alice").write_text("hers\n")
        assert (mount.path / ".stats" / "health.json").read_text()
    with acting_as(BOB), pytest.raises(PermissionError):
        (mount.path / "shared" / "alice").unlink()
    mount.remount()
    assert (mount.path / "shared" / "alice").stat().st_uid == ALICE
