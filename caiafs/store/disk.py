"""The few things every module here does with files."""

from __future__ import annotations

import os
import tempfile

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
