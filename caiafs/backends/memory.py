"""The memory backend: the tree and the memory tier, as the mount has them, without the kernel.

With a journal each document is one append, is there again after any end of the process, and may be
evicted from memory. Without one it lives as long as the process, and the budget is the end.
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
from ..memory import OVERHEAD, MemoryTier
from ..policy import Policy, Tier
from ..records import SET_CTIME, SET_MTIME, SET_SIZE, Create, Record, SetAttr, Write
from ..tree import ROOT_INO, Directory, Extent, File, Tree
from . import Backend, Names, merge_into, parts_of

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
NODE_COST = 700
FULL = "the memory budget is used up, and there is no journal to evict to"


class MemoryBackend:
    """Documents in memory, and in *journal* if one is given, within *limit* bytes."""

    name = "memory"

    def __init__(self, limit: int = 256 * MIB, journal: Journal | None = None, policy: Policy | None = None):
        self._tier = MemoryTier(limit)
        self._tree = Tree(lambda name, mode: True, self._tier)
        self._journal = journal
        self._health = Tier(self.name, policy or Policy())
        self._files: dict[bytes, File] = {}
        self._folders: dict[bytes, Directory] = {}
        self._position = 0
        self._stored = 0
        if journal is not None:
            for record, position in journal.replay(journal.begin):
                if isinstance(record, Create | SetAttr | Write):
                    self._tree.apply(record, position)

    # ---- the interface

    def store(self, path: bytes, data: bytes) -> None:
        if self._journal is not None:
            self._record(path, data)
        else:
            node = self._files.get(path)
            tier, size = self._tier, len(data)
            if node is None:
                node = self._file_for(path, size)
            content = node.content
            if tier.held + size + OVERHEAD - content.size > self._room:
                raise FSError(
                    errno.ENOSPC, "the memory budget is used up, and there is no journal to evict to"
                )
            self._position = position = self._position + 1
            content.replace(Extent(0, size, position, data), tier)
        self._stored += 1

    def get(self, path: bytes) -> bytes:
        node = self._files.get(path) or self._find(path)
        if not isinstance(node, File):
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        parts = []
        for extent in node.content.extents:
            if extent.data is None:
                assert self._journal is not None
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
        journal = {} if self._journal is None else {"journal_bytes": self._journal.size}
        return {"documents_stored": self._stored, **self._tier.statistics(), **journal}

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    # ---- places

    @property
    def _room(self) -> int:
        return self._tier.limit - len(self._tree.nodes) * NODE_COST

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

    def _file_for(self, path: bytes, size: int) -> File:
        above, slash, name = path.rpartition(b"/")
        folder = self._folders.get(above) if slash else self._tree.root
        if folder is not None and folder.children is not None and name not in folder.children:
            parts_of(name)
            ino = self._tree.next_ino
            made: Sequence[Create] = (Create(folder.ino, ino, FILE, 0, 0, 0, time.time_ns(), name),)
        else:
            made, ino = self._creating(path)
        if self._tier.held + size + OVERHEAD + len(made) * NODE_COST > self._room:
            raise FSError(errno.ENOSPC, FULL)
        for record in made:
            self._position += 1
            self._tree.apply(record, self._position)
        node = self._tree.nodes[ino]
        assert isinstance(node, File)
        assert node.parent is not None
        self._files[path] = node
        if slash:
            self._folders[above] = node.parent
        return node

    def _record(self, path: bytes, data: bytes) -> None:
        """Check, record, apply: all of the document with one append."""
        assert self._journal is not None
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
