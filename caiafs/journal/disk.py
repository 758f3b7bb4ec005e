"""The disk under the journal: an argument, so that tests can bring one that forgets and fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Protocol


class Disk(Protocol):
    """What the journal asks of a disk; errors are OSErrors, as the calls of `os` raise them."""

    def open(self, path: str, *, create: bool) -> int: ...
    def writev(self, fd: int, buffers: Sequence[bytes]) -> int: ...
    def pread(self, fd: int, length: int, offset: int) -> bytes: ...
    def size(self, fd: int) -> int: ...
    def truncate(self, fd: int, length: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def list(self, directory: str) -> list[str]: ...
    def sync_directory(self, directory: str) -> None: ...


class RealDisk:
    """The disk of the machine. Files are 0600 and symlinks are not followed."""

    def open(self, path: str, *, create: bool) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
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

    def close(self, fd: int) -> None:
        os.close(fd)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def list(self, directory: str) -> list[str]:
        return os.listdir(directory)

    def sync_directory(self, directory: str) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
