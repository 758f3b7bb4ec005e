"""Packs as git sees them, what survives an interruption, and consolidation."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store_support import MIB, commit_files, fsck, git, new_store, tmp_of, write

from caiafs.aio import Syncer
from caiafs.errors import ObjectMissing, StoreError
from caiafs.store import BLOB, REGULAR, TREE, Store, TreeEntry, encode_tree
from caiafs.store.pack import index_v2
from caiafs.store.packindex import PackIndex


def packs(store: Store, suffix: str = ".pack") -> list[str]:
    return sorted(name for name in os.listdir(f"{store.git_dir}/objects/pack") if name.endswith(suffix))


def blocks(size: int, seed: int = 1) -> Iterator[bytes]:
    rng = random.Random(seed)
    piece = rng.randbytes(100_000)
    while size > 0:
        yield piece[: min(size, len(piece))]
        size -= len(piece)


def left(store: Store) -> list[str]:
    """What is in the place for temporary files, but for what locks and `.keep`s are names of."""
    return [name for name in os.listdir(tmp_of(store)) if name != "locks"]


def test_keeps_are_names_of_one_file_that_is_synced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second pack on: pack and index at once, then the directory."""
    store = new_store(tmp_path)
    write(store, [(BLOB, b"first")])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    together: list[int] = []
    monkeypatch.setattr(Syncer, "sync", lambda _, fds: together.append(len(fds)))
    with store.pack_writer(tmp_of(store)) as writer:
        writer.add(BLOB, b"second")
        kept = writer.finish()
    assert kept is not None
    assert together == [2]
    assert len(synced) == 1
    (keep,) = packs(store, ".keep")
    assert Path(store.git_dir, "objects/pack", keep).stat().st_nlink == 2
    kept.release()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK])
def test_a_keep_on_a_filesystem_without_links_is_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = new_store(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with store.pack_writer(tmp_of(store)) as writer:
        writer.add(BLOB, b"kept")
        kept = writer.finish()
    assert kept is not None
    assert len(packs(store, ".keep")) == 1
    assert store.clear_stale(tmp_of(store)) == 0, "its process lives"
    kept.release()
    assert packs(store, ".keep") == []
    assert left(store) == []


def test_a_pack_is_what_git_expects(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rng = random.Random(3)
    contents = [
        b"",
        b"\0",
        b"x" * 15,
        b"x" * 16,
        rng.randbytes(2047),
        b"text\n" * 60000,
        rng.randbytes(70000),
    ]
    contents += [b"number %d" % n for n in range(300)]
    with store.pack_writer(tmp_of(store)) as writer:
        oids = [writer.add(BLOB, data) for data in contents]
        assert len(writer) == len(contents)
        assert all(oid in writer for oid in oids)
        kept = writer.finish()
    assert kept is not None
    assert kept.objects == len(contents)
    assert os.stat(kept.path).st_size == kept.size
    for suffix in (".pack", ".idx"):
        assert os.stat(kept.path.removesuffix(".pack") + suffix).st_mode & 0o777 == 0o444
    kept.release()
    git(store.git_dir, "verify-pack", kept.path)
    assert fsck(store.git_dir) == ""
    for oid, data in zip(oids, contents, strict=True):
        assert git(store.git_dir, "hash-object", "--stdin", stdin=data).decode().strip() == oid.hex()
        assert store.blob(oid) == data
    assert left(store) == []
    other = new_store(tmp_path, "other.git")
    indexed = git(other.git_dir, "index-pack", "--stdin", stdin=Path(kept.path).read_bytes())
    assert indexed.decode().split()[-1] == kept.name[5:-5]
    assert packs(other, ".idx") == packs(store, ".idx")


def test_an_object_is_stored_once_per_pack(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.pack_writer(tmp_of(store)) as writer:
        first = writer.add(BLOB, b"same")
        size = writer.size
        assert writer.add(BLOB, b"same") == first
        assert writer.add_stream(4, [b"sa", b"me"]) == first
        assert writer.size == size
        assert writer.add(TREE, b"") != first
        assert len(writer) == 2
        writer.finish()
    assert fsck(store.git_dir) == ""


def test_a_writer_without_objects_makes_no_pack(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    assert store.pack_writer(tmp_of(store)).finish() is None
    assert packs(store, "") == []
    assert left(store) == []


def test_a_large_blob_is_streamed_through_a_temporary_file(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    size = 20 * MIB + 12345
    with store.pack_writer(tmp_of(store)) as writer:
        small = writer.add(BLOB, b"before")
        large = writer.add_stream(size, blocks(size))
        assert len(left(store)) == 1
        assert writer.add_stream(size, blocks(size)) == large
        after = writer.add(BLOB, b"after")
        kept = writer.finish()
    assert kept is not None
    kept.release()
    assert kept.size < 22 * MIB  # the second copy left nothing behind
    git(store.git_dir, "verify-pack", kept.path)
    assert fsck(store.git_dir) == ""
    assert git(store.git_dir, "cat-file", "blob", large.hex()) == b"".join(blocks(size))
    assert store.blob(small) + store.blob(after) == b"beforeafter"


@pytest.mark.parametrize(("size", "off"), [(0, 1), (1, -1), (1, 1), (9 * MIB, -1), (9 * MIB, 1)])
def test_a_stream_of_another_size_is_refused_and_leaves_nothing(tmp_path: Path, size: int, off: int) -> None:
    store = new_store(tmp_path)
    with store.pack_writer(tmp_of(store)) as writer:
        first = writer.add(BLOB, b"before")
        with pytest.raises(StoreError, match="changed"):
            writer.add_stream(size, [*blocks(size + off)])
        with pytest.raises(ZeroDivisionError):
            writer.add_stream(9 * MIB, (b"x" * (MIB // (3 - n)) for n in range(9)))
        second = writer.add(BLOB, b"after")
        kept = writer.finish()
    assert kept is not None
    assert kept.objects == 2
    git(store.git_dir, "verify-pack", kept.path)
    assert store.blob(first) + store.blob(second) == b"beforeafter"


def test_keep_protects_from_gc_until_released(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.pack_writer(tmp_of(store)) as writer:
        oid = writer.add(BLOB, b"precious")
        kept = writer.finish()
    assert kept is not None
    (keep,) = packs(store, ".keep")
    assert Path(store.git_dir, "objects/pack", keep).read_bytes() == b"caiafs %d\n" % os.getpid()
    git(store.git_dir, "gc", "--prune=now", "-q")
    git(store.git_dir, "repack", "-ad", "-q")
    assert store.blob(oid) == b"precious"
    kept.release()
    kept.release()
    assert packs(store, ".keep") == []
    git(store.git_dir, "gc", "--prune=now", "-q")
    assert not store.has(oid)
    with pytest.raises(ObjectMissing):
        store.blob(oid)


def test_an_aborted_writer_leaves_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    writer = store.pack_writer(tmp_of(store))
    writer.add_stream(9 * MIB, blocks(9 * MIB))
    assert os.listdir(tmp_of(store))
    writer.abort()
    writer.abort()
    assert left(store) == []
    assert packs(store, "") == []
    with pytest.raises(StoreError):
        writer.add(BLOB, b"x")
    with pytest.raises(StoreError):
        writer.finish()


@pytest.mark.parametrize("step", ["sync", "fsync", "rename", "fchmod", "link", "pwrite"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_failing_disk_makes_no_half_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    store = new_store(tmp_path)
    calls = 0
    owner = Syncer if step == "sync" else os
    real = getattr(owner, step)

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(errno.ENOSPC, "no space left")
        return real(*args, **kwargs)

    writer = store.pack_writer(tmp_of(store))
    oid = writer.add(BLOB, b"data")
    monkeypatch.setattr(owner, step, failing)
    kept, failure = None, None
    try:
        kept = writer.finish()
    except StoreError as error:
        failure = error
    monkeypatch.undo()
    assert (failure is not None) == (calls >= nth)
    assert left(store) == []
    if failure is not None:
        assert failure.errno == errno.ENOSPC
        assert packs(store, ".keep") == []
        assert len(packs(store, ".pack")) == len(packs(store, ".idx"))
    else:
        assert kept is not None
        kept.release()
    assert fsck(store.git_dir) == ""
    write(store, [(BLOB, b"data")])
    assert store.blob(oid) == b"data"


def test_what_a_killed_writer_left_is_cleared_and_what_lives_is_not(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    code = textwrap.dedent(
        f"""
        import os, signal
        from caiafs.store import Store
        store = Store.open({store.git_dir!r})
        writer = store.pack_writer({tmp_of(store)!r})
        writer.add(3, b"kept by the dead")
        kept = writer.finish()
        def chunks():
            for _ in range(10):
                yield os.urandom(1 << 20)
            os.kill(os.getpid(), signal.SIGKILL)
        store.pack_writer({tmp_of(store)!r}).add_stream(11 << 20, chunks())
        """
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    assert len(packs(store, ".keep")) == 1
    assert len(left(store)) == 1
    with store.pack_writer(tmp_of(store)) as writer:
        writer.add(BLOB, b"kept by the living")
        kept = writer.finish()
        assert kept is not None
        busy = store.pack_writer(tmp_of(store))
        busy.add_stream(9 * MIB, blocks(9 * MIB))
        foreign = Path(store.git_dir, "objects/pack/pack-foreign.keep")
        foreign.write_text("mine\n")
        empty = foreign.with_name("pack-empty.keep")
        empty.touch()
        lock = Path(store.git_dir, "refs/heads/main.lock")
        lock.touch()
        assert store.clear_stale(tmp_of(store)) == 2
        assert store.clear_stale(tmp_of(store)) == 0
        names = packs(store, ".keep")
        assert sorted(names) == sorted([kept.name.replace(".pack", ".keep"), foreign.name, empty.name])
        assert len(left(store)) == 1
        assert lock.exists()
        lock.unlink()
        busy.abort()
    kept.release()


def test_a_keep_of_somebody_else_on_the_same_pack_stays(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, [(BLOB, b"same")])
    (name,) = packs(store)
    keep = Path(store.git_dir, "objects/pack", name).with_suffix(".keep")
    keep.write_text("mine\n")
    write(store, [(BLOB, b"same")])
    assert packs(store) == [name]
    assert keep.read_text() == "mine\n"
    assert store.clear_stale(tmp_of(store)) == 0


def test_the_pack_folder_is_made_when_it_is_missing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    os.rmdir(f"{store.git_dir}/objects/pack")
    (oid,) = write(store, [(BLOB, b"x")])
    assert store.blob(oid) == b"x"


def test_offsets_beyond_two_gigabytes_are_found(tmp_path: Path) -> None:
    entries = {bytes([n]) * 20: (n << 30, n) for n in range(1, 9)}
    path = tmp_path / "pack-x.idx"
    path.write_bytes(index_v2(entries, b"c" * 20))
    index = PackIndex(str(path))
    assert {oid: index.find(oid) for oid in entries} == {oid: offset for oid, (offset, _) in entries.items()}
    assert [(oid, (offset, crc)) for oid, offset, crc in index.entries()] == sorted(entries.items())
    assert index.find(b"\0" * 20) == index.find(b"\xff" * 20) == index.find(b"\1" * 19 + b"\0") == -1


# --- consolidation --------------------------------------------------------------------------------


def grow(store: Store, commits: int) -> dict[bytes, bytes]:
    """A history with one pack per commit; the last state."""
    files: dict[bytes, bytes] = {}
    rng = random.Random(5)
    tip = store.read_ref(b"refs/heads/main")
    for n in range(commits):
        files[b"file%d" % (n % 7)] = b"%d " % n + rng.randbytes(50 + 300 * (n % 3)) + b"line\n" * 200
        tip = commit_files(store, files, (tip,) if tip else (), b"Commit %d" % n)
    return files


@pytest.mark.parametrize("tool", ["git", None])
def test_old_packs_go_when_the_name_of_the_new_one_is_on_disk(
    tmp_path: Path, tool: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power loss could keep the removals, and not the pack that makes them right."""
    store = new_store(tmp_path)
    grow(store, 25)
    before = set(packs(store))
    listings: list[set[str]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/objects/pack"):
            listings.append(set(packs(store)))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert store.consolidate(tmp_of(store), git=tool)
    synced_with_all = [listing for listing in listings if before < listing]
    assert synced_with_all, "no moment at which old and new packs were on disk together"
    assert listings[-1] == set(packs(store)), "the removals were not synced"
    assert fsck(store.git_dir) == ""


@pytest.mark.parametrize("tool", ["git", None])
def test_many_packs_become_few_and_nothing_is_lost(tmp_path: Path, tool: str | None) -> None:
    store = new_store(tmp_path)
    files = grow(store, 25)
    with store.pack_writer(tmp_of(store)) as writer:
        in_flight = writer.add(BLOB, b"not yet referenced")
        kept = writer.finish()
    assert kept is not None
    assert store.pack_count() == 25
    other = Store.open(store.git_dir)
    tip = store.read_ref(b"refs/heads/main")
    assert tip is not None
    assert other.commit(tip).message == b"Commit 24\n"
    assert store.consolidate(tmp_of(store), git=tool)
    assert store.pack_count() <= 5
    assert kept.name in packs(store)
    assert store.blob(in_flight) == b"not yet referenced"
    for reader in (store, other):
        entries = reader.tree(reader.commit(tip).tree)
        assert {e.name: reader.blob(e.oid) for e in entries} == files
    assert fsck(store.git_dir) == ""
    assert len(git(store.git_dir, "log", "--format=%H", "main").split()) == 25
    assert left(store) == []
    assert all(path.suffix == ".owner" for path in Path(store.git_dir, "caiafs", "locks").iterdir())
    assert not store.consolidate(tmp_of(store), git=tool)
    kept.release()
    grow(store, 22)
    assert store.consolidate(tmp_of(store), git=tool)
    assert fsck(store.git_dir) == ""


def test_a_few_packs_are_left_alone(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    grow(store, 5)
    before = packs(store)
    assert not store.consolidate(tmp_of(store))
    assert packs(store) == before


def test_only_one_worker_consolidates_at_a_time(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    grow(store, 4)
    fd = os.open(f"{store.git_dir}/objects/pack", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not store.consolidate(tmp_of(store), more_than=1)
    os.close(fd)
    Path(store.git_dir, "gc.pid").write_text("1 host")
    assert not store.consolidate(tmp_of(store), more_than=1)
    os.unlink(f"{store.git_dir}/gc.pid")
    assert store.consolidate(tmp_of(store), more_than=1)


def test_packs_with_deltas_are_not_copied_by_hand(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    files = grow(store, 8)
    git(store.git_dir, "repack", "-adfq")
    (deltas,) = packs(store)
    files |= grow(store, 6)
    assert store.consolidate(tmp_of(store), more_than=3, git=None)
    assert deltas in packs(store)
    assert len(packs(store)) == 2
    assert fsck(store.git_dir) == ""


def test_a_damaged_pack_is_not_copied_and_not_removed(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    grow(store, 6)
    victim = Path(store.git_dir, "objects/pack", packs(store)[0])
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[60] ^= 1
    victim.write_bytes(data)
    assert Store.open(store.git_dir).consolidate(tmp_of(store), more_than=1, git=None)
    assert victim.name in packs(store)
    assert len(packs(store)) == 2


def test_a_failing_git_is_reported_and_harms_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    grow(store, 4)
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    fake.chmod(0o755)
    before = packs(store)
    with pytest.raises(StoreError, match="broken"):
        store.consolidate(tmp_of(store), more_than=1, git=str(fake))
    fake.write_text("#!/bin/sh\nexec sleep 20\n")
    with pytest.raises(StoreError, match="longer"):
        store.consolidate(tmp_of(store), more_than=1, git=str(fake), timeout=0.2)
    assert packs(store) == before


def test_a_user_s_settings_and_hooks_do_not_reach_consolidation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    grow(store, 6)
    evil = tmp_path / "evil"
    evil.write_text("[include]\n\tpath = /nonexistent\n[core]\n\tbroken syntax here ]]\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(evil))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nonexistent")
    assert store.consolidate(tmp_of(store), more_than=2)


def test_writing_ten_thousand_small_files_is_fast(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.pack_writer(tmp_of(store)) as writer:
        entries = [
            TreeEntry(b"f%d" % n, REGULAR, writer.add(BLOB, b"%d" % n + b"text " * 100))
            for n in range(10_000)
        ]
        tree = writer.add(TREE, encode_tree(entries))
        kept = writer.finish()
    assert kept is not None
    kept.release()
    assert len(store.tree(tree)) == 10_000
    assert set(store.blob_sizes(e.oid for e in entries)) <= {501, 502, 503, 504}
