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

import stat
from collections.abc import Callable, Iterable, Iterator

from .. import records
from ..records import SET_ATIME, SET_CTIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID
from .content import Content, ContentState, Extent, Ledger, Piece
from .nodes import (
    GITLINK,
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
    node_of,
    state_of,
)
from .undo import Before

__all__ = [
    "COUNTED",
    "GITLINK",
    "ROOT_INO",
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

ROOT_INO = 1
COUNTED = 1 << 60
"""Inode numbers below this are counted; those from here on are derived from place and name."""


class Tree:
    """All inodes in use.

    *storable* tells whether git takes a name (and whether it is a directory's);
    *ledger* is told of all bytes that extents hold.
    """

    def __init__(self, storable: Callable[[bytes, int], bool], ledger: Ledger) -> None:
        self._storable = storable
        self._ledger = ledger
        self.root = Directory(ROOT_INO, stat.S_IFDIR | 0o755, 0, 0, 0)
        self.nodes: dict[int, Node] = {ROOT_INO: self.root}
        self.dirty: dict[Directory, None] = {}
        self.linked: dict[int, Node] = {}
        self._orphans: dict[int, Node] = {}
        self.next_ino = ROOT_INO + 1
        self.changes = 0
        self._links_table: list[tuple[int, bytes]] | None = None
        self._batch: Batch | None = None
        self._unsettled: Batch | None = None
        self._epoch = 0
        self._frozen_epoch = 0
        self._marking: list[tuple[Directory, bytes]] | None = None
        self._tried: dict[Before, None] = {}
        self._apply: dict[type, Callable[..., None]] = {
            records.Create: self._create,
            records.Link: self._link,
            records.Remove: self._remove,
            records.Rename: self._rename,
            records.Write: self._write,
            records.SetAttr: self._setattr,
            records.SetXattr: self._setxattr,
            records.Name: self._name,
            records.Adopt: self._adopt,
        }

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
        """True if the last finished commit holds *node* as it is."""
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
            self.nodes[ino] = node
            if node.nlink > 1 and not isinstance(node, Directory):
                self.linked[ino] = node
        directory.children = children
        directory.unfit = unfit or None

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
            if isinstance(child, File):
                child.content.discard(self._ledger)
            del self.nodes[child.ino]
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
            del self.nodes[node.ino]
            self._orphans.pop(node.ino, None)
            return True
        return False

    def orphans(self) -> list[Node]:
        """Inodes without a name that somebody still holds."""
        self._orphans = {
            ino: node
            for ino, node in self._orphans.items()
            if node.nlink == 0 and self.nodes.get(ino) is node
        }
        return list(self._orphans.values())

    # ---- changing

    def apply(self, record: records.Record, position: int) -> None:
        """Make *record* true; *position* is where the journal has it (a Write: its data).

        The record was checked, and every directory that it touches is loaded.
        """
        self._apply[type(record)](record, position)

    def _directory(self, ino: int) -> Directory:
        node = self.nodes[ino]
        if not isinstance(node, Directory) or node.children is None:
            raise AssertionError(f"inode {ino} is not a loaded directory")
        return node

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

    def _touch_directory(self, directory: Directory, time: int, position: int) -> None:
        self._mark_node(directory)
        directory.mtime = directory.ctime = time
        directory.modified = position

    def _place(self, parent: Directory, name: bytes, node: Node) -> None:
        assert parent.children is not None
        parent.children[name] = node
        node.add_link(parent, name)

    def _create(self, r: records.Create, position: int) -> None:
        parent = self._directory(r.parent)
        self._mark(parent, r.name)
        self._touch_directory(parent, r.time, position)
        kind = stat.S_IFMT(r.mode)
        node: Node
        if kind == stat.S_IFREG:
            node = File(r.ino, r.mode, r.uid, r.gid, r.time, Content())
        elif kind == stat.S_IFDIR:
            node = Directory(r.ino, r.mode, r.uid, r.gid, r.time)
            parent.nlink += 1
        elif kind == stat.S_IFLNK:
            node = Symlink(r.ino, r.mode, r.uid, r.gid, r.time, r.target)
        else:
            node = Special(r.ino, r.mode, r.uid, r.gid, r.time)
            node.rdev = r.rdev
        if r.xattrs:
            node.xattrs = dict(r.xattrs)
        node.anchor = node.modified = position
        self._place(parent, r.name, node)
        self.nodes[r.ino] = node
        if r.ino >= self.next_ino:
            self.next_ino = r.ino + 1

    def _link(self, r: records.Link, position: int) -> None:
        parent = self._directory(r.parent)
        node = self.nodes[r.ino]
        self._mark_node(node)
        self._mark(parent, r.name)
        self._touch_directory(parent, r.time, position)
        self._place(parent, r.name, node)
        node.nlink += 1
        node.ctime = r.time
        node.modified = position
        self.linked[node.ino] = node
        self._links_table = None

    def _remove(self, r: records.Remove, position: int) -> None:
        parent = self._directory(r.parent)
        self._mark(parent, r.name)
        self._touch_directory(parent, r.time, position)
        assert parent.children is not None
        self._unlink(parent, r.name, parent.children.pop(r.name), r.time, position)

    def _unlink(self, parent: Directory, name: bytes, node: Node, time: int, position: int) -> None:
        self._mark_node(node)
        node.remove_link(parent, name)
        node.ctime = time
        node.modified = position
        if isinstance(node, Directory):
            node.nlink = 0
            parent.nlink -= 1
            self.dirty.pop(node, None)
        else:
            if node.nlink > 1:
                self._links_table = None
            node.nlink -= 1
            if node.nlink < 2:
                self.linked.pop(node.ino, None)
        if not self.reap(node) and node.nlink == 0:
            self._orphans[node.ino] = node

    def _rename(self, r: records.Rename, position: int) -> None:
        old, new = self._directory(r.parent), self._directory(r.new_parent)
        assert old.children is not None
        assert new.children is not None
        node = old.children[r.name]
        target = new.children.get(r.new_name)
        if node is target:
            return
        movers = [node] if target is None or not r.flags & records.RENAME_EXCHANGE else [node, target]
        was_diverted = [self._moves_diverted(mover) for mover in movers]
        for mover in movers:
            self._mark_node(mover)
        self._mark(old, r.name)
        self._mark(new, r.new_name)
        self._touch_directory(old, r.time, position)
        self._touch_directory(new, r.time, position)
        node.remove_link(old, r.name)
        del old.children[r.name]
        if target is not None:
            del new.children[r.new_name]
            if len(movers) == 2:
                target.remove_link(new, r.new_name)
                self._place(old, r.name, target)
                new.nlink -= isinstance(target, Directory)
                old.nlink += isinstance(target, Directory)
            else:
                self._unlink(new, r.new_name, target, r.time, position)
        self._place(new, r.new_name, node)
        old.nlink -= isinstance(node, Directory)
        new.nlink += isinstance(node, Directory)
        for mover in movers:
            if isinstance(mover, Directory):
                mover.held = False  # its new name is judged as any other
        for mover, before in zip(movers, was_diverted, strict=True):
            mover.ctime = r.time
            mover.modified = position
            if isinstance(mover, Directory) and before != self._moves_diverted(mover):
                self._rebuild(mover)
        if self.linked:
            self._links_table = None

    def _moves_diverted(self, node: Node) -> bool:
        return isinstance(node, Directory) and self.diverted(node)

    def crosses(self, node: Node, new_parent: Directory, new_name: bytes) -> bool:
        """True if moving *node* there takes a directory out of, or into, what git can hold."""
        if not isinstance(node, Directory):
            return False
        after = self.diverted(new_parent) or not self._storable(new_name, stat.S_IFDIR)
        return self.diverted(node) != (after or node.gitlink is not None)

    def _rebuild(self, directory: Directory) -> None:
        """Everything below moved between the user's tree and the side tree: write it all again."""
        waiting = [directory]
        while waiting:
            step = waiting.pop()
            assert step.children is not None
            for name, child in step.children.items():
                self._mark(step, name)
                if isinstance(child, Directory):
                    child.held = False
                    waiting.append(child)

    def _write(self, r: records.Write, position: int) -> None:
        node = self.nodes[r.ino]
        assert isinstance(node, File)
        self._mark_node(node)
        data = r.data if type(r.data) is bytes else None
        node.content.write(Extent(r.offset, len(r.data), position, data), self._ledger)
        if r.time:
            node.mtime = node.ctime = r.time
        node.modified = position

    def _setattr(self, r: records.SetAttr, position: int) -> None:
        node = self.nodes[r.ino]
        self._mark_node(node)
        mask = r.mask
        if mask & SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | (r.mode & 0o7777)
        if mask & SET_UID:
            node.uid = r.uid
        if mask & SET_GID:
            node.gid = r.gid
        if mask & SET_SIZE:
            assert isinstance(node, File)
            node.content.resize(r.size, self._ledger)
        if mask & SET_ATIME:
            node.atime = r.atime
        if mask & SET_MTIME:
            node.mtime = r.mtime
        if mask & SET_CTIME:
            node.ctime = r.ctime
        node.modified = position

    def _setxattr(self, r: records.SetXattr, position: int) -> None:
        node = self.nodes[r.ino]
        self._mark_node(node)
        if r.value is not None:
            if node.xattrs is None:
                node.xattrs = {}
            node.xattrs[r.name] = r.value
        elif node.xattrs is not None:
            node.xattrs.pop(r.name, None)
            if not node.xattrs:
                node.xattrs = None
        node.ctime = r.ctime
        node.modified = position

    def _name(self, r: records.Name, position: int) -> None:
        """Nothing changes: the record told recovery what to load."""
        node = self.nodes.get(r.ino)
        if node is not None:
            node.anchor = position

    def _adopt(self, r: records.Adopt, position: int) -> None:
        for entry in r.entries:
            parent = self._directory(entry.parent)
            if not entry.name:
                self._mark(parent, b"")
                parent.unfit_from = entry.oid
                continue
            self._mark(parent, entry.name)
            self._touch_directory(parent, r.time, position)
            assert parent.children is not None
            old = parent.children.get(entry.name)
            if old is not None and entry.mode and entry.ino == old.ino:
                self._mark_node(old)
                if isinstance(old, Directory):
                    old.gitlink = entry.oid  # the submodule's commit
                elif entry.mode & 0o100:
                    old.mode |= (old.mode & 0o444) >> 2
                else:
                    old.mode &= ~0o111
                old.ctime = r.time
                old.modified = position
                continue
            if old is not None:
                del parent.children[entry.name]
                self._unlink(parent, entry.name, old, r.time, position)
            if not entry.mode:
                continue
            mode = mode_of(entry.mode)
            is_directory = stat.S_ISDIR(mode)
            gitlink = entry.oid if entry.mode == GITLINK else None
            node = node_of(
                Loaded(
                    entry.name, entry.ino, mode, self.root.uid, self.root.gid,
                    entry.size if is_directory else 1, 0, r.time, r.time, r.time,
                    0 if is_directory else entry.size,
                    None if gitlink or entry.oid == records.NO_OID else entry.oid,
                    gitlink=gitlink, epoch=r.time,
                ),
                entry.ino,
            )  # fmt: skip
            node.anchor = node.modified = position
            self._place(parent, entry.name, node)
            self.nodes[entry.ino] = node
            if isinstance(node, Directory):
                parent.nlink += 1
            if entry.ino >= self.next_ino:
                self.next_ino = entry.ino + 1

    # ---- taking back what was not kept

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
        before.put_back(self._ledger)
        for node in before.nodes:
            self.nodes[node.ino] = node
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
        """Take all changes as one batch, in one step; `capture` then fills it in."""
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
                directory.unfit_from,
            )  # fmt: skip
            directory.unfit_from = None
            batch.waiting.append(directory)
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

    def capture(self, limit: int) -> bool:
        """Write up to *limit* entries into the frozen batch; False once it is complete."""
        batch = self._batch
        if batch is None:
            return False
        while batch.waiting:
            directory = batch.waiting[-1]
            while directory.frozen:
                if limit <= 0:
                    return True
                limit -= 1
                self._capture(directory, next(iter(directory.frozen)))
            batch.waiting.pop()
        self._batch = None
        return False

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
        seen: set[int] = set()
        for state in batch.directories.values():
            for entry in state.entries.values():
                if entry is None or entry.ino not in settled.contents or entry.ino in seen:
                    continue
                seen.add(entry.ino)
                node = self.nodes.get(entry.ino)
                oid = settled.contents[entry.ino]
                if entry.content is not None:
                    for before in self._tried:
                        content = before.contents.get(entry.ino)
                        if content is not None:
                            content.settle(oid, entry.content.size, batch.position, self._ledger)
                if isinstance(node, File) and entry.content is not None:
                    done = node.content.settle(oid, entry.content.size, batch.position, self._ledger)
                    yield node, oid, done
                elif isinstance(node, Symlink):
                    node.oid = oid
        for state in batch.directories.values():
            node = self.nodes.get(state.ino)
            if isinstance(node, Directory):
                node.frozen = None
        if self._unsettled is batch:
            self._unsettled = None


def _is_link_of(known: Node, entry: Loaded) -> bool:
    """Whether *entry* is one more name of *known*, and not another file under the same number."""
    if known.nlink < 2 or stat.S_IFMT(known.mode) != stat.S_IFMT(entry.mode):
        return False
    if isinstance(known, File):
        return known.content.base == entry.oid
    return not isinstance(known, Directory)
