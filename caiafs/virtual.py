"""`.stats`: a directory whose files are made when they are opened.

Pure data and decisions; operations.py asks and translates. Everything here runs on
the trio task and never waits. In the tree no such directory exists: a real entry
of the same name in the repository's root is shadowed, and comes back when the
virtual one is given another name.

**Sizes.** A file that is made when it is opened has no size before. 0, as in /proc,
makes rsync and tar store nothing; a guess makes cp stop early. And the kernel of a
mount with write-back caching believes the size (and mtime) of a regular file once,
when it first meets the node, whatever is said later. So every rendering is a node
of its own: lookup() renders, and the node id it answers carries the file, the size
and the second of that rendering. open() then hands out the very bytes that lookup
measured. For stat(2) and friends attributes() names one inode number for all
renderings of a file, since cp compares it before and after open.

For this to hold, operations.py
  - answers lookup and readdir with timeouts of 0 for the files (TIMEOUT), so that
    every open(2) begins with a lookup of its own;
  - puts the *node id* into st_ino there, and `Attributes.ino` into st_ino in getattr;
  - opens with direct_io (reads go to the end of the bytes) and without keep_cache.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, NoReturn

from caiafs.errors import FSError

# Node ids, from the top: bit 62 says virtual, then which file, when, how many bytes. The kernel and pyfuse3
# carry 63 bits unharmed. The directory itself is file 0.
_SIZE_BITS: Final = 24
_TIME_BITS: Final = 32
_FILE_SHIFT: Final = _SIZE_BITS + _TIME_BITS
_FILES: Final = 1 << (62 - _FILE_SHIFT)
_MAX_SIZE: Final = (1 << _SIZE_BITS) - 1

VIRTUAL_BASE: Final = 1 << 62
"""Ids from here up are virtual; the tree gives out lower ones only."""

DIRECTORY: Final = VIRTUAL_BASE
"""The node of the directory itself."""

TIMEOUT: Final = 0.0
"""Seconds for which the kernel may keep entries and attributes of the files: see Sizes."""

_KEPT: Final = 4  # renderings a file keeps between lookup and open; stat(2) never opens its own


def is_virtual(ino: int) -> bool:
    """Whether *ino* is the directory or one of its files."""
    return ino >= VIRTUAL_BASE


def render_json(value: object) -> bytes:
    """*value* as the JSON that people and programs read: keys in the order given, a newline at the end.

    The files under .stats and the HTTP answers both come from here, so that their bytes are equal.
    Only ASCII: names that are not UTF-8 (surrogates of os.fsdecode) pass as escapes. A float that JSON
    cannot hold (nan, inf) raises ValueError.
    """
    return json.dumps(value, indent=2, allow_nan=False).encode("ascii") + b"\n"


class VirtualFile(NamedTuple):
    """One file: *render* makes its bytes; *remove* is what rm does, None when rm is refused."""

    render: Callable[[], bytes]
    remove: Callable[[], None] | None = None


class Attributes(NamedTuple):
    """What getattr answers. All three times are `time_ns`."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    time_ns: int


class Virtual:
    """The directory *name* in the mount's root, holding *files*, owned by the user who mounted.

    *visible* puts it into the root's listing; by name it is always reachable. *now*
    tells the time in ns since 1970.
    """

    def __init__(
        self,
        files: Mapping[bytes, VirtualFile],
        *,
        name: bytes = b".stats",
        visible: bool = False,
        uid: int | None = None,
        gid: int | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        if len(files) >= _FILES:
            raise ValueError(f"{len(files)} virtual files; node ids have room for {_FILES - 1}")
        self.name = name
        self.visible = visible
        self._files = dict(files)
        self._bases = {key: VIRTUAL_BASE | n << _FILE_SHIFT for n, key in enumerate(self._files, 1)}
        self._names = {base: key for key, base in self._bases.items()}
        self._uid = os.getuid() if uid is None else uid
        self._gid = os.getgid() if gid is None else gid
        self._now = now
        self._since = now()
        self._kept: dict[bytes, OrderedDict[int, bytes]] = {key: OrderedDict() for key in self._files}

    # Finding.

    def root_entry(self, name: bytes) -> int | None:
        """The directory's node if that is what *name* means in the mount's root."""
        return DIRECTORY if name == self.name else None

    def root_listing(self) -> list[tuple[bytes, int]]:
        """What the root's listing gains: the directory, if it is to be seen."""
        return [(self.name, DIRECTORY)] if self.visible else []

    def lookup(self, parent: int, name: bytes) -> int | None:
        """A new node for the file *name* in the directory *parent*, or None if there is none.

        Renders the file: the node stands for these bytes. What the renderer raises goes through.
        """
        self._expect_directory(parent)
        if name not in self._files:
            return None
        data = self._files[name].render()
        node = self._bases[name] | self._second() << _SIZE_BITS | min(len(data), _MAX_SIZE)
        kept = self._kept[name]
        kept[node] = data
        kept.move_to_end(node)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        return node

    def listing(self, parent: int) -> list[tuple[bytes, int]]:
        """(name, node) of every file, in a fixed order, without rendering any.

        These nodes have size 0; stat(2) looks each name up again and gets a true one.
        """
        self._expect_directory(parent)
        second = self._second() << _SIZE_BITS
        return [(name, base | second) for name, base in self._bases.items()]

    def attributes(self, node: int) -> Attributes:
        """What stat(2) shows. Costs nothing: a file's size and time are in its node id.

        The directory is writable by its owner only so that rm can reach remove(): the kernel
        checks that permission before it asks. ESTALE for a node that was never given out.
        """
        if node == DIRECTORY:
            return Attributes(DIRECTORY, stat.S_IFDIR | 0o755, 2, self._uid, self._gid, 0, self._since)
        base = self._base(node)
        size = node & _MAX_SIZE
        second = node >> _SIZE_BITS & (1 << _TIME_BITS) - 1
        return Attributes(base, stat.S_IFREG | 0o444, 1, self._uid, self._gid, size, second * 10**9)

    # Reading.

    def open(self, node: int, flags: int = os.O_RDONLY) -> bytes:
        """The bytes that this open file reads, however long it stays open.

        They are those that lookup() rendered for *node*, once; a second open of the same
        node (through /proc/self/fd, say) renders anew. EACCES for any way of writing.
        """
        if node == DIRECTORY:
            raise FSError(errno.EISDIR)
        name = self._names[self._base(node)]
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FSError(errno.EACCES, f"{self._show(name)} can only be read")
        data = self._kept[name].pop(node, None)
        return self._files[name].render() if data is None else data

    # Changing. Whatever is asked is refused, but for the removal of a file that has a meaning for it. Only
    # calls that touch this directory belong here. EPERM rather than EROFS: the mount is not read-only.

    def unlink(self, parent: int, name: bytes) -> None:
        """rm: does what the file's remove() does; the file itself stays. EPERM if it has none.

        *parent* is the root when *name* is the directory's own (EISDIR).
        """
        if not is_virtual(parent):
            raise FSError(errno.EISDIR)
        file = self._file(parent, name)
        if file.remove is None:
            raise FSError(errno.EPERM, f"{self._show(name)} cannot be removed")
        file.remove()
        self._kept[name].clear()

    def rmdir(self, parent: int, name: bytes) -> NoReturn:
        """EBUSY for the directory itself, as for a mount point; ENOTDIR or ENOENT in it."""
        if not is_virtual(parent):
            raise FSError(errno.EBUSY, f"{os.fsdecode(self.name)} belongs to the mount")
        self._file(parent, name)
        raise FSError(errno.ENOTDIR)

    def make(self, parent: int, name: bytes) -> NoReturn:
        """create, mknod, mkdir and symlink: EEXIST where something is, otherwise EPERM."""
        if not is_virtual(parent):
            raise FSError(errno.EEXIST)
        self._expect_directory(parent)
        if name in self._files:
            raise FSError(errno.EEXIST)
        raise FSError(errno.EPERM, f"{os.fsdecode(self.name)} takes no new files")

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes) -> NoReturn:
        """EXDEV into and out of the directory, as between filesystems: mv then copies, and unlinks.

        So `mv .stats/metrics.json here` saves the figures and clears them. EBUSY for the directory itself,
        EPERM inside.
        """
        if is_virtual(old_parent):
            self._file(old_parent, old_name)
            if is_virtual(new_parent):
                raise FSError(errno.EPERM, f"{self._show(old_name)} cannot be renamed")
            raise FSError(errno.EXDEV)
        if is_virtual(new_parent):
            raise FSError(errno.EXDEV)
        raise FSError(errno.EBUSY, f"{os.fsdecode(self.name)} belongs to the mount")

    def link(self, node: int, new_parent: int, new_name: bytes) -> NoReturn:
        """EXDEV into and out of the directory, EPERM inside, EEXIST on its own name in the root."""
        if is_virtual(node) and is_virtual(new_parent):
            raise FSError(errno.EPERM)
        if is_virtual(node) or is_virtual(new_parent):
            raise FSError(errno.EXDEV)
        raise FSError(errno.EEXIST)

    def setattr(self, node: int) -> NoReturn:
        """chmod, chown, utimens, truncate, setxattr, removexattr: EPERM."""
        raise FSError(errno.EPERM, f"what is in {os.fsdecode(self.name)} keeps its attributes")

    # Inside.

    def _second(self) -> int:
        return self._now() // 10**9 & (1 << _TIME_BITS) - 1

    def _show(self, name: bytes) -> str:
        return os.fsdecode(self.name + b"/" + name)

    def _expect_directory(self, node: int) -> None:
        if node != DIRECTORY:
            raise FSError(errno.ENOTDIR if is_virtual(node) else errno.ESTALE)

    def _base(self, node: int) -> int:
        base = node >> _FILE_SHIFT << _FILE_SHIFT
        if base not in self._names:
            raise FSError(errno.ESTALE)
        return base

    def _file(self, parent: int, name: bytes) -> VirtualFile:
        self._expect_directory(parent)
        try:
            return self._files[name]
        except KeyError:
            raise FSError(errno.ENOENT) from None
