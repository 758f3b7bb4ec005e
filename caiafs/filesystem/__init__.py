"""The core: check, record, apply. Answers every filesystem call from the tree.

Called by operations.py with inode numbers and names; knows nothing of FUSE. Every
change is checked against the tree, kept by the journal and applied, in this order and
without an await between, so that a call either happened or did not.

`Filesystem` is built in layers, each a module: `directories` (what is loaded), `recording`
(the way into the journal and the tree), `heldback` (what git cannot take), `names`,
`attributes`, and here: contents, starting, and what the committer asks.

Only the event loop's task calls in here. FSError carries the errno of a failed call.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ..errors import CaiafsError, FSError, JournalDamaged
from ..records import Adopt, Committed, Create, Link, Name, Record, Remove, Rename, Write
from ..tree import ROOT_INO, UNCOUNTED, Directory, File, Node
from . import acl
from .attributes import COMMIT_XATTR, STATE_XATTR, XATTR_LIST_MAX, XATTR_SIZE_MAX, Attributes
from .directories import NODE_COST
from .loader import HASHED_INO, Entry, SideState
from .names import LINK_MAX, NAME_MAX, RENAME_NOREPLACE, Caller
from .unkept import Change

log = logging.getLogger(__name__)

__all__ = [
    "COMMIT_XATTR",
    "LINK_MAX",
    "NAME_MAX",
    "NODE_COST",
    "RENAME_NOREPLACE",
    "STATE_XATTR",
    "XATTR_LIST_MAX",
    "XATTR_SIZE_MAX",
    "Caller",
    "Filesystem",
    "acl",
]


class Filesystem(Attributes):
    """Tree, memory and journal as one filesystem."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.replayed = 0
        self.replayed_to = 0
        """The position of the last record that was replayed."""
        self.taking: bytes | None = None
        """The commit from outside of which some was taken in, and perhaps not all."""
        self._distrusted: set[Node] = set()
        self._preparing: dict[type, Callable[..., None]] = {
            Create: self._prepare_create,
            Link: self._prepare_create,
            Remove: self._prepare_remove,
            Rename: self._prepare_rename,
            Name: self._prepare_name,
            Adopt: self._prepare_adopt,
        }

    # ---- starting

    def attach(
        self, commit_tree: bytes | None, epoch: int, side: SideState | None, uid: int, gid: int
    ) -> None:
        """Show the tree that git has, with the metadata of *side*. Nothing is read yet but the root."""
        root = self.tree.root
        root.tree_oid = commit_tree
        root.epoch = epoch
        if side is None:
            root.uid, root.gid = uid, gid
            root.atime = root.mtime = root.ctime = epoch
        else:
            record = side.meta.root
            root.mode, root.uid, root.gid = record.mode, record.uid, record.gid
            root.atime, root.mtime, root.ctime = record.atime, record.mtime, record.ctime
            root.xattrs = dict(record.xattrs) or None
            self.tree.attached_bytes += root.attached_bytes
            root.side_oid, root.epoch = side.root_side, side.meta.epoch
            root.nlink = record.nlink
            said = side.meta.next_ino
            self.tree.next_ino = said if ROOT_INO < said < HASHED_INO else HASHED_INO // 2
        if root.tree_oid is not None or root.side_oid is not None:
            root.children = None
            if side is None:
                root.nlink = UNCOUNTED
                self._load_now(root)  # a commit without its tree is refused now
        if side is not None:
            self._load_links(side)

    def _load_links(self, side: SideState) -> None:
        """Inodes with several names are loaded at once: a change to one name is a change to all."""
        for _, path in side.meta.links:
            directory = self.tree.root
            for name in path.split(b"/")[:-1]:
                child: Node | None = self._load_now(directory).get(name)
                if not isinstance(child, Directory):
                    break
                directory = child
            else:
                self._load_now(directory)

    def replay(self, position: int) -> Committed | None:
        """Apply what the journal kept and git has not, from *position* on.

        Returns the last word on where the branch stood. Raises JournalDamaged.
        """
        last: Committed | None = None
        for record, where in self.journal.replay(position):
            if type(record) is Committed:
                last, self.taking = record, None
                continue
            if type(record) is Write and record.ino == 0:
                continue  # of a file that had no name any more
            try:
                self._prepare_now(record)
                self.tree.apply(record, where)
                if type(record) is Adopt:
                    self.taking = record.commit
                    self._learn_unfit(record)
            except (KeyError, AssertionError, AttributeError) as error:
                raise JournalDamaged(
                    f"{self.journal.directory}: the record at position {where} does not fit the tree it was "
                    f"written for ({type(record).__name__}: {error!r}); run `caiafs check` on the repository"
                ) from error
            self.replayed += 1
            self.replayed_to = where
        for node in [node for node in self.tree.nodes.values() if node.nlink == 0]:
            self.tree.reap(node)
        if self.replayed:
            self._note_change()
        self._account()
        return last

    def begin(self) -> None:
        """Trio's clock runs. What was recovered before it did counts as changed now, and is due."""
        if self.first_change is not None:
            self.first_change = trio.current_time()

    def _prepare_now(self, record: Record) -> None:
        """Load what *record* touches, as its live counterpart did before it was recorded."""
        prepare = self._preparing.get(type(record))
        if prepare is not None:
            prepare(record)

    def _prepare_create(self, record: Create | Link) -> None:
        if record.name in self._load_now(self._a_directory(record.parent)):
            raise KeyError(f"{record.name!r} is there already")
        if type(record) is Create and record.ino in self.tree.nodes:
            raise KeyError(f"inode {record.ino} is there already")

    def _prepare_remove(self, record: Remove) -> None:
        if record.name not in self._load_now(self._a_directory(record.parent)):
            raise KeyError(f"{record.name!r} is gone")

    def _prepare_rename(self, record: Rename) -> None:
        old, new = self._a_directory(record.parent), self._a_directory(record.new_parent)
        movers = [self._load_now(old).get(record.name), self._load_now(new).get(record.new_name)]
        for node, goal, name in ((movers[0], new, record.new_name), (movers[1], old, record.name)):
            if isinstance(node, Directory) and self.tree.crosses(node, goal, name):
                for below in self._unloaded(node):
                    self._load_now(below)

    def _prepare_name(self, record: Name) -> None:
        if record.ino not in self.tree.nodes:
            child = self._load_now(self._a_directory(record.parent)).get(record.name)
            if child is None or child.ino != record.ino:
                raise KeyError(f"{record.name!r} is not inode {record.ino}")

    def _prepare_adopt(self, record: Adopt) -> None:
        for entry in record.entries:
            node = self._load_now(self._a_directory(entry.parent)).get(entry.name)
            if isinstance(node, Directory) and entry.ino == node.ino and entry.mode == stat.S_IFDIR:
                for below in self._unloaded(node):
                    self._load_now(below)

    def _learn_unfit(self, record: Adopt) -> None:
        for entry in record.entries:
            if not entry.name:
                directory = self._a_directory(entry.parent)
                directory.unfit = self._loader.unfit(entry.oid) or None
                self.tell_unfit(directory)

    def _a_directory(self, ino: int) -> Directory:
        node = self.tree.nodes[ino]
        if not isinstance(node, Directory):
            raise KeyError(f"inode {ino} is not a directory")
        return node

    # ---- contents

    def open(self, ino: int, flags: int, by: int = 0) -> Node:
        """One more user of *ino*. Raises FSError(EROFS, EISDIR).

        With O_TRUNC the file is emptied, and loses its set-id bits unless *by*, the caller's uid, is root's.
        """
        node = self.node(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes or flags & os.O_TRUNC:
            self._writable()
            if isinstance(node, Directory):
                raise FSError(errno.EISDIR)
        if isinstance(node, File):
            if flags & os.O_TRUNC and (node.content.size or node.nlink):
                self.set_attributes(ino, size=0, emptied=True, by=by)
            elif node.content.is_unreadable:
                raise FSError(errno.EIO, f"inode {ino}: git does not have its blob, or it is damaged")
            node.writers += writes
        node.opens += 1
        return node

    def release(self, node: Node, flags: int) -> None:
        """The end of what `open` began."""
        node.opens -= 1
        if isinstance(node, File) and flags & os.O_ACCMODE != os.O_RDONLY:
            node.writers -= 1
            node.active = node.active and node.writers > 0
        if self._distrusted and node.opens == 0 and node in self._distrusted:
            self._distrusted.discard(node)
            self._distrust(node)
        self.tree.reap(node)

    def _distrust(self, node: Node) -> None:
        """A write was refused: the kernel has pages of *node*, and a size, that nobody keeps. It goes by
        its own size as long as it has the inode, so it is told again when the last user is gone."""
        if self.forget_in_kernel is not None:
            self.forget_in_kernel([(parent.ino, name) for parent, name in node.links()], {node.ino})
        if node.opens:
            self._distrusted.add(node)

    async def read(self, node: File, offset: int, length: int, flags: int = 0) -> bytes:
        """Up to *length* bytes from *offset*; fewer only at the end of the file. *flags* of its open(2)."""
        data = await self.contents.read(node.content, offset, length)
        if not flags & os.O_NOATIME:
            self.touch_atime(node)
        return data

    async def write(self, node: File, offset: int, data: bytes, stamp: bool = True) -> int:
        """*data* at *offset*; returns how much was written: all of it.

        Without *stamp* the times stay: a kernel with a write-back cache stamps files itself, when
        they are written and not when it hands the bytes over, and sends the times separately.
        """
        if not data:
            return 0  # write(2): no effects
        try:
            if self._is_tight(len(data)):
                await self._room(len(data))
            self.refuse_growth(node, offset + len(data))
            now = self.now() if stamp else 0
            node.active = node.writers > 0
            if node.nlink == 0:
                # No one will look for it after a crash, but the journal is where memory evicts to.
                self._writable()
                (position,), _ = self._append([Write(0, offset, 0, data)], is_spill=True)
                self.tree.apply(Write(node.ino, offset, now, data), position)
            else:
                self._record(Write(node.ino, offset, now, data), node)
                if self.unkept:
                    await self.kept()
        except FSError:
            self._distrust(node)
            raise
        return len(data)

    # ---- acknowledging

    async def acknowledged(self, before: Change | None = None) -> None:
        """Return once the caller may be told that its change is kept. Raises FSError: it was undone.

        *before* was the `newest` one when the caller began: with others' changes it has nothing to do.
        """
        if self.newest is not before:
            await self.kept()
        else:
            await self.preferred()

    async def preferred(self) -> None:
        """With primary=git: return once git has what is in the journal, if it takes it now."""
        prefers = self.config.primary == "git" and self.config.enable_fallback and not self.unkept
        if prefers and (self.is_dirty or self.pending):
            await self._prefer_git()

    async def _prefer_git(self) -> None:
        """With primary=git: wait for the commit, but no longer than a call may, and only while git works.
        The change is in memory and in the journal: the tier to fall back to."""
        if self.write_through is None:
            return
        target = self.journal.end
        reason: object = self.health.git.reason
        if self.health.git.is_healthy:
            with trio.move_on_after(self.config.operation_timeout) as scope:
                try:
                    await self.write_through(target)
                    return
                except CaiafsError as error:
                    reason = error
            if scope.cancelled_caught:
                reason = f"no answer within {self.config.operation_timeout:g} s"
                self.health.git.slow(reason)
        self.metrics.fallback("git", "memory")
        log.info("acknowledged from the journal, since git did not take it: %s", reason)

    async def closing(self) -> None:
        """A file is being closed. With the memory tier in front nothing is left to do: every write
        is in the journal already, or in git where the journal did not take it. ENOSYS says so, once,
        and the kernel does not ask again."""
        if self.config.primary == "memory":
            raise FSError(errno.ENOSYS)
        await self.preferred()

    # ---- the committer's side

    async def entries(self, tree: bytes) -> Sequence[Entry]:
        """The entries of a git tree. Raises FSError."""
        found: Sequence[Entry] = await self.ask(self._loader.entries, tree, operation="list")
        return found

    async def size_of(self, mode: int, oid: bytes) -> int:
        """A blob's size, or a directory's link count. Raises FSError."""
        size: int = await self.ask(self._loader.size_of, mode, oid)
        return size

    async def unfit_of(self, tree: bytes) -> dict[bytes, str]:
        """The names in a git tree that cannot be shown, with the reason. Raises FSError."""
        found: dict[bytes, str] = await self.ask(self._loader.unfit, tree, operation="list")
        return found

    async def load_below(self, directory: Directory) -> None:
        """Load *directory* and all below it; so it is when this returns. Raises FSError."""
        for below in self._unloaded(directory):
            await self.children(below)

    def adopt(self, record: Adopt, parent: Directory, unfit: dict[bytes, str] | None = None) -> None:
        """Make a change from outside true; *parent* is loaded and was checked in the same step.

        *unfit* is what cannot be shown of the directory from now on, where the record is about that.
        """
        closed, self.closed = self.closed, False
        try:
            self._record(record, parent)
        finally:
            self.closed = closed
        if unfit is not None:
            parent.unfit = unfit or None
            self.tell_unfit(parent)

    def statistics(self) -> dict[str, int]:
        """Counts of inodes and changes."""
        return {
            "inodes": len(self.tree.nodes),
            "loaded_directories": len(self._loaded),
            "uncommitted_changes": self.tree.changes + self.pending,
            "replayed_records": self.replayed,
        }
