"""Reading extents from a journal that another process appends to: the commit worker's view."""

from __future__ import annotations

import os
from bisect import bisect_right

from ..errors import JournalDamaged
from .segment import start_in_name


class Reader:
    """Reads extents from a journal that another process appends to."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._starts: list[int] = []
        self._fds: dict[int, int] = {}

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there."""
        start = self._start_of(position)
        fd = self._fds.get(start)
        if fd is None:
            path = os.path.join(self.directory, f"{start:016x}.seg")
            fd = self._fds[start] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        data = os.pread(fd, length, position - start)
        if len(data) != length:
            raise JournalDamaged(f"{self.directory}: the segment at {start} ends before {position + length}")
        return data

    def _start_of(self, position: int) -> int:
        index = bisect_right(self._starts, position) - 1
        if index < 0 or index == len(self._starts) - 1:
            starts = map(start_in_name, os.listdir(self.directory))
            self._starts = sorted(start for start in starts if start is not None)
            index = bisect_right(self._starts, position) - 1
        if index < 0:
            raise JournalDamaged(f"{self.directory}: position {position} is not in the journal")
        return self._starts[index]

    def close(self) -> None:
        """Close all files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}
        self._starts = []
