"""Indexes: from an object's name to its pack and offset.

Version 1 and 2 of .idx, and multi-pack-index. dulwich reads these, too, at two descriptors per
file and a call back into Python per step; here an index costs no descriptor when it is small,
and a lookup two microseconds. Immutable, so any thread may use them.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from itertools import pairwise

from caiafs.errors import StoreError
from caiafs.store.disk import File
from caiafs.store.objects import Oid

_MAP_INDEX = 256 * 1024  # indexes up to this size are read, larger ones mapped (a descriptor each)


def _load(path: str) -> tuple[bytes | mmap.mmap, bool]:
    """The file's bytes; mapped when large."""
    file = File(path)
    if file.size <= _MAP_INDEX:
        return file.read_at(file.size, 0), False
    return mmap.mmap(file.fd, file.size, prot=mmap.PROT_READ), True


class _SortedTable:
    """Fan-out plus sorted ids, as in every index of git."""

    __slots__ = ("data", "fan", "ids", "stride")

    def __init__(self, data: bytes | mmap.mmap, fan: int, ids: int, stride: int) -> None:
        self.data, self.ids, self.stride = data, ids, stride
        self.fan: tuple[int, ...] = (0, *struct.unpack_from(">256I", data, fan))
        if any(a > b for a, b in pairwise(self.fan)):
            raise ValueError("fan-out is not ascending")
        if ids + self.fan[256] * stride > len(data):
            raise ValueError("index is too short")

    def find(self, oid: Oid) -> int:
        """Position of *oid*, or -1."""
        low, high = self.fan[oid[0]], self.fan[oid[0] + 1]
        data, stride, base = self.data, self.stride, self.ids
        while low < high:
            middle = (low + high) >> 1
            at = base + middle * stride
            here = data[at : at + 20]
            if here < oid:
                low = middle + 1
            elif here > oid:
                high = middle
            else:
                return middle
        return -1


class PackIndex:
    """A .idx file, version 1 or 2."""

    def __init__(self, path: str) -> None:
        self.path = path
        data, self.mapped = _load(path)
        try:
            if data[:4] == b"\377tOc":
                if struct.unpack_from(">I", data, 4)[0] != 2:
                    raise ValueError("unknown version")
                self._table = _SortedTable(data, 8, 8 + 1024, 20)
                count = self.count = self._table.fan[256]
                self._crcs = 8 + 1024 + 20 * count
                self._offsets = self._crcs + 4 * count
                self._long_offsets = self._offsets + 4 * count
                if self._long_offsets + 40 > len(data):
                    raise ValueError("index is too short")
            else:
                self._table = _SortedTable(data, 0, 1024 + 4, 24)
                self.count = self._table.fan[256]
                self._crcs = self._offsets = -1
        except (ValueError, OverflowError, struct.error) as error:
            raise StoreError(f"pack index {path} is damaged ({error}); git index-pack renews it") from error
        self._data = data

    def find(self, oid: Oid) -> int:
        """The object's offset in the pack, or -1."""
        position = self._table.find(oid)
        return -1 if position < 0 else self.offset_at(position)

    def offset_at(self, position: int) -> int:
        data = self._data
        if self._offsets < 0:
            return int.from_bytes(data[1024 + position * 24 : 1028 + position * 24], "big")
        at = self._offsets + position * 4
        offset = int.from_bytes(data[at : at + 4], "big")
        if offset & 0x80000000:
            at = self._long_offsets + (offset & 0x7FFFFFFF) * 8
            offset = int.from_bytes(data[at : at + 8], "big")
        return offset

    def entries(self) -> Iterator[tuple[Oid, int, int | None]]:
        """(oid, offset, crc32 or None), by oid."""
        table = self._table
        for position in range(self.count):
            at = table.ids + position * table.stride
            crc: int | None = None
            if self._crcs >= 0:
                (crc,) = struct.unpack_from(">I", self._data, self._crcs + position * 4)
            yield bytes(self._data[at : at + 20]), self.offset_at(position), crc


class MultiPackIndex:
    """A multi-pack-index: one lookup instead of one per pack."""

    def __init__(self, path: str) -> None:
        data, self.mapped = _load(path)
        try:
            magic, version, hash_kind, chunks, bases, packs = struct.unpack_from(">4sBBBBI", data, 0)
            if magic != b"MIDX" or version not in (1, 2) or hash_kind != 1 or bases:
                raise ValueError("unknown version")
            where: dict[bytes, tuple[int, int]] = {}
            for n in range(chunks):
                name, start = struct.unpack_from(">4sQ", data, 12 + 12 * n)
                (end,) = struct.unpack_from(">Q", data, 12 + 12 * (n + 1) + 4)
                where[name] = (start, end)
            start, end = where[b"PNAM"]
            names = bytes(data[start:end]).split(b"\0")[:packs]
            self.packs = tuple(os.fsdecode(name).removesuffix(".idx") for name in names)
            self._table = _SortedTable(data, where[b"OIDF"][0], where[b"OIDL"][0], 20)
            self._offsets = where[b"OOFF"][0]
            self._long = where.get(b"LOFF", (0, 0))[0]
            if self._offsets + 8 * self._table.fan[256] > len(data) or len(self.packs) != packs:
                raise ValueError("index is too short")
        except (ValueError, OverflowError, KeyError, struct.error) as error:
            raise StoreError(f"multi-pack-index {path} is damaged ({error})") from error
        self._data = data

    def find(self, oid: Oid) -> tuple[str, int] | None:
        """(pack name, offset)."""
        position = self._table.find(oid)
        if position < 0:
            return None
        at = self._offsets + position * 8
        pack, offset = struct.unpack(">II", self._data[at : at + 8])
        if offset & 0x80000000 and self._long:
            at = self._long + (offset & 0x7FFFFFFF) * 8
            offset = int.from_bytes(self._data[at : at + 8], "big")
        if pack >= len(self.packs):
            return None
        return self.packs[pack], offset
