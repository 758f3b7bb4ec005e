"""Reading the store: every form git gives an object, alternates, what is missing or of another kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_store_support import commit_files, git, new_store, oid_of, to_loose, versions, write

from caiafs.errors import ObjectCorrupt, ObjectMissing
from caiafs.store import BLOB, EMPTY_TREE, REGULAR, TREE, Store, TreeEntry, encode_tree


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
