"""The memory tier: which bytes are held, and which go first when the budget is full.

The filesystem tells it what is held and used. Extents live in the tree; whole blobs, for who reads what
git has already, live here, until a file that held one holds something else. The event loop's task alone
touches it. After every call, what is held is within the budget.

Least recently used goes first. Weighed and not chosen: ARC and 2Q. The kernel's page
cache sits in front of this one, so what arrives here has little reuse left to tell apart.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Block(Protocol):
    """Something that holds bytes and can let go of them because they are found elsewhere too."""

    @property
    def size(self) -> int:
        """Bytes held at this moment."""

    def evict(self) -> None:
        """Let go of the bytes."""


OVERHEAD = 200
"""Bytes that a block costs beside its data: the object, its list slot, its place here (measured)."""


class Blob:
    """A whole blob in memory."""

    __slots__ = ("_blobs", "data", "oid")

    def __init__(self, oid: bytes, data: bytes, blobs: dict[bytes, Blob]) -> None:
        self.oid = oid
        self.data = data
        self._blobs = blobs

    @property
    def size(self) -> int:
        return len(self.data)

    def evict(self) -> None:
        """Go; git has the bytes."""
        self._blobs.pop(self.oid, None)


class MemoryTier:
    """Keeps the sum of all held blocks, and of `reserved` bytes, within *limit* bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.evictions = 0
        self._reserved = 0
        self._blocks: OrderedDict[Block, int] = OrderedDict()
        self._blobs: dict[bytes, Blob] = {}

    def hold(self, block: Block) -> None:
        """*block* holds bytes from now on; the longest unused ones may go for it."""
        size = block.size
        if not size:
            return
        self._blocks[block] = size + OVERHEAD
        self.held += size + OVERHEAD
        if self.held + self._reserved > self.limit:
            self._make_room()

    def use(self, block: Block) -> None:
        """*block* was read: it goes last."""
        if block in self._blocks:
            self._blocks.move_to_end(block)

    def drop(self, block: Block) -> None:
        """*block* is not needed any more."""
        self.held -= self._blocks.pop(block, 0)

    def keep(self, oid: bytes, data: bytes) -> None:
        """*data* is the whole blob *oid*: hold it for the next reader."""
        if oid not in self._blobs:
            blob = self._blobs[oid] = Blob(oid, data, self._blobs)
            self.hold(blob)

    def blob(self, oid: bytes) -> bytes | None:
        """The whole blob, if it is held."""
        blob = self._blobs.get(oid)
        if blob is None:
            return None
        self.use(blob)
        return blob.data

    def forget(self, oid: bytes) -> None:
        """A file that held the blob *oid* holds something else, or is gone. Another one of the same
        content reads it from git again: copies are rare, versions are not."""
        blob = self._blobs.pop(oid, None)
        if blob is not None:
            self.drop(blob)

    def reserve(self, size: int) -> None:
        """*size* bytes in all are taken by what cannot be evicted from here (inodes)."""
        self._reserved = size
        if self.held + size > self.limit:
            self._make_room()

    def resize(self, limit: int) -> None:
        """The budget is *limit* bytes from now on."""
        self.limit = limit
        if self.held + self._reserved > limit:
            self._make_room()

    @property
    def over(self) -> int:
        """Bytes above the budget that no eviction can give back."""
        return max(0, self.held + self._reserved - self.limit)

    def statistics(self) -> dict[str, int]:
        """Figures in bytes, and how many blocks were evicted so far."""
        return {
            "limit_bytes": self.limit,
            "held_bytes": self.held,
            "inode_bytes": self._reserved,
            "blocks": len(self._blocks),
            "evictions": self.evictions,
        }

    def _make_room(self) -> None:
        while self._blocks and self.held + self._reserved > self.limit:
            block, size = self._blocks.popitem(last=False)
            self.held -= size
            self.evictions += 1
            block.evict()
