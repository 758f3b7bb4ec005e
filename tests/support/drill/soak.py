"""The long run: random load, random kills, random faults and other people's git, from one seed.

A round has a load, meanwhile up to three faults or acts of others, and an end: a kill (as in
`kill`) or a clean stop. Then the mount is started again and everything is looked at. Rounds with a
fault and no kill wait until git has everything before the stop: nobody helps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from support.drill.faults import OUTSIDE, REWRITES, Faults, Outsider, SmallDisk
from support.drill.forks import ForkedDaemon
from support.drill.kill import Drill, Tally
from support.mounts import clear_stale_mount

HEALED = 60.0
"""Seconds in which everything is in git after a fault: the longest pause between tries is 30."""


class Soak(Drill):
    """One repository and one mount, for as long as the seed's part of a run lasts."""

    options = ("commit_quiet=0.05s", "commit_interval=0.3s", "operation_timeout=3s")

    def __init__(self, base: Path, seed: int, tally: Tally) -> None:
        base.mkdir(parents=True)
        self.disks: list[SmallDisk] = []
        git_disk = journal_disk = None
        if os.geteuid() == 0:
            self.disks = [SmallDisk(base / "git", 300), SmallDisk(base / "journal", 24)]
            git_disk, journal_disk = self.disks
        super().__init__(base, seed, tally=tally)
        if git_disk is not None:
            self.repository = self.history.repository = base / "git" / "r.git"
            self.state_dir = base / "journal" / "state"
            self.options = (*self.options, f"state_dir={self.state_dir}", "journal_max=64MiB")
        self.faults = Faults(self.repository, git_disk, journal_disk)
        self.outsider = Outsider(self.repository, base / "clone")
        self._healing = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        self.heal()
        super().__exit__()
        for disk in self.disks:
            disk.close()

    def is_expected(self, line: str) -> bool:
        """An ERROR says that a call failed, which its writer has noted; a traceback is never expected."""
        return " ERROR " in line and "unexpected" not in line

    # ---- rounds

    def round(self, left: int = 100) -> None:
        if self.tally.rounds and self.dice.random() < 0.1:
            self._rewrite()
        if self.dice.random() < 0.55:
            super().round(left)
        else:
            self._round_without_kill()
        self.tally.refused += self._refusals()

    def meanwhile(self, kind: str) -> None:
        """A fault, or somebody's git, or nothing. A fault lasts beyond the kill; but a moment in the
        worker comes only where nothing is in its way."""
        time.sleep(self.dice.uniform(0.05, 0.6))
        if self.dice.random() < 0.6:
            self._trouble(outside=kind == "at a moment")
            time.sleep(self.dice.uniform(0.05, 1.0))

    def heal(self) -> None:
        self._healing.close()

    def _stop_while_pending(self, daemon: ForkedDaemon) -> None:
        """Or, where a fault stopped every writer, at a moment when git has everything: not counted."""
        deadline = time.monotonic() + 3
        while True:
            daemon.freeze()
            if self.pending() or time.monotonic() > deadline:
                return
            daemon.thaw()
            time.sleep(0.005)

    def _count(self, kind: str) -> None:
        if self.pending():
            super()._count(kind)
        else:
            self.tally.faults["kill with nothing pending (not counted)"] += 1

    def _trouble(self, outside: bool = False) -> None:
        """One thing that is not a kill; a fault lasts until `heal`."""
        assert self.daemon is not None
        if outside or self.dice.random() < 0.5:
            what = self.dice.choice(OUTSIDE)
            done = self.outsider.act(what, self.dice)
            self.tally.faults[what if done else f"{what} (lost every race)"] += 1
        else:
            name = self.dice.choice(self.faults.possible())
            self._healing.enter_context(self.faults.fault(name, self.daemon))
            self.tally.faults[name] += 1

    def _round_without_kill(self) -> None:
        """Faults one after the other; then all that was written reaches git by itself."""
        self.tally.rounds += 1
        for writer in self.writers:
            writer.start()
        for _ in range(self.dice.randint(1, 3)):
            time.sleep(self.dice.uniform(0.05, 0.5))
            self._trouble()
            time.sleep(self.dice.uniform(0.1, 2.0))
            self.heal()
        self._stop_writers()
        self._wait_healed()
        self.umount()
        self.tally.stops += 1
        self.prove_offline(at_rest=True)
        self.recover()
        self.prove()

    def _wait_healed(self) -> None:
        assert self.daemon is not None
        deadline = time.monotonic() + HEALED
        while True:
            stats = json.loads((self.mountpoint / ".stats" / "stats.json").read_bytes())
            health = json.loads((self.mountpoint / ".stats" / "health.json").read_bytes())
            left = stats["storage_stats"]["commits"]["uncommitted_changes"]
            if not left and health["state"] == "healthy":
                return
            late = time.monotonic() > deadline
            self._require(
                not late, f"{left} changes not in git, {health} {HEALED} s after a fault\n{self.tail()}"
            )
            time.sleep(0.05)

    def _rewrite(self) -> None:
        """The history is changed while nobody writes and git has everything."""
        self._wait_healed()
        if self.history.check(self.writers) or self.history.tip is None:
            return
        what = self.dice.choice(REWRITES)
        made = self.outsider.rewrite(what)
        if made is None:
            self.history.is_deleted = True
        else:
            self.history.tip = made
        time.sleep(1.2)  # until the mount has seen it: what comes now is a change on the new history
        self.tally.faults[what] += 1

    def prove(self) -> None:
        super().prove()
        deadline = time.monotonic() + 20
        while wrong := self.outsider.wrong(self.mountpoint):
            if time.monotonic() > deadline:
                raise self._failed("\n".join(wrong[:10]) + "\n" + self.tail())
            time.sleep(0.1)

    def _refusals(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for writer in self.writers:
            for code, count in writer.errors.items():
                found[os.strerror(code)] += count
            writer.errors.clear()
        return found


@contextlib.contextmanager
def soak(base: Path, seed: int, tally: Tally) -> Iterator[Soak]:
    """A soak that has begun; its directory is kept if it fails."""
    with Soak(base, seed, tally) as made:
        made.begin()
        yield made
        made.end()
    clear_stale_mount(base / "m")
    shutil.rmtree(base)


def table(tally: Tally, seconds: float) -> str:
    """What a run did, as docs/reliability.md has it."""
    rows = [
        ("time", f"{seconds / 60:.0f} min"),
        ("rounds", f"{tally.rounds:,}"),
        ("kill -9 of the daemon", f"{tally.total:,}"),
        *[(f"  {kind}", f"{count:,}") for kind, count in sorted(tally.kills.items())],
        ("clean stops", f"{tally.stops:,}"),
        ("records that git did not have at the kills", f"{tally.pending:,}"),
        ("faults, and acts of others", f"{sum(tally.faults.values()):,}"),
        *[(f"  {kind}", f"{count:,}") for kind, count in sorted(tally.faults.items())],
        ("operations acknowledged", f"{tally.operations:,}"),
        ("bytes acknowledged", f"{tally.bytes:,}"),
        ("calls refused, and so not done", f"{sum(tally.refused.values()):,}"),
        *[(f"  {kind}", f"{count:,}") for kind, count in sorted(tally.refused.items())],
        ("commits looked at", f"{tally.commits:,}"),
        ("times that check and fsck found nothing", f"{tally.checks:,}"),
        ("lost, doubled, torn or otherwise than acknowledged", "0"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"| {name:<{width}} | {value:>13} |" for name, value in rows)
