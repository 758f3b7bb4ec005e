"""The memory backend: documents in memory, as long as the process lives.

Two dictionaries, and nothing that a document does not need: what a path holds, and which names are in a
directory. Storing is a matter of a microsecond, since that is what the interface is asked for most.
Weighed and not chosen: the mount's tree (inodes, times, extents), five times as much for each document;
journaled.py has it, since the journal's records are about inodes.
"""

from __future__ import annotations

import errno
from typing import Any, NoReturn

from ..config import MIB
from ..errors import FSError
from . import NAME_MAX, Backend, Names, merge_into, parts_of

COST = 200
"""Bytes that a document, or a directory, takes beside its data and twice its path (measured: 80 to 165)."""
_NO_NAMES = frozenset((b"", b".", b".."))
_FULL = "the memory budget is used up, and there is no journal to evict to"


class MemoryBackend:
    """Documents in memory, within *limit* bytes."""

    name = "memory"

    def __init__(self, limit: int = 256 * MIB) -> None:
        self.limit = limit
        self._documents: dict[bytes, bytes] = {}
        self._folders: dict[bytes, Names] = {b"": []}
        """The names in each directory, with a slash for directories, in no order."""
        self._held = self._stored = 0

    # ---- the interface

    def store(self, path: bytes, data: bytes) -> None:
        old = self._documents.get(path)
        if old is not None:
            held = self._held + len(data) - len(old)
            if held > self.limit and len(data) > len(old):
                raise FSError(errno.ENOSPC, _FULL)
            self._documents[path] = data
        else:
            above, slash, name = path.rpartition(b"/")
            if name in _NO_NAMES or b"\0" in name or len(name) > NAME_MAX or (slash and not above):
                parts_of(path)  # which says what is wrong with it
            if path in self._folders:
                raise FSError(errno.EISDIR, f"{path!r} is a directory")
            held = self._held + len(data) + 2 * len(path) + COST
            folder = self._folders.get(above)
            if folder is None:
                held, folder = self._make(above, held)
            elif held > self.limit:
                raise FSError(errno.ENOSPC, _FULL)
            folder.append(name)
            self._documents[path] = data
        self._held = held
        self._stored += 1

    def get(self, path: bytes) -> bytes:
        data = self._documents.get(path)
        if data is None:
            self._refuse(path)
        return data

    def list(self, path: bytes = b"") -> Names:
        names = self._folders.get(path)
        if names is None:
            if path in self._documents:
                raise FSError(errno.ENOTDIR, f"{path!r} is a document")
            self._refuse(path)
        return sorted(names)

    def merge(self, other: Backend) -> Names:
        return merge_into(self, other)

    def health(self) -> dict[str, Any]:
        return {"state": "healthy", "reasons": []}

    def statistics(self) -> dict[str, int]:
        return {
            "documents_stored": self._stored, "documents": len(self._documents),
            "held_bytes": self._held, "limit_bytes": self.limit,
        }  # fmt: skip

    def close(self) -> None:
        """Nothing to let go of."""

    # ---- places

    def _make(self, path: bytes, held: int) -> tuple[int, Names]:
        """The directory *path*, and those above it, where there is none yet; *held* bytes are taken
        without them. Raises FSError, with nothing made."""
        missing = []
        above = path
        while above not in self._folders:
            if above in self._documents:
                raise FSError(errno.ENOTDIR, f"{above!r} is a document")
            outer, slash, name = above.rpartition(b"/")
            if name in _NO_NAMES or b"\0" in name or len(name) > NAME_MAX or (slash and not outer):
                parts_of(path)
            missing.append((above, outer, name))
            held += 2 * len(above) + COST
            above = outer
        if held > self.limit:
            raise FSError(errno.ENOSPC, _FULL)
        for above, outer, name in reversed(missing):
            self._folders[above] = []
            self._folders[outer].append(name + b"/")
        return held, self._folders[path]

    def _refuse(self, path: bytes) -> NoReturn:
        """Say why there is nothing at *path*."""
        if path in self._folders:
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        end = -1
        for part in parts_of(path)[:-1]:
            end += len(part) + 1
            if path[:end] in self._documents:
                raise FSError(errno.ENOTDIR, f"{path!r} is below a document")
        raise FSError(errno.ENOENT, f"there is no {path!r}")
