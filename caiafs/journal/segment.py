"""One file of the journal: its name, its header, how far it was written and synced. Pure but for its fd.

    8 bytes "CAIAFSJ1" | 16 bytes journal id | u64 position | u64 base | u64 follows | u32 CRC-32 of these

*position* is that of the file's first byte; all before *base* was in git when the file was begun.
The bytes before it end at *follows*: less than *position* where a torn end was cut off.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"CAIAFSJ1"
_HEADER = Struct("<8s16sQQQ")
_CHECK = Struct("<I")
HEADER_SIZE = _HEADER.size + _CHECK.size
_NAME = re.compile(r"^([0-9a-f]{16})\.seg$")


class Header(NamedTuple):
    """What a segment says of itself."""

    journal: bytes
    start: int
    base: int
    follows: int


class Segment:
    """An open segment; *header* is None where the file's own does not read back.

    A *volatile* one is in memory only: its records are nowhere else until git has them.
    """

    __slots__ = ("doomed", "end", "fd", "header", "path", "start", "synced", "volatile")

    def __init__(
        self, path: str, fd: int, start: int, end: int, header: Header | None, volatile: bool = False
    ) -> None:
        self.volatile = volatile
        self.path = path
        self.fd = fd
        self.start = start
        self.end = end
        self.header = header
        self.synced = start
        self.doomed = False  # a sync failed: what the disk has of it is not known any more


def name_of(start: int) -> str:
    """The file name of the segment that begins at *start*."""
    return f"{start:016x}.seg"


def start_in_name(name: str) -> int | None:
    """The position that a file name speaks of; None for foreign files."""
    match = _NAME.match(name)
    return int(match[1], 16) if match else None


def encode_header(header: Header) -> bytes:
    """The first bytes of a segment."""
    raw = _HEADER.pack(MAGIC, *header)
    return raw + _CHECK.pack(crc32(raw))


def is_newer(raw: bytes) -> bool:
    """Whether a segment is of a format that this version does not know, and not just damaged."""
    version = raw[7:8]
    return raw[:7] == MAGIC[:7] and b"1" < version <= b"9" and decode_header(MAGIC + raw[8:]) is None


def decode_header(raw: bytes) -> Header | None:
    """A segment's header; None where the bytes are damaged, cut off, or not ours."""
    if len(raw) < HEADER_SIZE or raw[:8] != MAGIC:
        return None
    (check,) = _CHECK.unpack_from(raw, _HEADER.size)
    if crc32(raw[: _HEADER.size]) != check:
        return None
    return Header(*_HEADER.unpack_from(raw)[1:])
