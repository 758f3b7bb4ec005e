"""Bringing tiers back: what failed is tried again where no call of a program would do it.

One task beside the committer. It sleeps while all is well. A tier that is not is probed when its
pause is over: the journal by writing and syncing a file beside it, git by the worker doing the
same in the repository. What was found damaged is read again, until somebody mended it. (While
changes wait for git, the committer's own tries are the probes.)
"""

from __future__ import annotations

import logging
import math

import trio

from ..errors import CaiafsError, JournalError
from ..filesystem import Filesystem
from ..policy import FAILED, HEALTHY
from .schedule import Committer

log = logging.getLogger(__name__)


class Probes:
    """Probes the tiers of *fs* until it is cancelled."""

    def __init__(self, fs: Filesystem, committer: Committer) -> None:
        self._fs = fs
        self._committer = committer
        self._changed = trio.Event()
        self.noticed = trio.Event()
        """Set when a tier's health changed, for whoever shows it; they put a new one in its place."""
        self._again_at = math.inf
        self._attempts = 0
        for tier in fs.health.tiers:
            tier.on_change = self._wake

    def _wake(self) -> None:
        self._changed.set()
        self.noticed.set()

    async def run(self) -> None:
        """Until cancelled."""
        health = self._fs.health
        self._fs.is_probed = True
        while True:
            self._changed = trio.Event()
            journal, git = health.journal, health.git
            if journal.state != HEALTHY and journal.may_try:
                await self._probe_journal()
            if git.state != HEALTHY and git.may_try and not self._fs.is_dirty and not self._fs.pending:
                await self._probe_git()
            await self._reread()
            with trio.move_on_after(self._pause()):
                await self._changed.wait()

    def _pause(self) -> float:
        """Seconds until there is something to probe."""
        health = self._fs.health
        tiers = [tier for tier in health.tiers if tier.state != HEALTHY]
        pause = min((tier.next_try - tier.clock() for tier in tiers), default=math.inf)
        if tiers and pause <= 0:
            pause = health.policy.retry_ceiling  # somebody else tries
        return max(0.0, min(pause, self._again_at - trio.current_time()))

    async def _probe_journal(self) -> None:
        """A file is written, and where a sync failed, what there is is synced."""
        fs, tier = self._fs, self._fs.health.journal
        if fs.journal.is_doomed:
            tier.put_off()  # git has to take what a sync failed for
            return
        try:
            await trio.to_thread.run_sync(fs.journal.probe)
            if tier.state != FAILED:
                await trio.to_thread.run_sync(fs.journal.sync)
        except JournalError as error:
            tier.trouble(str(error), error.errno, takes_nothing=tier.state == FAILED)
        else:
            if tier.worked():
                log.info("the journal works again")
            fs.journal.failure = None

    async def _probe_git(self) -> None:
        try:
            await self._committer.probe()
        except CaiafsError as error:
            self._committer.failed(error)

    async def _reread(self) -> None:
        """Look again at what was found damaged, with growing pauses."""
        tier = self._fs.health.git
        found = [(key, note) for key, note in tier.notes.items() if note.again is not None]
        now = trio.current_time()
        if not found and not self._fs.held:
            self._again_at, self._attempts = math.inf, 0
            return
        if self._again_at == math.inf:
            self._attempts = 1
        elif now < self._again_at:
            return
        else:
            for key, note in found:
                assert note.again is not None
                try:
                    with trio.fail_after(self._fs.health.policy.operation_timeout):
                        await trio.to_thread.run_sync(note.again, abandon_on_cancel=True)
                except (CaiafsError, OSError, trio.TooSlowError):
                    continue
                tier.forget(key)
                log.info("readable again: %s", note.text)
            await self._let_go()
            self._attempts += 1
        self._again_at = now + self._fs.health.policy.pause(self._attempts)

    async def _let_go(self) -> None:
        """What is held back can go to git where what it rests on reads back."""
        for node in list(self._fs.held):
            try:
                if node.content.base is not None:
                    await self._fs.contents.verify(node.content.base)
            except (CaiafsError, OSError):
                continue
            log.info("readable again: what the changes of inode %d rest on", node.ino)
            self._fs.let_go(node)
