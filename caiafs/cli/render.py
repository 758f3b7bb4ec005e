"""How figures look to people: the status of a mount, and progress on a terminal."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from caiafs.config import format_bytes, format_seconds

FIRST_DRAWN, DRAW_EVERY = 0.3, 0.1
"""Seconds before a bar is drawn, since what is over at once needs none, and between two of them."""
FIRST_LINE, LINE_EVERY = 5.0, 15.0
"""The same for plain lines, where nobody watches a terminal."""
_WIDTH = 24


class ProgressLine:
    """A bar on a terminal, drawn over and over and wiped at the end; elsewhere a plain line now and then.

    Call it with done, total (0: nobody knows) and a text, as a control.Progress.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._fine = "utf" in (getattr(self._stream, "encoding", "") or "").lower()
        self._due = clock() + (FIRST_DRAWN if self._is_terminal else FIRST_LINE)
        self._text = ""
        self._begun = clock()
        self._shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Make room for a line of something else."""
        if self._shown and self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def __call__(self, done: int, total: int, text: str) -> None:
        now = self._clock()
        if text != self._text:
            self._text, self._begun = text, now
        if now < self._due:
            return
        line = f"{text}: {done:,}" + (f" of {total:,}" if total > 0 else "") if done or total else text
        if self._is_terminal:
            self._due = now + DRAW_EVERY
            line = self._bar(done, total, line, now - self._begun)
            self._stream.write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        else:
            self._due = now + LINE_EVERY
            self._stream.write(f"caiafs: {line}\n")
        self._stream.flush()
        self._shown = True

    def _bar(self, done: int, total: int, line: str, seconds: float) -> str:
        if total <= 0:
            return f"{line} ({format_seconds(round(seconds))})"
        full, empty = ("━", "─") if self._fine else ("#", ".")
        filled = min(_WIDTH, _WIDTH * done // total)
        left = seconds * (total - done) / done if done > 0 else 0.0
        rest = f", {format_seconds(round(left))} left" if left >= 1.5 else ""
        return f"{full * filled}{empty * (_WIDTH - filled)} {done / total:4.0%}  {line}{rest}"


@contextlib.contextmanager
def watched(step: Callable[[], tuple[int, int, str]]) -> Iterator[None]:
    """Show what *step* tells while the block runs, which may be busy: a thread asks."""
    over = threading.Event()

    def show() -> None:
        with ProgressLine() as line:
            while not over.wait(DRAW_EVERY):
                line(*step())

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def status(report: Mapping[str, Any]) -> str:
    """What `caiafs status` prints for one mount: *report* holds health, stats and config, or an error."""
    if "error" in report:
        return f"{report['mountpoint']}\n  {report['error']}"
    config, health = report["config"], report["health"]
    figures: Mapping[str, Mapping[str, Any]] = report["stats"]["storage_stats"]
    memory, journal, commits = figures["memory"], figures["journal"], figures["commits"]
    rows = [("health", str(health.get("state", "unknown")))]
    rows += [("", f"- {reason}") for reason in health.get("reasons", [])]
    rows += [
        ("tiers", _tiers(health.get("backends", {}), setting(config, "primary"))),
        ("not in git", _uncommitted(commits)),
        ("last commit", _last_commit(commits)),
        ("memory", _part(memory["held_bytes"] + memory["inode_bytes"], memory["limit_bytes"])),
        ("journal", _part(journal["bytes"], setting(config, "journal_max"))),
        ("http", _http(config.get("http"))),
        ("daemon", f"process {config['pid']}, state in {config['state_dir']}"),
    ]
    head = f"{report['mountpoint']}: branch {config['branch']} of {setting(config, 'repo')}"
    if setting(config, "ro"):
        head += ", read-only"
    return "\n".join([head, *(f"  {name:<12} {text}" for name, text in rows if text)])


def setting(config: Mapping[str, Any], name: str) -> Any:
    """One value out of config.json, where each is {"value": …, "origin": …} under "settings"."""
    return config["settings"][name]["value"]


def ago(seconds: float) -> str:
    """How long something is past, in words."""
    return "just now" if seconds < 1 else f"{format_seconds(round(seconds))} ago"


def _tiers(backends: Mapping[str, Any], primary: object) -> str:
    words = []
    for name, backend in backends.items():
        state = backend.get("state", "?") if isinstance(backend, dict) else backend
        words.append(f"{name} {state}" + (" (primary)" if name == primary else ""))
    return ", ".join(words)


def _uncommitted(commits: Mapping[str, Any]) -> str:
    changes = commits["uncommitted_changes"]
    if not changes:
        return "nothing"
    words = [f"{changes} change" + ("s" if changes != 1 else ""), format_bytes(commits["uncommitted_bytes"])]
    if oldest := commits["oldest_uncommitted_seconds"]:
        words.append(f"the oldest {format_seconds(oldest)} old")
    return ", ".join(words)


def _last_commit(commits: Mapping[str, Any]) -> str:
    if not commits["last_commit"]:
        return "none yet"
    words: str = commits["last_commit"][:12]
    if commits["last_commit_at"]:
        words += f", {ago(time.time() - commits['last_commit_at'])}"
    return words + (f": {commits['last_subject']}" if commits["last_subject"] else "")


def _http(http: Mapping[str, str] | None) -> str:
    return f"{http['url']}, its token is in {http['token_file']}" if http else ""


def _part(used: int, limit: int) -> str:
    return f"{format_bytes(used)} of {format_bytes(limit)} ({used / limit:.0%})"
