"""Refs of the store: what they say, moved by compare-and-swap, synced, and locked among others."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from test_store_support import MAIN, WHO, commit_files, fsck, git, new_store, oid_of, ordinary, tmp_of, write

from caiafs.errors import RefLocked, StoreError
from caiafs.store import COMMIT, Store, encode_commit


def test_branches_are_listed_loose_packed_and_deep(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    store = Store.open(str(work))
    for name in ("a", "deep/er", "packed"):
        git(work, "branch", name)
    git(work, "pack-refs", "--all")
    git(work, "branch", "deep/later")
    git(work, "branch", "-D", "a")
    (work / ".git/refs/heads/main.lock").touch()
    assert store.branches() == [b"deep/er", b"deep/later", b"main", b"packed"]


def test_a_ref_moves_only_from_where_it_was(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    b = commit_files(store, {b"a": b"2"}, (a,), ref=None)
    assert store.read_ref(MAIN) is None
    assert not store.swap_ref(MAIN, a, b, b"no", WHO)
    assert store.read_ref(MAIN) is None
    assert store.swap_ref(MAIN, None, a, b"first", WHO)
    assert not store.swap_ref(MAIN, None, b, b"no", WHO)
    assert not store.swap_ref(MAIN, b, a, b"no", WHO)
    assert store.swap_ref(MAIN, a, b, b"second", WHO)
    assert store.read_ref(MAIN) == b == oid_of(store.git_dir, "main")
    git(store.git_dir, "pack-refs", "--all")
    assert not Path(store.git_dir, "refs/heads/main").exists()
    assert store.read_ref(MAIN) == b
    assert not store.swap_ref(MAIN, a, b, b"no", WHO)
    assert store.swap_ref(MAIN, b, a, b"back", WHO)
    assert store.read_ref(MAIN) == a == oid_of(store.git_dir, "main")
    assert not list(Path(store.git_dir).rglob("*.lock"))
    assert fsck(store.git_dir) == ""


def test_pushes_and_packed_refs_are_seen_at_once(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    work = ordinary(tmp_path)
    token = store.ref_signature(MAIN)
    for n in range(6):
        (work / "a.txt").write_text(f"{n}\n")
        git(work, "commit", "-qam", f"{n}")
        git(work, "push", "-q", store.git_dir, "main")
        assert store.ref_signature(MAIN) != token
        assert store.read_ref(MAIN) == oid_of(work, "HEAD")
        if n % 2:
            git(store.git_dir, "pack-refs", "--all", "--prune")
            assert store.read_ref(MAIN) == oid_of(work, "HEAD")
        token = store.ref_signature(MAIN)
        assert store.ref_signature(MAIN) == token
    git(store.git_dir, "update-ref", "-d", "refs/heads/main")
    assert store.ref_signature(MAIN) != token
    assert store.read_ref(MAIN) is None


def test_a_lock_of_another_process_is_respected(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"})
    lock = Path(store.git_dir, "refs/heads/main.lock")
    lock.touch()
    with pytest.raises(RefLocked, match=r"main\.lock") as caught:
        store.swap_ref(MAIN, a, a, b"x", WHO)
    assert caught.value.errno == errno.EAGAIN
    assert lock.exists()
    lock.unlink()
    assert store.swap_ref(MAIN, a, a, b"x", WHO)


@pytest.mark.parametrize("content", [b"", b"\n", b"garbage", b"a" * 39, b"g" * 40, b"a" * 41, b"\0" * 41])
def test_a_broken_ref_is_an_error_and_not_an_absence(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"})
    Path(store.git_dir, "refs/heads/main").write_bytes(content)
    with pytest.raises(StoreError, match="broken"):
        store.read_ref(MAIN)
    with pytest.raises(StoreError, match="broken"):
        store.swap_ref(MAIN, None, a, b"x", WHO)
    assert Path(store.git_dir, "refs/heads/main").read_bytes() == content
    assert not Path(store.git_dir, "refs/heads/main.lock").exists()


def test_damaged_packed_refs_are_an_error(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    Path(store.git_dir, "packed-refs").write_bytes(b"# pack-refs with: peeled\nnonsense refs/heads/main\n")
    with pytest.raises(StoreError, match="packed-refs"):
        store.read_ref(MAIN)


@pytest.mark.parametrize("name", [b"main", b"HEAD", b"refs/../x", b"refs/a b", b"refs/x.lock", b"refs/", b""])
def test_only_ref_names_git_takes_are_written(tmp_path: Path, name: bytes) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    with pytest.raises(StoreError, match="no name"):
        store.swap_ref(name, None, a, b"x", WHO)


@pytest.mark.parametrize("packed", [False, True])
def test_a_ref_and_a_ref_below_it_exclude_each_other(tmp_path: Path, packed: bool) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=b"refs/heads/x/y")
    if packed:
        git(store.git_dir, "pack-refs", "--all")
    for name in (b"refs/heads/x", b"refs/heads/x/y/z"):
        with pytest.raises(StoreError):
            store.swap_ref(name, None, a, b"x", WHO)
        assert store.read_ref(name) is None
        assert store.ref_in_the_way(name) == b"refs/heads/x/y"
    assert store.ref_in_the_way(b"refs/heads/x/z") is None
    assert store.ref_in_the_way(b"refs/heads/x/y") is None, "itself"
    git(store.git_dir, "update-ref", "-d", "refs/heads/x/y")
    Path(store.git_dir, "refs/heads/x/empty/deeper").mkdir(parents=True)
    assert store.ref_in_the_way(b"refs/heads/x") is None
    assert store.swap_ref(b"refs/heads/x", None, a, b"x", WHO)
    assert fsck(store.git_dir) == ""


def test_a_symbolic_ref_is_followed(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"})
    git(store.git_dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    assert store.read_ref(b"refs/heads/alias") == a
    token = store.ref_signature(b"refs/heads/alias")
    b = commit_files(store, {b"a": b"2"}, (a,), ref=None)
    assert store.swap_ref(b"refs/heads/alias", a, b, b"x", WHO)
    assert store.read_ref(MAIN) == b
    assert store.ref_signature(b"refs/heads/alias") != token
    git(store.git_dir, "symbolic-ref", "refs/heads/main", "refs/heads/alias")
    with pytest.raises(StoreError, match="loop"):
        store.read_ref(MAIN)


def test_a_reflog_is_kept_where_git_would_keep_one(tmp_path: Path) -> None:
    work = ordinary(tmp_path)
    store = Store.open(str(work))
    (work / ".git/caiafs").mkdir()
    tip = store.read_ref(MAIN)
    assert tip is not None
    commit_files(store, {b"a": b"1"}, (tip,), b"Subject\nand more")
    shown = git(work, "reflog", "show", "main", "--format=%gs|%gn|%ge").decode().splitlines()
    assert shown[0] == "Subject and more|Ann Tester|ann@example.org"
    commit_files(store, {b"a": b"1"}, (), ref=b"refs/caiafs/main")
    assert not (work / ".git/logs/refs/caiafs").exists()
    bare = new_store(tmp_path)
    commit_files(bare, {b"a": b"1"})
    assert not Path(bare.git_dir, "logs").exists()
    git(bare.git_dir, "config", "core.logAllRefUpdates", "true")
    bare = Store.open(bare.git_dir)
    commit_files(bare, {b"a": b"2"}, (), b"Second")
    assert git(bare.git_dir, "reflog", "show", "main", "--format=%gs").strip() == b"Second"


def test_the_ref_and_its_directories_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), store.git_dir))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert store.swap_ref(b"refs/heads/deep/er/x", None, a, b"x", WHO)
    # What locks are made of is synced once, so that one is known to be ours after a power loss, too.
    assert synced.pop(0).endswith(".ref")
    assert synced.pop(0).endswith(".owner")
    assert synced == [
        "refs/heads/deep/er",
        "refs/heads/deep",
        "refs/heads",
        "refs",
        ".",
    ]
    synced.clear()
    assert store.swap_ref(b"refs/heads/deep/er/x", a, a, b"x", WHO)
    assert synced[1:] == ["refs/heads/deep/er"]


def test_a_value_that_was_synced_beside_a_pack_takes_the_ref_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"})
    with store.pack_writer(tmp_of(store)) as writer:
        b = writer.add(COMMIT, encode_commit(store.commit(a).tree, (a,), WHO, WHO, 0, 0, 0, b"b"))
        value, other = store.ref_value(b), store.ref_value(a)
        kept = writer.finish([value.fd])
    assert kept is not None
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), store.git_dir))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert not store.swap_ref(MAIN, b, a, b"no", WHO, other)
    assert store.swap_ref(MAIN, a, b, b"yes", WHO, value)
    assert synced == ["refs/heads"]
    value.drop()
    other.drop()
    kept.release()
    assert store.read_ref(MAIN) == b
    assert [path.suffix for path in Path(store.git_dir, "caiafs", "locks").iterdir()] == [".owner", ".owner"]


def test_files_that_were_made_ahead_are_taken_unless_somebody_tidied_up(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    locks = Path(store.git_dir, "caiafs", "locks")
    store.make_ready(tmp_of(store))
    ahead = {path for folder in (locks, Path(tmp_of(store))) for path in folder.glob("*.new")}
    assert len(ahead) == 4
    assert Store.open(store.git_dir).clear_stale(tmp_of(store)) == 0, "they are in use"
    first, second = store.ref_value(a), store.ref_value(a)
    assert {Path(first.path), Path(second.path)} < ahead
    first.drop()
    second.drop()
    for path in ahead:
        path.unlink(missing_ok=True)
    b = commit_files(store, {b"a": b"1"}, ref=MAIN)
    assert store.read_ref(MAIN) == b
    store.make_ready(tmp_of(store))
    store.close()
    assert not [path for folder in (locks, Path(tmp_of(store))) for path in folder.glob("*.new")]


def test_a_disk_that_fails_leaves_the_ref_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"})
    b = commit_files(store, {b"a": b"2"}, (a,), ref=None)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    for step in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, step, fails)
        with pytest.raises(StoreError) as caught:
            store.swap_ref(MAIN, a, b, b"x", WHO)
        monkeypatch.undo()
        assert caught.value.errno == errno.ENOSPC
        assert store.read_ref(MAIN) == a
    assert store.swap_ref(MAIN, a, b, b"x", WHO)


def test_a_swap_never_overwrites_what_it_did_not_see(tmp_path: Path) -> None:
    """Two stores and git move one branch by compare-and-swap, while refs are packed all the time.

    The reflog, written under the ref's lock, tells who replaced what. git 2.39 itself is known to lose an
    update in this storm now and then (two `git update-ref` against `git pack-refs` do it without caiafs):
    it trusts its copy of packed-refs when the file was replaced twice within a second. Its lines are
    therefore not judged.
    """
    first = new_store(tmp_path)
    git(first.git_dir, "config", "core.logAllRefUpdates", "true")
    stores = [Store.open(first.git_dir), Store.open(first.git_dir)]
    tree = first.commit(commit_files(stores[0], {b"a": b"0"}, message=b"ours")).tree
    log = Path(first.git_dir, "logs/refs/heads/main")
    latest = time.monotonic() + 30
    done = [0, 0]

    def going_on() -> bool:
        enough = min(done) > 20 and sum(done) > 100 and b"\tgit" in log.read_bytes()
        return not enough and time.monotonic() < latest

    def by_us(n: int) -> None:
        store = stores[n]
        while going_on():
            old = store.read_ref(MAIN)
            assert old is not None
            data = encode_commit(tree, (old,), WHO, WHO, done[n], n, 0, b"ours")
            (new,) = write(store, [(COMMIT, data)])
            with contextlib.suppress(RefLocked):
                done[n] += store.swap_ref(MAIN, old, new, b"ours", WHO)
            time.sleep(0.003 if sum(done) <= 100 else 0.2)  # then git's turn, which takes three commands

    def by_git() -> None:
        while going_on():
            old = git(first.git_dir, "rev-parse", "main").strip().decode()
            new = git(first.git_dir, "commit-tree", tree.hex(), "-p", old, "-m", "git").strip().decode()
            git(first.git_dir, "update-ref", "-m", "git", "refs/heads/main", new, old, check=False)

    def packs_refs() -> None:
        while going_on():
            git(first.git_dir, "pack-refs", "--all", check=False)

    threads = [threading.Thread(target=by_us, args=(n,)) for n in (0, 1)]
    threads += [threading.Thread(target=run) for run in (by_git, packs_refs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = [(*line.split()[:2], line.rpartition("\t")[2]) for line in log.read_text().splitlines()]
    assert min(done) > 20
    assert [who for _, _, who in moves].count("ours") == sum(done) + 1
    assert "git" in [who for _, _, who in moves]
    for (_, was, _), (old, _, who) in pairwise(moves):
        assert who == "git" or old == was


# --- locks that are left behind --------------------------------------------------------------------


def test_lock_of_a_killed_process_of_ours_is_cleared_and_no_other(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    lock = Path(store.git_dir, "refs/heads/main.lock")
    child = os.fork()
    if child == 0:
        store._refs._take_lock(b"refs/heads/main", str(lock)[:-5], str(lock))
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.exists()
    for left in Path(store.git_dir, "caiafs", "locks").iterdir():
        left.unlink()  # as after a power loss: of two directories only one was on disk
    with pytest.raises(RefLocked):
        store.swap_ref(b"refs/heads/main", None, a, b"x", WHO)
    store.clear_stale(str(tmp_path))
    assert not lock.exists()
    lock.write_bytes(b"")  # somebody else's
    store.clear_stale(str(tmp_path))
    assert lock.exists()
    lock.unlink()
    assert store.swap_ref(b"refs/heads/main", None, a, b"x", WHO)
    store.close()
    assert not list(Path(store.git_dir, "caiafs", "locks").iterdir())


def test_lock_of_a_living_process_of_ours_stays(tmp_path: Path) -> None:
    store, other = new_store(tmp_path), Store.open(str(tmp_path / "repo.git"))
    lock = Path(store.git_dir, "refs/heads/main.lock")
    store._refs._take_lock(b"refs/heads/main", str(lock)[:-5], str(lock))
    assert other.clear_stale(str(tmp_path)) == 0
    assert lock.exists()
    store.close()
    assert other.clear_stale(str(tmp_path)) == 1
    assert not lock.exists()
    other.close()


def test_locks_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    a = commit_files(store, {b"a": b"1"}, ref=None)
    lock = Path(store.git_dir, "refs/heads/main.lock")

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    held = store._refs._take_lock(MAIN, str(lock)[:-5], str(lock))
    assert held is not None
    with pytest.raises(RefLocked):
        store.swap_ref(MAIN, None, a, b"x", WHO)
    assert store.clear_stale(str(tmp_path)) == 0
    os.close(held)
    assert store.clear_stale(str(tmp_path)) == 1
    assert store.swap_ref(MAIN, None, a, b"x", WHO)
    assert not lock.exists()
    store.close()
