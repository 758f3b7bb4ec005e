"""A whole tree at one moment: every attribute that lstat shows, extended attributes and content.

Two snapshots compare to a list of differences that a person can read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Node:
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    inode: int
    device: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: str  # a digest, a link's target, or nothing


Snapshot = dict[bytes, Node]


def node(path: bytes) -> Node:
    info = os.lstat(path)
    content = ""
    if stat.S_ISREG(info.st_mode):
        content = digest(path)
    elif stat.S_ISLNK(info.st_mode):
        content = repr(os.readlink(path))
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    names = sorted(
        name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("user.caiafs.")
    )
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    return Node(
        info.st_mode,
        info.st_uid,
        info.st_gid,
        size,
        info.st_nlink,
        info.st_ino,
        info.st_rdev,
        info.st_atime_ns,
        info.st_mtime_ns,
        info.st_ctime_ns,
        xattrs,
        content,
    )


def digest(path: bytes | str | os.PathLike[str]) -> str:
    with open(path, "rb", buffering=0, opener=_without_atime) as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _without_atime(path: str | bytes, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def snapshot(root: str | os.PathLike[str]) -> Snapshot:
    """Every entry below *root* and *root* itself, by its path relative to it."""
    top = os.fsencode(root)
    found: Snapshot = {}
    fd = os.open(top, os.O_RDONLY)
    _walk(fd, b"", found)
    os.close(fd)
    found[b"."] = node(top)
    return found


def settled(root: str | os.PathLike[str]) -> Snapshot:
    """A snapshot that the next one equals: by then relatime has nothing left to move."""
    snapshot(root)
    time.sleep(0.02)
    return snapshot(root)


def _walk(folder: int, prefix: bytes, found: Snapshot) -> None:
    """By descriptors, since a tree may be deeper than the longest path.

    A directory is looked at after it was listed: the listing itself may move its access time.
    """
    for name in map(os.fsencode, os.listdir(folder)):
        path = b"/proc/self/fd/%d/%s" % (folder, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            _walk(fd, prefix + name + b"/", found)
            os.close(fd)
        found[prefix + name] = node(path)


def differences(before: Snapshot, after: Snapshot, ignore: Collection[str] = ()) -> list[str]:
    """What changed, one line each; *ignore* names fields of Node."""
    lines = [f"{_shown(path)}: gone" for path in before.keys() - after.keys()]
    lines += [f"{_shown(path)}: new" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        for field in fields(Node):
            old, new = getattr(before[path], field.name), getattr(after[path], field.name)
            if old != new and field.name not in ignore:
                shown = f"{old:o} -> {new:o}" if field.name == "mode" else f"{old!r:.200} -> {new!r:.200}"
                lines.append(f"{_shown(path)}: {field.name} {shown}")
    return sorted(lines)


def _shown(path: bytes) -> str:
    text = repr(os.fsdecode(path))
    return text if len(text) < 100 else f"{text[:60]}…{text[-30:]}"


def assert_same(before: Snapshot, after: Snapshot, ignore: Collection[str] = ()) -> None:
    lines = differences(before, after, ignore)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:30])
