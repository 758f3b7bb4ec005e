"""Large objects deflated in parts: one zlib stream, whatever changed."""

from __future__ import annotations

import random
import zlib

import pytest

from caiafs.store import deflate_parts, zlib_stream
from caiafs.store.parts import PART


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size // 2) + b"x" * (size - size // 2)


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 5 * PART + 7])
def test_the_parts_are_one_stream(size: int) -> None:
    data = some(size)
    parts = deflate_parts(data)
    assert zlib.decompress(zlib_stream(parts, data)) == data
    assert len(parts) == -(-size // PART)


@pytest.mark.parametrize("size", [5 * PART, 5 * PART + 7])
@pytest.mark.parametrize("at", [0, PART - 1, PART, 2 * PART + 5, 5 * PART - 1])
def test_what_did_not_change_is_taken_from_before(size: int, at: int) -> None:
    data = some(size)
    parts = deflate_parts(data)
    for new in (
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],  # changed in place
        data[:at] + b"more" + data[at:],
        data[:at] + data[at + 1 :],
        data[:at],
        data + b"more",
    ):
        again = deflate_parts(new, data, parts)
        assert zlib.decompress(zlib_stream(again, new)) == new
        same = at // PART if len(new) <= len(data) + 4 else 0
        assert all(one is other for one, other in zip(again[:same], parts, strict=False))
    again = deflate_parts(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data, parts)
    assert [one is other for one, other in zip(again, parts, strict=True)].count(False) == 1
