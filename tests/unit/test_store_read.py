"""Reading: every form git gives an object, damage, blobs larger than memory, and repacks meanwhile."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import shutil
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from test_store_support import commit_files, fsck, git, new_store, oid_of, tmp_of, write

from caiafs.errors import ObjectCorrupt, ObjectMissing, StoreError
from caiafs.store import (
    BLOB,
    EMPTY_TREE,
    REGULAR,
    TREE,
    BlobReader,
    Oid,
    Store,
    TreeEntry,
    blobs,
    encode_tree,
)
from caiafs.store.pack import index_v2

MIB = 1 << 20


def lines(count: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return b"".join(b"line %d %d\n" % (n, rng.getrandbits(40)) for n in range(count))


def versions(store: Store, count: int = 12, size: int = 3000) -> dict[Oid, bytes]:
    """Blobs that git stores as deltas of each other once it repacks; referenced by main."""
    contents: dict[Oid, bytes] = {}
    text = lines(size)
    tip = store.read_ref(b"refs/heads/main")
    for n in range(count):
        at = n * len(text) // count
        text = text[:at] + b"<change %d>" % n + lines(5, n) + text[at + 37 :]
        files = {b"big.txt": text, b"small": b"%d" % n, b"empty": b""}
        tip = commit_files(store, files, (tip,) if tip else (), b"Version %d" % n)
        contents |= {e.oid: files[e.name] for e in store.tree(store.commit(tip).tree)}
    return contents


def to_loose(store: Store) -> None:
    folder = Path(store.git_dir, "objects/pack")
    found = [path.read_bytes() for path in folder.glob("*.pack")]
    for path in folder.iterdir():
        path.unlink()
    for data in found:
        git(store.git_dir, "unpack-objects", "-q", stdin=data)


def to_index_v1(store: Store) -> None:
    git(store.git_dir, "repack", "-adfq")
    for pack in Path(store.git_dir, "objects/pack").glob("*.pack"):
        index = pack.with_suffix(".idx")
        index.unlink()
        git(store.git_dir, "index-pack", "--index-version=1", "-o", str(index), str(pack))
        assert index.read_bytes()[:4] != b"\377tOc"


def to_ref_deltas(store: Store) -> None:
    """REF_DELTA entries, which git itself writes for old clients."""
    git(store.git_dir, "repack", "-adfq")
    names = git(store.git_dir, "rev-list", "--objects", "--all").splitlines()
    revisions = b"".join(line.split(b" ")[0] + b"\n" for line in names)
    data = git(store.git_dir, "pack-objects", "--no-reuse-delta", "--stdout", "--window=20", stdin=revisions)
    for path in Path(store.git_dir, "objects/pack").iterdir():
        path.unlink()
    git(store.git_dir, "index-pack", "--stdin", stdin=data)


def to_midx(store: Store) -> None:
    git(store.git_dir, "multi-pack-index", "write")
    versions(store, 2)


def to_gc(store: Store) -> None:
    git(store.git_dir, "gc", "-q")


def to_geometric(store: Store) -> None:
    git(store.git_dir, "repack", "-d", "--geometric=2", "--write-midx", "-q")


def as_written(store: Store) -> None:
    pass


FORMS = [as_written, to_loose, to_gc, to_index_v1, to_ref_deltas, to_midx, to_geometric]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reopened", [True, False])
def test_every_form_of_storage_reads_the_same(
    tmp_path: Path, form: Callable[[Store], None], reopened: bool
) -> None:
    store = new_store(tmp_path)
    contents = versions(store)
    form(store)
    if reopened:
        store.close()
        store = Store.open(store.git_dir)
    for oid, data in contents.items():
        assert store.blob(oid) == data
        assert store.blob_size(oid) == len(data)
        assert store.has(oid)
        assert b"".join(store.stream_blob(oid)) == data
        reader = store.open_blob(oid, str(tmp_path))
        assert reader.size == len(data)
        assert reader.read(100, 50) == data[100:150]
        assert reader.read(0, len(data) + 10) == data
        reader.close()
    assert store.blob_sizes(contents) == [len(data) for data in contents.values()]
    assert sorted(os.listdir(tmp_path)) == ["repo.git"]


def test_ref_deltas_were_really_tested(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    versions(store)
    to_ref_deltas(store)
    (pack,) = Path(store.git_dir, "objects/pack").glob("*.pack")
    oids = git(store.git_dir, "verify-pack", "-v", str(pack)).decode()
    assert "chain length" in oids
    assert any(b[0] >> 4 & 7 == 7 for b in entry_starts(store, pack))


def entry_starts(store: Store, pack: Path) -> list[bytes]:
    data = pack.read_bytes()
    listed = git(store.git_dir, "show-index", stdin=pack.with_suffix(".idx").read_bytes()).split(b"\n")
    return [data[int(line.split()[0]) :][:1] for line in listed if line]


@pytest.mark.parametrize("packed", [True, False])
def test_alternates_are_read_through(tmp_path: Path, packed: bool) -> None:
    origin = new_store(tmp_path, "origin.git")
    contents = versions(origin, 3)
    if not packed:
        to_loose(origin)
    git(tmp_path, "clone", "-q", "--shared", "--bare", "origin.git", "middle.git")
    git(tmp_path, "clone", "-q", "--shared", "--bare", "middle.git", "clone.git")
    os.unlink(tmp_path / "clone.git/objects/info/alternates")
    (tmp_path / "clone.git/objects/info/alternates").write_text(
        "# comment\n\n../../middle.git/objects\n/nonexistent\n"
    )
    store = Store.open(str(tmp_path / "clone.git"))
    for oid, data in contents.items():
        assert store.blob(oid) == data
        assert store.blob_size(oid) == len(data)
        assert b"".join(store.stream_blob(oid)) == data
    assert store.pack_count() == 0


def test_an_alternate_with_an_unusual_name_is_found(tmp_path: Path) -> None:
    origin = new_store(tmp_path, 'or"i\ngin.git')
    (oid,) = write(origin, [(BLOB, b"there")])
    store = new_store(tmp_path)
    quoted = '"' + origin.git_dir.replace('"', '\\"').replace("\n", "\\n") + '/objects"\n'
    Path(store.git_dir, "objects/info/alternates").write_text(quoted)
    assert git(store.git_dir, "cat-file", "blob", oid.hex()) == b"there"
    assert store.blob(oid) == b"there"


def test_objects_that_another_process_adds_are_seen_at_once(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    missing = hashlib.sha1(b"blob 6\0number").digest()
    assert not store.has(missing)
    name = git(store.git_dir, "hash-object", "-w", "--stdin", stdin=b"number").decode().strip()
    assert store.blob(bytes.fromhex(name)) == b"number"
    other = Store.open(store.git_dir)
    for n in range(30):
        (oid,) = write(other, [(BLOB, b"packed %d" % n)])
        assert store.has(oid)
        assert store.blob(oid) == b"packed %d" % n


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid = b"\x12" * 20
    for call in (store.blob, store.tree, store.commit, store.blob_size, lambda o: list(store.stream_blob(o))):
        with pytest.raises(ObjectMissing, match="12" * 20):
            call(oid)
    with pytest.raises(ObjectMissing):
        store.open_blob(oid, str(tmp_path))
    (there,) = write(store, [(BLOB, b"12345")])
    assert store.blob_sizes([oid, there]) == [-1, 5]


def test_the_empty_tree_is_readable_without_an_object_but_not_said_to_be_there(tmp_path: Path) -> None:
    """git reads it, too, but its fsck reports it missing: a worker has to write it."""
    store = new_store(tmp_path)
    assert not store.has(EMPTY_TREE)
    assert store.tree(EMPTY_TREE) == []
    assert store.tree_bytes(EMPTY_TREE) == b""


def test_an_object_of_another_kind_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    commit = commit_files(store, {b"a": b"x"})
    tree = store.commit(commit).tree
    (entry,) = store.tree(tree)
    for call, oid in (
        (store.blob, tree),
        (store.blob_size, commit),
        (store.tree, entry.oid),
        (store.commit, tree),
        (lambda o: list(store.stream_blob(o)), commit),
    ):
        with pytest.raises(ObjectCorrupt, match=oid.hex()):
            call(oid)
    git(store.git_dir, "tag", "-a", "-m", "tag", "v1", commit.hex())
    with pytest.raises(ObjectCorrupt, match="is a tag where a commit belongs"):
        store.commit(oid_of(store.git_dir, "v1"))


# --- damage ---------------------------------------------------------------------------------------


def loose_path(store: Store, oid: Oid) -> Path:
    return Path(store.git_dir, "objects", oid.hex()[:2], oid.hex()[2:])


def put_loose(store: Store, oid: Oid, raw: bytes) -> None:
    path = loose_path(store, oid)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)


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


# --- large blobs ----------------------------------------------------------------------------------


def big_blob(store: Store, size: int = 40 * MIB) -> tuple[Oid, bytes]:
    rng = random.Random(9)
    data = b"".join(rng.randbytes(MIB // 2) + b"text " * (MIB // 10) for _ in range(size // MIB))
    with store.pack_writer(tmp_of(store)) as writer:
        oid = writer.add_stream(len(data), [data])
        kept = writer.finish()
    assert kept is not None
    kept.release()
    return oid, data


def test_a_reader_inflates_only_as_far_as_it_was_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid, data = big_blob(store)
    reader = store.open_blob(oid, str(tmp_path))
    assert reader.spooled == 0
    assert reader.read(0, 4096) == data[:4096]
    assert reader.spooled <= 256 * 1024
    assert reader.read(10 * MIB, 100) == data[10 * MIB : 10 * MIB + 100]
    assert reader.spooled <= 10 * MIB + 100 + 256 * 1024
    assert reader.read(5 * MIB - 3, 10) == data[5 * MIB - 3 : 5 * MIB + 7]
    assert reader.read(len(data) - 5, 100) == data[-5:]
    assert reader.read(len(data), 100) == b""
    assert reader.read(len(data) + 1, 100) == b""
    assert reader.spooled == reader.size == len(data)
    reader.close()
    reader.close()
    with pytest.raises(StoreError):
        reader.read(0, 1)


def test_large_blobs_take_little_memory(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid, data = big_blob(store)
    digest = hashlib.sha1(data).digest()
    del data
    gc.collect()
    tracemalloc.start()
    seen = hashlib.sha1()
    for piece in store.stream_blob(oid):
        seen.update(piece)
    reader = store.open_blob(oid, str(tmp_path))
    for offset in range(0, reader.size, 100_000):
        assert reader.read(offset, 10)
    with store.pack_writer(tmp_of(store)) as writer:
        assert writer.add_stream(reader.size, store.stream_blob(oid)) == oid
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.digest() == digest
    assert peak < 24 * MIB  # the writer's buffer is 8 MiB of that


def test_large_deltas_are_applied_from_files(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rng = random.Random(1)
    base = rng.randbytes(6 * MIB)
    changed = [base]
    for n in range(4):
        text = changed[-1]
        at = n * MIB
        changed.append(
            text[:at]
            + b"insert %d" % n * 50
            + text[at + 1000 : 5 * MIB]
            + rng.randbytes(300)
            + text[5 * MIB :]
        )
    tip: Oid | None = None
    for n, text in enumerate(changed):
        tip = commit_files(store, {b"big": text}, (tip,) if tip else (), b"%d" % n, time=1700000000 + n)
    git(store.git_dir, "repack", "-adfq", "--depth=10", "--window=10")
    assert sum(path.stat().st_size for path in Path(store.git_dir, "objects/pack").glob("*.pack")) < 8 * MIB
    oids = [hashlib.sha1(b"blob %d\0" % len(text) + text).digest() for text in changed]
    tracemalloc.start()
    for oid, text in zip(oids, changed, strict=True):
        assert store.blob_size(oid) == len(text)
        reader = store.open_blob(oid, str(tmp_path))
        for offset in range(0, len(text), MIB):
            assert reader.read(offset, 1000) == text[offset : offset + 1000]
        reader.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * MIB
    assert [b"".join(store.stream_blob(oid)) for oid in oids] == changed


def test_every_size_and_way_of_deflating_streams_right(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rng = random.Random(6)
    step = 256 * 1024
    sizes = [0, 1, 63, 65536, step - 8, step - 1, step, step + 1, 2 * step, 3 * step - 9]
    sizes += [rng.randrange(4 * step) for _ in range(30)]
    for n, size in enumerate(sizes):
        data = (rng.randbytes(size // 2) + b"abc" * size)[:size] if n % 3 else b"\0" * size
        head = b"blob %d\0" % size
        deflater = zlib.compressobj(n % 10, zlib.DEFLATED, 9 + n % 7)
        raw = deflater.compress(head)
        if n % 2:
            raw += deflater.flush(zlib.Z_FULL_FLUSH)
        raw += deflater.compress(data[: size // 3]) + deflater.flush(zlib.Z_SYNC_FLUSH)
        raw += deflater.compress(data[size // 3 :]) + deflater.flush()
        oid = hashlib.sha1(head + data).digest()
        put_loose(store, oid, raw)
        assert store.blob(oid) == data
        assert store.blob_size(oid) == size
        assert b"".join(store.stream_blob(oid)) == data
        reader = store.open_blob(oid, str(tmp_path))
        for offset in sorted(rng.randrange(size + 1) for _ in range(3)):
            assert reader.read(offset, 777) == data[offset : offset + 777]


def test_an_open_reader_goes_on_after_its_pack_is_gone(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid, data = big_blob(store)
    reader = store.open_blob(oid, str(tmp_path))
    stream = store.stream_blob(oid)
    first = next(stream)
    shutil.rmtree(f"{store.git_dir}/objects/pack")
    store.close()
    assert reader.read(0, reader.size) == data
    assert first + b"".join(stream) == data


def test_several_threads_share_a_reader(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oid, data = big_blob(store, 8 * MIB)
    reader = store.open_blob(oid, str(tmp_path))
    wrong: list[int] = []

    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            at = rng.randrange(len(data))
            if reader.read(at, 5000) != data[at : at + 5000]:
                wrong.append(at)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_full_disk_does_not_keep_a_large_blob_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk takes is there, the rest comes by way of memory: read on, back and forth, all at once."""
    store = new_store(tmp_path)
    monkeypatch.setattr(blobs, "_WINDOW", 300_000)
    oid, data = big_blob(store, 4 * MIB)
    reader = store.open_blob(oid, str(tmp_path))
    real = os.pwrite
    room = 1_000_000

    def pwrite(fd: int, piece: bytes, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, "no space left")
        return real(fd, piece[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    stretches = [(500_000, 10), (3 * MIB, 10), (900_000, 200_000), (2 * MIB, 10), (len(data) - 5, 10)]
    stretches += [(0, len(data)), (999_999, 2), (3 * MIB, 3), (1_200_000, MIB), (500, 10)]
    for offset, length in stretches * 2:
        assert reader.read(offset, length) == data[offset : offset + length], (offset, length)
    assert reader.spooled == room
    for offset in range(0, len(data), 100_000):
        assert reader.read(offset, 100_000) == data[offset : offset + 100_000]
        if offset > 2 * MIB:
            assert reader._window is not None
            assert sum(map(len, reader._window._pieces)) <= MIB
    monkeypatch.undo()
    assert reader.read(0, len(data)) == data
    reader.close()
    with pytest.raises(StoreError):
        reader.read(2 * MIB, 10)


def test_damage_is_told_where_the_disk_is_full_too(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    data = random.Random(1).randbytes(3 * MIB)
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).digest()
    put_loose(store, oid, zlib.compress(b"blob %d\0" % len(data) + data[:-1] + b"?", 1))
    reader = store.open_blob(oid, str(tmp_path / "absent"))
    assert reader.read(0, 100) == data[:100]
    for _ in range(2):
        with pytest.raises(ObjectCorrupt, match=oid.hex()):
            reader.read(len(data) - 100, 100)


def test_the_base_of_a_delta_is_in_memory_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    data = random.Random(1).randbytes(2 * MIB)
    git(store.git_dir, "config", "core.bigFileThreshold", "1g")
    for changed in (data, data[:MIB] + b"!" + data[MIB:]):
        oid = bytes.fromhex(
            git(store.git_dir, "hash-object", "-w", "--stdin", stdin=changed).decode().strip()
        )
        git(store.git_dir, "update-ref", f"refs/tags/t{len(changed)}", oid.hex())
    git(store.git_dir, "repack", "-adfq")
    contents = []
    for name in git(store.git_dir, "rev-parse", f"t{len(data)}", f"t{len(data) + 1}").decode().split():
        reader = store.open_blob(bytes.fromhex(name), str(tmp_path / "absent"))
        contents.append(reader.read(0, reader.size))
    assert contents == [data, data[:MIB] + b"!" + data[MIB:]]
    monkeypatch.setattr(blobs, "IN_MEMORY", MIB)
    spool = blobs.Spool(str(tmp_path / "absent"), MIB)
    spool.append(bytes(MIB))
    with pytest.raises(StoreError):
        spool.append(b"x")
    assert spool.read_at(MIB, 0) == bytes(MIB)


def test_damage_stays_reported_to_every_later_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    data = random.Random(1).randbytes(3 * MIB)
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).digest()
    put_loose(store, oid, zlib.compress(b"blob %d\0" % len(data) + data[:-1] + b"?", 1))
    reader = store.open_blob(oid, str(tmp_path))
    assert reader.read(0, 100) == data[:100]
    for _ in range(2):
        with pytest.raises(ObjectCorrupt, match=oid.hex()):
            reader.read(len(data) - 100, 100)
    with pytest.raises(ObjectCorrupt):
        reader.read(0, 100)


def test_a_spool_directory_without_nameless_files_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    oid, data = big_blob(store, 2 * MIB)
    monkeypatch.setattr(os, "O_TMPFILE", 0x40000000 | os.O_DIRECTORY)
    reader: BlobReader = store.open_blob(oid, str(tmp_path))
    assert reader.read(0, reader.size) == data
    assert os.listdir(tmp_path) == ["repo.git"]


def test_loose_objects_over_half_a_gigabyte_are_read(tmp_path: Path) -> None:
    """dulwich refuses them."""
    store = new_store(tmp_path)
    size = 520 * MIB
    piece = b"\0" * MIB
    digest = hashlib.sha1(b"blob %d\0" % size)
    deflater = zlib.compressobj(1)
    raw = deflater.compress(b"blob %d\0" % size)
    for _ in range(size // MIB):
        digest.update(piece)
        raw += deflater.compress(piece)
    put_loose(store, digest.digest(), raw + deflater.flush())
    assert store.blob_size(digest.digest()) == size
    assert sum(map(len, store.stream_blob(digest.digest()))) == size


# --- descriptors and concurrency ------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_do_not_grow_with_packs_and_reads(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oids = [write(store, [(BLOB, b"%d" % n)])[0] for n in range(150)]
    before = descriptors()
    for _ in range(2):
        for n, oid in enumerate(oids):
            assert store.blob(oid) == b"%d" % n
            store.open_blob(oid, str(tmp_path)).close()
    assert descriptors() - before <= 60
    to_loose(store)
    for n, oid in enumerate(oids):
        assert store.blob(oid) == b"%d" % n
    store.refresh()
    assert descriptors() - before <= 2
    store.close()
    with pytest.raises(StoreError):
        store.blob(oids[0])
    assert descriptors() <= before


def test_a_pack_that_is_gone_frees_its_space_soon(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 2)
    oid = next(iter(contents))
    store.blob(oid)
    git(store.git_dir, "repack", "-adq")
    store.refresh()
    links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [link for link in links if link.startswith(store.git_dir) and link.endswith("(deleted)")]
    assert store.blob(oid) == contents[oid]


def test_reads_go_on_while_git_repacks_in_a_loop(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 12, size=300)
    oids = list(contents)
    stop = threading.Event()
    errors: list[BaseException] = []
    reads = [0]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                oid = rng.choice(oids)
                way = rng.randrange(5)
                if way == 0:
                    assert b"".join(store.stream_blob(oid, str(tmp_path))) == contents[oid]
                elif way == 1:
                    reader = store.open_blob(oid, str(tmp_path))
                    assert reader.read(10, 100) == contents[oid][10:110]
                elif way == 2:
                    assert store.blob_sizes([oid]) == [len(contents[oid])]
                elif way == 3:
                    assert store.has(oid)
                else:
                    assert store.blob(oid) == contents[oid]
                tip = store.read_ref(b"refs/heads/main")
                assert tip is not None
                assert store.commit(tip).message.startswith(b"Version")
                reads[0] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    latest = time.monotonic() + 60
    rounds = 0
    while (rounds < 4 or reads[0] < 500) and time.monotonic() < latest and not errors:
        git(store.git_dir, "repack", "-adq")
        git(store.git_dir, "pack-refs", "--all")
        git(store.git_dir, "repack", "-Adq", "--unpack-unreachable=now")
        to_loose_carefully(store)
        git(store.git_dir, "repack", "-dq")
        git(store.git_dir, "multi-pack-index", "write")
        git(store.git_dir, "gc", "-q", "--prune=now")
        rounds += 1
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert rounds >= 4
    assert reads[0] >= 500
    assert fsck(store.git_dir) == ""


def to_loose_carefully(store: Store) -> None:
    """Explode every pack: the loose copies are there before the packs go."""
    folder = Path(store.git_dir, "objects/pack")
    found = sorted(folder.glob("*.pack"))
    aside = Path(store.git_dir, "aside")
    git(store.git_dir, "init", "-q", "--bare", str(aside))
    for pack in found:
        git(aside, "unpack-objects", "-q", stdin=pack.read_bytes())
    for path in (aside / "objects").glob("??/*"):
        target = Path(store.git_dir, "objects", path.parent.name, path.name)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    shutil.rmtree(aside)
    for path in [folder / "multi-pack-index", *folder.glob("*.idx"), *found, *folder.glob("*.[rb]*")]:
        path.unlink(missing_ok=True)


# --- counting without parsing ---------------------------------------------------------------------


def test_subdirectories_are_counted_as_a_listing_shows_them(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    blob = write(store, [(BLOB, b"x")])[0]
    inner = write(store, [(TREE, encode_tree([TreeEntry(b"f", REGULAR, blob)]))])[0]
    flat = write(store, [(TREE, encode_tree([TreeEntry(b"40000 not", REGULAR, blob)]))])[0]
    mixed = [
        TreeEntry(b"a", 0o040000, inner),
        TreeEntry(b"b", REGULAR, blob),
        TreeEntry(b"c", 0o040000, flat),
    ]
    outer = write(store, [(TREE, encode_tree(mixed))])[0]
    assert [store.subdirectories(oid) for oid in (inner, flat, outer)] == [0, 0, 2]
    with pytest.raises(ObjectCorrupt):
        store.subdirectories(blob)
    store.close()


def test_equal_files_of_a_directory_are_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 equal files as one loose blob cost as many open(2) as files."""
    store = new_store(tmp_path)
    (blob,) = write(store, [(BLOB, b"same")])
    asked = []
    real = store._odb.blob_size
    monkeypatch.setattr(store._odb, "blob_size", lambda oid: asked.append(oid) or real(oid))
    assert store.blob_sizes([blob, b"\x99" * 20] * 1000) == [4, -1] * 1000
    assert len(asked) == 2
