"""Reading what files hold: memory, else the journal, else git.

Used by the filesystem for read(2) and readlink(2). Blobs up to WHOLE bytes are read
whole and held in the memory tier; larger ones are inflated as far as they are read,
into an unlinked file beside the journal, so that size costs no memory.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import trio

from ..errors import FSError
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..tree import Content, Piece

WHOLE = 1024 * 1024
OPEN_READERS = 8

Ask = Callable[..., Awaitable[Any]]
"""Runs a function of the store in a thread, under the operation timeout."""


class BlobReader(Protocol):
    """A large blob that is being read."""

    size: int

    @property
    def spooled(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def close(self) -> None: ...


class BlobSource(Protocol):
    """What is asked of the store."""

    def blob(self, oid: bytes, limit: int | None = None) -> bytes: ...
    def open_blob(self, oid: bytes, spool_dir: str) -> BlobReader: ...
    def stream_blob(self, oid: bytes, spool_dir: str | None = None) -> Iterator[bytes]: ...


class Contents:
    """Reads pieces of files from wherever they are."""

    def __init__(
        self, store: BlobSource, journal: Journal, memory: MemoryTier, metrics: Metrics, spool: str, ask: Ask
    ) -> None:
        self._store = store
        self._journal = journal
        self._memory = memory
        self._metrics = metrics
        self._spool = spool
        self._ask = ask
        self._readers: OrderedDict[bytes, BlobReader] = OrderedDict()

    def keep(self, oid: bytes, data: bytes) -> None:
        """*data* is the whole blob *oid*: a small one is held for the next reader."""
        if len(data) <= WHOLE:
            self._memory.keep(oid, data)

    async def blob(self, oid: bytes) -> bytes:
        """The whole of a small blob."""
        data = self._memory.blob(oid)
        if data is None:
            data = bytes(await self._ask(self._store.blob, oid, WHOLE))
            self.keep(oid, data)
        return data

    async def verify(self, oid: bytes) -> None:
        """Read a blob of any size to its end, in a thread. Raises StoreError where it is damaged."""
        await trio.to_thread.run_sync(self._exhaust, oid, abandon_on_cancel=True)

    def _exhaust(self, oid: bytes) -> None:
        for _ in self._store.stream_blob(oid, self._spool):
            pass

    async def read(self, content: Content, offset: int, length: int) -> bytes:
        """The stretch as it was when this was called; shorter only at the end of the file."""
        started = time.perf_counter_ns()
        pieces = list(content.pieces(offset, length))
        if len(pieces) == 1 and pieces[0].extent is not None:
            data = self._extent(pieces[0])
            self._metrics.observe("memory", "get", time.perf_counter_ns() - started)
            return data
        base_size = content.base_size
        # Extents are read before the first await: a commit may drop their segments later.
        parts = [b"" if piece.extent is None else self._extent(piece) for piece in pieces]
        for index, piece in enumerate(pieces):
            if piece.base is not None:
                parts[index] = await self._base(piece.base, base_size, piece.offset, piece.length)
            elif piece.extent is None:
                parts[index] = bytes(piece.length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _extent(self, piece: Piece) -> bytes:
        extent = piece.extent
        assert extent is not None
        if extent.data is None:
            with self._metrics.timed("journal", "read"):
                data = self._journal.read(extent.position, extent.length)
            if extent.length <= WHOLE:
                extent.data = data
                self._memory.hold(extent)
        else:
            data = extent.data
            self._memory.use(extent)
        start = piece.offset - extent.offset
        if start == 0 and piece.length == extent.length:
            return data
        return data[start : start + piece.length]

    async def _base(self, oid: bytes, size: int, offset: int, length: int) -> bytes:
        if size <= WHOLE:
            data = await self.blob(oid)
            if len(data) != size:
                raise _lies(oid, size, len(data))
            return data[offset : offset + length]
        reader = self._readers.get(oid)
        if reader is None:
            reader = await self._ask(self._store.open_blob, oid, self._spool)
            if oid in self._readers:
                reader.close()  # another task opened it meanwhile
                reader = self._readers[oid]
            else:
                self._readers[oid] = reader
                if len(self._readers) > OPEN_READERS:
                    self._readers.popitem(last=False)  # closes itself when its last reader is done
        self._readers.move_to_end(oid)
        if reader.size != size:
            raise _lies(oid, size, reader.size)
        return bytes(await self._ask(reader.read, offset, length, progress=lambda: reader.spooled))

    def close(self) -> None:
        """Close the readers of large blobs."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def _lies(oid: bytes, recorded: int, size: int) -> FSError:
    return FSError(
        errno.EIO,
        f"blob {oid.hex()} is {size} bytes long, but its metadata says {recorded}; "
        "`caiafs check --repair` corrects it",
    )
