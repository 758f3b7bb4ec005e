"""Who can push the side ref, and cannot read the journal, has nothing dropped that git does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.core import SIDE, Core
from test_store_support import git as run_git

from caiafs.committer.process import Refused
from caiafs.filesystem.loader import read_side
from caiafs.records.side import parse_side_message, side_message


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    made.run(made.put, b"old", b"in git")
    made.commit()
    made.run(made.put, b"new", b"in the journal")
    made.run(made.put, b"d/newer", b"in the journal, too")
    yield made
    with contextlib.suppress(OSError):
        made.close()


def side(core: Core) -> str:
    return run_git(core.git_dir, "rev-parse", SIDE.decode()).decode().strip()


def push(core: Core, position: int, said: bytes | None = None) -> None:
    """What a stranger can make of the side ref that he fetched: the same metadata, and another position."""
    commit, known, _ = parse_side_message(run_git(core.git_dir, "log", "-1", "--format=%B", SIDE.decode()))
    message = side_message(commit, known if said is None else said, position)
    words = ("commit-tree", f"{side(core)}^{{tree}}", "-p", side(core), "-p", "main", "-F", "-")
    made = run_git(core.git_dir, *words, stdin=message).decode().strip()
    run_git(core.git_dir, "update-ref", SIDE.decode(), made)


@pytest.mark.parametrize("said", [None, bytes(16)], ids=["what was there", "something"])
def test_a_position_that_nobody_vouches_for_drops_nothing(core: Core, said: bytes | None) -> None:
    before = core.dump()
    push(core, core.journal.end, said)
    again = core.crash()
    assert again.dump() == before
    again.commit()
    assert run_git(again.git_dir, "cat-file", "blob", "main:d/newer") == b"in the journal, too"
    assert again.side is not None
    again.close()


def test_the_mounts_own_position_is_believed(core: Core) -> None:
    """Also where it died before anything but the side ref said so: nothing is replayed a second time."""
    core.committer._release = lambda batch, done: None  # type: ignore[method-assign]
    core.commit()
    before = core.dump()
    again = core.crash()
    assert again.fs.replayed == 0
    assert again.dump() == before
    again.close()


def test_a_commit_in_doubt_is_not_believed_of_a_stranger(core: Core) -> None:
    """The daemon asks the side ref what became of a commit of which nothing was heard."""
    push(core, 10**9)
    seen = core.worker.do_side()
    assert seen is not None
    assert seen.position == 10**9
    assert not core.committer._is_ours(seen)
    genuine = run_git(core.git_dir, "rev-parse", f"{SIDE.decode()}^").decode().strip()
    run_git(core.git_dir, "update-ref", SIDE.decode(), genuine)
    assert core.committer._is_ours(core.worker.do_side())


def test_the_id_of_the_journal_is_not_in_the_repository(core: Core) -> None:
    core.commit()
    message = run_git(core.git_dir, "log", "--format=%B", SIDE.decode())
    assert core.journal.id.hex().encode() not in message
    oid = core.store.read_ref(SIDE)
    assert oid is not None
    assert read_side(core.store, oid).is_about(core.journal.id)


def test_the_next_commit_goes_on_from_a_forged_ref(core: Core) -> None:
    """A daemon that runs knows what git has, and does not ask the ref."""
    push(core, 10**9)
    with contextlib.suppress(Refused):
        core.commit()
    assert run_git(core.git_dir, "cat-file", "blob", "main:new") == b"in the journal"
    before = core.dump()
    again = core.crash()
    assert again.dump() == before
    again.close()
