"""The core's contents: sizes, and a memory budget that is kept whatever is written and read."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import trio
from support.calls import FIFO, FOLDER, ROOT, fails, make, read, refuses, same, set_xattr, write
from support.core import BRANCH, Core
from test_store_support import write as write_objects

from caiafs.filesystem import NODE_COST
from caiafs.store import COMMIT, REGULAR, TREE, TreeEntry, encode_commit, encode_tree
from caiafs.tree import File


def test_opening_and_sizes(core: Core) -> None:
    fs = core.fs
    folder = make(core, b"folder", FOLDER)
    fifo = make(core, b"fifo", FIFO)
    file = make(core, b"file", data=b"data")
    refuses(errno.EISDIR, fs.open, folder.ino, os.O_WRONLY)
    refuses(errno.EISDIR, fs.open, folder.ino, os.O_RDONLY | os.O_TRUNC)
    refuses(errno.EISDIR, fs.set_attributes, folder.ino, size=0)
    refuses(errno.EINVAL, fs.set_attributes, fifo.ino, size=0)
    fails(errno.EINVAL, fs.readlink, file.ino)
    fails(errno.EFBIG, fs.write, file, 2**63 - 2, b"xx")
    fails(errno.EFBIG, fs.write, file, fs.config.file_max - 1, b"xx")
    for size in (fs.config.file_max + 1, 2**63 - 1):
        refuses(errno.EFBIG, fs.set_attributes, file.ino, size=size)
    fs.set_attributes(file.ino, size=fs.config.file_max)
    fs.config = fs.config.with_(file_max=1 << 20)
    fs.set_attributes(file.ino, size=1 << 30)  # what is too large already may become smaller
    core.run(fs.write, file, 1 << 25, b"inside")
    refuses(errno.EFBIG, fs.set_attributes, file.ino, size=(1 << 30) + 1)
    assert fs.open(file.ino, os.O_WRONLY | os.O_TRUNC) is file
    assert file.size == 0
    assert (file.opens, file.writers) == (1, 1)  # type: ignore[attr-defined]
    fs.release(file, os.O_WRONLY)
    assert (file.opens, file.writers) == (0, 0)  # type: ignore[attr-defined]


def test_writing_nothing_has_no_effect(core: Core) -> None:
    node = make(core, b"file", data=b"x")
    before = core.dump()
    assert core.run(core.fs.write, node, 5, b"") == 0
    assert core.dump() == before


def test_a_blob_that_git_lost_is_an_error_and_not_an_empty_file(core: Core) -> None:
    """B22: the tree names it, and nothing says how long it is."""
    entries = [TreeEntry(b"gone", REGULAR, b"\x11" * 20)]
    tree = encode_tree(entries)
    commit = encode_commit(blob_id(TREE, tree), (), b"A <a@b>", b"A <a@b>", 1, 1, 0, b"m")
    oids = write_objects(core.store, [(TREE, tree), (COMMIT, commit)])
    assert core.store.swap_ref(BRANCH, None, oids[1], b"m", b"A <a@b>")
    core = core.crash()
    node = trio.run(core.find, b"gone")
    refuses(errno.EIO, core.fs.open, node.ino, os.O_RDONLY)
    refuses(errno.EIO, core.fs.open, node.ino, os.O_RDWR)
    make(core, b"other", data=b"x")
    assert core.commit() is not None, "one lost blob does not stop commits"
    core.fs.open(node.ino, os.O_WRONLY | os.O_TRUNC)
    write(core, node, 0, b"new data")
    assert read(core, node) == b"new data"
    core.commit()
    before = core.dump()
    same(core.crash(), before)


def blob_id(kind: int, data: bytes) -> bytes:
    name = {TREE: b"tree"}[kind]
    return hashlib.sha1(name + b" %d\0" % len(data) + data).digest()


# ---- the budget


def test_files_larger_than_the_budget_are_written_and_read_within_it(tmp_path: Path) -> None:
    limit = 1 << 20
    core = Core(tmp_path, memory=limit, segment_size=1 << 20)
    make(core, b"small", data=b"s")
    large = make(core, b"large")
    assert isinstance(large, File)
    piece = 128 * 1024
    pieces = [os.urandom(piece) for _ in range(32)]

    def within() -> None:
        figures = core.memory.statistics()
        assert figures["held_bytes"] + figures["inode_bytes"] <= limit

    async def fill(large: File) -> None:
        for number, data in enumerate(pieces):
            await core.fs.write(large, number * piece, data)
            within()

    async def look() -> None:
        large = await core.find(b"large")
        assert isinstance(large, File)
        for number in (0, 31, *range(32)):
            assert await core.fs.read(large, number * piece, piece) == pieces[number]
            within()

    trio.run(fill, large)
    trio.run(look)
    assert core.memory.evictions > 0
    core.commit()
    trio.run(look)
    core = core.crash()
    trio.run(look)
    assert read(core, trio.run(core.find, b"small")) == b"s"
    core.close()


def test_many_small_blobs_are_read_within_the_budget(tmp_path: Path) -> None:
    core = Core(tmp_path)
    for number in range(40):
        trio.run(core.put, b"file %d" % number, b"%d" % number * 10000)
    core.commit()
    core = core.crash(memory=256 * 1024)
    for _ in range(2):
        for number in range(40):
            assert read(core, trio.run(core.find, b"file %d" % number)) == b"%d" % number * 10000
            figures = core.memory.statistics()
            assert figures["held_bytes"] + figures["inode_bytes"] <= 256 * 1024
    assert core.memory.evictions > 0
    core.close()


def test_directories_that_nobody_uses_make_room_for_others(tmp_path: Path) -> None:
    core = Core(tmp_path)
    for folder in range(30):
        for number in range(20):
            trio.run(core.put, b"folder %d/file %d" % (folder, number))
    core.commit()
    before = core.dump()
    limit = NODE_COST * 300
    core = core.crash(memory=limit)
    for folder in (*range(30), *range(30)):
        assert len(trio.run(core.fs.children, trio.run(core.find, b"folder %d" % folder))) == 20  # type: ignore[arg-type]
        assert len(core.tree.nodes) < 250
    assert core.memory.over == 0
    core = core.crash(memory=1 << 20)
    same(core, before)
    core.close()


# ---- files without a name


def test_an_unlinked_file_keeps_its_bytes_while_it_is_open(tmp_path: Path) -> None:
    core = Core(tmp_path, memory=100_000)
    file = make(core, b"file", data=b"a" * 50_000)
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"file")
    write(core, file, 50_000, b"b" * 50_000)
    for number in range(3):
        make(core, b"other %d" % number, data=b"c" * 50_000)
        core.commit()
        assert read(core, file) == b"a" * 50_000 + b"b" * 50_000
    assert core.journal.statistics()["kept_segments"] > 0
    core.fs.release(file, os.O_RDWR)
    make(core, b"last")
    core.commit()
    assert core.journal.statistics()["kept_segments"] == 0
    core.close()


def test_a_write_to_a_file_without_a_name_is_no_obstacle_to_recovery(core: Core) -> None:
    """B8: it is in the journal for inode 0."""
    file = make(core, b"file")
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"file")
    write(core, file, 0, b"hello")
    core.fs.set_attributes(file.ino, mode=0o100600)
    set_xattr(core, file.ino, b"user.x", b"y")
    make(core, b"other", data=b"data")
    before = core.dump()
    core = core.crash()
    same(core, before)
    assert set(core.tree.nodes) == {ROOT, before[b"/other"].ino}
