"""The core, on a real store and a real journal: check, record, apply, and recovery by the same way.

No kernel: the calls are those that operations.py makes, with a caller of uid 1000. The machine
at the end of this module plays random operations and compares, after every end that a daemon
can come to, all that can be seen of the tree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.core import BRANCH, WHO, Core, Dump, differences
from support.disks import FailingDisk
from test_store_support import git
from test_store_support import write as write_objects
from trio.testing import MockClock

from caiafs.committer.process import WorkerProcess
from caiafs.errors import FSError, JournalDamaged, StoreError
from caiafs.filesystem import LINK_MAX, NAME_MAX, NODE_COST, RENAME_NOREPLACE, XATTR_SIZE_MAX, acl
from caiafs.records import RENAME_EXCHANGE, Remove, Write
from caiafs.store import COMMIT, REGULAR, TREE, TreeEntry, encode_commit, encode_tree
from caiafs.tree import ROOT_INO, Directory, File, Node

ROOT = 1
FILE, FOLDER, LINK, FIFO = 0o100644, 0o040755, 0o120777, 0o010600


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    yield made
    made.close()


def fails(code: int, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    """The call fails with *code*, and changes nothing."""
    with pytest.raises(FSError) as caught:
        trio.run(function, *arguments)
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


def refuses(code: int, function: Callable[..., Any], *arguments: Any, **more: Any) -> None:
    with pytest.raises(FSError) as caught:
        function(*arguments, **more)
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


def make(core: Core, name: bytes, mode: int = FILE, parent: int = ROOT, data: bytes = b"") -> Node:
    node = trio.run(core.fs.create, parent, name, mode, WHO)
    if data:
        write(core, node, 0, data)
    return node


def write(core: Core, node: Node, offset: int, data: bytes) -> None:
    assert isinstance(node, File)
    assert trio.run(core.fs.write, node, offset, data) == len(data)


def read(core: Core, node: Node, offset: int = 0, length: int = 1 << 30) -> bytes:
    """As read(2) would, but without the access time."""
    assert isinstance(node, File)
    return trio.run(core.fs.contents.read, node.content, offset, length)


def set_xattr(core: Core, ino: int, name: bytes, value: bytes) -> None:
    """By a caller who is in every group."""
    core.fs.set_xattr(ino, name, value, lambda gid: True)


def same(core: Core, before: Dump) -> None:
    found = differences(before, core.dump())
    assert not found, "\n".join(found)


# ---- errnos


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


@pytest.mark.parametrize(
    ("change", "privileged", "left"),
    [
        ({"uid": 7}, True, 0o777),
        ({"gid": 7}, True, 0o777),
        ({"ctime": 7}, True, 0o777),  # chown(2) of nobody to nobody
        ({"size": 1}, False, 0o777),
        ({"size": 1}, True, 0o6777),
        ({"mtime": 7}, False, 0o6777),
        ({"mtime": 7, "ctime": 7}, False, 0o6777),
        ({"mode": 0o4711}, False, 0o4711),
    ],
)
def test_set_id_bits_go_with_an_owner_and_with_a_size(
    core: Core, change: dict[str, int], privileged: bool, left: int
) -> None:
    file = make(core, b"file", data=b"data")
    core.fs.set_attributes(file.ino, mode=0o6777)
    core.fs.set_attributes(file.ino, may_keep_set_id=privileged, **change)  # type: ignore[arg-type]
    assert file.mode & 0o7777 == left


def test_set_id_bits_go_with_a_write_but_group_ones_that_mean_locking(core: Core) -> None:
    file = make(core, b"file", data=b"data")
    for mode, left in ((0o4777, 0o777), (0o2777, 0o777), (0o2767, 0o2767), (0o1777, 0o1777)):
        core.fs.set_attributes(file.ino, mode=mode)
        core.fs.drop_set_id(file)
        assert file.mode & 0o7777 == left


def test_a_note_of_times_that_are_known_is_no_record(core: Core) -> None:
    """The kernel sends one after each rename and unlink, mostly from the same tick of the clock."""
    file = make(core, b"file", data=b"data")
    before = core.journal.appended
    core.fs.set_attributes(file.ino, mtime=file.mtime, ctime=file.ctime)
    assert core.journal.appended == before
    core.fs.set_attributes(file.ino, mtime=file.mtime, ctime=file.ctime + 1)
    assert core.journal.appended == before + 1


def test_extended_attributes(core: Core) -> None:
    fs = core.fs
    ino = make(core, b"file").ino
    refuses(errno.ENODATA, fs.get_xattr, ino, b"user.none")
    refuses(errno.ENODATA, fs.remove_xattr, ino, b"user.none")
    refuses(errno.EPERM, set_xattr, core, ino, b"user.caiafs.state", b"x")
    refuses(errno.ERANGE, set_xattr, core, ino, b"user." + b"x" * 251, b"")
    refuses(errno.E2BIG, set_xattr, core, ino, b"user.large", bytes(XATTR_SIZE_MAX + 1))
    set_xattr(core, ino, b"user.large", bytes(XATTR_SIZE_MAX))
    set_xattr(core, ino, b"user.empty", b"")
    assert fs.get_xattr(ino, b"user.empty") == b""
    assert sorted(fs.list_xattrs(ino)) == [b"user.empty", b"user.large"]
    fs.remove_xattr(ino, b"user.large")
    assert fs.list_xattrs(ino) == [b"user.empty"]
    for number in range(XATTR_SIZE_MAX // 256 - 1):
        set_xattr(core, ino, b"user.%0250d" % number, b"")
    refuses(errno.ENOSPC, set_xattr, core, ino, b"user.%0250d" % 999, b"")


def test_all_attributes_of_a_file_fit_into_one_record(core: Core) -> None:
    """With 128 MiB and more of them, what git was given was larger than what is read from it."""
    ino = make(core, b"file").ino
    for number in range(4):
        set_xattr(core, ino, b"user.%d" % number, bytes(XATTR_SIZE_MAX))
    refuses(errno.ENOSPC, set_xattr, core, ino, b"user.more", b"x")
    set_xattr(core, ino, b"user.0", b"instead" * 9000)
    core.fs.remove_xattr(ino, b"user.1")
    set_xattr(core, ino, b"user.more", b"x")
    before = core.dump()
    core.commit()
    core = core.crash()
    same(core, before)


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


# ---- attributes and access lists


def test_a_set_gid_directory_passes_its_group_on(core: Core) -> None:
    folder = make(core, b"folder", FOLDER)
    core.fs.set_attributes(folder.ino, mode=0o2775, gid=77)
    file, below = make(core, b"file", parent=folder.ino), make(core, b"below", FOLDER, folder.ino)
    assert (file.gid, below.gid) == (77, 77)
    assert (file.mode & stat.S_ISGID, below.mode & stat.S_ISGID) == (0, stat.S_ISGID)


LIST = acl.encode(
    [
        acl.Entry(acl.USER_OBJ, 7, 0), acl.Entry(acl.USER, 7, 5), acl.Entry(acl.GROUP_OBJ, 5, 0),
        acl.Entry(acl.MASK, 7, 0), acl.Entry(acl.OTHER, 0, 0),
    ]
)  # fmt: skip


def test_an_access_list_and_the_mode_keep_in_step(core: Core) -> None:
    fs = core.fs
    file = make(core, b"file")
    set_xattr(core, file.ino, acl.ACCESS, LIST)
    assert file.mode == 0o100770
    fs.set_attributes(file.ino, mode=0o100640)
    entries = {entry.tag: entry.permissions for entry in acl.decode(fs.get_xattr(file.ino, acl.ACCESS))}
    assert (entries[acl.USER_OBJ], entries[acl.MASK], entries[acl.GROUP_OBJ], entries[acl.OTHER]) == (
        6,
        4,
        5,
        0,
    )
    minimal = acl.encode([entry for entry in acl.decode(LIST) if entry.tag not in (acl.USER, acl.MASK)])
    set_xattr(core, file.ino, acl.ACCESS, minimal)
    assert file.mode == 0o100750
    refuses(errno.ENODATA, fs.get_xattr, file.ino, acl.ACCESS)
    refuses(errno.EINVAL, set_xattr, core, file.ino, acl.ACCESS, b"nonsense")
    refuses(errno.EACCES, set_xattr, core, file.ino, acl.DEFAULT, LIST)
    link = make(core, b"link", LINK)
    refuses(errno.EOPNOTSUPP, set_xattr, core, link.ino, acl.ACCESS, LIST)


def test_a_default_list_is_passed_on(core: Core) -> None:
    folder = make(core, b"folder", FOLDER)
    set_xattr(core, folder.ino, acl.DEFAULT, LIST)
    below = make(core, b"below", 0o040777, folder.ino)
    file = make(core, b"file", 0o100666, folder.ino)
    assert core.fs.get_xattr(below.ino, acl.DEFAULT) == LIST
    assert file.mode == 0o100660
    refuses(errno.ENODATA, core.fs.get_xattr, file.ino, acl.DEFAULT)
    before = core.dump()
    same(core.crash(), before)


@pytest.mark.parametrize("short", [None, 10, 60])
def test_chmod_of_a_file_with_an_access_list_happens_whole_or_not(tmp_path: Path, short: int | None) -> None:
    """B20: the list was changed and the mode was not."""
    disk = FailingDisk()
    core = Core(tmp_path, disk, enable_fallback=False)
    file, other = make(core, b"file"), make(core, b"other")
    set_xattr(core, file.ino, acl.ACCESS, LIST)
    before = core.dump()
    for after in range(2):
        for change in (
            lambda: core.fs.set_attributes(file.ino, mode=0o100600),
            lambda: set_xattr(core, other.ino, acl.ACCESS, LIST),
        ):
            disk.short = short
            disk.fail("writev", errno.ENOSPC, after, times=None)
            if after and short is None:
                disk.fail("writev", errno.ENOSPC, 0)
            refuses(errno.ENOSPC, change) if after == 0 or short is None else disk.heal()
            disk.heal()
            same(core, before)
    same(core.crash(disk=None), before)


def test_chmod_with_an_access_list_is_one_write(tmp_path: Path) -> None:
    """B20: the disk fills up between the first record and the second."""
    disk = FailingDisk()
    core = Core(tmp_path, disk, enable_fallback=False)
    file = make(core, b"file")
    set_xattr(core, file.ino, acl.ACCESS, LIST)
    before = core.dump()
    disk.fail("writev", errno.ENOSPC, after=1, times=None)
    core.fs.set_attributes(file.ino, mode=0o100600)  # one write: it went through
    assert file.mode == 0o100600
    refuses(errno.ENOSPC, core.fs.set_attributes, file.ino, mode=0o100700)
    assert file.mode == 0o100600
    assert acl.mode_of(acl.decode(core.fs.get_xattr(file.ino, acl.ACCESS))) == 0o600
    assert before[b"/file"].mode == 0o100770
    core.close()


def test_times_are_those_that_were_set(core: Core) -> None:
    file = make(core, b"file", data=b"x")
    core.fs.set_attributes(file.ino, atime=1, mtime=-2, ctime=3)
    before = core.dump()
    assert (before[b"/file"].atime, before[b"/file"].mtime, before[b"/file"].ctime) == (1, -2, 3)
    core.commit()
    same(core, before)
    same(core := core.crash(), before)


def test_a_write_without_a_stamp_leaves_the_times(core: Core) -> None:
    file = make(core, b"file")
    assert isinstance(file, File)
    core.fs.set_attributes(file.ino, mtime=5, ctime=6)
    trio.run(core.fs.write, file, 0, b"data", False)
    assert (file.mtime, file.ctime) == (5, 6)
    before = core.dump()
    same(core.crash(), before)


def test_an_access_time_travels_with_the_next_commit(core: Core) -> None:
    file = make(core, b"file", data=b"x")
    core.fs.set_attributes(file.ino, atime=1)
    core.commit()
    assert isinstance(file, File)
    trio.run(core.fs.read, file, 0, 10)
    assert file.atime > 1
    assert not core.fs.is_dirty, "a read makes no commit"
    make(core, b"other")
    core.commit()
    before = core.dump()
    same(core.crash(), before)


# ---- contents and the budget


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


def test_writes_to_unlinked_files_do_not_fill_the_journal_for_good(tmp_path: Path) -> None:
    """B14: git has nothing to take, so nothing would ever have been released."""
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    file = make(core, b"file")
    assert isinstance(file, File)
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"file")
    core.commit()

    async def rewrite() -> None:
        with trio.fail_after(20):
            for number in range(40):
                await core.fs.write(file, number % 4 * 65536, b"%02d" % number * 32768)

    trio.run(rewrite)
    assert core.journal.size <= 1 << 20
    assert read(core, file, 3 * 65536) == b"39" * 32768

    async def fill() -> None:
        with trio.fail_after(20):
            for number in range(40):
                await core.fs.write(file, number * 65536, b"x" * 65536)

    fails(errno.ENOSPC, fill)
    core.fs.release(file, os.O_RDWR)
    before = core.dump()
    make(core, b"later")
    core.commit()
    assert core.journal.size < 1000
    assert core.dump().keys() == {*before, b"/later"}
    core.close()


def test_the_largest_request_fits_into_the_smallest_journal(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20)
    file = make(core, b"file")
    assert isinstance(file, File)
    core.commit()

    async def hand_over(number: int) -> None:
        with trio.fail_after(20):
            await core.fs.write(file, number << 20, b"%d" % number * (1 << 20))

    for number in range(3):
        trio.run(hand_over, number)
        assert core.journal.size < 3 << 19, "and takes half of it too much, at most"
        core.commit()
    assert read(core, file, 2 << 20, 5) == b"22222"
    core.close()


def test_a_compacted_journal_recovers_what_came_after(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    trio.run(core.put, b"a/b/file", b"data")
    file = make(core, b"gone")
    assert isinstance(file, File)
    core.fs.open(file.ino, os.O_RDWR)
    trio.run(core.fs.unlink, ROOT, b"gone")
    core.commit()

    async def rewrite() -> None:
        with trio.fail_after(20):
            while not core.journal.statistics()["kept_segments"]:
                await core.fs.write(file, 0, b"x" * 65536)

    trio.run(rewrite)
    trio.run(core.put, b"a/b/file", b"newer")
    trio.run(core.put, b"a/b/other", b"other")
    before = core.dump()
    same(core := core.crash(), before)
    core.commit()
    same(core := core.crash(), before)
    core.close()


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


# ---- the journal fails


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_change_that_the_journal_cannot_keep_does_not_happen(tmp_path: Path, code: int) -> None:
    disk = FailingDisk()
    core = Core(tmp_path, disk, enable_fallback=False)
    fs = core.fs
    folder = make(core, b"folder", FOLDER)
    file = make(core, b"file", data=b"data")
    set_xattr(core, file.ino, b"user.x", b"y")
    before = core.dump()
    assert isinstance(file, File)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: fs.create(ROOT, b"new", FILE, WHO),
        lambda: fs.create(folder.ino, b"new", FOLDER, WHO),
        lambda: fs.link(file.ino, ROOT, b"new"),
        lambda: fs.unlink(ROOT, b"file"),
        lambda: fs.rmdir(ROOT, b"folder"),
        lambda: fs.rename(ROOT, b"file", folder.ino, b"new", 0),
        lambda: fs.rename(ROOT, b"file", ROOT, b"folder", RENAME_EXCHANGE),
        lambda: fs.write(file, 2, b"other"),
    ]
    disk.fail("writev", code, times=None)
    for call in calls:
        fails(code, call)
        same(core, before)
    for change in (
        lambda: fs.set_attributes(file.ino, mode=0o100600, uid=5, size=1),
        lambda: set_xattr(core, file.ino, b"user.z", b"y"),
        lambda: fs.remove_xattr(file.ino, b"user.x"),
        lambda: fs.open(file.ino, os.O_WRONLY | os.O_TRUNC),
    ):
        refuses(code, change)
        same(core, before)
    assert (file.opens, file.writers) == (0, 0)
    disk.heal()
    write(core, file, 0, b"DATA")
    before = core.dump()
    same(core := core.crash(disk=None), before)
    core.close()


def test_a_journal_disk_that_the_journal_filled_itself_recovers_with_the_commit(tmp_path: Path) -> None:
    """B12: what git has is released first, and the note of it is written into the room that gives."""
    disk = FailingDisk(str(tmp_path / "state"), room=200_000)
    core = Core(tmp_path, disk, enable_fallback=False)
    file = make(core, b"file")
    at, size, full = 0, 65536, 0
    while size:
        try:
            write(core, file, at, b"x" * size)
            at += size
        except FSError as error:
            full, size = error.errno, size // 2
    assert full == errno.ENOSPC
    assert at > 190_000
    before = core.dump()
    core.commit()
    assert core.journal.size < 1000
    same(core, before)
    write(core, file, 0, b"y" * 1000)
    before = core.dump()
    same(core := core.crash(disk=None), before)
    core.close()


def test_a_commit_is_kept_although_the_journal_cannot_be_told(tmp_path: Path) -> None:
    disk = FailingDisk()
    core = Core(tmp_path, disk)
    trio.run(core.put, b"file", b"data")
    before = core.dump()
    disk.fail("writev", times=None)
    head = core.commit()
    disk.heal()
    assert head == core.store.read_ref(BRANCH)
    same(core := core.crash(disk=None), before)
    assert core.fs.replayed == 0
    core.close()


def test_writers_wait_for_room_as_long_as_git_drains(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20, segment_size=1 << 16)
    file = make(core, b"file")
    assert isinstance(file, File)

    async def work() -> None:
        async def commits() -> None:
            while True:
                await core.fs.pressure.wait()
                await core.committer.commit()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits)
            with trio.fail_after(30):
                for number in range(80):
                    await core.fs.write(file, number * 65536, b"%04d" % number * 16384)
                    assert core.journal.size <= (1 << 20) + 1000
            nursery.cancel_scope.cancel()

    trio.run(work)
    assert read(core, file, 79 * 65536) == b"0079" * 16384
    before = core.dump()
    core = core.crash()
    same(core, before)
    core.close()


def test_a_full_journal_is_enospc_when_git_is_in_trouble(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20)
    file = make(core, b"file", data=b"x" * 900_000)
    core.fs.health.git.trouble("the disk is full")
    before = core.dump()

    async def write_more() -> None:
        assert isinstance(file, File)
        started = trio.current_time()
        with pytest.raises(FSError) as caught:
            await core.fs.write(file, 0, b"y" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert trio.current_time() - started == core.config.operation_timeout, "git gets time to recover"

    trio.run(write_more, clock=MockClock(autojump_threshold=0))
    core.fs.health.git.worked()
    assert core.dump().keys() == before.keys()
    core.commit()
    write(core, file, 0, b"z")
    core.close()


def test_syncs_share_the_flush(core: Core) -> None:
    make(core, b"file")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(core.fs.sync)

    trio.run(both)
    assert core.journal.durable == core.journal.end


def test_where_a_file_is_safe(core: Core) -> None:
    file = make(core, b"file", data=b"x")

    def state() -> bytes:
        return core.fs.get_xattr(file.ino, b"user.caiafs.state")

    assert state() == b"journal"
    refuses(errno.ENODATA, core.fs.get_xattr, file.ino, b"user.caiafs.commit")
    trio.run(core.fs.sync)
    assert state() == b"durable"
    head = core.commit()
    assert head is not None
    assert state() == b"committed"
    assert core.fs.get_xattr(file.ino, b"user.caiafs.commit") == head.hex().encode()
    write(core, file, 0, b"y")
    assert state() == b"journal"


def test_the_root_is_in_git_when_all_below_it_is(core: Core) -> None:
    def asked(name: bytes) -> bytes:
        return core.fs.get_xattr(ROOT_INO, b"user.caiafs." + name)

    make(core, b"file", data=b"x")
    assert asked(b"state") == b"journal"
    head = core.commit()
    assert head is not None
    assert (asked(b"state"), asked(b"commit")) == (b"committed", head.hex().encode())
    core.fs.set_attributes(ROOT_INO, mode=0o700)
    assert asked(b"state") == b"journal"
    refuses(errno.ENODATA, core.fs.get_xattr, ROOT_INO, b"user.caiafs.commit")
    batch = core.fs.freeze()
    assert asked(b"state") == b"journal", "a batch that is on its way is not in git"
    list(core.tree.parts(batch, 64))
    core.fs.thaw(batch, None)
    core.commit()
    assert asked(b"state") == b"committed"


def test_writing_nothing_has_no_effect(core: Core) -> None:
    node = make(core, b"file", data=b"x")
    before = core.dump()
    assert core.run(core.fs.write, node, 5, b"") == 0
    assert core.dump() == before


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


# ---- recovery


def test_a_commit_that_was_asked_for_takes_what_came_after_a_failed_one(core: Core) -> None:
    make(core, b"first")
    core.committer._worker = _Failing()  # type: ignore[assignment]
    with pytest.raises(StoreError):
        trio.run(core.committer.commit, None, 1)
    core.committer._worker = cast(WorkerProcess, core.worker)
    make(core, b"second")
    core.commit()
    assert not core.fs.is_dirty
    assert git(core.git_dir, "ls-tree", "--name-only", "main").split() == [b"first", b"second"]


def test_replay_of_a_record_that_does_not_fit_is_damage(core: Core) -> None:
    core.journal.append(Remove(ROOT, 1, b"never made"))
    with pytest.raises(JournalDamaged, match="does not fit the tree"):
        core.crash()


def test_replay_of_a_write_to_nobody_is_damage(core: Core) -> None:
    core.journal.append(Write(77, 0, 1, b"x"))
    with pytest.raises(JournalDamaged, match="does not fit the tree"):
        core.crash()


def test_a_daemon_that_dies_between_git_and_the_release_replays_nothing_twice(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    trio.run(core.drop, b"a/file")
    trio.run(core.put, b"a/file", b"data again")
    before = core.dump()
    kept = tmp_path / "kept"
    shutil.copytree(core.state, kept)
    head = core.commit()
    core.close()
    shutil.rmtree(core.state)
    kept.rename(core.state)
    core = Core(tmp_path)
    assert core.fs.replayed == 0
    same(core, before)
    assert core.commit() == head
    core.close()


def test_a_journal_that_is_lost_whole_leaves_what_git_has(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"file", b"data")
    core.commit()
    before = core.dump()
    core.close()
    shutil.rmtree(core.state)
    core = Core(tmp_path)
    same(core, before)
    trio.run(core.put, b"file", b"more")
    before = core.dump()
    same(core := core.crash(), before)
    core.close()


def test_only_what_is_looked_into_is_loaded(tmp_path: Path) -> None:
    core = Core(tmp_path)
    for path in (b"a/b/c/file", b"x/y/file", b"x/file"):
        trio.run(core.put, path, b"data")
    core.commit()
    core = core.crash()
    assert len(core.tree.nodes) == 1
    trio.run(core.find, b"x/file")
    assert len(core.tree.nodes) == 1 + 2 + 2
    core.close()


def test_tasks_that_want_one_directory_load_it_once(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    core.commit()
    core = core.crash()
    found: list[Node | None] = []

    async def look() -> None:
        found.append((await core.fs.children(core.tree.root))[b"a"])

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)

    trio.run(both)
    assert len(found) == 5
    assert len(set(map(id, found))) == 1
    core.close()


def test_a_directory_that_cannot_be_read_is_eio_and_can_be_read_later(tmp_path: Path) -> None:
    core = Core(tmp_path)
    trio.run(core.put, b"a/file", b"data")
    core.commit()
    core = core.crash()
    real = core.fs._loader.directory
    core.fs._loader.directory = _raises  # type: ignore[method-assign, assignment]
    fails(errno.EIO, core.find, b"a")
    core.fs._loader.directory = real  # type: ignore[method-assign]
    assert read(core, trio.run(core.find, b"a/file")) == b"data"
    core.close()


def _raises(*_: Any) -> Any:
    raise StoreError("no")


# ---- the machine


NAMES = (b"a", b"b", b"c", b"d", b".git", b"GIT~1", b"back\\slash", b"c\\.git", b".gitmodules")
names = st.sampled_from(NAMES)
numbers = st.integers(0, 10**6)
contents = st.binary(max_size=40)
targets = st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text)
times = st.integers(0, 2**62)


class RecoveryMachine(RuleBasedStateMachine):
    """Random operations; then the daemon dies at some point, and the next one must see the same."""

    @initialize()
    def start(self) -> None:
        self.base = tempfile.mkdtemp()
        self.core = Core(self.base, segment_size=4000)
        self.batch: Any = None

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.core.close()
            shutil.rmtree(self.base)

    def _do(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """A call that may be refused, as a caller may ask for anything."""
        try:
            return trio.run(function, *arguments)
        except FSError as error:
            if error.errno in (errno.EIO, errno.ESTALE):
                raise
            return None

    def _pick(self, number: int, kind: type[Node] = Node) -> Node:
        found = [node for node in self.core.tree.nodes.values() if isinstance(node, kind) and node.links()]
        return found[number % len(found)] if found else self.core.tree.root

    def _folder(self, number: int) -> int:
        found = [
            n for n in self.core.tree.nodes.values() if isinstance(n, Directory) and (n.nlink or n.ino == 1)
        ]
        return found[number % len(found)].ino

    @rule(parent=numbers, name=names, mode=st.sampled_from([FILE, 0o100755, FOLDER, FOLDER, FIFO, 0o100000]))
    def create(self, parent: int, name: bytes, mode: int) -> None:
        self._do(self.core.fs.create, self._folder(parent), name, mode, WHO)

    @rule(parent=numbers, name=names, text=targets)
    def symlink(self, parent: int, name: bytes, text: bytes) -> None:
        self._do(self.core.fs.create, self._folder(parent), name, LINK, WHO, 0, text)

    @rule(which=numbers, offset=st.integers(0, 60), data=contents, stamp=st.booleans())
    def write(self, which: int, offset: int, data: bytes, stamp: bool) -> None:
        node = self._pick(which, File)
        if isinstance(node, File):
            self._do(self.core.fs.write, node, offset, data, stamp)

    @rule(which=numbers, size=st.integers(0, 60))
    def truncate(self, which: int, size: int) -> None:
        node = self._pick(which, File)
        if isinstance(node, File):
            self.core.fs.set_attributes(node.ino, size=size)

    @rule(which=numbers, mode=st.integers(0, 0o7777), uid=numbers, atime=times, mtime=times)
    def attributes(self, which: int, mode: int, uid: int, atime: int, mtime: int) -> None:
        node = self._pick(which)
        self.core.fs.set_attributes(node.ino, mode=mode, uid=uid, atime=atime, mtime=mtime)

    @rule(which=numbers, name=st.sampled_from([b"user.a", b"user.b"]), value=st.none() | contents)
    def xattr(self, which: int, name: bytes, value: bytes | None) -> None:
        node = self._pick(which)
        if value is not None:
            set_xattr(self.core, node.ino, name, value)
        elif node.xattrs and name in node.xattrs:
            self.core.fs.remove_xattr(node.ino, name)

    @rule(which=numbers, parent=numbers, name=names)
    def link(self, which: int, parent: int, name: bytes) -> None:
        self._do(self.core.fs.link, self._pick(which, File).ino, self._folder(parent), name)

    @rule(which=numbers)
    def remove(self, which: int) -> None:
        node = self._pick(which)
        if node.parent is not None:
            call = self.core.fs.rmdir if isinstance(node, Directory) else self.core.fs.unlink
            self._do(call, node.parent.ino, node.name)

    @rule(which=numbers, parent=numbers, name=names, flags=st.sampled_from([0, 0, RENAME_EXCHANGE]))
    def rename(self, which: int, parent: int, name: bytes, flags: int) -> None:
        node = self._pick(which)
        if node.parent is not None:
            self._do(self.core.fs.rename, node.parent.ino, node.name, self._folder(parent), name, flags)

    @rule(which=numbers)
    def use_an_unlinked_file(self, which: int) -> None:
        node = self._pick(which, File)
        if isinstance(node, File) and node.parent is not None and node.nlink == 1:
            fs = self.core.fs
            fs.open(node.ino, os.O_RDWR)
            before = read(self.core, node)
            trio.run(fs.unlink, node.parent.ino, node.name)
            write(self.core, node, len(before), b"more")
            assert read(self.core, node) == before + b"more"
            fs.release(node, os.O_RDWR)

    @rule()
    def unload(self) -> None:
        self.core.fs._sweep(0)

    @rule()
    def commit(self) -> None:
        self._commit()
        assert not self.core.fs.is_dirty

    def _commit(self) -> None:
        self.core.look()
        trio.run(self.core.committer.drain)

    @precondition(lambda self: self.core.fs.is_dirty)
    @rule()
    def begin_to_commit(self) -> None:
        """A commit that failed: frozen and captured, to be tried again."""
        self.core.committer._worker = _Failing()  # type: ignore[assignment]
        with pytest.raises(StoreError):
            trio.run(self.core.committer.commit, None, 1)
        self.core.committer._worker = cast(WorkerProcess, self.core.worker)

    @rule(keep_journal=st.booleans())
    def die(self, keep_journal: bool) -> None:
        """With the journal as it is, or after git took everything and before the journal was told."""
        before = self.core.dump()
        if not keep_journal:
            kept = self.base + "/kept"
            shutil.copytree(self.core.state, kept)
            self._commit()
            self.core.close()
            shutil.rmtree(self.core.state)
            os.rename(kept, self.core.state)
        self.core = self.core.crash() if keep_journal else Core(self.base, segment_size=4000)
        found = differences(before, self.core.dump())
        assert not found, "\n".join(found)

    @rule()
    def compare_with_git_alone(self) -> None:
        """A stranger who has the repository, and no journal."""
        self._commit()
        before = self.core.dump()
        with tempfile.TemporaryDirectory() as other:
            shutil.copytree(self.core.git_dir, other + "/repo.git")
            stranger = Core(other)
            found = differences(before, stranger.dump())
            stranger.close()
            assert not found, "\n".join(found)


class _Failing:
    async def ask(self, *_: Any, ahead: Any = ()) -> Any:
        raise StoreError("no")


TestRecovery = RecoveryMachine.TestCase
TestRecovery.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
