"""The tools of the checks: registration over tables, files of every kind, errnos, and times."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.users import is_root

REGULAR, DIRECTORY, FIFO, SOCKET, BLOCK, CHAR, SYMLINK = (
    "regular",
    "directory",
    "fifo",
    "socket",
    "block",
    "char",
    "symlink",
)
KINDS = (REGULAR, DIRECTORY, FIFO, SOCKET, BLOCK, CHAR, SYMLINK)
NOT_SYMLINK = tuple(kind for kind in KINDS if kind != SYMLINK)
NOT_DIRECTORY = tuple(kind for kind in KINDS if kind != DIRECTORY)
LEAVES = tuple(kind for kind in NOT_SYMLINK if kind != DIRECTORY)
S_IFMT = {
    REGULAR: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    BLOCK: stat.S_IFBLK,
    CHAR: stat.S_IFCHR,
    SYMLINK: stat.S_IFLNK,
}
DEVICE = os.makedev(240, 7)
NAME_MAX = 255
PATH_MAX = 4096  # with the closing NUL
CLOCK_REALTIME_COARSE = 5
TICK = (
    1.5 * time.clock_getres(CLOCK_REALTIME_COARSE) + 0.001
)  # longer than a step of the clock that stamps files


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[Path], None]
    root: bool


CASES: list[Case] = []


def check(
    *, root: bool = False, **table: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a check; each word of *table* is an argument and the values it takes, all combined."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        module = function.__module__.rpartition(".")[2]
        title = f"{module}.{function.__name__.removeprefix('check_')}"
        for values in itertools.product(*table.values()):
            arguments = dict(zip(table, values, strict=True))
            shown = ",".join(_shown(value) for value in values)
            needs_root = root or any(value in (BLOCK, CHAR) for value in values if isinstance(value, str))
            CASES.append(
                Case(f"{title}({shown})" if shown else title, partial(function, **arguments), needs_root)
            )
        return function

    return register


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_shown, value))
    return f"0{value:o}" if isinstance(value, int) else getattr(value, "name", str(value))


def skip(reason: str) -> None:
    pytest.skip(reason)


def make(path: str | bytes | os.PathLike[str], kind: str, mode: int | None = None) -> Any:
    """Creates a file of *kind*; with *mode* it has exactly these bits."""
    if kind == DIRECTORY:
        os.mkdir(path, 0o755)
    elif kind == REGULAR:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    elif kind == SYMLINK:
        os.symlink(b"test" if isinstance(path, bytes) else "test", path)
    else:
        if kind in (BLOCK, CHAR) and not is_root():
            skip("making a device needs root")
        os.mknod(path, S_IFMT[kind] | 0o644, DEVICE if kind in (BLOCK, CHAR) else 0)
    if mode is not None and kind != SYMLINK:
        os.chmod(path, mode)
    return path


def remove(path: str | bytes | os.PathLike[str]) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.rmdir(path)
    else:
        os.unlink(path)


def write(path: str | os.PathLike[str] | bytes, data: bytes = b"data") -> Any:
    with open(path, "wb") as file:
        file.write(data)
    return path


def read(path: str | os.PathLike[str] | bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def opened(path: str | bytes | os.PathLike[str], flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: str | bytes | os.PathLike[str]) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def refused(codes: int | tuple[int, ...], call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """The call fails with this errno, or one of these."""
    wanted = codes if isinstance(codes, tuple) else (codes,)
    seen = "success"
    try:
        result = call(*arguments, **options)
    except OSError as error:
        if error.errno in wanted:
            return
        seen = errno.errorcode.get(error.errno or 0, str(error))
    else:
        if call is os.open:
            os.close(result)
    raise AssertionError(f"{seen} instead of {'/'.join(errno.errorcode[code] for code in wanted)}")


@contextlib.contextmanager
def times_of(path: Any, changed: str, inode: bool = True) -> Iterator[None]:
    """Inside, of the times of *path* exactly those in *changed* ("m", "c", "mc") move, and forward.

    *path* may be a descriptor. With changed="" nothing moves.
    """
    look = os.fstat if isinstance(path, int) else os.lstat
    before = look(path)
    time.sleep(TICK)
    yield
    after = look(path)
    for letter, name in (("m", "st_mtime_ns"), ("c", "st_ctime_ns")):
        old, new = getattr(before, name), getattr(after, name)
        if letter in changed:
            assert new > old, f"{name} of {path} did not move"
        else:
            assert new == old, f"{name} of {path} moved by {new - old} ns"


def same(before: os.stat_result, after: os.stat_result, *but: str) -> None:
    """Two looks at one file agree in everything but these fields (atime is never looked at)."""
    for name in ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "mtime_ns", "ctime_ns", "rdev"):
        if name not in but:
            old, new = getattr(before, f"st_{name}"), getattr(after, f"st_{name}")
            assert old == new, f"st_{name}: {old} became {new}"
