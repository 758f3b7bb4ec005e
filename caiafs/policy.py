"""When to wait, when to try again, when to give up: the one place that decides.

    Policy    the figures: timeouts, pauses, jitter, silence
    Tier      how one tier is, since when, why, and when it may be tried again
    Health    the three tiers of a mount, and what they add up to

A tier is healthy until something fails, then degraded; failing again and again, or taking nothing
at all, makes it failed. One success makes it healthy. While it is not, it is a circuit that is
open: callers use the other tier at once, and only a probe after a growing pause tries this one.
Changed by the event loop's task only; no waiting here, the callers sleep.
"""

from __future__ import annotations

import errno
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from caiafs.config import Config

_DEFAULT = Config("", "")
HEALTHY, DEGRADED, FAILED = "healthy", "degraded", "failed"
FAILED_AFTER = 3
"""Failures in a row that make a degraded tier a failed one."""
NOTES = 20
"""Remarks that a tier keeps; more are counted, not told one by one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds, all of them. The defaults of settings are the settings' own."""

    operation_timeout: float = _DEFAULT.operation_timeout
    """How long one call may wait for a tier before that counts as a failure."""
    retry_pause: float = _DEFAULT.retry_pause
    """The pause after a first failure; it doubles with each further one."""
    retry_ceiling: float = _DEFAULT.retry_ceiling
    """The longest pause between tries."""
    worker_timeout: float = _DEFAULT.worker_timeout
    """A commit worker that gave no sign of life for so long is taken for hung, and replaced."""

    locked_ceiling: float = 1.0
    """The longest pause where another process holds a ref's lock: it is gone in a moment."""
    jitter: float = 0.5
    """A pause is shortened by up to this share, at random, so that several mounts spread out."""
    worker_restart: float = 0.5
    """Before a worker that ended is started again."""
    worker_ending: float = 0.25
    """How long a killed worker may take to be gone before it is left to end in its own time."""

    @classmethod
    def of(cls, config: Config) -> Policy:
        """The policy of a mount with these settings."""
        return cls(config.operation_timeout, config.retry_pause, config.retry_ceiling, config.worker_timeout)

    def pause(self, attempt: int, ceiling: float | None = None) -> float:
        """Seconds before the try after the *attempt*-th failure in a row (from 1)."""
        longest = self.retry_ceiling if ceiling is None else min(ceiling, self.retry_ceiling)
        pause = min(longest, self.retry_pause * 2.0 ** min(max(attempt, 1) - 1, 16))
        return pause * random.uniform(1 - self.jitter, 1)


class Note(NamedTuple):
    """Something wrong that stays wrong until somebody mends it; *again* finds out whether it is."""

    text: str
    again: Callable[[], Any] | None


class Tier:
    """One tier's health. *clock* counts seconds from anywhere; `since` is the time of day."""

    def __init__(self, name: str, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.clock = clock
        self.state = HEALTHY
        self.reason: str | None = None
        self.errno = 0
        self.since = time.time()
        self.failures = 0
        self.failures_ever = 0
        self.recoveries = 0
        self.next_try = 0.0
        self.notes: dict[object, Note] = {}
        self.on_change: Callable[[], None] | None = None
        self.policy = policy

    @property
    def is_healthy(self) -> bool:
        """True if it takes what it is given; what a note says is not about that."""
        return self.state == HEALTHY

    @property
    def may_try(self) -> bool:
        """True if it is healthy, or due for a probe."""
        return self.state == HEALTHY or self.clock() >= self.next_try

    def trouble(
        self, reason: str, code: int = errno.EIO, *, ceiling: float | None = None, takes_nothing: bool = False
    ) -> float:
        """It failed: *reason* is for people. Returns the seconds until it should be tried again.

        Failures before the next try is due count as one with the last: calls that all fail at once do
        not push it off.
        """
        now = self.clock()
        if self.state == HEALTHY or now >= self.next_try:
            self.failures += 1
            self.next_try = math.inf
        self.failures_ever += 1
        self.reason = reason
        self.errno = code
        self.next_try = min(self.next_try, now + self.policy.pause(self.failures, ceiling))
        self._become(FAILED if takes_nothing or self.failures >= FAILED_AFTER else DEGRADED)
        return self.next_try - now

    def slow(self, reason: str) -> None:
        """It neither failed nor answered yet: degraded, without a try being counted."""
        if self.state == HEALTHY:
            self.reason = reason
            self.errno = errno.ETIMEDOUT
            self._become(DEGRADED)

    def put_off(self) -> None:
        """It cannot be tried now; that is no further failure."""
        self.next_try = self.clock() + self.policy.pause(self.failures)

    def worked(self) -> bool:
        """It took something: healthy. True if it was not before."""
        if self.state == HEALTHY:
            return False
        self.failures = 0
        self.reason = None
        self.errno = 0
        self.recoveries += 1
        self._become(HEALTHY)
        return True

    def _become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.since = time.time()
        if self.on_change is not None:
            self.on_change()

    # ---- remarks

    def note(self, key: object, text: str, again: Callable[[], Any] | None = None) -> None:
        """Remember *text* until `forget(key)`; *again* raises as long as it is so."""
        if key not in self.notes and len(self.notes) >= NOTES:
            self.notes.pop(next(iter(self.notes)))
        self.notes[key] = Note(text, again)
        if self.on_change is not None:
            self.on_change()

    def forget(self, key: object) -> None:
        """The remark *key* is not true any more."""
        self.notes.pop(key, None)

    # ---- telling

    @property
    def shown(self) -> str:
        """The state as health.json has it: a remark alone makes a tier degraded."""
        return DEGRADED if self.state == HEALTHY and self.notes else self.state

    @property
    def reasons(self) -> list[str]:
        """What is wrong, in sentences that begin with the tier's name."""
        texts = [] if self.reason is None else [self.reason]
        texts += [note.text for note in self.notes.values()]
        return [f"{self.name}: {text}" for text in texts]

    def describe(self) -> dict[str, Any]:
        """This tier's part of health.json."""
        return {
            "state": self.shown,
            "reasons": [text.removeprefix(f"{self.name}: ") for text in self.reasons],
            "since": round(self.since, 3),
            "failures": self.failures,
            "failures_ever": self.failures_ever,
            "recoveries": self.recoveries,
        }


class Health:
    """The tiers of one mount. *primary* and *has_fallback* say what a failing one means for the whole."""

    def __init__(
        self, policy: Policy, primary: str, has_fallback: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy
        self._primary = primary
        self._has_fallback = has_fallback
        self.memory = Tier("memory", policy, clock)
        self.journal = Tier("journal", policy, clock)
        self.git = Tier("git", policy, clock)

    def obey(self, policy: Policy, has_fallback: bool) -> None:
        """Other figures from now on; pauses that were begun end as they would have."""
        self.policy = policy
        self._has_fallback = has_fallback
        for tier in self.tiers:
            tier.policy = policy

    @property
    def tiers(self) -> tuple[Tier, Tier, Tier]:
        return self.memory, self.journal, self.git

    @property
    def state(self) -> str:
        """healthy: all is well. failed: a change would be refused now. degraded: anything between."""
        journal_keeps, git_keeps = self.journal.state != FAILED, self.git.is_healthy
        if self._has_fallback:
            keeps = journal_keeps or git_keeps
        else:
            keeps = journal_keeps if self._primary == "memory" else git_keeps
        if not keeps:
            return FAILED
        return HEALTHY if all(tier.shown == HEALTHY for tier in self.tiers) else DEGRADED

    @property
    def reasons(self) -> list[str]:
        """What is wrong, in sentences."""
        return [text for tier in self.tiers for text in tier.reasons]

    def describe(self) -> dict[str, Any]:
        """health.json."""
        state = self.state
        return {
            "healthy": state == HEALTHY,
            "state": state,
            "reasons": self.reasons,
            "backends": {tier.name: tier.describe() for tier in self.tiers},
        }


def told_as(first: int, last: int) -> int:
    """The errno of a call that both tiers refused: *first* the one that is asked first, then the other.

    A program knows what to do about a full disk, a read-only one and a timeout; all else is EIO.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    for code in (last, first):
        if code in full:
            return errno.ENOSPC
        if code in (errno.EROFS, errno.ETIMEDOUT):
            return code
    return errno.EIO
