"""Trees that nobody should have made: shown as far as a directory can, reported, not lost by a commit."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.core import BRANCH, IDENTITY, SIDE, WHO, Core

from caiafs.committer.build import Builder
from caiafs.errors import FSError, ObjectCorrupt, StoreError
from caiafs.records.side import decode_records, encode_record
from caiafs.store import BLOB, COMMIT, TREE, Store, encode_commit
from caiafs.store.objects import unfit_entries
from caiafs.tree import Content, ContentState, Directory, File, Node

NOBODY = b"\x77" * 20


class Hostile:
    """A repository into which anything can be written."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.git_dir = str(base / "repo.git")
        self.store = Store.create(self.git_dir)
        (base / "repo.git" / "caiafs").mkdir()

    def add(self, kind: int, data: bytes) -> bytes:
        with self.store.pack_writer(self.git_dir + "/caiafs") as packer:
            oid = packer.add(kind, data)
            pack = packer.finish()
        if pack is not None:
            pack.release()
        return oid

    def tree(self, *entries: tuple[bytes, bytes, bytes]) -> bytes:
        """A tree of (mode, name, object), as they come."""
        return self.add(TREE, b"".join(b"%b %b\0%b" % entry for entry in entries))

    def push(self, tree: bytes, *, raw: bytes | None = None) -> bytes:
        """A commit of *tree* on the branch, or these very bytes."""
        old = self.store.read_ref(BRANCH)
        data = raw or encode_commit(tree, () if old is None else (old,), IDENTITY, IDENTITY, 5, 5, 0, b"m")
        new = self.add(COMMIT, data)
        assert self.store.swap_ref(BRANCH, old, new, b"push", IDENTITY)
        return new

    def tip_tree(self, *path: bytes) -> bytes:
        """The bytes of a tree on the branch."""
        tip = self.store.read_ref(BRANCH)
        assert tip is not None
        oid = self.store.commit(tip).tree
        for name in path:
            oid = {entry.name: entry.oid for entry in self.store.tree(oid)}[name]
        return self.store.tree_bytes(oid)

    def mount(self) -> Core:
        return Core(self.base)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    made = Hostile(tmp_path)
    yield made
    made.store.close()


UNFIT = [
    pytest.param([(b"100644", b"..")], id="dot-dot"),
    pytest.param([(b"40000", b".")], id="dot"),
    pytest.param([(b"100644", b"")], id="empty"),
    pytest.param([(b"100644", b"../../etc/passwd")], id="escape"),
    pytest.param([(b"40000", b"a/b")], id="slash"),
    pytest.param([(b"100644", b"n" * 300)], id="overlong"),
    pytest.param([(b"100644", b"twice"), (b"100644", b"twice")], id="twice"),
    pytest.param([(b"100644", b"twice"), (b"40000", b"twice")], id="file-and-directory"),
    pytest.param([(b"20666", b"device")], id="device"),
]


def children(core: Core, node: Directory | None = None) -> dict[bytes, Node]:
    return core.run(core.fs.children, node or core.tree.root)


@pytest.mark.parametrize("unfit", UNFIT)
def test_unfit_entries_are_reported_and_outlive_commits(
    hostile: Hostile, unfit: list[tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    blob = hostile.add(BLOB, b"good")
    below = hostile.tree((b"100644", b"x", blob))
    bad = [(mode, name, below if mode == b"40000" else blob) for mode, name in unfit]
    hostile.push(hostile.tree(*bad, (b"100644", b"good", blob), (b"40000", b"sub", below)))
    before = unfit_entries(hostile.tip_tree(), b"")
    assert len(before) == len(bad)
    core = hostile.mount()
    assert set(children(core)) == {b"good", b"sub"}
    (told,) = core.fs.unfit.values()
    assert "cannot be shown" in told
    assert told in caplog.text
    core.run(core.put, b"new", b"new")
    core.run(core.put, b"good", b"better")
    core.run(core.drop, b"sub/x")
    core.commit()
    assert unfit_entries(hostile.tip_tree(), b"") == before
    core = core.crash()
    assert set(children(core)) == {b"good", b"new", b"sub"}
    core.close()


def test_a_name_that_is_twice_in_git_is_taken(hostile: Hostile) -> None:
    blob = hostile.add(BLOB, b"good")
    hostile.push(hostile.tree((b"100644", b"twice", blob), (b"100644", b"twice", blob)))
    core = hostile.mount()
    for act in (
        lambda: core.run(core.fs.lookup, 1, b"twice"),
        lambda: core.run(core.fs.create, 1, b"twice", 0o100644, WHO),
    ):
        with pytest.raises(FSError) as caught:
            act()
        assert caught.value.errno == errno.EIO
    node = core.run(core.put, b"other", b"x")
    for act in (
        lambda: core.run(core.fs.rename, 1, b"other", 1, b"twice", 0),
        lambda: core.run(core.fs.link, node.ino, 1, b"twice"),
    ):
        with pytest.raises(FSError) as caught:
            act()
        assert caught.value.errno == errno.EIO
    core.close()


def test_a_directory_with_unfit_entries_is_not_removed_nor_replaced(hostile: Hostile) -> None:
    blob = hostile.add(BLOB, b"good")
    below = hostile.tree((b"100644", b"..", blob))
    hostile.push(hostile.tree((b"40000", b"d", below)))
    core = hostile.mount()
    core.run(core.fs.create, 1, b"e", 0o040755, WHO)
    for act, code in (
        (lambda: core.run(core.fs.rmdir, 1, b"d"), errno.ENOTEMPTY),
        (lambda: core.run(core.fs.rename, 1, b"e", 1, b"d", 0), errno.ENOTEMPTY),
        (lambda: core.run(core.fs.rename, 1, b"d", 1, b".git", 0), errno.EXDEV),
    ):
        with pytest.raises(FSError) as caught:
            act()
        assert caught.value.errno == code
    core.run(core.fs.rename, 1, b"d", 1, b"moved", 0)
    core.commit()
    assert hostile.tip_tree(b"moved") == b"100644 ..\0" + blob
    core.close()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("unfit", UNFIT)
def test_unfit_entries_from_outside_are_taken_over_and_given_up(
    hostile: Hostile, unfit: list[tuple[bytes, bytes]], crash: bool
) -> None:
    blob = hostile.add(BLOB, b"good")
    below = hostile.tree((b"100644", b"x", blob))
    hostile.push(hostile.tree((b"40000", b"d", below)))
    core = hostile.mount()
    core.run(core.put, b"ours", b"ours")
    core.run(core.put, b"d/ours", b"ours")
    core.commit()
    entries = [(mode, name, below if mode == b"40000" else blob) for mode, name in unfit]
    bad = hostile.tree(*entries, (b"100644", b"x", blob))
    hostile.push(hostile.tree(*entries, (b"40000", b"d", bad), (b"100644", b"theirs", blob)))
    wanted = unfit_entries(hostile.tip_tree(), b"")
    core.run(core.put, b"d/late", b"late")
    if crash:
        core = core.crash()
    core.commit()
    if crash:
        core = core.crash()
    core.run(core.put, b"d/later", b"later")
    core.commit()
    assert set(children(core)) == {b"d", b"theirs"}
    assert unfit_entries(hostile.tip_tree(), b"") == wanted
    assert unfit_entries(hostile.tip_tree(b"d"), b"") == wanted
    assert {b"late", b"later"} <= {entry.name for entry in hostile.store.tree(tree_of(hostile, b"d"))}
    assert len(core.fs.unfit) == 2
    hostile.push(hostile.tree((b"40000", b"d", below), (b"100644", b"theirs", blob)))
    core.run(core.put, b"last", b"last")
    core.commit()
    assert unfit_entries(hostile.tip_tree(), b"") == unfit_entries(hostile.tip_tree(b"d"), b"") == []
    assert core.fs.unfit == {}
    core.close()


def tree_of(hostile: Hostile, *path: bytes) -> bytes:
    tip = hostile.store.read_ref(BRANCH)
    assert tip is not None
    oid = hostile.store.commit(tip).tree
    for name in path:
        oid = {entry.name: entry.oid for entry in hostile.store.tree(oid)}[name]
    return oid


@pytest.mark.parametrize("name", [b".git", b".GIT", b"git~1", b".g\xe2\x80\x8cit", b".git ", b".gitmodules"])
def test_a_directory_whose_name_git_refuses_keeps_what_is_in_it(hostile: Hostile, name: bytes) -> None:
    """Git has it, whatever git thinks of it: a change of one file in it must not cost the others."""
    blob = hostile.add(BLOB, b"kept")
    below = hostile.tree((b"100644", b"z", blob))
    bad = hostile.tree((b"100644", b"a", blob), (b"100644", b"b", blob), (b"40000", b"sub", below))
    hostile.push(hostile.tree((b"40000", name, bad)))
    core = hostile.mount()
    core.run(core.put, name + b"/a", b"changed")
    core.commit()
    core.run(core.put, name + b"/sub/y", b"new")
    core.commit()
    before = core.dump()
    core = core.crash()
    assert core.dump().keys() == before.keys()
    found = {path: seen.content for path, seen in core.dump().items() if seen.content}
    prefix = b"/" + name
    assert found == {
        prefix + b"/a": b"changed",
        prefix + b"/b": b"kept",
        prefix + b"/sub/z": b"kept",
        prefix + b"/sub/y": b"new",
    }
    core.run(core.fs.rename, 1, name, 1, b"fine", 0)
    core.run(core.fs.rename, 1, b"fine", 1, b".Git", 0)
    core.commit()
    core = core.crash()
    found = {
        path.replace(b"/.Git", prefix): seen.content for path, seen in core.dump().items() if seen.content
    }
    assert found[prefix + b"/b"] == found[prefix + b"/sub/z"] == b"kept"
    assert hostile.tip_tree() == b""  # under its new name, git has to refuse it
    core.close()


def test_a_subtree_that_is_missing_costs_itself_alone(hostile: Hostile) -> None:
    blob = hostile.add(BLOB, b"good")
    hostile.push(
        hostile.tree((b"40000", b"blob", blob), (b"40000", b"gone", NOBODY), (b"100644", b"good", blob))
    )
    core = hostile.mount()
    found = children(core)
    assert set(found) == {b"blob", b"gone", b"good"}
    for name in (b"blob", b"gone"):
        node = found[name]
        assert isinstance(node, Directory)
        with pytest.raises(FSError) as caught:
            children(core, node)
        assert caught.value.errno == errno.EIO
    core.run(core.put, b"new", b"new")
    core.commit()
    assert {entry.name for entry in hostile.store.tree(tree_of(hostile))} >= {b"blob", b"gone", b"new"}
    core.close()


def test_a_file_whose_blob_is_missing_keeps_its_size_to_itself(hostile: Hostile) -> None:
    """A chmod of an unreadable file must not record it as empty."""
    tree = hostile.add(TREE, b"")
    hostile.push(hostile.tree((b"100644", b"gone", NOBODY), (b"100644", b"tree", tree)))
    core = hostile.mount()
    node = children(core)[b"gone"]
    with pytest.raises(FSError) as caught:
        core.fs.open(node.ino, 0)
    assert caught.value.errno == errno.EIO
    core.fs.set_attributes(node.ino, mode=0o600)
    core.commit()
    core = core.crash()
    node = children(core)[b"gone"]
    assert node.mode == 0o100600
    with pytest.raises(FSError):
        core.fs.open(node.ino, 0)
    assert b"100644 gone\0" + NOBODY in hostile.tip_tree()
    core.close()


@pytest.mark.parametrize("target", [b"a\0b", b"x" * 4096, b"y" * (1 << 21)])
def test_a_symlink_whose_target_no_link_can_have_is_an_error(hostile: Hostile, target: bytes) -> None:
    hostile.push(hostile.tree((b"120000", b"link", hostile.add(BLOB, target))))
    core = hostile.mount()
    with pytest.raises(FSError) as caught:
        core.run(core.fs.readlink, children(core)[b"link"].ino)
    assert caught.value.errno == errno.EIO
    core.close()


@pytest.mark.parametrize("target", [b"../../../../etc/passwd", b"/etc/passwd", b""])
def test_a_symlink_out_of_the_tree_is_only_a_text(hostile: Hostile, target: bytes) -> None:
    hostile.push(hostile.tree((b"120000", b"link", hostile.add(BLOB, target))))
    core = hostile.mount()
    assert core.run(core.fs.readlink, children(core)[b"link"].ino) == target
    core.close()


def commit_text(tree: bytes, *lines: bytes) -> bytes:
    return b"tree " + tree.hex().encode() + b"\n" + b"\n".join(lines)


HEADERS = tuple(
    b"author a|committer b|encoding \xff\xff|gpgsig -----BEGIN| tree 00| | -----END|mergetag object 00|"
    b" tree x||m\0\xff".split(b"|")
)


def signed(author: bytes, committer: bytes | None = None) -> tuple[bytes, ...]:
    return b"author A <a@u> " + author, b"committer A <a@u> " + (committer or author), b"", b"m"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(signed(b"99999999999 +0000"), id="year-5138"),
        pytest.param(signed(b"9" * 18 + b" +9999"), id="overflow"),
        pytest.param(signed(b"9" * 9000 + b" +0000"), id="huge"),
        pytest.param(signed(b"-5 +0000"), id="before-1970"),
        pytest.param(signed(b"<<>> \xff\xfe", b">"), id="garbage-author"),
        pytest.param((b"author <<<>> \xff\xfe", b"committer", b"", b"m"), id="garbage-lines"),
        pytest.param((b"",), id="no-author"),
        pytest.param(HEADERS, id="headers"),
    ],
)
def test_odd_commits_mount_and_take_commits(hostile: Hostile, lines: tuple[bytes, ...]) -> None:
    tree = hostile.tree((b"100644", b"f", hostile.add(BLOB, b"f")))
    odd = hostile.push(tree, raw=commit_text(tree, *lines))
    core = hostile.mount()
    assert children(core)[b"f"].mtime <= 2**63 - 1
    core.run(core.put, b"new", b"new")
    new = core.commit()
    assert new is not None
    assert hostile.store.commit(new).parents == (odd,)
    core = core.crash()
    assert set(children(core)) == {b"f", b"new"}
    core.close()


@pytest.mark.parametrize("raw", [b"", b"tree zz\n\n", b"author x\n\nm", b"tree " + b"1" * 39 + b"\n\n"])
def test_a_commit_without_a_tree_is_refused_by_name(hostile: Hostile, raw: bytes) -> None:
    odd = hostile.add(COMMIT, raw or b"\n")
    assert hostile.store.swap_ref(BRANCH, None, odd, b"push", IDENTITY)
    with pytest.raises(ObjectCorrupt, match=odd.hex()):
        hostile.mount()


def test_a_commit_whose_tree_is_missing_is_refused_by_name(hostile: Hostile) -> None:
    hostile.push(NOBODY)
    with pytest.raises(StoreError, match=NOBODY.hex()):
        hostile.mount()


def test_a_branch_that_points_at_a_tag_or_a_blob_is_refused(hostile: Hostile) -> None:
    commit = hostile.push(hostile.tree())
    tag = hostile.add(4, b"object " + commit.hex().encode() + b"\ntype commit\ntag v\n\nm")
    for oid, word in ((tag, "is a tag"), (hostile.add(BLOB, b"x"), "is none")):
        assert hostile.store.swap_ref(BRANCH, hostile.store.read_ref(BRANCH), oid, b"push", IDENTITY)
        with pytest.raises(ObjectCorrupt, match=word):
            hostile.mount()


def test_a_tag_pushed_onto_a_mounted_branch_is_not_built_upon(hostile: Hostile) -> None:
    commit = hostile.push(hostile.tree())
    core = hostile.mount()
    core.run(core.put, b"ours", b"ours")
    first = core.commit()
    tag = hostile.add(4, b"object " + commit.hex().encode() + b"\ntype commit\ntag v\n\nm")
    assert hostile.store.swap_ref(BRANCH, first, tag, b"push", IDENTITY)
    core.run(core.put, b"more", b"more")
    with pytest.raises(StoreError, match="is a tag"):
        core.commit()
    assert hostile.store.read_ref(BRANCH) == tag
    assert hostile.store.swap_ref(BRANCH, tag, first or b"", b"mend", IDENTITY)
    core.commit()
    assert {entry.name for entry in hostile.store.tree(tree_of(hostile))} == {b"ours", b"more"}
    core.close()


def test_a_submodule_is_a_directory_that_stays_a_submodule(hostile: Hostile) -> None:
    hostile.push(hostile.tree((b"160000", b"module", NOBODY)))
    core = hostile.mount()
    assert isinstance(children(core)[b"module"], Directory)
    core.run(core.put, b"module/inside", b"inside")
    core.run(core.put, b"beside", b"beside")
    core.commit()
    core = core.crash()
    assert b"160000 module\0" + NOBODY in hostile.tip_tree()
    assert core.dump()[b"/module/inside"].content == b"inside"
    core.close()


def test_a_record_with_a_hostile_name_is_not_shown(hostile: Hostile) -> None:
    """Whoever can push the branch can push its side ref, too."""
    core = hostile.mount()
    for name in (b".git", b"fine", b"ino", b"kind", b"size"):
        core.run(core.put, name, b"12345")
    core.commit()
    core.close()
    oid = hostile.store.read_ref(SIDE)
    assert oid is not None
    old = hostile.store.commit(oid)
    top = {entry.name: entry.oid for entry in hostile.store.tree(old.tree)}
    root = {entry.name: entry for entry in hostile.store.tree(top[b"root"])}
    found = {record.name: record for record in decode_records(hostile.store.blob(root[b"@"].oid))}
    names = [b"../up", b"a/b", b".", b"..", b"", b"n\0ul", b"o" * 256]
    records = [found[b".git"]._replace(name=name, ino=100 + n) for n, name in enumerate(names)]
    records.append(found[b"ino"]._replace(ino=0))
    records.append(found[b"kind"]._replace(mode=0o040755))
    records.append(found[b"size"]._replace(size=2**64 - 5))
    records.append(found[b"fine"]._replace(ino=1 << 62))
    bucket = hostile.add(BLOB, b"".join(map(encode_record, records)))
    side = hostile.tree((b"100644", b"@", bucket), (b"100644", b"~" + b".git", root[b"~.git"].oid))
    meta = (b"100644", b"meta", top[b"meta"])
    tree = hostile.tree(meta, (b"40000", b"root", side))
    new = hostile.add(COMMIT, encode_commit(tree, (oid,), IDENTITY, IDENTITY, 5, 5, 0, old.message))
    assert hostile.store.swap_ref(SIDE, oid, new, b"push", IDENTITY)
    core = hostile.mount()
    found_nodes = children(core)
    assert set(found_nodes) == {b"fine", b"ino", b"kind", b"size"}
    assert core.fs.unfit
    assert all(1 < node.ino < 1 << 61 for node in found_nodes.values())
    assert all(isinstance(node, File) and node.size == 5 for node in found_nodes.values())
    assert {seen.content for path, seen in core.dump().items() if path} == {b"12345"}
    core.close()


def test_a_record_that_lies_about_a_size_is_found_out_by_who_reads(hostile: Hostile) -> None:
    core = hostile.mount()
    core.run(core.put, b"small", b"12345")
    core.run(core.put, b"large", b"12345" * 300_000)
    core.commit()
    for name, size in ((b"small", 10), (b"small", 1 << 40), (b"large", 7), (b"large", 1 << 40)):
        node = core.run(core.find, name)
        assert isinstance(node, File)
        base = node.content.base
        lying = Content(size, base)
        with pytest.raises(FSError) as caught:
            core.run(core.fs.contents.read, lying, 0, 5)
        assert caught.value.errno == errno.EIO
    core.close()


def test_a_long_hole_gives_signs_of_life(hostile: Hostile) -> None:
    """A worker that writes zeros for minutes must not be taken for one that hangs."""
    alive = []
    with hostile.store.pack_writer(hostile.git_dir + "/caiafs") as packer:
        builder = Builder(hostile.store, packer, lambda *_: b"", hostile.git_dir, lambda: alive.append(1))
        pieces = builder._pieces(ContentState(64 << 20, None, 0, ()))
        assert sum(map(len, pieces)) == 64 << 20
    assert len(alive) >= 64
