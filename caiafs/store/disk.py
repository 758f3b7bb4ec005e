"""The few things every module here does with files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Sequence

from caiafs.errors import StoreError


class File:
    """A read-only descriptor, closed when the last reader lets go of it."""

    __slots__ = ("fd", "size")

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read_at(self, length: int, offset: int) -> bytes:
        """Like pread(2); a disk may give less than was asked for only at the end."""
        return os.pread(self.fd, length, offset)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class NewFiles:
    """Makes files of one directory, under names of their own that begin with *prefix*. Each is locked with
    flock(2) while it is open: a lock that can be taken means that its maker is gone.

    Some can be made ahead, before anybody waits for them: ext4 passes over every inode that was freed in the
    last minutes, and took a millisecond for a new file where there were many.
    """

    def __init__(self, directory: str, prefix: str = "", mode: int = 0o666) -> None:
        self._directory = directory
        self._prefix = prefix
        self._mode = mode
        self._ahead: list[tuple[int, str]] = []

    def make(self, suffix: str) -> tuple[int, str]:
        """A descriptor and a path, with *suffix* unless the file was made ahead. Raises OSError."""
        while self._ahead:
            fd, path = self._ahead.pop()
            if os.fstat(fd).st_nlink:
                return fd, path
            os.close(fd)  # somebody tidied up
        return self._make(suffix)

    def _make(self, suffix: str) -> tuple[int, str]:
        name = f"{self._prefix}{os.getpid()}-{secrets.token_hex(6)}{suffix}"
        path = os.path.join(self._directory, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd, path

    def make_ahead(self, count: int) -> None:
        """See to it that *count* files are there. Raises OSError."""
        while len(self._ahead) < count:
            self._ahead.append(self._make(".new"))

    def close(self) -> None:
        """Remove what was made ahead."""
        while self._ahead:
            fd, path = self._ahead.pop()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(fd)

    def __del__(self) -> None:
        """Without `close` the files stay, for whoever clears up; their locks go with their maker."""
        for fd, _ in self._ahead:
            os.close(fd)


def write_all(fd: int, data: bytes | bytearray, position: int) -> None:
    """pwrite(2) until everything is written."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            with view[done:] as rest:
                done += os.pwrite(fd, rest, position + done)


def fsync_dir(path: str) -> None:
    """Make the names in *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_each(fds: Sequence[int]) -> None:
    """fsync(2) of several files, one by one."""
    for fd in fds:
        os.fsync(fd)


PROBE_SIZE = 64 * 1024
"""Bytes that a probe writes: what a small commit needs."""


def probe_directory(path: str) -> None:
    """Write a file there, sync it and take it away again; raises OSError."""
    fd, name = tempfile.mkstemp(prefix="tmp_caiafs_probe_", dir=path)
    try:
        write_all(fd, bytes(PROBE_SIZE), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
        os.unlink(name)


def failed(message: str, error: OSError) -> StoreError:
    """A StoreError that says *message* and the cause, with the errno of *error*."""
    failure = StoreError(f"{message}: {error.strerror or error}")
    failure.errno = error.errno or failure.errno
    return failure
