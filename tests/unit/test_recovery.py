"""Recovery: the tree that the journal alone gives back is the tree that was."""

from __future__ import annotations

import random
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from support.core import WHO

from caiafs.config import Config
from caiafs.errors import FSError
from caiafs.filesystem import Filesystem
from caiafs.filesystem.loader import Loader
from caiafs.journal import Journal
from caiafs.memory import MemoryTier
from caiafs.metrics import Metrics
from caiafs.store import Store, storable_entry
from caiafs.tree import Directory, File, Symlink, Tree

KINDS = [stat.S_IFREG | 0o644] * 3 + [stat.S_IFDIR | 0o755] * 2 + [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600]


def start(base: Path) -> Filesystem:
    """The repository has nothing: all there is comes from the journal."""
    path, state = base / "repo.git", base / "state"
    state.mkdir(exist_ok=True)
    store = Store.open(str(path)) if path.exists() else Store.create(str(path))
    memory = MemoryTier(1 << 20)
    fs = Filesystem(
        Config(repo=str(path), mountpoint="/mnt"), Tree(storable_entry, memory), memory, Journal(str(state)),
        store, Loader(store, 1, 1), Metrics({"version": "0"}), str(state),
    )  # fmt: skip
    fs.attach(None, 0, None, 1000, 1000)
    fs.replay(0)
    return fs


async def dump(fs: Filesystem) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for n in fs.tree.nodes.values():
        held: Any = None
        if isinstance(n, File):
            held = await fs.contents.read(n.content, 0, n.size)
        elif isinstance(n, Directory):
            held = {name: child.ino for name, child in (n.children or {}).items()}
        elif isinstance(n, Symlink):
            held = n.target
        times = (n.atime, n.mtime, n.ctime)
        found[n.ino] = (n.mode, n.uid, n.gid, n.nlink, times, n.xattrs or {}, n.size, held)
    return found


async def change(fs: Filesystem, rng: random.Random, index: int) -> None:
    nodes = list(fs.tree.nodes.values())
    node, fresh = rng.choice(nodes), b"n%d" % index
    folders = [n for n in nodes if isinstance(n, Directory)]
    parent, other = rng.choice(folders), rng.choice(folders)
    name = rng.choice([fresh, *(parent.children or ())])
    target = rng.choice([fresh, *(other.children or ())])
    kind = rng.randrange(10)
    if kind < 3:
        await fs.create(parent.ino, fresh, rng.choice(KINDS), WHO, target=b"goal" * (index % 3))
    elif kind == 3:
        await rng.choice([fs.unlink, fs.rmdir])(parent.ino, name)
    elif kind == 4:
        await fs.rename(parent.ino, name, other.ino, target, rng.choice([0, 0, 1, 2]))
    elif kind == 5:
        await fs.link(node.ino, parent.ino, fresh)
    elif kind == 6:
        fs.set_attributes(node.ino, mode=rng.randrange(0o10000), uid=index, atime=index, mtime=-index)
    elif kind == 7:
        fs.set_xattr(node.ino, b"user.%d" % rng.randrange(3), rng.randbytes(9), lambda _: True)
    elif isinstance(node, File):
        await fs.write(node, rng.randrange(9000), rng.randbytes(rng.randrange(1, 5000)))
        if kind == 9:
            fs.set_attributes(node.ino, size=rng.randrange(9000))


@pytest.mark.parametrize("seed", range(20))
def test_the_journal_alone_gives_the_tree_back(tmp_path: Path, seed: int) -> None:
    async def play() -> None:
        rng = random.Random(seed)
        for _ in range(3):
            fs = start(tmp_path)
            for index in range(150):
                try:
                    await change(fs, rng, fs.tree.next_ino + index)
                except FSError:
                    pass  # refused, and so nothing changed
            before = await dump(fs)
            fs.journal.close()
            again = start(tmp_path)
            assert await dump(again) == before
            again.journal.close()

    trio.run(play)
