"""Trees and commits as bytes; real git has the last word."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store_support import WHO, commit_files, fsck, git, new_store, write

from caiafs.errors import ObjectCorrupt, StoreError
from caiafs.store import (
    BLOB,
    COMMIT,
    DIRECTORY,
    REGULAR,
    TREE,
    TreeEntry,
    encode_commit,
    encode_tree,
    patch_tree,
)
from caiafs.store.objects import (
    differing_entries,
    find_entry,
    graft_unfit,
    parse_commit,
    parse_tree,
    unfit_entries,
    valid_identity,
)

SOME = b"\x11" * 20
OTHER = b"\x22" * 20
NAME = b"\0" * 20  # of the tree in messages


def entry(name: bytes, mode: int = REGULAR, oid: bytes = SOME) -> TreeEntry:
    return TreeEntry(name, mode, oid)


def apply_slowly(data: bytes, changes: dict[bytes, tuple[int, bytes] | None]) -> bytes:
    entries = {e.name: e for e in parse_tree(data, NAME)}
    for name, change in changes.items():
        entries.pop(name, None)
        if change is not None:
            entries[name] = TreeEntry(name, *change)
    return encode_tree(entries.values())


def test_directories_sort_as_if_they_ended_with_a_slash(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (blob,) = write(store, [(BLOB, b"x")])
    (empty,) = write(store, [(TREE, b"")])
    entries = [entry(b"a", DIRECTORY, empty), entry(b"a.b", oid=blob), entry(b"a0", oid=blob)]
    (oid,) = write(store, [(TREE, encode_tree(entries))])
    assert [e.name for e in store.tree(oid)] == [b"a.b", b"a", b"a0"]
    text = "".join(
        f"{e.mode:06o} {'tree' if e.mode == DIRECTORY else 'blob'} {e.oid.hex()}\t{e.name.decode()}\n"
        for e in entries
    )
    assert git(store.git_dir, "mktree", stdin=text.encode()).decode().strip() == oid.hex()


def test_a_name_twice_cannot_be_encoded() -> None:
    with pytest.raises(StoreError):
        encode_tree([entry(b"a"), entry(b"a", DIRECTORY)])


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0b"])
def test_a_name_no_tree_can_hold_is_refused(name: bytes) -> None:
    with pytest.raises(StoreError):
        encode_tree([entry(name)])


@pytest.mark.parametrize(
    "data",
    [
        b"100644 a\0" + SOME[:19],
        b"100644 a\0" + SOME + b"x",
        b"100648 a\0" + SOME,
        b"-100644 a\0" + SOME,
        b" a\0" + SOME,
        b"garbage",
    ],
)
def test_what_is_no_tree_is_corrupt_and_named(data: bytes) -> None:
    for parse in (parse_tree, unfit_entries):
        with pytest.raises(ObjectCorrupt, match=OTHER.hex()):
            parse(data, OTHER)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"100644 .\0" + SOME, "no file"),
        (b"40000 ..\0" + SOME, "no file"),
        (b"100644 \0" + SOME, "no file"),
        (b"100644 a/b\0" + SOME, "slash"),
        (b"40000 /\0" + SOME, "slash"),
        (b"100644 " + b"n" * 256 + b"\0" + SOME, "256 bytes"),
        (b"777777777777 a\0" + SOME, "known kind"),
        (b"10644 a\0" + SOME, "known kind"),
        (b"0 a\0" + SOME, "known kind"),
        (b"60644 a\0" + SOME, "known kind"),
        (b"7100644 a\0" + SOME, "known kind"),
        (b"100644 a\0" + SOME + b"100644 a\0" + OTHER, "more than once"),
        (b"100644 a\0" + SOME + b"40000 a\0" + OTHER, "more than once"),
    ],
)
def test_what_no_directory_can_show_is_told_apart_and_survives_changes(raw: bytes, reason: str) -> None:
    data = raw + b"100644 b\0" + SOME + b"100644 c\0" + SOME
    assert [e.name for e in parse_tree(data, OTHER)] == [b"b", b"c"]
    unfit = unfit_entries(data, OTHER)
    assert b"".join(u.raw for u in unfit) == raw
    assert all(reason in u.reason for u in unfit)
    patched = patch_tree(data, {b"b": None, b"c": (REGULAR, OTHER), b"d": (DIRECTORY, SOME)})
    assert unfit_entries(patched, OTHER) == unfit
    assert [(e.name, e.oid) for e in parse_tree(patched, OTHER)] == [(b"c", OTHER), (b"d", SOME)]


def test_unfit_entries_change_hands() -> None:
    ours = b"100644 ..\0" + SOME + b"100644 a\0" + SOME + b"100644 a\0" + OTHER + b"100644 b\0" + SOME
    theirs = b"100644 a\0" + SOME + b"40000 x/y\0" + OTHER
    grafted = graft_unfit(ours, theirs)
    assert [e.name for e in parse_tree(grafted, NAME)] == [b"b"]
    assert [u.raw for u in unfit_entries(grafted, NAME)] == [b"40000 x/y\0" + OTHER]
    assert graft_unfit(grafted, b"") == b"100644 b\0" + SOME
    found = differing_entries(ours, NAME, theirs, OTHER)
    assert (set(found.before), set(found.after), found.unfit) == ({b"b"}, {b"a"}, True)


def test_odd_but_harmless_modes_are_read_as_git_reads_them() -> None:
    data = b"100664 a\0" + SOME + b"040000 b\0" + SOME + b"160000 c\0" + SOME + b"40755 d\0" + SOME
    data += b"100711 e\0" + SOME + b"120777 f\0" + SOME
    assert [e.mode for e in parse_tree(data, OTHER)] == [
        REGULAR, DIRECTORY, 0o160000, DIRECTORY, 0o100755, 0o120000,
    ]  # fmt: skip


names = st.binary(min_size=1, max_size=6).filter(
    lambda n: b"\0" not in n and b"/" not in n and n not in (b".", b"..")
)
tree_names = st.one_of(names, st.sampled_from([b"a", b"a.b", b"a0", b"a-", b"b 100644 a", b"100644 a"]))
oids = st.binary(min_size=20, max_size=20)
values = st.tuples(st.sampled_from([REGULAR, 0o100755, DIRECTORY, 0o120000]), oids)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(tree_names, values, max_size=30),
    st.dictionaries(tree_names, st.none() | values, max_size=8),
)
def test_patching_equals_encoding_anew(
    before: dict[bytes, tuple[int, bytes]], changes: dict[bytes, tuple[int, bytes] | None]
) -> None:
    data = encode_tree([TreeEntry(name, *value) for name, value in before.items()])
    assert patch_tree(data, changes) == apply_slowly(data, changes)


def test_patching_a_large_tree_equals_encoding_anew() -> None:
    rng = random.Random(4)
    before = [
        TreeEntry(
            b"%s%d" % (rng.choice([b"a", b"a.", b"b 100644 ", b"z"]), i),
            rng.choice([REGULAR, DIRECTORY]),
            rng.randbytes(20),
        )
        for i in range(3000)
    ]
    data = encode_tree(before)
    for count in (1, 2, 10, 200):
        for _ in range(5):
            changes: dict[bytes, tuple[int, bytes] | None] = {}
            for e in rng.sample(before, count):
                kind = rng.randrange(4)
                changes[e.name] = None if kind == 0 else (rng.choice([REGULAR, DIRECTORY]), rng.randbytes(20))
                if kind == 1:
                    changes[e.name + b"x"] = (rng.choice([REGULAR, DIRECTORY]), rng.randbytes(20))
            assert patch_tree(data, changes) == apply_slowly(data, changes)


def test_untouched_entries_keep_their_bytes() -> None:
    data = b"100664 a\0" + SOME + b"040000 b\0" + SOME + b"100644 c\0" + SOME
    assert patch_tree(data, {b"c": (REGULAR, OTHER)}) == data[:-20] + OTHER
    assert patch_tree(data, {b"c": None}) == data[: -len(b"100644 c\0") - 20]
    assert patch_tree(data, {b"absent": None}) == data
    assert patch_tree(data, {}) is data


def test_a_file_that_becomes_a_directory_moves_to_its_new_place() -> None:
    data = encode_tree([entry(b"a"), entry(b"a.b"), entry(b"b")])
    patched = patch_tree(data, {b"a": (DIRECTORY, OTHER)})
    assert [e.name for e in parse_tree(patched, NAME)] == [b"a.b", b"a", b"b"]
    assert patch_tree(patched, {b"a": (REGULAR, SOME)}) == data


def test_an_unsorted_tree_is_patched_without_making_a_name_twice() -> None:
    filler = b"".join(b"100644 m%05d\0" % i + SOME for i in range(2000))
    data = filler + b"100644 a\0" + SOME + b"100644 zz\0" + SOME
    patched = parse_tree(patch_tree(data, {b"a": (REGULAR, OTHER)}), NAME)
    assert [e.oid for e in patched if e.name == b"a"] == [OTHER]
    many = {b"new%d" % i: (REGULAR, OTHER) for i in range(20)}
    patched = parse_tree(patch_tree(data, {**many, b"a": (REGULAR, OTHER)}), NAME)
    assert [e.oid for e in patched if e.name == b"a"] == [OTHER]


def test_a_name_that_looks_like_an_entry_is_not_mistaken_for_one() -> None:
    data = encode_tree([entry(b"b 100644 a", oid=b"\0" * 20), entry(b"c", oid=b"0 100644 a\0" + b"\0" * 9)])
    patched = patch_tree(data, {b"a": None})
    assert patched == data
    assert len(parse_tree(patch_tree(data, {b"a": (REGULAR, SOME)}), NAME)) == 3


def test_an_entry_in_an_object_id_is_not_mistaken_for_one() -> None:
    inside = entry(b"0", oid=b"\x01100644 a\0" + b"\x01" * 10)
    data = encode_tree([inside, entry(b"a"), entry(b"b")])
    assert patch_tree(data, {b"a": (REGULAR, OTHER)}) == encode_tree(
        [inside, entry(b"a", oid=OTHER), entry(b"b")]
    )
    assert patch_tree(data, {b"a": None, b"b": None}) == encode_tree([inside])
    assert find_entry(data, b"b") == (REGULAR, SOME)
    assert find_entry(data, b"a") is None, "it would have to be parsed"
    alone = encode_tree([inside, entry(b"b")])
    assert find_entry(alone, b"a") is None
    assert patch_tree(alone, {b"a": None}) == alone
    assert patch_tree(alone, {b"a": (REGULAR, SOME)}) == data


def test_patching_what_is_no_tree_is_refused() -> None:
    for data in (b"garbage", b"100644 a\0short", b"x" * 50000, b"100644 a\0" + SOME + b"junk"):
        with pytest.raises(ObjectCorrupt):
            patch_tree(data, {b"a": None})


def test_one_change_among_100_000_names_does_not_parse_them_all() -> None:
    data = encode_tree([entry(b"file%06d" % i, oid=os.urandom(20)) for i in range(100_000)])
    started = time.perf_counter()
    for i in range(5):
        patch_tree(data, {b"file%06d" % (i * 19_000): (REGULAR, SOME)})
    patching = (time.perf_counter() - started) / 5
    started = time.perf_counter()
    apply_slowly(data, {b"file000000": (REGULAR, SOME)})
    assert patching < (time.perf_counter() - started) / 5


def test_a_commit_reads_back_and_git_agrees(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = commit_files(store, {b"a": b"1"})
    tree = store.commit(first).tree
    data = encode_commit(
        tree, (first,), WHO, b"Bob Other <bob@example.org>", 1700000001, 1700000002, -90, b"Subject\n\nBody\0"
    )
    (oid,) = write(store, [(COMMIT, data)])
    assert store.swap_ref(b"refs/heads/main", first, oid, b"move", WHO)
    commit = store.commit(oid)
    assert commit == (
        oid,
        tree,
        (first,),
        WHO,
        b"Bob Other <bob@example.org>",
        1700000002,
        b"Subject\n\nBody\n",
        1700000001,
        -90,
    )
    shown = git(store.git_dir, "log", "-1", "--format=%an|%ae|%cn|%at|%cd|%B", "--date=iso")
    assert (
        shown.decode().strip()
        == "Ann Tester|ann@example.org|Bob Other|1700000001|2023-11-14 20:43:22 -0130|Subject\n\nBody"
    )
    assert fsck(store.git_dir) == ""


def test_odd_times_and_messages_still_pass_fsck(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = commit_files(store, {b"a": b"1"})
    tree = store.commit(first).tree
    tip = first
    for when, zone, message in (
        (-5, 0, b""),
        (0, 840, b"\n"),
        (2**33, -720, b"caf\xe9 \xff"),
        (1, 345, b"a\r\nb"),
    ):
        (oid,) = write(store, [(COMMIT, encode_commit(tree, (tip,), WHO, WHO, when, when, zone, message))])
        assert store.swap_ref(b"refs/heads/main", tip, oid, b"move", WHO)
        tip = oid
    assert fsck(store.git_dir) == ""


@pytest.mark.parametrize(
    "identity",
    [
        b"",
        b"Ann",
        b"Ann <a@b",
        b"Ann a@b>",
        b"<a@b>",
        b"Ann<a@b>",
        b"A\nB <a@b>",
        b"A <a>b>",
        b"A\0 <a@b>",
        b"A <a@b> ",
    ],
)
def test_an_identity_git_refuses_is_refused(identity: bytes) -> None:
    assert not valid_identity(identity)
    with pytest.raises(StoreError, match="author"):
        encode_commit(SOME, (), identity, WHO, 1, 1, 0, b"")


@pytest.mark.parametrize(
    "identity", [b"Ann <a@b>", b"\xc3\x84nn \xff <>", b'"Ann, the" O\'Neil <a b@c>', b"a <b>"]
)
def test_an_identity_git_takes_is_taken(identity: bytes, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    commit_files(store, {b"a": b"1"})
    assert valid_identity(identity)
    tree = store.commit(store.read_ref(b"refs/heads/main") or b"").tree
    (oid,) = write(store, [(COMMIT, encode_commit(tree, (), identity, identity, 1, 1, 0, b"m"))])
    assert store.swap_ref(b"refs/heads/other", None, oid, b"move", WHO)
    assert fsck(store.git_dir) == ""
    assert store.commit(oid).author == identity


def test_signed_and_damaged_commits_are_read_as_far_as_possible() -> None:
    data = (
        b"tree " + SOME.hex().encode() + b"\nparent " + OTHER.hex().encode() + b"\nauthor A <a@b> 5 +0100\n"
        b"committer broken\ngpgsig -----BEGIN\n tree " + OTHER.hex().encode() + b"\n\n-----END\n\nmessage"
    )
    commit = parse_commit(data, NAME)
    assert (commit.tree, commit.parents, commit.author_time, commit.time) == (SOME, (OTHER,), 5, 0)
    with pytest.raises(ObjectCorrupt):
        parse_commit(b"author A <a@b> 5 +0100\n\n", NAME)
    with pytest.raises(ObjectCorrupt):
        parse_commit(b"tree 12\n\n", NAME)


@pytest.mark.parametrize("seconds", [b"9" * 19, b"9" * 5000, b"-" + b"9" * 30, b"", b"x"])
def test_times_beyond_all_clocks_read_as_1970(seconds: bytes) -> None:
    data = (
        b"tree " + SOME.hex().encode() + b"\nauthor A <a@b> 5 +0100\ncommitter A <a@b> " + seconds + b" +0000"
    )
    assert parse_commit(data + b"\n\n", NAME).time == 0


def test_names_of_the_trees_beside_the_users_may_be_longer() -> None:
    """A directory whose name has 255 bytes has metadata under a name of 256 and more."""
    entry = TreeEntry(b"=" + b"x" * 255, DIRECTORY, bytes(range(20)))
    data = encode_tree([entry])
    assert parse_tree(data, b"") == []
    assert parse_tree(data, b"", 766) == [entry]
    assert unfit_entries(data, b"", 766) == []
