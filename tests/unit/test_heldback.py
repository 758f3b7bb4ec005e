"""A damaged blob below a change: that file is held back, and everything else reaches git.

Real damage to one loose object, the commit worker's own code, and git as the judge.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from support.core import SIDE, WHO, Core, differences
from test_store_support import fsck
from test_store_support import git as run_git

from caiafs.committer.probes import Probes
from caiafs.errors import FSError, JournalError, StoreError
from caiafs.filesystem import heldback
from caiafs.tree import File

BIG = 3 << 20


def put(core: Core, path: bytes, data: bytes) -> File:
    node = core.run(core.put, path, data)
    assert isinstance(node, File)
    return node


def committed(core: Core, path: str) -> bytes:
    return run_git(core.git_dir, "cat-file", "blob", f"main:{path}")


def names(core: Core) -> set[str]:
    return set(run_git(core.git_dir, "ls-tree", "-r", "--name-only", "main").decode().split())


def unpack(core: Core) -> None:
    """Every object in a file of its own, so that one can be damaged alone."""
    for pack in Path(core.git_dir, "objects/pack").glob("*.pack"):
        data = pack.read_bytes()
        for part in pack.parent.glob(pack.stem + ".*"):
            part.unlink()
        subprocess.run(
            ["git", "-C", core.git_dir, "unpack-objects", "-q"], input=data, check=True, capture_output=True
        )


def damage(core: Core, path: str, *, gone: bool = False) -> Callable[[], None]:
    """Damage the blob of *path*; returns what mends it."""
    unpack(core)
    oid = run_git(core.git_dir, "rev-parse", f"main:{path}").decode().strip()
    file = Path(core.git_dir, "objects", oid[:2], oid[2:])
    whole = file.read_bytes()
    file.chmod(0o600)
    if gone:
        file.unlink()
    else:
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :])
    core.fs.memory._blobs.clear()  # as if memory had let go of it

    def mend() -> None:
        file.write_bytes(whole)

    return mend


def spoil(core: Core, what: str) -> Callable[[], None]:
    """Damage any object; returns what mends it."""
    unpack(core)
    oid = run_git(core.git_dir, "rev-parse", what).decode().strip()
    file = Path(core.git_dir, "objects", oid[:2], oid[2:])
    whole = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(bytes(10) + whole[10:])
    return lambda: void(file.write_bytes(whole))


def void(_: object) -> None: ...


def held(core: Core) -> set[str]:
    return {os.fsdecode(core.tree.path(node)) for node in core.fs.held}


def commit(core: Core) -> None:
    """What is held back makes an asked-for commit fail, in words, when all else is done."""
    with pytest.raises(StoreError, match="all else is committed"):
        core.commit()


def patched(core: Core, size: int, path: bytes = b"bad") -> tuple[File, bytes]:
    """A file in git, whose middle is not."""
    before = os.urandom(size)
    node = put(core, path, before)
    core.commit()
    return node, before[:100] + b"changed" + before[107:]


@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "missing"])
@pytest.mark.parametrize("size", [5000, BIG])
def test_only_the_file_itself_waits(core: Core, size: int, gone: bool) -> None:
    node, expected = patched(core, size)
    mend = damage(core, "bad", gone=gone)
    core.run(core.fs.write, node, 100, b"changed")
    put(core, b"good", b"goes on")
    commit(core)
    assert committed(core, "good") == b"goes on"
    assert held(core) == {"bad"}
    oid = run_git(core.git_dir, "rev-parse", "main:bad").decode().strip()
    assert any("bad" in reason and oid in reason for reason in core.fs.health.reasons)
    assert core.fs.health.state == "degraded"
    assert not core.fs.is_dirty, "it alone is no reason for a commit"
    with pytest.raises(FSError):
        core.run(core.fs.read, node, size - 10, 10)
    assert core.run(core.fs.read, node, 100, 7) == b"changed"
    put(core, b"also/good", b"goes on, too")
    commit(core)
    assert committed(core, "also/good") == b"goes on, too"
    mend()
    core.fs.let_go(node)
    core.commit()
    assert committed(core, "bad") == expected
    assert not core.fs.held
    assert not any("not in git" in reason for reason in core.fs.health.reasons)


@pytest.mark.parametrize("commits", [0, 1, 3])
def test_what_is_held_back_outlives_the_daemon(core: Core, commits: int) -> None:
    """Also where git was told meanwhile that it has the journal: cuts, holes and later writes with it."""
    node, expected = patched(core, 9000)
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    core.fs.set_attributes(node.ino, size=5000)
    core.fs.set_attributes(node.ino, size=12000)
    core.run(core.fs.write, node, 8000, b"late")
    expected = expected[:5000] + bytes(3000) + b"late" + bytes(3996)
    for number in range(commits):
        put(core, b"other%d" % number, b"x")
        commit(core)
        core.run(core.fs.write, node, 200 + number, b"%d" % number)
        expected = expected[: 200 + number] + b"%d" % number + expected[201 + number :]
    mend()
    before = core.dump()
    again = core.crash()
    assert not differences(before, again.dump(), ignore=("atime",))
    again.commit()
    assert committed(again, "bad") == expected
    assert {"bad", *(f"other{number}" for number in range(commits))} == names(again)
    again.close()


def test_a_recovery_without_the_blob_holds_it_back_again(core: Core) -> None:
    node, expected = patched(core, 5000)
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    put(core, b"good", b"1")
    commit(core)
    again = core.crash()
    put(again, b"good", b"2")
    commit(again)
    assert held(again) == {"bad"}
    assert committed(again, "good") == b"2"
    mend()
    last = again.crash()
    last.commit()
    assert committed(last, "bad") == expected
    last.close()


@pytest.mark.parametrize("way", ["written whole", "emptied", "removed"])
def test_a_file_that_needs_the_blob_no_more_is_let_go(core: Core, way: str) -> None:
    node, _ = patched(core, 5000)
    damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    commit(core)
    if way == "removed":
        core.run(core.drop, b"bad")
    elif way == "emptied":
        core.fs.set_attributes(node.ino, size=0)
    else:
        core.run(core.fs.write, node, 0, bytes(5000))
    assert core.fs.is_dirty
    core.commit()
    assert not core.fs.held
    assert core.fs.health.state == "healthy"
    assert names(core) == (set() if way == "removed" else {"bad"})
    if way != "removed":
        assert committed(core, "bad") == bytes(5000 if way == "written whole" else 0)
    assert not core.tree.is_dirty


def test_it_can_be_renamed_and_linked_meanwhile(core: Core) -> None:
    node, expected = patched(core, 5000)
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    commit(core)
    core.run(core.put, b"d/x", b"")
    directory = core.run(core.find, b"d")
    core.run(core.fs.rename, 1, b"bad", directory.ino, b"moved", 0)
    core.run(core.fs.link, node.ino, 1, b"second")
    core.fs.set_attributes(node.ino, mode=0o755)
    commit(core)
    assert names(core) == {"d/moved", "d/x", "second"}
    again = core.crash()
    mend()
    again.commit()
    assert committed(again, "d/moved") == committed(again, "second") == expected
    again.close()


def test_what_is_removed_while_it_is_carried_stays_removed(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the journal would speak of a file that is gone, and the next mount would be refused."""
    monkeypatch.setattr(heldback, "STEP", 1)
    node, _ = patched(core, 5000)
    damage(core, "bad")
    for offset in range(0, 4000, 400):
        core.run(core.fs.write, node, offset, b"changed")
    commit(core)
    put(core, b"good", b"x")

    async def scene() -> None:
        batch = core.fs.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fs.carry, batch)
            await trio.lowlevel.checkpoint()
            await core.fs.unlink(1, b"bad")
        core.fs.thaw(batch, None)

    core.run(scene)
    again = core.crash()
    again.commit()
    assert names(again) == {"good"}
    again.close()


def test_a_journal_that_fails_keeps_git_from_being_told(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """What neither can keep must not be dropped: git is not asked."""
    node, expected = patched(core, 5000)
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    put(core, b"good", b"1")
    commit(core)
    put(core, b"good", b"2")

    def fails() -> int:
        raise JournalError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(core.journal, "sync", fails)
        with pytest.raises(StoreError, match="cannot be kept either"):
            core.run(core.committer.commit, None, 1)
    assert committed(core, "good") == b"1"
    mend()
    again = core.crash()
    again.commit()
    assert committed(again, "bad") == expected
    assert committed(again, "good") == b"2"
    again.close()


def test_too_much_to_be_carried_makes_everything_wait(tmp_path: Path) -> None:
    core = Core(tmp_path, journal_max=1 << 20)
    node = put(core, b"bad", os.urandom(200_000))
    core.commit()
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, bytes(150_000))
    put(core, b"good", b"x")
    with pytest.raises(StoreError, match="more than could be held back"):
        core.run(core.committer.commit, None, 1)
    mend()
    core.commit()
    assert committed(core, "bad")[100:150_100] == bytes(150_000)
    assert committed(core, "good") == b"x"
    core.close()


def test_damaged_bytes_never_get_a_new_name(core: Core) -> None:
    """Damage of a large blob shows at its end only, so it is read to there before it is believed."""
    data = os.urandom(BIG)
    node = put(core, b"bad", data)
    core.commit()
    wrong = run_git(core.git_dir, "hash-object", "-w", "--stdin", stdin=b"!" + data[1:]).decode().strip()
    unpack(core)
    oid = run_git(core.git_dir, "rev-parse", "main:bad").decode().strip()
    place = Path(core.git_dir, "objects", oid[:2], oid[2:])
    place.chmod(0o600)
    place.write_bytes(Path(core.git_dir, "objects", wrong[:2], wrong[2:]).read_bytes())
    core.fs.set_attributes(node.ino, size=1 << 20)
    commit(core)
    assert held(core) == {"bad"}


def test_a_probe_finds_that_it_was_mended(core: Core) -> None:
    node, expected = patched(core, 5000)
    mend = damage(core, "bad")
    core.run(core.fs.write, node, 100, b"changed")
    commit(core)

    async def scene() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Probes(core.fs, core.committer).run)
            await trio.sleep(100)
            assert not core.fs.held
            nursery.cancel_scope.cancel()

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene)
            await trio.sleep(35)
            assert core.fs.held
            mend()

    trio.run(both, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert core.fs.is_dirty
    core.commit()
    assert committed(core, "bad") == expected


def test_a_damaged_file_that_git_looks_into_stays_where_it_is(core: Core) -> None:
    """`.gitmodules` is read before it is written to a tree; one that cannot be is no reason to wait."""
    node = put(core, b".gitmodules", b'[submodule "a"]\n\tpath = a\n\turl = ../a\n')
    core.commit()
    damage(core, ".gitmodules")
    core.fs.set_attributes(node.ino, mode=0o600)
    put(core, b"good", b"x")
    core.commit()
    assert names(core) == {".gitmodules", "good"}


WHAT = {
    "a directory": "main:d",
    "the root": "main^{tree}",
    "records": f"{SIDE.decode()}^{{tree}}:root/=d/@",
    "a side tree": f"{SIDE.decode()}^{{tree}}:root/=d",
    "the last commit": "main",
    "the last side commit": SIDE.decode(),
}


@pytest.mark.parametrize("what", WHAT)
def test_a_directory_that_does_not_read_back_is_written_anew(core: Core, what: str) -> None:
    """What is in memory goes to git as a whole, so that nothing waits; metadata and all."""
    for name in ("d/a", "d/b", "d/e/c", "top"):
        put(core, name.encode(), name.encode())
    core.run(core.fs.create, core.run(core.find, b"d").ino, b"fifo", 0o010600, WHO)
    core.fs.set_attributes(core.run(core.find, b"d/b").ino, mode=0o600)
    core.commit()
    mend = spoil(core, WHAT[what])
    put(core, b"d/a", b"changed")
    put(core, b"other", b"x")
    core.run(core.drop, b"d/e/c")
    core.commit()
    assert not core.tree.is_dirty
    assert committed(core, "d/a") == b"changed"
    assert names(core) == {"d/a", "d/b", "top", "other"}
    body = run_git(core.git_dir, "cat-file", "commit", "main").decode()
    assert "top" not in body, "what did not change is not told as a change"
    assert "d/b" not in body
    before = core.dump()
    mend()
    again = core.crash()
    assert again.fs.replayed == 0
    assert not differences(before, again.dump(), ignore=("atime",))
    again.close()
    assert not fsck(core.git_dir)


def test_a_repository_that_was_moved_away_is_no_damage(core: Core) -> None:
    node, expected = patched(core, 5000)
    core.run(core.fs.write, node, 100, b"changed")
    away = core.git_dir + ".away"
    os.rename(core.git_dir, away)
    os.makedirs(os.path.join(core.git_dir, "caiafs/tmp"))
    with pytest.raises(StoreError):
        core.run(core.committer.commit, None, 1)
    assert not core.fs.held
    shutil.rmtree(core.git_dir)
    os.rename(away, core.git_dir)
    core.commit()
    assert committed(core, "bad") == expected


def test_where_only_git_keeps_changes_the_call_fails_for_this_file_alone(tmp_path: Path) -> None:
    core = Core(tmp_path, primary="git", enable_fallback=False)
    node = put(core, b"bad", os.urandom(5000))
    damage(core, "bad")
    with pytest.raises(FSError) as caught:
        core.run(core.fs.write, node, 100, b"changed")
    assert caught.value.errno == errno.EIO
    put(core, b"good", b"x")
    assert committed(core, "good") == b"x"
    assert not core.fs.held
    assert not core.fs.is_dirty
    core.close()


def test_git_in_front_falls_back_for_this_file_alone(tmp_path: Path) -> None:
    core = Core(tmp_path, primary="git")
    node = put(core, b"bad", os.urandom(5000))
    core.commit()
    damage(core, "bad")

    async def change() -> None:
        await core.fs.write(node, 100, b"changed")
        await core.fs.acknowledged()
        await core.put(b"good", b"x")
        await core.fs.acknowledged()

    core.run(change)
    assert committed(core, "good") == b"x"
    assert held(core) == {"bad"}
    core.close()
