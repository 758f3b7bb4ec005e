"""The journal on a disk that is full or fails, and the flushes by which it becomes durable."""

from __future__ import annotations

import errno
import os
import platform
import select
from pathlib import Path

import pytest
from support.disks import FailingDisk
from support.journals import remove, reopened, segments

from caiafs.errors import JournalError
from caiafs.journal import Journal, RealDisk
from caiafs.records import Record, Write

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
