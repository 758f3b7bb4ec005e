"""Reading a damaged store: objects, packs and indexes; damage is named, and never read as content."""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from pathlib import Path

import pytest
from test_store_support import MIB, git, new_store, put_loose, versions, write

from caiafs.errors import ObjectCorrupt, ObjectMissing
from caiafs.store import BLOB, Store
from caiafs.store.pack import index_v2

GOOD = zlib.compress(b"blob 1000\0" + b"x" * 1000)
DAMAGE = {
    "wrong content": zlib.compress(b"blob 1000\0" + b"y" * 1000),
    "cut off": zlib.compress(b"blob 1000\0" + os.urandom(1000))[:600],
    "too short": zlib.compress(b"blob 1001\0" + b"x" * 1000),
    "too long": zlib.compress(b"blob 999\0" + b"x" * 1000),
    "no zlib": b"garbage" * 30,
    "bad checksum": GOOD[:-4] + b"abcd",
    "empty": b"",
    "no header": zlib.compress(b"x" * 1000),
    "unknown kind": zlib.compress(b"blub 1000\0" + b"x" * 1000),
    "bomb": zlib.compress(b"blob 1000\0" + b"x" * 50 * MIB),
}


@pytest.mark.parametrize("raw", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_loose_object_is_reported_by_name(tmp_path: Path, raw: bytes) -> None:
    store = new_store(tmp_path)
    oid = hashlib.sha1(b"blob 1000\0" + b"x" * 1000).digest()
    put_loose(store, oid, GOOD)
    assert store.blob(oid) == b"x" * 1000
    put_loose(store, oid, raw)
    with pytest.raises(ObjectCorrupt, match=oid.hex()):
        store.blob(oid)
    with pytest.raises(ObjectCorrupt, match=oid.hex()):
        list(store.stream_blob(oid))
    with pytest.raises(ObjectCorrupt, match=oid.hex()):
        store.open_blob(oid, str(tmp_path)).read(0, 2000)


def test_damage_anywhere_in_a_pack_is_never_read_as_content(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 4, size=60)
    git(store.git_dir, "repack", "-adfq")
    (pack,) = Path(store.git_dir, "objects/pack").glob("*.pack")
    pack.chmod(0o644)
    good = pack.read_bytes()
    rng = random.Random(2)
    failures = 0
    for _ in range(150):
        at = rng.randrange(12, len(good) - 20)
        pack.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        damaged = Store.open(store.git_dir)
        for oid, data in contents.items():
            try:
                assert damaged.blob(oid) == data
                assert b"".join(damaged.stream_blob(oid)) == data
                damaged.blob_size(oid)
            except (ObjectCorrupt, ObjectMissing):
                failures += 1
        damaged.close()
    assert failures > 100


def test_a_damaged_copy_is_passed_over_for_a_good_one(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    data = b"twice " * 1000
    (oid,) = write(store, [(BLOB, data)])
    (first,) = Path(store.git_dir, "objects/pack").glob("*.pack")
    write(store, [(BLOB, data), (BLOB, b"other")])
    first.chmod(0o644)
    first.write_bytes(first.read_bytes()[:30] + b"damage" + first.read_bytes()[36:])
    for _ in range(5):
        assert Store.open(store.git_dir).blob(oid) == data
    for path in Path(store.git_dir, "objects/pack").glob("*.pack"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:30] + b"damage" + path.read_bytes()[36:])
    with pytest.raises(ObjectCorrupt, match=oid.hex()):
        Store.open(store.git_dir).blob(oid)
    put_loose(store, oid, zlib.compress(b"blob %d\0" % len(data) + data))
    assert Store.open(store.git_dir).blob(oid) == data


@pytest.mark.parametrize("length", [0, 5, 600, 1070, -30])
def test_a_damaged_index_does_not_hide_other_packs(tmp_path: Path, length: int) -> None:
    store = new_store(tmp_path)
    (lost,) = write(store, [(BLOB, b"in the damaged one")])
    (index,) = Path(store.git_dir, "objects/pack").glob("*.idx")
    (found,) = write(store, [(BLOB, b"in the other one")])
    index.chmod(0o644)
    index.write_bytes(index.read_bytes()[:length])
    store = Store.open(store.git_dir)
    assert store.blob(found) == b"in the other one"
    with pytest.raises(ObjectMissing, match="damaged"):
        store.blob(lost)


def test_a_damaged_multi_pack_index_is_ignored(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 3)
    git(store.git_dir, "multi-pack-index", "write")
    midx = Path(store.git_dir, "objects/pack/multi-pack-index")
    midx.chmod(0o644)
    midx.write_bytes(midx.read_bytes()[:700])
    store = Store.open(store.git_dir)
    for oid, data in contents.items():
        assert store.blob(oid) == data


def test_a_multi_pack_index_that_names_a_removed_pack_is_ignored(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 3)
    git(store.git_dir, "multi-pack-index", "write")
    midx = Path(store.git_dir, "objects/pack/multi-pack-index")
    old = midx.read_bytes()
    git(store.git_dir, "repack", "-adq")
    midx.write_bytes(old)
    store = Store.open(store.git_dir)
    for oid, data in contents.items():
        assert store.blob(oid) == data


def test_a_delta_that_is_its_own_base_ends(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid = hashlib.sha1(b"blob 1\0x").digest()
    delta = zlib.compress(b"\1\1\1x")
    body = b"PACK\0\0\0\2\0\0\0\1" + bytes([7 << 4 | 4]) + oid + delta
    checksum = hashlib.sha1(body).digest()
    base = Path(store.git_dir, "objects/pack", "pack-" + checksum.hex())
    base.with_suffix(".pack").write_bytes(body + checksum)
    base.with_suffix(".idx").write_bytes(index_v2({oid: (12, 0)}, checksum))
    with pytest.raises(ObjectCorrupt, match="itself"):
        store.blob(oid)
    with pytest.raises(ObjectCorrupt, match="itself"):
        store.open_blob(oid, str(tmp_path))
