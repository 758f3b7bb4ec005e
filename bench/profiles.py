"""Where the time of one case goes: how much of it the daemon computes, and in which functions.

Only looked at after the rounds, in a mount of its own: a profiler costs several times what it measures, so
shares count here, and times do not.
"""

from __future__ import annotations

import os
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Case
from .peers.caiafs import Caiafs

TOP = 14
Ask = Callable[[dict[str, Any], float], dict[str, Any]]
IDLE = ("'poll'", "select.epoll", "acquire")


def take(case: Case, place: Path, ask: Ask) -> list[str]:
    """The profile of *case* in lines; *ask* carries out an order of the session's driver."""
    plain = _run(case, place / f"p-{case.key}", ask, None)
    slowed = place / f"{case.key}.prof"
    _run(case, place / f"q-{case.key}", ask, slowed)
    waited = plain.get("mean_us") or 1e6 / plain["mibs"]
    lines = [
        f"{waited:.0f} µs were waited for each operation on average; the daemon's processor time in them was "
        f"{plain['daemon_us']:.0f} µs"
    ]
    return lines + _functions(slowed)


def _run(case: Case, place: Path, ask: Ask, profile: Path | None) -> dict[str, float]:
    """One run of a case in a fresh mount, and its figures."""
    peer = Caiafs("caiafs/disk", "disk", place, "commit_quiet=1h", "commit_interval=1d")
    peer.profile = profile
    peer.start()
    try:
        order = {
            "work": case.work, "room": os.fspath(peer.room / "room"), "stats": None,
            "arguments": {**(case.arguments(False) or {}), "seconds": 2.0},
            "pid": peer.pid, "profiled": profile is not None,
        }  # fmt: skip
        answer = ask(order, case.limit)
    finally:
        peer.stop()
    if "error" in answer:
        raise OSError(answer["error"])
    figures: dict[str, float] = answer["figures"]
    return figures


def _functions(path: Path) -> list[str]:
    stats = pstats.Stats(os.fspath(path))
    entries = [
        (own, calls, where)
        for where, (_, calls, own, _, _) in stats.stats.items()  # type: ignore[attr-defined]
        if not any(word in where[2] for word in IDLE)
    ]
    total = sum(own for own, _, _ in entries)
    lines = []
    for own, calls, (file, line, name) in sorted(entries, reverse=True)[:TOP]:
        lines.append(f"{own / total:5.1%}  {calls:8d} calls  {_shown(file, line, name)}")
    return lines


def _shown(file: str, line: int, name: str) -> str:
    if file == "~":
        return name.strip("<>")
    parts = Path(file).parts
    for mark in ("site-packages", "caiafs"):
        if mark in parts:
            parts = parts[len(parts) - 1 - parts[::-1].index(mark) + (mark == "site-packages") :]
            break
    else:
        parts = parts[-1:]
    return f"{'/'.join(parts)}:{line} {name}"
