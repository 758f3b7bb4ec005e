"""Who may put what in the way of a mount, and what of it is refused; docs/security.md says all of it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.trap import plant
from support.users import ALICE, acting_as
from test_store_support import WHO, commit_files, git, new_store

from caiafs.config import Config
from caiafs.errors import CaiafsError, JournalError, MountError, StoreError
from caiafs.journal import Journal, Reader
from caiafs.journal.disk import private_directory
from caiafs.mount.preflight import acquire_lock
from caiafs.records import Remove
from caiafs.store import Store


def test_state_directory_and_its_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    os.umask(0)
    state = tmp_path / "caiafs" / "main"
    with acquire_lock(str(state), b"main", "/m"):
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert stat.S_IMODE(state.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE((state / "lock").stat().st_mode) == 0o600
        journal = Journal(str(state))
        journal.append(Remove(1, 0, b"x"))
        (segment,) = state.glob("*.seg")
        assert stat.S_IMODE(segment.stat().st_mode) == 0o600
        journal.close()


def test_lock_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "lock").touch(mode=0o666)
    with acquire_lock(str(state), b"main", "/m"):
        assert stat.S_IMODE((state / "lock").stat().st_mode) == 0o600


def symlinked(state: Path) -> None:
    state.with_name("elsewhere").mkdir(mode=0o700)
    state.symlink_to(state.with_name("elsewhere"))


def writable(state: Path) -> None:
    state.mkdir(mode=0o777)
    state.chmod(0o777)


def of_another(state: Path) -> None:
    state.mkdir(mode=0o700)
    os.chown(state, ALICE, ALICE)


def a_file(state: Path) -> None:
    state.write_bytes(b"")


def replaceable(state: Path) -> None:
    state.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (symlinked, "is a symbolic link"),
        (writable, "is open to other users"),
        (of_another, "belongs to"),
        (a_file, "Not a directory"),
        (replaceable, "every user may replace"),
    ],
)
def test_a_state_directory_that_somebody_prepared_is_refused(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    if make is of_another and os.geteuid() != 0:
        pytest.skip("needs root")
    state = tmp_path / "above" / "state"
    state.parent.mkdir()
    make(state)
    with pytest.raises(MountError, match=said):
        acquire_lock(str(state), b"main", "/m")
    assert not list(tmp_path.rglob("lock"))


def test_a_state_directory_in_tmp_is_fine(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    acquire_lock(str(tmp_path / "state"), b"main", "/m").release()


def test_somebody_else_s_lock_file_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.mkfifo(state / "lock")
    with pytest.raises(MountError, match="is not a file of yours"):
        acquire_lock(str(state), b"main", "/m")


@pytest.mark.parametrize("make", [symlinked, writable, of_another])
def test_no_journal_in_a_directory_that_was_swapped(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Also after the lock was taken, and in the worker."""
    if make is of_another and os.geteuid() != 0:
        pytest.skip("needs root")
    state = tmp_path / "state"
    make(state)
    with pytest.raises(JournalError, match="state"):
        Journal(str(state))
    with pytest.raises(OSError, match=r"state|directory"):
        Reader(str(state)).read(60, 1)


def test_a_journal_follows_its_directory_and_not_the_name(tmp_path: Path) -> None:
    """Somebody renames the state directory and puts another in its place: nothing goes there."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    journal = Journal(str(state))
    journal.append(Remove(1, 0, b"first"))
    state.rename(tmp_path / "moved")
    state.mkdir(mode=0o700)
    journal.seal()
    journal.append(Remove(1, 0, b"secret"))
    journal.sync()
    journal.close()
    assert list(state.iterdir()) == []
    assert len(list((tmp_path / "moved").glob("*.seg"))) == 2


def test_an_ordinary_user_is_not_kept_out_of_what_root_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent.owner() == "root" and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "of-root").mkdir(mode=0o755)
    with acting_as(ALICE):
        os.close(private_directory(str(tmp_path / "of-root")))


# ---- names of branches are no paths


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "a//b", ".git", "a\0b", "x.lock", "/etc/passwd"])
def test_no_branch_name_leads_out_of_the_repository(name: str) -> None:
    with pytest.raises(CaiafsError):
        Config.load("/r", "/m", [f"branch={name}"], {})


@pytest.mark.parametrize("name", [b"../../../../etc", b"..", b"a/../../../../tmp/x", b"x.lock"])
def test_a_head_that_leads_out_of_the_repository_names_no_branch(tmp_path: Path, name: bytes) -> None:
    store = new_store(tmp_path)
    Path(store.git_dir, "HEAD").write_bytes(b"ref: refs/heads/" + name + b"\n")
    assert Store.open(store.git_dir).head_branch() is None


def test_a_symbolic_ref_that_leads_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (tmp_path / "secret").write_text("a" * 40)
    Path(store.git_dir, "refs/heads/main").write_text("ref: refs/heads/../../../secret\n")
    with pytest.raises(StoreError, match="no ref"):
        store.read_ref(b"refs/heads/main")


# ---- nothing of the repository is run


def test_the_trap_works(tmp_path: Path) -> None:
    """What proves that nothing is run must be seen to run when git is let loose on it."""
    store = new_store(tmp_path)
    commit_files(store, {b"a": b"1"})
    mark = plant(Path(store.git_dir), tmp_path)
    git(store.git_dir, "update-ref", "refs/heads/other", "refs/heads/main")
    assert "reference-transaction" in mark.read_text()


def test_consolidation_runs_nothing_that_the_repository_names(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for number in range(6):
        commit_files(store, {b"a": b"%d" % number})
    mark = plant(Path(store.git_dir), tmp_path)
    store = Store.open(store.git_dir)
    assert store.consolidate(store.git_dir + "/caiafs", more_than=2)
    with Path(store.git_dir, "config").open("a") as file:
        file.write('[remote "origin"]\n\tpromisor = true\n[extensions]\n\tpartialClone = origin\n')
    for number in range(6, 12):
        commit_files(store, {b"a": b"%d" % number})
    with contextlib.suppress(StoreError):  # git will not, in what it takes for a partial clone
        store.consolidate(store.git_dir + "/caiafs", more_than=2)
    assert not mark.exists(), mark.read_text()


def test_refs_are_moved_and_history_is_read_without_a_hook(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = commit_files(store, {b"a": b"1"})
    mark = plant(Path(store.git_dir), tmp_path)
    store = Store.open(store.git_dir)
    second = commit_files(store, {b"a": b"2"})
    assert not store.is_ancestor(first, second)
    assert list(store.diff(store.commit(first).tree, store.commit(second).tree))
    assert store.swap_ref(b"refs/heads/other", None, first, b"m", WHO)
    assert not mark.exists(), mark.read_text()


def test_a_new_repository_takes_no_side_ref_from_who_pushes(tmp_path: Path) -> None:
    """The side ref says how much of the journal may be dropped: no word for who pushes."""
    store = new_store(tmp_path)
    commit_files(store, {b"a": b"1"})
    git(tmp_path, "clone", "-q", store.git_dir, "clone")
    done = subprocess.run(
        ["git", "-C", tmp_path / "clone", "push", "-q", "origin", "HEAD:refs/caiafs/main"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent", "LC_ALL": "C"},
    )
    assert done.returncode != 0
    assert "hidden ref" in done.stderr
    assert store.read_ref(b"refs/caiafs/main") is None
