"""What comes back after an unmount, after kill -9, and in a clone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.mounts import Mount, run
from support.snapshots import Snapshot, assert_same, differences, settled, snapshot
from support.zoo import populate


def as_git_sees(tree: Snapshot) -> dict[bytes, tuple[str, bool, str]]:
    """Files and symlinks only: kind, executable for the owner, content. What git can hold."""
    return {
        path: ("link" if stat.S_ISLNK(node.mode) else "file", bool(node.mode & 0o100), node.content)
        for path, node in tree.items()
        if stat.S_ISREG(node.mode) or stat.S_ISLNK(node.mode)
        if not any(part.lower() == b".git" for part in path.split(b"/"))
    }


def test_everything_is_back_after_a_remount(mount: Mount) -> None:
    """Modes, owners, nanosecond times, attributes, links, empty directories, devices, inode numbers."""
    populate(mount.path)
    mount.remount()  # so that reading reaches the filesystem, and moves access times as it will
    before = settled(mount.path)
    for _ in range(2):
        mount.remount()
        assert_same(before, snapshot(mount.path))


def test_everything_is_back_after_kill_9(mount: Mount) -> None:
    """But for access times that only reading moved: those are written lazily."""
    populate(mount.path)
    before = settled(mount.path)
    mount.kill()
    mount.start()
    assert_same(before, snapshot(mount.path), ignore=["atime_ns"])
    mount.commit()
    mount.kill()
    mount.start()
    assert_same(before, snapshot(mount.path), ignore=["atime_ns"])
    mount.remount()
    assert_same(before, snapshot(mount.path), ignore=["atime_ns"])


def test_changes_after_a_commit_are_back_after_kill_9(mount: Mount) -> None:
    """The journal on top of a commit, over what the commit already holds."""
    populate(mount.path)
    mount.commit()
    root = mount.path
    os.rename(root / "many", root / "renamed")
    os.unlink(root / "two")
    os.truncate(root / "large", 12_345)
    with (root / "sparse").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"middle")
    for number in range(0, 300, 3):
        os.unlink(root / "renamed" / f"file{number:03}")
    os.rename(root / "empty" / "three", root / "renamed" / "three")
    os.setxattr(root / "one", "user.comment", b"changed")
    (root / "modes" / "0644").chmod(0o611)
    (root / "link").unlink()
    (root / "link").mkdir()
    os.utime(root / "large", ns=(1, 999_999_999))
    before = settled(root)
    mount.kill()
    mount.start()
    assert_same(before, snapshot(root), ignore=["atime_ns"])
    mount.remount()
    assert_same(before, snapshot(root), ignore=["atime_ns"])


def test_inode_numbers_are_never_used_twice(mount: Mount) -> None:
    """make, rsync and git's index take an inode number for an identity, also over a remount."""
    seen: dict[int, str] = {}
    for round_ in range(3):
        for number in range(30):
            path = mount.path / f"f{round_}-{number}"
            path.write_bytes(b"x")
            assert seen.setdefault(path.stat().st_ino, path.name) == path.name
            if number % 3 == 0:
                path.unlink()
        if round_ == 1:
            mount.kill()
            mount.start()
        else:
            mount.remount()
    for path in mount.path.iterdir():
        assert seen[path.stat().st_ino] == path.name


def test_clone_gives_the_same_tree(mount: Mount, disk: Path) -> None:
    populate(mount.path)
    (mount.path / "deep" / "er").mkdir(parents=True)
    (mount.path / "deep" / "er" / "tool").write_text("#!/bin/sh\n")
    (mount.path / "deep" / "er" / "tool").chmod(0o755)
    os.chmod(mount.path / "modes" / "0000", 0o644)
    commit = mount.commit()
    run("git", "clone", "-q", mount.repository, disk / "clone")
    assert run("git", "-C", disk / "clone", "rev-parse", "HEAD").stdout.strip() == commit
    assert run("git", "-C", disk / "clone", "status", "--porcelain").stdout == ""
    assert as_git_sees(snapshot(mount.path)) == as_git_sees(snapshot(disk / "clone"))


def test_plain_repository_mounts_as_it_is(mount: Mount, disk: Path) -> None:
    """Made by git alone, cloned over plain git, with a submodule-free history of several commits."""
    work = disk / "work"
    script = """
        set -eu
        git init -q "$1" && cd "$1"
        mkdir -p a/b && echo one > a/b/one && ln -s one a/b/link && echo '#!/bin/sh' > run
        chmod +x run
        git add . && git commit -qm first && echo two > two && git add . && git commit -qm second
        git push -q "$2" HEAD:refs/heads/main
    """
    mount.umount()
    run("sh", "-c", script, "sh", work, mount.repository)
    tip = mount.tip()
    mount.start()
    assert (mount.path / "a" / "b" / "link").read_text() == "one\n"
    assert os.access(mount.path / "run", os.X_OK)
    assert as_git_sees(snapshot(mount.path)) == as_git_sees(snapshot(work))
    assert mount.tip() == tip, "looking must not commit"
    (mount.path / "a" / "b" / "one").write_text("changed\n")
    mount.commit()
    assert mount.git("log", "--format=%s").splitlines()[1:] == ["second", "first"]
    assert mount.git("diff", "--name-only", "HEAD~1", "HEAD").split() == ["a/b/one"]
    before = settled(mount.path)
    mount.remount()
    assert_same(before, snapshot(mount.path))


def test_reading_changes_nothing_that_is_committed(mount: Mount) -> None:
    populate(mount.path)
    mount.commit()
    tip = mount.tip()
    snapshot(mount.path)
    run("grep", "-rl", "content", mount.path / "modes", status=None)
    mount.remount()
    snapshot(mount.path)
    assert mount.tip() == tip


def test_side_records_yield_to_what_came_from_outside(mount: Mount, disk: Path) -> None:
    """A file replaced by an outside commit while nothing was mounted takes git's word over old attributes."""
    (mount.path / "a").write_text("inside\n")
    (mount.path / "b").write_text("kept\n")
    os.chmod(mount.path / "a", 0o600)
    os.chmod(mount.path / "b", 0o600)
    mount.umount()
    script = 'git clone -q "$1" "$2"; cd "$2"; echo outside > a; chmod +x a; git commit -qam out; git push -q'
    run("sh", "-euc", script, "sh", mount.repository, disk / "work")
    mount.start()
    assert (mount.path / "a").read_text() == "outside\n"
    assert os.access(mount.path / "a", os.X_OK)
    assert (mount.path / "b").stat().st_mode & 0o777 == 0o600


def test_open_but_unlinked_files_leave_nothing(mount: Mount) -> None:
    fds = []
    for number in range(10):
        fds.append(os.open(mount.path / f"f{number}", os.O_CREAT | os.O_RDWR))
        os.write(fds[-1], b"gone" * 1000)
        os.unlink(mount.path / f"f{number}")
    (mount.path / "kept").write_bytes(b"kept")
    mount.commit()
    for fd in fds:
        assert os.pread(fd, 4, 0) == b"gone"
        os.pwrite(fd, b"GONE", 0)
        assert os.pread(fd, 8, 0) == b"GONEgone"
        os.close(fd)
    mount.remount()
    assert os.listdir(mount.path) == ["kept"]
    assert mount.git("ls-tree", "-r", "--name-only", "HEAD").split() == ["kept"]


def test_two_branches_side_by_side(mount: Mount) -> None:
    (mount.path / "common").write_text("of main\n")
    mount.commit()
    mount.git("branch", "side", "main")
    other = Mount(mount.base, "branch=side", repository=mount.repository, name="side")
    try:
        other.start()
        assert (other.path / "common").read_text() == "of main\n"
        (other.path / "common").write_text("of side\n")
        (mount.path / "new").write_text("main only\n")
        other.commit()
        mount.commit()
        assert (mount.path / "common").read_text() == "of main\n"
        assert not (other.path / "new").exists()
        assert mount.git("show", "side:common") == "of side\n"
        assert mount.git("show", "main:common") == "of main\n"
        other.umount()
        other.assert_quiet_log()
    finally:
        other.close()


def test_read_only_mount(mount: Mount) -> None:
    populate(mount.path)
    before = settled(mount.path)
    mount.umount()
    tip = mount.tip()
    mount.options.append("ro")
    mount.start()
    assert not differences(before, snapshot(mount.path), ignore=["atime_ns"])
    for call in (
        lambda: (mount.path / "new").write_text("x"),
        lambda: (mount.path / "one").unlink(),
        lambda: (mount.path / "one").chmod(0o600),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            call()
    mount.umount()
    assert mount.tip() == tip
    mount.options.remove("ro")


def test_read_only_mount_shows_what_the_journal_has_and_how_old_that_is(mount: Mount) -> None:
    mount.umount()
    mount.options = ["commit_quiet=1h"]
    mount.start()
    (mount.path / "new").write_text("x")
    mount.kill()
    mount.options = ["ro"]
    mount.start()
    assert (mount.path / "new").read_text() == "x"
    commits = mount.stats()["storage_stats"]["commits"]
    assert commits["uncommitted_changes"] > 0
    assert commits["oldest_uncommitted_seconds"] < 3600, "by the clock of this mount"
    mount.umount()
    mount.options = []
    mount.start()
    assert (mount.path / "new").read_text() == "x"
