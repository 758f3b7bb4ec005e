"""What differs from git, and batches of it for the committer.

Before a change, the names that it is about are marked. A freeze takes the marks in one step; what they
mean is captured piece by piece, or by the change that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .content import Extent, Ledger
from .inodes import Inodes
from .nodes import Batch, Directory, DirectoryState, EntryState, File, Node, Settled, Symlink, state_of
from .undo import Before


class Batches(Inodes):
    """Marks, and the batches that a freeze makes of them."""

    def __init__(self, storable: Callable[[bytes, int], bool], ledger: Ledger) -> None:
        super().__init__(storable, ledger)
        self.dirty: dict[Directory, None] = {}
        self.changes = 0
        self._links_table: list[tuple[int, bytes]] | None = None
        self._batch: Batch | None = None
        self._epoch = 0
        self._frozen_epoch = 0
        self._marking: list[tuple[Directory, bytes]] | None = None
        self._tried: dict[Before, None] = {}

    # ---- marking

    def _mark(self, directory: Directory, name: bytes) -> None:
        """The entry *name* of *directory* is about to change: capture it if a batch still waits for it."""
        while True:
            if directory.frozen is not None and name in directory.frozen:
                self._capture(directory, name)
            if name in directory.changed:
                if self._tried and self._marking is None:
                    self._claim(directory, name)
                return
            first = not directory.changed
            directory.changed.add(name)
            self.changes += 1
            if self._marking is not None:
                self._marking.append((directory, name))
            if not first:
                return
            self.dirty[directory] = None
            if directory.parent is None:
                return
            directory, name = directory.parent, directory.name

    def _mark_node(self, node: Node) -> None:
        """The attributes or the content of *node* are about to change."""
        if node.marked == self._epoch:
            return  # every name it has was marked since the last freeze, or with the change that gave it
        node.marked = self._epoch
        if node.parent is None:
            if node is self.root:
                self._mark(self.root, b"")
            return
        self._mark(node.parent, node.name)
        if node.more_links:
            for directory, name in node.more_links:
                self._mark(directory, name)

    def mark_attributes(self, node: Node) -> None:
        """*node* has an access time that git does not have; it need not be journaled."""
        self._mark_node(node)

    def _claim(self, directory: Directory, name: bytes) -> None:
        """A change that stays needs the mark of one that may be taken back."""
        for before in self._tried:
            if (directory, name) in before.marks:
                before.marks.remove((directory, name))

    def _unmark(self, directory: Directory, name: bytes) -> bool:
        """Git has the entry as it is; False if something below it is changed still."""
        child = (directory.children or {}).get(name)
        if isinstance(child, Directory) and child.changed:
            return False
        if name in directory.changed:
            directory.changed.discard(name)
            self.changes -= 1
            if not directory.changed:
                self.dirty.pop(directory, None)
        return True

    # ---- freezing a batch for the committer

    @property
    def is_dirty(self) -> bool:
        return bool(self.dirty)

    def freeze(self, position: int) -> Batch:
        """Take all changes as one batch, in one step; `parts` then fills it in."""
        if self._batch is not None:
            raise AssertionError("a batch is being captured already")
        if self._links_table is None:
            self._links_table = sorted(
                (node.ino, self.path(directory) + b"/" + name if directory.parent else name)
                for node in self.linked.values()
                for directory, name in node.links()
            )
        batch = Batch(position, state_of(self.root), self.next_ino, self._links_table)
        for directory in self.dirty:
            directory.changed.discard(b"")
            directory.frozen = directory.changed
            directory.changed = set()
            batch.directories[directory.ino] = DirectoryState(
                directory.ino, directory.tree_oid, directory.side_oid, len(directory.children or ()), {},
                directory.unfit_from, directory.rewritten,
            )  # fmt: skip
            directory.unfit_from = None
            directory.rewritten = False
            batch.waiting[directory.ino] = directory
        self.dirty = {}
        self.changes = 0
        self._epoch += 1
        self._batch = self._unsettled = batch
        self._frozen_epoch = self._epoch
        return batch

    def thaw(self, batch: Batch) -> None:
        """Git did not take *batch*, and it is given up: its names count as changed again.

        Those of changes that stay must not be unmarked with a try that came after the freeze, and marked
        them for itself: only with one whose mark is the very one that the batch took them by.
        """
        own = {mark for before in self._tried if before.epoch < self._frozen_epoch for mark in before.marks}
        for state in batch.directories.values():
            directory = self.nodes.get(state.ino)
            if not isinstance(directory, Directory) or (directory.nlink == 0 and directory is not self.root):
                continue
            names = {*state.entries, *(directory.frozen or ())}
            if directory is self.root and not names:
                names.add(b"")
            directory.frozen = None
            self.changes += len(names - directory.changed)
            directory.changed |= names
            for name in names:
                if (directory, name) not in own:
                    self._claim(directory, name)
            self.dirty[directory] = None
        batch.waiting.clear()
        self._batch = self._unsettled = None
        self._epoch += 1

    def parts(self, batch: Batch, limit: int) -> Iterator[list[DirectoryState]]:
        """The directories of *batch*, up to *limit* entries at a time, captured as they are asked for.

        Who did not come to the end may begin anew, one at a time.
        """
        part: list[DirectoryState] = []
        room = limit
        for state in batch.directories.values():
            directory = batch.waiting.get(state.ino)
            names = list(state.entries)
            if directory is not None and directory.frozen:
                names += directory.frozen
            start = 0
            while start < len(names) or not start:
                piece: dict[bytes, EntryState | None] = {}
                for name in names[start : start + room]:
                    if directory is not None and name in (directory.frozen or ()):
                        self._capture(directory, name)
                    piece[name] = state.entries[name]
                part.append(state._replace(entries=piece))
                start += room
                room -= len(piece) + 1
                if room <= 0:
                    yield part
                    part, room = [], limit
            batch.waiting.pop(state.ino, None)
        if self._batch is batch:
            self._batch = None
        if part:
            yield part

    def _capture(self, directory: Directory, name: bytes) -> None:
        assert directory.frozen is not None
        directory.frozen.discard(name)
        if self._batch is None:
            raise AssertionError("an entry waits for a batch that is complete")
        assert directory.children is not None
        child = directory.children.get(name)
        state = None if child is None else state_of(child)
        self._batch.directories[directory.ino].entries[name] = state

    def settle(self, batch: Batch, settled: Settled) -> Iterator[tuple[File, bytes, list[Extent]]]:
        """Git has *batch*: extents up to its position become base blobs.

        Works piece by piece as it is iterated, so that the caller can let others run;
        each piece leaves every file readable. Yields what each file's extents were.
        """
        for ino, (tree_oid, side_oid) in settled.directories.items():
            node = self.nodes.get(ino)
            if isinstance(node, Directory):
                node.tree_oid, node.side_oid = tree_oid, side_oid
                node.frozen = None
        for ino, size, oid in settled.contents:
            node = self.nodes.get(ino)
            for before in self._tried:
                content = before.contents.get(ino)
                if content is not None:
                    content.settle(oid, size, batch.position, self._ledger)
            if isinstance(node, File):
                yield node, oid, node.content.settle(oid, size, batch.position, self._ledger)
            elif isinstance(node, Symlink):
                node.oid = oid
        for state in batch.directories.values():
            node = self.nodes.get(state.ino)
            if isinstance(node, Directory):
                node.frozen = None
        if self._unsettled is batch:
            self._unsettled = None
