"""A whole tree at one moment: every attribute that lstat shows, extended attributes and content.

Two snapshots compare to a list of differences that a person can read.
"""

from __future__ import annotations

import hashlib
import os
import stat
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
        return hashlib.file_digest(file, "sha1").hexdigest()  # type: ignore[arg-type]


def _without_atime(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def snapshot(root: str | os.PathLike[str]) -> Snapshot:
    """Every entry below *root* and *root* itself, by its path relative to it."""
    top = os.fsencode(root)
    found = {b".": node(top)}
    for folder, folders, files in os.walk(top, onerror=_raise):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = node(path)
    return found


def _raise(error: OSError) -> None:
    raise error


def differences(before: Snapshot, after: Snapshot, ignore: Collection[str] = ()) -> list[str]:
    """What changed, one line each; *ignore* names fields of Node."""
    lines = [f"{os.fsdecode(path)!r}: gone" for path in before.keys() - after.keys()]
    lines += [f"{os.fsdecode(path)!r}: new" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        for field in fields(Node):
            old, new = getattr(before[path], field.name), getattr(after[path], field.name)
            if old != new and field.name not in ignore:
                shown = f"{old:o} -> {new:o}" if field.name == "mode" else f"{old!r:.200} -> {new!r:.200}"
                lines.append(f"{os.fsdecode(path)!r}: {field.name} {shown}")
    return sorted(lines)


def assert_same(before: Snapshot, after: Snapshot, ignore: Collection[str] = ()) -> None:
    lines = differences(before, after, ignore)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:30])
