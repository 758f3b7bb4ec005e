"""The tree: every inode that is in use, and the one function that changes it.

Checked and fed by filesystem.py, which loads directories into it from git before
they are needed. Only the event loop's task touches it, and nothing here waits.

`apply` is the only way to change state, for a live request and for recovery alike.
Before a change, the tree notes which names of which directories differ from git
(`Directory.changed`), up to the root. `freeze` takes these notes as a batch in one
step; what the notes mean is then captured piece by piece, and a change that comes
first captures its own piece before it happens. So a commit is a point in time,
however long the capture takes, and no writer waits for it.

Weighed and not chosen: a persistent (immutable) tree, which makes freezing free
and every other operation several times slower.
"""

from __future__ import annotations

from .. import records
from .changes import Changes
from .content import Content, ContentState, Extent, Ledger, Piece
from .inodes import COUNTED, ROOT_INO
from .nodes import (
    GITLINK,
    UNCOUNTED,
    Batch,
    Directory,
    DirectoryState,
    EntryState,
    File,
    Loaded,
    Node,
    Settled,
    Special,
    Symlink,
    mode_of,
)
from .undo import Before

__all__ = [
    "COUNTED",
    "GITLINK",
    "ROOT_INO",
    "UNCOUNTED",
    "Batch",
    "Before",
    "Content",
    "ContentState",
    "Directory",
    "DirectoryState",
    "EntryState",
    "Extent",
    "File",
    "Ledger",
    "Loaded",
    "Node",
    "Piece",
    "Settled",
    "Special",
    "Symlink",
    "Tree",
    "mode_of",
]


class Tree(Changes):
    """All inodes in use.

    *storable* tells whether git takes a name (and whether it is a directory's);
    *ledger* is told of all bytes that extents hold.

    Built in layers, each a module: `inodes` (what is loaded), `batches` (what differs from git), `changes`
    (what records do), and here: changes that may be taken back.
    """

    def try_out(self, record: records.Record, position: int) -> Before:
        """Apply *record*, so that `take_back` or `keep` decides later whether it stays."""
        nodes, places = self._touched(record)
        self._marking = []
        # What a batch still waits for is captured first: the copy is of what comes after it.
        for node in nodes:
            self._mark_node(node)
        for directory, name in places:
            self._mark(directory, name)
        before = Before(nodes, places, self._epoch)
        self.apply(record, position)
        before.applied()
        before.marks, self._marking = self._marking, None
        if type(record) is records.Create:
            before.made = record.ino
        self._tried[before] = None
        return before

    def _touched(self, record: records.Record) -> tuple[list[Node], list[tuple[Directory, bytes]]]:
        """The inodes and the entries that *record* is about."""
        if isinstance(record, records.Write | records.SetAttr | records.SetXattr):
            return [self.nodes[record.ino]], []
        if isinstance(record, records.Create | records.Link | records.Remove):
            parent = self._directory(record.parent)
            assert parent.children is not None
            child = self.nodes[record.ino] if type(record) is records.Link else None
            child = child or parent.children.get(record.name)
            return [parent] if child is None else [parent, child], [(parent, record.name)]
        assert isinstance(record, records.Rename)
        old, new = self._directory(record.parent), self._directory(record.new_parent)
        assert old.children is not None
        assert new.children is not None
        found = (old, new, old.children.get(record.name), new.children.get(record.new_name))
        nodes = list(dict.fromkeys(node for node in found if node is not None))
        return nodes, [(old, record.name), (new, record.new_name)]

    def keep(self, before: Before) -> None:
        """The change stays."""
        self._tried.pop(before, None)

    def take_back(self, before: Before, *, unmark: bool) -> bool:
        """Make it as if the change had never been; the youngest goes first. False if it has to stay:
        a directory in which a commit from outside put something since.

        With *unmark* git is known to have nothing of it. Otherwise the names stay changed, so that the
        next commit tells git how they are.
        """
        self._tried.pop(before, None)
        made = None if before.made is None else self.nodes.get(before.made)
        if isinstance(made, Directory) and made.children:
            return False
        for node in before.nodes:
            if self.nodes.get(node.ino) is node:
                self._let_go(node)
        before.put_back(self._ledger)
        for node in before.nodes:
            self._hold(node)
            if isinstance(node, Directory):
                if node.changed:
                    self.dirty[node] = None
            elif node.nlink > 1:
                self.linked[node.ino] = node
            else:
                self.linked.pop(node.ino, None)
        if made is not None:
            if isinstance(made, Directory):
                self.dirty.pop(made, None)
            self.reap(made)
        self._links_table = None
        self._epoch += 1  # who was marked has to be marked again
        if unmark:
            left = before.marks
            while True:  # what is below first, in whatever order it was marked
                kept = [(directory, name) for directory, name in left if not self._unmark(directory, name)]
                if len(kept) == len(left):
                    break
                left = kept
        return True
