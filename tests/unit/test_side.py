"""Side records: every attribute comes back, buckets stay small, damage is said to be damage."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiafs.records import NO_OID, BadRecord, NewerFormat
from caiafs.records.side import (
    BUCKET_STEPS,
    Meta,
    SideRecord,
    bucket_count,
    bucket_name,
    decode_meta,
    decode_records,
    encode_meta,
    encode_record,
    join_records,
    parse_side_message,
    side_message,
    side_ref,
    split_records,
    vouch,
    vouches,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
names = st.binary(min_size=1, max_size=255)
oids = st.binary(min_size=20, max_size=20)
xattrs = st.lists(st.tuples(names, st.binary(max_size=50)), max_size=4).map(tuple)
side_records = st.builds(
    SideRecord,
    names, u64, u32, u32, u32, u32, u64, times, times, times, u64, u32, oids, times, xattrs,
    st.binary(max_size=100),
)  # fmt: skip
metas = st.builds(
    Meta, side_records, u64, times, st.lists(st.tuples(u64, st.binary(max_size=40)), max_size=5).map(tuple)
)


@given(st.lists(side_records, max_size=5, unique_by=lambda record: record.name))
def test_a_bucket_gives_back_what_was_put_in(records: list[SideRecord]) -> None:
    bucket = join_records({record.name: encode_record(record) for record in records})
    assert decode_records(bucket) == sorted(records, key=lambda record: record.name)
    split = split_records(bucket)
    assert split == {record.name: encode_record(record) for record in records}
    assert join_records(split) == bucket


@given(metas)
def test_meta_gives_back_what_was_put_in(meta: Meta) -> None:
    assert decode_meta(encode_meta(meta)) == meta


@settings(max_examples=20)
@given(side_records)
def test_a_record_cut_anywhere_is_bad(record: SideRecord) -> None:
    data = encode_record(record)
    for end in range(1, len(data)):
        with pytest.raises(BadRecord):
            decode_records(data[:end])
        with pytest.raises(BadRecord):
            split_records(data[:end])


@settings(max_examples=20)
@given(metas)
def test_meta_cut_anywhere_is_bad(meta: Meta) -> None:
    data = encode_meta(meta)
    for end in range(len(data)):
        with pytest.raises(BadRecord):
            decode_meta(data[:end])


@settings(max_examples=300)
@given(st.lists(side_records, min_size=1, max_size=3), st.data())
def test_damaged_bytes_are_bad_or_records(records: list[SideRecord], data: st.DataObject) -> None:
    """There is no checksum here, git has one; so damage may decode, but does nothing worse."""
    whole = bytearray(b"".join(map(encode_record, records)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for read in (decode_records, split_records):
        try:
            read(bytes(whole))
        except BadRecord:
            pass


@settings(max_examples=300)
@given(metas, st.data())
def test_a_damaged_meta_is_bad_or_a_meta(meta: Meta, data: st.DataObject) -> None:
    whole = bytearray(encode_meta(meta))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_meta(bytes(whole))
    except BadRecord:
        pass


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_bad_or_records(data: bytes) -> None:
    for read in (decode_records, split_records, decode_meta):
        try:
            read(data)
        except BadRecord:
            pass


@given(st.binary(max_size=200))
def test_any_message_is_bad_or_a_side_message(message: bytes) -> None:
    for text in (message, b"Caiafs-Commit: " + message, side_message(None, b"", 0) + message):
        try:
            parse_side_message(text)
        except BadRecord:
            pass


def test_a_format_from_the_future_is_said_to_be_one() -> None:
    data = encode_record(SideRecord(b"a", 2, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, NO_OID))
    with pytest.raises(NewerFormat, match="a newer caiafs wrote it"):
        decode_records(b"\x07" + data[1:])
    meta = encode_meta(Meta(decode_records(data)[0], 3, 0))
    with pytest.raises(NewerFormat, match="a newer caiafs wrote it"):
        decode_meta(b"\x07" + meta[1:])


def test_a_table_of_links_that_promises_more_than_there_is_ends_at_once() -> None:
    root = SideRecord(b"", 1, 0o40755, 0, 0, 2, 0, 0, 0, 0, 0, 0o40000, NO_OID)
    data = pack("<BQqI", 1, 3, 0, 2**32 - 1) + encode_record(root)
    with pytest.raises(BadRecord):
        decode_meta(data)


@given(st.none() | oids.filter(lambda oid: oid != NO_OID), st.binary(min_size=16, max_size=16), u64)
def test_a_side_message_names_commit_journal_and_position(
    commit: bytes | None, journal: bytes, position: int
) -> None:
    assert parse_side_message(side_message(commit, journal, position)) == (commit, journal, position)


@given(st.none() | oids.filter(lambda oid: oid != NO_OID), st.binary(min_size=16, max_size=16), u64)
def test_only_who_knows_the_journal_can_vouch_for_a_position(
    commit: bytes | None, journal: bytes, position: int
) -> None:
    said = vouch(journal, commit, position)
    assert vouches(said, journal, commit, position)
    assert said != journal
    assert not vouches(said, journal, commit, position ^ 1)
    assert not vouches(said, journal, b"x" * 20, position)
    assert not vouches(said, bytes(b ^ 1 for b in journal), commit, position)


def test_the_side_ref_is_beside_the_branch() -> None:
    assert side_ref(b"topic/a") == b"refs/caiafs/topic/a"


@pytest.mark.parametrize(("limit", "count"), BUCKET_STEPS)
def test_buckets_grow_at_a_limit_and_shrink_only_at_half_of_it(limit: int, count: int) -> None:
    assert bucket_count(limit) == count
    more = bucket_count(limit + 1)
    assert more == count * 16
    assert bucket_count(limit, more) == more
    assert bucket_count(limit // 2 + 1, more) == more
    assert bucket_count(limit // 2, more) == count
    assert bucket_count(limit + 1, count) == more


def test_a_directory_that_was_emptied_has_one_bucket_again() -> None:
    assert bucket_count(0, 4096) == 1
    assert bucket_count(10**6) == 4096


@given(names, st.sampled_from([1, 16, 256, 4096]))
def test_every_name_has_its_bucket(name: bytes, count: int) -> None:
    bucket = bucket_name(name, count)
    assert bucket[:1] == b"@"
    assert len(bucket) == {1: 1, 16: 2, 256: 3, 4096: 4}[count]
    assert int(bucket[1:] or b"0", 16) < count


def test_names_spread_over_the_buckets() -> None:
    counts: dict[bytes, int] = {}
    for number in range(4096):
        bucket = bucket_name(b"file-%d.txt" % number, 256)
        counts[bucket] = counts.get(bucket, 0) + 1
    assert len(counts) == 256
    assert max(counts.values()) < 48
