"""`caiafs check` of the side ref: metadata that is damaged, contradicts itself, or is newer than we are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from support.lab import AS_SOMEBODY, IDENTITY, Lab, filled, spoil

from caiafs.errors import FormatNewer
from caiafs.records.side import (
    decode_meta,
    decode_records,
    encode_meta,
    encode_record,
    parse_side_message,
    side_message,
)
from caiafs.store import BLOB, COMMIT, TREE, Store, encode_commit, patch_tree
from caiafs.tree import Directory

# ---- what is damaged or gone


def side_entry(lab: Lab, path: str) -> str:
    return lab.oid(f"refs/caiafs/main:{path}")


def test_damaged_bucket_costs_its_records_only(lab: Lab) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    bucket = lab.loose(side_entry(lab, "root/=d/@"))
    old = lab.oid("refs/caiafs/main")
    spoil(bucket)
    result = lab.check()
    assert result.code == 1
    assert any("the records @ of d" in problem for problem in result.problems)
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.git("for-each-ref", "--format=%(objectname)", "refs/caiafs-backup") == old
    session = lab.mounts()
    assert session.read("d/a.txt") == b"alpha\n"
    assert session.read("pending") == b"pending"
    assert session.node("fifo").mode == 0o010600
    assert not session.node("d/a.txt").xattrs
    lab.end()
    lab.git("update-ref", "-d", lab.git("for-each-ref", "--format=%(refname)", "refs/caiafs-backup"))
    bucket.unlink()
    lab.git("fsck", "--strict")


def test_missing_subtree_of_the_metadata(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(side_entry(lab, "root/=d/=below")).unlink()
    result = lab.check()
    assert any("the metadata of d/below" in problem for problem in result.problems)
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.read("d/below/b.txt") == b"beta\n" * 1000


def test_missing_content_beside_the_tree(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(side_entry(lab, "root/=nested/=.git/~config")).unlink()
    result = lab.check()
    assert any("nested/.git/config" in problem for problem in result.problems)
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert isinstance(session.node("nested/.git"), Directory)
    with pytest.raises(KeyError):
        session.node("nested/.git/config")


def test_what_git_cannot_hold_comes_back_without_its_records(lab: Lab) -> None:
    session = filled(lab)
    session.make("nested/.git/refs", 0o040700)
    session.write("nested/.git/refs/main", b"0" * 40)
    session.commit()
    lab.end()
    lab.explode()
    bucket = lab.loose(side_entry(lab, "root/=nested/=.git/@"))
    spoil(bucket)
    result = lab.check()
    assert any(
        "nested/.git/config: the record of this file is lost" in problem for problem in result.problems
    ), result.lines
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.read("nested/.git/config") == b"[core]\n"
    assert session.read("nested/.git/refs/main") == b"0" * 40
    assert session.node("nested/.git/refs").mode == 0o040755


def test_content_that_nothing_names_is_saved(lab: Lab) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, lambda data: b"boo", b"root", b"~ghost")
    assert lab.check(repair=True).code == 0
    assert lab.lost_and_found()["beside/1"] == b"boo"
    assert "ghost" in lab.lost_and_found()["index.txt"].decode()


def test_damaged_meta_goes_back_to_older_metadata(lab: Lab) -> None:
    session = filled(lab)
    good = lab.oid("refs/caiafs/main")
    session.write("later", b"later")
    session.commit()
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    bad = lab.oid("refs/caiafs/main")
    meta = lab.loose(side_entry(lab, "meta"))
    spoil(meta)
    result = lab.check()
    assert result.code == 1
    assert "does not mount" in result.text
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("refs/caiafs/main") == good
    assert lab.git("for-each-ref", "--format=%(objectname)", "refs/caiafs-backup") == bad
    session = lab.mounts()
    assert session.node("fifo").mode == 0o010600
    assert session.read("pending") == b"pending"


def test_side_ref_without_a_good_past_is_set_aside(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.git("pack-refs", "--all")
    lab.loose(lab.oid("refs/caiafs/main")).unlink()
    result = lab.check()
    assert result.code == 1
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.git("for-each-ref", "refs/caiafs", "refs/caiafs-backup") == ""
    (backup,) = lab.backups()
    assert b"refs/caiafs/main" in (backup / "refs").read_bytes()
    assert lab.mounts().read("d/a.txt") == b"alpha\n"


def test_lost_side_ref_is_put_back(lab: Lab) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    oid = lab.oid("refs/caiafs/main")
    lab.git("update-ref", "-d", "refs/caiafs/main")
    result = lab.check()
    assert result.code == 1
    assert "is gone" in result.text
    assert lab.check(repair=True).code == 0
    assert lab.oid("refs/caiafs/main") == oid
    assert lab.mounts().read("pending") == b"pending"


@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"\0" * 41, b"ref: refs/heads/../../x\n"])
def test_a_broken_side_ref_is_put_where_the_journal_says(lab: Lab, garbage: bytes) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    oid = lab.oid("refs/caiafs/main")
    (lab.repo / "refs/caiafs/main").write_bytes(garbage)
    assert len(lab.check().problems) == 1
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("refs/caiafs/main") == oid
    (backup,) = lab.backups()
    assert (backup / "refs%2Fcaiafs%2Fmain").read_bytes() == garbage
    assert lab.mounts().read("pending") == b"pending"


def test_a_broken_side_ref_that_nothing_speaks_of_is_set_aside(lab: Lab) -> None:
    filled(lab)
    lab.end()
    for segment in lab.segments():
        segment.unlink()
    (lab.repo / "refs/caiafs/main").write_bytes(b"garbage")
    assert lab.check(repair=True).code == 0
    assert lab.mounts().read("d/a.txt") == b"alpha\n"


# ---- what it says


def rewritten(lab: Lab, change: Callable[[Any], bytes | None], *path: bytes) -> None:
    """Write the side commit again, with the blob at *path* changed (None: taken away)."""
    store = Store.open(str(lab.repo))
    oid = store.read_ref(lab.side)
    assert oid is not None
    commit = store.commit(oid)
    trees = [commit.tree]
    for name in path[:-1]:
        trees.append({entry.name: entry.oid for entry in store.tree(trees[-1])}[name])
    blob = {entry.name: entry.oid for entry in store.tree(trees[-1])}.get(path[-1])
    os.makedirs(lab.repo / "caiafs/tmp", exist_ok=True)
    with store.pack_writer(str(lab.repo / "caiafs/tmp")) as packer:
        data = change(None if blob is None else store.blob(blob))
        entry = None if data is None else (0o100644, packer.add(BLOB, data))
        for tree, name in zip(reversed(trees), reversed(path), strict=True):
            new = packer.add(TREE, patch_tree(store.tree_bytes(tree), {name: entry}))
            entry = (0o040000, new)
        belongs, journal, position = parse_side_message(commit.message)
        message = side_message(belongs, journal, position)
        side = packer.add(COMMIT, encode_commit(new, (oid,), IDENTITY, IDENTITY, 1, 1, 0, message))
        pack = packer.finish()
    assert store.swap_ref(lab.side, oid, side, b"", IDENTITY)
    assert pack is not None
    pack.release()
    store.close()


def edited(name: bytes, /, **fields: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        records = decode_records(data)
        return b"".join(
            encode_record(record._replace(**fields) if record.name == name else record) for record in records
        )

    return change


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ((b"root", b"@"), edited(b"big", ino=2), "are both inode 2, but not hard links"),
        ((b"root", b"@"), edited(b"fifo", ino=1), "has the root directory's inode number"),
        ((b"root", b"@"), edited(b"big", ino=10_000), "the next inode number is"),
        ((b"root", b"@"), edited(b"big", size=5), "recorded as 5 bytes long"),
        ((b"root", b"@"), edited(b"big", mode=0o120777), "recorded as mode 120777"),
        ((b"root", b"@"), lambda data: data + data, "has two records"),
        ((b"root", b"=d", b"@"), edited(b"a.txt", nlink=3), "their records differ"),
        ((b"root", b"odd"), lambda data: b"?", "is nothing of caiafs"),
        ((b"root", b"~ghost"), lambda data: b"boo", "a content beside the tree, but no record"),
        ((b"root", b"=nested", b"=.git", b"~config"), lambda data: None, "is missing"),
        ((b"root", b"=ghost", b"@"), None, "metadata of a directory that is not there"),
    ],
)
def test_metadata_that_contradicts_itself(lab: Lab, path: tuple[bytes, ...], change: Any, said: str) -> None:
    filled(lab)
    lab.end()
    if change is None:
        store = Store.open(str(lab.repo))
        oid = store.read_ref(lab.side)
        assert oid is not None
        store.close()
        lab.git("read-tree", "refs/caiafs/main")
        lab.git("update-index", "--add", "--cacheinfo", "100644", side_entry(lab, "root/@"), "root/=ghost/@")
        tree = lab.git("write-tree")
        message = lab.git("log", "-1", "--format=%B", "refs/caiafs/main")
        commit = lab.git(*AS_SOMEBODY, "commit-tree", tree, "-m", message)
        lab.git("update-ref", "refs/caiafs/main", commit)
    else:
        rewritten(lab, change, *path)
    result = lab.check()
    assert result.code == 1
    assert said in result.text, result.text
    repaired = lab.check(repair=True)
    assert repaired.code == 0, repaired.text
    lab.mounts()


def test_table_of_hard_links(lab: Lab) -> None:
    filled(lab)
    lab.end()
    ino_path = b"d/below/hard"
    rewritten(lab, lambda data: data.replace(ino_path, b"d/below/herd"), b"meta")
    result = lab.check()
    assert "d/below/herd" in result.text
    assert "not in the table of hard links" in result.text
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.node("d/a.txt") is session.node("d/below/hard")


@pytest.mark.parametrize(
    ("mode", "target"),
    [(0o100644, b""), (0o120777, b"d/a.txt"), (0o010600, b"")],
    ids=["file", "link", "fifo"],
)
def test_hard_links_of_what_is_in_the_tree_and_beside_it(lab: Lab, mode: int, target: bytes) -> None:
    session = filled(lab)
    node = session.make("one", mode, target)
    session.run(session.fs.link, node.ino, session.node("nested/.git").ino, b"two")
    session.commit()
    lab.end()
    result = lab.check()
    assert result.code == 0, result.text


def test_hard_links_of_a_symlink_with_two_targets(lab: Lab) -> None:
    session = filled(lab)
    node = session.make("one", 0o120777, b"d/a.txt")
    session.run(session.fs.link, node.ino, session.node("nested/.git").ino, b"two")
    session.commit()
    lab.end()
    rewritten(lab, edited(b"two", target=b"d/b.txt"), b"root", b"=nested", b"=.git", b"@")
    assert "their records differ" in lab.check().text
    assert lab.check(repair=True).code == 0


@pytest.mark.parametrize("path", [(b"meta",), (b"root", b"@")])
def test_newer_metadata_is_left_alone(lab: Lab, path: tuple[bytes, ...]) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, lambda data: b"\x02" + data[1:], *path)
    oid = lab.oid("refs/caiafs/main")
    result = lab.check()
    assert result.code == 1
    assert "a newer caiafs wrote it" in result.text
    result = lab.check(repair=True)
    assert result.code == 1
    assert "left alone" in result.text
    assert lab.oid("refs/caiafs/main") == oid
    if path == (b"meta",):
        with pytest.raises(FormatNewer):
            lab.mounts()


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ((b"root", b"@"), edited(b"big", ino=0), "has the inode number 0"),
        ((b"root", b"@"), edited(b"big", ino=1 << 62), "which none can have"),
        ((b"meta",), lambda d: encode_meta(decode_meta(d)._replace(next_ino=1 << 62)), "which none can have"),
        ((b"meta",), lambda d: encode_meta(decode_meta(d)._replace(next_ino=0)), "the next inode number"),
        ((b"root", b"=nested", b"@"), edited(b".git", name=b"../.git"), "the name holds a slash"),
    ],
)
def test_metadata_that_no_mount_would_write(
    lab: Lab, path: tuple[bytes, ...], change: Any, said: str
) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, change, *path)
    lab.mounts()  # works, whatever it says
    lab.end()
    result = lab.check()
    assert result.code == 1
    assert said in result.text, result.text
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    session.write("new", b"new")
    session.commit()
    lab.end()
    assert lab.check().problems == []
