"""Reading blobs larger than memory: piece by piece, by way of a spool, also on a full disk."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import shutil
import threading
import tracemalloc
import zlib
from pathlib import Path

import pytest
from test_store_support import MIB, commit_files, git, new_store, put_loose, tmp_of

from caiafs.errors import ObjectCorrupt, StoreError
from caiafs.store import BlobReader, Oid, Store, blobs


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
