"""A filesystem in a dictionary: pyfuse3 and trio with nothing behind them, the floor of our own stack.

It keeps no journal, checks no rights, and forgets everything at its end. Caching is set as caiafs
has it. `python -m bench.peers.memfs MOUNTPOINT` serves in the foreground until it is unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any

import pyfuse3
import trio

FOREVER = 30 * 24 * 3600.0


class Node:
    """A file, a directory or a symlink."""

    __slots__ = ("children", "data", "ino", "mode", "mtime", "nlink")

    def __init__(self, ino: int, mode: int) -> None:
        self.ino, self.mode, self.nlink = ino, mode, 1
        self.mtime = time.time_ns()
        self.data = bytearray()
        self.children: dict[bytes, Node] = {}


class MemFs(pyfuse3.Operations):
    """Inodes by number; a file's handle is its inode number."""

    enable_writeback_cache = True
    supports_dot_lookup = True

    def __init__(self) -> None:
        super().__init__()
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}
        self.next = 2

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = node.ino, node.mode, node.nlink
        entry.st_size, entry.st_blocks = len(node.data), (len(node.data) + 511) // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime
        entry.entry_timeout = entry.attr_timeout = FOREVER
        return entry

    def _new(self, parent: int, name: bytes, mode: int) -> Node:
        node = self.nodes[self.next] = Node(self.next, mode)
        self.next += 1
        self.nodes[parent].children[name] = node
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self.nodes[parent_inode].children.get(name)
        if node is None:
            absent = pyfuse3.EntryAttributes()
            absent.st_ino, absent.entry_timeout = 0, FOREVER
            return absent
        return self._entry(node)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self.nodes[inode])

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self.nodes[inode]
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        if fields.update_size:
            del node.data[attr.st_size :]
            node.data.extend(bytes(attr.st_size - len(node.data)))
        return self._entry(node)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self._new(parent_inode, name, stat.S_IFDIR | mode & 0o7777))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> Any:
        node = self._new(parent_inode, name, stat.S_IFLNK | 0o777)
        node.data[:] = target
        return self._entry(node)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return bytes(self.nodes[inode].data)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> Any:
        node = self.nodes[new_parent_inode].children[new_name] = self.nodes[inode]
        node.nlink += 1
        return self._entry(node)

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        node = self._new(parent_inode, name, stat.S_IFREG | mode & 0o7777)
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self._entry(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self.nodes[parent_inode].children.pop(name).nlink -= 1

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        if self.nodes[parent_inode].children[name].children:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        del self.nodes[parent_inode].children[name]

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        node = self.nodes[parent_inode_old].children.pop(name_old)
        self.nodes[parent_inode_new].children[name_new] = node

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        if flags & os.O_TRUNC:
            self.nodes[inode].data.clear()
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.nodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        data = self.nodes[fh].data
        if off > len(data):
            data.extend(bytes(off - len(data)))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for index, (name, node) in enumerate(list(self.nodes[fh].children.items())):
            if index >= start_id and not pyfuse3.readdir_reply(token, name, self._entry(node), index + 1):
                return

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 20
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 20
        answer.f_namemax = 255
        return answer


def main(mountpoint: str) -> None:
    pyfuse3.init(MemFs(), mountpoint, {"default_permissions", "fsname=memfs"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1])
