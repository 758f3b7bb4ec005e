"""The tree: what a freeze captured is the tree at that moment, whatever happens meanwhile."""

from __future__ import annotations

import random
import stat

import pytest

from caiafs.memory import MemoryTier
from caiafs.records import (
    RENAME_EXCHANGE,
    SET_MODE,
    SET_SIZE,
    Create,
    Link,
    Record,
    Remove,
    Rename,
    SetAttr,
    Write,
)
from caiafs.store import storable_entry
from caiafs.tree import Directory, EntryState, File, Loaded, Settled, Tree
from caiafs.tree.nodes import state_of

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Driver:
    """Applies changes at ever growing positions."""

    def __init__(self, seed: int = 0) -> None:
        self.tree = Tree(storable_entry, MemoryTier(1 << 20))
        self.rng = random.Random(seed)
        self.position = 0

    def apply(self, record: Record) -> None:
        self.position += 10_000
        self.tree.apply(record, self.position)

    def create(self, parent: int, name: bytes, mode: int) -> int:
        ino = self.tree.next_ino
        self.apply(Create(parent, ino, mode, 1, 1, 0, self.position, name))
        return ino

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        self.apply(Rename(parent, new_parent, self.position, flags, name, new_name))

    def clean(self) -> None:
        self.position += 1
        batch = self.tree.freeze(self.position)
        list(self.tree.parts(batch, 100))
        list(self.tree.settle(batch, Settled((), {})))

    def step(self) -> None:
        rng, tree = self.rng, self.tree
        folders = [n for n in tree.nodes.values() if isinstance(n, Directory)]
        files = [n for n in tree.nodes.values() if isinstance(n, File)]
        parent, other = rng.choice(folders), rng.choice(folders)
        children = parent.children
        assert children is not None
        name = rng.choice(list(children) or [b""])
        fresh = b"n%d" % self.position
        kind = rng.randrange(7)
        if kind == 0 or not files or not name:
            self.create(parent.ino, fresh, rng.choice([FILE, FILE, FOLDER]))
        elif kind == 1:
            self.apply(Link(rng.choice(files).ino, parent.ino, 1, fresh))
        elif kind == 2:
            node = children[name]
            if not (isinstance(node, Directory) and node.children):
                self.apply(Remove(parent.ino, self.position, name))
        elif kind == 3:
            self.apply(Write(rng.choice(files).ino, rng.randrange(99), self.position, rng.randbytes(9)))
        elif kind == 4:
            self.apply(SetAttr(rng.choice(files).ino, SET_MODE, rng.randrange(0o777), 0, 0, 0, 0, 0, 0))
        elif kind == 5:
            self.apply(SetAttr(rng.choice(files).ino, SET_SIZE, 0, 0, 0, rng.randrange(99), 0, 0, 0))
        elif not isinstance(children[name], Directory):
            self.rename(parent.ino, name, other.ino, fresh)


@pytest.mark.parametrize("seed", range(40))
def test_a_capture_equals_the_tree_at_the_freeze(seed: int) -> None:
    driver = Driver(seed)
    tree = driver.tree
    for _ in range(5):
        for _ in range(30):
            driver.step()
        expected: dict[int, dict[bytes, EntryState | None]] = {}
        for folder in tree.dirty:
            children = folder.children or {}
            expected[folder.ino] = {
                name: state_of(children[name]) if name in children else None
                for name in folder.changed - {b""}
            }
        root = state_of(tree.root)
        batch = tree.freeze(driver.position + 1)
        for _ in tree.parts(batch, driver.rng.randrange(1, 4)):
            driver.step()
        assert {ino: state.entries for ino, state in batch.directories.items()} == expected
        assert batch.root == root
        list(tree.settle(batch, Settled((), {})))


@pytest.mark.parametrize("seed", range(10))
def test_a_batch_that_was_taken_in_part_is_there_in_whole_when_it_is_taken_again(seed: int) -> None:
    """The worker may end while it is told; changes come meanwhile."""
    driver = Driver(seed)
    tree = driver.tree
    for _ in range(60):
        driver.step()
    expected = {
        folder.ino: {
            name: state_of(folder.children[name]) for name in folder.changed if name in folder.children
        }
        for folder in tree.dirty
        if folder.children is not None
    }
    batch = tree.freeze(driver.position + 1)
    for _ in range(3):
        for number, _ in enumerate(tree.parts(batch, 3)):
            driver.step()
            if number == driver.rng.randrange(4):
                break
    told: dict[int, dict[bytes, EntryState]] = {}
    for part in tree.parts(batch, 3):
        driver.step()
        for state in part:
            entries = told.setdefault(state.ino, {})
            entries |= {name: entry for name, entry in state.entries.items() if entry is not None}
    assert told == expected


def test_an_exchange_swaps_nodes_of_two_kinds() -> None:
    driver = Driver()
    folder, other = driver.create(1, b"d", FOLDER), driver.create(1, b"e", FOLDER)
    inner, file = driver.create(folder, b"inner", FOLDER), driver.create(other, b"f", FILE)
    driver.rename(folder, b"inner", other, b"f", RENAME_EXCHANGE)
    nodes = driver.tree.nodes
    assert driver.tree.path(nodes[inner]) == b"e/f"
    assert driver.tree.path(nodes[file]) == b"d/inner"
    assert (nodes[folder].nlink, nodes[other].nlink) == (2, 3)


def test_a_change_to_a_file_marks_all_its_names() -> None:
    driver = Driver()
    folder, file = driver.create(1, b"d", FOLDER), driver.create(1, b"f", FILE)
    driver.apply(Link(file, folder, 1, b"g"))
    driver.clean()
    driver.apply(Write(file, 0, 1, b"x"))
    changed = {d.ino: d.changed - {b""} for d in driver.tree.dirty}
    assert changed == {1: {b"f", b"d"}, folder: {b"g"}}


def test_a_rename_to_where_git_cannot_look_marks_everything_below() -> None:
    driver = Driver()
    top = driver.create(1, b"d", FOLDER)
    below = driver.create(top, b"e", FOLDER)
    driver.create(below, b"f", FILE)
    driver.clean()
    driver.rename(1, b"d", 1, b".git")
    changed = {folder.ino: folder.changed for folder in driver.tree.dirty}
    assert changed[top] >= {b"e"}
    assert changed[below] >= {b"f"}


def test_a_clean_directory_can_be_unloaded_and_loaded_again() -> None:
    driver = Driver()
    tree, oid = driver.tree, b"o" * 20
    entry = Loaded(b"f", 7, FILE, 1, 1, 1, 0, 0, 0, 0, 3, oid)
    tree.root.tree_oid, tree.root.children = oid, None
    tree.load(tree.root, [entry])
    assert tree.can_unload(tree.root)
    tree.nodes[7].lookups = 1
    assert not tree.can_unload(tree.root)
    tree.nodes[7].lookups = 0
    assert tree.unload(tree.root) == 1
    assert tree.get(7) is None
    tree.load(tree.root, [entry])
    driver.apply(Write(7, 0, 1, b"x"))
    assert not tree.can_unload(tree.root)


@pytest.mark.parametrize("when", ["before the freeze", "after it"])
def test_what_is_kept_stays_changed_when_a_later_try_is_taken_back(when: str) -> None:
    """The journal has a file, a batch with it is under way, and is given up; a write that nothing kept was
    tried meanwhile. Undoing that write must not pass the file for one that git has: its bytes would go
    with the journal's segments."""
    driver = Driver()
    tree = driver.tree
    kept = driver.create(1, b"kept", FILE)
    driver.apply(Write(kept, 0, 1, b"in the journal"))
    tried = []

    def try_out(record: Record) -> None:
        driver.position += 10_000
        tried.append(tree.try_out(record, driver.position))

    if when == "before the freeze":
        try_out(Write(kept, 0, 2, b"nowhere"))
        try_out(Create(1, tree.next_ino, FILE, 1, 1, 0, 3, b"nothing"))
    driver.position += 1
    batch = tree.freeze(driver.position)
    list(tree.parts(batch, 100))
    if when == "after it":
        try_out(Write(kept, 0, 2, b"nowhere"))
        try_out(Create(1, tree.next_ino, FILE, 1, 1, 0, 3, b"nothing"))
    tree.thaw(batch)
    for before in reversed(tried):
        assert tree.take_back(before, unmark=True)
    assert tree.is_dirty
    assert b"kept" in tree.root.changed
    assert b"nothing" not in tree.root.changed
    assert tree.changes == 1


def test_what_only_a_try_had_changed_is_clean_after_it_is_taken_back() -> None:
    """Also where it was in a batch that was given up, and tried again after its freeze."""
    driver = Driver()
    tree = driver.tree
    file = driver.create(1, b"file", FILE)
    driver.clean()
    tried = []
    for stage in range(2):
        driver.position += 10_000
        tried.append(tree.try_out(Write(file, 0, 1, b"nowhere"), driver.position))
        if stage == 0:
            driver.position += 1
            batch = tree.freeze(driver.position)
            list(tree.parts(batch, 100))
    tree.thaw(batch)
    for before in reversed(tried):
        tree.take_back(before, unmark=True)
    assert not tree.is_dirty
    assert tree.changes == 0
