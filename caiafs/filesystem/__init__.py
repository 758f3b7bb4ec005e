"""The core: check, record, apply. Answers every filesystem call from the tree.

Called by operations.py with inode numbers and names; knows nothing of FUSE. Every
change is checked against the tree, kept by the journal and applied, in this order and
without an await between, so that a call either happened or did not. Directories are
loaded from git before, where an await is allowed: what was checked before it is
checked again after it.

Only the event loop's task calls in here. FSError carries the errno of a failed call.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import trio

from ..config import Config
from ..errors import CaiafsError, FSError, JournalDamaged, JournalError
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..records import (
    RENAME_EXCHANGE,
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    Adopt,
    Committed,
    Create,
    Link,
    Name,
    Record,
    Remove,
    Rename,
    SetAttr,
    SetXattr,
    Write,
)
from ..tree import Batch, Directory, File, Node, Settled, Symlink, Tree
from . import acl
from .contents import BlobSource, Contents
from .loader import Entry, Loader, Place, SideState

RENAME_NOREPLACE = 1
NAME_MAX = 255
LINK_MAX = 65000
XATTR_SIZE_MAX = XATTR_LIST_MAX = 65536
NODE_COST = 700
"""Bytes that a loaded inode costs, its names and its place in the directory included (measured)."""
RELATIME = 24 * 3600 * 10**9
_CLOCK = getattr(time, "CLOCK_REALTIME_COARSE", 5)  # linux/time.h; Python 3.11 does not name it
STATE_XATTR = b"user.caiafs.state"
COMMIT_XATTR = b"user.caiafs.commit"


class Caller(Protocol):
    """Who asks: pyfuse3's RequestContext, or anything like it."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class Filesystem:
    """Tree, memory and journal as one filesystem."""

    def __init__(
        self, config: Config, tree: Tree, memory: MemoryTier, journal: Journal, store: BlobSource,
        loader: Loader, metrics: Metrics, spool: str,
    ) -> None:  # fmt: skip
        self.config = config
        self.tree = tree
        self.memory = memory
        self.journal = journal
        self.metrics = metrics
        self._loader = loader
        self.contents = Contents(store, journal, memory, metrics, spool, self.ask)
        self._threads = trio.CapacityLimiter(4)
        self._loading: dict[int, trio.Event] = {}
        self._loaded: dict[Directory, None] = {}
        self._swept_at = 0
        self._frozen_at = 0
        self._atimes: dict[Node, None] = {}
        self._sync_running: trio.Event | None = None
        self.last_change = 0.0
        self.first_change: float | None = None
        self.changed = trio.Event()
        self.released = trio.Event()
        self.pressure = trio.Event()
        self.git_trouble: str | None = None
        self.head: bytes | None = None
        self.write_through: Callable[[], Awaitable[None]] | None = None
        self.pending = 0
        self.replayed = 0

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
            root.side_oid, root.epoch = side.root_side, side.meta.epoch
            root.nlink = record.nlink
            self.tree.next_ino = side.meta.next_ino
        if root.tree_oid is not None or root.side_oid is not None:
            root.children = None
            if side is None:
                root.nlink = 2 + sum(isinstance(node, Directory) for node in self._load_now(root).values())
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
                last = record
                continue
            if type(record) is Write and record.ino == 0:
                continue  # of a file that had no name any more
            try:
                self._prepare_now(record)
                self.tree.apply(record, where)
            except (KeyError, AssertionError, AttributeError) as error:
                raise JournalDamaged(
                    f"{self.journal.directory}: the record at position {where} does not fit the tree it was "
                    f"written for ({type(record).__name__}: {error!r}); run `caiafs check` on the repository"
                ) from error
            self.replayed += 1
        for node in [node for node in self.tree.nodes.values() if node.nlink == 0]:
            self.tree.reap(node)
        if self.replayed:
            self._note_change()
        self._account()
        return last

    def _prepare_now(self, record: Record) -> None:
        """Load what *record* touches, as its live counterpart did before it was recorded."""
        kind = type(record)
        nodes = self.tree.nodes
        if isinstance(record, Create | Link | Remove):
            self._load_now(self._a_directory(record.parent))
        elif kind is Rename:
            assert isinstance(record, Rename)
            old, new = self._a_directory(record.parent), self._a_directory(record.new_parent)
            movers = [self._load_now(old).get(record.name), self._load_now(new).get(record.new_name)]
            for node, goal, name in ((movers[0], new, record.new_name), (movers[1], old, record.name)):
                if isinstance(node, Directory) and self.tree.crosses(node, goal, name):
                    for below in self._unloaded(node):
                        self._load_now(below)
        elif kind is Name:
            assert isinstance(record, Name)
            if record.ino not in nodes:
                child = self._load_now(self._a_directory(record.parent)).get(record.name)
                if child is None or child.ino != record.ino:
                    raise KeyError(f"{record.name!r} is not inode {record.ino}")
        elif kind is Adopt:
            assert isinstance(record, Adopt)
            for entry in record.entries:
                self._load_now(self._a_directory(entry.parent))

    def _a_directory(self, ino: int) -> Directory:
        node = self.tree.nodes[ino]
        if not isinstance(node, Directory):
            raise KeyError(f"inode {ino} is not a directory")
        return node

    def _load_now(self, directory: Directory) -> dict[bytes, Node]:
        """Load in the calling thread: at start only, before anyone waits for an answer."""
        if directory.children is None:
            self._install(directory, self._loader.directory(_place(directory)))
        assert directory.children is not None
        return directory.children

    def _unloaded(self, top: Directory) -> Iterator[Directory]:
        """Directories at or below *top* that must still be loaded, until none is left."""
        while True:
            found = next((d for d in _directories(top) if d.children is None), None)
            if found is None:
                return
            yield found

    # ---- git, in threads

    async def ask(
        self, function: Callable[..., Any], *arguments: Any, operation: str = "get", patient: bool = False
    ) -> Any:
        """The store's answer. Raises FSError: ETIMEDOUT past `operation_timeout`, EIO for damage.

        A *patient* call may take as long as it needs: it moves a large amount of data.
        """
        timeout = float("inf") if patient else self.config.operation_timeout
        with self.metrics.timed("git", operation), trio.move_on_after(timeout):
            try:
                return await trio.to_thread.run_sync(
                    partial(function, *arguments), abandon_on_cancel=True, limiter=self._threads
                )
            except CaiafsError as error:
                raise FSError(errno.EIO, str(error)) from error
            except OSError as error:
                raise FSError(error.errno or errno.EIO, str(error)) from error
        raise FSError(errno.ETIMEDOUT, f"git did not answer within {timeout:g} s")

    async def children(self, directory: Directory) -> dict[bytes, Node]:
        """The entries of *directory*, loaded if they were not."""
        while directory.children is None:
            waiting = self._loading.get(directory.ino)
            if waiting is not None:
                await waiting.wait()
                continue
            event = self._loading[directory.ino] = trio.Event()
            try:
                entries = await self.ask(self._loader.directory, _place(directory), operation="list")
                self._install(directory, entries)
            finally:
                del self._loading[directory.ino]
                event.set()
        return directory.children

    def _install(self, directory: Directory, entries: Any) -> None:
        self.tree.load(directory, entries)
        self._loaded[directory] = None
        self._account()

    def _account(self) -> None:
        """Tell the memory tier what the inodes cost; unload directories that nobody uses when it is much."""
        count = len(self.tree.nodes)
        self.memory.reserve(count * NODE_COST)
        if count * NODE_COST > self.memory.limit // 2 and count > self._swept_at * 1.1:
            self._sweep(self.memory.limit // 2 // NODE_COST)
            self._swept_at = len(self.tree.nodes)
            self.memory.reserve(self._swept_at * NODE_COST)

    def _sweep(self, goal: int) -> None:
        """Unload directories, the longest loaded first, until at most *goal* inodes are left."""
        for directory in list(self._loaded):
            if len(self.tree.nodes) <= goal:
                return
            if self.tree.get(directory.ino) is not directory or directory.children is None:
                del self._loaded[directory]
            elif directory.ino not in self._loading and self.tree.can_unload(directory):
                self.tree.unload(directory)
                del self._loaded[directory]

    # ---- recording

    @staticmethod
    def now() -> int:
        """The time in nanoseconds, by the clock that the kernel stamps files with."""
        return time.clock_gettime_ns(_CLOCK)

    def _record(self, record: Record, *nodes: Node) -> None:
        """Keep *record* and make it true. *nodes* are those it names by number."""
        self._record_all((record,), *nodes)

    def _record_all(self, batch: tuple[Record, ...], *nodes: Node) -> None:
        """Keep several records and make them true, all or none."""
        self._writable()
        names: list[Record] = []
        anchored: list[Node] = []
        for node in nodes:
            self._anchor(node, names, anchored)
        where = self.journal.end
        started = time.perf_counter_ns()
        try:
            positions = self.journal.append_all([*names, *batch])[len(names) :]
        except JournalError as error:
            self.metrics.observe("journal", "append", time.perf_counter_ns() - started, ok=False)
            raise FSError(error.errno, str(error)) from error
        kept = time.perf_counter_ns()
        for node in anchored:
            node.anchor = where
        for record, position in zip(batch, positions, strict=True):
            self.tree.apply(record, position)
        self.metrics.observe("journal", "append", kept - started)
        self.metrics.observe("memory", "store", time.perf_counter_ns() - kept)
        self._note_change()

    def _anchor(self, node: Node, names: list[Record], anchored: list[Node]) -> None:
        """Recovery begins at the last freeze at the latest: tell it where *node* is, once since then."""
        missing: list[Node] = []
        while node.anchor < self._frozen_at and node.parent is not None and node not in anchored:
            missing.append(node)
            node = node.parent
        for below in reversed(missing):
            assert below.parent is not None
            names.append(Name(below.ino, below.parent.ino, below.name))
        anchored += missing

    def _note_change(self) -> None:
        now = trio.current_time() if _in_trio() else 0.0
        self.last_change = now
        if self.first_change is None:
            self.first_change = now
        self.changed.set()
        if self.journal.size > self.config.journal_max // 2:
            self.pressure.set()

    def _writable(self) -> None:
        if self.config.ro:
            raise FSError(errno.EROFS)

    async def _room(self, size: int) -> None:
        """Wait while the journal is too full for *size* more bytes and git still drains it.

        Raises FSError(ENOSPC) when it is full and git does not.
        """
        soft = self.config.journal_max - self.config.journal_max // 4
        over = self.journal.size + size - soft
        if over <= 0:
            return
        if over < self.config.journal_max // 4:
            with trio.move_on_after(0.05 * over / (self.config.journal_max // 4)):
                await self.released.wait()
            return
        while self.journal.size + size > self.config.journal_max:
            if self.git_trouble is not None:
                raise FSError(
                    errno.ENOSPC, f"the journal is full and git does not drain it: {self.git_trouble}"
                )
            if not self.is_dirty and self.pending == 0:
                self._compact()
                if self.journal.size + size > self.config.journal_max:
                    raise FSError(errno.ENOSPC, "the journal is full of what unlinked open files hold")
                return
            await self.released.wait()

    def _compact(self) -> None:
        """Git has everything; what fills the journal are writes to files without a name."""
        try:
            self.journal.compact(self._orphaned_positions())
        except JournalError as error:
            raise FSError(error.errno, str(error)) from error
        self._frozen_at = self.journal.end

    # ---- names

    def node(self, ino: int) -> Node:
        """The inode *ino*. Raises FSError(ESTALE) if there is none."""
        node = self.tree.nodes.get(ino)
        if node is None:
            raise FSError(errno.ESTALE)
        return node

    def directory(self, ino: int) -> Directory:
        """The directory *ino*. Raises FSError(ENOTDIR, ESTALE)."""
        node = self.node(ino)
        if not isinstance(node, Directory):
            raise FSError(errno.ENOTDIR)
        return node

    async def lookup(self, parent: int, name: bytes) -> Node | None:
        """What *name* is in the directory *parent*; None if there is no such name."""
        directory = self.directory(parent)
        children = directory.children
        if children is None:
            children = await self.children(directory)
        node = children.get(name)
        if node is None and len(name) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG)
        return node

    async def _place_for(self, parent: int, name: bytes) -> Directory:
        """The directory in which *name* is to be made; it was free a moment ago."""
        if len(name) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG)
        directory = self.directory(parent)
        children = await self.children(directory)
        if directory.nlink == 0:
            raise FSError(errno.ENOENT)
        if name in children:
            raise FSError(errno.EEXIST)
        return directory

    async def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b""
    ) -> Node:
        """A new inode of the kind that *mode* says, owned by *caller* (open, mkdir, mknod, symlink)."""
        await self._room(0)
        directory = await self._place_for(parent, name)
        is_directory = stat.S_ISDIR(mode)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_directory:
                mode |= stat.S_ISGID
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        default = directory.xattrs.get(acl.DEFAULT) if directory.xattrs else None
        if default is not None and not stat.S_ISLNK(mode):
            mode, xattrs = acl.inherited(default, mode, is_directory)
        ino = self.tree.next_ino
        self._record(
            Create(parent, ino, mode, caller.uid, gid, rdev, self.now(), name, target, xattrs), directory
        )
        if ino & 0xFF == 0:
            self._account()
        return self.tree.nodes[ino]

    async def link(self, ino: int, parent: int, name: bytes) -> Node:
        """One more name for the file *ino*."""
        directory = await self._place_for(parent, name)
        node = self.node(ino)
        if isinstance(node, Directory):
            raise FSError(errno.EPERM)
        if node.nlink == 0:
            raise FSError(errno.ENOENT)
        if node.nlink >= LINK_MAX:
            raise FSError(errno.EMLINK)
        self._record(Link(ino, parent, self.now(), name), node, directory)
        return node

    async def unlink(self, parent: int, name: bytes) -> None:
        """Take a name from a file."""
        directory = self.directory(parent)
        node = (await self.children(directory)).get(name)
        if node is None:
            raise FSError(errno.ENOENT)
        if isinstance(node, Directory):
            raise FSError(errno.EISDIR)
        self._record(Remove(parent, self.now(), name), directory)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        directory = self.directory(parent)
        while True:
            node = (await self.children(directory)).get(name)
            if node is None:
                raise FSError(errno.ENOENT)
            if not isinstance(node, Directory):
                raise FSError(errno.ENOTDIR)
            if node.children is not None:
                break
            await self.children(node)
        if node.children:
            raise FSError(errno.ENOTEMPTY)
        self._record(Remove(parent, self.now(), name), directory)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FSError(errno.EINVAL)
        if len(new_name) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG)
        old, new = self.directory(parent), self.directory(new_parent)
        while True:
            node = (await self.children(old)).get(name)
            target = (await self.children(new)).get(new_name)
            if node is None or new.nlink == 0:
                raise FSError(errno.ENOENT)
            missing = self._to_load_for_rename(old, name, node, new, new_name, target, flags)
            if missing is None and old.children is not None:
                break
            if missing is not None:
                await self.children(missing)
        if target is not None and flags & RENAME_NOREPLACE:
            raise FSError(errno.EEXIST)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise FSError(errno.ENOENT)
            if self._is_inside(old, target):
                raise FSError(errno.EINVAL)
        elif target is not None and target is not node:
            if isinstance(target, Directory):
                if not isinstance(node, Directory):
                    raise FSError(errno.EISDIR)
                if target.children:
                    raise FSError(errno.ENOTEMPTY)
            elif isinstance(node, Directory):
                raise FSError(errno.ENOTDIR)
        if self._is_inside(new, node):
            raise FSError(errno.EINVAL)
        if target is node:
            return
        record = Rename(parent, new_parent, self.now(), flags & RENAME_EXCHANGE, name, new_name)
        self._record(record, old, new)

    def _to_load_for_rename(
        self, old: Directory, name: bytes, node: Node, new: Directory, new_name: bytes, target: Node | None,
        flags: int,
    ) -> Directory | None:  # fmt: skip
        """A directory that must be loaded before the rename can be judged or carried out."""
        if isinstance(target, Directory) and target.children is None:
            return target
        movers: list[tuple[Node | None, Directory, bytes]] = [(node, new, new_name)]
        if flags & RENAME_EXCHANGE:
            movers.append((target, old, name))
        for mover, goal, goal_name in movers:
            if isinstance(mover, Directory) and self.tree.crosses(mover, goal, goal_name):
                found = next(self._unloaded(mover), None)
                if found is not None:
                    return found
        return None

    @staticmethod
    def _is_inside(directory: Directory, top: Node) -> bool:
        step: Directory | None = directory
        while step is not None:
            if step is top:
                return True
            step = step.parent
        return False

    async def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        node = self.node(ino)
        if not isinstance(node, Symlink):
            raise FSError(errno.EINVAL)
        if node.target is None:
            if node.oid is None:
                raise FSError(errno.EIO, f"symlink {ino} has no target")
            target = await self.contents.blob(node.oid)
            if node.target is None:
                node.target = target
        return node.target

    # ---- attributes

    def set_attributes(
        self, ino: int, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        size: int | None = None, atime: int | None = None, mtime: int | None = None, ctime: int | None = None,
    ) -> Node:  # fmt: skip
        """What chmod, chown, truncate and utimensat do, as one change. None leaves a field as it is."""
        node = self.node(ino)
        now = self.now()
        if size is not None:
            if isinstance(node, Directory):
                raise FSError(errno.EISDIR)
            if not isinstance(node, File):
                raise FSError(errno.EINVAL)
            if mtime is None:
                mtime = now
        mask = 0
        for bit, value in (
            (SET_MODE, mode), (SET_UID, uid), (SET_GID, gid), (SET_SIZE, size), (SET_ATIME, atime),
            (SET_MTIME, mtime),
        ):  # fmt: skip
            if value is not None:
                mask |= bit
        record = SetAttr(
            ino, mask | SET_CTIME, mode or 0, uid or 0, gid or 0, size or 0, _clamped(atime or 0),
            _clamped(mtime or 0), now if ctime is None else _clamped(ctime),
        )  # fmt: skip
        if node.nlink == 0:
            self._writable()
            self.tree.apply(record, self.journal.end)
            return node
        if mode is not None and node.xattrs and acl.ACCESS in node.xattrs:
            entries = acl.with_mode(acl.decode(node.xattrs[acl.ACCESS]), mode)
            self._record_all((SetXattr(ino, now, acl.ACCESS, acl.encode(entries)), record), node)
        else:
            self._record(record, node)
        return node

    def touch_atime(self, node: Node) -> None:
        """*node* was read: as relatime has it, kept in memory until something is committed anyway.

        Reads that the kernel's cache answers are not heard of. (Its GETATTR after a read looks like
        the one after a close, which with a write-back cache only asks for the blocks.)
        """
        if "noatime" in self.config.kernel_options:
            return
        now = self.now()
        if (node.atime <= node.mtime or node.atime <= node.ctime or now - node.atime > RELATIME) and (
            not self.config.ro
        ):
            node.atime = now
            if node.nlink:
                self._atimes[node] = None

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        """The value of an extended attribute. Raises FSError(ENODATA)."""
        _check_namespace(name)
        node = self.node(ino)
        value = node.xattrs.get(name) if node.xattrs else None
        if value is None:
            if name == STATE_XATTR:
                return self.durability(node).encode()
            if name == COMMIT_XATTR and self.head is not None and self.tree.is_clean(node):
                return self.head.hex().encode()
            raise FSError(errno.ENODATA)
        return value

    def list_xattrs(self, ino: int, trusted: bool = True) -> list[bytes]:
        """The names of a node's extended attributes, those of the administrator only if *trusted*;
        what caiafs makes up is not among them."""
        names = self.node(ino).xattrs or ()
        return [name for name in names if trusted or not name.startswith(b"trusted.")]

    def set_xattr(self, ino: int, name: bytes, value: bytes, is_member: Callable[[int], bool]) -> None:
        """Set an extended attribute; an access list changes the mode too, and takes the set-gid bit
        unless the caller *is_member* of the file's group."""
        _check_namespace(name)
        node = self.node(ino)
        if name.startswith(b"user.caiafs."):
            raise FSError(errno.EPERM)
        if len(name) > NAME_MAX:
            raise FSError(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise FSError(errno.E2BIG)
        names = {*(node.xattrs or ()), name}
        if sum(map(len, names)) + len(names) > XATTR_LIST_MAX:
            raise FSError(errno.ENOSPC)
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(node, name, value, is_member)
        else:
            self._set_xattr(node, name, value)

    def _set_xattr(self, node: Node, name: bytes, value: bytes | None) -> None:
        record = SetXattr(node.ino, self.now(), name, value)
        if node.nlink == 0:
            self._writable()
            self.tree.apply(record, self.journal.end)
        else:
            self._record(record, node)

    def _set_acl(self, node: Node, name: bytes, value: bytes, is_member: Callable[[int], bool]) -> None:
        if isinstance(node, Symlink):
            raise FSError(errno.EOPNOTSUPP)
        try:
            entries = acl.decode(value)
        except acl.BadACL as error:
            raise FSError(errno.EINVAL, str(error)) from error
        if name == acl.DEFAULT:
            if not isinstance(node, Directory):
                raise FSError(errno.EACCES)
            self._set_xattr(node, name, value if entries else None)
            return
        if entries:
            now = self.now()
            mode = node.mode & 0o7000 | acl.mode_of(entries)
            if mode & stat.S_ISGID and not is_member(node.gid):
                mode &= ~stat.S_ISGID
            kept = None if acl.is_minimal(entries) else value
            change = SetAttr(node.ino, SET_MODE | SET_CTIME, mode, 0, 0, 0, 0, 0, now)
            self._record_all((SetXattr(node.ino, now, name, kept), change), node)
        elif node.xattrs and name in node.xattrs:
            self._set_xattr(node, name, None)

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute. Raises FSError(ENODATA)."""
        _check_namespace(name)
        node = self.node(ino)
        if not node.xattrs or name not in node.xattrs:
            raise FSError(errno.ENODATA)
        self._set_xattr(node, name, None)

    def durability(self, node: Node) -> str:
        """Where the newest state of *node* is safe: "journal", "durable" (on disk) or "committed"."""
        if self.tree.is_clean(node):
            return "committed"
        return "durable" if node.modified < self.journal.durable else "journal"

    # ---- contents

    def open(self, ino: int, flags: int, may_keep_set_id: bool = True) -> Node:
        """One more user of *ino*. Raises FSError(EROFS, EISDIR).

        With O_TRUNC the file is emptied, and loses its set-id bits unless the caller *may_keep_set_id*.
        """
        node = self.node(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes or flags & os.O_TRUNC:
            self._writable()
            if isinstance(node, Directory):
                raise FSError(errno.EISDIR)
        if isinstance(node, File):
            if flags & os.O_TRUNC and (node.content.size or node.nlink):
                kept = node.mode if may_keep_set_id else _without_set_id(node.mode)
                self.set_attributes(ino, size=0, mode=None if kept == node.mode else kept & 0o7777)
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
        self.tree.reap(node)

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
        await self._room(len(data))
        if offset + len(data) > 2**63 - 1:
            raise FSError(errno.EFBIG)
        now = self.now() if stamp else 0
        node.active = node.writers > 0
        if node.nlink == 0:
            # No one will look for it after a crash, but the journal is where memory evicts to.
            self._writable()
            try:
                position = self.journal.append(Write(0, offset, 0, data))
            except JournalError as error:
                raise FSError(error.errno, str(error)) from error
            self.tree.apply(Write(node.ino, offset, now, data), position)
        else:
            self._record(Write(node.ino, offset, now, data), node)
        return len(data)

    async def sync(self) -> int:
        """All that was acknowledged so far survives power loss; returns up to which journal position.

        Callers that come while the disk is busy share the next flush. Raises FSError.
        """
        target = self.journal.end
        while self.journal.durable < target:
            if self._sync_running is not None:
                await self._sync_running.wait()
                continue
            self._sync_running = trio.Event()
            try:
                with self.metrics.timed("journal", "sync"):
                    await trio.to_thread.run_sync(self.journal.sync)
            except JournalError as error:
                raise FSError(error.errno, str(error)) from error
            finally:
                self._sync_running.set()
                self._sync_running = None
        return target

    # ---- acknowledging

    async def acknowledged(self) -> None:
        """Return once the caller may be told that its change is kept: with primary=git when git has it."""
        if self.write_through is not None:
            await self.write_through()

    async def closing(self) -> None:
        """A file is being closed. With the memory tier in front nothing is left to do: every write
        is in the journal already. ENOSYS says so, once, and the kernel does not ask again."""
        if self.write_through is None:
            raise FSError(errno.ENOSYS)
        await self.write_through()

    # ---- the committer's side

    async def entries(self, tree: bytes) -> Sequence[Entry]:
        """The entries of a git tree. Raises FSError."""
        found: Sequence[Entry] = await self.ask(self._loader.entries, tree, operation="list")
        return found

    async def size_of(self, mode: int, oid: bytes) -> int:
        """A blob's size, or a directory's link count. Raises FSError."""
        size: int = await self.ask(self._loader.size_of, mode, oid)
        return size

    def adopt(self, record: Adopt, parent: Directory) -> None:
        """Make a change from outside true; *parent* is loaded and was checked in the same step."""
        self._record(record, parent)

    @property
    def is_dirty(self) -> bool:
        """True if git does not have everything yet."""
        return self.tree.is_dirty

    def mark_atimes(self) -> None:
        """Let the next batch carry the access times that only memory knows."""
        for node in self._atimes:
            if node.nlink and self.tree.nodes.get(node.ino) is node:
                self.tree.mark_attributes(node)
        self._atimes = {}

    def freeze(self) -> Batch:
        """All changes so far, as of this moment; the committer then fills it in with `tree.capture`."""
        self.mark_atimes()
        position = self.journal.seal()
        self._frozen_at = position
        self.pending = self.tree.changes
        self.first_change = None
        self.changed = trio.Event()
        self.pressure = trio.Event()
        return self.tree.freeze(position)

    def settle(self, batch: Batch, settled: Settled) -> Iterator[None]:
        """Git has *batch*: each step lets go of a little of the journal; iterate to the end."""
        for node, oid, extents in self.tree.settle(batch, settled):
            if (
                len(extents) == 1
                and extents[0].data is not None
                and extents[0].length == node.content.base_size
            ):
                self.contents.keep(oid, extents[0].data)
            yield

    def release_journal(self, committed: Committed) -> None:
        """Drop what git has now; open unlinked files keep what they need. Raises JournalError
        if *committed* cannot be kept; that costs nothing but a longer look at the next start."""
        self.journal.release(committed.position, self._orphaned_positions())
        self.pending = 0
        self.released.set()
        self.released = trio.Event()
        self.journal.append(committed)

    def _orphaned_positions(self) -> Iterable[int]:
        for node in self.tree.nodes.values():
            if node.nlink == 0 and isinstance(node, File):
                for extent in node.content.extents:
                    yield extent.position

    def statistics(self) -> dict[str, int]:
        """Counts of inodes and changes."""
        return {
            "inodes": len(self.tree.nodes),
            "loaded_directories": len(self._loaded),
            "uncommitted_changes": self.tree.changes + self.pending,
            "replayed_records": self.replayed,
        }


def _check_namespace(name: bytes) -> None:
    """Raises FSError(EOPNOTSUPP) for attributes that no Linux filesystem keeps, EINVAL for half a name."""
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    namespace, _, rest = name.partition(b".")
    if namespace not in (b"user", b"trusted", b"security") or name == namespace:
        raise FSError(errno.EOPNOTSUPP)
    if not rest:
        raise FSError(errno.EINVAL)


def _clamped(time_ns: int) -> int:
    """A time as far as 64 bits of nanoseconds go: the years 1677 to 2262."""
    return max(-(2**63), min(time_ns, 2**63 - 1))


def _without_set_id(mode: int) -> int:
    """A mode after somebody without CAP_FSETID changed the file; see setattr_should_drop_suidgid in Linux."""
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)


def _place(directory: Directory) -> Place:
    return Place(directory.ino, directory.tree_oid, directory.side_oid, directory.epoch)


def _directories(top: Directory) -> Iterator[Directory]:
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        yield directory
        waiting += [child for child in (directory.children or {}).values() if isinstance(child, Directory)]


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
