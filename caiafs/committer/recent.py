"""Trees and side records that the worker read or wrote a moment ago, as bytes.

The next batch mostly changes what the last one did: the root and its side tree in any case. To find, inflate
and verify them again was a quarter of a small commit. Nothing rests on them: what is not here is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

ROOM = 8 * 1024 * 1024
"""Bytes that are kept: the trees of a directory with 100,000 files."""

OVERHEAD = 300
"""Bytes that an object costs beside its data: its id, its place here (measured)."""


class Recent:
    """The least recently used ones go first."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._size = 0
        self._known: OrderedDict[tuple[int, bytes], bytes] = OrderedDict()
        self._parts: dict[tuple[int, bytes], Sequence[bytes]] = {}

    def get(self, kind: int, oid: bytes, read: Callable[[bytes], bytes]) -> bytes:
        """The object's bytes, by `read(oid)` if they are not known; whatever that raises is passed on."""
        data = self._known.get((kind, oid))
        if data is None:
            data = read(oid)
            self.note(kind, oid, data)
        else:
            self._known.move_to_end((kind, oid))
        return data

    def parts(self, kind: int, oid: bytes | None) -> tuple[bytes, Sequence[bytes]]:
        """What the object holds, and the parts that it was deflated in; empty where that is not known."""
        if oid is None or (kind, oid) not in self._parts:
            return b"", ()
        return self._known[kind, oid], self._parts[kind, oid]

    def note(self, kind: int, oid: bytes, data: bytes, parts: Sequence[bytes] = ()) -> None:
        """This is what the object holds; *parts* if it was deflated in parts."""
        if len(data) > self._room // 2 or (kind, oid) in self._known:
            return
        self._known[kind, oid] = data
        if parts and len(data) + sum(map(len, parts)) <= self._room // 2:
            self._parts[kind, oid] = parts
        self._size += self._cost(kind, oid)
        while self._size > self._room:
            kind, oid = next(iter(self._known))
            self._size -= self._cost(kind, oid)
            del self._known[kind, oid]
            self._parts.pop((kind, oid), None)

    def _cost(self, kind: int, oid: bytes) -> int:
        return len(self._known[kind, oid]) + OVERHEAD + sum(map(len, self._parts.get((kind, oid), ())))
