"""Small objects that say, or become, enormous ones: refused or streamed, never inflated into memory."""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_store_support import MIB, new_store, tmp_of

from caiafs.errors import ObjectCorrupt
from caiafs.store import Store
from caiafs.store.pack import index_v2


@contextmanager
def little_memory(limit: int = 40 * MIB) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def zeros(size: int) -> bytes:
    """So many zeros, deflated."""
    deflater = zlib.compressobj(1)
    block = bytes(MIB)
    return b"".join([deflater.compress(block) for _ in range(size // MIB)]) + deflater.flush()


def loose(store: Store, kind: bytes, size: int, deflated: bytes | None = None) -> bytes:
    """A loose object of *size* zeros, or one that only says so; its name is right where it is cheap."""
    head = b"%b %d\0" % (kind, size)
    digest = hashlib.sha1(head)
    if deflated is None:
        deflater = zlib.compressobj(1)
        pieces = [deflater.compress(head)]
        for _ in range(size // MIB):
            digest.update(bytes(MIB))
            pieces.append(deflater.compress(bytes(MIB)))
        deflated = b"".join(pieces) + deflater.flush()
    name = digest.hexdigest()
    path = Path(store.git_dir, "objects", name[:2], name[2:])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(deflated)
    return digest.digest()


def pack(store: Store, *entries: tuple[bytes, bytes]) -> None:
    """A pack of (name, raw entry), with the index that git would give it."""
    data = b"PACK" + struct.pack(">II", 2, len(entries))
    places = {}
    for oid, raw in entries:
        places[oid] = (len(data), zlib.crc32(raw))
        data += raw
    checksum = hashlib.sha1(data).digest()
    base = Path(store.git_dir, "objects", "pack", f"pack-{checksum.hex()}")
    base.with_suffix(".pack").write_bytes(data + checksum)
    base.with_suffix(".idx").write_bytes(index_v2(places, checksum))
    store.refresh()


def head(kind: int, size: int) -> bytes:
    byte, size = kind << 4 | size & 15, size >> 4
    out = b""
    while size:
        out, byte, size = out + bytes((byte | 0x80,)), size & 0x7F, size >> 7
    return out + bytes((byte,))


def varint(size: int) -> bytes:
    out = b""
    while size > 0x7F:
        out, size = out + bytes((size & 0x7F | 0x80,)), size >> 7
    return out + bytes((size,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


@pytest.mark.parametrize("kind", [b"tree", b"commit", b"blob"])
def test_a_loose_object_larger_than_memory_is_refused_by_its_header(store: Store, kind: bytes) -> None:
    oid = loose(store, kind, 1 << 40, zlib.compress(b"%b %d\0" % (kind, 1 << 40) + bytes(1000)))
    read = {b"tree": store.tree, b"commit": store.commit, b"blob": store.blob}[kind]
    with little_memory(), pytest.raises(ObjectCorrupt, match="says that it is"):
        read(oid)


def test_a_tree_that_inflates_to_half_a_gigabyte_is_refused(store: Store) -> None:
    oid = loose(store, b"tree", 512 * MIB)
    with little_memory(), pytest.raises(ObjectCorrupt, match="says that it is"):
        store.tree(oid)


@pytest.mark.parametrize("said", [1, 5, 1000])
def test_an_object_that_inflates_to_more_than_it_says_is_not_inflated_further(
    store: Store, said: int
) -> None:
    raw = zlib.compress(b"blob %d\0" % said + bytes(64 * MIB))
    oid = loose(store, b"blob", said, raw)
    pack(store, (b"\x22" * 20, head(3, said) + zlib.compress(bytes(64 * MIB))))
    with little_memory(10 * MIB):
        for name in (oid, b"\x22" * 20):
            with pytest.raises(ObjectCorrupt):
                store.blob(name)
            with pytest.raises(ObjectCorrupt):
                list(store.stream_blob(name, tmp_of(store)))


def test_a_pack_entry_that_says_it_is_enormous_is_refused(store: Store) -> None:
    pack(store, (b"\x22" * 20, head(2, 1 << 50) + zlib.compress(b"")))
    with little_memory(), pytest.raises(ObjectCorrupt, match="says that it is"):
        store.tree(b"\x22" * 20)


def test_a_blob_that_is_as_large_as_it_says_streams_in_little_memory(store: Store) -> None:
    oid = loose(store, b"blob", 256 * MIB)
    with little_memory():
        assert store.blob_size(oid) == 256 * MIB
        assert sum(map(len, store.stream_blob(oid, tmp_of(store)))) == 256 * MIB


def test_a_size_that_no_file_can_have_counts_as_damage(store: Store) -> None:
    pack(store, (b"\x22" * 20, head(3, 1 << 64) + zlib.compress(b"")))
    assert store.blob_sizes([b"\x22" * 20]) == [-1]


def ref_delta(base: bytes, delta: bytes) -> bytes:
    return head(7, len(delta)) + base + zlib.compress(delta)


def test_deltas_that_lead_to_each_other_are_damage_at_once(store: Store) -> None:
    delta = varint(4) + varint(4) + b"\x90\x04" + bytes(MIB)
    one, two = b"\x11" * 20, b"\x22" * 20
    pack(store, (one, ref_delta(two, delta)), (two, ref_delta(one, delta)))
    with little_memory():
        with pytest.raises(ObjectCorrupt, match="delta of itself"):
            store.blob(one)
        with pytest.raises(ObjectCorrupt, match="delta of itself"):
            list(store.stream_blob(two, tmp_of(store)))


def test_a_delta_that_multiplies_its_base_is_refused_before_it_is_applied(store: Store) -> None:
    """Seven bytes copy 16 MiB: a kilobyte becomes gigabytes."""
    base = hashlib.sha1(b"blob %d\0" % MIB + bytes(MIB)).digest()
    copies = 4096
    delta = varint(MIB) + varint(copies * 0xFFFFF) + b"\xf0\xff\xff\x0f" * copies
    pack(store, (base, head(3, MIB) + zlib.compress(bytes(MIB))), (b"\x22" * 20, ref_delta(base, delta)))
    with little_memory(), pytest.raises(ObjectCorrupt, match="says that it is"):
        store.blob(b"\x22" * 20)


def test_a_chain_of_more_deltas_than_git_makes_is_refused(store: Store) -> None:
    names = [n.to_bytes(20, "big") for n in range(6000)]
    delta = varint(1) + varint(1) + b"\x01x"
    entries = [(name, ref_delta(names[n - 1], delta)) for n, name in enumerate(names) if n]
    pack(store, (names[0], head(3, 1) + zlib.compress(b"x")), *entries)
    with little_memory(), pytest.raises(ObjectCorrupt, match="5,000 deltas"):
        store.blob(names[-1])


def test_a_spool_leaves_room_on_its_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    oid = loose(store, b"blob", 256 * MIB)
    real = os.fstatvfs

    def nearly_full(fd: int) -> os.statvfs_result:
        found = list(real(fd))
        found[4] = found[2] // 16 + (64 * MIB - os.fstat(fd).st_size) // found[1]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    reader = store.open_blob(oid, tmp_of(store))
    assert reader.read(0, 10) == bytes(10)
    with little_memory():
        assert reader.read(255 * MIB, 10) == bytes(10)
    assert reader.spooled <= 80 * MIB
    monkeypatch.undo()
    assert reader.read(255 * MIB, 10) == bytes(10)
    reader.close()
