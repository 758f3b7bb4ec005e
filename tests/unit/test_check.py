"""`caiafs check` and --repair: real damage to repositories made in process, by the product's own parts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import pytest
import trio

from caiafs.check import run_check
from caiafs.check.scan import look, read_stretches
from caiafs.committer.worker import FRAME, Done, Order, Worker, unpack_contents
from caiafs.committer.worker import Place as WorkerPlace
from caiafs.config import Config, state_directory
from caiafs.errors import CaiafsError, FormatNewer, JournalDamaged, RepositoryMissing, UsageError
from caiafs.filesystem import Filesystem
from caiafs.filesystem.loader import Loader, epoch_of, read_side
from caiafs.journal import HEADER_SIZE, Journal
from caiafs.memory import MemoryTier
from caiafs.metrics import Metrics
from caiafs.records import NO_OID, Committed, Write, decode
from caiafs.records.side import (
    decode_meta,
    decode_records,
    encode_meta,
    encode_record,
    parse_side_message,
    side_message,
    side_ref,
)
from caiafs.store import BLOB, COMMIT, TREE, Store, encode_commit, patch_tree, storable_entry
from caiafs.tree import Directory, File, Node, Settled, Tree

AS_SOMEBODY = ("-c", "user.name=x", "-c", "user.email=x@example.org")
IDENTITY = b"A Person <person@example.org>"


class Caller(NamedTuple):
    uid: int = 0
    gid: int = 0
    umask: int = 0


class Session:
    """What a mount does between start and end, without the kernel: the same parts, the same order."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.store = Store.open(str(lab.repo))
        self.journal = Journal(lab.state, segment_size=lab.segment_size)
        memory = MemoryTier(1 << 24)
        self.tree = Tree(storable_entry, memory)
        config = Config(repo=str(lab.repo), mountpoint="")
        self.fs = Filesystem(
            config, self.tree, memory, self.journal, self.store, Loader(self.store, 0, 0), Metrics({}),
            lab.state,
        )  # fmt: skip
        tip, oid = self.store.read_ref(lab.ref), self.store.read_ref(lab.side)
        side = read_side(self.store, oid) if oid is not None else None
        self.head = side.commit if side is not None else tip
        self.side = oid
        commit = self.store.commit(self.head) if self.head is not None else None
        epoch = epoch_of(commit) if commit is not None else time.time_ns()
        self.fs.attach(commit.tree if commit is not None else None, epoch, side, 0, 0)
        same = side is not None and side.is_about(self.journal.id)
        self.fs.replay(side.position if side is not None and same else self.journal.begin)
        self.lab.state_id = self.journal.id

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return trio.run(lambda: function(*arguments))

    def node(self, path: str) -> Node:
        node: Node = self.tree.root
        for name in filter(None, os.fsencode(path).split(b"/")):
            assert isinstance(node, Directory)
            node = self.run(self.fs.children, node)[name]
        return node

    def _split(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return self.node(above).ino, os.fsencode(name)

    def make(self, path: str, mode: int = 0o100644, target: bytes = b"") -> Node:
        parent, name = self._split(path)
        node: Node = self.run(self.fs.create, parent, name, mode, Caller(), 0, target)
        return node

    def write(self, path: str, data: bytes, offset: int = 0) -> int:
        """Write to *path*, which is made if it is not there; the inode number."""
        try:
            node = self.node(path)
        except KeyError:
            node = self.make(path)
        assert isinstance(node, File)
        self.run(self.fs.write, node, offset, data)
        return node.ino

    def read(self, path: str) -> bytes:
        node = self.node(path)
        assert isinstance(node, File)
        data: bytes = self.run(self.fs.read, node, 0, node.size)
        return data

    def remove(self, path: str) -> None:
        self.run(self.fs.unlink, *self._split(path))

    def sync(self) -> None:
        self.run(self.fs.sync)
        self.fs.set_attributes(1, atime=self.fs.now())  # the next record says what was synced

    def commit(self, *, move_branch: bool = True, release: bool = True) -> bytes:
        """One commit, as committer and worker make it."""
        batch = self.fs.freeze()
        list(self.tree.parts(batch, 100))
        with _worker(self) as worker:
            worker.do_directories(list(batch.directories.values()))
            parents = () if self.head is None else (self.head,)
            order = Order(
                batch.position, batch.root, batch.next_ino, batch.links, parents,
                self.head if move_branch else NO_OID, self.side, IDENTITY, int(time.time()), 0, None,
                None, [],
            )  # fmt: skip
            done: Done = worker.do_commit(order)
        for _ in self.fs.settle(batch, Settled(unpack_contents(done.contents), done.directories)):
            pass
        self.head, self.side = done.commit, done.side
        if release:
            self.fs.release_journal(Committed(batch.position, done.commit or NO_OID, done.side, NO_OID))
        assert done.commit is not None
        return done.commit

    def close(self) -> None:
        """The end by kill -9: what was appended stays."""
        self.fs.contents.close()
        self.journal.close()
        self.store.close()


class _worker:
    """The worker's code in this process, its pipe open at both ends."""

    def __init__(self, session: Session) -> None:
        lab = session.lab
        self.place = WorkerPlace(str(lab.repo), lab.state, lab.ref, lab.side, session.journal.id, False)

    def __enter__(self) -> Worker:
        inlet, feed = os.pipe()
        self.answers, outlet = os.pipe()
        self.fds = [inlet, feed, self.answers, outlet]
        data = pickle.dumps((self.place,))
        os.write(feed, FRAME.pack(len(data)) + data)
        self.worker = Worker(inlet, outlet)
        return self.worker

    def __exit__(self, *_: object) -> None:
        self.worker._store.close()
        for fd in self.fds:
            os.close(fd)


class Lab:
    """One repository, and everything that can be done to it."""

    def __init__(self, base: Path, branch: bytes = b"main", segment_size: int = 1 << 20) -> None:
        self.repo = base / "r.git"
        Store.create(str(self.repo), branch).close()
        self.branch = branch
        self.ref, self.side = b"refs/heads/" + branch, side_ref(branch)
        self.state = state_directory(str(self.repo), branch)
        self.segment_size = segment_size
        self.state_id = b""
        self.open_sessions: list[Session] = []
        os.makedirs(self.state, mode=0o700)
        fd = os.open(os.path.join(self.state, "lock"), os.O_CREAT | os.O_WRONLY, 0o600)
        os.close(fd)

    def session(self) -> Session:
        session = Session(self)
        self.open_sessions.append(session)
        return session

    def end(self) -> None:
        while self.open_sessions:
            self.open_sessions.pop().close()

    # ---- checking

    def check(self, *, repair: bool = False, branch: str | None = None, state: str | None = None) -> Result:
        lines: list[str] = []
        before = None if repair else self.snapshot()
        code = run_check(str(self.repo), branch, state, repair, lines.append)
        if before is not None:
            assert self.snapshot() == before, "a check without --repair changed something"
        assert all("\n" not in line for line in lines)
        return Result(code, lines)

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        found = {}
        for directory, _, files in os.walk(self.repo):
            for name in files:
                path = os.path.join(directory, name)
                if os.path.islink(path):
                    found[path] = 0, os.fsencode(os.readlink(path))
                else:
                    found[path] = os.stat(path).st_mode, Path(path).read_bytes()
        return found

    def git(self, *words: str, status: int = 0, stdin: bytes = b"") -> str:
        done = subprocess.run(["git", "-C", str(self.repo), *words], capture_output=True, input=stdin)
        assert done.returncode == status, done.stderr.decode()
        return done.stdout.decode("utf-8", "surrogateescape").strip()

    def lost_and_found(self) -> dict[str, bytes]:
        ref = "refs/heads/caiafs-lost+found/" + self.branch.decode()
        names = self.git("ls-tree", "-r", "--name-only", ref).split("\n")
        return {
            name: subprocess.run(
                ["git", "-C", str(self.repo), "show", f"{ref}:{name}"], capture_output=True, check=True
            ).stdout
            for name in names
        }

    def backups(self) -> list[Path]:
        return sorted(Path(self.state).glob("backup-*"))

    def mounts(self) -> Session:
        """What a mount after this would be; fails if there could be none."""
        return self.session()

    # ---- damaging

    def segments(self) -> list[Path]:
        return sorted(Path(self.state).glob("*.seg"))

    def records(self, segment: Path) -> list[tuple[Any, int, int]]:
        data = memoryview(segment.read_bytes())
        at, found = HEADER_SIZE, []
        while at < len(data):
            record, following = decode(data, at)
            found.append((record, at, following))
            at = following
        return found

    def write_of(self, data: bytes) -> tuple[Path, int, int]:
        """The segment that holds the write of *data*, and the record's place in it."""
        for segment in self.segments():
            for record, at, end in self.records(segment):
                if isinstance(record, Write) and bytes(record.data) == data:
                    return segment, at, end
        raise AssertionError(f"no write of {data!r}")

    def explode(self) -> None:
        """Turn every pack into loose objects, so that one can be damaged alone."""
        packs = sorted((self.repo / "objects/pack").glob("*.pack"))
        aside = self.repo / "packs"
        aside.mkdir()
        for pack in packs:
            for file in pack.parent.glob(pack.stem + ".*"):
                file.rename(aside / file.name)
            self.git("unpack-objects", "-q", stdin=(aside / pack.name).read_bytes())
        for file in aside.iterdir():
            file.unlink()
        aside.rmdir()

    def loose(self, oid: str) -> Path:
        return self.repo / "objects" / oid[:2] / oid[2:]

    def oid(self, name: str) -> str:
        return self.git("rev-parse", name)


class Result(NamedTuple):
    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def problems(self) -> list[str]:
        return [line for line in self.lines if ": problem: " in line]

    @property
    def notes(self) -> list[str]:
        return [line for line in self.lines if ": note: " in line]


def flip(path: Path, at: int, mask: int = 0x40) -> None:
    os.chmod(path, 0o600)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes((byte ^ mask,)))


def spoil(path: Path) -> None:
    """Flip a bit of a loose object that matters: deflate has bits that change nothing, such as the
    distance of a match inside a run of zeros."""
    whole = path.read_bytes()
    for at in range(len(whole) // 2, len(whole)):
        spoilt = whole[:at] + bytes((whole[at] ^ 0x40,)) + whole[at + 1 :]
        try:
            if zlib.decompress(spoilt) == zlib.decompress(whole):
                continue
        except zlib.error:
            pass
        flip(path, at)
        return
    raise AssertionError(f"no bit of {path} matters")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.end()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    """With segments so small that a few writes fill several."""
    made = Lab(tmp_path, segment_size=300)
    yield made
    made.end()


def filled(lab: Lab) -> Session:
    """A session with something of every kind in git, and nothing in the journal but that."""
    session = lab.session()
    for directory in ("d", "d/below", "empty", "nested"):
        session.make(directory, 0o040755)
    session.make("nested/.git", 0o040755)
    session.write("nested/.git/config", b"[core]\n")
    session.write("d/a.txt", b"alpha\n")
    session.write("d/below/b.txt", b"beta\n" * 1000)
    session.make("d/link", 0o120777, b"a.txt")
    session.make("nested/.git/link", 0o120777, b"config")
    session.make("fifo", 0o010600)
    file = session.node("d/a.txt")
    session.run(session.fs.link, file.ino, session.node("d/below").ino, b"hard")
    session.fs.set_xattr(file.ino, b"user.colour", b"green", lambda _: True)
    session.write("big", os.urandom(3 << 20))
    session.commit()
    return session


# ---- clean


def test_fresh_repository_was_never_mounted(tmp_path: Path) -> None:
    path = tmp_path / "fresh.git"
    Store.create(str(path)).close()
    lines: list[str] = []
    assert run_check(str(path), None, None, False, lines.append) == 0
    assert "no branch of it was ever mounted" in lines[-1]


def test_sound_repository_is_clean(lab: Lab) -> None:
    session = filled(lab)
    session.write("d/a.txt", b"more\n", 6)
    session.remove("d/link")
    lab.end()
    result = lab.check()
    assert result.code == 0, result.text
    assert result.problems == []
    assert result.lines[-1].startswith(f"caiafs check: {lab.repo}: main: clean: 1 segment")


def test_clean_between_objects_and_release(lab: Lab) -> None:
    session = filled(lab)
    session.write("late", b"late\n")
    session.commit(release=False)
    lab.end()
    assert lab.check().problems == []


def test_repair_of_a_clean_branch_does_nothing(lab: Lab) -> None:
    filled(lab)
    lab.end()
    before = lab.snapshot()
    result = lab.check(repair=True)
    assert result.code == 0
    assert lab.snapshot() == before


def test_branch_ahead_and_side_ahead_are_notes(lab: Lab) -> None:
    session = filled(lab)
    first = lab.oid("main")
    session.write("d/a.txt", b"omega\n")
    session.commit()
    lab.end()
    lab.git("update-ref", "refs/heads/main", first)
    result = lab.check()
    assert result.code == 0
    assert "the next mount finishes it" in result.text
    tree = lab.oid(f"{first}^{{tree}}")
    outside = lab.git(
        "-c", "user.name=x", "-c", "user.email=x@x", "commit-tree", tree, "-p", "refs/heads/main", "-m", "x"
    )
    lab.git("update-ref", "refs/heads/main", outside)
    assert "have parted" in lab.check().text
    lab.git(
        "update-ref",
        "refs/heads/main",
        lab.git(*AS_SOMEBODY, "commit-tree", tree, "-m", "x"),
    )
    result = lab.check()
    assert result.code == 0
    assert "unrelated history" in result.text


# ---- the journal


def test_torn_tail_is_a_note(lab: Lab) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.write("two", b"second")
    lab.end()
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
    session = filled(lab)
    session.write("one", b"first")
    session.write("two", b"second")
    lab.end()
    segment, _, end = lab.write_of(b"first")
    flip(segment, end - 1)
    result = lab.check()
    assert result.code == 1
    assert "not yet synced, but whole records follow" in result.text
    assert lab.check(repair=True).code == 0
    assert b"second" in lab.lost_and_found().values()


def test_what_a_mount_set_aside_is_noted_and_saved(lab: Lab) -> None:
    session = filled(lab)
    session.write("one", b"first")
    session.write("two", b"second")
    lab.end()
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


def test_foreign_files_symlinks_and_open_modes(lab: Lab) -> None:
    filled(lab)
    lab.end()
    state = Path(lab.state)
    (state / "notes.txt").write_text("mine")
    (state / "http-token").touch(0o600)
    (state / ("0" * 16 + ".seg")).symlink_to("/etc/passwd")
    (segment,) = (path for path in lab.segments() if not path.is_symlink())
    segment.chmod(0o644)
    state.chmod(0o755)
    result = lab.check()
    assert result.code == 1
    assert len(result.problems) == 3
    (foreign,) = (note for note in result.notes if "is not a file of caiafs" in note)
    assert "notes.txt" in foreign
    assert lab.check(repair=True).code == 0
    assert (state / "notes.txt").exists()
    assert (segment.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o600, 0o700)


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


@pytest.mark.parametrize("seed", range(8))
def test_whatever_befalls_a_journal_it_is_mended_and_mounts(tmp_path: Path, seed: int) -> None:
    """Flips, cuts, holes and lost files, at random: check never fails, repair always ends in a mount."""
    random = Random(seed)
    lab = Lab(tmp_path, segment_size=random.choice([300, 2000, 1 << 20]))
    session = filled(lab)
    written = {}
    for _ in range(40):
        name = f"d/f{random.randrange(12)}"
        written[name] = random.randbytes(random.randrange(1, 200))
        session.write(name, written[name])
        if random.random() < 0.1:
            session.sync()
        if random.random() < 0.05:
            session.commit(release=random.random() < 0.5)
    lab.end()
    for _ in range(random.randrange(1, 4)):
        segment = random.choice(lab.segments())
        size = segment.stat().st_size
        kind = random.randrange(5)
        if kind == 0:
            segment.unlink()
        elif kind == 1:
            os.truncate(segment, random.randrange(size))
        elif kind == 2 and size:
            data = bytearray(segment.read_bytes())
            start = random.randrange(size)
            data[start : start + random.randrange(1, 100)] = bytes(random.randrange(1, 100))
            segment.write_bytes(data)
        elif size:
            flip(segment, random.randrange(size), 1 << random.randrange(8))
        if not lab.segments():
            break
    lab.check()
    readable = whole_writes(lab)
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    kept = whole_writes(lab)
    if readable - kept:
        saved = b"\0".join(lab.lost_and_found().values())
        assert all(data in saved for data in readable - kept), "data was thrown away"
    session = lab.mounts()
    for name in [name for name in written if name.removeprefix("d/").encode() in _children(session, "d")]:
        session.read(name)
    session.write("after", b"after")
    session.commit()
    lab.end()
    assert lab.check().problems == []


def whole_writes(lab: Lab) -> set[bytes]:
    """The data of every write that can still be read and that git does not have."""
    store = Store.open(str(lab.repo))
    oid = store.read_ref(lab.side)
    side = read_side(store, oid) if oid is not None else None
    store.close()
    assert side is not None
    scan = look(lab.state, side.is_about)
    floor = max(side.position if side.is_about(scan.id) else scan.begin, scan.base)
    return {
        bytes(record.data)
        for segment in scan.segments
        for record, at, _ in read_stretches(segment, beyond=True)
        if isinstance(record, Write) and segment.start + at >= floor
    }


@pytest.mark.parametrize("seed", range(8))
def test_whatever_befalls_the_objects_nothing_else_is_lost(lab: Lab, seed: int) -> None:
    random = Random(seed)
    session = filled(lab)
    session.write("d/later", b"later")
    session.commit()
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    objects = sorted(path for path in (lab.repo / "objects").glob("??/*"))
    for path in random.sample(objects, random.randrange(1, 4)):
        if random.random() < 0.3:
            path.unlink()
        else:
            flip(path, random.randrange(path.stat().st_size), 1 << random.randrange(8))
    problems = lab.check().problems
    result = lab.check(repair=True)
    if not problems:
        assert result.code == 0
    if result.code == 0:
        session = lab.mounts()
        waiting = [""]
        while waiting:
            path = waiting.pop()
            for name in _children(session, path):
                below = f"{path}/{name.decode()}".lstrip("/")
                if isinstance(session.node(below), Directory):
                    waiting.append(below)
                elif isinstance(session.node(below), File):
                    session.read(below)
        session.write("after", b"after")
        session.commit()
        lab.end()
        assert lab.check().problems == []


def _children(session: Session, path: str) -> set[bytes]:
    directory = session.node(path)
    assert isinstance(directory, Directory)
    return set(session.run(session.fs.children, directory))


# ---- the side ref


def side_entry(lab: Lab, path: str) -> str:
    return lab.oid(f"refs/caiafs/main:{path}")


def test_damaged_bucket_costs_its_records_only(lab: Lab) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    bucket = lab.loose(side_entry(lab, "root/=d/@"))
    old = lab.oid("refs/caiafs/main")
    spoil(bucket)
    result = lab.check()
    assert result.code == 1
    assert any("the records @ of d" in problem for problem in result.problems)
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.git("for-each-ref", "--format=%(objectname)", "refs/caiafs-backup") == old
    session = lab.mounts()
    assert session.read("d/a.txt") == b"alpha\n"
    assert session.read("pending") == b"pending"
    assert session.node("fifo").mode == 0o010600
    assert not session.node("d/a.txt").xattrs
    lab.end()
    lab.git("update-ref", "-d", lab.git("for-each-ref", "--format=%(refname)", "refs/caiafs-backup"))
    bucket.unlink()
    lab.git("fsck", "--strict")


def test_missing_subtree_of_the_metadata(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(side_entry(lab, "root/=d/=below")).unlink()
    result = lab.check()
    assert any("the metadata of d/below" in problem for problem in result.problems)
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.read("d/below/b.txt") == b"beta\n" * 1000


def test_missing_content_beside_the_tree(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(side_entry(lab, "root/=nested/=.git/~config")).unlink()
    result = lab.check()
    assert any("nested/.git/config" in problem for problem in result.problems)
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert isinstance(session.node("nested/.git"), Directory)
    with pytest.raises(KeyError):
        session.node("nested/.git/config")


def test_what_git_cannot_hold_comes_back_without_its_records(lab: Lab) -> None:
    session = filled(lab)
    session.make("nested/.git/refs", 0o040700)
    session.write("nested/.git/refs/main", b"0" * 40)
    session.commit()
    lab.end()
    lab.explode()
    bucket = lab.loose(side_entry(lab, "root/=nested/=.git/@"))
    spoil(bucket)
    result = lab.check()
    assert any(
        "nested/.git/config: the record of this file is lost" in problem for problem in result.problems
    ), result.lines
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.read("nested/.git/config") == b"[core]\n"
    assert session.read("nested/.git/refs/main") == b"0" * 40
    assert session.node("nested/.git/refs").mode == 0o040755


def test_content_that_nothing_names_is_saved(lab: Lab) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, lambda data: b"boo", b"root", b"~ghost")
    assert lab.check(repair=True).code == 0
    assert lab.lost_and_found()["beside/1"] == b"boo"
    assert "ghost" in lab.lost_and_found()["index.txt"].decode()


def test_damaged_meta_goes_back_to_older_metadata(lab: Lab) -> None:
    session = filled(lab)
    good = lab.oid("refs/caiafs/main")
    session.write("later", b"later")
    session.commit()
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    bad = lab.oid("refs/caiafs/main")
    meta = lab.loose(side_entry(lab, "meta"))
    spoil(meta)
    result = lab.check()
    assert result.code == 1
    assert "does not mount" in result.text
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("refs/caiafs/main") == good
    assert lab.git("for-each-ref", "--format=%(objectname)", "refs/caiafs-backup") == bad
    session = lab.mounts()
    assert session.node("fifo").mode == 0o010600
    assert session.read("pending") == b"pending"


def test_side_ref_without_a_good_past_is_set_aside(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.git("pack-refs", "--all")
    lab.loose(lab.oid("refs/caiafs/main")).unlink()
    result = lab.check()
    assert result.code == 1
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.git("for-each-ref", "refs/caiafs", "refs/caiafs-backup") == ""
    (backup,) = lab.backups()
    assert b"refs/caiafs/main" in (backup / "refs").read_bytes()
    assert lab.mounts().read("d/a.txt") == b"alpha\n"


def test_lost_side_ref_is_put_back(lab: Lab) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    oid = lab.oid("refs/caiafs/main")
    lab.git("update-ref", "-d", "refs/caiafs/main")
    result = lab.check()
    assert result.code == 1
    assert "is gone" in result.text
    assert lab.check(repair=True).code == 0
    assert lab.oid("refs/caiafs/main") == oid
    assert lab.mounts().read("pending") == b"pending"


def rewritten(lab: Lab, change: Callable[[Any], bytes | None], *path: bytes) -> None:
    """Write the side commit again, with the blob at *path* changed (None: taken away)."""
    store = Store.open(str(lab.repo))
    oid = store.read_ref(lab.side)
    assert oid is not None
    commit = store.commit(oid)
    trees = [commit.tree]
    for name in path[:-1]:
        trees.append({entry.name: entry.oid for entry in store.tree(trees[-1])}[name])
    blob = {entry.name: entry.oid for entry in store.tree(trees[-1])}.get(path[-1])
    os.makedirs(lab.repo / "caiafs/tmp", exist_ok=True)
    with store.pack_writer(str(lab.repo / "caiafs/tmp")) as packer:
        data = change(None if blob is None else store.blob(blob))
        entry = None if data is None else (0o100644, packer.add(BLOB, data))
        for tree, name in zip(reversed(trees), reversed(path), strict=True):
            new = packer.add(TREE, patch_tree(store.tree_bytes(tree), {name: entry}))
            entry = (0o040000, new)
        belongs, journal, position = parse_side_message(commit.message)
        message = side_message(belongs, journal, position)
        side = packer.add(COMMIT, encode_commit(new, (oid,), IDENTITY, IDENTITY, 1, 1, 0, message))
        pack = packer.finish()
    assert store.swap_ref(lab.side, oid, side, b"", IDENTITY)
    assert pack is not None
    pack.release()
    store.close()


def edited(name: bytes, /, **fields: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        records = decode_records(data)
        return b"".join(
            encode_record(record._replace(**fields) if record.name == name else record) for record in records
        )

    return change


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ((b"root", b"@"), edited(b"big", ino=2), "are both inode 2, but not hard links"),
        ((b"root", b"@"), edited(b"fifo", ino=1), "has the root directory's inode number"),
        ((b"root", b"@"), edited(b"big", ino=10_000), "the next inode number is"),
        ((b"root", b"@"), edited(b"big", size=5), "recorded as 5 bytes long"),
        ((b"root", b"@"), edited(b"big", mode=0o120777), "recorded as mode 120777"),
        ((b"root", b"@"), lambda data: data + data, "has two records"),
        ((b"root", b"=d", b"@"), edited(b"a.txt", nlink=3), "their records differ"),
        ((b"root", b"odd"), lambda data: b"?", "is nothing of caiafs"),
        ((b"root", b"~ghost"), lambda data: b"boo", "a content beside the tree, but no record"),
        ((b"root", b"=nested", b"=.git", b"~config"), lambda data: None, "is missing"),
        ((b"root", b"=ghost", b"@"), None, "metadata of a directory that is not there"),
    ],
)
def test_metadata_that_contradicts_itself(lab: Lab, path: tuple[bytes, ...], change: Any, said: str) -> None:
    filled(lab)
    lab.end()
    if change is None:
        store = Store.open(str(lab.repo))
        oid = store.read_ref(lab.side)
        assert oid is not None
        store.close()
        lab.git("read-tree", "refs/caiafs/main")
        lab.git("update-index", "--add", "--cacheinfo", "100644", side_entry(lab, "root/@"), "root/=ghost/@")
        tree = lab.git("write-tree")
        message = lab.git("log", "-1", "--format=%B", "refs/caiafs/main")
        commit = lab.git(*AS_SOMEBODY, "commit-tree", tree, "-m", message)
        lab.git("update-ref", "refs/caiafs/main", commit)
    else:
        rewritten(lab, change, *path)
    result = lab.check()
    assert result.code == 1
    assert said in result.text, result.text
    repaired = lab.check(repair=True)
    assert repaired.code == 0, repaired.text
    lab.mounts()


def test_table_of_hard_links(lab: Lab) -> None:
    filled(lab)
    lab.end()
    ino_path = b"d/below/hard"
    rewritten(lab, lambda data: data.replace(ino_path, b"d/below/herd"), b"meta")
    result = lab.check()
    assert "d/below/herd" in result.text
    assert "not in the table of hard links" in result.text
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    assert session.node("d/a.txt") is session.node("d/below/hard")


# ---- objects


def test_corrupt_blob_is_named_with_its_path(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    blob = lab.loose(lab.oid("main:d/below/b.txt"))
    spoil(blob)
    result = lab.check()
    assert result.code == 1
    (problem,) = result.problems
    assert "d/below/b.txt" in problem
    assert lab.oid("main")[:12] in problem
    repaired = lab.check(repair=True)
    assert repaired.code == 1
    assert "1 problem left of 1" in repaired.lines[-1]


def test_corrupt_large_blob_in_a_pack(lab: Lab) -> None:
    filled(lab)
    lab.end()
    packs = sorted((lab.repo / "objects/pack").glob("*.pack"), key=lambda path: path.stat().st_size)
    flip(packs[-1], packs[-1].stat().st_size // 2)
    result = lab.check()
    assert result.code == 1
    assert any("big (commit" in problem for problem in result.problems)


def test_missing_tree_and_blob(lab: Lab) -> None:
    filled(lab)
    lab.end()
    lab.explode()
    lab.loose(lab.oid("main:d/below")).unlink()
    assert any("d/below" in problem for problem in lab.check().problems)
    lab.loose(lab.oid("main^{tree}")).unlink()
    assert any("the root directory" in problem for problem in lab.check().problems)
    lab.loose(lab.oid("main")).unlink()
    result = lab.check()
    assert result.code == 1
    assert lab.check(repair=True).code == 1


def test_broken_ref(lab: Lab) -> None:
    filled(lab)
    lab.end()
    (lab.repo / "refs/heads/main").write_text("garbage\n")
    result = lab.check()
    assert result.code == 1
    assert any("refs/heads/main is broken" in problem for problem in result.problems)


# ---- which branches, and when not


def test_mounted_branch_is_checked_without_its_journal_and_not_repaired(lab: Lab) -> None:
    filled(lab)
    lab.end()
    path = os.path.join(lab.state, "lock")
    Path(path).write_text(json.dumps({"pid": 4711, "mountpoint": "/mnt/x", "started": "now"}))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        result = lab.check()
        assert result.code == 0
        assert "not checked: the branch is mounted at /mnt/x by process 4711" in result.text
        before = lab.snapshot()
        result = lab.check(repair=True)
        assert result.code == 1
        assert "unmount it first" in result.text
        assert lab.snapshot() == before
    finally:
        os.close(fd)


def test_branch_with_a_slash_and_percent_is_found(tmp_path: Path) -> None:
    made = Lab(tmp_path, b"we%ird/na%2Fme")
    session = made.session()
    session.write("f", b"f")
    made.end()
    result = made.check()
    assert result.code == 0
    assert ": we%ird/na%2Fme: clean" in result.text


def test_state_directory_of_its_own(lab: Lab, tmp_path: Path) -> None:
    session = filled(lab)
    session.write("pending", b"p")
    lab.end()
    elsewhere = tmp_path / "state"
    os.rename(lab.state, elsewhere)
    result = lab.check()
    assert result.code == 0
    assert "--state-dir" in result.text
    result = lab.check(state=str(elsewhere), branch="main")
    assert "not in git yet" in result.text
    assert result.notes == []


def test_what_cannot_be_meant(lab: Lab, tmp_path: Path) -> None:
    filled(lab)
    lab.end()
    with pytest.raises(RepositoryMissing):
        run_check(str(tmp_path / "nothing"), None, None, False, print)
    with pytest.raises(CaiafsError, match="no branch other"):
        lab.check(branch="other")
    lab.git("update-ref", "refs/caiafs/second", "refs/caiafs/main")
    with pytest.raises(UsageError):
        lab.check(state=lab.state)


# ---- what a newer caiafs wrote, and what somebody else did


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


def test_a_newer_segment_stops_the_mount(lab: Lab) -> None:
    segment = newer_segment(lab)
    data = segment.read_bytes()
    with pytest.raises(JournalDamaged, match="a newer caiafs wrote it"):
        lab.mounts()
    assert segment.read_bytes() == data


@pytest.mark.parametrize("path", [(b"meta",), (b"root", b"@")])
def test_newer_metadata_is_left_alone(lab: Lab, path: tuple[bytes, ...]) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, lambda data: b"\x02" + data[1:], *path)
    oid = lab.oid("refs/caiafs/main")
    result = lab.check()
    assert result.code == 1
    assert "a newer caiafs wrote it" in result.text
    result = lab.check(repair=True)
    assert result.code == 1
    assert "left alone" in result.text
    assert lab.oid("refs/caiafs/main") == oid
    if path == (b"meta",):
        with pytest.raises(FormatNewer):
            lab.mounts()


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ((b"root", b"@"), edited(b"big", ino=0), "has the inode number 0"),
        ((b"root", b"@"), edited(b"big", ino=1 << 62), "which none can have"),
        ((b"meta",), lambda d: encode_meta(decode_meta(d)._replace(next_ino=1 << 62)), "which none can have"),
        ((b"meta",), lambda d: encode_meta(decode_meta(d)._replace(next_ino=0)), "the next inode number"),
        ((b"root", b"=nested", b"@"), edited(b".git", name=b"../.git"), "the name holds a slash"),
    ],
)
def test_metadata_that_no_mount_would_write(
    lab: Lab, path: tuple[bytes, ...], change: Any, said: str
) -> None:
    filled(lab)
    lab.end()
    rewritten(lab, change, *path)
    lab.mounts()  # works, whatever it says
    lab.end()
    result = lab.check()
    assert result.code == 1
    assert said in result.text, result.text
    assert lab.check(repair=True).code == 0
    session = lab.mounts()
    session.write("new", b"new")
    session.commit()
    lab.end()
    assert lab.check().problems == []


def test_entries_that_cannot_be_shown_are_named(lab: Lab) -> None:
    filled(lab)
    lab.end()
    blob = lab.oid("main:d/a.txt")
    entry = b"100644 ../x\0" + bytes.fromhex(blob)
    tree = lab.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=entry)
    commit = lab.git(*AS_SOMEBODY, "commit-tree", tree, "-p", "main", "-m", "x")
    lab.git("update-ref", "refs/heads/main", commit)
    result = lab.check()
    assert result.code == 1
    (problem,) = result.problems
    assert "the entry ../x cannot be shown (the name holds a slash)" in problem
    assert lab.check(repair=True).code == 1  # it is for a person to say what should be there


def test_names_of_foreign_files_do_not_reach_the_terminal_raw(lab: Lab) -> None:
    filled(lab)
    lab.end()
    (Path(lab.state) / "x\x1b[2Jy\n").write_text("mine")
    result = lab.check()
    assert "\x1b" not in result.text
    assert any("is not a file of caiafs" in note for note in result.notes)


# ---- anything at all


def maul(random: Random, lab: Lab) -> str:
    """One thing that befalls any file of the repository or of the mount's state; what it was."""
    files = sorted(path for path in lab.repo.rglob("*") if path.is_file() and path.name != "HEAD")
    path = random.choice(files)
    os.chmod(path, 0o600)
    data = path.read_bytes()
    kind = random.choice(["flip", "cut", "zeros", "gone", "folder", "link", "pipe", "junk", "empty", "newer"])
    if kind == "flip" and data:
        flip(path, random.randrange(len(data)), 1 << random.randrange(8))
    elif kind == "cut":
        os.truncate(path, random.randrange(len(data) + 1))
    elif kind == "zeros":
        start = random.randrange(len(data) + 1)
        path.write_bytes(data[:start] + bytes(random.randrange(60)) + data[start + random.randrange(60) :])
    elif kind in ("junk", "empty"):
        path.write_bytes(random.randbytes(random.randrange(200)) if kind == "junk" else b"")
    elif kind == "newer" and path.suffix == ".seg":
        path.write_bytes(data[:7] + b"2" + data[8:48] + b"????" + data[52:])
    elif kind in ("gone", "folder", "link", "pipe"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(random.choice(["/etc/passwd", "/nowhere", ".", str(path)]))
        elif kind == "pipe":
            os.mkfifo(path)
    return f"{kind} {path.relative_to(lab.repo)}"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_befalls_any_file_a_check_explains_and_a_repair_ends(tmp_path: Path, seed: int) -> None:
    """No traceback, no hang; what could be repaired stays so, and a second repair has nothing to do."""
    mauled(tmp_path, seed)


def mauled(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    lab = Lab(tmp_path, segment_size=random.choice([300, 2000, 1 << 20]))
    session = filled(lab)
    for number in range(random.randrange(12)):
        session.write(f"d/f{number}", random.randbytes(random.randrange(1, 300)))
        if random.random() < 0.2:
            session.sync()
    lab.end()
    if random.random() < 0.5:
        lab.explode()
    if random.random() < 0.3:
        lab.git("pack-refs", "--all")
    done = [maul(random, lab) for _ in range(random.randrange(1, 4))]
    try:
        found = attempt(lab, repair=False)
        first = attempt(lab, repair=True)
        assert (first is None) == (found is None)
        second = attempt(lab, repair=True)
        before = lab.snapshot() if second is not None and second.code == 0 else None
        third = attempt(lab, repair=True)
        if first is not None and first.code == 0:
            assert second is not None
            assert second.code == 0
            assert second.problems == []
        if before is not None:
            assert third is not None
            assert lab.snapshot() == before, "a repair with nothing to do did something"
        if found is not None and found.code == 0 and not found.problems:
            with contextlib.suppress(CaiafsError):
                lab.mounts()
    except BaseException as error:
        error.add_note("; ".join(done))
        raise
    finally:
        lab.end()


def attempt(lab: Lab, *, repair: bool) -> Result | None:
    """A check; None where it says that nothing can be checked."""
    lines: list[str] = []
    try:
        code = run_check(str(lab.repo), None, None, repair, lines.append)
    except CaiafsError:
        return None
    assert all("\n" not in line for line in lines)
    return Result(code, lines)


@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"\0" * 41, b"ref: refs/heads/../../x\n"])
def test_a_broken_side_ref_is_put_where_the_journal_says(lab: Lab, garbage: bytes) -> None:
    session = filled(lab)
    session.write("pending", b"pending")
    lab.end()
    oid = lab.oid("refs/caiafs/main")
    (lab.repo / "refs/caiafs/main").write_bytes(garbage)
    assert len(lab.check().problems) == 1
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("refs/caiafs/main") == oid
    (backup,) = lab.backups()
    assert (backup / "refs%2Fcaiafs%2Fmain").read_bytes() == garbage
    assert lab.mounts().read("pending") == b"pending"


def test_a_broken_side_ref_that_nothing_speaks_of_is_set_aside(lab: Lab) -> None:
    filled(lab)
    lab.end()
    for segment in lab.segments():
        segment.unlink()
    (lab.repo / "refs/caiafs/main").write_bytes(b"garbage")
    assert lab.check(repair=True).code == 0
    assert lab.mounts().read("d/a.txt") == b"alpha\n"


def test_a_broken_branch_is_put_at_the_last_commit_of_the_mount(lab: Lab) -> None:
    filled(lab)
    lab.end()
    oid = lab.oid("main")
    (lab.repo / "refs/heads/main").write_text("garbage\n")
    result = lab.check()
    (problem,) = result.problems
    assert "--repair puts it at the last commit of the mount" in problem
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    assert lab.oid("main") == oid
    assert lab.mounts().read("d/a.txt") == b"alpha\n"
