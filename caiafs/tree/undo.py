"""Taking a change back: what a record is about to touch, as it was.

For a change that is shown before it is kept, while git writes it: if git does not take it, the
tree is to be as if nothing had happened. `Tree.try_out` applies a record and gives its Before;
`Tree.take_back` is called for all that is not kept, the youngest first, in one step.

It puts values back, and link counts by difference, so that a change from outside between the two
keeps its own. Of a file's content it keeps a copy that commits settle like the one in use: what git
took meanwhile is in its base, and not in segments that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .content import Content, Ledger
from .nodes import Directory, File, Node

_FIELDS = ("mode", "uid", "gid", "atime", "mtime", "ctime", "modified", "anchor", "parent", "name")


class Before:
    """The inodes *nodes* and the entries *places* before one change, made in the tree's *epoch*."""

    def __init__(self, nodes: Iterable[Node], places: Iterable[tuple[Directory, bytes]], epoch: int) -> None:
        self.epoch = epoch
        self.nodes: dict[Node, tuple[Any, ...]] = {}
        self.contents: dict[int, Content] = {}
        self.entries: list[tuple[Directory, bytes, Node | None]] = []
        self.marks: list[tuple[Directory, bytes]] = []
        self.made: int | None = None
        self._links: dict[Node, int] = {}
        for directory, name in places:
            self.entries.append((directory, name, (directory.children or {}).get(name)))
        for node in nodes:
            xattrs = None if node.xattrs is None else dict(node.xattrs)
            more = None if node.more_links is None else set(node.more_links)
            self.nodes[node] = (*(getattr(node, field) for field in _FIELDS), xattrs, more)
            self._links[node] = node.nlink
            if isinstance(node, File):
                self.contents[node.ino] = node.content.copy()

    def applied(self) -> None:
        """The change was made: from now on only what it did to link counts is known, not what they were."""
        self._links = {node: node.nlink - before for node, before in self._links.items()}

    @property
    def touched(self) -> list[tuple[Directory, bytes]]:
        """The names that the change was about."""
        return [(directory, name) for directory, name, _ in self.entries]

    def put_back(self, ledger: Ledger) -> None:
        """The fields, the contents and the entries; the tree does the rest."""
        for node, (*values, xattrs, more) in self.nodes.items():
            for field, value in zip(_FIELDS, values, strict=True):
                setattr(node, field, value)
            node.xattrs = xattrs
            node.more_links = more
            node.nlink -= self._links[node]
            node.marked = -1
            if isinstance(node, File):
                node.content.restore(self.contents[node.ino], ledger)
        for directory, name, child in self.entries:
            assert directory.children is not None
            if child is None:
                gone = directory.children.pop(name, None)
                if gone is not None and gone.ino == self.made:
                    gone.remove_link(directory, name)
                    gone.nlink = 0
            else:
                directory.children[name] = child
