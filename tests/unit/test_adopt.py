"""Commits from outside, taken in name by name: the table in docs/consistency.md, row by row.

The outside is git itself (`git fast-import`); the inside is a core without a kernel. Every test ends
with another life of the mount and `git fsck --strict`, so that what was shown is also what is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio
from support.core import BRANCH, WHO, Core, differences
from test_store_support import fsck
from test_store_support import git as run_git

from caiafs.errors import StoreError
from caiafs.filesystem.adopt import Adoption, Change
from caiafs.tree import Directory, File

Files = Mapping[str, bytes | None]
"""Path to content; None removes the path."""


def git(core: Core, *words: str, stdin: bytes = b"") -> str:
    return run_git(core.git_dir, *words, stdin=stdin).decode().rstrip("\n")


class Outside(Core):
    """A core whose branch others move, too."""

    def push(self, files: Files, *, mode: str = "100644", onto: str = "refs/heads/main^0") -> str:
        """A commit by somebody else on top of the branch; returns its id."""
        lines = [
            b"commit refs/heads/theirs\ncommitter Eve <eve@example.org> 1700000000 +0000\ndata 4\nEve\n\n"
        ]
        if onto:
            lines.append(b"from " + onto.encode() + b"\n")
        for path, data in files.items():
            if data is None:
                lines.append(f"D {path}\n".encode())
            else:
                lines.append(f"M {mode} inline {path}\ndata {len(data)}\n".encode() + data + b"\n")
        git(self, "fast-import", "--quiet", "--force", stdin=b"".join(lines))
        new = git(self, "rev-parse", "refs/heads/theirs")
        git(self, "update-ref", "-d", "refs/heads/theirs")
        git(self, "update-ref", BRANCH.decode(), new)
        return new

    def alter(self, *lines: str) -> str:
        """A commit by somebody else in fast-import's own words; returns its id."""
        head = "commit refs/heads/main\ncommitter Eve <eve@example.org> 1700000000 +0000\ndata 4\nEve\n\n"
        body = head + "from refs/heads/main^0\n" + "".join(line + "\n" for line in lines)
        git(self, "fast-import", "--quiet", stdin=body.encode())
        return git(self, "rev-parse", "main")

    def write(self, path: str, data: bytes) -> None:
        self.run(self.put, path.encode(), data)

    def remove(self, path: str) -> None:
        self.run(self.drop, path.encode())

    def shown(self) -> dict[str, bytes]:
        """Every file by path."""
        return {
            os.fsdecode(path[1:]): seen.content
            for path, seen in self.dump().items()
            if seen.mode & 0o170000 == 0o100000
        }

    def listed(self) -> dict[str, bytes]:
        """Every file of the branch, as git has it."""
        lines = git(self, "ls-tree", "-r", "main").splitlines()
        names = [line.split("\t")[1] for line in lines if " blob " in line]
        return {name: run_git(self.git_dir, "cat-file", "blob", f"main:{name}") for name in names}


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Outside]:
    made = Outside(tmp_path)
    for path in ("a", "b", "d/x", "d/y"):
        made.write(path, f"{path} as it was\n".encode())
    made.commit()
    yield made
    made.commit()
    before, listed = made.dump(), made.listed()
    assert made.shown() == listed
    made.close()
    again = Outside(tmp_path)
    assert not differences(before, again.dump(), ignore=("atime",))
    again.close()
    assert not fsck(made.git_dir)


def parents(core: Core, commit: str = "main") -> list[str]:
    return git(core, "rev-list", "--parents", "-n1", commit).split()[1:]


def test_what_only_they_changed_becomes_theirs(core: Outside) -> None:
    theirs = core.push({"a": b"theirs\n", "new/deep/file": b"new\n", "b": None})
    core.commit()
    assert core.shown() == {
        "a": b"theirs\n", "d/x": b"d/x as it was\n", "d/y": b"d/y as it was\n", "new/deep/file": b"new\n"
    }  # fmt: skip
    assert git(core, "rev-parse", "main") == theirs  # nothing of ours: no commit is made
    assert {(1, b"a"), (1, b"b"), (1, b"new")} <= set(core.touched)


def test_changes_that_do_not_overlap_are_merged(core: Outside) -> None:
    ours_before = git(core, "rev-parse", "main")
    theirs = core.push({"a": b"theirs\n"})
    core.write("b", b"ours\n")
    core.commit()
    assert core.shown()["a"] == b"theirs\n"
    assert core.shown()["b"] == b"ours\n"
    ours, second = parents(core)
    assert second == theirs
    assert parents(core, ours) == [ours_before]
    assert git(core, "log", "-1", "--format=%s", "main").startswith("Merge changes from outside")


def test_one_name_changed_on_both_sides_is_kept_twice(core: Outside) -> None:
    theirs = core.push({"a": b"theirs\n"})
    core.write("a", b"ours\n")
    core.commit()
    assert core.shown()["a"] == b"ours\n"
    assert core.shown()[f"a.theirs-{theirs[:7]}"] == b"theirs\n"
    message = git(core, "log", "-1", "--format=%B", "main")
    assert (
        f"a: changed outside, changed here: ours stays, theirs is beside it as a.theirs-{theirs[:7]}"
        in message
    )


def test_a_name_beside_that_is_taken_gets_a_number(core: Outside) -> None:
    theirs = core.push({"a": b"theirs\n"})
    core.write("a", b"ours\n")
    core.write(f"a.theirs-{theirs[:7]}", b"something else\n")
    core.commit()
    assert core.shown()[f"a.theirs-{theirs[:7]}"] == b"something else\n"
    assert core.shown()[f"a.theirs-{theirs[:7]}-2"] == b"theirs\n"


def test_a_name_beside_fits_into_255_bytes(core: Outside) -> None:
    name = "n" * 255
    core.write(name, b"first\n")
    core.commit()
    core.push({name: b"theirs\n"})
    core.write(name, b"ours\n")
    core.commit()
    beside = [path for path, data in core.shown().items() if data == b"theirs\n"]
    assert len(beside) == 1
    assert len(beside[0]) <= 255
    assert core.shown()[name] == b"ours\n"


def test_changed_outside_and_removed_here_stays_removed_with_theirs_beside(core: Outside) -> None:
    theirs = core.push({"a": b"theirs\n"})
    core.remove("a")
    core.commit()
    assert "a" not in core.shown()
    assert core.shown()[f"a.theirs-{theirs[:7]}"] == b"theirs\n"


def test_removed_outside_and_changed_here_is_ours(core: Outside) -> None:
    core.push({"a": None})
    core.write("a", b"ours\n")
    core.commit()
    assert core.shown()["a"] == b"ours\n"
    assert "a: removed outside, changed here: ours was kept" in git(core, "log", "-1", "--format=%B", "main")


def test_the_same_change_on_both_sides_is_no_conflict(core: Outside) -> None:
    core.push({"a": b"same\n", "b": None, "c": b"both\n"})
    core.write("a", b"same\n")
    core.write("c", b"both\n")
    core.remove("b")
    core.commit()
    assert core.shown() == {
        "a": b"same\n",
        "c": b"both\n",
        "d/x": b"d/x as it was\n",
        "d/y": b"d/y as it was\n",
    }


def test_a_symlink_that_was_read_by_a_name_beside_the_tree_is_not_changed_here(tmp_path: Path) -> None:
    core = Outside(tmp_path)
    core.write(".git/file", b"")
    core.write("folder/file", b"")
    folder = core.run(core.find, b"folder")
    link = core.run(core.fs.create, folder.ino, b"link", 0o120777, WHO, 0, b"a")
    core.run(core.fs.link, link.ino, core.run(core.find, b".git").ino, b"link")
    core.commit()
    core.close()
    core = Outside(tmp_path)
    core.run(core.find, b".git/link")
    core.push({"folder/link": b"b"}, mode="120000")
    core.commit()
    names = core.run(core.fs.children, core.run(core.find, b"folder"))
    assert set(names) == {b"file", b"link"}
    assert core.run(core.fs.readlink, core.run(core.find, b"folder/link").ino) == b"b"
    core.close()


def test_a_directory_removed_outside_keeps_what_is_ours_in_it(core: Outside) -> None:
    core.push({"d": None})
    core.write("d/mine", b"ours\n")
    core.commit()
    assert core.shown()["d/mine"] == b"ours\n"
    assert not {"d/x", "d/y"} & core.shown().keys()


def test_a_directory_removed_outside_goes_with_its_files(core: Outside) -> None:
    core.push({"d": None})
    core.commit()
    assert b"/d" not in core.dump()


def test_a_directory_added_on_both_sides_is_taken_name_by_name(core: Outside) -> None:
    theirs = core.push({"e/theirs": b"theirs\n", "e/both": b"theirs\n"})
    core.write("e/ours", b"ours\n")
    core.write("e/both", b"ours\n")
    core.commit()
    shown = core.shown()
    assert (shown["e/theirs"], shown["e/ours"], shown["e/both"]) == (b"theirs\n", b"ours\n", b"ours\n")
    assert shown[f"e/both.theirs-{theirs[:7]}"] == b"theirs\n"


def test_a_change_below_a_directory_that_is_a_file_of_ours_finds_a_place(core: Outside) -> None:
    core.push({"d/x": b"theirs\n"})
    core.remove("d/x")
    core.remove("d/y")
    core.remove("d")
    core.write("d", b"a file now\n")
    core.commit()
    assert core.shown()["d"] == b"a file now\n"
    assert b"theirs\n" in core.shown().values()


def test_a_file_that_becomes_a_directory_outside(core: Outside) -> None:
    core.push({"a": None, "a/inside": b"theirs\n"})
    core.commit()
    assert core.shown()["a/inside"] == b"theirs\n"


def test_a_directory_that_becomes_a_file_outside(core: Outside) -> None:
    core.push({"d": b"a file\n"})
    core.commit()
    assert core.shown()["d"] == b"a file\n"


def test_a_directory_that_becomes_a_file_outside_with_ours_in_it(core: Outside) -> None:
    theirs = core.push({"d": b"a file\n"})
    core.write("d/mine", b"ours\n")
    core.commit()
    assert core.shown()["d/mine"] == b"ours\n"
    assert core.shown()[f"d.theirs-{theirs[:7]}"] == b"a file\n"


def test_a_file_of_which_only_the_mode_changed_stays_the_same_inode(core: Outside) -> None:
    before = core.run(core.find, b"a").ino
    core.push({"a": b"a as it was\n"}, mode="100755")
    core.commit()
    node = core.run(core.find, b"a")
    assert (node.ino, node.mode & 0o111) == (before, 0o111)


def test_a_replaced_file_is_a_new_inode_and_whoever_has_the_old_one_open_keeps_it(core: Outside) -> None:
    old = core.run(core.find, b"a")
    core.fs.open(old.ino, os.O_RDONLY)
    core.push({"a": b"theirs\n"})
    core.commit()
    assert core.run(core.find, b"a").ino != old.ino
    assert isinstance(old, File)
    assert core.run(core.fs.read, old, 0, 100) == b"a as it was\n"
    core.fs.release(old, os.O_RDONLY)


def test_a_file_that_is_being_written_stays_and_theirs_is_beside_it(core: Outside) -> None:
    node = core.run(core.find, b"a")
    assert isinstance(node, File)
    core.fs.open(node.ino, os.O_WRONLY)
    core.run(core.fs.write, node, 0, b"A")
    core.commit()
    theirs = core.push({"a": b"theirs\n"})
    core.commit()
    assert core.run(core.find, b"a") is node
    assert core.shown()[f"a.theirs-{theirs[:7]}"] == b"theirs\n"
    core.fs.release(node, os.O_WRONLY)


def test_rewritten_history_is_followed_without_a_merge(core: Outside) -> None:
    core.write("a", b"second\n")
    core.commit()
    rewritten = core.push({"b": b"amended\n"}, onto="refs/heads/main~1")
    core.write("d/x", b"ours\n")
    core.commit()
    shown = core.shown()
    assert shown["b"] == b"amended\n"
    assert shown["a"] == b"a as it was\n"  # the commit that changed it was meant to go
    assert shown["d/x"] == b"ours\n"
    assert rewritten in git(core, "rev-list", "main").split()
    assert len(parents(core)) == 1


def test_a_deleted_branch_takes_nothing_and_comes_back_with_its_history(core: Outside) -> None:
    before = git(core, "rev-parse", "main")
    git(core, "update-ref", "-d", "refs/heads/main")
    core.look()
    core.write("a", b"later\n")
    core.commit()
    assert core.shown()["d/x"] == b"d/x as it was\n"
    assert parents(core) == [before]


def test_a_submodule_from_outside_is_a_directory_and_stays_what_it_was(core: Outside) -> None:
    linked = "1" * 40
    lines = (
        "commit refs/heads/main\ncommitter Eve <eve@example.org> 1700000000 +0000\ndata 4\nEve\n\n"
        f"from refs/heads/main^0\nM 160000 {linked} module\n"
    )
    git(core, "fast-import", "--quiet", stdin=lines.encode())
    core.commit()
    assert isinstance(core.run(core.find, b"module"), Directory)
    core.write("a", b"ours\n")
    core.commit()
    assert git(core, "rev-parse", "main:module") == linked


SUBMODULE = f"M 160000 {'1' * 40} module"


@pytest.mark.parametrize("new", ["M 644 inline l\ndata 4\nnew\n", "D l"], ids=["changed", "removed"])
def test_names_of_one_file_that_differ_outside_are_both_theirs(core: Outside, new: str) -> None:
    node = core.run(core.find, b"a")
    core.run(core.fs.link, node.ino, 1, b"l")
    core.commit()
    theirs = core.alter("M 755 inline a\ndata 12\na as it was\n", new)
    core.commit()
    assert core.shown().get("l") == (None if new == "D l" else b"new\n")
    assert git(core, "rev-parse", "main") == theirs
    assert core.run(core.find, b"a") is node
    assert (node.mode & 0o111, node.nlink) == (0o111, 1)


def test_the_kernel_forgets_every_name_of_a_file_of_which_one_changed_outside(core: Outside) -> None:
    core.run(core.fs.link, core.run(core.find, b"a").ino, core.run(core.find, b"d").ino, b"l")
    core.commit()
    core.push({"a": b"theirs\n"})
    core.commit()
    assert {(1, b"a"), (core.run(core.find, b"d").ino, b"l")} <= set(core.touched)


def test_what_is_kept_since_somebody_has_it_open_is_in_the_next_commit(core: Outside) -> None:
    node = core.run(core.find, b"a")
    assert isinstance(node, File)
    core.fs.open(node.ino, os.O_WRONLY)
    core.run(core.fs.write, node, 0, b"A")
    core.commit()
    core.push({"a": None})
    core.commit()
    assert core.listed()["a"] == b"A as it was\n"
    core.fs.release(node, os.O_WRONLY)


def test_a_submodule_removed_outside_with_ours_in_it_is_a_directory(core: Outside) -> None:
    core.alter(SUBMODULE)
    core.commit()
    core.write("module/deep/mine", b"ours\n")
    core.commit()
    core.alter("D module")
    core.commit()
    assert core.listed()["module/deep/mine"] == b"ours\n"


def test_a_submodule_renamed_while_its_removal_is_taken_in_is_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Outside(tmp_path)
    core.write("a", b"a\n")
    core.commit()
    core.alter(SUBMODULE)
    core.commit()
    core.write("module/mine", b"ours\n")
    core.commit()
    core.alter("D module")
    load = core.fs.load_below

    async def load_slowly(directory: Directory) -> None:
        await load(directory)
        await core.fs.rename(1, b"module", 1, b"moved", 0)

    monkeypatch.setattr(core.fs, "load_below", load_slowly)
    core.commit()
    core.commit()
    before = core.dump()
    assert before.keys() == {b"", b"/a", b"/moved", b"/moved/mine"}
    core.close()
    core = Outside(tmp_path)
    assert core.dump() == before
    core.close()
    assert not fsck(core.git_dir)


def test_a_submodule_that_becomes_a_directory_outside_is_one_with_ours_in_it(core: Outside) -> None:
    core.alter(SUBMODULE)
    core.commit()
    core.write("module/deep/mine", b"ours\n")
    core.commit()
    core.alter("D module", "M 644 inline module/theirs\ndata 4\nnew\n")
    core.commit()
    listed = core.listed()
    assert (listed["module/deep/mine"], listed["module/theirs"]) == (b"ours\n", b"new\n")


class Killed(Exception):
    """The daemon is killed."""


def made_of_three(base: Path) -> Outside:
    core = Outside(base)
    for path in ("a", "b", "c", "d/x"):
        core.write(path, b"0\n")
    core.commit()
    core.alter(SUBMODULE)
    core.commit()
    core.write("module/deep/mine", b"ours\n")
    core.commit()
    core.alter(
        "D module", *(f"M 644 inline {path}\ndata 2\n1\n" for path in ("a", "b", "c", "d/x", "module/y"))
    )
    return core


CAME = {
    "a": b"2\n",
    "b": b"1\n",
    "c": b"1\n",
    "d/x": b"1\n",
    "module/deep/mine": b"ours\n",
    "module/y": b"1\n",
}


@pytest.mark.parametrize("taken", range(1, 6))
def test_a_push_after_a_kill_amid_taking_one_in_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    core = made_of_three(tmp_path)
    take, count = Adoption.take, 0

    async def until_killed(adoption: Adoption, change: Change) -> None:
        nonlocal count
        await take(adoption, change)
        count += 1
        if count == taken:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Adoption, "take", until_killed)
        with pytest.raises(Killed):
            core.commit()
    core.close()
    core.push({"a": b"2\n"})
    core = Outside(tmp_path)
    core.commit()
    assert core.shown() == core.listed() == CAME
    core.close()
    assert not fsck(core.git_dir)


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_push_after_a_failure_amid_taking_one_in_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewritten: bool
) -> None:
    core = made_of_three(tmp_path)
    take, count = Adoption.take, 0

    async def until_trouble(adoption: Adoption, change: Change) -> None:
        nonlocal count
        count += 1
        if count == 3:
            theirs = {
                "a": b"2\n",
                "b": b"1\n",
                "c": b"1\n",
                "d/x": b"1\n",
                "module": None,
                "module/y": b"1\n",
            }
            await trio.to_thread.run_sync(
                lambda: core.push(theirs, onto="main~1" if rewritten else "refs/heads/main^0")
            )
            core.look()
            raise StoreError("no luck")
        await take(adoption, change)

    monkeypatch.setattr(Adoption, "take", until_trouble)
    core.commit()
    assert core.shown() == core.listed() == CAME
    core.close()
    assert not fsck(core.git_dir)
