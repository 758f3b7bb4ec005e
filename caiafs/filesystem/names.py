"""Names: lookup, create, link, remove, rename. Each checks what POSIX asks, then records.

Directories are loaded before, where an await is allowed: what was checked before it is checked
again after it.
"""

from __future__ import annotations

import errno
import stat
from typing import Protocol

from ..errors import FSError
from ..records import RENAME_EXCHANGE, Create, Link, Remove, Rename
from ..tree import Directory, Node, Symlink
from . import acl
from .directories import _directories, shown
from .heldback import HeldBack

RENAME_NOREPLACE = 1
NAME_MAX = 255
LINK_MAX = 65000
TARGET_MAX = 4095


class Caller(Protocol):
    """Who asks: pyfuse3's RequestContext, or anything like it."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class Names(HeldBack):
    """What is in a directory, and changing it."""

    async def lookup(self, parent: int, name: bytes) -> Node | None:
        """What *name* is in the directory *parent*; None if there is no such name."""
        directory = self.directory(parent)
        children = directory.children
        if children is None:
            children = await self.children(directory)
        node = children.get(name)
        if node is None:
            self._refuse_unfit(directory, name)
        return node

    @staticmethod
    def _refuse_unfit(directory: Directory, name: bytes) -> None:
        """A name that is free for the directory may be taken in git, by what cannot be shown."""
        if len(name) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG)
        if directory.unfit and name in directory.unfit:
            raise FSError(errno.EIO, f"{shown(name)} cannot be shown: {directory.unfit[name]}")

    async def _place_for(self, parent: int, name: bytes) -> Directory:
        """The directory in which *name* is to be made; it was free a moment ago."""
        directory = self.directory(parent)
        children = directory.children
        if children is None:
            if len(name) > NAME_MAX:
                raise FSError(errno.ENAMETOOLONG)
            children = await self.children(directory)
        if directory.nlink == 0:
            raise FSError(errno.ENOENT)
        if name in children:
            raise FSError(errno.EEXIST)
        self._refuse_unfit(directory, name)
        return directory

    async def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b""
    ) -> Node:
        """A new inode of the kind that *mode* says, owned by *caller* (open, mkdir, mknod, symlink).

        Of the mode the caller's umask is taken, or what the directory's default access list does not give.
        """
        if self._is_tight(0):
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
        if not stat.S_ISLNK(mode):
            if default is None:
                mode &= ~caller.umask
            else:
                mode, xattrs = acl.inherited(default, mode, is_directory)
        ino = self.tree.next_ino
        self._record(
            Create(parent, ino, mode, caller.uid, gid, rdev, self.now(), name, target, xattrs), directory
        )
        if ino & 0xFF == 0:
            self._account()
        node = self.tree.nodes[ino]
        if self.unkept:
            await self._kept_with(node)
        return node

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
        if self.unkept:
            await self._kept_with(node)
        return node

    async def _kept_with(self, node: Node) -> None:
        """`kept`, with *node* held meanwhile: somebody may see its new name and take it away."""
        node.opens += 1
        try:
            await self.kept()
        except FSError:
            node.opens -= 1
            self.tree.reap(node)
            raise
        node.opens -= 1

    async def unlink(self, parent: int, name: bytes) -> None:
        """Take a name from a file."""
        directory = self.directory(parent)
        children = directory.children
        if children is None:
            children = await self.children(directory)
        node = children.get(name)
        if node is None:
            raise FSError(errno.ENOENT)
        if isinstance(node, Directory):
            raise FSError(errno.EISDIR)
        self._record(Remove(parent, self.now(), name), directory)
        if self.unkept:
            await self.kept()

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
        if node.children or node.unfit:
            raise FSError(errno.ENOTEMPTY)  # also of what only git can show
        self._record(Remove(parent, self.now(), name), directory)
        if self.unkept:
            await self.kept()

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FSError(errno.EINVAL)
        if len(new_name) > NAME_MAX:
            raise FSError(errno.ENAMETOOLONG)
        old, new = self.directory(parent), self.directory(new_parent)
        while True:
            children, goals = old.children, new.children
            if children is None:
                children = await self.children(old)
            if goals is None:
                goals = await self.children(new)
            node, target = children.get(name), goals.get(new_name)
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
                if target.children or target.unfit:
                    raise FSError(errno.ENOTEMPTY)
            elif isinstance(node, Directory):
                raise FSError(errno.ENOTDIR)
        if self._is_inside(new, node):
            raise FSError(errno.EINVAL)
        if target is node:
            return
        if target is None:
            self._refuse_unfit(new, new_name)
        self._refuse_to_divert_unfit(node, new, new_name)
        if target is not None and flags & RENAME_EXCHANGE:
            self._refuse_to_divert_unfit(target, old, name)
        record = Rename(parent, new_parent, self.now(), flags & RENAME_EXCHANGE, name, new_name)
        self._record(record, old, new)
        if self.unkept:
            await self.kept()

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

    def _refuse_to_divert_unfit(self, node: Node, new: Directory, name: bytes) -> None:
        """What only git's tree can hold cannot go where git's tree does not reach."""
        if isinstance(node, Directory) and self.tree.crosses(node, new, name):
            for below in _directories(node):
                if below.unfit:
                    raise FSError(
                        errno.EXDEV, f"{shown(below.name)} holds entries that cannot be moved there"
                    )

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
        target = node.target
        if target is None:
            if node.oid is None:
                raise FSError(errno.EIO, f"symlink {ino} has no target")
            if not 0 <= node.length <= TARGET_MAX:
                raise FSError(errno.EIO, f"symlink {ino} has a target of {node.length} bytes")
            target = await self.contents.blob(node.oid)
            self.tree.keep_target(node, target)
        if b"\0" in target or len(target) > TARGET_MAX:
            raise FSError(errno.EIO, f"symlink {ino} has a target that no link can have")
        return target
