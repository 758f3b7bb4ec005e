"""From a batch to git's trees: what is written, where it goes, and how little of it.

A core without a kernel makes the changes; git itself says what became of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from isal import isal_zlib
from support.core import BRANCH, SIDE, WHO, Core, differences
from test_store_support import MIB, fsck
from test_store_support import git as run_git

from caiafs.aio import Syncer
from caiafs.committer import build
from caiafs.committer.build import Builder
from caiafs.errors import JournalDamaged, StoreError
from caiafs.journal import Reader
from caiafs.records.side import bucket_name
from caiafs.store import TreeEntry, encode_tree
from caiafs.tree import DirectoryState, File


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    yield made
    made.commit()
    before = made.dump()
    made.close()
    assert not fsck(made.git_dir)
    again = Core(tmp_path)
    assert not differences(before, again.dump(), ignore=("atime",))
    again.close()


def git(core: Core, *words: str) -> str:
    return run_git(core.git_dir, *words).decode().rstrip("\n")


def put(core: Core, path: str, data: bytes = b"x\n", mode: int = 0o100644) -> File:
    node = core.run(core.put, os.fsencode(path), data, mode)
    assert isinstance(node, File)
    return node


def listing(core: Core, tree: str = "main") -> dict[str, str]:
    """Path to mode, kind and object id, subdirectories among them."""
    lines = git(core, "ls-tree", "-rt", tree).splitlines()
    return {line.split("\t")[1]: line.split("\t")[0] for line in lines}


def written(core: Core) -> set[str]:
    """Every object of the repository, as "kind id"."""
    lines = git(core, "cat-file", "--batch-check=%(objecttype) %(objectname)", "--batch-all-objects")
    return set(lines.splitlines())


def kinds(objects: set[str]) -> list[str]:
    return sorted(line.split()[0] for line in objects)


def test_the_executable_bit_and_links_are_what_git_knows(core: Core) -> None:
    put(core, "plain")
    put(core, "tool", mode=0o100755)
    put(core, "odd", mode=0o102751)
    core.run(core.fs.create, 1, b"link", 0o120777, WHO, 0, b"no/where")
    core.commit()
    found = {path: line.split()[0] for path, line in listing(core).items()}
    assert found == {"plain": "100644", "tool": "100755", "odd": "100755", "link": "120000"}
    assert git(core, "cat-file", "blob", "main:link") == "no/where"


@pytest.mark.parametrize("size", [3 * 4096, 3 * MIB + 5])
def test_a_file_is_pieced_together_from_base_extents_and_holes(core: Core, size: int) -> None:
    expected = bytearray(os.urandom(size))
    node = put(core, "f", bytes(expected))
    core.commit()
    for offset, data in (
        (5, b"first"),
        (size // 2, b"middle" * 100),
        (size - 2, b"over the end"),
        (size + 9000, b"z"),
    ):
        core.run(core.fs.write, node, offset, data)
        expected.extend(bytes(max(0, offset + len(data) - len(expected))))
        expected[offset : offset + len(data)] = data
    core.commit()
    assert run_git(core.git_dir, "cat-file", "blob", "main:f") == expected
    core.fs.set_attributes(node.ino, size=size // 3)
    core.fs.set_attributes(node.ino, size=size)
    core.commit()
    del expected[size // 3 :]
    expected.extend(bytes(size - size // 3))
    assert run_git(core.git_dir, "cat-file", "blob", "main:f") == expected


def test_one_change_writes_its_path_and_nothing_else(core: Core) -> None:
    for directory in range(12):
        for name in range(30):
            put(core, f"top/d{directory}/f{name}")
    core.commit()
    before, trees = written(core), listing(core)
    put(core, "top/d3/f7", b"changed\n")
    core.commit()
    new = written(core) - before
    # The user's side: blob, d3, top, root, commit. The side ref's: one bucket each of d3, top and the
    # root's, their trees, meta, the side commit and its tree.
    assert kinds(new) == sorted(["blob"] * 5 + ["commit"] * 2 + ["tree"] * 7)
    after = listing(core)
    assert {path for path in after if after[path] != trees[path]} == {"top", "top/d3", "top/d3/f7"}


def test_a_bucket_that_is_not_found_at_once_is_looked_for() -> None:
    """Its name is in an object id first: it is not taken for absent, which would lose its records."""
    names = [b"%d" % number for number in range(1000)]
    (five,), (six,) = (
        [name for name in names if bucket_name(name, 16) == bucket][:1] for bucket in (b"@5", b"@6")
    )
    some = b"\x11" * 20
    buckets = [TreeEntry(b"@%x" % number, 0o100644, bytes([number]) * 20) for number in range(16)]
    old = encode_tree([TreeEntry(b"=a", 0o040000, b"\x11 @6\0" + b"\x11" * 15), *buckets])
    state = DirectoryState(2, some, some, 1000, {})
    assert build._buckets(state, old, [five]) == ({b"@5": b"\x05" * 20}, 16)
    assert build._buckets(state, old, [five, six]) == ({entry.name: entry.oid for entry in buckets}, 16)
    few = DirectoryState(2, some, some, 5, {})
    assert build._buckets(few, old, [five])[1] == 16, "it shrank"


def test_of_a_wide_directory_only_the_part_that_changed_is_parsed_and_deflated(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    deflated: list[int] = []
    real = isal_zlib.compressobj

    def compressobj(*settings: int) -> object:
        deflated.append(1)
        return real(*settings)

    monkeypatch.setattr(isal_zlib, "compressobj", compressobj)
    for number in range(2500):
        put(core, f"name{number:04}", b"%d" % number)
    core.commit()
    parts = len(deflated)
    assert parts == 6, "2,500 entries of 36 bytes"
    monkeypatch.delattr(build, "parse_tree")
    put(core, "name1200", b"changed")
    core.commit()
    assert len(deflated) == parts + 1
    put(core, "name2499x", b"new")
    core.commit()
    assert len(deflated) == parts + 2
    assert not fsck(core.git_dir)
    assert git(core, "cat-file", "blob", "main:name1200") == "changed"
    assert len(listing(core)) == 2501


def test_a_commit_waits_for_the_disk_four_times(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack, index and the values of both refs at once; then, in this order, what leads there."""
    waits: list[list[str]] = []

    def names(fds: Sequence[int]) -> list[str]:
        return [os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), core.git_dir) for fd in fds]

    put(core, "a")
    core.commit()
    put(core, "b")
    monkeypatch.setattr(Syncer, "sync", lambda _, fds: waits.append(sorted(map(os.path.dirname, names(fds)))))
    monkeypatch.setattr(os, "fsync", lambda fd: waits.append(names([fd])))
    core.commit()
    tmp = f"caiafs/tmp/{BRANCH.hex()}"
    expected = [
        ["caiafs/locks", "caiafs/locks", tmp, tmp],
        ["objects/pack"],
        ["refs/caiafs"],
        ["refs/heads"],
    ]
    assert waits == expected


@pytest.mark.parametrize("failing", ["refs/caiafs", "refs/heads"])
def test_a_ref_that_was_moved_and_not_synced_is_synced_by_the_next_try(
    core: Core, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), core.git_dir))
        if synced.count(failing) == 1 and synced[-1] == failing:
            raise OSError(errno.EIO, "for a moment")
        real(fd)

    put(core, "a")
    core.commit()
    put(core, "b")
    monkeypatch.setattr(os, "fsync", fsync)
    commit = core.commit()
    refs = [name for name in synced if name.startswith("refs/")]
    assert refs == ([failing] if failing == "refs/caiafs" else ["refs/caiafs", failing]) + [
        "refs/caiafs",
        "refs/heads",
    ]
    assert core.store.read_ref(BRANCH) == commit


def test_what_a_commit_writes_does_not_grow_with_the_tree(core: Core) -> None:
    counts = []
    for size in (20, 200):
        for number in range(size):
            put(core, f"s{size}/d{number % 10}/f{number}")
        core.commit()
        before = written(core)
        put(core, f"s{size}/d1/f1", b"changed among %d\n" % size)
        core.commit()
        counts.append(kinds(written(core) - before))
    assert counts[0] == counts[1]


def test_equal_contents_and_hard_links_are_one_blob(core: Core) -> None:
    node = put(core, "a", b"the same\n")
    put(core, "d/copy", b"the same\n")
    core.run(core.fs.link, node.ino, 1, b"link")
    core.commit()
    oids = {path: line.split()[2] for path, line in listing(core).items() if " blob " in line}
    assert set(oids) == {"a", "d/copy", "link"}
    assert len(set(oids.values())) == 1
    core.run(core.fs.write, node, 0, b"THE")
    core.commit()
    assert git(core, "cat-file", "blob", "main:link") == git(core, "cat-file", "blob", "main:a") == "THE same"


def test_an_empty_directory_is_not_in_git_and_not_lost(core: Core) -> None:
    put(core, "d/only")
    core.commit()
    core.run(core.drop, b"d/only")
    core.commit()
    assert listing(core) == {}
    assert b"/d" in core.dump()
    assert git(core, "rev-parse", "main^{tree}") == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def test_what_git_refuses_rides_beside_the_tree(core: Core) -> None:
    put(core, "work/.git/config", b"[core]\n")
    put(core, "work/.GIT/deep/file", b"deep\n")
    put(core, "work/.gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = --upload-pack=evil\n')
    put(core, "work/fine")
    core.commit()
    assert set(listing(core)) == {"work", "work/fine"}
    beside = listing(core, SIDE.decode())
    assert beside["root/=work/=.git/~config"].split()[1] == "blob"
    assert "root/=work/=.GIT/=deep/~file" in beside
    assert "root/=work/~.gitmodules" in beside


def test_a_name_that_leaves_what_git_refuses_moves_into_the_tree(core: Core) -> None:
    put(core, ".git/kept/file", b"kept\n")
    core.commit()
    core.run(core.fs.rename, 1, b".git", 1, b"git", 0)
    core.commit()
    assert set(listing(core)) == {"git", "git/kept", "git/kept/file"}
    assert not any("~" in path for path in listing(core, SIDE.decode()))
    core.run(core.fs.rename, 1, b"git", 1, b".git", 0)
    core.commit()
    assert listing(core) == {}


def test_metadata_alone_makes_no_commit_on_the_branch(core: Core) -> None:
    node = put(core, "f")
    first = core.commit()
    side = git(core, "rev-parse", SIDE.decode())
    core.fs.set_attributes(node.ino, mode=0o600, mtime=5)
    assert core.commit() == first
    assert git(core, "rev-parse", SIDE.decode()) != side
    assert git(core, "rev-parse", "main") == (first or b"").hex()


def test_records_are_split_so_that_one_change_rewrites_few(core: Core) -> None:
    names = [f"name{number}" for number in range(200)]
    for name in names:
        put(core, f"d/{name}")
    core.commit()
    buckets = {path for path in listing(core, SIDE.decode()) if path.startswith("root/=d/@")}
    assert buckets == {f"root/=d/{os.fsdecode(bucket_name(os.fsencode(name), 16))}" for name in names}
    assert len(buckets) == 16
    before = listing(core, SIDE.decode())
    put(core, "d/name77", b"changed\n")
    core.commit()
    after = listing(core, SIDE.decode())
    mine = f"root/=d/{os.fsdecode(bucket_name(b'name77', 16))}"
    assert [path for path in sorted(buckets) if after[path] != before[path]] == [mine]
    for name in names[20:]:
        core.run(core.drop, os.fsencode(f"d/{name}"))
    core.commit()
    assert [path for path in listing(core, SIDE.decode()) if path.startswith("root/=d/@")] == ["root/=d/@"]


def test_a_path_of_3000_levels_is_built_without_recursion(core: Core) -> None:
    put(core, "/".join(["n"] * 3000 + ["file"]))
    core.commit()
    assert len(git(core, "rev-list", "--objects", "main").splitlines()) == 1 + 3001 + 1


def test_a_renamed_directory_is_not_written_again(core: Core) -> None:
    for number in range(20):
        put(core, f"old/f{number}", f"{number}\n".encode())
    core.commit()
    tree, before = git(core, "rev-parse", "main:old"), written(core)
    core.run(core.fs.rename, 1, b"old", 1, b"new", 0)
    core.commit()
    assert git(core, "rev-parse", "main:new") == tree
    new = kinds(written(core) - before)
    assert new.count("blob") == 2  # the root's records, meta
    assert new.count("tree") == 3  # the root, the side ref's root, and the tree that holds both
    assert git(core, "log", "-1", "--format=%s", "main") == "Rename old to new"


def test_contents_are_written_while_the_rest_of_the_batch_is_told(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are in one piece, before the order; what the order then makes of them is the same."""
    for number in range(150):
        put(core, f"d{number % 7}/f{number}", b"%d" % number)
    put(core, "empty", b"")
    ahead: list[int] = []
    build = Builder.build

    def spying(builder: Builder, *arguments: Any) -> Any:
        ahead.append(len(builder._packer))
        return build(builder, *arguments)

    monkeypatch.setattr(Builder, "build", spying)
    core.commit()
    assert 100 < ahead[0] <= 150
    assert run_git(core.git_dir, "cat-file", "blob", "main:d3/f10") == b"10"
    assert len(git(core, "ls-tree", "-r", "--name-only", "main").splitlines()) == 151


@pytest.mark.parametrize("times", [1, 10**6])
def test_what_cannot_be_written_ahead_is_left_to_the_order(
    core: Core, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """It tries again, and tells of an error that stays."""
    for number in range(150):
        put(core, f"f{number}", b"%d" % number)
    failures = []
    read = Reader.read

    def failing(reader: Reader, position: int, length: int) -> bytes:
        if len(failures) < times:
            failures.append(position)
            raise JournalDamaged("not there")
        return read(reader, position, length)

    monkeypatch.setattr(Reader, "read", failing)
    if times == 1:
        core.commit()
        assert failures
    else:
        with pytest.raises(StoreError, match="not there"):
            core.commit()
    monkeypatch.setattr(Reader, "read", read)
    core.commit()
    assert len(git(core, "ls-tree", "-r", "--name-only", "main").splitlines()) == 150
    assert not [name for name in os.listdir(core.worker._tmp) if name.endswith(".pack")]
