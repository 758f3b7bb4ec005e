"""The commit worker: a process of its own that turns batches into durable commits.

Started by process.py, spoken to over its standard input and output in pickled frames;
it ends when its input does, or when the daemon dies. It holds no state that matters:
a batch that is sent again gives the same objects, and refs that point at them already
are left as they are. So a worker may die at any moment.

The order that nothing breaks: objects on disk, then the side ref, which names the
commit and the journal position, then the branch by compare-and-swap. If it ends
between the two, the next one finds in the side ref what the branch was to become.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import select
import struct
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import child
from ..errors import CaiafsError, ObjectCorrupt, ObjectMissing, RefLocked, RepositoryMissing, StoreError
from ..journal import Reader, Volatile
from ..records import BadRecord
from ..records.side import parse_side_message, side_message, vouch
from ..store import PackWriter, Store, Value, encode_commit
from ..tree import DirectoryState, EntryState
from .build import COMMIT, TREE, Builder, Unreadable
from .message import compose
from .recent import Recent
from .refwatch import RefWatch

FRAME = struct.Struct("<I")
CONTENT = struct.Struct("<QQ20s")
POLL = 0.5
"""Seconds between looks at the branch where nothing tells that it moved."""
SELDOM = 60.0
"""Seconds between looks where something does."""
ALIVE = 0.25
"""Seconds between signs of life while a batch is worked on, which also say how far it is."""
FEW = 100
"""Names in a batch that is over before anybody could read how far it is."""
GARBAGE = 100_000
"""Objects that come before cycles are looked for: a batch makes none, and has ten objects for each name."""


class Place(NamedTuple):
    """Where the worker works. *branch* and *side* are full ref names."""

    git_dir: str
    state_dir: str
    branch: bytes
    side: bytes
    journal_id: bytes
    watch: bool


class Order(NamedTuple):
    """A batch that is to be committed; its directories were sent before.

    *parents* of the new commit; *expected* is where the branch is believed to stand;
    *side_parent* the side ref's. *stamp* is the time of the commit in seconds, *zone* in minutes.
    *volatile* is where the daemon has records that are on no disk, *opened* where it has the others open.
    """

    position: int
    root: EntryState
    next_ino: int
    links: list[tuple[int, bytes]]
    parents: tuple[bytes, ...]
    expected: bytes | None
    side_parent: bytes | None
    identity: bytes
    stamp: int
    zone: int
    message: str | None
    outside: str | None
    notes: list[str]
    volatile: tuple[Volatile, ...] = ()
    opened: tuple[Volatile, ...] = ()


class SideSeen(NamedTuple):
    """Where the side ref stands: what git has of which journal, as `vouch` names it."""

    oid: bytes
    commit: bytes | None
    journal: bytes
    position: int


class Done(NamedTuple):
    """What became of an Order. Not *landed*: the branch moved meanwhile, and was left where it is.

    *contents* as `pack_contents` makes it: the daemon takes as long to unpickle 10,000 as objects as to
    answer 40 requests.
    """

    commit: bytes | None
    side: bytes
    landed: bool
    is_new: bool
    subject: str
    changed_paths: int
    contents: bytes
    directories: dict[int, tuple[bytes | None, bytes | None]]


def pack_contents(directories: dict[int, DirectoryState], contents: dict[int, bytes]) -> bytes:
    """Inode number, size in bytes (of a file) and object id, of each in *contents*."""
    sizes = {
        entry.ino: entry.content.size
        for state in directories.values()
        for entry in state.entries.values()
        if entry is not None and entry.content is not None
    }
    return b"".join(CONTENT.pack(ino, sizes.get(ino, 0), oid) for ino, oid in contents.items())


def unpack_contents(packed: bytes) -> Iterator[tuple[int, int, bytes]]:
    """What `pack_contents` was given, one by one."""
    return CONTENT.iter_unpack(packed)


class Work:
    """The batch at *position* on its way into git: where its bytes come from, and where its objects go."""

    def __init__(self, position: int, reader: Reader, packer: PackWriter, builder: Builder) -> None:
        self.position = position
        self.packer = packer
        self.builder = builder
        self._reader = reader

    def end(self) -> None:
        """Let go of all files; what was not finished is gone."""
        self.packer.abort()
        self._reader.close()


class Worker:
    """One worker's side of the pipe."""

    def __init__(self, inlet: int, outlet: int) -> None:
        self._inlet = inlet
        self._outlet = outlet
        self._spoke = 0.0
        self._received = bytearray()
        self._directories: dict[int, DirectoryState] = {}
        self._seen: tuple[Any, ...] | None = None
        self._tip: bytes | None = None
        self._untouched = True
        self._work: Work | None = None
        self._recent = Recent()
        self._watch: RefWatch | None = None
        self._hears = False
        self._last: tuple[bytes, bytes] | None = None
        self._values: list[Value] = []
        (self._place,) = self._receive()
        try:
            self._store = Store.open(self._place.git_dir)
        except RepositoryMissing as missing:
            raise RepositoryMissing(
                f"the mount's repository is gone from {self._place.git_dir}: put it back, or unmount, which "
                f"keeps the journal where it is"
            ) from missing
        self._store.alive = self._alive
        self._tmp = os.path.join(self._store.git_dir, "caiafs", "tmp", self._place.branch.hex()[-40:])
        self._spool = self._tmp
        self._make_tmp()
        self._store.clear_stale(self._tmp)

    def run(self) -> None:
        """Serve until the input ends."""
        self._tip = self._store.read_ref(self._place.branch)
        self._send("ready", self._tip)
        if self._place.watch:
            self._watch = RefWatch(self._store.git_dir, self._place.branch)
            self._hears = self._watch.arm()
            self._look()  # it may have moved before it was watched
        while True:
            if not self._received and not self._wait():
                self._look()
                continue
            try:
                name, *arguments = self._receive()
            except EOFError:
                return
            self._spoke = time.monotonic()
            try:
                answer = getattr(self, f"do_{name}")(*arguments)
            except (CaiafsError, OSError) as error:
                self._directories = {}
                self._send("failed", *self.refusal(error))
            except Exception as error:  # a bug: it costs this try, and is told, not only a dead worker
                self._directories = {}
                self._send("log", traceback.format_exc())
                problem = StoreError(f"unexpected error in the commit worker: {error!r}")
                self._send("failed", *self.refusal(problem))
            else:
                if name not in ("begin", "directories", "guard"):
                    self._send("done", answer, self._tip)
            self.rest()

    def _wait(self) -> bool:
        """Until there is something to do; False if that is a look at the branch."""
        while self._write_ahead():
            if select.select([self._inlet], [], [], 0)[0]:
                return True
        watch = self._watch
        if watch is None:
            return True
        sources = [self._inlet, watch.fd] if self._hears else [self._inlet]
        readable, _, _ = select.select(sources, [], [], SELDOM if self._hears else POLL)
        if self._inlet in readable:
            return True
        self._hears = watch.arm()
        return False

    def refusal(self, error: CaiafsError | OSError) -> tuple[Any, ...]:
        """What the daemon is told of an *error*: see process.Refused."""
        return _refusal(error, self._untouched)

    def rest(self) -> None:
        """After an answer: what nobody has to wait for."""
        if self._values:
            while self._values:
                self._values.pop().drop()
            self._store.make_ready(self._tmp)

    # ---- what can be asked

    def do_guard(self, device: str, mountpoint: str) -> None:
        """See to it that a dead daemon's mount does not keep anybody waiting. Has no answer."""
        child.guard(device, mountpoint)

    def do_begin(self, position: int, volatile: tuple[Volatile, ...], opened: tuple[Volatile, ...]) -> None:
        """The parts of a large batch follow: while none is there to be read, contents are written. Has no
        answer."""
        if self._work is not None:
            self._work.end()
        self._work = self._begin(position, volatile, opened)

    def do_directories(self, states: list[DirectoryState]) -> None:
        """A part of the next batch; a directory's entries may come in several parts."""
        for state in states:
            if self._work is not None:
                self._work.builder.expect(state)
            known = self._directories.setdefault(state.ino, state)
            if known is not state:
                known.entries.update(state.entries)

    def do_commit(self, order: Order) -> Done:
        """Objects, side ref, branch."""
        directories, self._directories = self._directories, {}
        store, place = self._store, self._place
        self._untouched = True
        work = self._work
        if work is not None and work.position != order.position:
            work.end()
            work = None
        if work is None:
            work = self._work = self._begin(order.position, order.volatile, order.opened)
        packer, builder = work.packer, work.builder
        try:
            built = builder.build(directories, order.root, order.next_ino, order.links)
            self._alive(at_once=builder.total > FEW)  # all is written; what follows is the disk's time
            commit, text, is_new = self._commit(packer, order, built.tree, built.changes)
            side_parents = tuple(oid for oid in (order.side_parent, commit) if oid is not None)
            vouched = vouch(place.journal_id, commit, order.position)
            side = packer.add(
                COMMIT,
                encode_commit(
                    built.side_tree, side_parents, order.identity, order.identity, order.stamp, order.stamp,
                    order.zone, side_message(commit, vouched, order.position),
                ),
            )  # fmt: skip
            for oid in (side, commit):
                if oid is not None:
                    self._values.append(store.ref_value(oid))
            pack = packer.finish([value.fd for value in self._values])
        except Unreadable as error:
            if not os.path.isdir(os.path.join(store.git_dir, "objects")):
                raise StoreError(f"{store.git_dir} is not there") from error
            raise
        finally:
            self._work = None
            work.end()
        try:
            self._move_side(order, side, self._values[0])
            landed = commit is None or self._move_branch(order, commit, text, self._values[1])
        finally:
            if pack is not None:
                pack.release()
        if landed and commit is not None:
            self._seen, self._tip = None, commit
        else:
            self._look(force=True)
        return Done(
            commit, side, landed, is_new, text.decode("utf-8", "replace").split("\n")[0],
            len(built.changes), pack_contents(directories, built.contents), built.directories,
        )  # fmt: skip

    def do_changes(self, old: bytes | None, new: bytes | None) -> list[Any]:
        """What differs between two commits' trees."""
        trees = [None if oid is None else self._store.commit(oid).tree for oid in (old, new)]
        changes = []
        for change in self._store.diff(trees[0], trees[1]):
            changes.append(change)
            self._alive()
        return changes

    def do_relation(self, ours: bytes, theirs: bytes) -> tuple[bool, bytes | None]:
        """Whether *ours* is in the history of *theirs*, and where they parted."""
        if self._store.is_ancestor(ours, theirs):
            return True, ours
        return False, self._store.merge_base(ours, theirs)

    def do_land(self, expected: bytes | None, commit: bytes, identity: bytes) -> bool:
        """Move the branch to a commit that is durable already."""
        landed = self._store.swap_ref(self._place.branch, expected, commit, b"caiafs: recover", identity)
        self._look(force=True)
        return landed

    def do_side(self) -> SideSeen | None:
        """Where the side ref stands; None if there is none. What a commit that ended unheard came to."""
        oid = self._store.read_ref(self._place.side)
        if oid is None:
            return None
        try:
            return SideSeen(oid, *parse_side_message(self._store.commit(oid).message))
        except BadRecord as error:
            raise ObjectCorrupt(f"the metadata commit {oid.hex()} is damaged or foreign: {error}") from error

    def do_probe(self) -> bool:
        """Find out whether the repository can be read and takes new files and refs."""
        self._make_tmp()
        self._store.probe(self._tmp, (self._place.branch, self._place.side))
        return True

    def do_tidy(self) -> bool:
        """Bring many packs together."""
        return self._store.consolidate(self._tmp)

    # ---- committing

    def _begin(self, position: int, volatile: tuple[Volatile, ...], opened: tuple[Volatile, ...]) -> Work:
        self._make_tmp()
        reader = Reader(self._place.state_dir, volatile, opened)
        packer = self._store.pack_writer(self._tmp)
        builder = Builder(self._store, packer, reader.read, self._spool, self._alive, self._recent)
        return Work(position, reader, packer, builder)

    def _write_ahead(self) -> bool:
        """Write a little of what is expected; False if that is nothing. An error is the order's: it tries the
        same again, and somebody waits for its answer."""
        if self._work is None:
            return False
        try:
            return self._work.builder.write_ahead()
        except Exception:
            self._work.end()
            self._work = None
            return False

    def _make_tmp(self) -> None:
        """Somebody may have tidied it away; but where the whole repository was moved, nothing is made."""
        if not os.path.isdir(self._tmp) and os.path.isdir(os.path.join(self._store.git_dir, "objects")):
            os.makedirs(self._tmp, mode=0o700, exist_ok=True)

    def _commit(
        self, packer: Any, order: Order, tree: bytes | None, changes: list[Any]
    ) -> tuple[bytes | None, bytes, bool]:
        """The commit that holds *tree*: a new one, or the parent if nothing but metadata changed."""
        if len(order.parents) == 1:
            with contextlib.suppress(ObjectCorrupt, ObjectMissing):  # then nothing shows that it is the same
                if self._tree_of(order.parents[0]) == (tree or _EMPTY_TREE):
                    return order.parents[0], b"", False
        elif not order.parents and tree is None:
            return None, b"", False
        if tree is None:
            tree = packer.add(TREE, b"")
        text = compose(changes, order.message, order.outside, order.notes)
        data = encode_commit(
            tree, order.parents, order.identity, order.identity, order.stamp, order.stamp, order.zone, text
        )
        commit = packer.add(COMMIT, data)
        self._last = commit, tree
        return commit, text, True

    def _tree_of(self, commit: bytes) -> bytes:
        if self._last is not None and self._last[0] == commit:
            return self._last[1]
        return self._store.commit(commit).tree

    def _move_side(self, order: Order, side: bytes, value: Value) -> None:
        store, ref = self._store, self._place.side
        current = store.read_ref(ref)
        if current == side:
            store.sync_ref(ref)  # a try that moved it may have ended before it had done so
            return
        self._untouched = False
        if not store.swap_ref(ref, current, side, b"caiafs: metadata", order.identity, value):
            raise StoreError(f"{ref.decode(errors='replace')} moved while it was written")

    def _move_branch(self, order: Order, commit: bytes, text: bytes, value: Value) -> bool:
        store, ref = self._store, self._place.branch
        current = store.read_ref(ref)
        if current == commit:
            if commit not in order.parents:
                store.sync_ref(ref)
            return True
        if current is not None and current != order.expected:
            return False
        message = b"commit: " + text.split(b"\n")[0]
        return store.swap_ref(ref, current, commit, message, order.identity, value)

    # ---- the pipe

    def _look(self, force: bool = False) -> None:
        """Tell the daemon when the branch moved."""
        try:
            seen = self._store.ref_signature(self._place.branch)
            if seen == self._seen and not force:
                return
            tip = self._store.read_ref(self._place.branch)
        except (CaiafsError, OSError):
            return  # the next commit will say what is wrong
        self._seen = seen
        if tip != self._tip:
            self._tip = tip
            self._send("tip", tip)

    def _alive(self, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._spoke >= ALIVE:
            work = self._work
            self._send("alive", *((work.builder.done, work.builder.total) if work is not None else ()))

    def _send(self, *message: Any) -> None:
        self._spoke = time.monotonic()
        _say(self._outlet, *message)

    def _receive(self) -> tuple[Any, ...]:
        (size,) = FRAME.unpack(self._exactly(FRAME.size))
        message: tuple[Any, ...] = pickle.loads(self._exactly(size))
        return message

    def _exactly(self, size: int) -> bytes:
        received = self._received
        while len(received) < size:
            part = os.read(self._inlet, 1 << 20)
            if not part:
                raise EOFError
            received += part
        data = bytes(received[:size])
        del received[:size]
        return data


_EMPTY_TREE = bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")


def _say(outlet: int, *message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    view = memoryview(FRAME.pack(len(data)) + data)
    while view:
        view = view[os.write(outlet, view) :]


def _refusal(error: CaiafsError | OSError, untouched: bool) -> tuple[Any, ...]:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    damaged = (error.files, error.directories) if isinstance(error, Unreadable) else ({}, {})
    return text, isinstance(error, RefLocked), error.errno or errno.EIO, untouched, *damaged


def main() -> None:
    """Serve the daemon that started this process, and end with it; at once, saying why, where the
    repository cannot be opened."""
    if not child.begin():
        return
    inlet, outlet = child.take_standard_streams()
    gc.freeze()
    gc.set_threshold(GARBAGE)
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            worker = Worker(inlet, outlet)
        except (CaiafsError, OSError) as error:
            _say(outlet, "failed", *_refusal(error, untouched=True))
        else:
            worker.run()
