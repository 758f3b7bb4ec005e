"""The core's calls that make, move and remove names: their errnos, the matrix of rename, very deep paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from support.calls import FIFO, FILE, FOLDER, LINK, ROOT, fails, make, read, refuses, same, set_xattr
from support.core import WHO, Core

from caiafs.filesystem import LINK_MAX, NAME_MAX, RENAME_NOREPLACE
from caiafs.records import RENAME_EXCHANGE
from caiafs.tree import Directory


def test_names_that_are_not_there(core: Core) -> None:
    fs = core.fs
    file = make(core, b"file")
    assert trio.run(fs.lookup, ROOT, b"none") is None
    fails(errno.ENAMETOOLONG, fs.lookup, ROOT, b"x" * (NAME_MAX + 1))
    fails(errno.ENOTDIR, fs.lookup, file.ino, b"x")
    fails(errno.ESTALE, fs.lookup, 999, b"x")
    fails(errno.ENOENT, fs.unlink, ROOT, b"none")
    fails(errno.ENOENT, fs.rmdir, ROOT, b"none")
    refuses(errno.ESTALE, fs.open, 999, os.O_RDONLY)
    refuses(errno.ESTALE, fs.set_attributes, 999, mode=0)


def test_creating(core: Core) -> None:
    fs = core.fs
    make(core, b"file")
    before = core.dump()
    end = core.journal.end
    for mode in (FILE, FOLDER, LINK, FIFO):
        fails(errno.EEXIST, fs.create, ROOT, b"file", mode, WHO)
        fails(errno.ENAMETOOLONG, fs.create, ROOT, b"x" * 256, mode, WHO)
    same(core, before)
    assert core.journal.end == end
    make(core, b"x" * NAME_MAX)


def test_nothing_is_made_in_a_directory_that_was_removed(core: Core) -> None:
    fs = core.fs
    folder = make(core, b"folder", FOLDER)
    file = make(core, b"file")
    folder.lookups = 1
    trio.run(fs.rmdir, ROOT, b"folder")
    fails(errno.ENOENT, fs.create, folder.ino, b"x", FILE, WHO)
    fails(errno.ENOENT, fs.link, file.ino, folder.ino, b"x")
    fails(errno.ENOENT, fs.rename, ROOT, b"file", folder.ino, b"x", 0)


def test_removing(core: Core) -> None:
    fs = core.fs
    make(core, b"file")
    folder = make(core, b"folder", FOLDER)
    make(core, b"inside", parent=folder.ino)
    before = core.dump()
    fails(errno.ENOTDIR, fs.rmdir, ROOT, b"file")
    fails(errno.EISDIR, fs.unlink, ROOT, b"folder")
    fails(errno.ENOTEMPTY, fs.rmdir, ROOT, b"folder")
    same(core, before)


def test_linking(core: Core) -> None:
    fs = core.fs
    folder = make(core, b"folder", FOLDER)
    file = make(core, b"file")
    fails(errno.EPERM, fs.link, folder.ino, ROOT, b"other")
    fails(errno.EEXIST, fs.link, file.ino, ROOT, b"folder")
    file.nlink = LINK_MAX
    fails(errno.EMLINK, fs.link, file.ino, ROOT, b"other")
    file.nlink = 1
    file.opens = 1
    trio.run(fs.unlink, ROOT, b"file")
    fails(errno.ENOENT, fs.link, file.ino, ROOT, b"other")


def test_a_read_only_mount_refuses_every_change(tmp_path: Path) -> None:
    first = Core(tmp_path)
    trio.run(first.put, b"file", b"data")
    first.commit()
    first.close()
    core = Core(tmp_path, ro=True)
    fs = core.fs
    before = core.dump()
    ino = before[b"/file"].ino
    for call in (
        lambda: fs.create(ROOT, b"x", FILE, WHO),
        lambda: fs.link(ino, ROOT, b"x"),
        lambda: fs.unlink(ROOT, b"file"),
        lambda: fs.rename(ROOT, b"file", ROOT, b"x", 0),
    ):
        fails(errno.EROFS, call)
    refuses(errno.EROFS, fs.set_attributes, ino, mode=0)
    refuses(errno.EROFS, set_xattr, core, ino, b"user.x", b"")
    refuses(errno.EROFS, fs.open, ino, os.O_RDWR)
    refuses(errno.EROFS, fs.open, ino, os.O_RDONLY | os.O_TRUNC)
    same(core, before)
    core.close()


# ---- rename


THINGS = ("nothing", "file", "empty", "full", "link")


def _thing(core: Core, parent: int, kind: str, name: bytes) -> None:
    if kind in ("empty", "full"):
        folder = make(core, name, FOLDER, parent)
        if kind == "full":
            make(core, b"inside", parent=folder.ino)
    elif kind != "nothing":
        make(core, name, FILE if kind == "file" else LINK, parent)


def _expected(source: str, target: str, flags: int) -> int:
    """What renameat2(2) says of moving *source* over *target*."""
    folders = ("empty", "full")
    if source == "nothing":
        return errno.ENOENT
    if flags == RENAME_NOREPLACE:
        return errno.EEXIST if target != "nothing" else 0
    if flags == RENAME_EXCHANGE:
        return errno.ENOENT if target == "nothing" else 0
    if target == "nothing":
        return 0
    if target in folders:
        if source not in folders:
            return errno.EISDIR
        return errno.ENOTEMPTY if target == "full" else 0
    return errno.ENOTDIR if source in folders else 0


@pytest.mark.parametrize(
    "flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE], ids=["plain", "noreplace", "exchange"]
)
@pytest.mark.parametrize("apart", [False, True], ids=["one directory", "two directories"])
def test_the_rename_matrix(tmp_path: Path, flags: int, apart: bool) -> None:
    core = Core(tmp_path)
    for index, (source, target) in enumerate((a, b) for a in THINGS for b in THINGS):
        old = make(core, b"old %d" % index, FOLDER)
        new = make(core, b"new %d" % index, FOLDER) if apart else old
        _thing(core, old.ino, source, b"source")
        _thing(core, new.ino, target, b"target")
        before = core.dump()
        code = _expected(source, target, flags)
        if code:
            fails(code, core.fs.rename, old.ino, b"source", new.ino, b"target", flags)
            same(core, before)
            continue
        trio.run(core.fs.rename, old.ino, b"source", new.ino, b"target", flags)
        after = core.dump()
        a, b = b"/" + old.name + b"/source", b"/" + new.name + b"/target"
        assert after[b].ino == before[a].ino
        assert (after[a].ino == before[b].ino) if flags == RENAME_EXCHANGE else (a not in after)
        assert (b + b"/inside" in after) == (source == "full")
        for folder in (old, new):
            inside = [node for node in (folder.children or {}).values() if isinstance(node, Directory)]  # type: ignore[attr-defined]
            assert folder.nlink == 2 + len(inside)
    before = core.dump()
    same(core := core.crash(), before)
    core.close()


def test_renaming_into_itself_is_refused(core: Core) -> None:
    outer = make(core, b"outer", FOLDER)
    inner = make(core, b"inner", FOLDER, outer.ino)
    before = core.dump()
    fails(errno.EINVAL, core.fs.rename, ROOT, b"outer", inner.ino, b"x", 0)
    fails(errno.EINVAL, core.fs.rename, ROOT, b"outer", outer.ino, b"x", 0)
    fails(errno.EINVAL, core.fs.rename, ROOT, b"outer", outer.ino, b"inner", RENAME_EXCHANGE)
    fails(errno.EINVAL, core.fs.rename, outer.ino, b"inner", ROOT, b"outer", RENAME_EXCHANGE)
    fails(errno.EINVAL, core.fs.rename, ROOT, b"outer", ROOT, b"x", 4)
    fails(errno.ENAMETOOLONG, core.fs.rename, ROOT, b"outer", ROOT, b"x" * 256, 0)
    # a directory that has the other in it is not empty
    fails(errno.ENOTEMPTY, core.fs.rename, outer.ino, b"inner", ROOT, b"outer", 0)
    same(core, before)


def test_renaming_one_name_of_a_file_over_another_of_its_names_changes_nothing(core: Core) -> None:
    file = make(core, b"one")
    trio.run(core.fs.link, file.ino, ROOT, b"two")
    before = core.dump()
    trio.run(core.fs.rename, ROOT, b"one", ROOT, b"two", 0)
    trio.run(core.fs.rename, ROOT, b"one", ROOT, b"one", 0)
    same(core, before)
    fails(errno.EEXIST, core.fs.rename, ROOT, b"one", ROOT, b"two", RENAME_NOREPLACE)


def test_a_file_that_was_replaced_is_still_read_by_who_has_it_open(core: Core) -> None:
    old, new = make(core, b"old", data=b"old data"), make(core, b"new", data=b"new data")
    core.fs.open(old.ino, os.O_RDONLY)
    trio.run(core.fs.rename, ROOT, b"new", ROOT, b"old", 0)
    core.commit()
    assert read(core, old) == b"old data"
    assert read(core, new) == b"new data"
    core.fs.release(old, os.O_RDONLY)
    assert core.tree.get(old.ino) is None


# ---- deep paths


DEPTH = 1200


def deep(core: Core) -> int:
    async def descend() -> int:
        parent = ROOT
        for _ in range(DEPTH):
            parent = (await core.fs.create(parent, b"d", FOLDER, WHO)).ino
        return parent

    return trio.run(descend)


def test_a_change_below_a_deep_path_is_recorded_after_a_freeze(core: Core) -> None:
    """B15: each directory above is named for recovery, and there was one call for each."""
    bottom = deep(core)
    core.commit()
    trio.run(core.fs.create, bottom, b"x", FILE, WHO)
    core = core.crash()
    node = core.tree.get(bottom)
    assert isinstance(node, Directory)
    assert list(node.children or ()) == [b"x"]
    assert len(core.tree.path(node)) == 2 * DEPTH - 1


def test_a_deep_tree_moves_below_a_name_that_git_refuses_and_back(core: Core) -> None:
    """B15: everything below is to be written anew."""
    bottom = deep(core)
    trio.run(core.fs.rename, ROOT, b"d", ROOT, b".git", 0)
    core.commit()
    trio.run(core.fs.rename, ROOT, b".git", ROOT, b"e", 0)
    core = core.crash()
    core.commit()
    node = core.tree.get(bottom)
    assert node is not None
    assert core.tree.path(node).startswith(b"e/d/d/")
    core = core.crash()
    assert trio.run(core.find, b"e" + b"/d" * (DEPTH - 1)).ino == bottom
