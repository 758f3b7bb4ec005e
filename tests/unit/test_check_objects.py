"""`caiafs check` of what git holds: commits, trees and blobs of the branch, and the branch itself."""

from __future__ import annotations

from support.lab import AS_SOMEBODY, Lab, filled, flip, spoil


def test_corrupt_blob_is_named_with_its_path(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    blob = lab.loose(lab.oid("main:d/below/b.txt"))
    spoil(blob)
    result = lab.check()
    assert result.code == 1
    (problem,) = result.problems
    assert "d/below/b.txt" in problem
    assert lab.oid("main")[:12] in problem
    repaired = lab.check(repair=True)
    assert repaired.code == 1
    assert "1 problem left of 1" in repaired.lines[-1]


def test_corrupt_large_blob_in_a_pack(lab: Lab) -> None:
    filled(lab)
    lab.end()
    packs = sorted((lab.repo / "objects/pack").glob("*.pack"), key=lambda path: path.stat().st_size)
    flip(packs[-1], packs[-1].stat().st_size // 2)
    result = lab.check()
    assert result.code == 1
    assert any("big (commit" in problem for problem in result.problems)


def test_missing_tree_and_blob(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(lab.oid("main:d/below")).unlink()
    assert any("d/below" in problem for problem in lab.check().problems)
    lab.loose(lab.oid("main^{tree}")).unlink()
    assert any("the root directory" in problem for problem in lab.check().problems)
    lab.loose(lab.oid("main")).unlink()
    result = lab.check()
    assert result.code == 1
    assert lab.check(repair=True).code == 1


def test_broken_ref(lab: Lab) -> None:
    filled(lab)
    lab.end()
    (lab.repo / "refs/heads/main").write_text("garbage\n")
    result = lab.check()
    assert result.code == 1
    assert any("refs/heads/main is broken" in problem for problem in result.problems)


def test_a_broken_branch_is_put_at_the_last_commit_of_the_mount(lab: Lab) -> None:
    filled(lab)
    lab.end()
    oid = lab.oid("main")
    (lab.repo / "refs/heads/main").write_text("garbage\n")
    result = lab.check()
    (problem,) = result.problems
    assert "--repair puts it at the last commit of the mount" in problem
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("main") == oid
    assert lab.mounts().read("d/a.txt") == b"alpha\n"


def test_entries_that_cannot_be_shown_are_named(lab: Lab) -> None:
    filled(lab)
    lab.end()
    blob = lab.oid("main:d/a.txt")
    entry = b"100644 ../x\0" + bytes.fromhex(blob)
    tree = lab.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=entry)
    commit = lab.git(*AS_SOMEBODY, "commit-tree", tree, "-p", "main", "-m", "x")
    lab.git("update-ref", "refs/heads/main", commit)
    result = lab.check()
    assert result.code == 1
    (problem,) = result.problems
    assert "the entry ../x cannot be shown (the name holds a slash)" in problem
    assert lab.check(repair=True).code == 1  # it is for a person to say what should be there
