"""Reading a journal back after any end: clean, killed, or without power.

Used by the journal when it is opened. What was synced and does not read back is damage
and raises, and nothing is changed then. Otherwise the journal ends at the first bytes
that are not a whole record: what follows was never promised to survive. Only one torn
record is the normal end; if there is more, it is set aside and not thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..errors import JournalDamaged
from ..records import (
    FRAME,
    FRAME_SIZE,
    MAX_BODY,
    WRITE_DATA,
    BadRecord,
    NewerFormat,
    Record,
    Synced,
    Write,
    decode,
    encode,
)
from .disk import Disk
from .segment import HEADER_SIZE, Segment

WINDOW = MAX_BODY + FRAME_SIZE
"""Bytes of a segment in memory at once: any record fits, and a file that was blown up costs no more."""
USUAL_WINDOW = 4 * 1024 * 1024
"""Bytes read at once, before what is missing of the record that they end in."""
_PIECE = 1 << 20
ADVICE = "run `caiafs check` on the repository"


class Recovery:
    """One reading of the *segments* from *position* on; `segments` are those that remain."""

    def __init__(
        self, disk: Disk, directory: str, segments: list[Segment], position: int, read_only: bool
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._position = position
        self._read_only = read_only
        self.segments = list(segments)
        self.set_aside: list[str] = []
        self.changed = False

    def records(self) -> Iterator[tuple[Record, int]]:
        """Every record, with the position that apply() wants. Raises JournalDamaged."""
        self._drop_released()
        synced = 0
        expected = self._position
        for index, segment in enumerate(list(self.segments)):
            if segment.header is None or segment.header.follows > expected:
                what = "the header is damaged" if segment.header is None else "bytes are missing before it"
                self._end_at(index, expected, max(synced, self._vouched(index)), f"{segment.path}: {what}")
                return
            at = HEADER_SIZE
            try:
                for record, at, following in self._whole_records(segment):
                    if type(record) is Synced:
                        synced = max(synced, record.position)
                    elif segment.start + at >= self._position:
                        yield record, segment.start + at + (WRITE_DATA if type(record) is Write else 0)
                    at = following
            except NewerFormat as error:
                raise JournalDamaged(
                    f"{segment.path}: {error} (byte {at}); mount with that version"
                ) from error
            except BadRecord as error:
                synced = max(synced, self._vouched(index))
                self._end_at(index, segment.start + at, synced, f"{segment.path}: {error} at byte {at}")
                return
            expected = segment.end

    def _whole_records(self, segment: Segment) -> Iterator[tuple[Record, int, int]]:
        """(record, where it begins, where it ends in the file). Raises BadRecord behind the last one."""
        size = segment.end - segment.start
        base, at, data = 0, HEADER_SIZE, memoryview(b"")
        while at < size:
            try:
                record, following = decode(data, at - base)
            except BadRecord:
                rest = data[at - base :]
                begin = at + len(rest)
                missing = _missing(rest)
                if begin >= size or missing <= 0:
                    raise
                # Each byte is read once, in order: so the kernel reads ahead, which a second look would end.
                more = self._disk.pread(segment.fd, min(missing, size - begin), begin)
                if not more:
                    raise
                base, data = at, memoryview(bytes(rest) + more if rest else more)
                continue
            yield record, at, base + following
            at = base + following

    def _drop_released(self) -> None:
        """Segments that git has: their unlinking was not on disk yet when the power went."""
        while self.segments and self.segments[0].end <= self._position:
            segment = self.segments.pop(0)
            self._disk.close(segment.fd)
            if not self._read_only:
                self._disk.unlink(segment.path)
                self.changed = True

    def _vouched(self, index: int) -> int:
        """The highest synced position that any record from segment *index* on speaks of."""
        highest = 0
        pattern = encode(Synced(0))[0][:4]
        for segment in self.segments[index:]:
            size = segment.end - segment.start
            for start in range(0, size, WINDOW):
                data = self._disk.pread(segment.fd, min(WINDOW + 64, size - start), start)
                at = data.find(pattern)
                while at >= 0:
                    try:
                        record, _ = decode(memoryview(data), at)
                    except BadRecord:
                        record = None
                    if type(record) is Synced:
                        highest = max(highest, record.position)
                    at = data.find(pattern, at + 1)
        return highest

    def _end_at(self, index: int, position: int, synced: int, what: str) -> None:
        """The journal ends at *position*, in segment *index* or before it."""
        if position < synced:
            raise JournalDamaged(
                f"{what}; {synced - position} bytes that were on disk are affected; {ADVICE}"
            )
        segment = self.segments[index]
        aside = index
        if segment.header is not None and position > segment.start:
            aside = index + 1
            self._cut(segment, position)
        for later in self.segments[aside:]:
            self._put_away(later)
        del self.segments[aside:]

    def _cut(self, segment: Segment, position: int) -> None:
        start, size = position - segment.start, segment.end - segment.start
        is_torn = self._is_torn_record(segment, start, size)
        segment.end = position
        if self._read_only:
            return
        self.changed = True
        if not is_torn:
            path = self._free_name(os.path.join(self._directory, f"{position:016x}.cut"))
            fd = self._disk.open(path, create=True)
            for piece in self._pieces(segment, start, size):
                while piece:
                    piece = piece[self._disk.writev(fd, [piece]) :]
            self._disk.sync(fd)
            self._disk.close(fd)
            self.set_aside.append(path)
        self._disk.truncate(segment.fd, start)
        self._disk.sync(segment.fd)

    def _put_away(self, segment: Segment) -> None:
        size = segment.end - segment.start
        empty = size <= HEADER_SIZE or self._is_zeros(segment, 0, size)
        self._disk.close(segment.fd)
        if self._read_only:
            return
        self.changed = True
        if empty:
            self._disk.unlink(segment.path)  # the crash came while it was begun
            return
        path = self._free_name(segment.path + ".cut")
        self._disk.rename(segment.path, path)
        self.set_aside.append(path)

    def _is_torn_record(self, segment: Segment, start: int, end: int) -> bool:
        """True if these bytes are no more than the beginning of one record, or nothing but zeros."""
        if end - start < FRAME_SIZE:
            return True
        length, _, _ = FRAME.unpack(self._disk.pread(segment.fd, FRAME_SIZE, start))
        if 1 <= length <= MAX_BODY and FRAME_SIZE - 1 + length >= end - start:
            return True
        return self._is_zeros(segment, start, end)

    def _is_zeros(self, segment: Segment, start: int, end: int) -> bool:
        return all(piece == bytes(len(piece)) for piece in self._pieces(segment, start, end))

    def _pieces(self, segment: Segment, start: int, end: int) -> Iterator[bytes]:
        while start < end and (piece := self._disk.pread(segment.fd, min(_PIECE, end - start), start)):
            yield piece
            start += len(piece)

    def _free_name(self, path: str) -> str:
        taken = set(self._disk.list(self._directory))
        while os.path.basename(path) in taken:
            path += "_"
        return path


def _missing(rest: memoryview) -> int:
    """How many bytes to read behind *rest*, which begins where a record does and holds no whole one; 0 if
    none would help."""
    if not rest:
        return USUAL_WINDOW
    if len(rest) < FRAME_SIZE:
        return FRAME_SIZE - len(rest)
    length, _, _ = FRAME.unpack_from(rest)
    return FRAME_SIZE - 1 + length - len(rest) if 1 <= length <= MAX_BODY else 0
