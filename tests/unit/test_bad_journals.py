"""State directories that something happened to: an error that says what, or the journal up to there."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.journals import contents, plain, segments

from caiafs.errors import JournalDamaged, JournalError
from caiafs.journal import HEADER_SIZE, Journal, RealDisk
from caiafs.journal.segment import Header, decode_header, encode_header, is_newer, name_of
from caiafs.records import FRAME, Record, Remove, SetAttr, Synced, Write

Replayed = list[tuple[Record, int]]


def filled(directory: Path, count: int = 12, segment_size: int = 300, sync_at: int = -1) -> Replayed:
    """A journal of a few segments; what a replay of it gives."""
    directory.mkdir(mode=0o700, exist_ok=True)
    journal = Journal(str(directory), segment_size=segment_size)
    for number in range(count):
        record: Record = Remove(1, number, b"name %d" % number)
        if number % 3 == 0:
            record = Write(number + 2, number, 5, b"%d" % number * 40)
        journal.append(record)
        if number == sync_at:
            journal.sync()
    journal.close()
    return replayed(directory, read_only=True)


def replayed(directory: Path, read_only: bool = False) -> Replayed:
    journal = Journal(str(directory), segment_size=300, read_only=read_only)
    try:
        return [(plain(record), at) for record, at in journal.replay(0)]
    finally:
        journal.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.mark.parametrize("what", ["a symbolic link", "a directory", "what is no regular file"])
def test_what_is_no_segment_is_refused_by_name(state: Path, tmp_path: Path, what: str) -> None:
    filled(state)
    path = state / name_of(1 << 30)
    if what == "a symbolic link":
        (tmp_path / "elsewhere").write_bytes(b"x" * 100)
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "a directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = contents(state)
    with pytest.raises(JournalDamaged, match=f"{path}: {what} stands where a segment should"):
        replayed(state)
    assert contents(state) == before


def test_a_symlink_to_a_good_segment_is_not_followed(state: Path, tmp_path: Path) -> None:
    filled(state)
    path = segments(state)[0]
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(JournalDamaged, match="symbolic link"):
        replayed(state)


def test_a_segment_that_may_not_be_read_is_named(state: Path) -> None:
    filled(state)
    path = segments(state)[1]

    class Closed(RealDisk):
        def open(self, name: str, *, create: bool) -> int:
            if name == str(path):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), name)
            return super().open(name, create=create)

    with pytest.raises(JournalError, match=f"{path}: Permission denied") as caught:
        Journal(str(state), Closed())
    assert caught.value.errno == errno.EACCES


def test_foreign_files_are_let_be(state: Path) -> None:
    wanted = filled(state)
    for name in ("notes.txt", "0.seg", "000000000000000g.seg", "0000000000000000.SEG", ".seg"):
        (state / name).write_bytes(b"mine")
    (state / "folder").mkdir()
    (state / "link").symlink_to("/nowhere")
    assert replayed(state) == wanted
    assert (state / "notes.txt").read_bytes() == b"mine"


def test_a_segment_of_another_journal_is_refused_by_name(state: Path, tmp_path: Path) -> None:
    filled(state)
    filled(tmp_path / "other", count=2)
    (other,) = segments(tmp_path / "other")
    path = state / name_of(1 << 20)
    data = other.read_bytes()
    header = decode_header(data)
    assert header is not None
    path.write_bytes(encode_header(header._replace(start=1 << 20)) + data[HEADER_SIZE:])
    before = contents(state)
    with pytest.raises(JournalDamaged, match=f"{path}: belongs to another journal"):
        replayed(state)
    assert contents(state) == before


@pytest.mark.parametrize("version", b"2379")
def test_a_segment_of_a_newer_version_is_refused_by_name(state: Path, version: int) -> None:
    filled(state)
    path = segments(state)[-1]
    data = bytearray(path.read_bytes())
    data[7] = version
    data[48:52] = b"????"
    path.write_bytes(data)
    with pytest.raises(JournalDamaged, match=f"{path}: a newer caiafs wrote it"):
        replayed(state)
    assert path.read_bytes() == data


def test_a_flipped_version_is_no_newer_one() -> None:
    raw = bytearray(encode_header(Header(b"i" * 16, 0, 0, 0)))
    raw[7] ^= 2
    assert not is_newer(bytes(raw))
    assert not is_newer(b"CAIAFSJ")
    assert not is_newer(b"CAIAFSJ\0" + bytes(100))


def test_a_copied_segment_does_not_come_twice(state: Path) -> None:
    wanted = filled(state)
    last = segments(state)[-1]
    end = int(last.name[:16], 16) + last.stat().st_size
    shutil.copyfile(segments(state)[1], state / name_of(end))
    assert replayed(state) == wanted
    assert [path.name for path in state.glob("*.cut")] == [name_of(end) + ".cut"]  # and it is kept


@pytest.mark.parametrize("sync_at", [-1, 11])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_missing_segment_ends_the_journal_or_is_refused(state: Path, gone: int, sync_at: int) -> None:
    wanted = filled(state, count=30, sync_at=sync_at)
    if sync_at >= 0:
        journal = Journal(str(state), segment_size=300)
        for _ in journal.replay(0):
            pass
        journal.sync()
        journal.append(SetAttr(1, 0, 0, 0, 0, 0, 0, 0, 0))
        journal.close()
    path = segments(state)[gone]
    start = int(path.name[:16], 16)
    path.unlink()
    before = contents(state)
    if sync_at >= 0:
        with pytest.raises(JournalDamaged, match="bytes that were on disk are affected"):
            replayed(state)
        assert contents(state) == before
    elif gone == 0:
        journal = Journal(str(state), segment_size=300)
        assert journal.begin > start  # what is before it is the caller's to know
        journal.close()
    else:
        assert replayed(state) == [(record, at) for record, at in wanted if at < start]
        assert {path.name for path in state.glob("*.cut")} >= {
            name + ".cut" for name in before if name > path.name
        }


@pytest.mark.parametrize("size", [0, 1, 7, 8, 51, 52])
def test_a_segment_cut_off_in_its_header_ends_the_journal(state: Path, size: int) -> None:
    wanted = filled(state)
    path = segments(state)[-1]
    os.truncate(path, size)
    start = int(path.name[:16], 16)
    kept = replayed(state)
    assert kept == [(record, at) for record, at in wanted if at < start]
    assert replayed(state) == kept


def test_a_segment_that_was_blown_up_costs_no_memory(state: Path) -> None:
    wanted = filled(state, segment_size=1 << 20)
    (path,) = segments(state)
    size = path.stat().st_size
    os.truncate(path, 1 << 29)
    tracemalloc.start()
    assert replayed(state) == wanted
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20
    assert path.stat().st_size == size
    assert not list(state.glob("*.cut"))


def test_a_record_that_promises_more_than_memory_is_damage(state: Path) -> None:
    wanted = filled(state, segment_size=1 << 20)
    (path,) = segments(state)
    with path.open("ab") as file:
        file.write(FRAME.pack(2**32 - 1, 0, 5) + b"x" * 100)
    assert replayed(state) == wanted


@pytest.mark.parametrize("read_only", [False, True])
@given(st.integers(0, 2**32))
def test_whatever_happens_to_segments_a_replay_gives_a_beginning(
    tmp_path_factory: pytest.TempPathFactory, read_only: bool, seed: int
) -> None:
    """Only what was written, in its order, from the beginning: or an error that changes nothing."""
    random = Random(seed)
    state = tmp_path_factory.mktemp("state")
    wanted = filled(state, count=random.randrange(1, 25), sync_at=random.randrange(-1, 20))
    for _ in range(random.randrange(1, 4)):
        mutate(random, state)
    before = contents(state)
    try:
        found = replayed(state, read_only)
    except (JournalDamaged, JournalError):
        assert contents(state) == before
        return
    finally:
        if read_only:
            assert contents(state) == before
    if found and found[0] == wanted[0]:
        assert found == wanted[: len(found)]
    else:  # the first segment is gone: that is for the side ref to know
        assert found == [] or found == wanted[wanted.index(found[0]) :][: len(found)]
    if not read_only:
        assert replayed(state) == found
    shutil.rmtree(state)


def mutate(random: Random, state: Path) -> None:
    """One thing that can befall a file of a journal."""
    paths = segments(state)
    if not paths:
        return
    path = random.choice(paths)
    data = bytearray(path.read_bytes())
    at = random.randrange(len(data) + 1)
    kind = random.randrange(6)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << random.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + random.randrange(60)] = bytes(random.randrange(60))
    elif kind == 3:
        data[at:at] = random.randbytes(random.randrange(40))
    elif kind == 4:
        data += random.randbytes(random.randrange(40))
    else:
        path.unlink()
        return
    path.write_bytes(data)


def test_a_synced_record_that_lies_is_damage_and_not_a_crash(state: Path) -> None:
    """Only damage could write it; the mount is refused, and check explains."""
    filled(state)
    journal = Journal(str(state), segment_size=300)
    list(journal.replay(0))
    journal.append(Synced(2**64 - 1))
    journal.close()
    path = segments(state)[-1]
    with path.open("ab") as file:
        file.write(b"torn")
    with pytest.raises(JournalDamaged, match="on disk are affected"):
        replayed(state)
