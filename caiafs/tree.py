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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from . import records
from .records import SET_ATIME, SET_CTIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID

ROOT_INO = 1
GITLINK = 0o160000

Xattrs = dict[bytes, bytes]


class Ledger(Protocol):
    """Who keeps count of the bytes held in memory."""

    def hold(self, block: Extent) -> None:
        """*block* has data in memory from now on."""

    def drop(self, block: Extent) -> None:
        """*block* is not needed any more."""


class Extent:
    """Bytes of one file in the journal, and in memory too as long as `data` is not None."""

    __slots__ = ("data", "length", "offset", "position")

    def __init__(self, offset: int, length: int, position: int, data: bytes | None) -> None:
        self.offset = offset
        self.length = length
        self.position = position
        self.data = data

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def size(self) -> int:
        """Bytes that the extent holds in memory."""
        return 0 if self.data is None else len(self.data)

    def evict(self) -> None:
        """Forget the bytes; the address stays."""
        self.data = None

    def part(self, start: int, end: int) -> Extent:
        """The stretch from *start* to *end*, offsets in the file, as an extent of its own."""
        skip = start - self.offset
        data = None if self.data is None else self.data[skip : end - self.offset]
        return Extent(start, end - start, self.position + skip, data)


class Piece(NamedTuple):
    """Where a stretch of a file is to be read: an extent, the base blob, or neither (zeros)."""

    offset: int
    length: int
    extent: Extent | None
    base: bytes | None


class ContentState(NamedTuple):
    """A file's content at one moment, for the committer: extents are (offset, length, position)."""

    size: int
    base: bytes | None
    base_limit: int
    extents: tuple[tuple[int, int, int], ...]


class Content:
    """What a regular file holds: a git blob up to `base_limit`, extents over it, zeros elsewhere."""

    __slots__ = ("base", "base_limit", "base_size", "extents", "low_water", "size")

    def __init__(self, size: int = 0, base: bytes | None = None) -> None:
        self.size = size
        self.base = base
        self.base_size = size if base is not None else 0
        self.base_limit = self.base_size
        self.extents: list[Extent] = []
        self.low_water = size  # the smallest size since the last capture

    @property
    def oid(self) -> bytes | None:
        """The blob that holds exactly this content, if git has one."""
        if (
            self.extents
            or self.base is None
            or self.base_limit != self.base_size
            or self.size != self.base_size
        ):
            return None
        return self.base

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """The stretch from *offset*, cut at the file's end, in order and without gaps."""
        end = min(offset + length, self.size)
        index = bisect_right(self.extents, offset, key=_extent_end)
        while offset < end:
            extent = self.extents[index] if index < len(self.extents) else None
            if extent is not None and extent.offset <= offset:
                stop = min(extent.end, end)
                yield Piece(offset, stop - offset, extent, None)
                index += 1
            else:
                stop = end if extent is None else min(extent.offset, end)
                if offset < self.base_limit:
                    stop = min(stop, self.base_limit)
                    yield Piece(offset, stop - offset, None, self.base)
                else:
                    yield Piece(offset, stop - offset, None, None)
            offset = stop

    def write(self, extent: Extent, ledger: Ledger) -> None:
        """Lay *extent* over what is there."""
        extents = self.extents
        if not extents or extents[-1].end <= extent.offset:
            extents.append(extent)
        else:
            first = bisect_right(extents, extent.offset, key=_extent_end)
            last = first
            kept: list[Extent] = []
            while last < len(extents) and extents[last].offset < extent.end:
                old = extents[last]
                if old.offset < extent.offset:
                    kept.append(old.part(old.offset, extent.offset))
                if old.end > extent.end:
                    kept.append(old.part(extent.end, old.end))
                last += 1
            for old in extents[first:last]:
                ledger.drop(old)
            for piece in kept:
                ledger.hold(piece)
            kept.append(extent)
            kept.sort(key=_extent_offset)
            extents[first:last] = kept
        ledger.hold(extent)
        if extent.end > self.size:
            self.size = extent.end

    def resize(self, size: int, ledger: Ledger) -> None:
        """Cut at *size*, or extend with zeros up to it."""
        if size < self.size:
            extents = self.extents
            index = bisect_right(extents, size, key=_extent_end)
            for old in extents[index:]:
                ledger.drop(old)
            cut = extents[index].part(extents[index].offset, size) if index < len(extents) else None
            del extents[index:]
            if cut is not None and cut.length > 0:
                extents.append(cut)
                ledger.hold(cut)
            self.base_limit = min(self.base_limit, size)
            self.low_water = min(self.low_water, size)
        self.size = size

    def capture(self) -> ContentState:
        """The content as it is now; what is cut off from now on is counted by `low_water`."""
        self.low_water = self.size
        return ContentState(
            self.size,
            self.base,
            self.base_limit,
            tuple((e.offset, e.length, e.position) for e in self.extents),
        )

    def settle(self, oid: bytes, size: int, position: int, ledger: Ledger) -> list[Extent]:
        """Git has in *oid*, *size* bytes long, all that was written before *position*.

        Returns the extents that are thereby redundant, their bytes still in them.
        """
        done = [extent for extent in self.extents if extent.position < position]
        self.extents = [extent for extent in self.extents if extent.position >= position]
        for extent in done:
            ledger.drop(extent)
        self.base = oid
        self.base_size = size
        self.base_limit = min(self.low_water, size)
        return done

    def discard(self, ledger: Ledger) -> None:
        """Nobody will read this again."""
        for extent in self.extents:
            ledger.drop(extent)
        self.extents = []


def _extent_end(extent: Extent) -> int:
    return extent.offset + extent.length


def _extent_offset(extent: Extent) -> int:
    return extent.offset


class Node:
    """An inode. Times in nanoseconds; `modified` is the journal position of its last change."""

    __slots__ = (
        "anchor", "atime", "ctime", "gid", "ino", "lookups", "mode", "modified", "more_links", "mtime",
        "name", "nlink", "opens", "parent", "rdev", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = 0
        self.atime = self.mtime = self.ctime = time
        self.nlink = 1
        self.xattrs: Xattrs | None = None
        self.parent: Directory | None = None
        self.name = b""
        self.more_links: set[tuple[Directory, bytes]] | None = None
        self.lookups = 0
        self.opens = 0
        self.anchor = -1
        self.modified = -1

    @property
    def size(self) -> int:
        return 0

    def links(self) -> list[tuple[Directory, bytes]]:
        """Every (directory, name) under which the loaded tree shows this inode."""
        if self.parent is None:
            return []
        if self.more_links is None:
            return [(self.parent, self.name)]
        return [(self.parent, self.name), *self.more_links]

    def add_link(self, directory: Directory, name: bytes) -> None:
        if self.parent is None:
            self.parent, self.name = directory, name
        else:
            if self.more_links is None:
                self.more_links = set()
            self.more_links.add((directory, name))

    def remove_link(self, directory: Directory, name: bytes) -> None:
        if self.parent is directory and self.name == name:
            if self.more_links:
                self.parent, self.name = self.more_links.pop()
            else:
                self.parent, self.name = None, b""
        elif self.more_links is not None:
            self.more_links.discard((directory, name))
        if not self.more_links:
            self.more_links = None


class File(Node):
    """A regular file."""

    __slots__ = ("content", "writers")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int, content: Content) -> None:
        super().__init__(ino, mode, uid, gid, time)
        self.content = content
        self.writers = 0

    @property
    def size(self) -> int:
        return self.content.size


class Symlink(Node):
    """A symbolic link; its target stays in git (`oid`) until it is read."""

    __slots__ = ("length", "oid", "target")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int, target: bytes | None) -> None:
        super().__init__(ino, mode, uid, gid, time)
        self.target = target
        self.oid: bytes | None = None
        self.length = 0 if target is None else len(target)

    @property
    def size(self) -> int:
        return self.length


class Special(Node):
    """A FIFO, a socket or a device."""

    __slots__ = ()


class Directory(Node):
    """A directory. `children` is None until it was loaded; `changed` are the names that git has otherwise."""

    __slots__ = ("changed", "children", "epoch", "frozen", "gitlink", "side_oid", "tree_oid", "used")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int) -> None:
        super().__init__(ino, mode, uid, gid, time)
        self.nlink = 2
        self.children: dict[bytes, Node] | None = {}
        self.changed: set[bytes] = set()
        self.frozen: set[bytes] | None = None
        self.tree_oid: bytes | None = None
        self.side_oid: bytes | None = None
        self.gitlink: bytes | None = None
        self.epoch = 0
        self.used = 0


class Loaded(NamedTuple):
    """One entry of a directory as the repository has it, side record and all."""

    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    size: int
    oid: bytes | None
    side: bytes | None = None
    gitlink: bytes | None = None
    epoch: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes | None = None


class EntryState(NamedTuple):
    """One entry at the moment of a freeze. *oid* is its git object as far as git has it
    already; *content* is given instead for a file that git has not, *target* for a symlink.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    size: int
    oid: bytes | None
    side: bytes | None
    gitlink: bytes | None
    content: ContentState | None
    target: bytes | None
    epoch: int


class DirectoryState(NamedTuple):
    """What changed in one directory since git knew it: name to state, None for a name that is gone."""

    ino: int
    tree_oid: bytes | None
    side_oid: bytes | None
    children: int
    entries: dict[bytes, EntryState | None]


class Batch:
    """The tree's changes at one journal position. Complete once `Tree.capture` returned False."""

    __slots__ = ("directories", "links", "next_ino", "position", "root", "waiting")

    def __init__(
        self, position: int, root: EntryState, next_ino: int, links: list[tuple[int, bytes]]
    ) -> None:
        self.position = position
        self.root = root
        self.next_ino = next_ino
        self.links = links
        self.directories: dict[int, DirectoryState] = {}
        self.waiting: list[Directory] = []


class Settled(NamedTuple):
    """What git made of a batch: object ids by inode number (directories: tree and side tree)."""

    contents: dict[int, bytes]
    directories: dict[int, tuple[bytes | None, bytes | None]]


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
        self.next_ino = ROOT_INO + 1
        self.changes = 0
        self._links_table: list[tuple[int, bytes]] | None = None
        self._batch: Batch | None = None
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
            if step.gitlink is not None or not self._storable(step.name, stat.S_IFDIR):
                return True
            step = step.parent
        return False

    def is_clean(self, node: Node) -> bool:
        """True if the last finished commit holds *node* as it is."""
        for directory, name in node.links():
            if name in directory.changed or (directory.frozen is not None and name in directory.frozen):
                return False
        return not (isinstance(node, File) and node.content.oid is None)

    # ---- loading and unloading

    def load(self, directory: Directory, entries: Iterable[Loaded]) -> None:
        """Fill *directory*, which nobody has changed since git knew it."""
        if directory.children is not None:
            raise AssertionError(f"directory {directory.ino} is loaded already")
        children: dict[bytes, Node] = {}
        for entry in entries:
            known = self.nodes.get(entry.ino)
            if known is not None and entry.nlink > 1 and not isinstance(known, Directory):
                known.add_link(directory, entry.name)
                children[entry.name] = known
                continue
            ino = entry.ino
            if known is not None:
                ino = self.next_ino
                self.next_ino += 1
            node = _node_of(entry, ino)
            node.add_link(directory, entry.name)
            children[entry.name] = node
            self.nodes[ino] = node
            if node.nlink > 1 and not isinstance(node, Directory):
                self.linked[ino] = node
        directory.children = children

    def can_unload(self, directory: Directory) -> bool:
        """True if *directory* can be read from git again at any time, and nobody uses its entries."""
        if not directory.children or directory.changed or directory.frozen is not None or directory.opens:
            return False
        for child in directory.children.values():
            if child.lookups or child.opens:
                return False
            if isinstance(child, Directory):
                if child.children is not None or child.changed or child.frozen is not None:
                    return False
            elif child.nlink > 1 or (isinstance(child, File) and child.content.oid is None):
                return False
        return directory.tree_oid is not None or directory.side_oid is not None

    def unload(self, directory: Directory) -> int:
        """Forget the entries of *directory*; returns how many. `can_unload` was asked in the same step."""
        children = directory.children or {}
        for child in children.values():
            if isinstance(child, File):
                child.content.discard(self._ledger)
            del self.nodes[child.ino]
        directory.children = None
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
            return True
        return False

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
                return
            first = not directory.changed
            directory.changed.add(name)
            self.changes += 1
            if not first:
                return
            self.dirty[directory] = None
            if directory.parent is None:
                return
            directory, name = directory.parent, directory.name

    def _mark_node(self, node: Node) -> None:
        """The attributes or the content of *node* are about to change."""
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
        self.reap(node)

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
        assert directory.children is not None
        for name, child in directory.children.items():
            self._mark(directory, name)
            if isinstance(child, Directory):
                self._rebuild(child)

    def _write(self, r: records.Write, position: int) -> None:
        node = self.nodes[r.ino]
        assert isinstance(node, File)
        self._mark_node(node)
        data = r.data if type(r.data) is bytes else None
        node.content.write(Extent(r.offset, len(r.data), position, data), self._ledger)
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
            self._mark(parent, entry.name)
            self._touch_directory(parent, r.time, position)
            assert parent.children is not None
            old = parent.children.get(entry.name)
            if old is not None and entry.mode and entry.ino == old.ino:
                self._mark_node(old)  # only its executable bits differ
                old.mode = old.mode | (old.mode & 0o444) >> 2 if entry.mode & 0o100 else old.mode & ~0o111
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
            node = _node_of(
                Loaded(
                    entry.name, entry.ino, mode, self.root.uid, self.root.gid,
                    entry.size if is_directory else 1, 0, r.time, r.time, r.time, 0 if is_directory else entry.size,
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
        batch = Batch(position, _state_of(self.root), self.next_ino, self._links_table)
        for directory in self.dirty:
            directory.changed.discard(b"")
            directory.frozen = directory.changed
            directory.changed = set()
            batch.directories[directory.ino] = DirectoryState(
                directory.ino, directory.tree_oid, directory.side_oid, len(directory.children or ()), {}
            )
            batch.waiting.append(directory)
        self.dirty = {}
        self.changes = 0
        self._batch = batch
        return batch

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
        state = None if child is None else _state_of(child)
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
        for state in batch.directories.values():
            for entry in state.entries.values():
                if entry is None or entry.ino not in settled.contents:
                    continue
                node = self.nodes.get(entry.ino)
                oid = settled.contents[entry.ino]
                if isinstance(node, File) and entry.content is not None:
                    if node.content.base != oid or node.content.extents:
                        done = node.content.settle(oid, entry.content.size, batch.position, self._ledger)
                        yield node, oid, done
                elif isinstance(node, Symlink):
                    node.oid = oid
        for state in batch.directories.values():
            node = self.nodes.get(state.ino)
            if isinstance(node, Directory):
                node.frozen = None


def mode_of(git_mode: int) -> int:
    """The mode that an entry of a git tree has when nothing else is known of it."""
    kind = git_mode & 0o170000
    if kind in (0o040000, GITLINK):
        return stat.S_IFDIR | 0o755
    if kind == 0o120000:
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o755 if git_mode & 0o100 else 0o644)


def _node_of(entry: Loaded, ino: int) -> Node:
    kind = stat.S_IFMT(entry.mode)
    node: Node
    if kind == stat.S_IFREG:
        node = File(ino, entry.mode, entry.uid, entry.gid, 0, Content(entry.size, entry.oid))
    elif kind == stat.S_IFDIR:
        node = Directory(ino, entry.mode, entry.uid, entry.gid, 0)
        node.tree_oid, node.side_oid = entry.oid, entry.side
        node.gitlink, node.epoch = entry.gitlink, entry.epoch
        if node.tree_oid is not None or node.side_oid is not None:
            node.children = None
    elif kind == stat.S_IFLNK:
        node = Symlink(ino, entry.mode, entry.uid, entry.gid, 0, entry.target)
        node.oid = entry.oid
        node.length = entry.size
    else:
        node = Special(ino, entry.mode, entry.uid, entry.gid, 0)
        node.rdev = entry.rdev
    node.nlink = entry.nlink
    node.atime, node.mtime, node.ctime = entry.atime, entry.mtime, entry.ctime
    if entry.xattrs:
        node.xattrs = dict(entry.xattrs)
    return node


def _state_of(node: Node) -> EntryState:
    oid = side = gitlink = target = None
    content: ContentState | None = None
    epoch = 0
    if isinstance(node, File):
        oid = node.content.oid
        if oid is None:
            content = node.content.capture()
    elif isinstance(node, Directory):
        oid, side, gitlink, epoch = node.tree_oid, node.side_oid, node.gitlink, node.epoch
    elif isinstance(node, Symlink):
        oid, target = node.oid, node.target
    return EntryState(
        node.ino, node.mode, node.uid, node.gid, node.nlink, node.rdev, node.atime, node.mtime, node.ctime,
        tuple(node.xattrs.items()) if node.xattrs else (), node.size, oid, side, gitlink, content, target,
        epoch,
    )  # fmt: skip
