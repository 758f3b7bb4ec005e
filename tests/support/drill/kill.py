"""Rounds of load, kill, recovery and proof.

A round: writers work; at a moment that a seed chose the daemon is stopped, looked at, and killed
if the journal held something that git did not have (else it goes on: a kill of an idle mount
shows nothing). Sometimes its worker dies, too, or alone; sometimes the process ends at a named
place; sometimes the next daemon is killed while it recovers, and the one after it. Then a mount
must serve, every writer's folder must be what was acknowledged, every commit must show one
moment, and between the rounds `caiafs check` and `git fsck --strict` must find nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from caiafs.check import run_check
from caiafs.filesystem.loader import read_side
from caiafs.journal import Journal
from caiafs.records import Committed, Name
from caiafs.records.side import side_ref
from caiafs.store import Store
from support.drill import moments
from support.drill.forks import Arm, ForkedDaemon, ForkServer
from support.drill.history import History
from support.drill.writers import Writer
from support.mounts import clear_stale_mount, run

_TROUBLE = re.compile(r"^Traceback|\b(ERROR|CRITICAL)\b|Exception ignored|does not fit")
KINDS = ("daemon", "daemon and worker", "worker, then daemon", "worker alone", "at a moment", "in recovery")
WEIGHTS = (5, 3, 2, 1, 5, 3)


class DrillFailed(AssertionError):
    """Something was lost, or the mount did not come back; the text says what, and the seed."""


class Tally:
    """What a run did, for its table."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.stops = 0
        self.rounds = 0
        self.pending = 0
        self.most_pending = 0
        self.replayed = 0
        self.operations = 0
        self.bytes = 0
        self.commits = 0
        self.exact = 0
        self.files = 0
        self.checks = 0
        self.seconds = 0.0

    @property
    def total(self) -> int:
        """Kills of the daemon, after each of which everything was looked at."""
        return sum(count for kind, count in self.kills.items() if kind != "worker alone")


class Drill:
    """One repository, one mountpoint, several writers; killed again and again. Use as a context."""

    options: tuple[str, ...] = ("commit_quiet=0.05s", "commit_interval=0.15s")

    def __init__(self, base: Path, seed: int, writers: int = 3, tally: Tally | None = None) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.seed = seed
        self.dice = random.Random(seed)
        self.repository = base / "r.git"
        self.state_dir = self.repository / "caiafs" / "main"
        self.mountpoint = base / "m"
        self.mountpoint.mkdir(exist_ok=True)
        self.log = base / "log"
        self.tally = tally or Tally()
        self.history = History(self.repository)
        self.writers = [
            Writer(self.mountpoint, base, f"w{number}", self.dice.randrange(1 << 40))
            for number in range(writers)
        ]
        self.server = ForkServer()
        self.daemon: ForkedDaemon | None = None
        self._log_read = 0
        self._moment = ""
        self._idle = 0

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.stop()
        if self.daemon is not None and self.daemon.ended() is None:
            self.daemon.kill()
        clear_stale_mount(self.mountpoint)
        self.server.close()

    # ---- one life of the mount

    def start(self, arm: Arm | None = None) -> ForkedDaemon:
        options = [*self.options, *([] if (self.repository / "HEAD").exists() else ["init"])]
        self.daemon = self.server.mount(options, self.repository, self.mountpoint, self.log, arm)
        return self.daemon

    def begin(self) -> None:
        """The first mount, with a folder for each writer."""
        assert self.start(self._arm()).wait_serving(), self.tail()
        for writer in self.writers:
            writer.make()

    def end(self) -> None:
        """A clean end: drained, nothing in the journal, everything in the history."""
        self.umount()
        self.prove_offline(at_rest=True)

    def umount(self) -> None:
        assert self.daemon is not None
        self.daemon.signal(signal.SIGTERM)
        code = self.daemon.wait(120)
        self._require(code == 0, f"the daemon ended with {code} after SIGTERM\n{self.tail()}")
        self.daemon = None

    # ---- rounds

    def run(self, kills: int, seconds: float = float("inf")) -> None:
        """Kill so many times, or until the time is over."""
        started = time.monotonic()
        goal = self.tally.total + kills
        while self.tally.total < goal and time.monotonic() - started < seconds:
            self.round(goal - self.tally.total)
        self.tally.seconds += time.monotonic() - started

    def round(self, left: int = 100) -> None:
        """Load, kill, recovery, proof."""
        self.tally.rounds += 1
        kind = self.dice.choices(KINDS, WEIGHTS)[0]
        self.load(kind)
        self._stop_writers()
        self.heal()
        clear_stale_mount(self.mountpoint)
        self._count(kind)
        if kind == "in recovery":
            for _ in range(min(self.dice.randint(1, 3), left - 1)):
                self.kill_in_recovery()
        self.prove_offline()
        self.recover()
        self.prove()

    def _count(self, kind: str) -> None:
        pending = self.pending()
        if kind == "at a moment":
            # The moment was given; it may be one at which git has everything, and that is no kill to count.
            self._idle = 0 if pending else self._idle + 1
            self._require(self._idle < 5, "nothing was pending at five moments in a row")
            if not pending:
                return
            self.tally.moments[self._moment] += 1
        else:
            self._require(pending > 0, f"nothing was pending at the kill ({kind}): the round shows nothing")
        self.tally.kills["daemon" if kind in ("worker alone", "in recovery") else kind] += 1
        self.tally.pending += pending
        self.tally.most_pending = max(self.tally.most_pending, pending)

    def load(self, kind: str) -> None:
        """Work until the daemon dies as *kind* says."""
        daemon = self.daemon
        assert daemon is not None
        for writer in self.writers:
            writer.start()
        self.meanwhile(kind)
        if kind == "at a moment":
            self._reach_moment(daemon)
            return
        if kind == "worker alone":
            for worker in daemon.workers():
                worker.end()
            self.tally.kills[kind] += 1
            time.sleep(self.dice.uniform(0.1, 0.8))
        elif kind == "worker, then daemon":
            for worker in daemon.workers():
                worker.end()
            time.sleep(self.dice.uniform(0, 0.03))
        self._stop_while_pending(daemon)
        if kind == "daemon and worker":
            for worker in daemon.workers():
                worker.end()
        daemon.kill()

    def meanwhile(self, kind: str) -> None:
        """What happens under load before the end that *kind* asks for: time passes, here."""
        # Sooner than the worker is up, or in the midst of its commits.
        time.sleep(self.dice.uniform(*self.dice.choice(((0.01, 0.3), (0.3, 1.5)))))

    def heal(self) -> None:
        """Whatever `meanwhile` broke is whole again."""

    def _stop_while_pending(self, daemon: ForkedDaemon) -> None:
        """SIGSTOP at a moment when git lacks something; daemon and worker do not run again."""
        deadline = time.monotonic() + 20
        while True:
            daemon.freeze()
            if self.pending():
                return
            daemon.thaw()
            self._require(time.monotonic() < deadline, f"nothing was pending for 20 s\n{self.tail()}")
            time.sleep(0.002)

    def _reach_moment(self, daemon: ForkedDaemon) -> None:
        """The moment for which this daemon or its worker was armed when it began."""
        target = daemon.pid
        if self._moment in moments.WORKER:
            target = self.worker_that_waits(daemon)
        os.kill(target, signal.SIGUSR2)
        deadline = time.monotonic() + 60
        while daemon.ended() is None:
            late = time.monotonic() > deadline
            self._require(not late, f"the moment {self._moment!r} did not come\n{self.tail()}")
            time.sleep(0.003)
        daemon.kill()

    def worker_that_waits(self, daemon: ForkedDaemon) -> int:
        """The worker that was armed, once it is far enough to be told."""
        deadline = time.monotonic() + 20
        while True:
            for worker in daemon.workers():
                if worker.catches(signal.SIGUSR2):
                    return worker.pid
            self._require(time.monotonic() < deadline, f"no worker\n{self.tail()}")
            time.sleep(0.005)

    def _arm(self) -> Arm:
        """A moment for a daemon that begins: it comes only if the round asks for it."""
        if self.dice.random() < 0.5:
            self._moment = self.dice.choice(sorted(moments.WORKER))
            return "worker_ends", [self._moment, self.dice.choice((1, 1, 2, 3)), True]
        self._moment = self.dice.choice(sorted(moments.DAEMON))
        often = self._moment in moments.OFTEN
        return "daemon_ends", [self._moment, self.dice.randint(1, 600 if often else 3)]

    def kill_in_recovery(self) -> None:
        """A daemon that is to recover, killed while it does: at a named place, or at any time."""
        if self.dice.random() < 0.5:
            moment = self.dice.choice(sorted(moments.RECOVERY))
            number = self.dice.randint(1, 40) if moment == "a record is replayed" else 1
            daemon = self.start(("recovery_ends", [moment, number]))
            deadline = time.monotonic() + 5
            while daemon.ended() is None and time.monotonic() < deadline:
                time.sleep(0.003)
            self.tally.moments[moment] += 1
        else:
            daemon = self.start()
            time.sleep(self.dice.uniform(0, 0.25))
        daemon.kill()
        self.tally.kills["in recovery"] += 1
        clear_stale_mount(self.mountpoint)

    def recover(self) -> None:
        before = self.pending()
        daemon = self.start(self._arm())
        if not daemon.wait_serving():
            raise self._failed(f"the mount did not come back: exit status {daemon.ended()}\n{self.tail()}")
        fresh = self.new_log()
        replayed = sum(map(int, re.findall(r"replayed (\d+) records", fresh)))
        if before and not replayed:
            raise self._failed(f"{before} records were pending and none was replayed\n{fresh}")
        self.tally.replayed += replayed

    def prove(self) -> None:
        """What the mount shows is what was acknowledged, and the history has no mix of moments."""
        wrong = []
        for writer in self.writers:
            begun = writer.number
            said = writer.bytes
            wrong += writer.verify()
            self.tally.operations += writer.number - begun
            self.tally.bytes += writer.bytes - said
            self.tally.files += len(writer.model.items)
        known = self.history.commits, self.history.exact
        wrong += self.history.check(self.writers)
        self.tally.commits += self.history.commits - known[0]
        self.tally.exact += self.history.exact - known[1]
        if wrong:
            raise self._failed("\n".join(wrong[:20]))

    def prove_offline(self, at_rest: bool = False) -> None:
        """`caiafs check` and `git fsck --strict` of what a kill left."""
        said: list[str] = []
        elsewhere = None if self.state_dir.is_relative_to(self.repository) else str(self.state_dir)
        if run_check(str(self.repository), "main", elsewhere, False, said.append) != 0:
            raise self._failed("caiafs check: " + "\n".join(said))
        done = run("git", "-C", self.repository, "fsck", "--strict", "--full", "--no-dangling", status=None)
        complaints = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if not line.startswith(("notice: ", "Checking "))
        ]
        if done.returncode or complaints:
            raise self._failed("git fsck: " + "\n".join(complaints[:10]))
        self.tally.checks += 1
        if at_rest:
            self._require(self.pending() == 0, "a clean end left records that git does not have")

    # ---- looking

    def pending(self) -> int:
        """Records in the journal that git does not have; nothing is changed, and nobody is asked."""
        if not (self.repository / "HEAD").exists() or not self.state_dir.is_dir():
            return 0
        with contextlib.closing(Store.open(str(self.repository))) as store:
            for _ in range(3):
                oid = store.read_ref(side_ref(b"main"))
                side = None if oid is None else read_side(store, oid)
                journal = Journal(str(self.state_dir), read_only=True)
                known = side is not None and side.is_about(journal.id)
                position = side.position if known and side is not None else journal.begin
                try:
                    return sum(not isinstance(r, Committed | Name) for r, _ in journal.replay(position))
                except FileNotFoundError:
                    continue  # a segment was released meanwhile
                finally:
                    journal.close()
        return 0

    def new_log(self) -> str:
        """What the log got since the last look; trouble in it fails the drill."""
        data = self.log.read_bytes()
        text, self._log_read = data[self._log_read :].decode(errors="replace"), len(data)
        wrong = [line for line in text.splitlines() if _TROUBLE.search(line) and not self.is_expected(line)]
        if wrong:
            raise self._failed("in the log: " + "\n".join(wrong[:5]) + "\n" + text[-3000:])
        return text

    def is_expected(self, line: str) -> bool:
        return False

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def _stop_writers(self) -> None:
        for writer in self.writers:
            writer.stop()

    def _require(self, condition: bool, text: str) -> None:
        if not condition:
            raise self._failed(text)

    def _failed(self, text: str) -> DrillFailed:
        return DrillFailed(f"seed {self.seed}, round {self.tally.rounds}, in {self.base}: {text}")


@contextlib.contextmanager
def drill(base: Path, seed: int, tally: Tally | None = None, **settings: int) -> Iterator[Drill]:
    """A drill that has begun; kept on disk if it fails."""
    with Drill(base, seed, tally=tally, **settings) as made:
        made.begin()
        yield made
        made.end()
    shutil.rmtree(base)
