"""`caiafs check` of a journal: segments and records that are torn, damaged, missing, or not ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from support.lab import Lab, filled, flip

from caiafs.errors import JournalDamaged
from caiafs.records import Write


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    """With segments so small that a few writes fill several."""
    made = Lab(tmp_path, segment_size=300)
    yield made
    made.end()


def two_writes(lab: Lab) -> None:
    """A session that ended with two files in the journal alone."""
    session = filled(lab)
    session.write("one", b"first")
    session.write("two", b"second")
    lab.end()


def test_torn_tail_is_a_note(lab: Lab) -> None:
    two_writes(lab)
    segment, _, end = lab.write_of(b"second")
    os.truncate(segment, end - 3)
    result = lab.check()
    assert result.code == 0
    assert any("torn" in note for note in result.notes)


def damaged_middle(lab: Lab) -> tuple[Path, int, int]:
    """Three files, the second's write is damaged, though it was synced; where its record is."""
    session = filled(lab)
    session.write("one", b"first")
    ino = session.write("two", b"second")
    session.sync()
    session.write("three", b"third")
    session.write("three", b" and more", 5)
    session.write("three", b"THIRD")
    lab.end()
    segment, at, end = lab.write_of(b"second")
    flip(segment, end - 1)
    return segment, end - at, ino


def test_damage_that_was_on_disk_is_sized_and_named(lab: Lab) -> None:
    _, size, ino = damaged_middle(lab)
    with pytest.raises(JournalDamaged):
        lab.mounts()
    result = lab.check()
    assert result.code == 1
    (problem,) = result.problems
    assert f"{size} bytes lost" in problem
    assert f"a write of 6 bytes at 0 of two (inode {ino})" in problem
    assert "three" in problem
    assert "--repair keeps the journal up to" in problem
    assert "1 problem, 1 of which --repair can mend" in result.lines[-1]


def test_repair_cuts_the_journal_and_saves_what_follows(lab: Lab) -> None:
    segment, _, _ = damaged_middle(lab)
    damaged = segment.read_bytes()
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert "1 problem repaired: clean" in result.lines[-1]
    (backup,) = lab.backups()
    assert (backup / segment.name).read_bytes() == damaged
    assert (backup.stat().st_mode & 0o777, (backup / segment.name).stat().st_mode & 0o777) == (0o700, 0o600)
    assert str(backup) in result.text
    saved = lab.lost_and_found()
    third = next(name.split("/")[0] for name in saved if name.startswith("inode-"))
    assert saved[f"{third}/offset-0"] == b"third and more"
    assert saved[f"{third}/offset-0.2"] == b"THIRD"
    assert "three" in saved["index.txt"].decode()
    session = lab.mounts()
    assert session.read("one") == b"first"
    assert session.read("two") == b""
    with pytest.raises(KeyError):
        session.node("three")
    session.write("after", b"the repair")
    session.commit()
    assert lab.git("show", "main:after") == "the repair"
    lab.end()
    assert lab.check().code == 0
    lab.git("fsck", "--strict")


def test_second_salvage_is_a_commit_on_the_first(lab: Lab) -> None:
    damaged_middle(lab)
    lab.check(repair=True)
    session = lab.mounts()
    session.write("x", b"xxx")
    session.sync()
    session.write("y", b"yyy")
    lab.end()
    segment, at, _ = lab.write_of(b"xxx")
    flip(segment, at + 40)
    assert lab.check(repair=True).code == 0
    assert lab.git("rev-list", "--count", "refs/heads/caiafs-lost+found/main") == "2"
    assert len(lab.backups()) == 2


@pytest.mark.parametrize("at", [0, 4, 8, 9, 17, 25, 33, 38])
def test_any_flipped_byte_of_a_record_is_found_and_mended(lab: Lab, at: int) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.sync()
    session.write("two", b"second")
    lab.end()
    segment, start, _ = lab.write_of(b"first")
    flip(segment, start + at, 0x01)
    assert len(lab.check().problems) == 1
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert b"second" in lab.lost_and_found().values()
    lab.mounts()


def test_unsynced_damage_before_whole_records_is_a_problem(lab: Lab) -> None:
    two_writes(lab)
    segment, _, end = lab.write_of(b"first")
    flip(segment, end - 1)
    result = lab.check()
    assert result.code == 1
    assert "not yet synced, but whole records follow" in result.text
    assert lab.check(repair=True).code == 0
    assert b"second" in lab.lost_and_found().values()


def test_what_a_mount_set_aside_is_noted_and_saved(lab: Lab) -> None:
    two_writes(lab)
    segment, _, end = lab.write_of(b"first")
    flip(segment, end - 1)
    session = lab.mounts()
    assert session.journal.set_aside
    lab.end()
    result = lab.check()
    assert result.code == 0
    assert any(".cut holds" in note for note in result.notes)
    assert lab.check(repair=True).code == 0
    assert b"second" in lab.lost_and_found().values()
    assert not list(Path(lab.state).glob("*.cut"))
    assert lab.check().notes == []


def test_record_that_does_not_fit_is_named_and_cut(lab: Lab) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.journal.append(Write(4711, 0, session.fs.now(), b"nobody's"))
    session.write("two", b"second")
    lab.end()
    with pytest.raises(JournalDamaged):
        lab.mounts()
    result = lab.check()
    (problem,) = result.problems
    assert "a write of 8 bytes at 0 of inode 4711" in problem
    assert "does not fit" in problem
    assert lab.check(repair=True).code == 0
    assert lab.lost_and_found()["inode-4711/offset-0"] == b"nobody's"
    session = lab.mounts()
    assert session.read("one") == b"first"


def test_a_journal_copied_into_the_mount_is_not_replayed(lab: Lab) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.sync()
    (segment,) = lab.segments()
    copy = segment.read_bytes()
    session.write("copy", copy)
    session.sync()
    lab.end()
    segment, at, _ = lab.write_of(copy)
    flip(segment, at + 40)
    (problem,) = lab.check().problems
    assert f"{len(copy)} bytes at 0 of copy" in problem.replace(",", "")


# ---- segments


def test_missing_middle_segment(small: Lab) -> None:
    session = filled(small)
    for number in range(12):
        session.write(f"f{number}", b"%d" % number * 100)
    session.sync()
    session.write("last", b"last")
    small.end()
    segments = small.segments()
    assert len(segments) > 4
    size = segments[2].stat().st_size
    segments[2].unlink()
    result = small.check()
    assert result.code == 1
    assert f"{size} bytes lost" in result.text
    assert "a segment is missing" in result.text
    assert small.check(repair=True).code == 0
    assert b"last" in small.lost_and_found().values()
    (backup,) = small.backups()
    assert {path.name for path in backup.iterdir()} >= {path.name for path in segments[3:]}
    assert small.mounts().read("f0") == b"0" * 100


def test_missing_first_segment(small: Lab) -> None:
    session = filled(small)
    for number in range(6):
        session.write(f"f{number}", b"%d" % number * 100)
    session.sync()
    session.write("last", b"last")
    small.end()
    start = int(small.segments()[0].name[:16], 16)
    session = small.mounts()
    assert session.journal.begin == start
    small.end()
    small.segments()[0].unlink()
    result = small.check()
    assert result.code == 1
    assert "are missing" in result.text
    assert small.check(repair=True).code == 0
    assert b"last" in small.lost_and_found().values()
    small.mounts()


@pytest.mark.parametrize("at", [0, 10, 25, 33, 41])
def test_damaged_header_is_written_again(lab: Lab, at: int) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.sync()
    lab.end()
    (segment,) = lab.segments()
    whole = segment.read_bytes()
    flip(segment, at)
    result = lab.check()
    assert result.code == 1
    assert "header" in result.text
    assert lab.check(repair=True).code == 0
    assert segment.read_bytes() == whole or at == 10, "what the id was, nobody else knows"
    assert lab.mounts().read("one") == b"first"


def test_segment_of_another_journal_is_moved_away_and_saved(lab: Lab, tmp_path: Path) -> None:
    session = filled(lab)
    session.write("one", b"first")
    lab.end()
    (tmp_path / "other").mkdir()
    other = Lab(tmp_path / "other")
    session = other.session()
    session.write("theirs", b"of the other")
    other.end()
    (foreign,) = other.segments()
    name = f"{int(lab.segments()[0].name[:16], 16) + 100_000:016x}.seg"
    data = foreign.read_bytes()
    (Path(lab.state) / name).write_bytes(data)
    result = lab.check()
    assert result.code == 1
    assert lab.check(repair=True).code == 0
    assert b"of the other" in lab.lost_and_found().values()
    assert lab.mounts().read("one") == b"first"


# ---- what a newer caiafs wrote


def newer_segment(lab: Lab) -> Path:
    """A journal's only segment, as a later version writes it."""
    session = filled(lab)
    session.write("one", b"first")
    lab.end()
    (segment,) = lab.segments()
    data = bytearray(segment.read_bytes())
    data[7:8] = b"2"
    data[40:44] = b"odd!"
    segment.write_bytes(data)
    return segment


def test_newer_format_is_left_alone(lab: Lab) -> None:
    segment = newer_segment(lab)
    before = segment.read_bytes()
    result = lab.check()
    assert result.code == 1
    assert "a newer caiafs wrote it" in result.text
    result = lab.check(repair=True)
    assert result.code == 1
    assert segment.read_bytes() == before


def test_a_newer_segment_stops_the_mount(lab: Lab) -> None:
    segment = newer_segment(lab)
    data = segment.read_bytes()
    with pytest.raises(JournalDamaged, match="a newer caiafs wrote it"):
        lab.mounts()
    assert segment.read_bytes() == data


def test_a_newer_record_is_neither_cut_off_nor_mended(lab: Lab) -> None:
    session = filled(lab)
    session.write("one", b"first")
    lab.end()
    (segment,) = lab.segments()
    body = bytes((100,)) + b"from the future"
    frame = len(body).to_bytes(4, "little") + crc32(body).to_bytes(4, "little") + body
    segment.write_bytes(segment.read_bytes() + frame)
    before = lab.snapshot()
    with pytest.raises(JournalDamaged, match="a newer caiafs wrote it"):
        lab.mounts()
    lab.end()
    assert "a newer caiafs wrote records" in lab.check().text
    assert lab.check(repair=True).code == 1
    assert lab.snapshot() == before
