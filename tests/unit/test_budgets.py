"""What work may cost, counted in bytes, objects, flushes and inodes, which no busy machine changes.

Times are the benchmark's business. What is counted here holds on every machine: a commit that
grows with the tree, a journal that swells, or a walk that is never forgotten fails.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.core import WHO, Core
from test_store_support import git

from caiafs.filesystem import NODE_COST
from caiafs.tree import ROOT_INO, Directory, File

KIB4 = random.Random(4).randbytes(4096)


async def put_many(core: Core, folders: int, files: int, prefix: bytes = b"d") -> None:
    for folder in range(folders):
        for number in range(files):
            await core.put(b"%s%d/f%d" % (prefix, folder, number), b"%d %d" % (folder, number))


def put(core: Core, path: bytes, data: bytes = b"") -> None:
    trio.run(core.put, path, data)


class Growth:
    """What a repository gained since it was looked at: (objects, bytes in packs)."""

    def __init__(self, core: Core) -> None:
        self._packs = Path(core.git_dir, "objects", "pack")
        self._before = self._sizes()

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._packs.iterdir()}

    def gained(self) -> tuple[int, int]:
        after = self._sizes()
        new = [name for name in after.keys() - self._before.keys() if name.endswith(".pack")]
        objects = sum(int.from_bytes((self._packs / name).read_bytes()[8:12], "big") for name in new)
        return objects, sum(after[name] for name in new)


def cost_of_one_change(base: Path, folders: int) -> tuple[int, int]:
    """Objects and bytes of a commit of one changed file in a tree of *folders* times 20 files."""
    base.mkdir()
    core = Core(base)
    trio.run(put_many, core, folders, 20)
    core.commit()
    core = core.crash()  # the tree is read from git, as after a mount
    growth = Growth(core)
    put(core, b"d0/f0", KIB4)
    core.commit()
    core.close()
    return growth.gained()


# ---- commits


def test_a_commit_costs_what_changed_and_not_what_is_there(tmp_path: Path) -> None:
    """Forty times the files: the same objects, and the bytes of a larger top directory alone."""
    few, small = cost_of_one_change(tmp_path / "few", 2)
    many, large = cost_of_one_change(tmp_path / "many", 80)
    assert few == many
    assert large - small < 78 * 2 * 64, "a name in the top directory's two trees is all that may be added"
    # A blob, the trees on the way, the side ref's records and trees of the same way, two commits.
    assert few <= 12
    assert small < len(KIB4) + 4096


def test_equal_files_of_one_commit_are_one_blob(tmp_path: Path) -> None:
    core = Core(tmp_path)
    growth = Growth(core)
    for number in range(10):
        put(core, b"copy %d" % number, KIB4)
    core.commit()
    _, size = growth.gained()
    assert size < len(KIB4) + 4096
    core.close()


def test_a_batch_is_one_pack_whatever_is_in_it(tmp_path: Path) -> None:
    core = Core(tmp_path)
    growth = Growth(core)
    packs = Path(core.git_dir, "objects", "pack")
    trio.run(put_many, core, 10, 30)
    core.commit()
    assert sorted(path.suffix for path in packs.iterdir()) == [".idx", ".pack"]
    objects, _ = growth.gained()
    assert 300 + 10 < objects < 300 + 10 + 60, "files, folders, and a few side records for each folder"
    assert not list(Path(core.git_dir, "objects").glob("??/*"))
    core.close()


def test_saves_of_a_text_stay_near_what_gc_makes_of_them(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    core = Core(tmp_path / "m")
    dice = random.Random(8)
    words = [dice.randbytes(3).hex() for _ in range(500)]
    lines = [" ".join(dice.choices(words, k=10)) for _ in range(200)]
    for number in range(1, 81):
        lines[dice.randrange(len(lines))] = " ".join(dice.choices(words, k=10))
        put(core, b"draft.txt", "\n".join(lines).encode())
        core.commit()
        if number % 20 == 0:
            core.worker.do_tidy()  # as the committer asks for every twenty commits
    core.close()
    packs = Path(core.git_dir, "objects", "pack")
    assert len(list(packs.glob("*.pack"))) <= 20
    copy = tmp_path / "copy.git"
    shutil.copytree(core.git_dir, copy)
    git(copy, "gc", "-q", "--prune=now")
    assert objects_size(core.git_dir) <= 1.5 * objects_size(copy)


def objects_size(git_dir: str | Path) -> int:
    return sum(path.stat().st_size for path in Path(git_dir, "objects").rglob("*") if path.is_file())


# ---- the journal


def test_a_write_costs_the_journal_its_bytes_and_little_more(tmp_path: Path) -> None:
    core = Core(tmp_path, segment_size=64 << 20)
    put(core, b"file", b"begin")
    before = core.journal.end

    async def write_many() -> None:
        file = await core.find(b"file")
        assert isinstance(file, File)
        for number in range(100):
            await core.fs.write(file, number * 4096, KIB4)

    trio.run(write_many)
    assert core.journal.end - before <= 100 * (4096 + 64)
    core.close()


def test_names_and_attributes_cost_the_journal_a_line_each(tmp_path: Path) -> None:
    core = Core(tmp_path)
    put(core, b"file", b"begin")
    before = core.journal.end

    async def change() -> None:
        root = core.tree.root.ino
        for number in range(50):
            await core.fs.create(root, b"new%d" % number, 0o100644, WHO)
            await core.fs.rename(root, b"new%d" % number, root, b"old%d" % number, 0)
            await core.fs.unlink(root, b"old%d" % number)

    trio.run(change)
    assert core.journal.end - before <= 150 * 160
    core.close()


def test_a_journal_that_git_has_taken_is_given_back(tmp_path: Path) -> None:
    core = Core(tmp_path)
    for number in range(20):
        put(core, b"file", KIB4 * 16)
        put(core, b"n%d" % number)
        core.commit()
    assert core.journal.size < 16 * 1024
    assert len([name for name in os.listdir(core.state) if "seg" in name or "journal" in name]) <= 4
    core.close()


# ---- memory


def test_a_walk_is_forgotten_within_the_budget(tmp_path: Path) -> None:
    """The kernel looks at every file and lets go of it, as it does for a find over a large tree."""
    limit = 1 << 20
    core = Core(tmp_path)
    trio.run(put_many, core, 60, 40)
    core.commit()
    core = core.crash(memory=limit)
    most = 0

    async def walk() -> None:
        nonlocal most
        for folder in range(60):
            directory = await core.find(b"d%d" % folder)
            assert isinstance(directory, Directory)
            assert len(await core.fs.children(directory)) == 40
            most = max(most, len(core.tree.nodes))

    trio.run(walk)
    assert most * NODE_COST < limit
    assert most < 60 * 40, "the whole tree stayed in memory"
    core.close()


def with_a_large_kernel(base: Path, limit: int) -> tuple[Core, list[tuple[int, bytes]]]:
    """60 times 40 files, *limit* bytes of memory, and the names that the kernel is asked to forget."""
    core = Core(base)
    trio.run(put_many, core, 60, 40)
    core.commit()
    core = core.crash(memory=limit)
    asked: list[tuple[int, bytes]] = []
    core.fs.prune_in_kernel = asked.extend
    return core, asked


async def look_into(core: Core, folder: int) -> None:
    """The kernel knows all files of the folder from now on."""
    directory = await core.find(b"d%d" % folder)
    assert isinstance(directory, Directory)
    for child in (await core.fs.children(directory)).values():
        child.lookups += 1


def test_what_only_the_kernel_knows_it_is_asked_to_forget(tmp_path: Path) -> None:
    """A kernel with plenty of memory keeps every inode it has seen; the daemon does not have that much."""
    limit = 1 << 20
    core, asked = with_a_large_kernel(tmp_path, limit)
    most = 0

    async def walk() -> None:
        nonlocal most
        for folder in range(60):
            await look_into(core, folder)
            most = max(most, len(core.tree.nodes))
            while asked:
                parent, name = asked.pop()
                known = core.tree.nodes[parent]
                assert isinstance(known, Directory)
                assert known.children is not None
                core.fs.forget([(known.children[name].ino, 1)])
                if not asked:
                    core.fs.pruned()

    trio.run(walk)
    assert most * NODE_COST < limit
    core.close()


@pytest.mark.parametrize("late", [False, True])
def test_what_the_kernel_gives_back_is_let_go_of_with_nothing_else_to_load(
    tmp_path: Path, late: bool
) -> None:
    """The last directory is read, and then nobody comes: what the kernel forgets goes all the same.

    *late*: the kernel's answers come after it went through all names.
    """
    limit = 1 << 20
    core, asked = with_a_large_kernel(tmp_path, limit)

    def answer() -> None:
        names, asked[:] = list(asked), []
        given = [(core.tree.nodes[parent].children[name].ino, 1) for parent, name in names]  # type: ignore[union-attr]
        if late:
            core.fs.pruned()
        for at in range(0, len(given), 16):
            core.fs.forget(given[at : at + 16])
        if not late:
            core.fs.pruned()

    async def walk() -> None:
        for folder in range(60):
            await look_into(core, folder)
        before = len(core.tree.nodes)
        while asked:
            answer()
        assert len(core.tree.nodes) < before // 2
        assert len(core.tree.nodes) * NODE_COST < limit // 2

    trio.run(walk)
    core.close()


def test_files_made_here_are_forgotten_once_git_has_them(tmp_path: Path) -> None:
    """Directories that were never read from git, but made and committed, are unloaded all the same."""
    limit = 1 << 20
    core = Core(tmp_path, memory=limit)
    for folder in range(60):
        trio.run(put_many, core, 1, 40, b"%d-" % folder)
        core.commit()
        assert len(core.tree.nodes) * NODE_COST < limit

    async def read() -> bytes:
        node = await core.find(b"0-0/f7")
        assert isinstance(node, File)
        return await core.fs.read(node, 0, 100)

    assert trio.run(read) == b"0 7"
    core.close()


def make_within(limit: int, core: Core, make: Callable[[int], Awaitable[None]], folders: int) -> None:
    """Make folders; what is attached to their inodes makes a commit due before it is much, and then goes."""
    for folder in range(folders):
        trio.run(make, folder)
        if core.fs.pressure.is_set():
            core.commit()
            assert core.tree.attached_bytes < limit * 2 // 5
        assert core.memory.statistics()["inode_bytes"] < limit


def test_targets_of_symlinks_count(tmp_path: Path) -> None:
    limit = 1 << 20
    core = Core(tmp_path, memory=limit)

    async def link(folder: int) -> None:
        parent = await core.fs.create(1, b"%d" % folder, 0o040755, WHO)
        for number in range(60):
            await core.fs.create(parent.ino, b"l%d" % number, 0o120777, WHO, target=b"t" * 4000)

    make_within(limit, core, link, 10)
    node = core.run(core.find, b"0/l0")
    before = core.tree.attached_bytes
    assert core.run(core.fs.readlink, node.ino) == b"t" * 4000
    assert core.tree.attached_bytes == before + 4000
    core.close()


def test_extended_attributes_count(tmp_path: Path) -> None:
    """They are in memory with their inodes: a commit is due before they are much, and then they go."""
    limit = 1 << 20
    core = Core(tmp_path, memory=limit)
    value = bytes(60_000)

    async def write(folder: int) -> None:
        for number in range(8):
            node = await core.put(b"%d/f%d" % (folder, number))
            core.fs.set_xattr(node.ino, b"user.a", value, lambda gid: True)

    make_within(limit, core, write, 12)
    assert core.tree.attached_bytes == sum(node.attached_bytes for node in core.tree.nodes.values())
    node = core.run(core.find, b"0/f0")
    assert core.fs.get_xattr(node.ino, b"user.a") == value
    core.close()


def test_bytes_that_git_has_are_not_needed_in_memory(tmp_path: Path) -> None:
    """What is held counts against the budget in full, overhead included, and goes when it has to."""
    core = Core(tmp_path, memory=1 << 20)
    for number in range(60):
        put(core, b"f%d" % number, KIB4 * 16)
        figures = core.memory.statistics()
        assert figures["held_bytes"] + figures["inode_bytes"] <= 1 << 20
    core.commit()
    figures = core.memory.statistics()
    assert figures["held_bytes"] + figures["inode_bytes"] <= 1 << 20
    core.close()


@pytest.mark.parametrize("how", ["renamed over", "written anew", "removed"])
def test_versions_that_are_gone_leave_memory(tmp_path: Path, how: str) -> None:
    """Saved again and again, each time committed: memory holds the last version, not all of them."""
    core = Core(tmp_path)

    async def save(number: int) -> None:
        text = b"%d " % number + KIB4
        if how == "renamed over":
            await core.put(b"new", text)
            await core.fs.rename(ROOT_INO, b"new", ROOT_INO, b"text", 0)
        elif how == "written anew":
            await core.put(b"text", text)
        else:
            await core.put(b"text%d" % number, text)
            await core.fs.unlink(ROOT_INO, b"text%d" % (number - 1))

    put(core, b"text0")
    for number in range(1, 20):
        trio.run(save, number)
        core.commit()
        assert core.memory.held < 3 * len(KIB4)
    core.close()
