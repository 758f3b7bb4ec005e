"""A large object deflated in parts, so that one with little changed takes the other parts from before.

Used for trees of many entries: 10,000 take a millisecond to deflate, of which a change in one of them needs a
twentieth. The parts stand by themselves (RFC 1951 lets a stream begin anew after any block), so they make
one zlib stream, which costs a few bytes for each. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from isal import isal_zlib

LEVEL = 1
PART = 16 * 1024
"""Bytes of the object that each part stands for."""
_HEAD, _END = b"\x78\x01", b"\x03\x00"  # RFC 1950: deflate, window of 32 KiB; RFC 1951: an empty last block


def deflate_parts(data: bytes, before: bytes = b"", known: Sequence[bytes] = ()) -> list[bytes]:
    """The parts of *data*; where *before* has the same bytes, those that are *known* of it."""
    parts = []
    for number, at in enumerate(range(0, len(data), PART)):
        piece = data[at : at + PART]
        if number < len(known) and piece == before[at : at + PART]:
            parts.append(known[number])
        else:
            deflater = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
            parts.append(deflater.compress(piece) + deflater.flush(isal_zlib.Z_FULL_FLUSH))
    return parts


def zlib_stream(parts: Sequence[bytes], data: bytes) -> bytes:
    """What inflates to *data*, whose *parts* these are."""
    return b"".join((_HEAD, *parts, _END, isal_zlib.adler32(data).to_bytes(4, "big")))
