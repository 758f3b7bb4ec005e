"""Which branch a mount takes where nobody names one."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_store_support import git

from caiafs.config import Config
from caiafs.errors import MountError
from caiafs.mount import _choose_branch
from caiafs.store import Store


def test_a_head_that_names_nothing_is_told_of_if_there_is_something_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup made by `git init --bare` has HEAD at git's own first branch, whatever was pushed to it."""
    git(tmp_path, "init", "-q", "--bare", "-b", "master", "r.git")
    repository = tmp_path / "r.git"
    store = Store.open(str(repository))
    assert _choose_branch(Config(str(repository), "/m"), store) == b"master"
    assert caplog.text == "", "a new repository is empty, and that is no surprise"

    tree = git(repository, "hash-object", "-t", "tree", "-w", "/dev/null").strip().decode()
    commit = git(repository, "commit-tree", "-m", "First", tree).strip().decode()
    git(repository, "update-ref", "refs/heads/main", commit)
    assert _choose_branch(Config(str(repository), "/m"), store) == b"master"
    assert "names the branch master, which has no commit" in caplog.text
    assert "The repository has main: mount one of them with -o branch=NAME" in caplog.text

    caplog.clear()
    _choose_branch(Config(str(repository), "/m", branch="new"), store)
    git(repository, "symbolic-ref", "HEAD", "refs/heads/main")
    store.refresh()
    assert _choose_branch(Config(str(repository), "/m"), store) == b"main"
    assert caplog.text == ""


def test_a_branch_that_git_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Else all that is written to the mount would stay in the journal, and no commit ever be made."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "r.git")
    repository = tmp_path / "r.git"
    tree = git(repository, "hash-object", "-t", "tree", "-w", "/dev/null").strip().decode()
    commit = git(repository, "commit-tree", "-m", "First", tree).strip().decode()
    git(repository, "update-ref", "refs/heads/main", commit)
    git(repository, "update-ref", "refs/caiafs/gone", commit)
    store = Store.open(str(repository))

    def choose(branch: str, ro: bool = False) -> bytes:
        return _choose_branch(Config(str(repository), "/m", branch=branch, ro=ro), store)

    with pytest.raises(MountError, match="cannot hold the branch main/x beside the branch main: "):
        choose("main/x")
    with pytest.raises(MountError, match=r"refs/caiafs/gone is in the way.*update-ref -d refs/caiafs/gone"):
        choose("gone/x")
    assert choose("gone/x", ro=True) == b"gone/x", "nothing is committed there"
    assert choose("gone") == b"gone"
    git(repository, "update-ref", "-d", "refs/caiafs/gone")
    assert choose("gone/x") == b"gone/x"
