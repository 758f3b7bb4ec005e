"""`caiafs status --watch`: what it shows, from what daemons say, on a clock that the test turns."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from caiafs.cli import watch
from caiafs.cli.watch import Watch
from caiafs.control import ControlError
from caiafs.errors import StoreError
from caiafs.metrics import Metrics

COMMIT = {
    "commit": "ab" * 20, "time": 0, "author": "A <a@b>", "subject": "Add things", "parents": [],
    "files": [{"path": f"d/f{number}", "change": "added"} for number in range(5)], "more_files": False,
}  # fmt: skip


class Daemon:
    """Says what a daemon would, about requests that the test makes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics({"version": "1"})
        self.state, self.reasons = "healthy", [""][:0]
        self.changes, self.oldest, self.head = 0, 0.0, "1" * 40
        self.commits: list[dict[str, Any]] = [COMMIT]
        self.asked_history = 0
        self.problem: Exception | None = None
        self.watch = Watch("/mnt", lambda: self.now)

    def ask(self) -> dict[str, Any]:
        if self.problem is not None:
            raise self.problem
        return {
            "health": {"state": self.state, "reasons": self.reasons,
                       "backends": {"memory": {"state": "healthy"}, "git": {"state": self.state}}},
            "stats": {"storage_stats": {
                "memory": {"held_bytes": 1 << 20, "inode_bytes": 1 << 20, "limit_bytes": 256 << 20},
                "journal": {"bytes": 3 << 20}, "git": {"head": self.head},
                "commits": {"count": 7, "failures": 0, "uncommitted_changes": self.changes,
                            "oldest_uncommitted_seconds": self.oldest},
            }},
            "config": {"branch": "main", "settings": {"repo": {"value": "/r.git"},
                                                      "journal_max": {"value": 4 << 30}}},
            "requests": self.metrics.requests(),
        }  # fmt: skip

    def latest(self, limit: int) -> list[dict[str, Any]]:
        self.asked_history += 1
        return self.commits

    def look(self, after: float = 1.0) -> None:
        self.now += after
        self.watch.look(self.ask, self.latest)

    def shown(self, width: int = 100) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        console.print(self.watch.picture(width))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def test_rates_and_latencies_are_of_the_last_seconds() -> None:
    daemon = Daemon()
    for _ in range(5000):
        daemon.metrics.request("getattr", 900_000_000)  # long ago, and slow
    for _ in range(15):
        for _ in range(40):
            daemon.metrics.request("read", 80_000)
        daemon.metrics.request("write", 300_000)
        daemon.look()
    shown = daemon.shown()
    assert "41/s" in shown
    assert "most: read, write" in shown
    assert "getattr" not in shown
    assert "41 requests/s" in daemon.watch.line()
    assert "900 ms" not in daemon.watch.line()


def test_what_is_not_in_git_and_for_how_long() -> None:
    daemon = Daemon()
    daemon.changes, daemon.oldest = 1, 12.0
    daemon.look()
    assert "1 change " in daemon.shown()
    assert "the oldest 12 s old" in daemon.shown()
    daemon.changes, daemon.oldest = 0, 0.0
    daemon.look()
    assert "git has everything" in daemon.shown()


def test_commits_are_asked_for_when_there_are_new_ones() -> None:
    daemon = Daemon()
    for _ in range(4):
        daemon.look()
    assert daemon.asked_history == 1
    daemon.head, daemon.commits = "2" * 40, [{**COMMIT, "subject": "Newer"}, COMMIT]
    daemon.look()
    assert daemon.asked_history == 2
    shown = daemon.shown()
    assert "abababaab"[:9] not in shown
    assert "ababababa" in shown
    assert shown.index("Newer") < shown.index("Add things")
    assert "d/f2" in shown
    assert "d/f3" not in shown
    assert "and 2 others" in shown


def test_trouble_is_on_top_and_what_was_seen_stays() -> None:
    daemon = Daemon()
    daemon.state, daemon.reasons = "degraded", ["git: no space left"]
    daemon.look()
    assert "! git: no space left" in daemon.shown()
    assert daemon.watch.state == "degraded"
    daemon.problem = ControlError("the daemon of /mnt is dead")
    daemon.look()
    assert daemon.watch.state == "silent"
    assert "! the daemon of /mnt is dead" in daemon.shown()
    assert "Add things" in daemon.shown()
    assert daemon.watch.line().startswith("/mnt: the daemon of /mnt is dead")
    daemon.problem = None
    daemon.look()
    assert daemon.watch.state == "degraded"


def test_a_history_that_cannot_be_read_costs_the_history() -> None:
    daemon = Daemon()

    def refuse(limit: int) -> list[dict[str, Any]]:
        raise StoreError("refs/heads/main is broken")

    daemon.watch.look(daemon.ask, refuse)
    assert daemon.watch.state == "healthy"
    assert "refs/heads/main is broken" in daemon.shown()


def test_a_mount_that_never_answered_is_said() -> None:
    daemon = Daemon()
    daemon.problem = ControlError("the daemon of /mnt is dead")
    daemon.look()
    assert "is dead" in daemon.shown()
    assert "is dead" in daemon.watch.line()
    assert daemon.watch.state == "silent"


def test_names_do_not_command_the_terminal() -> None:
    daemon = Daemon()
    evil = "\x1b]0;taken\x07\x1b[2J[bold]x[/bold]\udcff"
    daemon.commits = [{**COMMIT, "subject": evil, "files": [{"path": evil, "change": "changed"}]}]
    daemon.state, daemon.reasons = "failed", [evil]
    daemon.look()
    shown = daemon.shown()
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert shown.count("[bold]x[/bold]") == 3
    shown.encode()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_every_width_is_filled_and_none_is_left(width: int) -> None:
    daemon = Daemon()
    for _ in range(70):
        daemon.metrics.request("read", 80_000)
        daemon.look()
    assert {len(line) for line in daemon.shown(width).splitlines()} == {width}


def test_without_a_terminal_there_is_a_line_for_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Daemon()
    assert watch.run("/mnt", daemon.ask, daemon.latest, every=0.001, count=3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("/mnt: healthy, ") for line in lines)
    daemon.state = "failed"
    assert watch.run("/mnt", daemon.ask, daemon.latest, every=0.001, count=1) == 1


def test_an_interrupt_that_was_lost_on_its_way_ends_it_all_the_same() -> None:
    """As in a destructor, of which Python says "Exception ignored"."""
    daemon = Daemon()
    before = signal.getsignal(signal.SIGINT)
    looks = 0

    def ask() -> Mapping[str, Any]:
        nonlocal looks
        looks += 1
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return daemon.ask()

    assert watch.run("/mnt", ask, daemon.latest, every=0.001, count=3) == 0
    assert looks == 1
    assert signal.getsignal(signal.SIGINT) is before
