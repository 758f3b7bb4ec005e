"""What a regular file holds: extents over a base blob, zeros elsewhere. Pure.

An extent has an address in the journal, and its bytes in memory as long as the budget
lets it. `pieces` tells a reader where to look, `capture` and `settle` are the committer's
two ends: what git has becomes the base, what was written since stays on top.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Ledger(Protocol):
    """Who keeps count of the bytes held in memory."""

    def hold(self, block: Extent) -> None:
        """*block* has data in memory from now on."""

    def drop(self, block: Extent) -> None:
        """*block* is not needed any more."""

    def forget(self, oid: bytes) -> None:
        """A file that held the blob *oid* does so no more."""


class Extent:
    """Bytes of one file in the journal, and in memory too as long as `data` is not None."""

    __slots__ = ("data", "length", "offset", "position")

    def __init__(self, offset: int, length: int, position: int, data: bytes | None) -> None:
        self.offset = offset
        self.length = length
        self.position = position
        self.data = data

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def size(self) -> int:
        """Bytes that the extent holds in memory."""
        return 0 if self.data is None else len(self.data)

    def evict(self) -> None:
        """Forget the bytes; the address stays."""
        self.data = None

    def part(self, start: int, end: int) -> Extent:
        """The stretch from *start* to *end*, offsets in the file, as an extent of its own."""
        skip = start - self.offset
        data = None if self.data is None else self.data[skip : end - self.offset]
        return Extent(start, end - start, self.position + skip, data)


class Piece(NamedTuple):
    """Where a stretch of a file is to be read: an extent, the base blob, or neither (zeros)."""

    offset: int
    length: int
    extent: Extent | None
    base: bytes | None


class ContentState(NamedTuple):
    """A file's content at one moment, for the committer: extents are (offset, length, position)."""

    size: int
    base: bytes | None
    base_limit: int
    extents: tuple[tuple[int, int, int], ...]


class Content:
    """What a regular file holds: a git blob up to `base_limit`, extents over it, zeros elsewhere."""

    __slots__ = ("base", "base_limit", "base_size", "extents", "low_water", "size")

    def __init__(self, size: int = 0, base: bytes | None = None) -> None:
        self.size = max(size, 0)
        self.base = base
        self.base_size = size if base is not None else 0
        self.base_limit = max(self.base_size, 0)
        self.extents: list[Extent] = []
        self.low_water = size  # the smallest size since the last capture

    @property
    def oid(self) -> bytes | None:
        """The blob that holds exactly this content, if git has one."""
        if self.is_unreadable:
            return self.base
        if (
            self.extents
            or self.base is None
            or self.base_limit != self.base_size
            or self.size != self.base_size
        ):
            return None
        return self.base

    @property
    def is_unreadable(self) -> bool:
        """True if git cannot even tell how long the blob is."""
        return self.base_size < 0

    @property
    def needs_base(self) -> bool:
        """True if some of it is nowhere but in the base blob."""
        return any(piece.base is not None for piece in self.pieces(0, self.size))

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """The stretch from *offset*, cut at the file's end, in order and without gaps."""
        end = min(offset + length, self.size)
        index = bisect_right(self.extents, offset, key=_extent_end)
        while offset < end:
            extent = self.extents[index] if index < len(self.extents) else None
            if extent is not None and extent.offset <= offset:
                stop = min(extent.end, end)
                yield Piece(offset, stop - offset, extent, None)
                index += 1
            else:
                stop = end if extent is None else min(extent.offset, end)
                if offset < self.base_limit:
                    stop = min(stop, self.base_limit)
                    yield Piece(offset, stop - offset, None, self.base)
                else:
                    yield Piece(offset, stop - offset, None, None)
            offset = stop

    def write(self, extent: Extent, ledger: Ledger) -> None:
        """Lay *extent* over what is there."""
        extents = self.extents
        if not extents or extents[-1].end <= extent.offset:
            extents.append(extent)
        else:
            first = bisect_right(extents, extent.offset, key=_extent_end)
            last = first
            kept: list[Extent] = []
            while last < len(extents) and extents[last].offset < extent.end:
                old = extents[last]
                if old.offset < extent.offset:
                    kept.append(old.part(old.offset, extent.offset))
                if old.end > extent.end:
                    kept.append(old.part(extent.end, old.end))
                last += 1
            for old in extents[first:last]:
                ledger.drop(old)
            for piece in kept:
                ledger.hold(piece)
            kept.append(extent)
            kept.sort(key=_extent_offset)
            extents[first:last] = kept
        ledger.hold(extent)
        if extent.end > self.size:
            self.size = extent.end

    def replace(self, extent: Extent, ledger: Ledger) -> None:
        """Be *extent*, which begins at 0, and nothing else."""
        for old in self.extents:
            ledger.drop(old)
        if extent.length:
            self.extents = [extent]
            ledger.hold(extent)
        else:
            self.extents = []
        self.size = extent.length
        if self.base is not None:
            ledger.forget(self.base)
        self.base, self.base_size, self.base_limit = None, 0, 0
        self.low_water = 0

    def resize(self, size: int, ledger: Ledger) -> None:
        """Cut at *size*, or extend with zeros up to it."""
        if self.is_unreadable:
            self.base, self.base_size = None, 0
        if size < self.size:
            extents = self.extents
            index = bisect_right(extents, size, key=_extent_end)
            for old in extents[index:]:
                ledger.drop(old)
            cut = extents[index].part(extents[index].offset, size) if index < len(extents) else None
            del extents[index:]
            if cut is not None and cut.length > 0:
                extents.append(cut)
                ledger.hold(cut)
            self.base_limit = min(self.base_limit, size)
            self.low_water = min(self.low_water, size)
        self.size = size

    def capture(self) -> ContentState:
        """The content as it is now; what is cut off from now on is counted by `low_water`."""
        self.low_water = self.size
        return ContentState(
            self.size,
            self.base,
            self.base_limit,
            tuple((e.offset, e.length, e.position) for e in self.extents),
        )

    def settle(self, oid: bytes, size: int, position: int, ledger: Ledger) -> list[Extent]:
        """Git has in *oid*, *size* bytes long, all that was written before *position*.

        Returns the extents that are thereby redundant, their bytes still in them.
        """
        done = [extent for extent in self.extents if extent.position < position]
        self.extents = [extent for extent in self.extents if extent.position >= position]
        for extent in done:
            ledger.drop(extent)
        if self.base is not None and self.base != oid:
            ledger.forget(self.base)
        self.base = oid
        self.base_size = size
        self.base_limit = min(self.low_water, size)
        return done

    def copy(self) -> Content:
        """The same content, of the same extents; only `settle` and `restore` know what to do with it."""
        twin = Content()
        twin.size, twin.low_water = self.size, self.low_water
        twin.base, twin.base_size, twin.base_limit = self.base, self.base_size, self.base_limit
        twin.extents = list(self.extents)
        return twin

    def restore(self, before: Content, ledger: Ledger) -> None:
        """Be what `copy` gave, and what was settled in it since."""
        kept = set(before.extents)
        for extent in self.extents:
            if extent not in kept:
                ledger.drop(extent)
        present = set(self.extents)
        for extent in before.extents:
            if extent not in present:
                ledger.hold(extent)
        self.extents = list(before.extents)
        self.size = before.size
        self.low_water = before.low_water
        self.base, self.base_size, self.base_limit = before.base, before.base_size, before.base_limit

    def discard(self, ledger: Ledger) -> None:
        """Nobody will read this again."""
        for extent in self.extents:
            ledger.drop(extent)
        self.extents = []
        if self.base is not None:
            ledger.forget(self.base)


def _extent_end(extent: Extent) -> int:
    return extent.offset + extent.length


def _extent_offset(extent: Extent) -> int:
    return extent.offset
