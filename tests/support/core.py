"""The core without a kernel: filesystem, journal and store on a directory, as mount.py wires them.

A `Core` is one life of a mount. `crash` ends it as a kill does, and gives the next one; `commit`
has git take everything, by the commit worker's own code but in this process. `dump` tells all
that a caller could see of the tree, so that two lives compare.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import trio

from caiafs.committer.process import Refused, WorkerProcess
from caiafs.committer.schedule import Committer
from caiafs.committer.worker import Place, Worker
from caiafs.config import Config
from caiafs.errors import CaiafsError
from caiafs.filesystem import Filesystem
from caiafs.filesystem.loader import Loader, SideState, epoch_of, read_side
from caiafs.journal import Disk, Journal
from caiafs.memory import MemoryTier
from caiafs.metrics import Metrics
from caiafs.records import NO_OID
from caiafs.records.side import side_ref
from caiafs.store import Store, storable_entry
from caiafs.tree import Directory, File, Node, Symlink, Tree

BRANCH = b"refs/heads/main"
SIDE = side_ref(b"main")
IDENTITY = b"Ann Tester <ann@example.org>"

T = TypeVar("T")


class Who:
    """An ordinary caller."""

    uid = gid = 1000
    umask = 0o022


WHO = Who()


class Seen(NamedTuple):
    """All that a caller can see of one inode."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    size: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes


Dump = dict[bytes, Seen]


class LocalWorker(Worker):
    """The commit worker in this process; `ask` as WorkerProcess has it."""

    def __init__(self, place: Place, on_tip: Callable[[bytes | None], None]) -> None:
        self._given = place
        self._on_tip = on_tip
        super().__init__(-1, -1)
        self._tip = self._store.read_ref(place.branch)

    def _receive(self) -> tuple[Any, ...]:
        return (self._given,)

    def _send(self, *message: Any) -> None:
        if message[0] == "tip":
            self._on_tip(message[1])

    async def ask(self, *message: Any, ahead: Iterable[tuple[Any, ...]] = ()) -> Any:
        for part in ahead:
            await trio.lowlevel.checkpoint()
            self.call(*part)
            self._write_ahead()
        await trio.lowlevel.checkpoint()
        tip = self._tip
        answer = self.call(*message)
        if self._tip != tip:
            self._on_tip(self._tip)
        await trio.lowlevel.checkpoint()
        return answer

    def call(self, *message: Any) -> Any:
        """Do it now. What goes in and comes out is copied, as a pipe does it."""
        name, *arguments = pickle.loads(pickle.dumps(message))
        try:
            answer = getattr(self, f"do_{name}")(*arguments)
        except (CaiafsError, OSError) as error:
            self._directories = {}
            raise Refused(*self.refusal(error)) from error
        finally:
            self.rest()
        return pickle.loads(pickle.dumps(answer))


class Core:
    """One life of a mount on the directory *base*: `repo.git` and `state` are in it."""

    def __init__(
        self, base: Path | str, disk: Disk | None = None, *, memory: int = 64 << 20,
        segment_size: int = 1 << 20, worker: Any = None, ignore_side: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self.base = str(base)
        self._options = {"memory": memory, "segment_size": segment_size, **options}
        self.git_dir = os.path.join(self.base, "repo.git")
        self.state = os.path.join(self.base, "state")
        self.config = Config(repo=self.git_dir, mountpoint="/mnt", memory=memory, **options)
        self.store = self._open()
        self.metrics = Metrics({"version": "0"})
        self.memory = MemoryTier(memory)
        self.tree = Tree(storable_entry, self.memory)
        self.journal = Journal(self.state, disk, segment_size)
        self.fs = Filesystem(
            self.config, self.tree, self.memory, self.journal, self.store, Loader(self.store, 1000, 1000),
            self.metrics, self.state,
        )  # fmt: skip
        self.touched: list[tuple[int, bytes]] = []
        self.flushes = 0
        self._attach(ignore_side)
        self.worker = self._local_worker() if worker is None else worker
        self.committer = self._committer(self.worker)

    # ---- starting and ending

    def _open(self) -> Store:
        os.makedirs(self.state, exist_ok=True)
        exists = os.path.exists(self.git_dir)
        store = Store.open(self.git_dir) if exists else Store.create(self.git_dir)
        os.makedirs(os.path.join(self.git_dir, "caiafs"), exist_ok=True)
        return store

    def _attach(self, ignore_side: bool) -> None:
        tip = self.store.read_ref(BRANCH)
        oid = None if ignore_side else self.store.read_ref(SIDE)
        self.side: SideState | None = None if oid is None else read_side(self.store, oid)
        head = tip if self.side is None else self.side.commit
        commit = None if head is None else self.store.commit(head)
        epoch = 10**18 if commit is None else epoch_of(commit)
        self.fs.attach(None if commit is None else commit.tree, epoch, self.side, 1000, 1000)
        known = self.side is not None and self.side.is_about(self.journal.id)
        last = self.fs.replay(self.side.position if known and self.side is not None else self.journal.begin)
        landed = None if self.side is not None else tip
        if last is not None and last.commit == (head or NO_OID):
            landed = None if last.landed == NO_OID else last.landed
        self._start = head, oid, landed, tip

    @property
    def place(self) -> Place:
        return Place(self.git_dir, self.state, BRANCH, SIDE, self.journal.id, watch=True)

    def _local_worker(self) -> LocalWorker:
        return LocalWorker(self.place, lambda tip: self.committer.tip_seen(tip))

    def process(self) -> WorkerProcess:
        """The worker as a process of its own; run it, and give it to `use`."""
        return WorkerProcess(self.place, lambda tip: self.committer.tip_seen(tip), ())

    def use(self, worker: Any) -> None:
        """Commit by *worker* from now on."""
        self.worker = worker
        self.committer = self._committer(worker)

    def _committer(self, worker: Any) -> Committer:
        made = Committer(
            self.fs, cast(WorkerProcess, worker), self.config, self.metrics, IDENTITY, self._invalidate,
            self._flush_kernel,
        )  # fmt: skip
        made.attach(*self._start)
        self.fs.write_through = made.reach
        return made

    async def _invalidate(self, names: list[tuple[int, bytes]]) -> None:
        self.touched += names

    async def _flush_kernel(self) -> None:
        self.flushes += 1

    def crash(self, **options: Any) -> Core:
        """The daemon is killed; this is the next one."""
        self.close()
        return Core(self.base, **{**self._options, **options})

    def close(self) -> None:
        assert self.tree.attached_bytes == sum(node.attached_bytes for node in self.tree.nodes.values())
        self.fs.contents.close()
        self.journal.close()

    def commit(self, message: str | None = None) -> bytes | None:
        """Git takes everything; returns the branch's new commit."""
        self.look()
        return self.run(self.committer.commit, message).commit

    def look(self) -> None:
        """The worker's look at the branch, which it has every half second."""
        assert isinstance(self.worker, LocalWorker)
        self.worker._look(force=True)

    @staticmethod
    def run(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return trio.run(function, *arguments)

    # ---- looking and changing

    def dump(self) -> Dump:
        """Every path with all that can be seen of it; the root's is b''."""
        return trio.run(self._dump)

    async def _dump(self) -> Dump:
        found: Dump = {}
        waiting: list[tuple[bytes, Node]] = [(b"", self.tree.root)]
        while waiting:
            path, node = waiting.pop()
            found[path] = await self._seen(node)
            if isinstance(node, Directory):
                children = await self.fs.children(node)
                waiting += [(path + b"/" + name, child) for name, child in children.items()]
        return found

    async def _seen(self, node: Node) -> Seen:
        content = b""
        if isinstance(node, File):
            content = await self.fs.contents.read(node.content, 0, node.size)
            assert len(content) == node.size
        elif isinstance(node, Symlink):
            content = await self.fs.readlink(node.ino)
        elif isinstance(node, Directory):
            await self.fs.count_links(node)
        return Seen(
            node.ino, node.mode, node.uid, node.gid, node.nlink, node.rdev, node.atime, node.mtime,
            node.ctime, node.size, tuple(sorted((node.xattrs or {}).items())), content,
        )  # fmt: skip

    async def find(self, path: bytes) -> Node:
        """The node at *path*, names joined by slashes; KeyError where there is none."""
        node: Node = self.tree.root
        for name in path.split(b"/") if path else []:
            assert isinstance(node, Directory)
            node = (await self.fs.children(node))[name]
        return node

    async def put(self, path: bytes, data: bytes = b"", mode: int = 0o100644) -> Node:
        """A new file, or new content for the one that is there; directories are made on the way."""
        *above, name = path.split(b"/")
        parent: Node = self.tree.root
        for step in above:
            found = await self.fs.lookup(parent.ino, step)
            parent = found or await self.fs.create(parent.ino, step, 0o040755, WHO)
        node = await self.fs.lookup(parent.ino, name)
        if node is None:
            node = await self.fs.create(parent.ino, name, mode, WHO)
        elif data:
            self.fs.set_attributes(node.ino, size=0)
        if data:
            assert isinstance(node, File)
            await self.fs.write(node, 0, data)
        return node

    async def drop(self, path: bytes) -> None:
        """Remove the file or the empty directory at *path*."""
        above, _, name = path.rpartition(b"/")
        parent = await self.find(above)
        node = await self.fs.lookup(parent.ino, name)
        remove = self.fs.rmdir if isinstance(node, Directory) else self.fs.unlink
        await remove(parent.ino, name)


def differences(before: Dump, after: Dump, ignore: tuple[str, ...] = ()) -> list[str]:
    """What differs between two dumps, one line each; *ignore* names fields of Seen."""
    lines = [f"{path!r}: gone" for path in before.keys() - after.keys()]
    lines += [f"{path!r}: new" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        for field in Seen._fields:
            old, new = getattr(before[path], field), getattr(after[path], field)
            if old != new and field not in ignore:
                lines.append(f"{path!r}: {field} {old!r:.100} -> {new!r:.100}")
    return sorted(lines)
