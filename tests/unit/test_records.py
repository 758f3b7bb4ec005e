"""Records: bytes in, bytes out, and no bytes that do more than raise BadRecord."""

from __future__ import annotations

from struct import pack
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiafs.records import (
    FRAME,
    FRAME_SIZE,
    KINDS,
    MAX_BODY,
    WRITE_DATA,
    Adopt,
    AdoptEntry,
    BadRecord,
    Committed,
    Create,
    Link,
    Name,
    NewerFormat,
    Record,
    Remove,
    Rename,
    SetAttr,
    SetXattr,
    Synced,
    Write,
    decode,
    encode,
)

u8 = st.integers(0, 2**8 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
names = st.binary(max_size=300)
oids = st.binary(min_size=20, max_size=20)
xattrs = st.lists(st.tuples(names, st.binary(max_size=100)), max_size=4).map(tuple)

RECORDS: dict[type, st.SearchStrategy[Record]] = {
    Create: st.builds(Create, u64, u64, u32, u32, u32, u64, times, names, names, xattrs),
    Link: st.builds(Link, u64, u64, times, names),
    Remove: st.builds(Remove, u64, times, names),
    Rename: st.builds(Rename, u64, u64, times, u32, names, names),
    Write: st.builds(Write, u64, u64, times, st.binary(max_size=200)),
    SetAttr: st.builds(SetAttr, u64, u8, u32, u32, u32, u64, times, times, times),
    SetXattr: st.builds(SetXattr, u64, times, names, st.none() | st.binary(max_size=100)),
    Name: st.builds(Name, u64, u64, names),
    Adopt: st.builds(
        Adopt,
        oids,
        times,
        st.lists(st.builds(AdoptEntry, u64, names, u32, oids, u64, u64), max_size=4).map(tuple),
    ),
    Committed: st.builds(Committed, u64, oids, oids, oids),
    Synced: st.builds(Synced, u64),
}
records = st.one_of(*RECORDS.values())


def framed(record: Record) -> bytes:
    return b"".join(encode(record))


def frame_of(kind: int, body: bytes) -> bytes:
    """A frame whose length and checksum are right, whatever is in it."""
    return FRAME.pack(1 + len(body), crc32(body, crc32(bytes((kind,)))), kind) + body


@given(records)
def test_what_was_encoded_is_decoded(record: Record) -> None:
    data = framed(record)
    found, end = decode(memoryview(data), 0)
    assert found == record
    assert type(found) is type(record)
    assert end == len(data)


@given(st.lists(records, max_size=6), st.binary(max_size=20))
def test_records_follow_each_other_without_a_gap(several: list[Record], before: bytes) -> None:
    data = memoryview(before + b"".join(map(framed, several)))
    at = len(before)
    for record in several:
        found, at = decode(data, at)
        assert found == record
    assert at == len(data)


@given(RECORDS[Write])
def test_the_data_of_a_write_lies_at_a_fixed_distance_and_is_not_copied(record: Write) -> None:
    data = framed(record)
    assert data[WRITE_DATA:] == record.data
    buffer = memoryview(data)
    found, _ = decode(buffer, 0)
    assert isinstance(found, Write)
    assert isinstance(found.data, memoryview)
    assert found.data.obj is buffer.obj
    assert encode(record)[-1] is record.data


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_record_cut_anywhere_is_bad(kind: type) -> None:
    @settings(max_examples=8)
    @given(RECORDS[kind])
    def check(record: Record) -> None:
        data = framed(record)
        for end in range(len(data)):
            with pytest.raises(BadRecord):
                decode(memoryview(data)[:end], 0)

    check()


@given(records, st.data())
def test_any_flipped_bit_is_noticed(record: Record, data: st.DataObject) -> None:
    whole = bytearray(framed(record))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadRecord):
        decode(memoryview(bytes(whole)), 0)


@settings(max_examples=500)
@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=120))
def test_a_body_of_any_bytes_decodes_or_is_bad(kind: int, body: bytes) -> None:
    """The checksum is right, so only the decoder stands between these bytes and the tree."""
    data = frame_of(kind, body)
    try:
        record, end = decode(memoryview(data), 0)
    except BadRecord:
        return
    assert type(record) in RECORDS
    assert end == len(data)


@given(st.binary(max_size=200), st.integers(0, 220))
def test_any_bytes_at_any_place_decode_or_are_bad(data: bytes, at: int) -> None:
    with pytest.raises(BadRecord):
        decode(memoryview(data), at)


def test_a_kind_from_the_future_is_bad() -> None:
    for kind in set(range(256)) - KINDS:
        with pytest.raises(NewerFormat, match="a newer caiafs wrote it"):
            decode(memoryview(frame_of(kind, b"anything")), 0)


@pytest.mark.parametrize("length", [0, MAX_BODY + 1, 2**32 - 1])
def test_a_length_out_of_range_is_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(BadRecord, match="range"):
        decode(memoryview(FRAME.pack(length, 0, 1) + bytes(100)), 0)


def test_a_count_that_promises_more_than_there_is_ends_at_once() -> None:
    body = pack("<20sqI", bytes(20), 0, 2**32 - 1)
    with pytest.raises(BadRecord):
        decode(memoryview(frame_of(9, body)), 0)


def test_a_field_that_runs_over_its_record_is_bad() -> None:
    record = Rename(1, 1, 0, 0, b"name", b"new")
    body = bytearray(framed(record)[FRAME_SIZE:])
    body[28:30] = pack("<H", 200)  # the length of the old name
    with pytest.raises(BadRecord, match="runs over"):
        decode(memoryview(frame_of(4, bytes(body))), 0)


def test_an_absent_xattr_is_not_an_empty_one() -> None:
    for value in (None, b""):
        found, _ = decode(memoryview(framed(SetXattr(2, 0, b"user.a", value))), 0)
        assert isinstance(found, SetXattr)
        assert found.value == value
