"""Modes, owners, times, sizes and extended attributes: each change is one record, or one piece of several."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

from ..errors import FSError
from ..records import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    SetAttr,
    SetXattr,
)
from ..tree import Directory, File, Node, Symlink
from . import acl
from .names import NAME_MAX, Names

XATTR_SIZE_MAX = XATTR_LIST_MAX = 65536
XATTR_TOTAL_MAX = 4 * XATTR_SIZE_MAX
"""Bytes of all attributes of a file: they are in its record in git, which is in one blob with some hundred
others, and is written and read whole, in memory."""
SET_ID = stat.S_ISUID | stat.S_ISGID
RELATIME = 24 * 3600 * 10**9
STATE_XATTR = b"user.caiafs.state"
COMMIT_XATTR = b"user.caiafs.commit"
CONTROL_XATTR = b"user.caiafs.control"
"""Of the root: the daemon's process id and where its command socket is, in one request."""


class Attributes(Names):
    """What an inode says of itself beside its content."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.head: bytes | None = None

    def set_attributes(
        self, ino: int, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        size: int | None = None, atime: int | None = None, mtime: int | None = None, ctime: int | None = None,
        emptied: bool = False, by: int = 0,
    ) -> Node:  # fmt: skip
        """What chmod, chown, truncate and utimensat do, as one change. None leaves a field as it is.

        Set-id bits go with a new owner, and with a new size unless *by*, the caller's uid, is root's.
        With no field at all the kernel takes them from a file that is written to. A ctime alone is a
        chown(2) that names nobody. The kernel lets everybody do that, so it takes set-id bits only for
        root and the owner, else it is EPERM. A size that is there already changes nothing, unless the file
        is *emptied* by O_TRUNC.
        """
        node = self.node(ino)
        now = self.now()
        if mode is None and node.mode & SET_ID and not isinstance(node, Directory):
            bare = uid is gid is size is mtime is atime is None
            is_chown = uid is not None or gid is not None or bare
            if is_chown or (size is not None and by != 0):
                kept = _without_set_id(node.mode)
                mode = None if kept == node.mode else kept & 0o7777
                if mode is not None and bare and ctime is not None and by not in (0, node.uid):
                    raise FSError(errno.EPERM)
        if size is not None:
            if isinstance(node, Directory):
                raise FSError(errno.EISDIR)
            if not isinstance(node, File):
                raise FSError(errno.EINVAL)
            self.refuse_growth(node, size)
            if mtime is None:
                if size == node.size and mode is uid is gid is atime is ctime is None and not emptied:
                    return node  # truncate(2) to the size that is there changes nothing, the times neither
                mtime = now
        elif mtime == node.mtime and ctime == node.ctime and mode is uid is gid is atime is None:
            return node  # the kernel's own note of a rename or a write, by the same tick of the same clock
        mask = (
            SET_CTIME
            | (0 if mode is None else SET_MODE)
            | (0 if uid is None else SET_UID)
            | (0 if gid is None else SET_GID)
            | (0 if size is None else SET_SIZE)
            | (0 if atime is None else SET_ATIME)
            | (0 if mtime is None else SET_MTIME)
        )
        record = SetAttr(
            ino, mask, mode or 0, uid or 0, gid or 0, size or 0, _clamped(atime) if atime else 0,
            _clamped(mtime) if mtime else 0, now if ctime is None else _clamped(ctime),
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

    def drop_set_id(self, node: Node) -> None:
        """*node* is written to by somebody without CAP_FSETID."""
        kept = _without_set_id(node.mode)
        if kept != node.mode:
            self.set_attributes(node.ino, mode=kept & 0o7777)

    def touch_atime(self, node: Node) -> None:
        """*node* was read: as relatime has it, kept in memory until something is committed anyway.

        Reads that the kernel's cache answers are not heard of. (Its GETATTR after a read looks like
        the one after a close, which with a write-back cache only asks for the blocks.)
        """
        if "noatime" in self.config.kernel_options:
            return
        now = self.now()
        if (node.atime <= node.mtime or node.atime <= node.ctime or now - node.atime > RELATIME) and (
            not self.config.ro and not self.closed
        ):
            node.atime = now
            if node.nlink:
                self._atimes[node] = None

    # ---- extended attributes

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
        others = sum(len(value) for other, value in (node.xattrs or {}).items() if other != name)
        if others + len(value) > XATTR_TOTAL_MAX:
            raise FSError(errno.ENOSPC)
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(node, name, value, is_member)
        else:
            self._set_xattr(node, name, value)
        self._account()

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
        """Remove an extended attribute. Raises FSError(ENODATA), but not for an access list: one that
        is not there is one without entries."""
        _check_namespace(name)
        node = self.node(ino)
        if not node.xattrs or name not in node.xattrs:
            if name in (acl.ACCESS, acl.DEFAULT):
                return
            raise FSError(errno.ENODATA)
        self._set_xattr(node, name, None)

    def durability(self, node: Node) -> str:
        """Where the newest state of *node* is safe.

        "memory": nowhere else, so it ends with the daemon: a file without a name, or a change that
        is on its way into git past a journal that does not keep it. "journal": survives the daemon.
        "durable": on disk. "committed": in git.
        """
        if node.nlink == 0:
            return "memory"
        if self.tree.is_clean(node):
            return "committed"
        if self.journal.is_volatile and node.modified >= self.journal.volatile[0].start:
            return "memory"
        return "durable" if node.modified < self.journal.durable else "journal"


def _check_namespace(name: bytes) -> None:
    """Raises FSError(EOPNOTSUPP) for attributes that no Linux filesystem keeps, EINVAL for half a name."""
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    namespace, _, rest = name.partition(b".")
    if namespace not in (b"user", b"trusted", b"security") or name == namespace:
        raise FSError(errno.EOPNOTSUPP)
    if not rest:
        raise FSError(errno.EINVAL)


def _without_set_id(mode: int) -> int:
    """A mode after somebody without CAP_FSETID changed the file; see setattr_should_drop_suidgid in Linux."""
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)


def _clamped(time_ns: int) -> int:
    """A time as far as 64 bits of nanoseconds go: the years 1677 to 2262."""
    return max(-(2**63), min(time_ns, 2**63 - 1))
