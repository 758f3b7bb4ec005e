"""When to commit, and what to do when git says no.

One task beside the mount. It freezes the tree's changes, has the worker process write
them, and lets the journal go once git's objects and refs are on disk. It is also the one
who takes in what arrives on the branch from outside.

A batch that failed is tried again, the same batch, with growing pauses, until it is in
git: later changes wait in the journal for the next one. Nothing is dropped on an error.
Only where callers wait for a batch, since no journal keeps it, it is given up when git refuses
it or takes too long: what it came to is found out first, then its changes are undone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import trio

from ..config import Config
from ..errors import CaiafsError, FSError, JournalError, StoreError, StoreTooSlow
from ..filesystem import Filesystem
from ..filesystem.adopt import Adoption
from ..metrics import Metrics
from ..policy import Policy
from ..records import NO_OID, Committed
from ..records.side import vouches
from ..tree import Batch, Settled
from .build import PIECE
from .pace import LITTLE, Pace
from .process import Refused, WorkerProcess
from .worker import FEW, Done, Order, SideSeen, unpack_contents

log = logging.getLogger(__name__)

TIDY_EVERY = 20
"""After so many commits the worker looks whether packs should be brought together, once it is left alone
for TIDY_QUIET; after twice as many in any case."""
TIDY_QUIET = 1.0
"""Seconds since the last commit: who commits in a loop does not wait for packs."""

_WRITING = "writing to git"
_TIDYING = "bringing packs together"

Invalidate = Callable[[list[tuple[int, bytes]]], Awaitable[None]]
Landed = Callable[[bytes | None], None]
"""Told of a commit that git has, before what is left to do for it."""


def _unheard(commit: bytes | None) -> None:
    """For commits that nobody waits for."""


class Outcome(NamedTuple):
    """What a commit request led to."""

    commit: bytes | None
    changes: int


class Committer:
    """Turns the journal into commits. *identity* is git's "Name <mail>" for author and committer."""

    def __init__(
        self, fs: Filesystem, worker: WorkerProcess, config: Config, metrics: Metrics, identity: bytes,
        invalidate: Invalidate, flush_kernel: Callable[[], Awaitable[None]], pace: Pace | None = None,
    ) -> None:  # fmt: skip
        self._fs = fs
        self._worker = worker
        self._config = config
        self._metrics = metrics
        self._identity = identity
        self._invalidate = invalidate
        self._flush_kernel = flush_kernel
        self._pace = pace or Pace()
        self._wake = trio.Event()
        self._busy = trio.Lock()
        self._doing = _WRITING
        self._pausing = False
        self._in_flight: tuple[Batch, Order] | None = None
        self._in_flight_since: float | None = None
        self._in_doubt = False
        self.head: bytes | None = None
        self.side: bytes | None = None
        self.landed: bytes | None = None
        self.tip: bytes | None = None
        self._outside: bytes | None = None
        self._notes: list[str] = []
        self._merge = False
        self._untidy = 0
        """Packs that came since the worker looked at them: one for each batch."""
        self._left_alone_at = -math.inf
        self.commits = 0
        self.health = fs.health.git
        self._round: _Round | None = None
        self.last_commit_at: float | None = None
        self.last_subject = ""
        self.stopping = False

    # ---- starting

    def attach(self, head: bytes | None, side: bytes | None, landed: bytes | None, tip: bytes | None) -> None:
        """The tree shows *head*, whose metadata is *side*; the branch was last seen by us at *landed*."""
        self.head = self._fs.head = head
        self.side = side
        self.landed = landed
        self.tip = tip

    def reconfigure(self, config: Config, identity: bytes) -> None:
        """Other settings from now on; what waits for a time that is no longer right looks again."""
        self._config = config
        self._identity = identity
        self._wake.set()

    def tip_seen(self, tip: bytes | None) -> None:
        """The worker saw the branch at *tip*."""
        self.tip = tip
        if self._in_flight is None:  # else it may be our own commit, which is not settled yet
            self._wake_if_moved()

    def _wake_if_moved(self) -> None:
        if self.moved_outside or self.moved_back:
            self._wake.set()

    @property
    def oldest_change(self) -> float | None:
        """When the first change was made that git does not have, by trio's clock."""
        first = self._fs.first_change if self._in_flight is None else self._in_flight_since
        return min((at for at in (first, self._fs.held_since) if at is not None), default=None)

    @property
    def _policy(self) -> Policy:
        return self._fs.health.policy

    @property
    def trouble(self) -> str | None:
        """What git says while it does not work."""
        return None if self.health.is_healthy else self.health.reason

    @property
    def moved_outside(self) -> bool:
        """True if the branch is not where this mount left it."""
        return self.tip is not None and self.tip != self.landed

    @property
    def moved_back(self) -> bool:
        """True if the branch, having been elsewhere, is where it was before a commit that waits for it."""
        return self.tip is not None and self.tip == self.landed and self.head not in (None, self.landed)

    # ---- asking

    async def commit(
        self, message: str | None = None, tries: int = 5, landed: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        """Commit everything acknowledged so far, now. Raises StoreError if git refuses *tries* times, or for
        so long that the pause before the next try is over `operation_timeout`, or has all but what is
        held back.

        *landed* is called with the outcome once git has it, where the rest is little: all that is to be seen
        of it is done before any other task has its turn.
        """
        outcome = await self._commit_now(message, tries, self._policy.operation_timeout, landed)
        self._fs.refuse_held()
        return outcome

    async def _commit_now(
        self, message: str | None = None, tries: int = 5, longest: float = math.inf,
        landed: Callable[[Outcome], None] | None = None,
    ) -> Outcome:  # fmt: skip
        attempt = 0
        told: list[Outcome] = []

        def tell(commit: bytes | None) -> None:
            if landed is not None:
                told.append(Outcome(commit, changes))
                landed(told[0])

        while True:
            try:
                await self._hand_over()
                async with self._busy:
                    await self._take_in()
                    changes = self._fs.tree.changes + self._fs.pending
                    await self._commit_all(message, tell)
                    if told:
                        return told[0]
                    await self._take_in()
                    await self._restore_branch()
                    return Outcome(self.head, changes)
            except CaiafsError as error:
                attempt += 1
                pause = self.failed(error)
                if attempt >= tries or pause > longest:
                    raise StoreError(f"not committed, but safe in the journal: {error}") from error
                self._pausing = True
                try:
                    await trio.sleep(pause)
                finally:
                    self._pausing = False

    async def _commit_all(self, message: str | None = None, landed: Landed = _unheard) -> None:
        """The batch that failed before, if there is one, and what came since."""
        if self._in_flight is not None:
            await self._commit(None)
        if self._fs.is_dirty:
            await self._commit(message, landed)

    async def reach(self, position: int) -> None:
        """Return once git has all before *position*, which callers wait for. Raises the error of the try
        that failed; what nobody keeps was undone then.

        Callers share a commit: those who come while one is made go with the next. May be cancelled: the
        commit goes on.
        """
        fs = self._fs
        while fs.committed < position and (fs.is_dirty or fs.pending):
            turn = self._round
            if turn is None:
                turn = self._round = _Round()
                trio.lowlevel.spawn_system_task(self._go_round, turn)
            await turn.ended.wait()
            if turn.error is not None:
                raise turn.error

    async def _go_round(self, turn: _Round) -> None:
        try:
            async with self._busy:
                try:
                    await self._commit_all()
                except CaiafsError as error:
                    turn.error = error
                    self.failed(error)
                    self._fs.take_back(error, self._in_flight[0].position if self._in_flight else 0)
        finally:
            self._round = None
            turn.ended.set()

    async def drain(self) -> Outcome:
        """Commit until nothing is left, access times too: at the end of the mount."""
        self._fs.mark_atimes()
        outcome = await self._commit_now()
        while self._fs.is_dirty or self._in_flight is not None:
            outcome = await self._commit_now()
        self._fs.refuse_held()
        return outcome

    def step(self) -> tuple[int, int, str]:
        """What is being done, how much of it is done, and of how much (0: nobody knows), for people."""
        if not self._busy.locked():
            if not self._pausing:
                return 0, 0, "waiting for the kernel"
            why, _, _ = (self.trouble or "").partition("\n")
            return 0, 0, f"waiting to try git again: {why}"
        return (*(self._worker.written if self._doing == _WRITING else (0, 0)), self._doing)

    async def reconcile(self) -> None:
        """Bring the tree and the branch together before the mount serves. Raises StoreError."""
        await self._hand_over()
        async with self._busy:
            await self._take_in()

    # ---- the schedule

    async def run(self) -> None:
        """Commit when it is time, until cancelled."""
        while True:
            await self._something_to_do()
            try:
                await self._hand_over()
                async with self._busy:
                    await self._take_in()
                    if self._in_flight is not None or (self._fs.is_dirty and self._is_time()):
                        await self._commit(None)
                    elif trio.current_time() >= self._tidy_at:  # still, behind those who waited for us
                        await self._tidy()
            except CaiafsError as error:
                pause = self.failed(error)
                await self._make_journal_safe()
                await trio.sleep(pause)

    async def probe(self) -> None:
        """Find out whether git works again, where nothing waits for it that would tell. Raises StoreError."""
        async with self._busy:
            await self._worker.ask("probe")
            self._recovered()

    async def _something_to_do(self) -> None:
        """Return when the branch moved, changes are old or quiet enough to be committed, or packs many."""
        while True:
            if self.moved_outside or self.moved_back:
                return
            self._wake = trio.Event()
            if self._in_flight is not None or trio.current_time() >= self._tidy_at:
                return
            if not self._fs.is_dirty:
                if self._fs.changed.is_set():
                    self._fs.changed = trio.Event()
                await self._wait_for(self._fs.changed, self._tidy_at)
                continue
            if self._is_time():
                return
            quiet = self._fs.last_change + self._quiet
            latest = (self._fs.first_change or 0.0) + self._config.commit_interval
            await self._wait_for(self._fs.pressure, min(quiet, latest, self._tidy_at))

    @property
    def _quiet(self) -> float:
        """Seconds without a change after which a commit is due: more where each one carries much along."""
        quiet = self._config.commit_quiet
        return quiet if self._fs.carried < PIECE else max(quiet, self._config.commit_interval)

    def _is_time(self) -> bool:
        if self._fs.pressure.is_set():
            return True
        now = trio.current_time()
        first = self._fs.first_change
        return now >= self._fs.last_change + self._quiet or (
            first is not None and now >= first + self._config.commit_interval
        )

    async def _wait_for(self, event: trio.Event, deadline: float) -> None:
        """Until *event*, the wake-up of a moved branch, or the deadline."""
        with trio.CancelScope(deadline=deadline):
            async with trio.open_nursery() as nursery:

                async def first(one: trio.Event) -> None:
                    await one.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(first, self._wake)
                nursery.start_soon(first, event)

    # ---- one commit

    async def _commit(self, message: str | None, landed: Landed = _unheard) -> None:
        """Freeze, write, settle; one try. A batch that failed before is tried again as it was.

        Not cancelled half-way: what was frozen is settled or kept for the next try.
        """
        try:
            with trio.CancelScope(shield=True), self._fs.unbroken():
                await self._commit_shielded(message, landed)
        finally:
            self._wake_if_moved()

    @property
    def _tidy_at(self) -> float:
        """When the worker is to look at the packs, if nobody commits until then."""
        if self._untidy < TIDY_EVERY or self.stopping:
            return math.inf
        return self._left_alone_at + TIDY_QUIET if self._untidy < 2 * TIDY_EVERY else -math.inf

    async def _tidy(self) -> None:
        """Nobody waits for this but the next commit: the worker does one thing at a time."""
        self._untidy = 0
        self._doing = _TIDYING
        try:
            await self._worker.ask("tidy")
        except StoreError as error:
            log.warning("packs could not be brought together: %s", error)

    async def _commit_shielded(self, message: str | None, landed: Landed) -> None:
        fs = self._fs
        started = trio.current_time()
        if self._in_flight is None:
            await self._resolve()
            self._in_flight_since = fs.first_change
            self._in_flight = await self._freeze(message)
        batch, order = self._in_flight
        self._doing = _WRITING
        try:
            fs.refuse_broken()
            done = await self._write(batch, order)
            fs.refuse_broken()
        except StoreError as error:
            seconds = trio.current_time() - started
            self._metrics.commit("failure", seconds)
            self._metrics.observe("git", "commit", int(seconds * 1e9), ok=False)
            if fs.is_awaited(batch.position):
                await self._decide(batch, error)
                if isinstance(error, Refused):
                    fs.rewrite(error.unreadable)
            elif isinstance(error, Refused) and (error.damaged or error.unreadable):
                self._give_up(batch)
                fs.hold(error.damaged)
                if fs.rewrite(error.unreadable):
                    await self._commit_shielded(message, landed)  # all that can be written
                    return
            raise
        fs.kept_up_to(batch.position)
        if done.landed and self.tip == done.commit and not fs.held and batch.names < LITTLE:
            landed(done.commit)  # no turn for anybody until all that shows of it is done
        self._doing = "letting the journal go"
        settled = Settled(unpack_contents(done.contents), done.directories)
        for step, _ in enumerate(fs.settle(batch, settled), 1):
            if step % LITTLE == 0:
                await self._pace.step()
        self._in_flight = None
        self.head = fs.head = done.commit
        self.side = done.side
        if done.landed:
            self.landed = done.commit
            self._outside, self._notes, self._merge = None, [], False
        is_large = fs.pending > FEW
        self._release(batch, done)
        if is_large or not fs.journal.close_little():
            trio.lowlevel.spawn_system_task(self._let_go, batch)
        seconds = trio.current_time() - started
        self._metrics.commit("success", seconds)
        self._metrics.observe("git", "commit", int(seconds * 1e9))
        self._recovered()
        self._left_alone_at = trio.current_time()
        self._untidy += 1
        if self._untidy >= TIDY_EVERY:
            self._wake.set()
        if done.is_new:
            self.commits += 1
            self.last_commit_at = time.time()
            self.last_subject = done.subject
            commit = (done.commit or NO_OID).hex()
            fields = {"event": "committed", "commit": commit, "paths": done.changed_paths,
                      "seconds": f"{seconds:.3f}"}  # fmt: skip
            log.info("committed %s: %s", commit[:12], done.subject, extra={"fields": fields})

    async def _let_go(self, batch: Batch) -> None:
        """What nobody has to wait for: ext4 takes 28 ms to get 40 MiB back, a large batch goes in steps."""
        await trio.to_thread.run_sync(self._fs.journal.close_released)
        for _ in batch.let_go(LITTLE):
            await self._pace.step()

    async def _write(self, batch: Batch, order: Order) -> Done:
        """The worker's answer. Where callers wait, it has `operation_timeout`, and another process' lock
        on a ref is waited for as long; else it may take its time as long as it gives signs of life."""
        awaited = self._fs.is_awaited(batch.position)
        timeout = self._policy.operation_timeout if awaited else math.inf
        deadline = trio.current_time() + timeout
        attempt = 0
        with trio.move_on_at(deadline):
            while True:
                try:
                    done: Done = await self._worker.ask("commit", order, ahead=self._parts(batch, order))
                    return done
                except Refused as error:
                    attempt += 1
                    pause = self._policy.pause(attempt, self._policy.locked_ceiling)
                    if not (awaited and error.locked) or trio.current_time() + pause >= deadline:
                        raise
                    await trio.sleep(pause)
        raise StoreTooSlow(f"git did not take the changes within {timeout:g} s")

    def _parts(self, batch: Batch, order: Order) -> Iterator[tuple[Any, ...]]:
        """What the worker is told before the order. Of a large batch it writes contents meanwhile."""
        if self._fs.pending > FEW:
            yield "begin", batch.position, order.volatile, order.opened
        for part in self._fs.tree.parts(batch, LITTLE // 2):  # each is captured and sent in one step
            yield "directories", part

    async def _decide(self, batch: Batch, error: StoreError) -> None:
        """Git failed at a batch that callers wait for: either it is there all the same, or nothing of it
        is to be seen. Where that cannot be told now, git is told again how things are."""
        fs = self._fs
        landed = False if isinstance(error, Refused) and error.untouched else await self._has_landed(batch)
        if landed:
            fs.kept_up_to(batch.position)
            return
        self._in_doubt = landed is None
        self._give_up(batch)
        fs.take_back(error, unmark=landed is False)

    def _give_up(self, batch: Batch) -> None:
        """Git has nothing of *batch*, and is not asked for it again: its names count as changed."""
        self._in_flight = None
        self._fs.thaw(batch, self._in_flight_since)

    async def _has_landed(self, batch: Batch) -> bool | None:
        """Whether the side ref has *batch*; None if nobody can tell."""
        with trio.move_on_after(self._policy.operation_timeout):
            try:
                seen: SideSeen | None = await self._worker.ask("side")
            except StoreError:
                return None
            return seen is not None and self._is_ours(seen) and seen.position == batch.position
        return None

    def _is_ours(self, seen: SideSeen) -> bool:
        return vouches(seen.journal, self._fs.journal.id, seen.commit, seen.position)

    async def _resolve(self) -> None:
        """Find out what became of a batch of which nothing was heard. Raises StoreError."""
        if not self._in_doubt:
            return
        seen: SideSeen | None = await self._worker.ask("side")
        self._in_doubt = False
        if seen is not None and seen.oid != self.side and self._is_ours(seen):
            self.head, self.side = seen.commit, seen.oid
            self._fs.head = self.head
            if self.tip == self.head:
                self.landed = self.head

    async def _freeze(self, message: str | None) -> tuple[Batch, Order]:
        fs = self._fs
        batch = fs.freeze()
        self._doing = "taking the changes"
        try:
            await fs.carry(batch)
        except StoreError:
            self._give_up(batch)
            raise
        stamp = int(time.time())
        parents: tuple[bytes, ...] = () if self.head is None else (self.head,)
        if self._merge and self._outside is not None:
            parents = (*parents, self._outside)
        outside = self._outside.hex() if self._outside is not None and (self._merge or self._notes) else None
        return batch, Order(
            batch.position, batch.root, batch.next_ino, batch.links, parents, self.landed, self.side,
            self._identity, stamp, time.localtime(stamp).tm_gmtoff // 60, message, outside, self._notes,
            fs.journal.volatile, fs.journal.opened,
        )  # fmt: skip

    def _release(self, batch: Batch, done: Done) -> None:
        record = Committed(batch.position, done.commit or NO_OID, done.side, self.landed or NO_OID)
        try:
            self._fs.release_journal(record)
        except JournalError as error:
            # Everything is in git; the journal only could not be told, and is told the next time.
            log.warning("the journal could not be released: %s", error)

    async def _make_journal_safe(self) -> None:
        """Git does not take the changes now: let them survive power loss where they are."""
        try:
            await self._fs.sync()
        except FSError as error:
            log.warning("the journal could not be synced: %s", error)

    def failed(self, error: CaiafsError) -> float:
        """Git does not work; returns the seconds until the next try."""
        if self.trouble != str(error):
            fields = {"event": "commit-failed", "errno": error.errno}
            log.warning("commit failed, will be tried again: %s", error, extra={"fields": fields})
        locked = isinstance(error, Refused) and error.locked
        pause = self.health.trouble(
            str(error), error.errno, ceiling=self._policy.locked_ceiling if locked else None
        )
        self._fs.released.set()  # whoever waits for room must learn that there is none for now
        self._fs.released = trio.Event()
        return pause

    def silent(self, seconds: float) -> None:
        """The worker works on something and has said nothing for *seconds*."""
        self.health.slow(f"the commit worker has been silent for {seconds:g} s")

    def _recovered(self) -> None:
        if self.health.worked():
            log.info("git works again", extra={"fields": {"event": "git-works-again"}})

    # ---- what comes from outside

    async def _hand_over(self) -> None:
        """What programs wrote and the kernel holds is ours too, before anything from outside is taken in.
        Not while we are busy: the kernel may wait for changes that wait for a commit."""
        if self.moved_outside:
            await self._flush_kernel()

    async def _take_in(self) -> None:
        """Bring in what the branch got from elsewhere, until it and the tree agree."""
        if self._in_doubt:
            await self._resolve()
        if self._fs.taking is not None:
            if self._in_flight is not None:
                await self._commit(None)
            await self._take_in_rest(self._fs.taking)
        while self.moved_outside:
            tip = self.tip
            assert tip is not None
            if self._in_flight is not None or (self.head == self.landed and self._fs.is_dirty):
                # Our own changes become a commit first, so that a merge has two sides.
                await self._commit(None)
                continue
            if self.head is not None and self.head != self.landed and await self._lands_now(tip):
                continue
            await self._merge_in(tip)
        if self.moved_back and self._in_flight is None:
            await self._land_late()

    async def _take_in_rest(self, commit: bytes) -> None:
        """Some of *commit* was taken in before a failure or a crash, and the branch may have gone on since:
        what is theirs must not pass for ours when it is held against the next commit."""
        if commit == self.landed:
            self._fs.taking = None
            return
        try:
            if self.head is not None and self.head != self.landed:
                await self._lands_now(commit)
            await self._merge_in(commit)
        except CaiafsError:
            if commit != self.tip:
                self._fs.taking = None  # it may be gone, or damaged; the next try is at the tip
            raise

    async def _land_late(self) -> None:
        """What kept our last commit from the branch is gone: the commit goes there now."""
        tip, head = self.tip, self.head
        if not (await self._worker.ask("relation", tip, head))[0]:
            self.landed = None  # it has to be merged with, as anything else from outside
        elif await self._worker.ask("land", tip, head, self._identity):
            self.landed = head

    async def _restore_branch(self) -> None:
        """Somebody deleted the branch, and a commit was asked for: it is there again."""
        deleted = self.tip is None and self.head is not None
        if deleted and await self._worker.ask("land", None, self.head, self._identity):
            self.landed = self.head

    async def _lands_now(self, tip: bytes) -> bool:
        """Our last commit is durable but not on the branch: put it there if nothing is in the way."""
        assert self.head is not None
        ahead, base = await self._worker.ask("relation", self.head, tip)
        if ahead:
            self.landed = self.head
            return tip == self.head
        if (
            self.landed is None
            and base == tip
            and await self._worker.ask("land", tip, self.head, self._identity)
        ):
            self.landed = self.head
            return True
        self.landed = base if self.landed is None else self.landed
        return False

    async def _merge_in(self, tip: bytes) -> None:
        changes = await self._worker.ask("changes", self.landed, tip)
        when = time.time_ns()
        adoption = Adoption(self._fs, tip, when)
        self._fs.taking = tip
        for change in changes:
            await adoption.take(change)
        await self._invalidate(adoption.touched)
        fields = {"event": "adopted", "commit": tip.hex(), "paths": len(changes)}
        log.info(
            "took in %s from outside: %d changed paths",
            tip.hex()[:12],
            len(changes),
            extra={"fields": fields},
        )
        for note in adoption.notes:
            log.warning("outside change: %s", note)
        unlanded = self.head is not None and self.head != self.landed
        follows = self.landed is None or (await self._worker.ask("relation", self.landed, tip))[0]
        self._outside, self._notes = tip, adoption.notes
        self._merge = unlanded and follows
        if not self._merge:
            self.head = self._fs.head = tip
        self.landed = tip
        self._fs.taking = None
        if self._fs.is_dirty or unlanded:
            await self._commit(None)


class _Round:
    """One try to commit for those who wait, and how it ended."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: CaiafsError | None = None
