"""Inodes by number: loading them from git, letting go of them, and asking where they are."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable

from .content import Ledger
from .nodes import UNCOUNTED, Batch, Directory, File, Loaded, Node, Symlink, node_of

ROOT_INO = 1
COUNTED = 1 << 60
"""Inode numbers below this are counted; those from here on are derived from place and name."""


class Inodes:
    """All inodes in use. *storable* and *ledger* as in Tree."""

    def __init__(self, storable: Callable[[bytes, int], bool], ledger: Ledger) -> None:
        self._storable = storable
        self._ledger = ledger
        self.root = Directory(ROOT_INO, stat.S_IFDIR | 0o755, 0, 0, 0)
        self.nodes: dict[int, Node] = {ROOT_INO: self.root}
        self.attached_bytes = 0
        """What extended attributes and symlinks' targets of all inodes take."""
        self.linked: dict[int, Node] = {}
        self._orphans: dict[int, Node] = {}
        self.next_ino = ROOT_INO + 1
        self._unsettled: Batch | None = None

    # ---- reading

    def get(self, ino: int) -> Node | None:
        return self.nodes.get(ino)

    def path(self, node: Node) -> bytes:
        """The path of *node* from the root, without a leading slash; b'' for the root or an orphan."""
        parts = []
        step: Node = node
        while step.parent is not None:
            parts.append(step.name)
            step = step.parent
        return b"/".join(reversed(parts))

    def diverted(self, directory: Directory) -> bool:
        """True if git cannot hold what is in *directory*: below a refused name or a submodule."""
        step = directory
        while step.parent is not None:
            if step.gitlink is not None or not (step.held or self._storable(step.name, stat.S_IFDIR)):
                return True
            step = step.parent
        return False

    def is_clean(self, node: Node) -> bool:
        """True if the last finished commit holds *node* as it is, a directory with all that is below it."""
        if node is self.root:
            return not self.root.changed and self.root.frozen is None
        for directory, name in node.links():
            if name in directory.changed or self._is_in_flight(directory, name):
                return False
        return not (isinstance(node, File) and node.content.oid is None)

    def _is_in_flight(self, directory: Directory, name: bytes) -> bool:
        """True if a batch that git does not have yet speaks of the name."""
        if directory.frozen is None:
            return False
        if name in directory.frozen:
            return True
        batch = self._unsettled
        state = None if batch is None else batch.directories.get(directory.ino)
        return state is not None and name in state.entries

    # ---- loading and unloading

    def load(
        self, directory: Directory, entries: Iterable[Loaded], unfit: dict[bytes, str] | None = None
    ) -> None:
        """Fill *directory*, which nobody has changed since git knew it. *unfit* names stay in git, unseen."""
        if directory.children is not None:
            raise AssertionError(f"directory {directory.ino} is loaded already")
        children: dict[bytes, Node] = {}
        below = 0
        for entry in entries:
            known = self.nodes.get(entry.ino)
            if known is not None and entry.nlink > 1 and _is_link_of(known, entry):
                known.add_link(directory, entry.name)
                children[entry.name] = known
                continue
            ino = entry.ino
            if known is not None:
                ino = self.next_ino
                self.next_ino += 1
            elif self.next_ino <= ino < COUNTED:
                self.next_ino = ino + 1  # what the metadata says is next is taken
            node = node_of(entry, ino)
            node.add_link(directory, entry.name)
            children[entry.name] = node
            self._hold(node)
            below += isinstance(node, Directory)
            if node.nlink > 1 and not isinstance(node, Directory):
                self.linked[ino] = node
        directory.children = children
        directory.unfit = unfit or None
        if directory.nlink == UNCOUNTED:
            directory.nlink = 2 + below

    def can_unload(self, directory: Directory) -> bool:
        """True if *directory* can be read from git again at any time, and nobody uses its entries."""
        return self.known_in_kernel(directory) == []

    def known_in_kernel(self, directory: Directory) -> list[bytes] | None:
        """Names that the kernel knows, and nobody uses: without them *directory* could be unloaded.

        None if it could not in any case. Of directories, only the kernel can tell whether somebody
        works in them, so one that it knows stands in the way.
        """
        if not directory.children or directory.changed or directory.frozen is not None or directory.opens:
            return None
        if directory.tree_oid is None and directory.side_oid is None:
            return None
        known = []
        for name, child in directory.children.items():
            if child.opens:
                return None
            if isinstance(child, Directory):
                if child.lookups or child.children is not None or child.changed or child.frozen is not None:
                    return None
            elif child.nlink > 1 or (isinstance(child, File) and child.content.oid is None):
                return None
            elif child.lookups:
                known.append(name)
        return known

    def unload(self, directory: Directory) -> int:
        """Forget the entries of *directory*; returns how many. `can_unload` was asked in the same step."""
        children = directory.children or {}
        for child in children.values():
            self._let_go(child)
        directory.children = directory.unfit = None
        return len(children)

    def forget(self, node: Node, count: int) -> None:
        """The kernel gives back *count* references."""
        node.lookups -= count
        self.reap(node)

    def reap(self, node: Node) -> bool:
        """Let go of an inode without names that nobody holds; True if it went."""
        if node.nlink == 0 and node.lookups <= 0 and node.opens == 0 and self.nodes.get(node.ino) is node:
            if isinstance(node, File):
                node.content.discard(self._ledger)
            self._let_go(node)
            self._orphans.pop(node.ino, None)
            return True
        return False

    def _hold(self, node: Node) -> None:
        self.nodes[node.ino] = node
        self.attached_bytes += node.attached_bytes

    def _let_go(self, node: Node) -> None:
        del self.nodes[node.ino]
        self.attached_bytes -= node.attached_bytes

    def keep_target(self, node: Symlink, target: bytes) -> None:
        """Remember what was read of *node*, which may be gone meanwhile."""
        if self.nodes.get(node.ino) is node and node.target is None:
            node.target = target
            self.attached_bytes += len(target)

    def orphans(self) -> list[Node]:
        """Inodes without a name that somebody still holds."""
        self._orphans = {
            ino: node
            for ino, node in self._orphans.items()
            if node.nlink == 0 and self.nodes.get(ino) is node
        }
        return list(self._orphans.values())

    def _directory(self, ino: int) -> Directory:
        node = self.nodes[ino]
        if not isinstance(node, Directory) or node.children is None:
            raise AssertionError(f"inode {ino} is not a loaded directory")
        return node


def _is_link_of(known: Node, entry: Loaded) -> bool:
    """Whether *entry* is one more name of *known*, and not another file under the same number."""
    if known.nlink < 2 or stat.S_IFMT(known.mode) != stat.S_IFMT(entry.mode):
        return False
    if isinstance(known, File):
        return known.content.base == entry.oid
    return not isinstance(known, Directory)
