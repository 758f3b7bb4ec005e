"""The journal: changes git does not have yet, in order, and the bytes that memory let go of.

Appended and synced by filesystem.py, read by the commit worker and check.py too.
One task appends; sync() may run in a thread beside it. A record is acknowledged
once append() returned: it is then with the kernel and survives the process. After
sync() returned, everything appended before it was called survives power loss.
A torn last record is the normal end of a journal after a crash; bytes that do not
read back although they were synced are damage, and raise.

Positions count bytes since the journal began, over all segments. A segment file
`<position of its first byte>.seg` begins with a header:

    8 bytes "CAIAFSJ1" | 16 bytes journal id | u64 position | u32 CRC-32 of these

The disk is an argument, so that crash tests can bring one that forgets, tears and
fails. Weighed and not chosen: one ring file (a segment can be unlinked while an
unlinked file still needs it; a ring cannot), SQLite (ten times the cost a record).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from struct import Struct
from typing import Protocol
from zlib import crc32

from .errors import JournalDamaged, JournalError
from .records import FRAME_SIZE, KINDS, WRITE_DATA, BadRecord, Record, Synced, Write, decode, encode

MAGIC = b"CAIAFSJ1"
_HEADER = Struct("<8s16sQ")
_CHECK = Struct("<I")
HEADER_SIZE = _HEADER.size + _CHECK.size
SEGMENT_SIZE = 64 * 1024 * 1024
_NAME = re.compile(r"^([0-9a-f]{16})\.seg$")


class Disk(Protocol):
    """What the journal asks of a disk; errors are OSErrors, as the calls of `os` raise them."""

    def open(self, path: str, *, create: bool) -> int: ...
    def writev(self, fd: int, buffers: Sequence[bytes]) -> int: ...
    def pread(self, fd: int, length: int, offset: int) -> bytes: ...
    def size(self, fd: int) -> int: ...
    def truncate(self, fd: int, length: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def list(self, directory: str) -> list[str]: ...
    def sync_directory(self, directory: str) -> None: ...


class RealDisk:
    """The disk of the machine. Files are 0600 and symlinks are not followed."""

    def open(self, path: str, *, create: bool) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return fd

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        return os.writev(fd, buffers)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def list(self, directory: str) -> list[str]:
        return os.listdir(directory)

    def sync_directory(self, directory: str) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Segment:
    """One file of the journal: *start* is the position of its first byte."""

    __slots__ = ("end", "fd", "path", "start", "synced")

    def __init__(self, path: str, fd: int, start: int, end: int) -> None:
        self.path = path
        self.fd = fd
        self.start = start
        self.end = end
        self.synced = start


class Journal:
    """The segments of one directory, the newest of which is appended to."""

    def __init__(self, directory: str, disk: Disk | None = None, segment_size: int = SEGMENT_SIZE) -> None:
        """Open what is there, or begin anew. Raises JournalDamaged for what cannot be a journal,
        JournalError if the directory cannot be read or written."""
        self.directory = directory
        self.id = b""
        self._disk: Disk = disk if disk is not None else RealDisk()
        self._segment_size = segment_size
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        self._kept: list[Segment] = []
        self._directory_synced = True
        self._open: Segment | None = None
        self._sync_lock = threading.Lock()
        self._syncing = False
        self._retired: list[int] = []
        self._end = 0
        self.durable = 0
        self._noted = 0  # the last durable position that a Synced record speaks of
        self.set_aside: list[str] = []
        self.failure: OSError | None = None
        self.appended = 0
        try:
            self._find_segments()
        except OSError as error:
            raise JournalError(f"{directory}: {error.strerror}", error.errno or errno.EIO) from error

    # ---- opening and recovery

    def _find_segments(self) -> None:
        found = sorted(match[1] for match in map(_NAME.match, self._disk.list(self.directory)) if match)
        for name in found:
            path = os.path.join(self.directory, name + ".seg")
            fd = self._disk.open(path, create=False)
            size = self._disk.size(fd)
            start = int(name, 16)
            header = self._disk.pread(fd, HEADER_SIZE, 0)
            if not self._header_is_good(header, start):
                if name == found[-1] and (size < HEADER_SIZE or header == bytes(len(header))):
                    self._disk.close(fd)  # the crash came while this segment was begun
                    self._disk.unlink(path)
                    self._directory_synced = False
                    continue
                raise JournalDamaged(
                    f"{path}: the segment's header is damaged; run `caiafs check` on the repository"
                )
            if self.id and header[8:24] != self.id:
                raise JournalDamaged(f"{path}: belongs to another journal; move it away, then mount again")
            self.id = header[8:24]
            self._segments.append(Segment(path, fd, start, start + size))
        for segment, following in pairwise(self._segments):
            # A write that failed and could not be cut off left torn bytes where the next one began.
            segment.end = min(segment.end, following.start)
        self._starts = [segment.start for segment in self._segments]
        if self._segments:
            self._end = self._segments[-1].end
        if not self.id:
            self.id = os.urandom(16)

    def _header_is_good(self, header: bytes, start: int) -> bool:
        if len(header) < HEADER_SIZE or header[:8] != MAGIC:
            return False
        (check,) = _CHECK.unpack_from(header, _HEADER.size)
        return bool(crc32(header[: _HEADER.size]) == check and _HEADER.unpack_from(header)[2] == start)

    def replay(self, position: int) -> Iterator[tuple[Record, int]]:
        """Every record from *position* on, each with the position that apply() wants.

        The journal ends where a record is torn; the rest is cut off (`set_aside` names the
        files that keep what looked like records in it). Raises JournalDamaged where bytes that
        were synced do not read back.
        """
        synced = 0
        expected: int | None = None
        for index, segment in enumerate(list(self._segments)):
            if expected is not None and segment.start != expected:
                if expected < synced:
                    raise JournalDamaged(
                        f"{self.directory}: {segment.start - expected} bytes of the journal are missing "
                        f"before {os.path.basename(segment.path)}; run `caiafs check` on the repository"
                    )
                self._cut_off(index, segment.start)
                return
            data = memoryview(self._disk.pread(segment.fd, segment.end - segment.start, 0))
            at = HEADER_SIZE
            while at < len(data):
                try:
                    record, following = decode(data, at)
                except BadRecord as error:
                    where = segment.start + at
                    synced = max(synced, self._later_synced(index))
                    if where < synced:
                        raise JournalDamaged(
                            f"{segment.path}: {error} at byte {at}; {synced - where} bytes that were on disk "
                            "are affected; run `caiafs check` on the repository"
                        ) from error
                    self._cut_off(index, where)
                    return
                if type(record) is Synced:
                    synced = max(synced, record.position)
                elif segment.start + at >= position:
                    yield record, segment.start + at + (WRITE_DATA if type(record) is Write else 0)
                at = following
            expected = segment.end

    def _later_synced(self, index: int) -> int:
        """The highest synced position that any whole record from segment *index* on speaks of."""
        highest = 0
        for segment in self._segments[index:]:
            data = memoryview(self._disk.pread(segment.fd, segment.end - segment.start, 0))
            for record in _scan(data):
                highest = max(highest, record.position)
        return highest

    def _cut_off(self, index: int, position: int) -> None:
        """The journal ends at *position*, in segment *index* or before it.

        What comes after was never promised to survive power loss, but if the machine did not
        lose power it is a sign of damage: whatever holds records is set aside, not thrown away.
        """
        segment = self._segments[index]
        aside = index if position <= segment.start else index + 1
        if aside > index:
            rest = self._disk.pread(segment.fd, segment.end - position, position - segment.start)
            if _holds_records(memoryview(rest)):
                self._set_aside(position, rest)
            self._disk.truncate(segment.fd, position - segment.start)
            self._disk.sync(segment.fd)
            segment.end = position
        for later in self._segments[aside:]:
            self._disk.close(later.fd)
            self._disk.rename(later.path, later.path + ".cut")
            self.set_aside.append(later.path + ".cut")
        del self._segments[aside:]
        self._starts = [kept.start for kept in self._segments]
        self._end = self._segments[-1].end if self._segments else position
        self._directory_synced = False

    def _set_aside(self, position: int, rest: bytes) -> None:
        path = os.path.join(self.directory, f"{position:016x}.cut")
        while True:
            try:
                fd = self._disk.open(path, create=True)
                break
            except FileExistsError:
                path += "_"
        self._disk.writev(fd, [rest])
        self._disk.sync(fd)
        self._disk.close(fd)
        self.set_aside.append(path)

    # ---- appending

    @property
    def end(self) -> int:
        """The position after the last record."""
        return self._end

    @property
    def size(self) -> int:
        """Bytes on disk, those kept for unlinked files among them."""
        named = self._end - self._segments[0].start if self._segments else 0
        return named + sum(segment.end - segment.start for segment in self._kept)

    def append(self, record: Record) -> int:
        """Keep *record*; returns the position that apply() wants. Raises JournalError, with nothing kept."""
        return self.append_all((record,))

    def append_all(self, batch: Iterable[Record]) -> int:
        """Keep several records at once, all or none; returns the last one's position."""
        buffers: list[bytes] = []
        offset = last = 0
        if self.durable > self._noted:
            buffers = encode(Synced(self.durable))
            offset = sum(map(len, buffers))
            self._noted = self.durable
        for record in batch:
            frame = encode(record)
            last = offset + (WRITE_DATA if type(record) is Write else 0)
            for piece in frame:
                offset += len(piece)
            buffers += frame
        try:
            segment = self._open
            if segment is None or segment.end - segment.start >= self._segment_size:
                segment = self._begin_segment()
            self._write(segment, buffers, offset)
        except OSError as error:
            self.failure = error
            raise JournalError(f"{self.directory}: {error.strerror}", error.errno or errno.EIO) from error
        self.failure = None
        self.appended += 1
        position = segment.end + last
        segment.end += offset
        self._end = segment.end
        return position

    def _write(self, segment: Segment, buffers: list[bytes], size: int) -> None:
        try:
            written = self._disk.writev(segment.fd, buffers)
            while written < size:
                rest = memoryview(b"".join(buffers))[written:]
                more = self._disk.writev(segment.fd, [bytes(rest)])
                if more <= 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
                written += more
        except OSError:
            self._open = None  # a torn record ends this segment, should it not be possible to cut it off
            self._disk.truncate(segment.fd, segment.end - segment.start)
            self._open = segment
            raise

    def _begin_segment(self) -> Segment:
        start = self.end
        path = os.path.join(self.directory, f"{start:016x}.seg")
        header = _HEADER.pack(MAGIC, self.id, start)
        fd = self._disk.open(path, create=True)
        try:
            written = self._disk.writev(fd, [header, _CHECK.pack(crc32(header))])
            if written != HEADER_SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._disk.close(fd)
            self._disk.unlink(path)
            raise
        self._directory_synced = False
        segment = Segment(path, fd, start, start + HEADER_SIZE)
        self._segments.append(segment)
        self._starts.append(start)
        self._open = segment
        self._end = segment.end
        return segment

    def seal(self) -> int:
        """What comes next goes into a new segment; returns the position where it begins."""
        self._open = None
        return self.end

    def sync(self) -> int:
        """Put on disk all that was appended before this call; returns up to which position.

        May be called from a thread. Raises JournalError; what was not synced then stays unsynced.
        """
        with self._sync_lock:
            self._syncing = True
            target = self.end
            pending = [segment for segment in list(self._segments) if segment.synced < segment.end]
            try:
                for segment in pending:
                    reached = segment.end
                    self._disk.sync(segment.fd)
                    segment.synced = reached
                if not self._directory_synced:
                    self._directory_synced = True
                    self._disk.sync_directory(self.directory)
            except OSError as error:
                self._directory_synced = False
                self.failure = error
                raise JournalError(f"{self.directory}: {error.strerror}", error.errno or errno.EIO) from error
            finally:
                self._syncing = False
                while self._retired:
                    self._disk.close(self._retired.pop())
            self.durable = max(self.durable, target)
            return target

    # ---- reading and releasing

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there any more."""
        segment = self._segment_at(position)
        data = self._disk.pread(segment.fd, length, position - segment.start)
        if len(data) != length:
            raise JournalDamaged(f"{segment.path}: ends {length - len(data)} bytes too early")
        return data

    def _segment_at(self, position: int) -> Segment:
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and position < self._segments[index].end:
            return self._segments[index]
        for segment in self._kept:
            if segment.start <= position < segment.end:
                return segment
        raise JournalDamaged(f"{self.directory}: position {position} is not in the journal any more")

    def release(self, position: int, needed: Iterable[int] = ()) -> None:
        """Git has all before *position*: drop the segments that end there.

        Segments with *needed* positions (unlinked files that are still open) lose their
        name but stay readable until a later release finds them not needed.
        """
        wanted = sorted(needed)
        gone = [
            segment for segment in self._segments if segment.end <= position and segment is not self._open
        ]
        self._segments = [segment for segment in self._segments if segment not in gone]
        self._starts = [segment.start for segment in self._segments]
        for segment in gone:
            self._disk.unlink(segment.path)
        kept = []
        for segment in (*self._kept, *gone):
            index = bisect_right(wanted, segment.start - 1)
            if index < len(wanted) and wanted[index] < segment.end:
                kept.append(segment)
            elif self._syncing:
                self._retired.append(segment.fd)  # sync() has it in its hands, in another thread
            else:
                self._disk.close(segment.fd)
        self._kept = kept

    def close(self) -> None:
        """Close all files. What was appended stays."""
        for segment in (*self._segments, *self._kept):
            self._disk.close(segment.fd)
        self._segments = []
        self._kept = []
        self._open = None

    def statistics(self) -> dict[str, int]:
        """Figures in bytes and positions."""
        return {
            "bytes": self.size,
            "segments": len(self._segments),
            "kept_segments": len(self._kept),
            "end_position": self.end,
            "durable_position": self.durable,
            "records_appended": self.appended,
        }


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
            matches = (_NAME.match(name) for name in os.listdir(self.directory))
            self._starts = sorted(int(match[1], 16) for match in matches if match)
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


def _holds_records(data: memoryview) -> bool:
    """True if a whole record begins anywhere in *data*."""
    for at in range(max(0, len(data) - FRAME_SIZE)):
        if data[at + 3] == 0 and data[at + FRAME_SIZE - 1] in KINDS:
            try:
                decode(data, at)
            except BadRecord:
                continue
            return True
    return False


def _scan(data: memoryview) -> Iterator[Synced]:
    """Every whole Synced record in *data*, wherever it begins."""
    pattern = encode(Synced(0))[0][:4]
    raw = bytes(data)
    at = raw.find(pattern)
    while at >= 0:
        try:
            record, _ = decode(data, at)
        except BadRecord:
            pass
        else:
            if type(record) is Synced:
                yield record
        at = raw.find(pattern, at + 1)
