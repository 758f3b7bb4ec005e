"""A repository to damage, for the tests of `caiafs check`: made in process, by the product's own parts.

A `Lab` is the repository and all that can be done to it; a `Session` is what a mount does between start
and end, without the kernel; `filled` puts something of every kind into git.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import trio

from caiafs.check import run_check
from caiafs.committer.worker import FRAME, Done, Order, Worker, unpack_contents
from caiafs.committer.worker import Place as WorkerPlace
from caiafs.config import Config, state_directory
from caiafs.filesystem import Filesystem
from caiafs.filesystem.loader import Loader, epoch_of, read_side
from caiafs.journal import HEADER_SIZE, Journal
from caiafs.memory import MemoryTier
from caiafs.metrics import Metrics
from caiafs.records import NO_OID, Committed, Write, decode
from caiafs.records.side import side_ref
from caiafs.store import Store, storable_entry
from caiafs.tree import Directory, File, Node, Settled, Tree
from support.journals import segments

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
        return segments(Path(self.state))

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
