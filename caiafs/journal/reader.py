"""Reading extents from a journal that another process appends to: the commit worker's view."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import JournalDamaged
from .disk import private_directory
from .segment import start_in_name


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
        self._fds: dict[int, int] = {}

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there."""
        inside = next((one for one in self._volatile if one.start <= position < one.end), None)
        start = self._start_of(position) if inside is None else inside.start
        fd = self._fds.get(start)
        if fd is None:
            if inside is None:
                fd = os.open(
                    f"{start:016x}.seg", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._opened()
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
        if index < 0 or index == len(self._starts) - 1:
            starts = map(start_in_name, os.listdir(self._opened()))
            self._starts = sorted(start for start in starts if start is not None)
            index = bisect_right(self._starts, position) - 1
        if index < 0:
            raise JournalDamaged(f"{self.directory}: position {position} is not in the journal")
        return self._starts[index]

    def close(self) -> None:
        """Close all files."""
        for fd in self._fds.values():
            os.close(fd)
        if self._place >= 0:
            os.close(self._place)
            self._place = -1
        self._fds = {}
        self._starts = []
