"""Storage backends: one small interface, and the tiers of a mount behind it.

    memory     documents, as long as the process lives                 a microsecond
    journaled  tree, memory tier and journal, as a mount has them      tens of microseconds
    git        objects, a commit and a ref, durable                    milliseconds
    hybrid     one in front, the other to fall back to                 as the one in front

A document is bytes under a path. The interface is small on purpose: whoever writes another backend
writes one class with these methods, adds it to the list in tests/unit/test_backends.py, and has
the whole suite. The mount speaks to the same parts directly, since it needs inodes and more.

Errors are FSError with the errno that a filesystem would give. Nothing here waits for an event loop:
a backend is used by one task or thread at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from ..errors import FSError

__all__ = ["Backend", "Names", "merge_into", "parts_of", "walk"]

NAME_MAX = 255
Names = list[bytes]  # the backends have a method of the same name as the type


@runtime_checkable
class Backend(Protocol):
    """What every backend offers. Paths are bytes, names joined by slashes, none of them special."""

    name: str

    def store(self, path: bytes, data: bytes) -> None:
        """Keep *data* under *path*, over what was there, as this backend promises; directories are made.

        It happened whole when this returns, and not at all when it raises. Raises FSError: EINVAL and
        ENAMETOOLONG for a path that cannot be, EISDIR, ENOTDIR, ENOSPC, EROFS, EIO, ETIMEDOUT.
        """

    def get(self, path: bytes) -> bytes:
        """The document. Raises FSError: ENOENT, EISDIR, ENOTDIR, EIO, ETIMEDOUT."""

    def list(self, path: bytes = b"") -> Names:
        """The names in a directory, sorted; those of directories end with a slash. Raises FSError."""

    def merge(self, other: Backend) -> Names:
        """Take in all that *other* has. What both have, otherwise, stays as it is here; theirs is put
        beside it as `PATH.theirs`. Returns the paths where that happened."""

    def health(self) -> dict[str, Any]:
        """At least "state": healthy, degraded or failed, and "reasons": sentences."""

    def statistics(self) -> dict[str, int]:
        """Figures; at least "documents_stored"."""

    def close(self) -> None:
        """Let go of files. What was kept stays."""


def parts_of(path: bytes) -> Names:
    """The names in *path*. Raises FSError(EINVAL, ENAMETOOLONG)."""
    parts = path.split(b"/")
    for part in parts:
        if part in (b"", b".", b"..") or b"\0" in part:
            raise FSError(errno.EINVAL, f"{path!r} is no path of a document")
        if len(part) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG, f"a name in {path[:80]!r}… is longer than {NAME_MAX} bytes")
    return parts


def walk(backend: Backend, below: bytes = b"") -> Iterator[bytes]:
    """The path of every document."""
    waiting = [below]
    while waiting:
        directory = waiting.pop()
        for name in backend.list(directory):
            path = directory + b"/" + name if directory else name
            if name.endswith(b"/"):
                waiting.append(path[:-1])
            else:
                yield path


def merge_into(ours: Backend, theirs: Backend) -> Names:
    """What `merge` promises, in terms of the other methods."""
    conflicts = []
    for path in sorted(walk(theirs)):
        data = theirs.get(path)
        mine = _or_none(ours, path)
        if mine == data:
            continue
        if mine is None and _has_room(ours, path):
            ours.store(path, data)
            continue
        conflicts.append(path)
        taken, below = _taken(ours, path)
        beside, number = taken + b".theirs" + below, 2
        while _or_none(ours, beside) != data and not _has_room(ours, beside):
            beside, number = taken + b".theirs-%d" % number + below, number + 1
        if _or_none(ours, beside) is None:
            ours.store(beside, data)
    return conflicts


def _or_none(backend: Backend, path: bytes) -> bytes | None:
    try:
        return backend.get(path)
    except FSError as error:
        if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            return None
        raise


def _has_room(backend: Backend, path: bytes) -> bool:
    """True if nothing stands where *path* would be: no document, no directory, and no document above it."""
    try:
        backend.get(path)
    except FSError as error:
        return error.errno == errno.ENOENT
    return False


def _taken(backend: Backend, path: bytes) -> tuple[bytes, bytes]:
    """*path* cut behind the name that is in the way: a document above it, or what has the name itself."""
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        above = b"/".join(parts[:count])
        if _or_none(backend, above) is not None:
            return above, path[len(above) :]
    return path, b""
