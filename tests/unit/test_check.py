"""`caiafs check` of what is sound: what it says, which branches it looks at, and when it does not."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from support.lab import AS_SOMEBODY, Lab, filled

from caiafs.check import run_check
from caiafs.errors import CaiafsError, RepositoryMissing, UsageError
from caiafs.store import Store

# ---- clean


def test_fresh_repository_was_never_mounted(tmp_path: Path) -> None:
    path = tmp_path / "fresh.git"
    Store.create(str(path)).close()
    lines: list[str] = []
    assert run_check(str(path), None, None, False, lines.append) == 0
    assert "no branch of it was ever mounted" in lines[-1]


def test_sound_repository_is_clean(lab: Lab) -> None:
    session = filled(lab)
    session.write("d/a.txt", b"more\n", 6)
    session.remove("d/link")
    lab.end()
    result = lab.check()
    assert result.code == 0, result.text
    assert result.problems == []
    assert result.lines[-1].startswith(f"caiafs check: {lab.repo}: main: clean: 1 segment")


def test_clean_between_objects_and_release(lab: Lab) -> None:
    session = filled(lab)
    session.write("late", b"late\n")
    session.commit(release=False)
    lab.end()
    assert lab.check().problems == []


def test_repair_of_a_clean_branch_does_nothing(lab: Lab) -> None:
    filled(lab)
    lab.end()
    before = lab.snapshot()
    result = lab.check(repair=True)
    assert result.code == 0
    assert lab.snapshot() == before


def test_branch_ahead_and_side_ahead_are_notes(lab: Lab) -> None:
    session = filled(lab)
    first = lab.oid("main")
    session.write("d/a.txt", b"omega\n")
    session.commit()
    lab.end()
    lab.git("update-ref", "refs/heads/main", first)
    result = lab.check()
    assert result.code == 0
    assert "the next mount finishes it" in result.text
    tree = lab.oid(f"{first}^{{tree}}")
    outside = lab.git(
        "-c", "user.name=x", "-c", "user.email=x@x", "commit-tree", tree, "-p", "refs/heads/main", "-m", "x"
    )
    lab.git("update-ref", "refs/heads/main", outside)
    assert "have parted" in lab.check().text
    lab.git(
        "update-ref",
        "refs/heads/main",
        lab.git(*AS_SOMEBODY, "commit-tree", tree, "-m", "x"),
    )
    result = lab.check()
    assert result.code == 0
    assert "unrelated history" in result.text


# ---- which branches, and when not


def test_mounted_branch_is_checked_without_its_journal_and_not_repaired(lab: Lab) -> None:
    filled(lab)
    lab.end()
    path = os.path.join(lab.state, "lock")
    Path(path).write_text(json.dumps({"pid": 4711, "mountpoint": "/mnt/x", "started": "now"}))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        result = lab.check()
        assert result.code == 0
        assert "not checked: the branch is mounted at /mnt/x by process 4711" in result.text
        before = lab.snapshot()
        result = lab.check(repair=True)
        assert result.code == 1
        assert "unmount it first" in result.text
        assert lab.snapshot() == before
    finally:
        os.close(fd)


def test_branch_with_a_slash_and_percent_is_found(tmp_path: Path) -> None:
    made = Lab(tmp_path, b"we%ird/na%2Fme")
    session = made.session()
    session.write("f", b"f")
    made.end()
    result = made.check()
    assert result.code == 0
    assert ": we%ird/na%2Fme: clean" in result.text


def test_state_directory_of_its_own(lab: Lab, tmp_path: Path) -> None:
    session = filled(lab)
    session.write("pending", b"p")
    lab.end()
    elsewhere = tmp_path / "state"
    os.rename(lab.state, elsewhere)
    result = lab.check()
    assert result.code == 0
    assert "--state-dir" in result.text
    result = lab.check(state=str(elsewhere), branch="main")
    assert "not in git yet" in result.text
    assert result.notes == []


def test_what_cannot_be_meant(lab: Lab, tmp_path: Path) -> None:
    filled(lab)
    lab.end()
    with pytest.raises(RepositoryMissing):
        run_check(str(tmp_path / "nothing"), None, None, False, print)
    with pytest.raises(CaiafsError, match="no branch other"):
        lab.check(branch="other")
    lab.git("update-ref", "refs/caiafs/second", "refs/caiafs/main")
    with pytest.raises(UsageError):
        lab.check(state=lab.state)


# ---- files of somebody else


def test_names_of_foreign_files_do_not_reach_the_terminal_raw(lab: Lab) -> None:
    filled(lab)
    lab.end()
    (Path(lab.state) / "x\x1b[2Jy\n").write_text("mine")
    result = lab.check()
    assert "\x1b" not in result.text
    assert any("is not a file of caiafs" in note for note in result.notes)


def test_foreign_files_symlinks_and_open_modes(lab: Lab) -> None:
    filled(lab)
    lab.end()
    state = Path(lab.state)
    (state / "notes.txt").write_text("mine")
    (state / "http-token").touch(0o600)
    (state / ("0" * 16 + ".seg")).symlink_to("/etc/passwd")
    (segment,) = (path for path in lab.segments() if not path.is_symlink())
    segment.chmod(0o644)
    state.chmod(0o755)
    result = lab.check()
    assert result.code == 1
    assert len(result.problems) == 3
    (foreign,) = (note for note in result.notes if "is not a file of caiafs" in note)
    assert "notes.txt" in foreign
    assert lab.check(repair=True).code == 0
    assert (state / "notes.txt").exists()
    assert (segment.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o600, 0o700)
