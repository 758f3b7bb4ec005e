"""Attributes in the core: modes, owners, times, extended ones, access lists, and where a file is safe."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio
from support.calls import FOLDER, LINK, make, refuses, same, set_xattr, write
from support.core import WHO, Core
from support.disks import FailingDisk

from caiafs.filesystem import XATTR_SIZE_MAX, acl
from caiafs.operations import Operations
from caiafs.tree import ROOT_INO, File
from caiafs.virtual import Virtual

STRANGER = 4711

# ---- modes, owners and times


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
    core.fs.set_attributes(file.ino, by=0 if privileged else WHO.uid, **change)  # type: ignore[arg-type]
    assert file.mode & 0o7777 == left


def test_a_chown_of_nobody_takes_no_set_id_bits_for_who_may_not_change_the_mode(core: Core) -> None:
    file = make(core, b"file", data=b"data")
    core.fs.set_attributes(file.ino, mode=0o4755)
    refuses(errno.EPERM, core.fs.set_attributes, file.ino, ctime=7, by=STRANGER)
    assert file.mode & 0o7777 == 0o4755
    core.fs.set_attributes(file.ino, by=STRANGER)  # the kernel's, before a write
    assert file.mode & 0o7777 == 0o755
    core.fs.set_attributes(file.ino, ctime=7, by=STRANGER)  # there is nothing to take
    assert file.ctime == 7


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


def test_a_set_gid_directory_passes_its_group_on(core: Core) -> None:
    folder = make(core, b"folder", FOLDER)
    core.fs.set_attributes(folder.ino, mode=0o2775, gid=77)
    file, below = make(core, b"file", parent=folder.ino), make(core, b"below", FOLDER, folder.ino)
    assert (file.gid, below.gid) == (77, 77)
    assert (file.mode & stat.S_ISGID, below.mode & stat.S_ISGID) == (0, stat.S_ISGID)


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


# ---- extended attributes


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


# ---- access lists


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
    before = core.journal.appended
    core.fs.remove_xattr(file.ino, acl.ACCESS)  # one that is not there is not missed
    core.fs.remove_xattr(file.ino, acl.DEFAULT)
    assert core.journal.appended == before
    refuses(errno.EINVAL, set_xattr, core, file.ino, acl.ACCESS, b"nonsense")
    refuses(errno.EACCES, set_xattr, core, file.ino, acl.DEFAULT, LIST)
    link = make(core, b"link", LINK)
    refuses(errno.EOPNOTSUPP, set_xattr, core, link.ino, acl.ACCESS, LIST)


@pytest.mark.parametrize(("gid", "left"), [(2000, 0o2770), (1000, 0o770)])
def test_a_caller_that_proc_does_not_show_is_in_its_own_group_alone(core: Core, gid: int, left: int) -> None:
    file = make(core, b"file")
    core.fs.set_attributes(file.ino, gid=2000)
    core.fs.set_attributes(file.ino, mode=0o2750)
    caller = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1000, gid=gid, pid=0))
    requests = Operations(core.fs, Virtual({}), core.metrics, lambda: None, "/", lambda: "/")
    core.run(requests.setxattr, file.ino, acl.ACCESS, LIST, caller)
    assert file.mode & 0o7777 == left


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
