"""Directory streams: what a listing shows while entries come and go, positions, types and inode numbers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from support.syscalls import Directory
from support.users import in_child, join

from .kit import DIRECTORY, KINDS, NAME_MAX, NOT_DIRECTORY, S_IFMT, check, make, opened, refused, write


def fill(d: Path, count: int, form: str = "f{:05}") -> list[bytes]:
    fd = os.open(d, os.O_RDONLY)
    names = [form.format(number) for number in range(count)]
    for name in names:
        os.mknod(name, stat.S_IFREG | 0o644, dir_fd=fd)
    os.close(fd)
    return [name.encode() for name in names]


def once(found: list[bytes]) -> set[bytes]:
    assert len(found) == len(set(found)), "listed twice"
    return set(found) - {b".", b".."}


@check(kind=KINDS)
def check_type_and_inode_agree_with_stat(d: Path, kind: str) -> None:
    info = os.lstat(make(d / "x", kind))
    with Directory(d) as stream:
        entries = {entry.name: entry for entry in stream.rest()}
    assert entries.keys() == {b".", b"..", b"x"}
    assert entries[b"x"].inode == info.st_ino
    assert entries[b"x"].type in (0, S_IFMT[kind] >> 12)
    assert entries[b"."].inode == os.lstat(d).st_ino
    assert entries[b".."].inode == os.lstat(d / "..").st_ino
    (entry,) = os.scandir(d)
    assert entry.inode() == info.st_ino
    assert entry.is_dir(follow_symlinks=False) == (kind == DIRECTORY)


@check(kind=NOT_DIRECTORY)
def check_listing_of_something_else(d: Path, kind: str) -> None:
    make(d / "x", kind)
    refused((errno.ENOTDIR, errno.ENOENT), os.listdir, d / "x")


@check(count=(0, 1, 2, 100, 2000))
def check_every_entry_is_listed_once(d: Path, count: int) -> None:
    names = fill(d, count)
    with Directory(d) as stream:
        found = [entry.name for entry in stream.rest()]
        assert {b".", b".."} <= set(found)
        assert once(found) == set(names)
        assert stream.read() is None
        stream.rewind()
        assert once([entry.name for entry in stream.rest()]) == set(names)


@check()
def check_listing_of_long_names(d: Path) -> None:
    names = [b"%03d" % number + b"n" * (NAME_MAX - 3) for number in range(300)]
    for name in names:
        os.mkdir(os.path.join(os.fsencode(d), name))
    assert sorted(os.listdir(os.fsencode(d))) == names


@check()
def check_rewind_shows_the_present(d: Path) -> None:
    write(d / "old")
    with Directory(d) as stream:
        stream.rest()
        write(d / "new")
        os.unlink(d / "old")
        stream.rewind()
        assert once([entry.name for entry in stream.rest()]) == {b"new"}


@check()
def check_open_stream_of_a_renamed_directory(d: Path) -> None:
    (d / "a").mkdir()
    names = fill(d / "a", 300)
    with Directory(d / "a") as stream:
        found = [entry.name for entry in (stream.read(), stream.read(), stream.read()) if entry]
        os.rename(d / "a", d / "b")
        found += [entry.name for entry in stream.rest()]
    assert once(found) == set(names)


@check()
def check_deleting_while_listing(d: Path) -> None:
    """5,000 entries, half of them removed during the listing: what stays is listed exactly once."""
    names = fill(d, 5000)
    here = os.open(d, os.O_RDONLY)
    found = []
    removed = 0
    with Directory(d) as stream:
        while entry := stream.read():
            found.append(entry.name)
            if len(found) % 20 == 0 and removed < 5000:
                for number in range(removed, min(removed + 40, 5000), 2):
                    os.unlink(names[number], dir_fd=here)
                removed += 40
    os.close(here)
    assert set(names[1::2]) <= once(found) <= set(names)
    with Directory(d) as stream:
        assert once([entry.name for entry in stream.rest()]) == {
            name for number, name in enumerate(names) if number % 2 or number >= removed
        }
    shutil.rmtree(d)
    d.mkdir()


@check()
def check_deleting_what_was_just_listed(d: Path) -> None:
    """The way of rm -r."""
    names = fill(d, 1000)
    here = os.open(d, os.O_RDONLY)
    found = []
    with Directory(d) as stream:
        while entry := stream.read():
            if entry.name not in (b".", b".."):
                found.append(entry.name)
                os.unlink(entry.name, dir_fd=here)
    os.close(here)
    assert once(found) == set(names)
    assert os.listdir(d) == []


@check()
def check_adding_while_listing(d: Path) -> None:
    names = fill(d, 500)
    found = []
    with Directory(d) as stream:
        while entry := stream.read():
            found.append(entry.name)
            if len(found) % 5 == 0 and len(found) < 600:
                write(d / f"{'az'[len(found) % 2]}{len(found)}")
            assert len(found) < 2000, "the listing does not end"
    assert set(names) <= once(found)


@check()
def check_renaming_while_listing(d: Path) -> None:
    """Entries that are left alone are listed once, whatever moves around them."""
    steady = fill(d, 300, "s{:03}")
    for number in range(100):
        write(d / f"m{number:03}")
    found = []
    with Directory(d) as stream:
        while entry := stream.read():
            found.append(entry.name)
            if len(found) % 4 == 0 and len(found) // 4 <= 100:
                number = len(found) // 4 - 1
                os.rename(d / f"m{number:03}", d / f"{'rz'[number % 2]}{number:03}")
            assert len(found) < 2000, "the listing does not end"
    steady_found = [name for name in found if name.startswith(b"s")]
    assert once(steady_found) == set(steady)


@check()
def check_positions_are_stable(d: Path) -> None:
    """seekdir to what telldir said gives the same entry, also after others came and went."""
    names = fill(d, 400)
    places = []
    with Directory(d) as stream:
        while True:
            place = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            places.append((place, entry.name))
        for place, name in places[::7] + places[::-11]:
            stream.seek(place)
            entry = stream.read()
            assert entry
            assert entry.name == name
        order = [name for _, name in places]
        for name in names[::3]:
            os.unlink(d / name.decode())
        for number in range(100):
            write(d / f"{'ax'[number % 2]}{number:03}")
        for index in range(5, len(places), 37):
            place, name = places[index]
            stream.seek(place)
            rest = [entry.name for entry in stream.rest()]
            once(rest)
            assert set(order[index:]) - set(names[::3]) <= set(rest)


@check()
def check_two_streams_of_one_directory(d: Path) -> None:
    names = fill(d, 300)
    with Directory(d) as one, Directory(d) as two:
        found_one: list[bytes] = []
        found_two: list[bytes] = []
        for turn in range(700):
            stream, found = ((one, found_one), (two, found_two))[turn % 2]
            if entry := stream.read():
                found.append(entry.name)
        assert once(found_one) == once(found_two) == set(names)


@check()
def check_inode_numbers_are_unique(d: Path) -> None:
    fill(d, 500)
    (d / "sub").mkdir()
    fill(d / "sub", 100)
    inodes = [entry.inode() for folder in (d, d / "sub") for entry in os.scandir(folder)]
    assert len(set(inodes)) == 601
    assert all(inodes)


@check()
def check_listing_while_others_work(d: Path) -> None:
    """One process adds and removes, the other lists: names that stay are never missed."""
    steady = set(fill(d, 200, "s{:03}"))

    def churn() -> None:
        for number in range(150):
            write(d / f"c{number}")
            if number >= 10:
                os.unlink(d / f"c{number - 10}")

    pid = in_child(churn)
    for _ in range(8):
        with Directory(d) as stream:
            assert steady <= once([entry.name for entry in stream.rest()])
    join(pid)


@check()
def check_statfs(d: Path) -> None:
    for info in (os.statvfs(d), os.statvfs(write(d / "x"))):
        assert info.f_namemax == NAME_MAX
        assert info.f_bsize >= 512
        assert info.f_frsize >= 512
        assert info.f_blocks >= info.f_bfree >= info.f_bavail > 0
        assert info.f_files >= info.f_ffree >= 0
    with opened(d / "x", os.O_RDONLY) as fd:
        assert os.fstatvfs(fd).f_blocks == os.statvfs(d).f_blocks
    assert os.pathconf(d, "PC_NAME_MAX") == NAME_MAX
    refused(errno.ENOENT, os.statvfs, d / "none")


@check()
def check_whole_tree_is_removed(d: Path) -> None:
    for folder in ("a", "a/b", "a/b/c", "d"):
        (d / "t" / folder).mkdir(parents=True)
        for kind in ("regular", "fifo", "socket", "symlink"):
            make(d / "t" / folder / kind, kind)
    shutil.rmtree(d / "t")
    assert os.listdir(d) == []
