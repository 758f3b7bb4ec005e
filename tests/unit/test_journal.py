"""The journal: what was kept is read back, and what was synced survives, whatever the disk does."""

from __future__ import annotations

import errno
import os
import platform
import random
import select
from pathlib import Path

import pytest
from support.disks import Crash, FailingDisk, ForgetfulDisk

from caiafs.errors import JournalDamaged, JournalError
from caiafs.journal import HEADER_SIZE, Journal, Reader, RealDisk, recovery
from caiafs.records import NO_OID, Committed, Record, Remove, Write, encode


def remove(name: bytes) -> Remove:
    return Remove(1, 0, name)


def replayed(journal: Journal, position: int = 0) -> list[Record]:
    found: list[Record] = []
    for record, _ in journal.replay(position):
        found.append(record._replace(data=bytes(record.data)) if type(record) is Write else record)
    return found


def reopened(directory: Path, position: int = 0) -> list[Record]:
    journal = Journal(str(directory))
    found = replayed(journal, position)
    journal.close()
    return found


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def three_segments(directory: Path) -> None:
    """Synced records "0", "1" and "2" in three segments, and "last", which vouches for them."""
    journal = Journal(str(directory))
    for index in range(3):
        journal.append(remove(b"%d" % index))
        journal.seal()
        journal.sync()
    journal.append(remove(b"last"))
    journal.close()


# ---- appending and reading back


def test_records_come_back_in_order_with_their_positions(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    records: list[Record] = [remove(b"a"), Write(2, 7, 1, b"data"), remove(b"b")]
    positions = [journal.append(records[0]), *journal.append_all(records[1:])]
    journal.close()
    again = Journal(str(tmp_path))
    found = [(record, where) for record, where in again.replay(0)]
    assert [where for _, where in found] == positions
    assert [record[:3] for record, _ in found] == [record[:3] for record in records]
    assert again.id == journal.id
    assert again.read(positions[1], 4) == b"data"
    again.close()


@pytest.mark.parametrize("window", [1, 9, 40, 100, 1000, recovery.WINDOW])
def test_records_come_back_however_much_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(recovery, "USUAL_WINDOW", window)
    dice = random.Random(window)
    records: list[Record] = []
    for number in range(60):
        records += [remove(b"%d" % number), Write(2, number, 1, dice.randbytes(dice.randrange(300)))]
    journal = Journal(str(tmp_path))
    journal.append_all(records)
    journal.close()
    assert reopened(tmp_path) == records
    (segment,) = segments(tmp_path)
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(damaged)
    found = reopened(tmp_path)
    assert 0 < len(found) < len(records)
    assert found == records[: len(found)]


def test_what_was_released_is_closed_when_it_is_asked_for(tmp_path: Path) -> None:
    """The disk takes its time over that, so it is left to a thread."""
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    position = journal.seal()
    journal.append(remove(b"b"))
    opened = set(os.listdir("/proc/self/fd"))
    journal.release(position)
    assert len(segments(tmp_path)) == 1
    assert set(os.listdir("/proc/self/fd")) == opened
    journal.close_released()
    assert len(opened - set(os.listdir("/proc/self/fd"))) == 1
    journal.close()


@pytest.mark.parametrize(
    ("size", "syncs", "closed"), [(10, False, True), (1 << 20, False, False), (10, True, False)]
)
def test_little_is_closed_at_once_unless_a_sync_may_have_it(
    tmp_path: Path, size: int, syncs: bool, closed: bool
) -> None:
    journal = Journal(str(tmp_path))
    journal.append(Write(2, 0, 1, bytes(size)))
    position = journal.seal()
    journal.append(remove(b"b"))
    journal.release(position)
    opened = set(os.listdir("/proc/self/fd"))
    if syncs:
        journal._sync_lock.acquire()
    assert journal.close_little() is closed
    if syncs:
        journal._sync_lock.release()
    assert len(opened - set(os.listdir("/proc/self/fd"))) == closed
    journal.close()


def test_a_worker_lists_the_journal_once_and_sees_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path))
    places = [journal.append(Write(2, 0, 0, b"%04d" % number)) for number in range(50)]
    listed = 0
    real = os.listdir

    def counting(*arguments: object) -> list[str]:
        nonlocal listed
        listed += 1
        return real(*arguments)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "listdir", counting)
    reader = Reader(str(tmp_path))
    assert [reader.read(place, 4) for place in places] == [b"%04d" % number for number in range(50)]
    assert listed == 1
    journal.seal()
    place = journal.append(Write(2, 0, 0, b"more"))
    assert reader.read(place, 4) == b"more"
    assert listed == 2
    reader.close()
    journal.close()


def test_new_records_follow_after_every_reopening(tmp_path: Path) -> None:
    expected: list[Record] = []
    for index in range(5):
        journal = Journal(str(tmp_path))
        assert replayed(journal) == expected
        expected.append(remove(b"%d" % index))
        journal.append(expected[-1])
        journal.close()


def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), segment_size=200)
    records = [remove(b"%03d" % index) for index in range(50)]
    positions = [journal.append(record) for record in records]
    assert positions == sorted(positions)
    journal.close()
    assert len(segments(tmp_path)) > 5
    assert reopened(tmp_path) == records


def test_a_read_position_beyond_the_end_is_damage(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    position = journal.append(Write(2, 0, 0, b"abc"))
    with pytest.raises(JournalDamaged):
        journal.read(position, 4)
    with pytest.raises(JournalDamaged):
        journal.read(journal.end, 1)
    journal.close()


def test_another_process_reads_what_is_appended(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    reader = Reader(str(tmp_path))
    for index in range(3):
        data = b"%d" % index * 10
        position = journal.append(Write(2, 0, 0, data))
        assert reader.read(position, 10) == data
        journal.seal()
    with pytest.raises(JournalDamaged):
        reader.read(journal.end + 1, 10)
    reader.close()
    journal.close()


def test_extents_are_read_in_any_order_over_all_segments(tmp_path: Path) -> None:
    """The segment of the last one is tried first: what begins in it and is not in it is not read from it."""
    journal = Journal(str(tmp_path), segment_size=300)
    data = [b"%03d" % number * 30 for number in range(40)]
    places = [journal.append(Write(2, 0, 0, each)) for each in data]
    assert len(segments(tmp_path)) > 5
    reader = Reader(str(tmp_path))
    order = [number * 17 % 40 for number in range(120)]
    assert [reader.read(places[number], 90) for number in order] == [data[number] for number in order]
    for place in places:
        assert reader.read(place, 1) == data[places.index(place)][:1]
        with pytest.raises(JournalDamaged):
            reader.read(place, 600)
    reader.close()
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


# ---- a disk that is full or fails


@pytest.mark.parametrize("fault", ["full", "short"])
def test_a_record_that_does_not_fit_leaves_nothing(tmp_path: Path, fault: str) -> None:
    for call in range(12):
        directory = tmp_path / str(call)
        directory.mkdir()
        disk = FailingDisk()
        journal = Journal(str(directory), disk, segment_size=150)
        kept: list[Record] = []
        if fault == "full":
            disk.fail("writev", errno.ENOSPC, after=call)
        failed: list[JournalError] = []
        for index in range(16):
            record = remove(b"%02d" % index)
            if fault == "short" and index == call:
                disk.short = 5
                disk.fail("writev", errno.ENOSPC)
            try:
                journal.append_all([record, record])
                kept += [record, record]
            except JournalError as error:
                failed.append(error)
        # A short header is a failure of its own, and the next write meets the full disk.
        assert len(failed) in ((1,) if fault == "full" else (1, 2))
        assert {error.errno for error in failed} == {errno.ENOSPC}
        assert len(kept) == 32 - 2 * len(failed)
        assert journal.failure is None
        journal.close()
        assert reopened(directory) == kept


def test_a_write_that_arrives_in_pieces_is_whole(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"first"))
    record = Write(2, 0, 0, b"x" * 100)
    for short in range(1, 120, 7):
        disk.short = short
        position = journal.append(record)
        assert journal.read(position, 100) == record.data
    journal.close()
    assert len(reopened(tmp_path)) == 18


def test_torn_bytes_that_cannot_be_cut_off_do_not_hide_what_follows(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"one"))
    disk.short = 5
    disk.fail("writev")
    disk.fail("truncate")
    with pytest.raises(JournalError):
        journal.append(remove(b"two"))
    disk.heal()
    journal.append(remove(b"three"))
    journal.sync()
    journal.append(remove(b"four"))
    journal.close()
    assert reopened(tmp_path) == [remove(b"one"), remove(b"three"), remove(b"four")]


def test_a_room_that_is_full_takes_records_again_after_a_release(tmp_path: Path) -> None:
    disk = FailingDisk(str(tmp_path), room=2000)
    journal = Journal(str(tmp_path), disk)
    while disk.used() + 150 < 2000:
        journal.append(Write(2, 0, 0, b"x" * 100))
    with pytest.raises(JournalError) as raised:
        journal.append(Write(2, 0, 0, b"x" * 200))
    assert raised.value.errno == errno.ENOSPC
    assert len(segments(tmp_path)) == 1
    position = journal.seal()
    journal.release(position)
    journal.append(remove(b"fits"))
    journal.close()
    assert reopened(tmp_path, position) == [remove(b"fits")]


def test_a_segment_whose_sync_failed_is_not_believed_again(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"a"))
    disk.fail("sync")
    for _ in range(2):  # the second time the disk says yes, but may have dropped the pages
        with pytest.raises(JournalError) as raised:
            journal.sync()
        assert raised.value.errno == errno.EIO
    assert journal.durable == 0
    position = journal.seal()
    journal.append(remove(b"b"))
    journal.release(position)
    assert journal.sync() == journal.durable == journal.end
    journal.close()


def test_a_directory_that_was_not_synced_is_synced_the_next_time(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"a"))
    disk.fail("sync_directory")
    with pytest.raises(JournalError):
        journal.sync()
    assert journal.durable == 0
    journal.sync()
    assert disk.calls.count("sync_directory") == 2
    assert journal.durable == journal.end
    journal.close()


# ---- releasing


def test_release_drops_whole_segments_only(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    first = journal.seal()
    journal.append(remove(b"b"))
    middle = journal.append(remove(b"c"))
    journal.release(middle)
    assert [path.name for path in segments(tmp_path)] == [f"{first:016x}.seg"]
    assert journal.begin == first
    journal.close()
    assert reopened(tmp_path, middle) == [remove(b"c")]


def test_a_released_segment_that_reappears_is_dropped_again(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"0"))
    position = journal.seal()
    journal.append(Committed(position, NO_OID, NO_OID, NO_OID))
    (first, _) = segments(tmp_path)
    data = first.read_bytes()
    journal.release(position)
    journal.append(remove(b"1"))
    journal.sync()
    journal.close()
    first.write_bytes(data)
    assert reopened(tmp_path, position)[1:] == [remove(b"1")]
    assert not first.exists()


def test_a_segment_that_cannot_be_unlinked_is_left_to_recovery(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"0"))
    position = journal.seal()
    journal.append(remove(b"1"))
    disk.fail("unlink")
    journal.release(position)
    assert journal.failure is not None
    journal.close()
    assert len(segments(tmp_path)) == 2
    assert reopened(tmp_path, position) == [remove(b"1")]
    assert len(segments(tmp_path)) == 1


def test_what_unlinked_files_need_stays_readable_after_a_release(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    where = journal.append(Write(0, 0, 0, b"orphan"))
    other = journal.append(Write(2, 0, 0, b"named"))
    end = journal.seal()
    size = journal.size
    journal.release(end, [where])
    assert segments(tmp_path) == []
    assert (journal.read(where, 6), journal.read(other, 5)) == (b"orphan", b"named")
    assert journal.size == size
    assert journal.statistics()["kept_segments"] == 1
    journal.append(remove(b"later"))
    journal.release(end, [end])
    with pytest.raises(JournalDamaged):
        journal.read(where, 6)
    journal.close()


def test_compacting_leaves_what_is_needed_and_says_that_git_has_the_rest(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    where = journal.append(Write(0, 0, 0, b"orphan"))
    journal.seal()
    journal.append(remove(b"dropped"))
    end = journal.end
    journal.compact([where])
    assert [path.name for path in segments(tmp_path)] == [f"{end:016x}.seg"]
    assert journal.read(where, 6) == b"orphan"
    journal.append(remove(b"new"))
    journal.close()
    assert reopened(tmp_path) == [remove(b"new")]


def test_compacting_on_a_full_disk_keeps_everything(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"kept"))
    disk.fail("writev", errno.ENOSPC)
    with pytest.raises(JournalError):
        journal.compact([])
    journal.close()
    assert len(segments(tmp_path)) == 1


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


# ---- flushes that nobody waits for


def flushed(journal: Journal) -> int:
    """What `start_sync` began is over; up to where."""
    done = journal.start_sync()
    assert done is not None
    assert select.select([done], [], [], 10)[0] == [done]
    return journal.finish_sync()


def test_a_flush_without_a_thread_makes_durable_what_came_before_it(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    assert journal.start_sync() is None, "a new segment's name has to be synced, too: two calls"
    journal.sync()
    for name in (b"b", b"c"):
        before = journal.durable
        journal.append(remove(name))
        assert journal.durable == before
        assert flushed(journal) == journal.durable == journal.end
    assert journal.start_sync() is None, "nothing is left to flush"
    journal.close()
    assert reopened(tmp_path)[0] == remove(b"a")


def test_what_comes_while_a_flush_runs_is_for_the_next_one(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    journal.sync()
    journal.append(remove(b"b"))
    target = journal.end
    assert journal.start_sync() is not None
    assert journal.start_sync() is None, "one at a time"
    journal.append(remove(b"c"))
    assert journal.finish_sync() == journal.durable == target < journal.end
    assert flushed(journal) == journal.end
    journal.close()


def test_a_flush_without_a_thread_that_fails_is_not_believed_again(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(str(tmp_path), disk)
    journal.append(remove(b"a"))
    journal.sync()
    durable = journal.durable
    journal.append(remove(b"b"))
    disk.fail("sync")
    with pytest.raises(JournalError):
        flushed(journal)
    assert journal.is_doomed
    assert journal.start_sync() is None, "only sync() tells why"
    with pytest.raises(JournalError):
        journal.sync()
    assert journal.durable == durable
    journal.close()


def test_what_two_segments_hold_is_flushed_by_sync(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    journal.sync()
    journal.append(remove(b"b"))
    journal.seal()
    journal.append(remove(b"c"))
    assert journal.start_sync() is None
    assert journal.sync() == journal.durable == journal.end
    journal.close()


def test_a_descriptor_that_cannot_be_flushed_is_left_to_sync() -> None:
    reading, writing = os.pipe()
    try:
        assert RealDisk().start_sync(writing) is None
    finally:
        os.close(reading)
        os.close(writing)


def test_a_machine_without_asynchronous_flushes_has_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    journal = Journal(str(tmp_path))
    journal.append(remove(b"a"))
    journal.sync()
    journal.append(remove(b"b"))
    assert journal.start_sync() is None
    assert journal.sync() == journal.end
    journal.close()
