"""The journal: changes git does not have yet, in order, and the bytes that memory let go of.

Appended and synced by filesystem.py, read by the commit worker and check.py too.
One task appends; sync() may run in a thread beside it, start_sync() needs none. A record is acknowledged
once append() returned: it is then with the kernel and survives the process. After
sync() returned, everything appended before it was called survives power loss.
A torn last record is the normal end of a journal after a crash; bytes that do not
read back although they were synced are damage, and raise.

Positions count bytes since the journal began, over all segments, and are never used
twice. segment.py says what a segment's file looks like, recovery.py how the journal is
read back; the disk is an argument, so that crash tests can bring one that forgets.

While the disk takes nothing, the filesystem may append records that are *volatile*: in a segment that
is memory, for the moment that git needs to take them. As long as there is one, nothing goes to the
disk behind it: a journal with a hole would not replay.

Weighed and not chosen: one ring file (a segment can be unlinked while an unlinked file
still needs it; a ring cannot), SQLite (ten times the cost a record).
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from ..errors import JournalDamaged, JournalError
from ..records import WRITE_DATA, Record, Synced, Write, encode
from .disk import Disk, MemoryDisk, RealDisk
from .reader import Reader, Volatile
from .recovery import Recovery
from .segment import (
    HEADER_SIZE,
    MAGIC,
    Header,
    Segment,
    decode_header,
    encode_header,
    is_newer,
    name_of,
    start_in_name,
)

__all__ = ["HEADER_SIZE", "MAGIC", "Disk", "Journal", "Reader", "RealDisk", "Segment", "Volatile"]

_FOREIGN = {
    errno.ELOOP: "a symbolic link",
    errno.EISDIR: "a directory",
    errno.EINVAL: "what is no regular file",
    errno.ENXIO: "what is no regular file",
}
SEGMENT_SIZE = 64 * 1024 * 1024
VOLATILE_ROOM = 32 * 1024 * 1024
"""Bytes of volatile segments at most; a Write is 1 MiB, and a commit takes them all."""
LITTLE = 256 * 1024
"""Bytes of released segments that are closed in less time than a thread takes to begin."""
PROBE = "probe.tmp"
PROBE_SIZE = 64 * 1024
"""Bytes that a probe writes: as much as an ordinary change needs, lest a full disk pass for a good one."""


class Journal:
    """The segments of one directory, the newest of which is appended to.

    A *read_only* journal is replayed as it is; nothing in the directory is changed.
    """

    def __init__(
        self,
        directory: str,
        disk: Disk | None = None,
        segment_size: int = SEGMENT_SIZE,
        read_only: bool = False,
        volatile_room: int = VOLATILE_ROOM,
    ) -> None:
        """Open what is there, or begin anew. Raises JournalDamaged for segments of another journal,
        JournalError if the directory cannot be read or written."""
        self.directory = directory
        self.read_only = read_only
        self.id = b""
        self._disk: Disk = disk if disk is not None else RealDisk()
        self._memory = MemoryDisk(volatile_room)
        self._segment_size = segment_size
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        self._kept: list[Segment] = []
        self._directory_synced = True
        self._open: Segment | None = None
        self._sync_lock = threading.Lock()
        self._syncing: tuple[Segment, int, int] | None = None
        self._retired: list[int] = []
        self._end = 0
        self._tail = 0  # where the bytes that are there end; below _end after a torn end was cut off
        self._base = 0
        self._noted = 0  # the last durable position that a Synced record speaks of
        self.durable = 0
        self.set_aside: list[str] = []
        self.failure: OSError | None = None
        self.is_writing = False  # still true after an error: nobody knows what of the records is kept
        self.appended = 0
        try:
            self._find_segments()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> JournalError:
        self.failure = error
        where = error.filename or self.directory
        return JournalError(f"{where}: {error.strerror or error}", error.errno or errno.EIO)

    # ---- opening and recovery

    def _find_segments(self) -> None:
        starts = map(start_in_name, self._disk.list(self.directory))
        for start in sorted(start for start in starts if start is not None):
            path = os.path.join(self.directory, name_of(start))
            try:
                fd = self._disk.open(path, create=False)
            except OSError as error:
                if error.errno not in _FOREIGN:
                    raise
                raise JournalDamaged(
                    f"{path}: {_FOREIGN[error.errno]} stands where a segment should; "
                    "move it away, then mount again"
                ) from error
            raw = self._disk.pread(fd, HEADER_SIZE, 0)
            header = decode_header(raw)
            if header is None and is_newer(raw):
                raise JournalDamaged(f"{path}: a newer caiafs wrote it; mount with that version")
            if header is not None and header.start != start:
                header = None
            if header is not None and self.id and header.journal != self.id:
                raise JournalDamaged(f"{path}: belongs to another journal; move it away, then mount again")
            if header is not None:
                self.id = header.journal
                self._base = max(self._base, header.base)
            self._segments.append(Segment(path, fd, start, start + self._disk.size(fd), header))
        for segment, following in pairwise(self._segments):
            # A write that failed and could not be cut off left torn bytes where the next one began.
            good = following.start if following.header is None else following.header.follows
            segment.end = max(segment.start, min(segment.end, following.start, good))
        if not self.id:
            self.id = os.urandom(16)
        self._reckon()

    def _reckon(self) -> None:
        self._starts = [segment.start for segment in self._segments]
        if self._segments:
            self._end = max(self._end, self._segments[-1].end)

    def replay(self, position: int) -> Iterator[tuple[Record, int]]:
        """Every record that git does not have, each with the position that apply() wants.

        Git has all before *position*, or more if the journal itself says so; segments that end
        there are only waiting to be dropped. The journal ends where a record is torn; the rest is
        cut off (`set_aside` names the files that keep it, if there was more than the torn record).
        Raises JournalDamaged where bytes that were synced do not read back. New records get
        positions from here on that were never used before.
        """
        position = max(position, self._base)
        used = max([position, *(segment.end for segment in self._segments)])
        recovery = Recovery(self._disk, self.directory, self._segments, position, self.read_only)
        yield from recovery.records()
        self._segments = recovery.segments
        self.set_aside += recovery.set_aside
        self._directory_synced = self._directory_synced and not recovery.changed
        self._base = position
        self._end = used
        self._tail = max(position, self._segments[-1].end if self._segments else 0)
        self._reckon()

    # ---- appending

    @property
    def begin(self) -> int:
        """The position of the first byte that is there."""
        return self._segments[0].start if self._segments else self._end

    @property
    def end(self) -> int:
        """The position after the last record."""
        return self._end

    @property
    def tail(self) -> int:
        """The position after the last record that is not volatile: what a sync has to reach."""
        return self._tail if self.is_volatile else self._end

    @property
    def size(self) -> int:
        """Bytes on disk, those kept for unlinked files among them."""
        size = self._end - self._starts[0] if self._starts else 0
        for segment in self._kept:
            size += segment.end - segment.start
        return size

    @property
    def is_volatile(self) -> bool:
        """True if the newest records are in memory only, so that the next ones have to follow them there."""
        return bool(self._segments) and self._segments[-1].volatile

    @property
    def is_doomed(self) -> bool:
        """True while records are in a segment whose sync failed: only git can make them durable."""
        return any(segment.doomed for segment in self._segments)

    @property
    def volatile(self) -> tuple[Volatile, ...]:
        """Where another process finds the records that are in memory only."""
        return tuple(
            Volatile(one.start, one.end, self._memory.place(one.fd)) for one in self._segments if one.volatile
        )

    @property
    def opened(self) -> tuple[Volatile, ...]:
        """Where another process finds segments on disk whose names went away."""
        if not isinstance(self._disk, RealDisk):
            return ()
        on_disk = (one for one in self._segments if not one.volatile)
        return tuple(Volatile(one.start, one.end, MemoryDisk.place(one.fd)) for one in on_disk)

    @property
    def volatile_bytes(self) -> int:
        """Memory that volatile segments take, also those kept for unlinked files."""
        return self._memory.used

    def append(self, record: Record, volatile: bool = False) -> int:
        """Keep *record*; returns the position that apply() wants. Raises JournalError, with nothing kept.

        It is `append_all` for one, without its lists where the open segment takes it: every change of a
        busy mount comes through here.
        """
        segment = self._open
        if (
            segment is None
            or volatile
            or segment.volatile
            or segment.end - segment.start >= self._segment_size
            or self.durable > self._noted
        ):
            return self.append_all((record,), volatile)[0]
        frame = encode(record)
        place, size = 0, len(frame[0])
        if len(frame) == 2:
            place, size = WRITE_DATA, size + len(frame[1])
        self.is_writing = True
        try:
            self._write(segment, frame, size)
        except OSError as error:
            self.is_writing = False
            raise self._failed(error) from error
        self.appended += 1
        begin = segment.end
        self._end = self._tail = segment.end = begin + size
        self.failure = None
        self.is_writing = False
        return begin + place

    def append_all(self, batch: Sequence[Record], volatile: bool = False) -> list[int]:
        """Keep several records at once, all or none; returns their positions.

        *volatile*: in memory, where no end of the daemon leaves anything of them. What follows
        volatile records must be volatile, until a release or `forget_volatile` took them away.
        """
        if self.is_volatile and not volatile:
            raise AssertionError("records on disk would follow records that are not")
        buffers: list[bytes] = []
        places = []
        size = 0
        durable = self.durable
        if durable > self._noted:
            buffers = encode(Synced(durable))
            size = sum(map(len, buffers))
        for record in batch:
            frame = encode(record)
            places.append(size + (WRITE_DATA if type(record) is Write else 0))
            size += sum(map(len, frame))
            buffers += frame
        self.is_writing = True
        try:
            segment = self._open
            if (
                segment is None
                or segment.volatile != volatile
                or segment.end - segment.start >= self._segment_size
            ):
                segment = self._begin_segment(volatile)
            self._write(segment, buffers, size)
        except OSError as error:
            self.is_writing = False
            if volatile:
                raise JournalError(error.strerror or str(error), error.errno or errno.EIO) from error
            raise self._failed(error) from error
        self.appended += len(batch)
        begin = segment.end
        segment.end += size
        self._end = segment.end
        if not volatile:
            self.failure = None
            self._noted = durable
            self._tail = self._end
        self.is_writing = False
        return [begin + place for place in places]

    def _write(self, segment: Segment, buffers: list[bytes], size: int) -> None:
        if len(buffers) > 500:
            buffers = [b"".join(buffers)]  # writev(2) takes 1,024 pieces
        disk = self._disk_of(segment)
        try:
            written = disk.writev(segment.fd, buffers)
            while written < size:
                rest = b"".join(buffers)[written:]
                more = disk.writev(segment.fd, [rest])
                if more <= 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
                written += more
        except OSError:
            self._open = None  # a torn record ends this segment, should it not be possible to cut it off
            disk.truncate(segment.fd, segment.end - segment.start)
            self._open = segment
            raise

    def _disk_of(self, segment: Segment) -> Disk:
        return self._memory if segment.volatile else self._disk

    def _begin_segment(self, volatile: bool = False) -> Segment:
        disk: Disk = self._memory if volatile else self._disk
        start = self._end
        path = os.path.join(self.directory, name_of(start))
        header = Header(self.id, start, self._base, min(self._tail, start))
        raw = encode_header(header)
        fd = disk.open(path, create=True)
        try:
            if disk.writev(fd, [raw]) != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            disk.close(fd)
            disk.unlink(path)
            raise
        segment = Segment(path, fd, start, start + len(raw), header, volatile)
        self._segments.append(segment)
        self._starts.append(start)
        self._open = segment
        self._end = segment.end
        if not volatile:
            self._directory_synced = False
            self._tail = self._end
        return segment

    def seal(self) -> int:
        """What comes next goes into a new segment; returns the position where it begins."""
        self._open = None
        return self._end

    def sync(self) -> int:
        """Put on disk all that was appended before this call; returns up to which position. What is
        volatile is not on a disk, and not waited for.

        May be called from a thread. Raises JournalError. A segment whose sync failed once is not
        believed again: the kernel may have dropped its pages; git must take its records first.
        """
        with self._sync_lock:
            try:
                target = self.tail
                for segment in list(self._segments):
                    if segment.volatile:
                        continue
                    if segment.doomed:
                        raise OSError(errno.EIO, f"{segment.path} could not be synced before")
                    reached = segment.end
                    if segment.synced < reached:
                        self._sync_segment(segment, reached, partial(self._disk.sync, segment.fd))
                if not self._directory_synced:
                    self._directory_synced = True
                    try:
                        self._disk.sync_directory(self.directory)
                    except OSError:
                        self._directory_synced = False
                        raise
            except OSError as error:
                raise self._failed(error) from error
            finally:
                self._close_retired()
            self.durable = max(self.durable, target)
            return target

    def start_sync(self) -> int | None:
        """Begin what `sync` does, where that is one flush of one file: a descriptor that is readable once
        `finish_sync` has to be called. None if there is more to do, or the disk cannot: call `sync`."""
        waiting = [one for one in self._segments if not one.volatile and (one.doomed or one.synced < one.end)]
        if len(waiting) != 1 or waiting[0].doomed or not self._directory_synced:
            return None
        if not self._sync_lock.acquire(blocking=False):
            return None
        (segment,) = waiting
        self._syncing = segment, segment.end, self.tail
        done = self._disk.start_sync(segment.fd)
        if done is None:
            self._sync_lock.release()
        return done

    def finish_sync(self) -> int:
        """The end of what `start_sync` began: all that was appended before that is on disk, up to the
        position that this returns. Raises JournalError."""
        assert self._syncing is not None
        segment, reached, target = self._syncing
        try:
            self._sync_segment(segment, reached, self._disk.finish_sync)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._syncing = None
            self._sync_lock.release()
        self.durable = max(self.durable, target)
        return target

    def _sync_segment(self, segment: Segment, reached: int, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OSError:
            segment.doomed = True
            if self._open is segment:
                self._open = None  # what comes next goes where the disk may be believed
            raise
        segment.synced = reached

    # ---- reading and releasing

    def read(self, position: int, length: int) -> bytes:
        """*length* bytes at *position*. Raises JournalDamaged if they are not there any more."""
        segment = self._segment_at(position)
        data = self._disk_of(segment).pread(segment.fd, length, position - segment.start)
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
        name but stay readable until a later release finds them not needed. A segment that
        cannot be unlinked is left to the next recovery, which knows that git has it. The
        disk gets the space back with `close_released`, which may take long.
        """
        wanted = sorted(needed)
        self._base = max(self._base, position)
        gone = [
            segment for segment in self._segments if segment.end <= position and segment is not self._open
        ]
        self._segments = [segment for segment in self._segments if segment not in gone]
        self._starts = [segment.start for segment in self._segments]
        for segment in gone:
            try:
                self._disk_of(segment).unlink(segment.path)
            except OSError as error:
                self.failure = error
        kept = []
        for segment in (*self._kept, *gone):
            index = bisect_left(wanted, segment.start)
            if index < len(wanted) and wanted[index] < segment.end:
                kept.append(segment)
            elif segment.volatile:
                self._memory.close(segment.fd)
            else:
                self._retired.append(segment.fd)  # sync() may have it in its hands, in another thread
        self._kept = kept

    def close_released(self) -> None:
        """Close what was released. May be called from a thread: ext4 took 28 ms for 40 MiB."""
        with self._sync_lock:
            self._close_retired()

    def close_little(self) -> bool:
        """Close what was released if that is little, and no sync under way; False: call `close_released`."""
        if sum(map(self._disk.size, self._retired)) > LITTLE or not self._sync_lock.acquire(blocking=False):
            return False
        try:
            self._close_retired()
        finally:
            self._sync_lock.release()
        return True

    def _close_retired(self) -> None:
        while self._retired:
            self._disk.close(self._retired.pop())

    def forget_volatile(self, needed: Iterable[int] = ()) -> None:
        """The records in memory did not come to be, or are needed by unlinked files only."""
        gone = [segment for segment in self._segments if segment.volatile]
        if not gone:
            return
        self._segments = [segment for segment in self._segments if not segment.volatile]
        self._starts = [segment.start for segment in self._segments]
        if self._open in gone:
            self._open = None
        wanted = sorted(needed)
        for segment in gone:
            index = bisect_left(wanted, segment.start)
            if index < len(wanted) and wanted[index] < segment.end:
                self._kept.append(segment)
            else:
                self._memory.close(segment.fd)

    def probe(self) -> None:
        """Find out, in a thread, whether the disk takes and keeps bytes again. Raises JournalError."""
        path = os.path.join(self.directory, PROBE)
        try:
            if PROBE in self._disk.list(self.directory):
                self._disk.unlink(path)
            fd = self._disk.open(path, create=True)
            try:
                left = PROBE_SIZE
                while left:
                    left -= self._disk.writev(fd, [bytes(left)])
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
                self._disk.unlink(path)
        except OSError as error:
            raise JournalError(
                f"{self.directory}: {error.strerror or error}", error.errno or errno.EIO
            ) from error

    def compact(self, needed: Iterable[int]) -> None:
        """Nothing waits for git: drop all segments but those with *needed* positions. Raises JournalError."""
        self._base = self.seal()
        try:
            self._begin_segment()  # whose header says that git has all before it
        except OSError as error:
            raise self._failed(error) from error
        self.release(self._base, needed)

    def close(self) -> None:
        """Close all files. What was appended stays."""
        for segment in (*self._segments, *self._kept):
            self._disk_of(segment).close(segment.fd)
        self._segments = []
        self._kept = []
        self._open = None
        self.close_released()

    def statistics(self) -> dict[str, int]:
        """Figures in bytes and positions."""
        return {
            "bytes": self.size,
            "segments": len(self._segments),
            "kept_segments": len(self._kept),
            "end_position": self.end,
            "durable_position": self.durable,
            "records_appended": self.appended,
            "volatile_bytes": self.volatile_bytes,
        }
