"""Inodes, and what is said of them to and from the repository. No logic but their own.

A node knows every name under which the loaded tree shows it; a directory knows which of
its names git has otherwise. The tuples at the end are what crosses to other tasks and
processes: immutable, and free of nodes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .content import Content, ContentState

GITLINK = 0o160000

Xattrs = dict[bytes, bytes]


class Node:
    """An inode. Times in nanoseconds; `modified` is the journal position of its last change."""

    __slots__ = (
        "anchor", "atime", "ctime", "gid", "ino", "lookups", "marked", "mode", "modified", "more_links",
        "mtime", "name", "nlink", "opens", "parent", "rdev", "uid", "xattrs",
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
        self.marked = -1
        self.modified = -1

    @property
    def size(self) -> int:
        return 0

    @property
    def attached_bytes(self) -> int:
        """What it holds beside itself: extended attributes, and a symlink its target."""
        return sum(map(len, self.xattrs.values())) if self.xattrs else 0

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

    __slots__ = ("active", "content", "is_held", "writers")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int, content: Content) -> None:
        super().__init__(ino, mode, uid, gid, time)
        self.content = content
        self.writers = 0
        self.active = False  # written through a descriptor that is still open
        self.is_held = False  # git cannot take what it holds: a batch has it as git has it already

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

    @property
    def attached_bytes(self) -> int:
        return super().attached_bytes + len(self.target or b"")


class Special(Node):
    """A FIFO, a socket or a device."""

    __slots__ = ()


UNCOUNTED = 1
"""The link count of a directory whose subdirectories nobody has counted yet; programs take it for that."""


class Directory(Node):
    """A directory. `children` is None until it was loaded; `changed` are the names that git has otherwise.

    `held`: it lies in git's tree under the name that it has, be it one that git would refuse.
    `unfit` are names in its tree that cannot be shown, with the reason; `unfit_from` is the tree whose
    unfit entries it has to have with the next commit, if not those of its own.
    """

    __slots__ = (
        "changed", "children", "epoch", "frozen", "gitlink", "held", "rewritten", "side_oid", "tree_oid",
        "unfit", "unfit_from", "used",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time: int) -> None:
        super().__init__(ino, mode, uid, gid, time)
        self.nlink = 2
        self.children: dict[bytes, Node] | None = {}
        self.changed: set[bytes] = set()
        self.frozen: set[bytes] | None = None
        self.tree_oid: bytes | None = None
        self.side_oid: bytes | None = None
        self.gitlink: bytes | None = None
        self.held = False
        self.unfit: dict[bytes, str] | None = None
        self.unfit_from: bytes | None = None
        self.rewritten = False
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
    *size* is -1 where git cannot tell it: the blob is missing or damaged.
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
    held: bool = False


class DirectoryState(NamedTuple):
    """What changed in one directory since git knew it: name to state, None for a name that is gone.

    *unfit_from* is the tree whose unfit entries it takes over; None: those of *tree_oid* stay. Of a directory
    that is *rewritten* all names are here, since git's own do not read back.
    """

    ino: int
    tree_oid: bytes | None
    side_oid: bytes | None
    children: int
    entries: dict[bytes, EntryState | None]
    unfit_from: bytes | None = None
    rewritten: bool = False


class Batch:
    """The tree's changes at one journal position. Complete once `Tree.parts` came to its end."""

    __slots__ = ("directories", "links", "next_ino", "position", "root", "waiting")

    def __init__(
        self, position: int, root: EntryState, next_ino: int, links: list[tuple[int, bytes]]
    ) -> None:
        self.position = position
        self.root = root
        self.next_ino = next_ino
        self.links = links
        self.directories: dict[int, DirectoryState] = {}
        self.waiting: dict[int, Directory] = {}

    @property
    def names(self) -> int:
        """How many were captured."""
        return sum(len(state.entries) for state in self.directories.values())

    def let_go(self, limit: int) -> Iterator[None]:
        """Forget what it holds, *limit* entries a step: thousands that go at once take milliseconds."""
        while self.directories:
            ino = next(reversed(self.directories))
            entries = self.directories[ino].entries
            while entries:
                for _ in range(min(limit, len(entries))):
                    entries.popitem()
                yield
            del self.directories[ino]


class Settled(NamedTuple):
    """What git made of a batch: *contents* are inode number, size in bytes (of a file) and object id, one for
    each; *directories* have a tree and a side tree by inode number."""

    contents: Iterable[tuple[int, int, bytes]]
    directories: dict[int, tuple[bytes | None, bytes | None]]


def mode_of(git_mode: int) -> int:
    """The mode that an entry of a git tree has when nothing else is known of it."""
    kind = git_mode & 0o170000
    if kind in (0o040000, GITLINK):
        return stat.S_IFDIR | 0o755
    if kind == 0o120000:
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o755 if git_mode & 0o100 else 0o644)


def node_of(entry: Loaded, ino: int) -> Node:
    kind = stat.S_IFMT(entry.mode)
    node: Node
    if kind == stat.S_IFREG:
        node = File(ino, entry.mode, entry.uid, entry.gid, 0, Content(entry.size, entry.oid))
    elif kind == stat.S_IFDIR:
        node = Directory(ino, entry.mode, entry.uid, entry.gid, 0)
        node.tree_oid, node.side_oid = entry.oid, entry.side
        node.gitlink, node.epoch = entry.gitlink, entry.epoch
        node.held = entry.oid is not None
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


def state_of(node: Node) -> EntryState:
    oid = side = gitlink = target = None
    content: ContentState | None = None
    epoch = 0
    held = False
    size = node.size
    if isinstance(node, File):
        oid = node.content.oid
        size = -1 if node.content.is_unreadable else size
        if oid is None and node.is_held:
            oid, size = node.content.base, node.content.base_size
        elif oid is None:
            content = node.content.capture()
    elif isinstance(node, Directory):
        oid, side, gitlink, epoch = node.tree_oid, node.side_oid, node.gitlink, node.epoch
        held = node.held
    elif isinstance(node, Symlink):
        oid, target = node.oid, node.target
    return EntryState(
        node.ino, node.mode, node.uid, node.gid, node.nlink, node.rdev, node.atime, node.mtime, node.ctime,
        tuple(node.xattrs.items()) if node.xattrs else (), size, oid, side, gitlink, content, target,
        epoch, held,
    )  # fmt: skip
