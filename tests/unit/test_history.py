"""The latest commits and their files, out of repositories that git made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.mounts import run

from caiafs.errors import StoreError
from caiafs.history import MAX_FILES, History

MAIN = b"refs/heads/main"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    run("git", "init", "-q", tmp_path / "w")
    return tmp_path / "w"


def commit(work: Path, subject: str, files: dict[str, str | None]) -> str:
    for name, text in files.items():
        path = work / name
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    run("git", "-C", work, "add", "-A")
    run("git", "-C", work, "commit", "-q", "--allow-empty", "-m", subject)
    return run("git", "-C", work, "rev-parse", "HEAD").stdout.strip()


def latest(work: Path, limit: int = 20) -> list[dict[str, Any]]:
    history = History(str(work / ".git"), MAIN)
    try:
        return history.latest(limit)
    finally:
        history.close()


def files(one: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["path"], each["change"]) for each in one["files"]]


def test_commits_are_told_with_their_files_the_last_one_first(work: Path) -> None:
    first = commit(work, "Begin\n\nWith a body.", {"a": "1", "d/e/f": "2", "d/g": "3"})
    second = commit(work, "Go on", {"a": "4", "d/g": None, "ü": "5"})
    one, two = latest(work)
    assert (one["commit"], two["commit"]) == (second, first)
    assert (one["subject"], two["subject"]) == ("Go on", "Begin")
    assert one["parents"] == [first]
    assert two["parents"] == []
    assert files(one) == [("a", "changed"), ("d/g", "removed"), ("ü", "added")]
    assert files(two) == [("a", "added"), ("d/e/f", "added"), ("d/g", "added")]
    assert one["author"] == "A Person <person@example.org>"
    assert one["time"] >= two["time"] > 10**9
    assert latest(work, 1) == [one]


def test_a_file_that_became_a_directory_is_both(work: Path) -> None:
    commit(work, "file", {"x": "1"})
    commit(work, "directory", {"x": None})
    commit(work, "files", {"x/y": "1"})
    run("git", "-C", work, "reset", "-q", "--soft", "HEAD~2")
    commit(work, "joined", {})
    assert files(latest(work)[0]) == [("x", "removed"), ("x/y", "added")]


def test_many_files_are_cut_and_that_is_said(work: Path) -> None:
    commit(work, "exactly", {f"d/{number:03}": "" for number in range(MAX_FILES)})
    commit(work, "more", {f"e/{number:03}": "" for number in range(MAX_FILES + 1)})
    more, exactly = latest(work)
    assert (len(more["files"]), more["more_files"]) == (MAX_FILES, True)
    assert (len(exactly["files"]), exactly["more_files"]) == (MAX_FILES, False)


def test_no_branch_is_no_history(work: Path) -> None:
    assert latest(work) == []


def test_history_goes_on_while_it_is_read(work: Path) -> None:
    first = commit(work, "one", {"a": "1"})
    history = History(str(work / ".git"), MAIN)
    assert [each["commit"] for each in history.latest(20)] == [first]
    for number in range(3):
        commit(work, f"more {number}", {"a": f"2{number}"})
        run("git", "-C", work, "gc", "-q", "--prune=now")
    assert [each["subject"] for each in history.latest(3)] == ["more 2", "more 1", "more 0"]
    history.close()


def test_a_shallow_clone_ends_where_it_ends(work: Path, tmp_path: Path) -> None:
    for number in range(3):
        commit(work, f"number {number}", {"a": str(number)})
    run("git", "clone", "-q", "--depth", "2", f"file://{work}", tmp_path / "c")
    told = latest(tmp_path / "c")
    assert [each["subject"] for each in told] == ["number 2", "number 1"]
    assert files(told[0]) == [("a", "changed")]


def test_names_that_are_no_text_are_shown_all_the_same(work: Path) -> None:
    (work / "x").write_text("1")
    (Path(work).joinpath("x")).rename(Path(str(work)) / "y\udcff")
    commit(work, "bytes", {})
    assert files(latest(work)[0]) == [("y\ufffd", "added")]


def test_a_damaged_tree_is_told_and_the_rest_too(work: Path) -> None:
    commit(work, "sound", {"a": "1"})
    commit(work, "damaged", {"d/b": "2"})
    tree = run("git", "-C", work, "rev-parse", "HEAD:d").stdout.strip()
    path = work / ".git/objects" / tree[:2] / tree[2:]
    path.chmod(0o600)
    path.write_bytes(b"not zlib")
    told = latest(work)
    assert told[0]["files"][-1]["change"] == "unreadable"
    assert tree in told[0]["files"][-1]["path"]
    assert files(told[1]) == [("a", "added")]


def test_a_damaged_commit_is_an_error(work: Path) -> None:
    oid = commit(work, "damaged", {"a": "1"})
    path = work / ".git/objects" / oid[:2] / oid[2:]
    path.chmod(0o600)
    path.write_bytes(b"not zlib")
    with pytest.raises(StoreError, match=oid):
        latest(work)
