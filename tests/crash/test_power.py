"""Power loss at any write: objects, refs, journal and recovery on a disk that forgets.

A sample of what `make crash` does at every write, by the same code: see support.power and
support.power_drill. CAIAFS_POWER_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.power import Call, Inode, Platter, Recorder
from support.power_drill import Loss, Outcome, Prover, Recording, at_every_write

SEED = int(os.environ.get("CAIAFS_POWER_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    print(f"CAIAFS_POWER_SEED={SEED}")  # shown if the test fails
    return Recording(tmp_path / "recorded", SEED, 160)


def test_power_loss_at_writes_keeps_every_promise(tmp_path: Path, recording: Recording) -> None:
    dice = random.Random(SEED)
    losses = at_every_write(recording, SEED)
    outcome = Outcome()
    Prover(recording, tmp_path / "found", outcome).sweep(dice.sample(losses, 24))
    assert outcome.states == 24
    assert recording.commits > 3


def test_power_loss_at_writes_while_others_push(tmp_path: Path) -> None:
    """Nothing that was pushed is lost, and what was taken in is one of the states that there were."""
    recording = Recording(tmp_path / "recorded", SEED, 100, outside=0.25)
    assert recording.pushed
    losses = random.Random(SEED).sample(at_every_write(recording, SEED), 16)
    Prover(recording, tmp_path / "found", Outcome()).sweep(losses)


def test_power_loss_while_a_repository_is_made(tmp_path: Path, recording: Recording) -> None:
    """`-o init`: a machine that starts again finds a repository, or makes it."""
    first = next(mark.calls for mark in recording.marks if mark.number == 1)
    losses = [Loss(calls, "some", SEED + calls) for calls in range(0, first, 5)]
    outcome = Outcome()
    Prover(recording, tmp_path / "found", outcome, git=False).sweep(losses)
    assert outcome.states == len(losses) > 10


def test_power_loss_during_the_recovery_from_one(tmp_path: Path, recording: Recording) -> None:
    outcome = Outcome()
    middle = len(recording.recorder.calls) // 2
    Prover(recording, tmp_path / "found", outcome, git=False).sweep([Loss(middle, "some", SEED, again=4)])
    assert outcome.recoveries == 1
    assert outcome.states > 1


# ---- the disk itself


def survivors(platter: Platter, base: Path, torn: Call | None = None) -> set[tuple[tuple[str, bytes], ...]]:
    """Every state that turns up in many tries, as (path, bytes)."""
    found = set()
    for seed in range(150):
        place = base / str(seed)
        place.mkdir()
        platter.write_survivor(str(place), random.Random(seed), "some", torn)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        found.add(tuple((str(path.relative_to(place)), path.read_bytes()) for path in files))
    return found


def test_the_forgetful_disk_keeps_what_was_synced_and_nothing_else_for_certain(tmp_path: Path) -> None:
    base = tmp_path / "disk"
    base.mkdir()
    with Recorder(str(base)) as recorder:
        fd = os.open(base / "a", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"old")
        os.fsync(fd)
        folder = os.open(base, os.O_RDONLY)
        os.fsync(folder)
        os.pwrite(fd, b"new", 0)
        os.rename(base / "a", base / "b")
        os.close(fd)
        os.close(folder)
    recorder.assert_complete()
    platter = recorder.origin
    for call in recorder.calls:
        platter.play(call)
    found = survivors(platter, tmp_path)
    for data in (b"old", b"new"):
        assert {(("a", data),), (("b", data),), (("a", data), ("b", data)), ()} <= found
    assert all(data in (b"old", b"new") for files in found for _, data in files)
    torn = {data for files in survivors_torn(platter, tmp_path) for _, data in files}
    assert {b"olX", b"neX", b"old", b"new"} <= torn


def survivors_torn(platter: Platter, base: Path) -> set[tuple[tuple[str, bytes], ...]]:
    (ino,) = {ino for ino, inode in platter.inodes.items() if not inode.folder}
    place = base / "torn"
    place.mkdir()
    return survivors(platter, place, Call("write", ino, 2, b"XY"))


def test_a_file_in_a_directory_that_was_not_synced_may_be_gone(tmp_path: Path) -> None:
    platter = Platter({0: Inode(True), 1: Inode(True, 0o700), 2: Inode(False)})
    platter.play(Call("name", 0, name="d", target=1))
    platter.play(Call("name", 1, name="f", target=2))
    platter.play(Call("write", 2, 0, b"x"))
    platter.play(Call("sync", 2))
    platter.play(Call("sync", 1))
    assert () in survivors(platter, tmp_path)
    platter.play(Call("sync", 0))
    (tmp_path / "again").mkdir()
    assert survivors(platter, tmp_path / "again") == {(("d/f", b"x"),)}


def test_what_goes_past_the_recorder_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    recorder = Recorder(str(tmp_path))
    recorder.assert_complete()
    (tmp_path / "a").write_bytes(b"b")
    with pytest.raises(AssertionError, match="past the recorder"):
        recorder.assert_complete()
