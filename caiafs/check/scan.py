"""The journal's files, looked at and never changed: what is whole, what is damaged, what is missing.

The journal itself cuts off what it cannot read when it is replayed. A check must not, so
this reads the segments on its own: read-only, mapped instead of loaded, every frame from
the first to the last, and beyond damage to the next whole record.

A stretch is a run of bytes in one segment that are all whole records, or all damaged.
Where the damaged frame's length still leads to a whole record, that is where the damage
ends; else every position is tried. Bytes that a program wrote into a file may look like a
record to such a search (a journal copied into the mount does), so what lies behind damage
is used for salvage only, never for replay.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from ..journal import HEADER_SIZE
from ..journal.segment import decode_header, is_newer, start_in_name
from ..records import (
    FRAME,
    FRAME_SIZE,
    KINDS,
    MAX_BODY,
    WRITE_DATA,
    BadRecord,
    Committed,
    NewerFormat,
    Record,
    Synced,
    Write,
    decode,
)

HEADER = Struct("<8s16sQQQ")
SEGMENT_NAME = re.compile(r"^([0-9a-f]{16})\.seg$")
BACKUP_PREFIX = "backup-"
EMPTY = "its header is empty"
OURS = ("lock", "control", "http-token")
"""What else a mount keeps in its state directory."""

_CANDIDATE = re.compile(rb"(?=[\s\S]{2}[\x00-\x10]\x00[\s\S]{4}[%b])" % bytes(sorted(KINDS)))
_WRITE_KIND = 5
_WRITE_HEAD = Struct("<QQq")
_LONGEST = 256 * 1024
"""No record but a Write is longer; a search beyond damage tries no longer ones."""


class Stretch(NamedTuple):
    """Bytes *start* to *end* of a segment's file. *damage* says what is wrong, "" that all is whole."""

    start: int
    end: int
    records: int
    damage: str = ""


@dataclass
class Segment:
    """One file of the journal; *start* is the position of its first byte, as its name says."""

    path: str
    start: int
    size: int
    id: bytes = b""
    header: str = ""
    """What is wrong with the header; "" if nothing is."""
    base: int = 0
    """Git had all before this position when the segment was begun."""
    follows: int = 0
    """Where the bytes before it ended when it was begun; less than *start* after a torn end was cut off."""
    damaged_id: bytes = b""
    """Where a damaged header has the id."""
    is_newer: bool = False
    """It is of a format that this version does not know."""
    limit: int = 0
    """Where its records end: the file's size, or where the next segment begins."""
    stretches: list[Stretch] = field(default_factory=list)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def end(self) -> int:
        """The position after its last byte."""
        return self.start + self.limit

    @property
    def records(self) -> int:
        return sum(stretch.records for stretch in self.stretches)


class Damage(NamedTuple):
    """*size* bytes from *position* on do not read back. *segment*: where; None: a file is missing."""

    position: int
    size: int
    reason: str
    segment: Segment | None
    offset: int
    followed: bool
    """True if whole records come after it."""


@dataclass
class Scan:
    """A state directory. Segments are in order; `alien` ones belong to another journal."""

    directory: str
    id: bytes = b""
    segments: list[Segment] = field(default_factory=list)
    unborn: list[Segment] = field(default_factory=list)
    """The last segment, if a crash came before its header was written."""
    alien: list[Segment] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    open_to_others: list[tuple[str, int]] = field(default_factory=list)
    newer_at: str | None = None
    """The first segment with a whole record of a kind that this version does not know."""
    synced: int = 0
    """All before this position was on disk once: a whole record says so."""
    committed: Committed | None = None
    """The last word on what git has."""

    @property
    def begin(self) -> int:
        """The position of the first byte that is there."""
        return self.segments[0].start if self.segments else 0

    @property
    def base(self) -> int:
        """Git has all before this position, as the journal itself says."""
        return max((segment.base for segment in self.segments), default=0)

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.segments[-1].end if self.segments else 0

    @property
    def records(self) -> int:
        return sum(segment.records for segment in self.segments)

    def damages(self, floor: int) -> list[Damage]:
        """Everything that does not read back, in order: damaged stretches and segments missing between
        others. What is missing before the first segment after *floor* is not counted."""
        found = []
        expected: int | None = None
        for index, segment in enumerate(self.segments):
            later = any(after.records for after in self.segments[index + 1 :])
            if expected is not None and floor <= expected < segment.follows:
                size = segment.follows - expected
                follows = later or segment.records > 0
                found.append(Damage(expected, size, "a segment is missing", None, 0, follows))
            for number, stretch in enumerate(segment.stretches):
                if stretch.damage:
                    follows = later or any(s.records for s in segment.stretches[number + 1 :])
                    where, size = segment.start + stretch.start, stretch.end - stretch.start
                    found.append(Damage(where, size, stretch.damage, segment, stretch.start, follows))
            expected = segment.end
        return found

    def read(self, position: int, stop: int | None = None) -> Iterator[tuple[Record, int]]:
        """Every whole record from *position* up to the first damage (or *stop*), as Journal.replay gives
        them: each with the position that apply() wants."""
        expected: int | None = None
        for segment in self.segments:
            if segment.end <= position:
                continue
            if expected is not None and segment.follows > expected:
                return
            for record, at, _ in read_stretches(segment):
                where = segment.start + at
                if stop is not None and where >= stop:
                    return
                if where >= position and type(record) is not Synced:
                    yield record, where + (WRITE_DATA if type(record) is Write else 0)
            if any(stretch.damage for stretch in segment.stretches):
                return
            expected = segment.end


def look(directory: str, is_expected: Callable[[bytes], bool] = lambda journal: False) -> Scan:
    """Scan the state directory. *is_expected* tells whether the side ref speaks of a journal, by its id."""
    scan = Scan(directory)
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        start = start_in_name(name)
        status = os.lstat(path)
        if name.startswith(BACKUP_PREFIX) and stat.S_ISDIR(status.st_mode):
            continue
        if start is None and not name.rstrip("_").endswith(".cut") and name not in OURS:
            scan.foreign.append(name)
            continue
        if status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode):
            scan.open_to_others.append((path, stat.S_IMODE(status.st_mode)))
        if start is not None:
            _add(scan, path, start, status)
        elif name not in OURS:
            scan.cut.append(path)
    _sort_out(scan, is_expected)
    starts = [segment.start for segment in scan.segments]
    for index, segment in enumerate(scan.segments):
        following = starts[index + 1] if index + 1 < len(starts) else segment.start + segment.size
        segment.limit = min(segment.size, following - segment.start)
        if segment.header:  # then nothing says that something is missing before it
            segment.follows = min(segment.start, scan.segments[index - 1].end if index else segment.start)
        _walk(scan, segment)
    for segment in scan.alien:
        if not segment.is_newer:
            segment.limit = segment.size
            _walk(Scan(directory), segment)
    return scan


def _add(scan: Scan, path: str, start: int, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        scan.unreadable.append((path, f"{kind}, and no journal follows it"))
        return
    segment = Segment(path, start, status.st_size)
    try:
        with _opened(path) as fd:
            raw = os.pread(fd, HEADER_SIZE, 0)
    except OSError as error:
        scan.unreadable.append((path, f"cannot be read: {error.strerror}"))
        return
    _judge_header(segment, raw)
    scan.segments.append(segment)


def _judge_header(segment: Segment, raw: bytes) -> None:
    header = decode_header(raw)
    if header is not None:
        segment.id, segment.base, segment.follows = header.journal, header.base, header.follows
        if header.start != segment.start:
            segment.header = f"its header says that it begins at position {header.start:016x}: it was renamed"
    elif len(raw) < HEADER_SIZE:
        segment.header = f"its header is cut off after {len(raw)} bytes"
    elif not any(raw):
        segment.header = EMPTY
    elif is_newer(raw):
        segment.header = f"its format {raw[:8].decode('ascii', 'replace')!r} is not known"
        segment.is_newer = True
    else:
        segment.header = "its header is damaged"
        segment.damaged_id = raw[8:24]


def _sort_out(scan: Scan, is_expected: Callable[[bytes], bool]) -> None:
    """Which journal this is, which segments are another's, and whether the last one was only begun."""
    if scan.segments:
        last = scan.segments[-1]
        if (last.size <= HEADER_SIZE and last.header) or (last.header == EMPTY and not _holds_records(last)):
            scan.unborn.append(scan.segments.pop())
    ids = [segment.id for segment in scan.segments if segment.id and not segment.header]
    expected = next(filter(is_expected, ids), None)
    if expected is None:  # a header that is damaged elsewhere than in the id still has it
        expected = next(filter(is_expected, (segment.damaged_id for segment in scan.segments)), None)
    scan.id = expected or max(ids, key=ids.count, default=b"")
    scan.alien = [s for s in scan.segments if s.is_newer or (s.id and (s.header or s.id != scan.id))]
    scan.segments = [segment for segment in scan.segments if segment not in scan.alien]


def _holds_records(segment: Segment) -> bool:
    data = view(segment.path)
    return any(is_whole(data, match.start()) for match in _CANDIDATE.finditer(data, HEADER_SIZE))


def look_into_cut(path: str) -> Segment:
    """A file that a mount set aside: a whole segment, or the rest of one from a damaged record on."""
    segment = Segment(path, 0, os.stat(path).st_size)
    segment.limit = segment.size
    begins = HEADER_SIZE if path.rstrip("_").endswith(".seg.cut") else 0
    _walk(Scan(os.path.dirname(path)), segment, begins)
    return segment


def _walk(scan: Scan, segment: Segment, begins: int = HEADER_SIZE) -> None:
    data = view(segment.path)[: segment.limit]
    at = min(begins, segment.limit)
    whole, count = at, 0
    while at < len(data):
        try:
            record, following = decode(data, at)
        except BadRecord as error:
            if isinstance(error, NewerFormat):
                scan.newer_at = segment.path if scan.newer_at is None else scan.newer_at
            if at > whole:
                segment.stretches.append(Stretch(whole, at, count))
            following = _next_whole(data, at)
            segment.stretches.append(Stretch(at, following, 0, str(error)))
            at = whole = following
            count = 0
            continue
        if type(record) is Synced:
            scan.synced = max(scan.synced, record.position)
        elif type(record) is Committed:
            scan.committed = record
        count += 1
        at = following
    if at > whole:
        segment.stretches.append(Stretch(whole, at, count))


def _next_whole(data: memoryview, at: int) -> int:
    """Where the next whole record begins after the damaged one at *at*; the end if there is none."""
    if at + FRAME_SIZE <= len(data):
        length, _, kind = FRAME.unpack_from(data, at)
        end = at + FRAME_SIZE - 1 + length
        if 1 <= length <= MAX_BODY and kind in KINDS and end < len(data) and is_whole(data, end):
            return int(end)
    for match in _CANDIDATE.finditer(data, at + 1):
        if _is_plausible(data, match.start()) and is_whole(data, match.start()):
            return match.start()
    return len(data)


def _is_plausible(data: memoryview, at: int) -> bool:
    """A look at the fields before a checksum is made over what may be a megabyte."""
    length, _, kind = FRAME.unpack_from(data, at)
    if not 1 < length <= len(data) - at - FRAME_SIZE + 1:
        return False
    if kind != _WRITE_KIND:
        return bool(length <= _LONGEST)
    if length < 1 + _WRITE_HEAD.size:
        return False
    ino, offset, time = _WRITE_HEAD.unpack_from(data, at + FRAME_SIZE)
    return bool(ino < 1 << 61 and offset < 1 << 63 and time >= 0 and (not ino or time >= 1 << 58))


def is_whole(data: memoryview, at: int) -> bool:
    """Whether an undamaged record begins at *at*."""
    with contextlib.suppress(BadRecord):
        decode(data, at)
        return True
    return False


def read_stretches(segment: Segment, *, beyond: bool = False) -> Iterator[tuple[Record, int, int]]:
    """(record, where it begins, where it ends in the file) for the whole records of *segment*: up to the
    first damage, or with *beyond* all of them."""
    data = view(segment.path)
    for stretch in segment.stretches:
        if stretch.damage:
            if not beyond:
                return
            continue
        at = stretch.start
        while at < stretch.end:
            record, following = decode(data, at)
            yield record, at, following
            at = following


def guess(segment: Segment, at: int) -> Record | None:
    """What the damaged record at *at* was, if its bytes are still close enough to decode."""
    data = view(segment.path)
    if at + FRAME_SIZE > len(data):
        return None
    length, _, kind = FRAME.unpack_from(data, at)
    body = bytes(data[at + FRAME_SIZE - 1 : at + FRAME_SIZE - 1 + min(length, 1 << 16)])
    if not 1 <= length <= MAX_BODY or kind not in KINDS:
        return None
    with contextlib.suppress(BadRecord):
        return decode(memoryview(FRAME.pack(len(body), crc32(body), kind)[:-1] + body), 0)[0]
    return None


def view(path: str) -> memoryview:
    """The file's bytes, mapped: a journal may be larger than memory."""
    with _opened(path) as fd:
        if not os.fstat(fd).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)
