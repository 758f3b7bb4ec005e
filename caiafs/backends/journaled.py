"""The memory backend with a journal: tree, memory tier and journal as the mount has them, without the kernel.

Each document is one append, is there again after any end of the process, and may be evicted from memory.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Sequence
from typing import Any

from ..config import MIB
from ..errors import FSError, JournalError
from ..journal import Journal
from ..memory import MemoryTier
from ..policy import Policy, Tier
from ..records import SET_CTIME, SET_MTIME, SET_SIZE, Create, Record, SetAttr, Write
from ..tree import ROOT_INO, Directory, File, Tree
from . import Backend, Names, merge_into, parts_of

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
NODE_COST = 700


class JournaledBackend:
    """Documents in *journal*, and in memory within *limit* bytes."""

    name = "memory"

    def __init__(self, journal: Journal, limit: int = 256 * MIB, policy: Policy | None = None):
        self._tier = MemoryTier(limit)
        self._tree = Tree(lambda name, mode: True, self._tier)
        self._journal = journal
        self._health = Tier(self.name, policy or Policy())
        self._files: dict[bytes, File] = {}
        self._stored = 0
        for record, position in journal.replay(journal.begin):
            if isinstance(record, Create | SetAttr | Write):
                self._tree.apply(record, position)

    # ---- the interface

    def store(self, path: bytes, data: bytes) -> None:
        """Check, record, apply: all of the document with one append."""
        made, ino = self._creating(path)
        now = time.time_ns()
        batch: list[Record] = [*made]
        if not made:
            batch.append(SetAttr(ino, SET_SIZE | SET_MTIME | SET_CTIME, 0, 0, 0, 0, 0, now, now))
        batch.append(Write(ino, 0, now, data))
        try:
            positions = self._journal.append_all(batch)
        except JournalError as error:
            self._health.trouble(str(error), error.errno, takes_nothing=True)
            raise FSError(error.errno, str(error)) from error
        self._health.worked()
        for record, position in zip(batch, positions, strict=True):
            self._tree.apply(record, position)
        self._tier.reserve(len(self._tree.nodes) * NODE_COST)
        self._stored += 1

    def get(self, path: bytes) -> bytes:
        node = self._files.get(path) or self._find(path)
        if not isinstance(node, File):
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        parts = []
        for extent in node.content.extents:
            if extent.data is None:
                extent.data = self._journal.read(extent.position, extent.length)
                self._tier.hold(extent)
            else:
                self._tier.use(extent)
            parts.append(extent.data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def list(self, path: bytes = b"") -> Names:
        node = self._find(path) if path else self._tree.root
        if not isinstance(node, Directory):
            raise FSError(errno.ENOTDIR, f"{path!r} is a document")
        children = node.children or {}
        return sorted(name + b"/" * isinstance(child, Directory) for name, child in children.items())

    def merge(self, other: Backend) -> Names:
        return merge_into(self, other)

    def health(self) -> dict[str, Any]:
        return self._health.describe()

    def statistics(self) -> dict[str, int]:
        figures = self._tier.statistics()
        return {"documents_stored": self._stored, **figures, "journal_bytes": self._journal.size}

    def close(self) -> None:
        self._journal.close()

    # ---- places

    def _find(self, path: bytes) -> File | Directory:
        node: Any = self._tree.root
        for name in parts_of(path):
            if not isinstance(node, Directory):
                raise FSError(errno.ENOTDIR, f"{path!r} is below a document")
            node = (node.children or {}).get(name)
            if node is None:
                raise FSError(errno.ENOENT, f"there is no {path!r}")
        assert isinstance(node, File | Directory)
        if isinstance(node, File):
            self._files[path] = node
        return node

    def _creating(self, path: bytes) -> tuple[Sequence[Create], int]:
        """The records that make *path*, directories and all, and the inode number that it has then."""
        *above, name = parts_of(path)
        made: list[Create] = []
        now, ino = time.time_ns(), self._tree.next_ino
        node: Any = self._tree.root
        parent = ROOT_INO
        for step in above:
            node = None if node is None else (node.children or {}).get(step)
            if node is None:
                made.append(Create(parent, ino, FOLDER, 0, 0, 0, now, step))
                parent, ino = ino, ino + 1
            elif isinstance(node, Directory):
                parent = node.ino
            else:
                raise FSError(errno.ENOTDIR, f"{path!r} is below a document")
        found = None if node is None else (node.children or {}).get(name)
        if isinstance(found, Directory):
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        if found is not None:
            return made, found.ino
        made.append(Create(parent, ino, FILE, 0, 0, 0, now, name))
        return made, ino
