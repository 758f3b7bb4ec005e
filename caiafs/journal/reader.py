"""Reading extents from a journal that another process appends to: the commit worker's view."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import JournalDamaged
from .disk import private_directory
from .segment import name_of, start_in_name


class Volatile(NamedTuple):
    """A segment in the daemon's memory: its positions, and where another process finds its bytes."""

    start: int
    end: int
    path: str


class Reader:
    """Reads extents from a journal that another process appends to."""

    def __init__(self, directory: str, volatile: Sequence[Volatile] = ()) -> None:
        self.directory = directory
        self._volatile = volatile
        self._place = -1
        self._starts: list[int] = []
        self._reach = 0  # how far the listed segments go
        self._fds: dict[int, int] = {}

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there."""
        inside = None
        if self._volatile:
            inside = next((one for one in self._volatile if one.start <= position < one.end), None)
        start = self._start_of(position) if inside is None else inside.start
        fd = self._fds.get(start)
        if fd is None:
            if inside is None:
                fd = os.open(
                    name_of(start), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._opened()
                )
            else:
                fd = os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC)  # a link that only the kernel makes
            self._fds[start] = fd
        data = os.pread(fd, length, position - start)
        if len(data) != length:
            raise JournalDamaged(f"{self.directory}: the segment at {start} ends before {position + length}")
        return data

    def _opened(self) -> int:
        if self._place < 0:
            self._place = private_directory(self.directory)
        return self._place

    def _start_of(self, position: int) -> int:
        index = bisect_right(self._starts, position) - 1
        if index < 0 or position >= self._reach:
            self._list()
            index = bisect_right(self._starts, position) - 1
        if index < 0:
            raise JournalDamaged(f"{self.directory}: position {position} is not in the journal")
        return self._starts[index]

    def _list(self) -> None:
        place = self._opened()
        starts = map(start_in_name, os.listdir(place))
        self._starts = sorted(start for start in starts if start is not None)
        if self._starts:
            last = self._starts[-1]
            self._reach = last + os.stat(name_of(last), dir_fd=place, follow_symlinks=False).st_size

    def close(self) -> None:
        """Close all files."""
        for fd in self._fds.values():
            os.close(fd)
        if self._place >= 0:
            os.close(self._place)
            self._place = -1
        self._fds = {}
        self._starts = []
