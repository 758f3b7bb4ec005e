"""Bad input at the height of a real mount: what the kernel, ls, rm and git make of it."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest
from support.mounts import Mount, Mounts, run

AUTHOR = ("-c", "user.name=x", "-c", "user.email=x@example.org")


def git(mount: Mount, *words: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["git", "-C", mount.repository, *AUTHOR, *words], input=stdin, capture_output=True, env=mount.env
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def blob(mount: Mount, data: bytes = b"good\n") -> bytes:
    return bytes.fromhex(git(mount, "hash-object", "-w", "--stdin", stdin=data))


def tree(mount: Mount, *entries: tuple[bytes, bytes, bytes]) -> bytes:
    data = b"".join(b"%b %b\0%b" % entry for entry in entries)
    return bytes.fromhex(git(mount, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=data))


def push(mount: Mount, top: bytes) -> str:
    """A commit of *top* on the branch of *mount*, made by git."""
    old = git(mount, "for-each-ref", "--format=%(objectname)", "refs/heads/main")
    commit = git(mount, "commit-tree", top.hex(), "-m", "outside", *(["-p", old] if old else []))
    git(mount, "update-ref", "refs/heads/main", commit)
    return commit


def repository(mounts: Mounts) -> Mount:
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", "-b", "main", mount.repository)
    return mount


def heal(mount: Mount) -> None:
    """A good tree on top, made outside, so that the mount ends as every mount has to."""
    push(mount, tree(mount, (b"100644", b"healed", blob(mount))))
    mount.start()
    assert os.listdir(mount.path) == ["healed"]
    git(mount, "update-ref", "-d", "refs/heads/bad") if (
        mount.repository / "refs/heads/bad"
    ).exists() else None


def test_a_hostile_tree_is_listed_without_what_cannot_be_shown(mounts: Mounts) -> None:
    mount = repository(mounts)
    good = blob(mount)
    bad = tree(mount, (b"100644", b"..", good), (b"100644", b"x", good))
    push(
        mount,
        tree(
            mount,
            (b"100644", b"..", good),
            (b"100644", b"/etc/passwd", good),
            (b"40000", b"bad", bad),
            (b"100644", b"n" * 400, good),
            (b"100644", b"twice", good),
            (b"40000", b"twice", bad),
            (b"100644", b"z", good),
        ),
    )
    mount.expect_log("cannot be shown")
    mount.start()
    assert sorted(os.listdir(mount.path)) == ["bad", "z"]
    assert os.listdir(mount.path / "bad") == ["x"]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.stat(mount.path / "twice")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (mount.path / "twice").write_bytes(b"mine")
    (mount.path / "bad" / "x").unlink()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        (mount.path / "bad").rmdir()
    health = mount.stats("health.json")
    assert health["state"] == "degraded"
    assert any("cannot be shown" in reason for reason in health["reasons"])
    (mount.path / "new").write_bytes(b"new")
    mount.commit()
    assert b"\x00" not in mount.log().encode()
    raw = subprocess.run(
        ["git", "-C", mount.repository, "cat-file", "tree", "main^{tree}"], capture_output=True, env=mount.env
    ).stdout
    assert b"100644 ..\0" + good in raw
    assert b"100644 twice\0" + good in raw
    mount.umount()
    done = mount.caiafs("check", mount.repository, status=1)
    assert "cannot be shown" in done.stdout
    heal(mount)
    gc(mount)


def gc(mount: Mount) -> None:
    """History without what git fsck would complain of: the mount's end looks at all of it."""
    mount.commit()
    mount.umount()
    top = git(mount, "rev-parse", "main^{tree}")
    git(mount, "update-ref", "refs/heads/main", git(mount, "commit-tree", top, "-m", "anew"))
    git(mount, "update-ref", "-d", "refs/caiafs/main")
    for path in (mount.repository / "caiafs" / "main").glob("*.seg"):
        path.unlink()
    git(mount, "-c", "gc.reflogExpire=now", "gc", "-q", "--prune=now")


def test_symlinks_that_no_link_can_be_are_errors(mounts: Mounts) -> None:
    mount = repository(mounts)
    push(
        mount,
        tree(
            mount,
            (b"120000", b"long", blob(mount, b"x" * 5000)),
            (b"120000", b"nul", blob(mount, b"a\0b")),
            (b"120000", b"out", blob(mount, b"../../../../../../etc/hostname")),
            (b"160000", b"submodule", b"\x11" * 20),
        ),
    )
    mount.expect_log("readlink: symlink")
    mount.start()
    for name in ("long", "nul"):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.readlink(mount.path / name)
    assert os.readlink(mount.path / "out") == "../../../../../../etc/hostname"
    assert os.listdir(mount.path / "submodule") == []
    (mount.path / "submodule" / "inside").write_bytes(b"kept")
    mount.commit()
    mount.remount()
    assert (mount.path / "submodule" / "inside").read_bytes() == b"kept"


def test_a_damaged_journal_stops_the_mount_with_its_reason(mounts: Mounts) -> None:
    mount = mounts()
    (mount.path / "f").write_bytes(b"first")
    mount.kill()
    state = mount.repository / "caiafs" / "main"
    (segment,) = state.glob("*.seg")
    (state / "0000000001000000.seg").symlink_to("/etc/passwd")
    done = mount.caiafs("mount", mount.repository, mount.path, status=32)
    assert "a symbolic link stands where a segment should" in done.stderr
    (state / "0000000001000000.seg").unlink()
    data = bytearray(segment.read_bytes())
    data[7] = ord("2")
    data[50] ^= 1
    segment.write_bytes(data)
    done = mount.caiafs("mount", mount.repository, mount.path, status=32)
    assert "a newer caiafs wrote it" in done.stderr
    data[7] = ord("1")
    data[50] ^= 1
    segment.write_bytes(data)
    mount.start()
    assert (mount.path / "f").read_bytes() == b"first"


def test_a_branch_that_is_no_commit_stops_the_mount_with_its_reason(mounts: Mounts) -> None:
    mount = repository(mounts)
    commit = push(mount, tree(mount, (b"100644", b"f", blob(mount))))
    tag = f"object {commit}\ntype commit\ntag v\ntagger x <x@x> 0 +0000\n\nm\n"
    oid = git(mount, "hash-object", "-w", "-t", "tag", "--stdin", stdin=tag.encode())
    Path(mount.repository / "refs/heads/main").write_text(oid + "\n")
    done = mount.caiafs("mount", mount.repository, mount.path, status=32)
    assert "is a tag where a commit belongs" in done.stderr
    git(mount, "update-ref", "refs/heads/main", commit)
    mount.start()
    assert os.listdir(mount.path) == ["f"]


def _write_and_sync(file: BinaryIO) -> None:
    """The kernel takes the bytes; what the mount makes of them, fsync tells."""
    file.write(b"far")
    file.flush()
    os.fsync(file.fileno())


def test_a_file_as_large_as_numbers_go_is_refused_and_wedges_nothing(mount: Mount) -> None:
    mount.expect_log("could not hand over everything it holds: .* File too large")
    path = mount.path / "huge"
    path.write_bytes(b"small")
    for size in (2**63 - 1, 64 * 2**30 + 1):
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.truncate(path, size)
    assert "too large" in run("truncate", "-s", "8E", path, status=1).stderr
    with path.open("r+b") as file:
        file.seek(2**40)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            _write_and_sync(file)
        file.truncate(5)
    os.truncate(path, 160 << 20)
    mount.commit()
    os.truncate(path, 5)
    assert path.read_bytes() == b"small"
    mount.commit()
    assert mount.git("show", "main:huge") == "small"
