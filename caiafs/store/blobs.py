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
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn

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
_WINDOW = 8 * 1024 * 1024  # bytes of a blob kept in memory where its disk is full: requests come in any order
IN_MEMORY = 32 * 1024 * 1024
"""Bytes of a delta's base that may be in memory where the disk is full."""
_RESERVE = 16  # a spool leaves one part in so many of its disk free: the journal may live there


class Spool:
    """A file without a name, gone with its last reader; made when the first bytes come.

    It never fills its disk: a small blob that inflates to terabytes fails for its reader alone. With
    *in_memory*, so many bytes at most are kept in memory where the disk takes none.
    """

    def __init__(self, directory: str, in_memory: int = 0) -> None:
        self.fd = -1
        self.size = 0
        self._directory = directory
        self._in_memory = in_memory
        self._is_on_disk = True

    def append(self, data: bytes) -> None:
        if self._is_on_disk:
            try:
                self._append(data)
            except StoreError:
                if self.size + len(data) > self._in_memory:
                    raise
                self._move_into_memory()
            else:
                return
        if self.size + len(data) > self._in_memory:
            raise _no_room()
        self._append(data)

    def _append(self, data: bytes) -> None:
        done = 0
        if self.fd < 0:
            try:
                self.fd = _nameless_file(self._directory)
            except OSError as error:
                raise failed(f"cannot write a temporary file in {self._directory}", error) from error
        if self._is_on_disk and self.size // _LOOK_EVERY != (self.size + len(data)) // _LOOK_EVERY:
            self._leave_room(len(data))
        while done < len(data):
            try:
                written = os.pwrite(self.fd, data[done:] if done else data, self.size)
            except OSError as error:
                raise failed("cannot keep a blob in a temporary file", error) from error
            self.size += written
            done += written

    def _move_into_memory(self) -> None:
        fd = os.memfd_create("caiafs-spool", os.MFD_CLOEXEC)
        kept = os.pread(self.fd, self.size, 0) if self.size else b""
        self.fd, old = fd, self.fd
        if old >= 0:
            os.close(old)
        self.size, self._is_on_disk = 0, False
        self._append(kept)

    def _leave_room(self, size: int) -> None:
        disk = os.fstatvfs(self.fd)
        if disk.f_bavail * disk.f_frsize - size < disk.f_blocks * disk.f_frsize // _RESERVE:
            raise _no_room()

    def read_at(self, length: int, offset: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _no_room() -> StoreError:
    failure = StoreError("a blob is too large for the disk that the mount's state is on")
    failure.errno = errno.ENOSPC
    return failure


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


class Window:
    """The latest bytes of a blob, where the disk has no room for those before: what is read on is there, and
    what was read long ago is inflated again, from the beginning."""

    def __init__(self) -> None:
        self.begin = self.end = 0
        self._pieces: deque[bytes] = deque()

    def append(self, piece: bytes, keep: int) -> None:
        """The next bytes. Those from *keep* on stay, and so much before the end as readers lag behind."""
        self._pieces.append(piece)
        self.end += len(piece)
        self.forget_before(keep)

    def forget_before(self, keep: int) -> None:
        """Let go of what is before *keep*, but for the latest bytes."""
        while self._pieces and self.begin + len(self._pieces[0]) <= min(keep, self.end - _WINDOW):
            self.begin += len(self._pieces.popleft())

    def read_at(self, length: int, offset: int) -> bytes:
        found = []
        at = self.begin
        for piece in self._pieces:
            if at + len(piece) > offset and at < offset + length:
                found.append(piece[max(offset - at, 0) : offset + length - at])
            at += len(piece)
        return b"".join(found)


class BlobReader:
    """Random access to one blob. Safe to use from several threads; `close()` frees the disk space.

    *pieces* begins to inflate it, and is asked again where the spool has no room: see Window.
    """

    def __init__(self, oid: Oid, size: int, pieces: Callable[[], Iterator[bytes]], spool: Spool) -> None:
        self.oid = oid
        self.size = size
        self._begin: Callable[[], Iterator[bytes]] = lambda: verified(oid, size, pieces())
        self._pieces: Iterator[bytes] | None = self._begin()
        self._spool: Spool | None = spool
        self._window: Window | None = None
        self._lock = threading.Lock()
        self._failure: StoreError | None = None

    @property
    def spooled(self) -> int:
        """Bytes on disk so far."""
        spool = self._spool
        return spool.size if spool is not None else 0

    def read(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset*; empty at the end. ObjectCorrupt when damage was found on the
        way."""
        spool = self._spool
        if spool is None:
            raise StoreError("the blob reader is closed")
        end = min(offset + length, self.size)
        if offset >= end:
            if self._failure is not None:
                raise self._failure
            return b""
        if spool.size >= end and self._failure is None:
            return spool.read_at(end - offset, offset)
        with self._lock, self._noting_damage():
            if self._window is None:
                self._advance(spool, end)
            if end <= spool.size:
                return spool.read_at(end - offset, offset)
            start = max(offset, spool.size)
            tail = self._slide(start, end)
            return spool.read_at(start - offset, offset) + tail if offset < start else tail

    @contextlib.contextmanager
    def _noting_damage(self) -> Iterator[None]:
        """What is found once is told to everybody from then on."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except ObjectCorrupt as error:
            self._fail(error)
        except OSError as error:
            self._fail(failed(f"cannot read object {self.oid.hex()}", error))

    def _advance(self, spool: Spool, end: int) -> None:
        """Spool up to *end*; or have a window, from where the disk takes no more."""
        pieces = self._pieces
        if pieces is None:
            if spool.size < end:
                raise StoreError("the blob reader is closed")
            return
        while spool.size < end:
            piece = _next(self.oid, pieces)
            start = spool.size
            try:
                spool.append(piece)
            except StoreError:
                self._window = Window()
                self._window.begin = self._window.end = spool.size
                self._window.append(piece[spool.size - start :], spool.size)
                return
        if spool.size >= self.size:
            self._end(pieces)

    def _slide(self, start: int, end: int) -> bytes:
        """Bytes that the disk has not, by way of the window."""
        window = self._window
        assert window is not None
        if start < window.begin or (self._pieces is None and window.end < end):
            window = self._window = Window()
            self._pieces = self._begin()
        pieces = self._pieces
        while window.end < end:
            assert pieces is not None
            window.append(_next(self.oid, pieces), start)
        if pieces is not None and window.end >= self.size:
            self._end(pieces)
        found = window.read_at(end - start, start)
        window.forget_before(end)
        return found

    def _end(self, pieces: Iterator[bytes]) -> None:
        for _ in pieces:  # runs the final check
            pass
        self._pieces = None

    def verify(self, alive: Callable[[], None] = lambda: None) -> None:
        """Go to the end, where damage shows, without keeping what nobody has read: nothing can be read
        afterwards that was not before. ObjectCorrupt when there is some; *alive* is told of progress.
        """
        with self._lock, self._noting_damage():
            for _ in self._pieces or ():
                alive()
            self._pieces = None

    def _fail(self, error: StoreError) -> NoReturn:
        self._failure = error
        self._pieces = None
        raise error

    def close(self) -> None:
        """Free the disk space; a read that is under way in another thread still finishes."""
        with self._lock:
            self._spool = None
            self._pieces = None
            self._window = None


def _next(oid: Oid, pieces: Iterator[bytes]) -> bytes:
    piece = next(pieces, None)
    if piece is None:
        raise ObjectCorrupt(f"object {oid.hex()} is cut off")
    return piece
