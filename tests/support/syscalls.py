"""System calls that Python does not offer, by ctypes."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, *paths: bytes) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *paths[:1])
    return result


def renameat2(
    source: str | os.PathLike[str] | bytes, target: str | os.PathLike[str] | bytes, flags: int
) -> None:
    old, new = os.fsencode(source), os.fsencode(target)
    _checked(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, ctypes.c_uint(flags)), old)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def utimensat(
    path: str | os.PathLike[str] | bytes,
    atime: tuple[int, int],
    mtime: tuple[int, int],
    *,
    follow: bool = True,
) -> None:
    """atime and mtime are (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    name = os.fsencode(path)
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, name, times, 0 if follow else AT_SYMLINK_NOFOLLOW), name)


def futimens(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    _checked(_libc.futimens(fd, (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))))


def getxattr_size(path: str | os.PathLike[str] | bytes, name: bytes, size: int) -> int:
    """getxattr into a buffer of *size* bytes: what the call returns."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_libc.getxattr(os.fsencode(path), name, buffer, ctypes.c_size_t(size)))


def listxattr_size(path: str | os.PathLike[str] | bytes, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(size)))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


@dataclass(frozen=True)
class Entry:
    name: bytes
    inode: int
    type: int


_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


class Directory:
    """A directory stream: opendir(3) and its friends, with "." and ".." as they come."""

    def __init__(self, path: str | os.PathLike[str] | bytes) -> None:
        name = os.fsencode(path)
        self._stream = _libc.opendir(name)
        if not self._stream:
            _checked(-1, name)

    def read(self) -> Entry | None:
        ctypes.set_errno(0)
        pointer = _libc.readdir(self._stream)
        if not pointer:
            if ctypes.get_errno():
                _checked(-1)
            return None
        entry = pointer.contents
        return Entry(entry.d_name, entry.d_ino, entry.d_type)

    def rest(self) -> list[Entry]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
