"""Recording a change: the journal keeps it, then the tree shows it.

The one place through which every change goes. Between the check of a caller, the record in the
journal and `apply` nothing waits. Before it, a writer may have to wait for room in the journal.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import trio

from ..errors import Broken, CaiafsError, FSError, JournalError
from ..records import Committed, Name, Record
from ..tree import Batch, File, Node, Settled
from .directories import Directories

_CLOCK = getattr(time, "CLOCK_REALTIME_COARSE", 5)  # linux/time.h; Python 3.11 does not name it


class Recording(Directories):
    """Changes on their way into journal and tree, and out of the journal into git."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._frozen_at = 0
        self._atimes: dict[Node, None] = {}
        self._sync_running: trio.Event | None = None
        self.last_change = 0.0
        self.first_change: float | None = None
        self.changed = trio.Event()
        self.released = trio.Event()
        self.pressure = trio.Event()
        self.git_trouble: str | None = None
        self.pending = 0
        self.closed = False
        """Callers may change nothing (remounted read-only); what arrives from outside is still taken in."""
        self.broken = False
        """An error struck where journal and tree may differ since: nothing is committed any more."""

    @staticmethod
    def now() -> int:
        """The time in nanoseconds, by the clock that the kernel stamps files with."""
        return time.clock_gettime_ns(_CLOCK)

    def _record(self, record: Record, *nodes: Node) -> None:
        """Keep *record* and make it true. *nodes* are those it names by number."""
        self._record_all((record,), *nodes)

    def _record_all(self, batch: tuple[Record, ...], *nodes: Node) -> None:
        """Keep several records and make them true, all or none."""
        self._writable()
        names: list[Record] = []
        anchored: list[Node] = []
        for node in nodes:
            self._anchor(node, names, anchored)
        where = self.journal.end
        started = time.perf_counter_ns()
        try:
            positions = self.journal.append_all([*names, *batch])[len(names) :]
        except JournalError as error:
            self.metrics.observe("journal", "append", time.perf_counter_ns() - started, ok=False)
            raise FSError(error.errno, str(error)) from error
        except BaseException as error:
            if self.journal.is_writing or self.journal.end != where:
                self._break(error)
            raise
        try:
            kept = time.perf_counter_ns()
            for node in anchored:
                node.anchor = where
            for record, position in zip(batch, positions, strict=True):
                self.tree.apply(record, position)
        except BaseException as error:
            self._break(error)
        self.metrics.observe("journal", "append", kept - started)
        self.metrics.observe("memory", "store", time.perf_counter_ns() - kept)
        self._note_change()

    def _break(self, error: BaseException) -> NoReturn:
        """Stop here: the journal may have what the tree has not, or half of it."""
        self.broken = True
        raise Broken("a change was kept and not made; the next mount makes it from the journal") from error

    def refuse_broken(self) -> None:
        """Raises Broken if something else here broke meanwhile."""
        if self.broken:
            raise Broken("ended by an error elsewhere")

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """What is inside takes from the tree, or gives to it, in several steps. Known errors leave it as
        it was; any other ends the daemon."""
        try:
            yield
        except (CaiafsError, Broken):
            raise
        except BaseException as error:
            self._break(error)

    def _anchor(self, node: Node, names: list[Record], anchored: list[Node]) -> None:
        """Recovery begins at the last freeze at the latest: tell it where *node* is, once since then."""
        missing: list[Node] = []
        while node.anchor < self._frozen_at and node.parent is not None and node not in anchored:
            missing.append(node)
            node = node.parent
        for below in reversed(missing):
            assert below.parent is not None
            names.append(Name(below.ino, below.parent.ino, below.name))
        anchored += missing

    def _note_change(self) -> None:
        now = trio.current_time() if _in_trio() else 0.0
        self.last_change = now
        if self.first_change is None:
            self.first_change = now
        self.changed.set()
        if self.journal.size > self.config.journal_max // 2:
            self.pressure.set()

    def _writable(self) -> None:
        if self.config.ro or self.closed:
            raise FSError(errno.EROFS)

    # ---- room in the journal

    async def _room(self, size: int) -> None:
        """Wait while the journal is too full for *size* more bytes and git still drains it.

        Raises FSError(ENOSPC) when it is full and git does not.
        """
        soft = self.config.journal_max - self.config.journal_max // 4
        over = self.journal.size + size - soft
        if over <= 0:
            return
        if over < self.config.journal_max // 4:
            with trio.move_on_after(0.05 * over / (self.config.journal_max // 4)):
                await self.released.wait()
            return
        while self.journal.size + size > self.config.journal_max:
            if self.git_trouble is not None:
                raise FSError(
                    errno.ENOSPC, f"the journal is full and git does not drain it: {self.git_trouble}"
                )
            if not self.is_dirty and self.pending == 0:
                self._compact()
                if self.journal.size + size > self.config.journal_max:
                    raise FSError(errno.ENOSPC, "the journal is full of what unlinked open files hold")
                return
            await self.released.wait()

    def _compact(self) -> None:
        """Git has everything; what fills the journal are writes to files without a name."""
        try:
            self.journal.compact(self._orphaned_positions())
        except JournalError as error:
            raise FSError(error.errno, str(error)) from error
        self._frozen_at = self.journal.end

    def _orphaned_positions(self) -> Iterable[int]:
        for node in self.tree.nodes.values():
            if node.nlink == 0 and isinstance(node, File):
                for extent in node.content.extents:
                    yield extent.position

    # ---- power loss

    async def sync(self) -> int:
        """All that was acknowledged so far survives power loss; returns up to which journal position.

        Callers that come while the disk is busy share the next flush. Raises FSError.
        """
        target = self.journal.end
        while self.journal.durable < target:
            if self._sync_running is not None:
                await self._sync_running.wait()
                continue
            self._sync_running = trio.Event()
            try:
                with self.metrics.timed("journal", "sync"):
                    await trio.to_thread.run_sync(self.journal.sync)
            except JournalError as error:
                raise FSError(error.errno, str(error)) from error
            finally:
                self._sync_running.set()
                self._sync_running = None
        return target

    # ---- from the journal into git

    @property
    def is_dirty(self) -> bool:
        """True if git does not have everything yet."""
        return self.tree.is_dirty

    def mark_atimes(self) -> None:
        """Let the next batch carry the access times that only memory knows."""
        for node in self._atimes:
            if node.nlink and self.tree.nodes.get(node.ino) is node:
                self.tree.mark_attributes(node)
        self._atimes = {}

    def freeze(self) -> Batch:
        """All changes so far, as of this moment; the committer then fills it in with `tree.capture`."""
        self.mark_atimes()
        position = self.journal.seal()
        self._frozen_at = position
        self.pending = self.tree.changes
        self.first_change = None
        self.changed = trio.Event()
        self.pressure = trio.Event()
        return self.tree.freeze(position)

    def settle(self, batch: Batch, settled: Settled) -> Iterator[None]:
        """Git has *batch*: each step lets go of a little of the journal; iterate to the end."""
        for node, oid, extents in self.tree.settle(batch, settled):
            if (
                len(extents) == 1
                and extents[0].data is not None
                and extents[0].length == node.content.base_size
            ):
                self.contents.keep(oid, extents[0].data)
            yield

    def release_journal(self, committed: Committed) -> None:
        """Drop what git has now; open unlinked files keep what they need. Raises JournalError
        if *committed* cannot be kept; that costs nothing but a longer look at the next start."""
        self.journal.release(committed.position, self._orphaned_positions())
        self.pending = 0
        self.released.set()
        self.released = trio.Event()
        self.journal.append(committed)


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
