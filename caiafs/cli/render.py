"""How figures look to people: the status of a mount, and progress on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from caiafs.config import format_bytes, format_seconds


class ProgressLine:
    """One line on a terminal that is overwritten as work goes on, and wiped at the end; nothing elsewhere.

    Call it with done, total and a text, as a control.Progress.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, done: int, total: int, text: str) -> None:
        if not self._stream.isatty():
            return
        line = f"{text}: {done}" + (f" of {total}" if total else "")
        if total > 0:
            filled = min(20, 20 * done // total)
            line += f" [{'#' * filled}{'.' * (20 - filled)}]"
        self._stream.write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        self._stream.flush()
        self._shown = True


def status(report: Mapping[str, Any]) -> str:
    """What `caiafs status` prints for one mount: *report* holds health, stats and config, or an error."""
    if "error" in report:
        return f"{report['mountpoint']}\n  {report['error']}"
    config, health = report["config"], report["health"]
    figures: Mapping[str, Mapping[str, Any]] = report["stats"]["storage_stats"]
    memory, journal, commits = (figures.get(name, {}) for name in ("memory", "journal", "commits"))
    rows = [("health", str(health.get("state", "unknown")))]
    rows += [("", f"- {reason}") for reason in health.get("reasons", [])]
    rows += [
        ("tiers", _tiers(health.get("backends", {}), setting(config, "primary"))),
        ("not in git", _uncommitted(commits)),
        ("last commit", _last_commit(commits)),
        ("memory", _part(memory, "bytes", "limit_bytes")),
        ("journal", _part(journal, "bytes", "limit_bytes")),
        ("daemon", f"process {config.get('pid')}, state in {config.get('state_dir')}"),
    ]
    branch, repo = setting(config, "branch"), setting(config, "repo")
    head = f"{report['mountpoint']}: branch {branch} of {repo}"
    return "\n".join([head, *(f"  {name:<12} {text}" for name, text in rows if text)])


def setting(config: Mapping[str, Any], name: str) -> Any:
    """One value out of config.json: plain at the top, or {"value": …, "origin": …} under "settings"."""
    value = config.get(name, config.get("settings", {}).get(name))
    return value["value"] if isinstance(value, dict) and "value" in value else value


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
    changes = commits.get("uncommitted_changes", 0)
    if not changes:
        return "nothing"
    words = [f"{changes} change" + ("s" if changes != 1 else "")]
    if size := commits.get("uncommitted_bytes"):
        words.append(format_bytes(size))
    if oldest := commits.get("oldest_uncommitted_seconds"):
        words.append(f"the oldest {format_seconds(oldest)} old")
    return ", ".join(words)


def _last_commit(commits: Mapping[str, Any]) -> str:
    last = commits.get("last_commit")
    if not last:
        return "none by this mount"
    if not isinstance(last, dict):
        return str(last)
    words = str(last.get("id", ""))[:12]
    if isinstance(when := last.get("time"), (int, float)):
        words += f" {ago(time.time() - when)}"
    return words + (f": {last['subject']}" if last.get("subject") else "")


def _part(figures: Mapping[str, Any], used: str, limit: str) -> str:
    if used not in figures:
        return ""
    words = format_bytes(figures[used])
    if figures.get(limit):
        words += f" of {format_bytes(figures[limit])} ({figures[used] / figures[limit]:.0%})"
    return words
