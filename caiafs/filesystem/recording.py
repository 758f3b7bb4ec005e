"""Recording a change: the journal keeps it, then the tree shows it.

The one place through which every change goes. Between the check of a caller, the record in the
journal and `apply` nothing waits. Before it, a writer may have to wait for room in the journal.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from time import perf_counter_ns
from typing import Any, NoReturn

import trio

from ..errors import Broken, CaiafsError, FSError, JournalError, StoreTooSlow
from ..policy import FAILED, told_as
from ..records import Adopt, Committed, Name, Record
from ..tree import Batch, File, Node, Settled
from .directories import NODE_COST, Directories
from .unkept import Change

log = logging.getLogger(__name__)

_CLOCK = getattr(time, "CLOCK_REALTIME_COARSE", 5)  # linux/time.h; Python 3.11 does not name it


class Recording(Directories):
    """Changes on their way into journal and tree, and out of the journal into git."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._frozen_at = 0
        self._atimes: dict[Node, None] = {}
        self._sync_running: trio.Event | None = None
        self._sync_shared = False
        """Somebody else wanted a flush while the last one ran."""
        self.last_change = 0.0
        self.first_change: float | None = None
        self.changed = trio.Event()
        self.released = trio.Event()
        self.pressure = trio.Event()
        self._appends = self.metrics.series("journal", "append")
        self._stores = self.metrics.series("memory", "store")
        self.pending = 0
        self.closed = False
        """Callers may change nothing (remounted read-only); what arrives from outside is still taken in."""
        self.broken = False
        """An error struck where journal and tree may differ since: nothing is committed any more."""
        self.committed = 0
        self.unkept: list[Change] = []
        self.decided = trio.Event()
        self.is_probed = False
        """Somebody probes the journal when it fails, with as much as a change may be: calls do not."""
        self.write_through: Callable[[int], Awaitable[None]] | None = None
        self.forget_in_kernel: Callable[[list[tuple[int, bytes]], set[int]], None] | None = None

    @staticmethod
    def now() -> int:
        """The time in nanoseconds, by the clock that the kernel stamps files with."""
        return time.clock_gettime_ns(_CLOCK)

    def _record(self, record: Record, *nodes: Node) -> None:
        """Keep *record* and make it true. *nodes* are those it names by number.

        It is `_record_all` for one, without its lists where recovery knows all *nodes* and the journal
        takes it: the way of nearly every change.
        """
        if self._refused() is not None:
            return self._record_all((record,), *nodes)
        for node in nodes:
            if node.anchor < self._frozen_at and node.parent is not None:
                return self._record_all((record,), *nodes)
        self._writable()
        journal = self.journal
        where = journal.end
        started = perf_counter_ns()
        try:
            try:
                position = journal.append(record)
            except JournalError as error:
                refused = self._journal_refused(error, started)
                self._try_out((record,), self._append_volatile((record,)), [], where, refused)
            else:
                kept = perf_counter_ns()
                self._appends.add(kept - started)
                if self.health.journal.state == FAILED:
                    self._journal_worked()
                self.tree.apply(record, position)
                self._stores.add(perf_counter_ns() - kept)
            self._note_change()
        except FSError:
            raise
        except BaseException as error:
            if journal.is_writing or journal.end != where:
                self._break(error)
            raise
        return None

    def _record_all(self, batch: tuple[Record, ...], *nodes: Node) -> None:
        """Keep several records and make them true, all or none.

        Where the journal does not keep them, they are in `unkept` afterwards: see `kept`.
        """
        self._writable()
        names: list[Record] = []
        anchored: list[Node] = []
        for node in nodes:
            self._anchor(node, names, anchored)
        where = self.journal.end
        try:
            positions, refused = self._append([*names, *batch])
            positions = positions[len(names) :]
            started = perf_counter_ns()
            if refused is None:
                for node in anchored:
                    node.anchor = where
                for record, position in zip(batch, positions, strict=True):
                    self.tree.apply(record, position)
            else:
                self._try_out(batch, positions, anchored, where, refused)
            self._stores.add(perf_counter_ns() - started)
            self._note_change()
        except FSError:
            raise
        except BaseException as error:
            if self.journal.is_writing or self.journal.end != where:
                self._break(error)
            raise

    def _append(self, batch: Sequence[Record], is_spill: bool = False) -> tuple[list[int], int | None]:
        """The journal's positions for *batch*; and None if it keeps them, else the errno of its refusal
        (0 if it was not asked). Raises FSError, with nothing changed, where git may not stand in.

        *is_spill*: these are bytes of a file without a name, which no recovery looks for.
        """
        refused = self._refused()
        if is_spill and refused == 0 and not self.journal.is_volatile:
            refused = None
        if refused is None:
            started = perf_counter_ns()
            try:
                positions = self.journal.append_all(batch)
            except JournalError as error:
                refused = self._journal_refused(error, started)
            else:
                self._appends.add(perf_counter_ns() - started)
                if self.health.journal.state == FAILED:
                    self._journal_worked()
                return positions, None
        return self._append_volatile(batch), refused

    def _append_volatile(self, batch: Sequence[Record]) -> list[int]:
        try:
            return self.journal.append_all(batch, volatile=True)
        except JournalError as error:
            raise FSError(error.errno, str(error)) from error

    def _journal_worked(self) -> None:
        if not self.is_probed:
            self.health.journal.worked()

    def _journal_refused(self, error: JournalError, started: int) -> int:
        """The errno of a refusal by the journal, for which git may stand in. Raises FSError where not."""
        self.metrics.observe("journal", "append", perf_counter_ns() - started, ok=False)
        tier = self.health.journal
        if tier.is_healthy:
            log.warning("the journal takes nothing: %s", error)
        tier.trouble(str(error), error.errno, takes_nothing=True)
        if self.write_through is None or not self.config.enable_fallback:
            raise FSError(error.errno, str(error)) from error
        return error.errno

    def _refused(self) -> int | None:
        """None if the journal is to be asked; else the errno of its last refusal, 0 if it is never asked."""
        if self.write_through is None:
            return None
        if not self.config.enable_fallback:
            return 0 if self.config.primary == "git" else None
        tier = self.health.journal
        if self.journal.is_volatile:
            if self.unkept or self.pending:
                return tier.errno
            self.journal.forget_volatile(self._orphaned_positions())
        if tier.state == FAILED and self.health.git.is_healthy and (self.is_probed or not tier.may_try):
            return tier.errno
        return None

    # ---- kept by git, or not at all

    def _try_out(
        self, batch: tuple[Record, ...], positions: list[int], anchored: list[Node], where: int, refused: int
    ) -> None:
        anchors = [(node, node.anchor) for node in anchored]
        for node in anchored:
            node.anchor = where
        if type(batch[0]) is Adopt:
            # From outside, so git has it; after a crash it is taken in again.
            for record, position in zip(batch, positions, strict=True):
                self.tree.apply(record, position)
            return
        befores = [
            self.tree.try_out(record, position) for record, position in zip(batch, positions, strict=True)
        ]
        deadline = _now() + self.config.operation_timeout
        self.unkept.append(Change(self.journal.end, befores, anchors, deadline, refused))
        self._account()

    @property
    def newest(self) -> Change | None:
        """The newest change that is not kept; None if all are."""
        return self.unkept[-1] if self.unkept else None

    async def kept(self) -> None:
        """Return once the newest change, and so every one before it, is in git. Raises FSError: it was
        undone, since git did not take it either. Called in the step that made the change."""
        change = self.unkept[-1]
        assert self.write_through is not None
        while not change.is_decided:
            with trio.move_on_at(change.deadline), contextlib.suppress(CaiafsError):
                await self.write_through(change.position)
            if not change.is_decided and _now() >= change.deadline:
                await self._overdue(change)
        if change.error is not None:
            raise FSError(change.error.errno, str(change.error))
        if self.config.primary == "memory":
            self.metrics.fallback("memory", "git")

    async def _overdue(self, change: Change) -> None:
        """Git is busy with something else, or what it is busy with is decided within a moment."""
        if self.pending and change.position <= self._frozen_at:
            await self.decided.wait()  # the commit that holds it has a deadline of its own
            return
        after = self._frozen_at if self.pending else 0
        timeout = self.config.operation_timeout
        self.take_back(StoreTooSlow(f"git did not take the change within {timeout:g} s"), after)

    def kept_up_to(self, position: int) -> None:
        """Git has all before *position*: those who wait for that are told."""
        if not self.unkept:
            return
        for change in self.unkept:
            if change.position <= position:
                for before in change.befores:
                    self.tree.keep(before)
                change.decide(None)
        self.unkept = [change for change in self.unkept if not change.is_decided]
        self._tell()

    def is_awaited(self, position: int) -> bool:
        """True if somebody waits for a change before *position*."""
        return bool(self.unkept) and self.unkept[0].position <= position

    def take_back(self, error: CaiafsError, after: int = 0, unmark: bool = True) -> None:
        """Undo all that is not kept, as far as it came after the position *after*; its callers get *error*.

        With *unmark* git is known to have nothing of it; otherwise the next commit tells git again.
        """
        undone = [change for change in self.unkept if change.position > after]
        if not undone:
            return
        with self.unbroken():
            self._undo(undone, error, after, unmark)

    def _undo(self, undone: list[Change], error: CaiafsError, after: int, unmark: bool) -> None:
        self.unkept = [change for change in self.unkept if change.position <= after]
        names: list[tuple[int, bytes]] = []
        inodes: set[int] = set()
        for change in reversed(undone):
            for before in reversed(change.befores):
                names += [(directory.ino, name) for directory, name in before.touched]
                inodes |= {node.ino for node in before.nodes}
                self.tree.take_back(before, unmark=unmark)
            for node, anchor in change.anchors:
                node.anchor = anchor
            change.decide(FSError(told_as(change.refused, error.errno), self._refusal(change, error)))
        if not self.is_dirty:
            self.first_change = None
        log.info("%d changes were refused and undone: %s", len(undone), error)
        if self.forget_in_kernel is not None:
            self.forget_in_kernel(names, inodes)
        self._tell()

    def _refusal(self, change: Change, error: CaiafsError) -> str:
        if self.health.journal.reason is not None and change.refused:
            return f"nothing keeps the change: journal: {self.health.journal.reason}; git: {error}"
        return f"git did not take the change: {error}"

    def _tell(self) -> None:
        """Something was decided."""
        if not self.unkept and not self.pending:
            self.journal.forget_volatile(self._orphaned_positions())
        self._account()
        self.decided.set()
        self.decided = trio.Event()

    @property
    def is_returning(self) -> bool:
        """True while the journal works again and what it does not have is still on its way into git."""
        return self.journal.is_volatile and self.health.journal.is_healthy and self.config.enable_fallback

    async def turn(self) -> None:
        """Called before a change while `is_returning`: wait for the journal, so that it can take over."""
        with trio.move_on_after(self.config.operation_timeout):
            while self.is_returning and (self.unkept or self.pending):
                await self.decided.wait()

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
        self.last_change = now = _now()
        if self.first_change is None:
            self.first_change = now
        self.changed.set()
        if self.journal.size > self.config.journal_max // 2:
            self.pressure.set()

    def _account(self) -> None:
        """What changed cannot be let go of before git has it: a commit is due when that is half of memory."""
        super()._account()
        of_changes = self.tree.changes * NODE_COST + (self.tree.attached_bytes if self.tree.changes else 0)
        if of_changes > self.memory.limit // 2:
            self.pressure.set()

    def refuse_growth(self, node: File, size: int) -> None:
        """Raises FSError(EFBIG) if *node* would become longer than `file_max`. A hole takes nothing here, but
        git has no holes: with a file of 8 EiB the committer would be busy for ever."""
        if size > self.config.file_max and size > node.size:
            raise FSError(
                errno.EFBIG,
                f"a file of {size:,} bytes would be larger than file_max, {self.config.file_max:,}",
            )

    def _writable(self) -> None:
        if self.config.ro or self.closed:
            raise FSError(errno.EROFS)

    # ---- room in the journal

    def _is_tight(self, size: int) -> bool:
        """True if `_room` for *size* more bytes would have something to do."""
        limit = self.config.journal_max
        return self.journal.size + size > limit - limit // 4

    async def _room(self, size: int) -> None:
        """Wait while the journal is too full for *size* more bytes and git still drains it.

        Raises FSError(ENOSPC) when it is full and git does not for as long as `operation_timeout`.
        """
        # The kernel hands over as much as the smallest journal holds at once: a request always finds room in
        # an empty one.
        size = min(size, self.config.journal_max // 2)
        soft = self.config.journal_max - self.config.journal_max // 4
        over = self.journal.size + size - soft
        if over <= 0:
            return
        if over < self.config.journal_max // 4:
            with trio.move_on_after(0.05 * over / (self.config.journal_max // 4)):
                await self.released.wait()
            return
        deadline = trio.current_time() + self.config.operation_timeout
        while self.journal.size + size > self.config.journal_max:
            git = self.health.git
            if git.is_healthy:
                deadline = trio.current_time() + self.config.operation_timeout
            elif trio.current_time() >= deadline:
                raise FSError(errno.ENOSPC, f"the journal is full and git does not drain it: {git.reason}")
            if not self.is_dirty and self.pending == 0:
                self._compact()
                if self.journal.size + size > self.config.journal_max:
                    raise FSError(errno.ENOSPC, "the journal is full of what unlinked open files hold")
                return
            with trio.move_on_at(math.inf if git.is_healthy else deadline):
                await self.released.wait()

    def _compact(self) -> None:
        """Git has everything; what fills the journal are writes to files without a name."""
        try:
            self.journal.compact(self._orphaned_positions())
        except JournalError as error:
            raise FSError(error.errno, str(error)) from error
        self._frozen_at = self.journal.end

    def _orphaned_positions(self) -> Iterable[int]:
        for node in self.tree.orphans():
            if isinstance(node, File):
                for extent in node.content.extents:
                    yield extent.position

    # ---- power loss

    async def sync(self) -> int:
        """All that was acknowledged so far survives power loss; returns up to which journal position.

        Callers that come while the disk is busy share the next flush. Raises FSError.
        """
        target = self.journal.tail
        while self.journal.durable < target:
            if self._sync_running is not None:
                self._sync_shared = True
                await self._sync_running.wait()
                continue
            self._sync_running = trio.Event()
            was_doomed = self.journal.is_doomed
            try:
                with self.metrics.timed("journal", "sync"):
                    await self._flush()
            except JournalError as error:
                if not was_doomed:
                    self.health.journal.trouble(str(error), error.errno)
                failure = error
            else:
                if self.health.journal.state != FAILED:  # a disk that is full can still sync
                    self.health.journal.worked()
                continue
            finally:
                self._sync_running.set()
                self._sync_running = None
            if self.write_through is None or not self.config.enable_fallback:
                raise FSError(failure.errno, str(failure)) from failure
            await self._commit_instead(target, failure)
            break
        return target

    async def _flush(self) -> None:
        """`Journal.sync`, in a thread only where it has to be. Raises JournalError."""
        if self._sync_shared:
            self._sync_shared = False
            await trio.lowlevel.checkpoint()  # requests that are at hand go first: theirs may be fsyncs, too
        done = self.journal.start_sync()
        if done is None:
            await trio.to_thread.run_sync(self.journal.sync)
            return
        try:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(done)
        finally:
            self.journal.finish_sync()

    async def _commit_instead(self, target: int, failure: JournalError) -> None:
        """The disk under the journal does not keep what it has: git does."""
        assert self.write_through is not None
        reason = f"nothing keeps what was written: journal: {failure}; git: "
        with trio.move_on_after(self.config.operation_timeout):
            try:
                await self.write_through(target)
            except CaiafsError as error:
                raise FSError(told_as(failure.errno, error.errno), reason + str(error)) from error
            self.metrics.fallback("memory", "git")
            return
        raise FSError(errno.ETIMEDOUT, reason + f"no answer within {self.config.operation_timeout:g} s")

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
        self._in_git(settled.directories)

    def thaw(self, batch: Batch, since: float | None) -> None:
        """Git has nothing of *batch*, and it is given up; its first change was made at *since*."""
        self.tree.thaw(batch)
        self.pending = 0
        self.first_change = _now() if since is None else since

    def release_journal(self, committed: Committed) -> None:
        """Drop what git has now; open unlinked files keep what they need. Raises JournalError
        if *committed* cannot be kept; that costs nothing but a longer look at the next start."""
        self.committed = committed.position
        self.pending = 0
        self.kept_up_to(committed.position)
        self.journal.release(committed.position, self._orphaned_positions())
        if not self.unkept:
            self.journal.forget_volatile(self._orphaned_positions())
        self.released.set()
        self.released = trio.Event()
        self._tell()
        if self._refused() is not None or self.health.journal.state == FAILED:
            return  # too small a record to tell whether the disk takes changes again
        try:
            self.journal.append(committed)
        except JournalError as error:
            self.health.journal.trouble(str(error), error.errno, takes_nothing=True)
            raise


def _now() -> float:
    """Trio's clock; 0 before it runs."""
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0
