"""Making records true: `apply`, the only way to change state."""

from __future__ import annotations

import stat
from collections.abc import Callable

from .. import records
from ..records import SET_ATIME, SET_CTIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID
from .batches import Batches
from .content import Content, Extent, Ledger
from .nodes import GITLINK, Directory, File, Loaded, Node, Special, Symlink, mode_of, node_of


class Changes(Batches):
    """What each kind of record does."""

    def __init__(self, storable: Callable[[bytes, int], bool], ledger: Ledger) -> None:
        super().__init__(storable, ledger)
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

    def apply(self, record: records.Record, position: int) -> None:
        """Make *record* true; *position* is where the journal has it (a Write: its data).

        The record was checked, and every directory that it touches is loaded.
        """
        self._apply[type(record)](record, position)

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
        self._hold(node)
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

    def rewrite(self, directory: Directory) -> bool:
        """What git has of *directory* does not read back: the next batch has all of it. False if the last one
        had already, or if entries that only git knows would be lost."""
        if not directory.children or directory.unfit:
            return False
        if directory.tree_oid is None and directory.side_oid is None:
            return False
        directory.tree_oid = directory.side_oid = None
        directory.rewritten = True
        for name in directory.children:
            self._mark(directory, name)
        return True

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
        before = node.attached_bytes
        if r.value is not None:
            if node.xattrs is None:
                node.xattrs = {}
            node.xattrs[r.name] = r.value
        elif node.xattrs is not None:
            node.xattrs.pop(r.name, None)
            if not node.xattrs:
                node.xattrs = None
        self.attached_bytes += node.attached_bytes - before
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
                    old.gitlink = entry.oid if entry.mode == GITLINK else None  # the submodule's commit
                    if old.gitlink is None:
                        self._rebuild(old)
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
            self._hold(node)
            if isinstance(node, Directory):
                parent.nlink += 1
            if entry.ino >= self.next_ino:
                self.next_ino = entry.ino + 1
