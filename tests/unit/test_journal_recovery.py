"""The journal after a crash: a torn tail is the end, damage is reported, what was promised is there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.disks import Crash, ForgetfulDisk
from support.journals import contents, remove, reopened, replayed, segments

from caiafs.errors import JournalDamaged
from caiafs.journal import HEADER_SIZE, Journal, RealDisk, recovery
from caiafs.records import NO_OID, Committed, Record, Write, encode

# ---- the tail


@pytest.mark.parametrize("last", [remove(b"torn"), Write(2, 3, 0, b"some data" * 3)])
def test_a_last_record_torn_at_any_byte_is_the_end(tmp_path: Path, last: Record) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"whole"))
    journal.sync()
    journal.append(remove(b"whole too"))
    journal.append(last)
    journal.close()
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    size = sum(map(len, encode(last)))
    for cut in range(len(data) - size, len(data)):
        path.write_bytes(data[:cut])
        again = Journal(str(tmp_path))
        assert replayed(again) == [remove(b"whole"), remove(b"whole too")]
        assert again.set_aside == []
        assert again.end >= cut
        again.close()
        assert contents(tmp_path) == {path.name: data[: len(data) - size]}


@pytest.mark.parametrize("zeros", [1, 8, 9, 4096])
def test_zeros_at_the_end_are_the_end(tmp_path: Path, zeros: int) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"whole"))
    journal.close()
    with open(segments(tmp_path)[0], "ab") as file:
        file.write(bytes(zeros))
    assert reopened(tmp_path) == [remove(b"whole")]
    assert len(list(tmp_path.iterdir())) == 1


def test_records_after_a_torn_one_are_set_aside(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    for name in (b"a", b"b", b"c"):
        journal.append(remove(name))
    journal.close()
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    size = sum(map(len, encode(remove(b"b"))))
    data[HEADER_SIZE + 2 * size - 1] ^= 1
    path.write_bytes(data)
    journal = Journal(str(tmp_path))
    assert replayed(journal) == [remove(b"a")]
    (aside,) = journal.set_aside
    assert Path(aside).read_bytes() == data[HEADER_SIZE + size :]
    journal.close()


def test_reading_only_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"released"))
    position = journal.seal()
    journal.append(remove(b"kept"))
    journal.seal()
    journal.append(remove(b"torn"))
    journal.close()
    last = segments(tmp_path)[-1]
    os.truncate(last, last.stat().st_size - 1)
    before = contents(tmp_path)
    journal = Journal(str(tmp_path), read_only=True)
    assert replayed(journal, position) == [remove(b"kept")]
    journal.close()
    assert contents(tmp_path) == before


# ---- damage


def three_segments(directory: Path) -> None:
    """Synced records "0", "1" and "2" in three segments, and "last", which vouches for them."""
    journal = Journal(str(directory))
    for index in range(3):
        journal.append(remove(b"%d" % index))
        journal.seal()
        journal.sync()
    journal.append(remove(b"last"))
    journal.close()


def test_damage_before_a_synced_position_raises_and_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"promised"))
    journal.sync()
    journal.append(remove(b"after"))
    journal.close()
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    size = sum(map(len, encode(remove(b"promised"))))
    for at in range(HEADER_SIZE + size):
        data = bytearray(whole)
        data[at] ^= 0x40
        path.write_bytes(data)
        journal = Journal(str(tmp_path))
        with pytest.raises(JournalDamaged):
            replayed(journal)
        journal.close()
        assert contents(tmp_path) == {path.name: bytes(data)}


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_segment_that_was_synced_is_damage(tmp_path: Path, missing: int) -> None:
    three_segments(tmp_path)
    segments(tmp_path)[missing].unlink()
    before = contents(tmp_path)
    with pytest.raises(JournalDamaged):
        reopened(tmp_path)
    assert contents(tmp_path) == before


def test_segments_that_git_has_may_be_missing(tmp_path: Path) -> None:
    three_segments(tmp_path)
    first, second, *_ = segments(tmp_path)
    first.unlink()
    assert reopened(tmp_path, int(second.stem, 16)) == [remove(b"1"), remove(b"2"), remove(b"last")]


@pytest.mark.parametrize("left", [0, HEADER_SIZE - 1])
def test_a_header_lost_in_an_unsynced_segment_is_the_end(tmp_path: Path, left: int) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"0"))
    journal.sync()
    for name in (b"1", b"2"):
        journal.seal()
        journal.append(remove(name))
    journal.close()
    _, middle, last = segments(tmp_path)
    os.truncate(middle, left)
    journal = Journal(str(tmp_path))
    assert replayed(journal) == [remove(b"0")]
    assert journal.set_aside == [f"{last}.cut"]
    assert journal.end > int(last.stem, 16)
    journal.close()


def test_segments_of_two_journals_do_not_mix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        journal = Journal(str(tmp_path / name))
        journal.append(remove(b"x"))
        journal.seal()
        journal.append(remove(b"y"))
        journal.close()
    second = segments(tmp_path / "two")[1]
    (tmp_path / "one" / second.name).write_bytes(second.read_bytes())
    with pytest.raises(JournalDamaged, match="another journal"):
        Journal(str(tmp_path / "one"))


# ---- crash drills


class Drill:
    """A workload on a disk that goes down at one call, and what it was promised until then."""

    def __init__(self, seed: int, crash_at: int) -> None:
        self.rng = random.Random(seed)
        self.disk = ForgetfulDisk(crash_at, seed * 7919 + crash_at)
        self.appended: list[Record] = []
        self.acknowledged = self.promised = self.released = self.position = 0
        self.id = b""
        try:
            self.work()
            self.finished = True
        except Crash:
            self.finished = False

    def record(self, index: int) -> Record:
        if self.rng.random() < 0.4:
            return Write(2, index, index, self.rng.randbytes(self.rng.choice([1, 30, 700, 3000])))
        return remove(b"r%d" % index)

    def work(self) -> None:
        journal = Journal("/d", self.disk, segment_size=3000)
        self.id = journal.id
        for index in range(50):
            step = self.rng.random()
            if step < 0.75:
                self.appended.append(self.record(index))
                journal.append(self.appended[-1])
                self.acknowledged = len(self.appended)
            elif step < 0.87:
                count = len(self.appended)
                journal.sync()
                self.promised = count
            elif step < 0.95:
                journal.seal()
            else:  # as a commit does: git has everything before the seal, and says so itself
                self.position = journal.seal()
                self.released = len(self.appended)
                journal.append(Committed(self.position, NO_OID, NO_OID, NO_OID))
                journal.release(self.position)

    def verify(self, power: bool) -> None:
        disk = self.disk.crashed(power=power)
        journal = Journal("/d", disk)
        position = self.position if journal.id == self.id else 0
        found = [record for record in replayed(journal, position) if type(record) is not Committed]
        assert found == self.appended[self.released :][: len(found)]
        due = self.promised if power else self.acknowledged
        assert self.released + len(found) >= due
        assert journal.append(remove(b"more")) >= position
        journal.close()


@pytest.mark.parametrize("power", [True, False], ids=["power", "process"])
@pytest.mark.parametrize("seed", range(12))
def test_what_was_promised_survives_a_crash_at_any_call(seed: int, power: bool) -> None:
    for crash_at in range(1000):
        drill = Drill(seed, crash_at)
        drill.verify(power)
        if drill.finished:
            return
    raise AssertionError("the workload never ends")


# ---- reading


def test_recovery_reads_each_byte_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(RealDisk):
        looks: list[tuple[int, int]] = []  # noqa: RUF012  # of one test

        def pread(self, fd: int, length: int, offset: int) -> bytes:
            data = super().pread(fd, length, offset)
            self.looks.append((offset, len(data)))
            return data

    monkeypatch.setattr(recovery, "USUAL_WINDOW", 1000)
    journal = Journal(str(tmp_path))
    written = [
        Write(2, 0, 0, bytes(700)),
        Write(2, 0, 0, bytes(5000)),
        remove(b"a"),
        Write(2, 0, 0, bytes(900)),
    ]
    for record in written:
        journal.append(record)
    journal.close()
    journal = Journal(str(tmp_path), Watched())
    del Watched.looks[:]
    assert replayed(journal) == written
    at = HEADER_SIZE
    for offset, length in Watched.looks:
        assert offset == at
        at += length
    assert at == segments(tmp_path)[0].stat().st_size
    journal.close()
