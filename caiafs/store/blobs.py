"""Blobs of any size with little memory: inflated step by step into a file without a name.

Used by Store for what is too large to hold. A reader inflates only as far as somebody read,
256 KiB at a time, so the first bytes of a huge blob come at once and a `head -c 10` of it
costs nothing. A blob stored as a delta needs its base at hand: bases are written to such
files one after the other, two at most at a time, and the last delta is applied as one reads.

When the last byte was made, the SHA-1 is compared; damage found there is reported to the
reader that got so far, and to all later ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator

from isal import isal_zlib

from caiafs.errors import ObjectCorrupt, StoreError
from caiafs.store.disk import File, failed
from caiafs.store.objects import BLOB, Oid
from caiafs.store.odb import (
    OFS_DELTA,
    REF_DELTA,
    STEP,
    Chain,
    Header,
    InflateError,
    ObjectDatabase,
    Packed,
    Place,
    delta_size,
    entry_header,
    loose_header,
)

_INPUT = 64 * 1024  # deflated bytes read at a time


_LOOK_EVERY = 16 * 1024 * 1024  # bytes between looks at what the disk has left
_RESERVE = 16  # a spool leaves one part in so many of its disk free: the journal may live there


class Spool:
    """A file without a name, gone with its last reader.

    It never fills its disk: a small blob that inflates to terabytes fails for its reader alone.
    """

    def __init__(self, directory: str) -> None:
        self.fd = -1
        self.size = 0
        try:
            self.fd = _nameless_file(directory)
        except OSError as error:
            raise failed(f"cannot write a temporary file in {directory}", error) from error

    def append(self, data: bytes) -> None:
        done = 0
        if self.size // _LOOK_EVERY != (self.size + len(data)) // _LOOK_EVERY:
            self._leave_room(len(data))
        while done < len(data):
            try:
                written = os.pwrite(self.fd, data[done:] if done else data, self.size)
            except OSError as error:
                raise failed("cannot keep a blob in a temporary file", error) from error
            self.size += written
            done += written

    def _leave_room(self, size: int) -> None:
        disk = os.fstatvfs(self.fd)
        if disk.f_bavail * disk.f_frsize - size < disk.f_blocks * disk.f_frsize // _RESERVE:
            failure = StoreError("a blob is too large for the disk that the mount's state is on")
            failure.errno = errno.ENOSPC
            raise failure

    def read_at(self, length: int, offset: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _nameless_file(directory: str) -> int:
    with contextlib.suppress(OSError):
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="caiafs-spool-", dir=directory)
    os.unlink(path)
    return fd


def _inflated(oid: Oid, file: File, position: int, size: int, skip: int = 0) -> Iterator[bytes]:
    """The *size* bytes deflated at *position*, after *skip* leading ones, in pieces of at most STEP."""
    inflater = isal_zlib.decompressobj()
    left = size + skip
    pending = b""
    try:
        while True:
            if not pending:
                pending = file.read_at(_INPUT, position)
                position += len(pending)
                at_end = not pending
            else:
                at_end = False
            piece = inflater.decompress(pending, min(STEP, left + 1))
            pending = inflater.unconsumed_tail
            left -= len(piece)
            if left < 0:
                raise ObjectCorrupt(f"object {oid.hex()} is longer than its header says")
            if skip:
                dropped = min(skip, len(piece))
                skip -= dropped
                piece = piece[dropped:]
            if piece:
                yield piece
            if inflater.eof:
                break
            if at_end and not piece:
                break
    except InflateError as error:
        raise ObjectCorrupt(f"object {oid.hex()} is damaged: {error}") from error
    if left or not inflater.eof:
        raise ObjectCorrupt(f"object {oid.hex()} is cut off")


class _Feed:
    """A delta's bytes, taken a few at a time from its pieces."""

    def __init__(self, oid: Oid, pieces: Iterator[bytes]) -> None:
        self._oid = oid
        self._pieces = pieces
        self._data = b""
        self._at = 0

    def byte(self) -> int:
        if self._at >= len(self._data) and not self._more():
            raise ObjectCorrupt(f"object {self._oid.hex()} has a delta that is cut off")
        value = self._data[self._at]
        self._at += 1
        return value

    def take(self, length: int) -> bytes:
        while len(self._data) - self._at < length:
            if not self._more():
                raise ObjectCorrupt(f"object {self._oid.hex()} has a delta that is cut off")
        data = self._data[self._at : self._at + length]
        self._at += length
        return data

    def at_end(self) -> bool:
        return self._at >= len(self._data) and not self._more()

    def size(self) -> int:
        data = b""
        while not data or data[-1] & 0x80:
            data += bytes((self.byte(),))
        return delta_size(self._oid, data, 0)[0]

    def _more(self) -> bool:
        for piece in self._pieces:
            self._data = self._data[self._at :] + piece
            self._at = 0
            return True
        return False


def _patched(oid: Oid, base: Spool, pieces: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """(size, content) of *base* with the delta in *pieces* applied."""
    feed = _Feed(oid, pieces)
    if feed.size() != base.size:
        raise ObjectCorrupt(f"object {oid.hex()} has a delta for another base")
    size = feed.size()
    return size, _patch_steps(oid, base, feed, size)


def _patch_steps(oid: Oid, base: Spool, feed: _Feed, size: int) -> Iterator[bytes]:
    out = bytearray()
    made = 0
    while not feed.at_end():
        opcode = feed.byte()
        if opcode & 0x80:
            offset = length = 0
            for bit in range(4):
                if opcode & (1 << bit):
                    offset |= feed.byte() << (8 * bit)
            for bit in range(3):
                if opcode & (0x10 << bit):
                    length |= feed.byte() << (8 * bit)
            length = length or 0x10000
            if offset + length > base.size:
                raise ObjectCorrupt(f"object {oid.hex()} has a delta that reads past its base")
            while length:
                piece = base.read_at(min(length, STEP), offset)
                if not piece:
                    raise ObjectCorrupt(f"object {oid.hex()} lost its delta base while it was read")
                out += piece
                offset += len(piece)
                length -= len(piece)
                made += len(piece)
                if len(out) >= STEP:
                    yield bytes(out)
                    out.clear()
        elif opcode:
            out += feed.take(opcode)
            made += opcode
        else:
            raise ObjectCorrupt(f"object {oid.hex()} has a damaged delta")
        if made > size:
            raise ObjectCorrupt(f"object {oid.hex()} is longer than its delta says")
        if len(out) >= STEP:
            yield bytes(out)
            out.clear()
    if out:
        yield bytes(out)
    if made != size:
        raise ObjectCorrupt(f"object {oid.hex()} is shorter than its delta says")


def _entry(oid: Oid, place: Packed) -> tuple[Header, Iterator[bytes]]:
    header = entry_header(oid, place.file.read_at(64, place.offset), place.offset)
    return header, _inflated(oid, place.file, header.at, header.size)


def open_pieces(odb: ObjectDatabase, oid: Oid, spool: Callable[[], Spool]) -> tuple[int, Iterator[bytes]]:
    """(size, content in pieces of at most about STEP) of blob *oid*. Hash unchecked.

    Every file needed is open when this returns: later repacks do not matter.
    """

    def at(_: Oid, place: Place) -> tuple[int, Iterator[bytes]]:
        return _pieces_at(odb, oid, place, spool)

    return odb.retry(oid, at)


def _pieces_at(
    odb: ObjectDatabase, oid: Oid, place: Place, spool: Callable[[], Spool]
) -> tuple[int, Iterator[bytes]]:
    deltas: list[Iterator[bytes]] = []
    chain = Chain(oid)
    while isinstance(place, Packed):
        chain.add(place)
        header, pieces = _entry(oid, place)
        if header.kind == OFS_DELTA:
            place = Packed(place.pack, place.file, header.base_offset)
        elif header.kind == REF_DELTA:
            place = odb.locate_base(place, header.base_oid)
        else:
            kind, size = header.kind, header.size
            break
        deltas.append(pieces)
    else:
        kind, size, start = loose_header(oid, place.file.read_at(512, 0))
        pieces = _inflated(oid, place.file, 0, size, skip=start)
    if kind != BLOB:
        raise ObjectCorrupt(f"object {oid.hex()} is used as a file, but is none")
    while deltas:
        base = spool()
        for piece in pieces:
            base.append(piece)
        size, pieces = _patched(oid, base, deltas.pop())
    return size, pieces


def verified(oid: Oid, size: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """*pieces*, and after the last one ObjectCorrupt if together they are not blob *oid*."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    total = 0
    for piece in pieces:
        digest.update(piece)
        total += len(piece)
        if total == size and digest.digest() != oid:
            break
        yield piece
    if total != size or digest.digest() != oid:
        raise ObjectCorrupt(f"object {oid.hex()} does not match its name: its content was damaged")


class BlobReader:
    """Random access to one blob. Safe to use from several threads; `close()` frees the disk space."""

    def __init__(self, oid: Oid, size: int, pieces: Iterator[bytes], spool: Spool) -> None:
        self.oid = oid
        self.size = size
        self._pieces: Iterator[bytes] | None = verified(oid, size, pieces)
        self._spool: Spool | None = spool
        self._lock = threading.Lock()
        self._failure: StoreError | None = None
        self._held = b""

    @property
    def spooled(self) -> int:
        """Bytes on disk so far."""
        spool = self._spool
        return spool.size if spool is not None else 0

    def read(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset*; empty at the end.

        ObjectCorrupt when damage was found on the way; StoreError with the errno of the disk when the
        spool cannot grow (reading again goes on from there).
        """
        spool = self._spool
        if spool is None:
            raise StoreError("the blob reader is closed")
        end = min(offset + length, self.size)
        if offset >= end:
            if self._failure is not None:
                raise self._failure
            return b""
        if spool.size < end or self._failure is not None:
            self._advance(spool, end)
        return spool.read_at(end - offset, offset)

    def verify(self, alive: Callable[[], None] = lambda: None) -> None:
        """Go to the end, where damage shows, without keeping what nobody has read: nothing can be read
        afterwards that was not before. ObjectCorrupt when there is some; *alive* is told of progress.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                for _ in self._pieces or ():
                    alive()
            except ObjectCorrupt as error:
                self._fail(error)
            except OSError as error:
                self._fail(failed(f"cannot read object {self.oid.hex()}", error))
            self._pieces = None

    def _advance(self, spool: Spool, end: int) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            pieces = self._pieces
            if pieces is None:
                if spool.size < end:
                    raise StoreError("the blob reader is closed")
                return
            try:
                while spool.size < end:
                    self._keep(spool, self._held or next(pieces))
                if spool.size >= self.size:
                    for _ in pieces:  # runs the final check
                        pass
                    self._pieces = None
            except StopIteration:
                self._fail(ObjectCorrupt(f"object {self.oid.hex()} is cut off"))
            except ObjectCorrupt as error:
                self._fail(error)
            except OSError as error:
                self._fail(failed(f"cannot read object {self.oid.hex()}", error))

    def _keep(self, spool: Spool, piece: bytes) -> None:
        """Append; what a full disk did not take is kept for the next try."""
        start = spool.size
        try:
            spool.append(piece)
            self._held = b""
        except StoreError:
            self._held = piece[spool.size - start :]
            raise

    def _fail(self, error: StoreError) -> None:
        self._failure = error
        self._pieces = None
        raise error

    def close(self) -> None:
        """Free the disk space; a read that is under way in another thread still finishes."""
        with self._lock:
            self._spool = None
            self._pieces = None
