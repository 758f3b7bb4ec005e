"""Opening and creating repositories: every kind that git makes, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from test_store_support import MAIN, fsck, git, new_store, oid_of, ordinary

from caiafs.errors import RepositoryMissing, RepositoryUnsupported, StoreError
from caiafs.store import Store

# --- creating -------------------------------------------------------------------------------------


def test_a_created_repository_is_an_ordinary_bare_one(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "some/where/new.git"), branch=b"trunk")
    assert store.bare
    assert store.head_branch() == b"trunk"
    assert store.read_ref(b"refs/heads/trunk") is None
    assert store.git_dir == str(tmp_path / "some/where/new.git")
    assert fsck(store.git_dir) == ""
    assert git(store.git_dir, "rev-parse", "--is-bare-repository").strip() == b"true"
    assert git(store.git_dir, "symbolic-ref", "HEAD").strip() == b"refs/heads/trunk"
    work = ordinary(tmp_path)
    git(work, "push", "-q", store.git_dir, "main:trunk")
    assert store.read_ref(b"refs/heads/trunk") == oid_of(work, "HEAD")


def test_creating_takes_an_empty_directory_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Store.create(str(tmp_path / "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file", "empty"):
        before = sorted(os.listdir(tmp_path / name)) if (tmp_path / name).is_dir() else []
        with pytest.raises(StoreError):
            Store.create(str(tmp_path / name))
        assert not before or sorted(os.listdir(tmp_path / name)) == before
    with pytest.raises(StoreError):
        Store.create(str(tmp_path / "other"), branch=b"no..good")
    assert not (tmp_path / "other").exists()


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    Store.create(str(tmp_path / "repo.git"))
    os.unlink(tmp_path / "repo.git/HEAD")
    with pytest.raises(RepositoryMissing):
        Store.open(str(tmp_path / "repo.git"))
    assert Store.create(str(tmp_path / "repo.git"), branch=b"x").head_branch() == b"x"


# --- opening --------------------------------------------------------------------------------------


def test_every_way_to_name_a_repository_opens_it(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    for path in (work, work / ".git"):
        store = Store.open(str(path))
        assert (store.git_dir, store.bare) == (str(work / ".git"), False)
        assert store.head_branch() == b"main"
        assert store.checked_out_at(b"main") == str(work)
        assert store.checked_out_at(b"other") is None
    git(tmp_path, "clone", "-q", "--bare", "work", "bare.git")
    store = Store.open(str(tmp_path / "bare.git"))
    assert store.bare
    assert store.head_branch() == b"main"
    assert store.checked_out_at(b"main") is None
    os.symlink(tmp_path / "bare.git", tmp_path / "link")
    assert Store.open(str(tmp_path / "link")).read_ref(MAIN) == oid_of(work, "HEAD")


def test_a_separate_git_directory_is_followed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main", "--separate-git-dir=elsewhere", "work")
    for path in (tmp_path / "work", tmp_path / "work/.git"):
        store = Store.open(str(path))
        assert store.git_dir == str(tmp_path / "elsewhere")
        assert not store.bare
        assert store.checked_out_at(b"main") == str(tmp_path / "work")


def test_linked_work_trees_count_as_checked_out(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    git(work, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    main, side = Store.open(str(work)), Store.open(str(tmp_path / "side"))
    assert side.git_dir == main.git_dir
    assert (main.head_branch(), side.head_branch()) == (b"main", b"side")
    for store in (main, side):
        assert store.checked_out_at(b"main") == str(work)
        assert store.checked_out_at(b"side") == str(tmp_path / "side")
    git(tmp_path / "side", "checkout", "-q", "--detach")
    assert side.head_branch() is None
    assert main.checked_out_at(b"side") is None
    git(tmp_path / "side", "checkout", "-q", "side")
    shutil.rmtree(tmp_path / "side")
    assert main.checked_out_at(b"side") is None
    git(tmp_path, "clone", "-q", "--bare", "work", "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "-q", str(tmp_path / "linked"), "main")
    bare = Store.open(str(tmp_path / "bare.git"))
    assert bare.bare
    assert bare.checked_out_at(b"main") == str(tmp_path / "linked")


def test_a_branch_that_is_being_rebased_counts_as_checked_out(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    git(work, "checkout", "-q", "-b", "topic")
    (work / "a.txt").write_text("topic\n")
    git(work, "commit", "-qam", "Topic")
    git(work, "checkout", "-q", "main")
    (work / "a.txt").write_text("main\n")
    git(work, "commit", "-qam", "Main")
    git(work, "checkout", "-q", "topic")
    git(work, "rebase", "main", check=False)
    store = Store.open(str(work))
    assert store.head_branch() is None
    assert store.checked_out_at(b"topic") == str(work)


def test_where_no_repository_is_the_message_shows_the_way(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    (work / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "file", work / "folder", work / "a.txt"):
        with pytest.raises(RepositoryMissing) as caught:
            Store.open(str(path))
        assert str(path) in str(caught.value)
        assert (caught.value.exit_code, caught.value.errno) == (32, errno.ENOENT)
    with pytest.raises(RepositoryMissing, match="-o init"):
        Store.open(str(tmp_path / "absent"))


def test_formats_that_are_not_written_here_are_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", "new.git")
    with pytest.raises(RepositoryUnsupported, match="SHA-256"):
        Store.open(str(tmp_path / "new.git"))
    for key, value, word in (
        ("extensions.refStorage", "reftable", "reftable"),
        ("extensions.somethingNew", "true", "somethingnew"),
        ("core.repositoryFormatVersion", "2", "format 2"),
    ):
        path = tmp_path / word.replace(" ", "")
        git(tmp_path, "init", "-q", "--bare", str(path))
        git(path, "config", "core.repositoryFormatVersion", "1")
        git(path, "config", key, value)
        with pytest.raises(RepositoryUnsupported, match=word) as caught:
            Store.open(str(path))
        assert caught.value.exit_code == 32


def test_harmless_extensions_are_accepted(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    git(work, "config", "core.repositoryFormatVersion", "1")
    git(work, "config", "extensions.objectFormat", "sha1")
    git(work, "config", "extensions.worktreeConfig", "true")
    git(work, "config", "--worktree", "core.bare", "true")
    git(work, "config", "extensions.preciousObjects", "true")
    assert Store.open(str(work / ".git")).bare


@pytest.mark.parametrize(
    ("name", "mail", "identity"),
    [
        ("Ada", "a@b", b"Ada <a@b>"),
        ("  Ada  ", " a@b ", b"Ada <a@b>"),
        ("Ada <x>,", "<a@b>", b"Ada x <a@b>"),
        ('O\'Neil, "Ann" ', "a@b", b"O'Neil, \"Ann <a@b>"),
        (" . ", "a@b", None),
        ("Ada", "<>", None),
    ],
)
def test_the_identity_is_what_git_makes_of_its_configuration(
    tmp_path: Path, name: str, mail: str, identity: bytes | None
) -> None:
    store = new_store(tmp_path)
    git(store.git_dir, "config", "user.name", name)
    git(store.git_dir, "config", "user.email", mail)
    assert Store.open(store.git_dir).configured_identity() == identity
