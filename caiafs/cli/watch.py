"""`caiafs status --watch`: a mount seen as it works, in a terminal; plain lines elsewhere.

Asks the daemon once a second over the command socket, and git for the latest commits when there are
new ones. Rates and latencies are of the last ten seconds: short enough to be live, long enough to be
read. rich draws; nothing of it is loaded for any other command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from caiafs.cli.render import ago, setting
from caiafs.config import format_bytes, format_seconds
from caiafs.control.exposition import Histogram, added
from caiafs.errors import CaiafsError

EVERY = 1.0
"""Seconds between two looks."""
PLAIN_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
WINDOW = 10
"""Looks that a rate is taken over."""
KEPT = 60
"""Looks that the sparklines show."""
COMMITS = 5
FILES = 3
_SPARKS = " ▁▂▃▄▅▆▇█"
_STYLES = {"healthy": "green", "degraded": "yellow", "failed": "red"}
_MARKS = {
    "added": ("+", "green"),
    "removed": ("−", "red"),
    "changed": ("~", "cyan"),
    "unreadable": ("!", "red"),
}


class Sample(NamedTuple):
    """One look: when, and what the daemon said."""

    at: float
    report: Mapping[str, Any]
    kinds: Mapping[str, Histogram]
    requests: Histogram


Ask = Callable[[], Mapping[str, Any]]
"""health, stats, config, and the durations of requests by kind. Raises CaiafsError."""
Latest = Callable[[int], list[dict[str, Any]]]
"""The latest commits, as history.py tells them. Raises CaiafsError."""


class Watch:
    """What was seen of one mount so far, and how it looks."""

    def __init__(self, mountpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._mountpoint = mountpoint
        self._clock = clock
        self._seen: deque[Sample] = deque(maxlen=KEPT + 1)
        self._commits: list[dict[str, Any]] = []
        self._head: str | None = None
        self.trouble = ""

    def look(self, ask: Ask, latest: Latest) -> None:
        """Ask once. What cannot be had is `trouble`, and what was seen before stays."""
        try:
            report = ask()
        except CaiafsError as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        kinds = {
            op: Histogram({float(edge): count for edge, count in told["buckets"]}, told["seconds"])
            for op, told in report["requests"].items()
        }
        self._seen.append(Sample(self._clock(), report, kinds, added(kinds.values())))
        head = report["stats"]["storage_stats"]["git"]["head"]
        if head != self._head or (head and not self._commits):
            self._head = head
            try:
                self._commits = latest(COMMITS)
            except CaiafsError as error:
                self.trouble = f"the history cannot be read: {error}"

    # ---- figures

    @property
    def state(self) -> str:
        """healthy, degraded, failed; silent where the last look brought nothing."""
        if not self._seen or self.trouble.startswith("the daemon"):
            return "silent"
        return str(self._seen[-1].report["health"]["state"])

    def _recent(self, end: int = -1) -> tuple[float, Histogram]:
        """Seconds and requests between the look *end* and WINDOW looks before it."""
        seen = list(self._seen)
        last = seen[end]
        first = seen[max(0, (end % len(seen)) - WINDOW)]
        return last.at - first.at, last.requests.since(first.requests if first is not last else None)

    def _rates(self) -> list[float]:
        seen = list(self._seen)
        return [b.requests.since(a.requests).count / max(b.at - a.at, 1e-9) for a, b in pairwise(seen)]

    def _figures(self, of: Callable[[Mapping[str, Any]], float]) -> list[float]:
        return [of(one.report["stats"]["storage_stats"]) for one in self._seen]

    # ---- looks

    def line(self) -> str:
        """All of it in one line, for a log or a pipe."""
        if not self._seen:
            return f"{self._mountpoint}: {self.trouble}"
        last = self._seen[-1]
        commits = last.report["stats"]["storage_stats"]["commits"]
        memory = last.report["stats"]["storage_stats"]["memory"]
        seconds, requests = self._recent()
        rate = f"{requests.count / seconds:.0f} requests/s" if seconds else f"{requests.count:.0f} requests"
        words = [
            self.trouble or self.state,
            rate,
            f"99 of 100 in {_seconds(requests.quantile(0.99))}",
            f"not in git {commits['uncommitted_changes']}",
            f"oldest {format_seconds(commits['oldest_uncommitted_seconds'])}",
            f"memory {format_bytes(memory['held_bytes'] + memory['inode_bytes'])}",
            f"{commits['count']} commits",
        ]
        return f"{self._mountpoint}: " + ", ".join(words)

    def picture(self, width: int = 80) -> RenderableType:
        """What a terminal shows."""
        if not self._seen:
            return Panel(Text(self.trouble or "asking …"), title=_plain(self._mountpoint))
        last = self._seen[-1].report
        parts: list[RenderableType] = []
        for reason in [self.trouble] if self.trouble else last["health"]["reasons"]:
            parts.append(Text(f"! {_plain(reason)}", style=_STYLES.get(self.state, "red")))
        parts += [self._table(width), Text(), *self._latest(width)]
        config = last["config"]
        title = Text.assemble(
            (_plain(self._mountpoint), "bold"), "  ",
            (f" {self.state} ", f"reverse {_STYLES.get(self.state, 'red')}"),
        )  # fmt: skip
        below = f"{_plain(config['branch'])} of {_plain(setting(config, 'repo'))}, Ctrl-C ends this"
        return Panel(Group(*parts), title=title, title_align="left", subtitle=Text(below, style="dim"))

    def _table(self, width: int) -> Table:
        last = self._seen[-1].report
        stats, config = last["stats"]["storage_stats"], last["config"]
        memory, journal, commits = stats["memory"], stats["journal"], stats["commits"]
        seconds, requests = self._recent()
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=12)
        table.add_column(ratio=1)
        room = max(10, min(KEPT, width - 44))
        rate = requests.count / seconds if seconds else 0.0
        table.add_row("requests", f"{rate:.0f}/s", _spark(self._rates(), room))
        half, most = requests.quantile(0.5), requests.quantile(0.99)
        busy = self._busiest()
        table.add_row(
            "latency", _seconds(most), Text(f"99 of 100; half in {_seconds(half)}{busy}", style="dim")
        )
        lag = self._figures(lambda found: float(found["commits"]["oldest_uncommitted_seconds"]))
        changes = commits["uncommitted_changes"]
        table.add_row(
            "not in git",
            f"{changes:,} change" + ("" if changes == 1 else "s"),
            Text(
                f"the oldest {format_seconds(lag[-1])} old" if changes else "git has everything", style="dim"
            ),
        )
        table.add_row("lag", format_seconds(lag[-1]), _spark(lag, room, least=5.0))
        used, limit = memory["held_bytes"] + memory["inode_bytes"], memory["limit_bytes"]
        table.add_row("memory", format_bytes(used), _bar(used, limit, room))
        most_journal = setting(config, "journal_max")
        table.add_row("journal", format_bytes(journal["bytes"]), _bar(journal["bytes"], most_journal, room))
        told = f"{commits['failures']} failures in a row" if commits["failures"] else "since the mount"
        table.add_row(
            "commits", f"{commits['count']:,}", Text(told, style="red" if commits["failures"] else "dim")
        )
        tiers = Text()
        for name, tier in last["health"]["backends"].items():
            tiers.append(f"{name} {tier['state']}  ", style=_STYLES.get(tier["state"], "red"))
        table.add_row("tiers", "", tiers)
        return table

    def _busiest(self) -> str:
        """Which kinds of requests there are most of now."""
        seen = list(self._seen)
        last, first = seen[-1].kinds, seen[max(0, len(seen) - 1 - WINDOW)].kinds
        counts = {op: found.since(first.get(op)).count for op, found in last.items()}
        most = sorted((op for op in counts if counts[op] > 0), key=lambda op: -counts[op])[:3]
        return f"; most: {', '.join(most)}" if most else ""

    def _latest(self, width: int) -> list[RenderableType]:
        if not self._commits:
            return [Text("no commit yet", style="dim")]
        lines: list[RenderableType] = [Text("latest commits", style="bold")]
        for one in self._commits:
            when = ago(max(0.0, time.time() - one["time"]))
            line = Text.assemble(
                (one["commit"][:9], "yellow"), " ", _plain(one["subject"]), (f"  {when}", "dim"),
                no_wrap=True, overflow="ellipsis",
            )  # fmt: skip
            lines.append(line)
            files = one["files"][:FILES]
            rest = len(one["files"]) - len(files)
            for file in files:
                mark, style = _MARKS[file["change"]]
                lines.append(
                    Text.assemble(
                        "  ", (mark, style), " ", _plain(file["path"]), no_wrap=True, overflow="ellipsis"
                    )
                )
            if rest or one["more_files"]:
                lines.append(
                    Text(f"    and {rest}{' or more' if one['more_files'] else ''} others", style="dim")
                )
        return lines


def run(mountpoint: str, ask: Ask, latest: Latest, *, every: float | None = None, count: int = 0) -> int:
    """Show the mount until Ctrl-C (or *count* looks); 1 if at the end it had failed or did not answer."""
    console = Console()
    watch = Watch(mountpoint)
    every = every or (EVERY if console.is_terminal else PLAIN_EVERY)
    screen = (
        Live(console=console, screen=True, auto_refresh=False)
        if console.is_terminal
        else contextlib.nullcontext()
    )
    looked = 0
    with _interruptible() as is_interrupted, contextlib.suppress(KeyboardInterrupt), screen as live:
        while not is_interrupted():
            begun = time.monotonic()
            watch.look(ask, latest)
            if live is not None:
                live.update(watch.picture(console.width), refresh=True)
            else:
                print(watch.line(), flush=True)
            looked += 1
            if count and looked >= count:
                break
            time.sleep(max(0.0, begun + every - time.monotonic()))
    if console.is_terminal:
        console.print(watch.picture(console.width))
    return 1 if watch.state in ("failed", "silent") else 0


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came: a KeyboardInterrupt alone is lost where it strikes a destructor or a callback."""
    came = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _spark(values: list[float], room: int, least: float = 1.0) -> Text:
    """One character a value, the last ones that have room."""
    shown = values[-room:]
    peak = max([least, *shown])
    return Text("".join(_SPARKS[min(8, round(8 * value / peak))] for value in shown), style="blue")


def _bar(used: float, limit: float, room: int) -> RenderableType:
    part = used / limit if limit else 0.0
    style = "red" if part > 0.97 else "yellow" if part > 0.85 else "blue"
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=max(limit, 1), completed=min(used, limit), width=room - 10, complete_style=style,
                    finished_style=style),
        Text(f"{part:.0%} of {format_bytes(limit)}", style="dim"),
    )  # fmt: skip
    return grid


def _seconds(value: float | None) -> str:
    return "–" if value is None else format_seconds(value)


def _plain(text: object) -> str:
    """Names of files and commits without what a terminal would obey."""
    shown = os.fsencode(str(text)).decode("utf-8", "replace") if isinstance(text, str) else str(text)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
