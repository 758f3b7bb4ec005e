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
    """A segment that is in the daemon's memory, or that it has open: its positions, and where another process
    finds its bytes."""

    start: int
    end: int
    path: str


class Reader:
    """Reads extents from a journal that another process appends to."""

    def __init__(
        self, directory: str, volatile: Sequence[Volatile] = (), opened: Sequence[Volatile] = ()
    ) -> None:
        """*opened* are the daemon's own descriptors, for segments that somebody took away."""
        self.directory = directory
        self._volatile = volatile
        self._daemons = opened
        self._place = -1
        self._starts: list[int] = []
        self._reach = 0  # how far the listed segments go
        self._fds: dict[str, int] = {}
        self._last = (0, 0, -1)  # the segment that was read from: its positions, and its file

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there."""
        start, end, fd = self._last
        if start <= position and position + length <= end:  # as for most of a batch
            data = os.pread(fd, length, position - start)
            if len(data) == length:
                return data
        inside = _covering(self._volatile, position)
        if inside is None:
            try:
                start, end = self._segment_of(position)
                return self._read_at(start, end, name_of(start), position, length)
            except (OSError, JournalDamaged):
                inside = _covering(self._daemons, position)
                if inside is None:
                    raise
        return self._read_at(inside.start, inside.end, inside.path, position, length)

    def _read_at(self, start: int, end: int, path: str, position: int, length: int) -> bytes:
        """From the segment that is from *start* to *end*; *path* is its name, or the kernel's link to it."""
        fd = self._fds.get(path)
        if fd is None:
            flags = os.O_RDONLY | os.O_CLOEXEC
            if path[0] == "/":
                fd = os.open(path, flags)
            else:
                fd = os.open(path, flags | os.O_NOFOLLOW, dir_fd=self._opened())
            self._fds[path] = fd
        data = os.pread(fd, length, position - start)
        if len(data) != length:
            raise JournalDamaged(f"{self.directory}: the segment at {start} ends before {position + length}")
        self._last = start, end, fd
        return data

    def _opened(self) -> int:
        if self._place < 0:
            self._place = private_directory(self.directory)
        return self._place

    def _segment_of(self, position: int) -> tuple[int, int]:
        index = bisect_right(self._starts, position) - 1
        if index < 0 or position >= self._reach:
            self._list()
            index = bisect_right(self._starts, position) - 1
        if index < 0:
            raise JournalDamaged(f"{self.directory}: position {position} is not in the journal")
        following = self._starts[index + 1 : index + 2] or [self._reach]
        return self._starts[index], following[0]

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
        self._last = (0, 0, -1)
        self._starts = []


def _covering(segments: Sequence[Volatile], position: int) -> Volatile | None:
    return next((one for one in segments if one.start <= position < one.end), None) if segments else None
