"""History as the store tells it: ancestors, merge bases, and the differences between two trees."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from test_store_support import WHO, git, new_store, oid_of, ordinary, tmp_of, write

from caiafs.errors import ObjectCorrupt
from caiafs.store import (
    BLOB,
    COMMIT,
    DIRECTORY,
    EMPTY_TREE,
    REGULAR,
    SYMLINK,
    TREE,
    Oid,
    Store,
    TreeEntry,
    encode_commit,
    encode_tree,
)

# --- ancestors ------------------------------------------------------------------------------------


def test_ancestors_and_merge_bases_are_git_s(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rng = random.Random(8)
    commits: list[Oid] = []
    for n in range(60):
        count = rng.choice([0, 1, 1, 1, 1, 2, 2, 3]) if commits else 0
        near = commits[-12:]
        parents = tuple(rng.sample(near, min(count, len(near))))
        when = 1_000_000 + n * 10 + rng.choice([0, 0, 0, 0, -300, 200])  # clocks that ran backwards
        data = encode_commit(EMPTY_TREE, parents, WHO, WHO, when, when, 0, b"%d" % n)
        commits += write(store, [(TREE, b""), (COMMIT, data)])[1:]
    updates = "".join(f"create refs/heads/b{n} {oid.hex()}\n" for n, oid in enumerate(commits))
    git(store.git_dir, "update-ref", "--stdin", stdin=updates.encode())
    git(store.git_dir, "repack", "-adq")
    ancestors = {}
    listed = git(store.git_dir, "rev-list", "--parents", "--all").decode().splitlines()
    parents_of = {words[0]: words[1:] for words in (line.split() for line in listed)}
    for oid in commits:
        seen, todo = set(), [oid.hex()]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += parents_of[name]
        ancestors[oid] = seen
    for _ in range(600):
        a, b = rng.choice(commits), rng.choice(commits)
        assert store.is_ancestor(a, b) == (a.hex() in ancestors[b])
        base = store.merge_base(a, b)
        common = ancestors[a] & ancestors[b]
        best = {
            name for name in common if not any(name in ancestors[bytes.fromhex(o)] for o in common - {name})
        }
        assert base.hex() in best if base else not best


def test_a_shallow_clone_ends_where_it_was_cut(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    for n in range(4):
        (work / "a.txt").write_text(f"{n}\n")
        git(work, "commit", "-qam", f"{n}")
    git(tmp_path, "clone", "-q", "--bare", "--depth=2", f"file://{work}", "shallow.git")
    store = Store.open(str(tmp_path / "shallow.git"))
    tip, cut = oid_of(work, "HEAD"), oid_of(work, "HEAD~1")
    assert store.is_ancestor(cut, tip)
    assert not store.is_ancestor(tip, cut)
    assert store.merge_base(tip, cut) == cut


# --- differences ----------------------------------------------------------------------------------


def tree_of(store: Store, files: dict[str, tuple[int, bytes]]) -> Oid:
    """A nested tree from paths."""

    def build(level: dict[str, tuple[int, bytes]]) -> Oid:
        entries: list[TreeEntry] = []
        below: dict[str, dict[str, tuple[int, bytes]]] = {}
        for path, (mode, data) in level.items():
            head, slash, rest = path.partition("/")
            if slash:
                below.setdefault(head, {})[rest] = (mode, data)
            else:
                (oid,) = write(store, [(BLOB, data)])
                entries.append(TreeEntry(head.encode(), mode, oid))
        entries += [TreeEntry(name.encode(), DIRECTORY, build(inner)) for name, inner in below.items()]
        (oid,) = write(store, [(TREE, encode_tree(entries))])
        return oid

    return build(files)


def test_a_difference_names_each_changed_path_once(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    f, x = (REGULAR, b"f"), (0o100755, b"f")
    both = dict.fromkeys(["same", "d/same", "d/e/same", "a.b", "a/x"], f)
    a = tree_of(
        store,
        {
            **dict.fromkeys(["d/gone", "d/e/deep", "old/1", "old/2", "kind", "dir/in", "mode", "link"], f),
            **both,
        },
    )
    b = tree_of(
        store,
        {
            **dict.fromkeys(["d/new", "new/1", "new/2/3", "kind/now/dir", "dir"], f),
            "d/e/deep": (REGULAR, b"g"),
            "mode": x,
            "link": (SYMLINK, b"f"),
            **both,
        },
    )
    changes = list(store.diff(a, b))
    shown = {
        b"/".join(path).decode(): (old.mode if old else 0, new.mode if new else 0)
        for path, old, new, _ in changes
    }
    assert len(shown) == len(changes)
    assert shown == {
        "d/gone": (REGULAR, 0),
        "d/new": (0, REGULAR),
        "d/e/deep": (REGULAR, REGULAR),
        "old": (DIRECTORY, 0),
        "new": (0, DIRECTORY),
        "kind": (REGULAR, DIRECTORY),
        "dir": (DIRECTORY, REGULAR),
        "mode": (REGULAR, 0o100755),
        "link": (REGULAR, SYMLINK),
    }
    assert [c.path for c in changes] == sorted(c.path for c in changes)
    assert list(store.diff(a, a)) == []
    assert [c._replace(old=c.new, new=c.old) for c in store.diff(b, a)] == changes
    assert {c.path for c in store.diff(None, a)} == {(e.name,) for e in store.tree(a)}
    assert all(c.new is None for c in store.diff(a, None))
    assert list(store.diff(None, None)) == list(store.diff(None, EMPTY_TREE)) == []


def test_a_difference_between_trees_that_are_none_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    good = tree_of(store, {"a": (REGULAR, b"x")})
    bad = [b"junk", b"100644 b\0" + good + b"x"]
    for oid in write(store, [(TREE, data) for data in bad]):
        with pytest.raises(ObjectCorrupt, match=oid.hex()):
            list(store.diff(good, oid))


def test_equal_subtrees_are_not_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    missing = b"\x77" * 20
    trees = []
    for data in (b"1", b"2"):
        (blob,) = write(store, [(BLOB, data)])
        entries = [TreeEntry(b"absent", DIRECTORY, missing), TreeEntry(b"f", REGULAR, blob)]
        trees += write(store, [(TREE, encode_tree(entries))])
    assert [c.path for c in store.diff(*trees)] == [(b"f",)]


def test_a_very_deep_difference_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    tips = []
    for data in (b"1", b"2"):
        with store.pack_writer(tmp_of(store)) as writer:
            oid, mode = writer.add(BLOB, data), REGULAR
            for _ in range(3000):
                oid, mode = writer.add(TREE, encode_tree([TreeEntry(b"d", mode, oid)])), DIRECTORY
            kept = writer.finish()
        assert kept is not None
        tips.append(oid)
    (change,) = store.diff(*tips)
    assert len(change.path) == 3000
