"""The pyfuse3 adapter: unpack, call, pack.

pyfuse3 calls these methods for the kernel's requests; the core decides. Exceptions become
FUSEError here and nowhere else: an FSError as its errno, anything unforeseen as EIO for
that one request, logged with its traceback, so that no bug costs the mount.

The daemon is the only writer, so the kernel may keep what it was told: names, absent
names and attributes get long timeouts, pages stay over opens, and write-back caching is
on. Whatever changes from outside is invalidated by the mount.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from .errors import CaiafsError, FSError
from .filesystem import Filesystem
from .filesystem.attributes import CONTROL_XATTR
from .metrics import Metrics
from .tree import ROOT_INO, UNCOUNTED, Directory, File, Node
from .virtual import TIMEOUT as VIRTUAL_TIMEOUT
from .virtual import Attributes, Virtual, is_virtual

log = logging.getLogger(__name__)

FOREVER = 30 * 24 * 3600.0
"""Seconds the kernel may keep names and attributes: what changes otherwise is invalidated."""
CAPABILITY = b"security.capability"
"""The kernel asks for it before it first writes to a file, and mostly there is none."""
STAMPED = frozenset(("link", "unlink", "rename", "setxattr", "removexattr"))
"""Requests after which a kernel with write-back caching keeps a time, to hand it over when it likes."""

P = ParamSpec("P")
R = TypeVar("R")


def _request(
    changes: bool,
) -> Callable[
    [Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]],
    Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]],
]:
    """Count and time a request, and translate what it raises. One that *changes* something is answered
    when the change is kept as the primary tier says."""

    def of(
        function: Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
        name = function.__name__
        stamps = name in STAMPED

        async def handle(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
            started = perf_counter_ns()
            try:
                if not changes:
                    return await function(self, *args, **kwargs)
                fs = self._fs
                if fs.is_returning:
                    await fs.turn()
                result = await function(self, *args, **kwargs)
                if stamps:
                    self._owes_times = True
                if fs.config.primary == "git" and fs.write_through is not None:
                    await fs.preferred()
                return result
            except FUSEError:
                raise
            except FSError as error:
                if error.errno == errno.EIO:
                    log.error("%s: %s", name, error)
                raise FUSEError(error.errno) from None
            except CaiafsError as error:
                log.error("%s: %s", name, error)
                raise FUSEError(error.errno) from None
            except Exception:
                log.exception("unexpected error in %s", name)
                self.unexpected += 1
                raise FUSEError(errno.EIO) from None
            finally:
                self._metrics.request(name, perf_counter_ns() - started)

        handle.__name__ = name
        return handle

    return of


_handler = _request(changes=False)
_change = _request(changes=True)


class Handle:
    """An open file or directory; *listing* is what a directory held at the last rewind."""

    __slots__ = ("data", "flags", "listing", "node", "privileged", "virtual")

    def __init__(
        self, node: Node | None, flags: int, virtual: int = 0, data: bytes = b"", privileged: bool = False
    ) -> None:
        self.node = node
        self.flags = flags
        self.privileged = privileged
        self.virtual = virtual
        self.data = data
        self.listing: list[tuple[bytes, Node | int]] = []


class Operations(pyfuse3.Operations):
    """One mount's requests. *acknowledge* is awaited after each change that must be in git first."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(
        self, fs: Filesystem, virtual: Virtual, metrics: Metrics, started: Callable[[], None], place: str,
        state_dir: Callable[[], str],
    ) -> None:  # fmt: skip
        super().__init__()
        self._fs = fs
        self._virtual = virtual
        self._metrics = metrics
        self._started = started
        self._place = place
        self._state_dir = state_dir
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._owes_times = False
        self.unexpected = 0

    def init(self) -> None:
        """The kernel has answered."""
        self._started()

    # ---- packing

    def _entry(self, node: Node) -> EntryAttributes:
        """Attributes of *node*, as an answer that gives the kernel one more reference."""
        node.lookups += 1
        return self._attributes(node)

    @staticmethod
    def _attributes(node: Node) -> EntryAttributes:
        entry = EntryAttributes()  # in blocks of 4,096 bytes
        fields: Any = entry  # its own kinds of int cost a call each
        size = node.size
        fields.st_ino = node.ino
        fields.st_mode = node.mode
        fields.st_nlink = node.nlink
        fields.st_uid = node.uid
        fields.st_gid = node.gid
        if node.rdev:
            fields.st_rdev = node.rdev
        fields.st_size = size
        fields.st_blocks = (size + 511) // 512
        fields.st_atime_ns = node.atime
        fields.st_mtime_ns = node.mtime
        fields.st_ctime_ns = node.ctime
        fields.entry_timeout = FOREVER
        # Of a directory whose links are not counted the kernel asks again, if anybody wants to know.
        uncounted = node.nlink == UNCOUNTED and isinstance(node, Directory)
        fields.attr_timeout = 0 if uncounted else FOREVER
        return entry

    def _virtual_attributes(self, ino: int, shown: int | None = None) -> EntryAttributes:
        found: Attributes = self._virtual.attributes(ino)
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(found.ino if shown is None else shown)
        entry.st_mode = pyfuse3.ModeT(found.mode)
        entry.st_nlink = found.nlink
        entry.st_uid, entry.st_gid = found.uid, found.gid
        entry.st_size = found.size
        entry.st_blocks = (found.size + 511) // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = found.time_ns
        entry.entry_timeout = entry.attr_timeout = VIRTUAL_TIMEOUT
        return entry

    def _remember(self, handle: Handle) -> pyfuse3.FileHandleT:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return pyfuse3.FileHandleT(number)

    def _is_virtual_place(self, parent: int, name: bytes) -> bool:
        return is_virtual(parent) or (parent == ROOT_INO and self._virtual.root_entry(name) is not None)

    # ---- names

    @_handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT_INO or is_virtual(parent_inode):
            found = (
                self._virtual.lookup(parent_inode, name)
                if is_virtual(parent_inode)
                else self._virtual.root_entry(name)
            )
            if found is not None:
                return self._virtual_attributes(found, found)
            if is_virtual(parent_inode):
                raise FSError(errno.ENOENT)
        if name == b".":
            return self._entry(self._fs.node(parent_inode))
        if name == b"..":
            directory = self._fs.directory(parent_inode)
            return self._entry(directory.parent or directory)
        node = await self._fs.lookup(parent_inode, name)
        if node is None:
            absent = EntryAttributes()
            absent.st_ino = pyfuse3.InodeT(0)
            absent.entry_timeout = FOREVER
            return absent
        return self._entry(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._fs.forget(inode_list)

    @_change
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse(parent_inode, name)
        return self._entry(await self._fs.create(parent_inode, name, mode, ctx, rdev=rdev))

    @_change
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._refuse(parent_inode, name)
        return self._entry(await self._fs.create(parent_inode, name, stat.S_IFDIR | mode & 0o7777, ctx))

    @_change
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse(parent_inode, name)
        return self._entry(
            await self._fs.create(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target)
        )

    @_change
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if is_virtual(inode) or self._is_virtual_place(new_parent_inode, new_name):
            self._virtual.link(inode, new_parent_inode, new_name)
        return self._entry(await self._fs.link(inode, new_parent_inode, new_name))

    @_change
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._is_virtual_place(parent_inode, name):
            self._virtual.unlink(parent_inode, name)
        else:
            await self._fs.unlink(parent_inode, name)

    @_change
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._is_virtual_place(parent_inode, name):
            self._virtual.rmdir(parent_inode, name)
        await self._fs.rmdir(parent_inode, name)

    @_change
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        if self._is_virtual_place(parent_inode_old, name_old) or self._is_virtual_place(
            parent_inode_new, name_new
        ):
            self._virtual.rename(parent_inode_old, name_old, parent_inode_new, name_new)
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    def _refuse(self, parent: int, name: bytes) -> None:
        if self._is_virtual_place(parent, name):
            self._virtual.make(parent, name)

    # ---- attributes

    @_handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(inode):
            return self._virtual_attributes(inode)
        node = self._fs.node(inode)
        if node.nlink == UNCOUNTED and isinstance(node, Directory):
            await self._fs.count_links(node)
        return self._attributes(node)

    @_change
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if is_virtual(inode):
            changed = (fields.update_mode, fields.update_uid, fields.update_gid, fields.update_size)
            if any(changed) or fields.update_atime:
                self._virtual.setattr(inode)
            return self._virtual_attributes(
                inode
            )  # the kernel's own note of a time, of which it keeps no atime
        before = self._fs.newest
        node = self._fs.set_attributes(
            inode,
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
            by=ctx.uid,
        )
        if self._fs.newest is not before:
            await self._fs.kept()
        return self._attributes(node)

    @_handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._fs.readlink(inode)

    @_handler
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if is_virtual(inode):
            raise FUSEError(errno.ENODATA)
        if name == CAPABILITY and not self._fs.node(inode).xattrs:
            raise FUSEError(errno.ENODATA)
        if name == CONTROL_XATTR and inode == ROOT_INO:
            return b"%d %b" % (os.getpid(), os.fsencode(self._state_dir()))
        return self._fs.get_xattr(inode, name)

    @_handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return [] if is_virtual(inode) else self._fs.list_xattrs(inode, trusted=ctx.uid == 0)

    @_change
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if is_virtual(inode):
            self._virtual.setattr(inode)
        before = self._fs.newest
        self._fs.set_xattr(inode, name, value, partial(_is_member, ctx))
        if self._fs.newest is not before:
            await self._fs.kept()

    @_change
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if is_virtual(inode):
            self._virtual.setattr(inode)
        before = self._fs.newest
        self._fs.remove_xattr(inode, name)
        if self._fs.newest is not before:
            await self._fs.kept()

    @_handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """What is free is what the disk under the repository has free."""
        disk: os.statvfs_result = await self._fs.ask(os.statvfs, self._place, operation="statfs")
        answer = StatvfsData()
        answer.f_bsize, answer.f_frsize = disk.f_bsize, disk.f_frsize
        answer.f_blocks, answer.f_bfree, answer.f_bavail = disk.f_blocks, disk.f_bfree, disk.f_bavail
        answer.f_files = disk.f_files
        answer.f_ffree, answer.f_favail = disk.f_ffree, disk.f_favail
        answer.f_namemax = 255
        return answer

    # ---- files

    @_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if is_virtual(inode):
            data = self._virtual.open(inode, flags)
            handle = self._remember(Handle(None, flags, inode, data))
            return FileInfo(fh=handle, direct_io=True, keep_cache=False)
        mode, before = self._fs.node(inode).mode, self._fs.newest
        node = self._fs.open(inode, flags, by=ctx.uid)
        if flags & os.O_TRUNC:
            try:
                await self._fs.acknowledged(before)
            except FSError:
                self._fs.release(node, flags)
                raise
        if node.mode != mode:
            # O_TRUNC took set-id bits; the kernel, which expects a SETATTR for that, must ask again.
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)
        return FileInfo(fh=self._remember(Handle(node, flags, privileged=ctx.uid == 0)), keep_cache=True)

    @_change
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._refuse(parent_inode, name)
        created = await self._fs.create(parent_inode, name, stat.S_IFREG | mode & 0o7777, ctx)
        node = self._fs.open(created.ino, flags & ~os.O_TRUNC)
        handle = self._remember(Handle(node, flags, privileged=ctx.uid == 0))
        return FileInfo(fh=handle, keep_cache=True), self._entry(node)

    @_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if handle.virtual:
            return handle.data[off : off + size]
        assert isinstance(handle.node, File)
        return await self._fs.read(handle.node, off, size, handle.flags)

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        node = handle.node
        assert isinstance(node, File)
        if self._fs.is_returning:
            await self._fs.turn()
        if node.mode & (stat.S_ISUID | stat.S_ISGID) and not handle.privileged:
            # FUSE_HANDLE_KILLPRIV_V2: the kernel leaves this to us, and keeps the mode that it knew.
            self._fs.drop_set_id(node)
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node.ino), attr_only=True)
        return await self._fs.write(node, off, buf, stamp=False)

    @_handler
    async def flush(self, fh: int) -> None:
        await self._fs.closing()

    @_handler
    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        if handle.node is not None:
            self._fs.release(handle.node, handle.flags)

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        if not self._handles[fh].virtual:
            await self._fs.sync()

    # ---- directories

    @_handler
    async def opendir(self, inode: int, ctx: RequestContext) -> pyfuse3.FileHandleT:
        if is_virtual(inode):
            return self._remember(Handle(None, 0, inode))
        directory = self._fs.directory(inode)
        directory.opens += 1
        return self._remember(Handle(directory, 0))

    @_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from the listing as it was when the directory was opened or rewound: what was
        removed since is left out, and no entry comes twice however the directory changes."""
        handle = self._handles[fh]
        if start_id == 0:
            handle.listing = await self._listing(handle)
        children = handle.node.children if isinstance(handle.node, Directory) else None
        for index in range(start_id, len(handle.listing)):
            name, node = handle.listing[index]
            if isinstance(node, int):
                entry = self._virtual_attributes(node, node)
            elif name in (b".", b"..") or (children is not None and children.get(name) is node):
                entry = self._attributes(node)
            else:
                continue
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, index + 1):
                return
            if isinstance(node, Node) and name not in (b".", b".."):
                node.lookups += 1

    async def _listing(self, handle: Handle) -> list[tuple[bytes, Node | int]]:
        if handle.virtual:
            return list(self._virtual.listing(handle.virtual))
        directory = handle.node
        assert isinstance(directory, Directory)
        children = await self._fs.children(directory)
        self._fs.touch_atime(directory)
        listing: list[tuple[bytes, Node | int]] = [(b".", directory), (b"..", directory.parent or directory)]
        listing += children.items()
        if directory.ino == ROOT_INO:
            listing = [(name, node) for name, node in listing if self._virtual.root_entry(name) is None]
            listing += self._virtual.root_listing()
        return listing

    @_handler
    async def releasedir(self, fh: int) -> None:
        node = self._handles.pop(fh).node
        if node is not None:
            node.opens -= 1
            self._fs.tree.reap(node)

    @_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if not self._handles[fh].virtual:
            await self._fs.sync()

    # ---- what the kernel has

    def kernel_holds(self) -> bool:
        """Whether the kernel may have data or times of files that it has not handed over.

        It hands over a file's pages, and its times with them, at each close and before the last release.
        """
        writing = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
        return self._owes_times or any(handle.flags & writing for handle in self._handles.values())

    def handing_over(self) -> None:
        """The kernel is asked for all that it holds now."""
        self._owes_times = False

    # ---- for statistics

    def statistics(self) -> dict[str, Any]:
        """Counts of open handles and of errors that nobody foresaw."""
        return {"open_handles": len(self._handles), "unexpected_errors": self.unexpected}


def _is_member(ctx: RequestContext, gid: int) -> bool:
    """True if the caller is in the group *gid*, or may do what its members may.

    Of a caller that /proc does not show, from outside of the daemon's PID namespace or with hidepid, only
    its own group is known.
    """
    if ctx.uid == 0 or ctx.gid == gid:
        return True
    try:
        groups = pyfuse3.get_sup_groups(ctx.pid)
    except OSError:
        return False
    return gid in groups
