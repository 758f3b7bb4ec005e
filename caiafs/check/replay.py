"""The next mount's recovery, played in memory: does what the journal holds fit what git has?

The tree, the loader and the filesystem are the product's own, so that what passes here passes
there; only the journal is replaced, by whoever gives the records of a `Scan`. Nothing is
written, and file contents are not read: a Write keeps its address, as in any recovery.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn

from ..config import Config
from ..errors import CaiafsError
from ..filesystem import Filesystem
from ..filesystem.loader import Loader, SideState, epoch_of
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..records import Committed, Create, Record
from ..store import Store, storable_entry
from ..tree import Directory, Tree


class Misfit(NamedTuple):
    """The first record that the tree does not take. *position* is where apply() wants it."""

    position: int
    record: Record
    reason: str


class Recovered(NamedTuple):
    """The tree as the next mount will show it, up to *misfit* if there is one."""

    tree: Tree
    records: int
    misfit: Misfit | None


def _refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class _NoDisk:
    """A disk with nothing on it and no room: a journal on it is empty, and whoever writes is stopped."""

    open = writev = pread = size = truncate = sync = start_sync = finish_sync = close = staticmethod(_refuse)
    unlink = rename = sync_directory = staticmethod(_refuse)

    def list(self, directory: str) -> list[str]:
        return []


class _Feed(Journal):
    """A journal without files: replays the records it was given, and remembers which one came last."""

    def __init__(self, directory: str, records: Iterable[tuple[Record, int]], tree: Tree) -> None:
        super().__init__(directory, _NoDisk())
        self.last: tuple[Record, int] | None = None
        self.count = 0
        self._records = records
        self._tree = tree

    def replay(self, position: int) -> Iterator[tuple[Record, int]]:
        for record, where in self._records:
            self.last = record, where
            if type(record) is Create:
                self._judge(record)
            yield record, where
            self.count += type(record) is not Committed
        self.last = None

    def _judge(self, record: Create) -> None:
        """What apply() takes on trust, since it was checked when it was recorded."""
        if record.ino in self._tree.nodes:
            raise KeyError(f"inode {record.ino} exists already")
        parent = self._tree.nodes.get(record.parent)
        if isinstance(parent, Directory) and record.name in (parent.children or ()):
            raise KeyError(f"{record.name!r} exists already")


def play(
    store: Store, head: bytes | None, side: SideState | None, directory: str,
    records: Iterable[tuple[Record, int]],
) -> Recovered:  # fmt: skip
    """Apply *records* to the tree of commit *head* with the metadata of *side*.

    Raises CaiafsError if not even the tree can be attached.
    """
    memory = MemoryTier(1 << 30)
    tree = Tree(storable_entry, memory)
    uid, gid = os.getuid(), os.getgid()
    feed = _Feed(directory, records, tree)
    fs = Filesystem(
        Config(repo=store.git_dir, mountpoint="", ro=True), tree, memory, feed, store,
        Loader(store, uid, gid), Metrics({}), directory,
    )  # fmt: skip
    commit = store.commit(head) if head is not None else None
    epoch = epoch_of(commit) if commit is not None else time.time_ns()
    fs.attach(commit.tree if commit is not None else None, epoch, side, uid, gid)
    try:
        fs.replay(0)
    except Exception as error:  # damaged records can fail in any way: whichever, the mount fails likewise
        if feed.last is None:
            raise
        record, where = feed.last
        cause = error.__cause__ if isinstance(error, CaiafsError) and error.__cause__ else error
        return Recovered(tree, feed.count, Misfit(where, record, str(cause.args[0] if cause.args else cause)))
    return Recovered(tree, feed.count, None)
