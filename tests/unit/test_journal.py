"""The journal: what was appended is read back, in order, by position, by others, until it is released."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from support.disks import FailingDisk
from support.journals import remove, reopened, replayed, segments

from caiafs.errors import JournalDamaged, JournalError
from caiafs.journal import Journal, Reader, recovery
from caiafs.records import NO_OID, Committed, Record, Write

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
