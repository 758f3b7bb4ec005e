"""The disk under the journal: an argument, so that tests can bring one that forgets and fails."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Protocol

from ..aio import Flusher


class Disk(Protocol):
    """What the journal asks of a disk; errors are OSErrors, as the calls of `os` raise them.

    `start_sync` begins what `sync` does, and returns a descriptor that is readable when `finish_sync` has
    not to wait any more; None if only `sync` can do it. There is one at a time.
    """

    def open(self, path: str, *, create: bool) -> int: ...
    def writev(self, fd: int, buffers: Sequence[bytes]) -> int: ...
    def pread(self, fd: int, length: int, offset: int) -> bytes: ...
    def size(self, fd: int) -> int: ...
    def truncate(self, fd: int, length: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def start_sync(self, fd: int) -> int | None: ...
    def finish_sync(self) -> None: ...
    def close(self, fd: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def list(self, directory: str) -> list[str]: ...
    def sync_directory(self, directory: str) -> None: ...


def private_directory(path: str) -> int:
    """The directory *path* as a descriptor. OSError for a symbolic link, and for a directory that anybody but
    its owner, this user or root, may write to: who can, puts a journal of his own in place of ours."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
        os.close(fd)
        raise OSError(errno.EPERM, "others may write there, or own it: `chmod 700` it, or move it away", path)
    return fd


class RealDisk:
    """The disk of the machine. Files are 0600 and symlinks are not followed.

    A directory is held open from its first use on: a repository that is moved away takes the journal
    in it along, and the journal goes on in it.
    """

    def __init__(self) -> None:
        self._directories: dict[str, int] = {}
        self._flusher: Flusher | None = None
        self._asked_for_flusher = False

    def __del__(self) -> None:
        for fd in self._directories.values():
            os.close(fd)
        if self._flusher is not None:
            self._flusher.close()

    def _at(self, path: str) -> tuple[int, str]:
        """The directory of *path* as a descriptor, and the name in it."""
        directory, name = os.path.split(path)
        fd = self._directories.get(directory)
        if fd is None:
            fd = self._directories[directory] = private_directory(directory or ".")
        return fd, name

    def open(self, path: str, *, create: bool) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        directory, name = self._at(path)
        fd = os.open(name, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return fd

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        return os.writev(fd, buffers)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def start_sync(self, fd: int) -> int | None:
        if not self._asked_for_flusher:
            self._asked_for_flusher = True
            with contextlib.suppress(OSError):  # a kernel or a container without it
                self._flusher = Flusher()
        if self._flusher is None:
            return None
        try:
            self._flusher.start(fd)
        except OSError:
            return None  # `sync` finds out what it is
        return self._flusher.done

    def finish_sync(self) -> None:
        assert self._flusher is not None
        self._flusher.finish()

    def close(self, fd: int) -> None:
        os.close(fd)

    def unlink(self, path: str) -> None:
        directory, name = self._at(path)
        os.unlink(name, dir_fd=directory)

    def rename(self, old: str, new: str) -> None:
        directory, name = self._at(old)
        goal, new_name = self._at(new)
        os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=goal)

    def list(self, directory: str) -> list[str]:
        return os.listdir(self._at(os.path.join(directory, ""))[0])

    def sync_directory(self, directory: str) -> None:
        os.fsync(self._at(os.path.join(directory, ""))[0])


class MemoryDisk(RealDisk):
    """A disk that is memory: files without a name (memfd_create(2)), *room* bytes of them in all.

    For what git is given at once because the machine's disk takes nothing. Another process of the
    same user reads such a file by the path that `place` gives, as long as it is open here.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._fds: set[int] = set()

    @property
    def used(self) -> int:
        """Bytes that the files hold."""
        return sum(os.fstat(fd).st_size for fd in self._fds)

    @staticmethod
    def place(fd: int) -> str:
        return f"/proc/{os.getpid()}/fd/{fd}"

    def open(self, path: str, *, create: bool) -> int:
        fd = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC)
        self._fds.add(fd)
        return fd

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        if self.used + sum(map(len, buffers)) > self.room:
            raise OSError(errno.ENOSPC, "no room in memory for what the disk does not take")
        return os.writev(fd, buffers)

    def close(self, fd: int) -> None:
        self._fds.discard(fd)
        os.close(fd)

    def unlink(self, path: str) -> None:
        """Nothing to do: the file has no name."""
