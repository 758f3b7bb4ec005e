"""Which file a record is about, as far as the journal itself and a tree can tell.

Used to say what damage concerns, and to label what was saved. Fed with records in their order;
those that are lost leave holes, so every answer is a guess, and good enough for a person.
"""

from __future__ import annotations

from ..records import Adopt, Create, Link, Name, Record, Remove, Rename, SetAttr, SetXattr, Write
from ..store import show
from ..tree import ROOT_INO, Tree
from .report import several


class Names:
    """Paths by inode number, from *tree* where it knows them, from the records fed since otherwise."""

    def __init__(self, tree: Tree | None = None) -> None:
        self._tree = tree
        self._names: dict[int, tuple[int, bytes]] = {}
        self._inos: dict[tuple[int, bytes], int] = {}

    def feed(self, record: Record) -> None:
        """Take notice of what *record* says about names."""
        if isinstance(record, Create | Name | Link):
            self._learn(record.ino, record.parent, record.name)
        elif isinstance(record, Rename):
            ino = self._find(record.parent, record.name)
            if ino is not None:
                self._inos.pop((record.parent, record.name), None)
                self._learn(ino, record.new_parent, record.new_name)
        elif isinstance(record, Adopt):
            for entry in record.entries:
                if entry.mode:
                    self._learn(entry.ino, entry.parent, entry.name)

    def _learn(self, ino: int, parent: int, name: bytes) -> None:
        self._names[ino] = parent, name
        self._inos[parent, name] = ino

    def _find(self, parent: int, name: bytes) -> int | None:
        known = self._inos.get((parent, name))
        if known is None and self._tree is not None:
            directory = self._tree.nodes.get(parent)
            child = (getattr(directory, "children", None) or {}).get(name)
            known = None if child is None else child.ino
        return known

    def path(self, ino: int) -> bytes | None:
        """Where inode *ino* was last seen; None if nothing tells."""
        parts: list[bytes] = []
        while ino != ROOT_INO:
            if ino in self._names and len(parts) < 10_000:
                ino, name = self._names[ino]
                parts.append(name)
                continue
            node = self._tree.nodes.get(ino) if self._tree is not None else None
            if node is None or self._tree is None or node.parent is None:
                return None
            parts.append(self._tree.path(node))
            break
        return b"/".join(reversed(parts))

    def label(self, ino: int) -> str:
        """`a/b.txt (inode 42)`, or `inode 42`."""
        path = self.path(ino)
        if path == b"":
            return "the root directory"
        return f"inode {ino}" if path is None else f"{show(path)} (inode {ino})"

    def place(self, parent: int, name: bytes) -> str:
        """The path of *name* in the directory *parent*."""
        path = self.path(parent)
        return (
            f"{show(name)} in inode {parent}" if path is None else show(path + b"/" + name if path else name)
        )

    def describe(self, record: Record) -> str:
        """What *record* does, in a few words."""
        if isinstance(record, Write):
            size = several(len(record.data), "byte")
            return f"a write of {size} at {record.offset} of {self.label(record.ino)}"
        if isinstance(record, Create):
            return f"the creation of {self.place(record.parent, record.name)}"
        if isinstance(record, Link):
            return f"the link {self.place(record.parent, record.name)}"
        if isinstance(record, Remove):
            return f"the removal of {self.place(record.parent, record.name)}"
        if isinstance(record, Rename):
            new = self.place(record.new_parent, record.new_name)
            return f"the renaming of {self.place(record.parent, record.name)} to {new}"
        if isinstance(record, SetAttr | SetXattr):
            return f"attributes of {self.label(record.ino)}"
        if isinstance(record, Name):
            return f"the place of {self.label(record.ino)}"
        if isinstance(record, Adopt):
            return "changes taken in from outside"
        return "a note about what was synced or committed"


def subjects(record: Record) -> tuple[int, ...]:
    """The inodes that *record* changes; those of directories only where nothing else is known."""
    if isinstance(record, Write | SetAttr | SetXattr | Create | Link):
        return (record.ino,)
    if isinstance(record, Remove):
        return (record.parent,)
    if isinstance(record, Rename):
        return (record.parent, record.new_parent)
    if isinstance(record, Adopt):
        return tuple(entry.parent for entry in record.entries)
    return ()
