"""Trees as deep as somebody may make them: no recursion, and memory that does not go by the square."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from support.core import WHO, Core
from test_hostile_trees import Hostile

from caiafs.check import run_check
from caiafs.store import BLOB, TREE
from caiafs.tree import Directory

DEPTHS = [800, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


def descend(core: Core, node: Directory, depth: int) -> Directory:
    async def go() -> Directory:
        here = node
        for _ in range(depth):
            below = (await core.fs.children(here))[b"d"]
            assert isinstance(below, Directory)
            here = below
        return here

    return core.run(go)


def deep_tree(hostile: Hostile, depth: int) -> bytes:
    """A tree of one directory in another, with a file at the bottom."""
    with hostile.store.pack_writer(hostile.git_dir + "/caiafs") as packer:
        oid = packer.add(TREE, b"100644 f\0" + packer.add(BLOB, b"deep"))
        for _ in range(depth):
            oid = packer.add(TREE, b"40000 d\0" + oid)
        pack = packer.finish()
    assert pack is not None
    pack.release()
    return oid


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_path_thousands_of_levels_deep_in_the_repository(tmp_path: Path, depth: int) -> None:
    hostile = Hostile(tmp_path)
    hostile.push(deep_tree(hostile, depth))
    core = hostile.mount()
    bottom = descend(core, core.tree.root, depth)
    core.run(core.fs.create, bottom.ino, b"new", 0o100644, WHO)
    tracemalloc.start()
    core.commit()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20
    core = core.crash()
    bottom = descend(core, core.tree.root, depth)
    assert set(core.run(core.fs.children, bottom)) == {b"f", b"new"}
    core.run(core.fs.unlink, bottom.ino, b"f")
    core = core.crash()
    assert set(core.run(core.fs.children, descend(core, core.tree.root, depth))) == {b"new"}
    core.commit()
    core.close()
    (tmp_path / "state").chmod(0o700)
    lines: list[str] = []
    assert run_check(hostile.git_dir, "main", str(tmp_path / "state"), False, lines.append) == 0, lines
    hostile.store.close()


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_path_thousands_of_levels_deep_made_by_hand(tmp_path: Path, depth: int) -> None:
    core = Core(tmp_path)

    async def make() -> None:
        here = core.tree.root.ino
        for _ in range(depth):
            here = (await core.fs.create(here, b"d", 0o040755, WHO)).ino
        await core.fs.create(here, b"f", 0o100644, WHO)

    core.run(make)
    core = core.crash()
    core.commit()
    bottom = descend(core, core.tree.root, depth)
    assert set(core.run(core.fs.children, bottom)) == {b"f"}

    async def remove() -> None:
        await core.fs.unlink(bottom.ino, b"f")
        step: Directory | None = bottom
        while step is not None and step.parent is not None:
            above = step.parent
            await core.fs.rmdir(above.ino, b"d")
            step = above

    core.run(remove)
    core.commit()
    assert core.run(core.fs.children, core.tree.root) == {}
    core.close()
