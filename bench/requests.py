"""What a piece of work costs beside time: requests that the kernel sends, processor time of the daemon.

Round trips decide, on any machine; processor time says how much of a wait is work.

caiafs counts every request that it answers (caiafs_fuse_request_seconds_count in `.stats/caiafs.prom`).
Reading that file is itself a few requests; they are measured once and taken off.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from caiafs.control import client

from . import processes

_COUNT = re.compile(rb'^caiafs_fuse_request_seconds_count\{op="(\w+)"\} ([\d.e+]+)$', re.MULTILINE)
CALM = 0.01
"""Seconds for what the kernel sends without waiting for it (RELEASE) to arrive."""


def counts(path: str) -> dict[str, int]:
    """Requests answered since the mount, by kind."""
    with open(path, "rb") as stream:
        return {name.decode(): int(float(count)) for name, count in _COUNT.findall(stream.read())}


def difference(later: dict[str, int], earlier: dict[str, int]) -> dict[str, int]:
    return {
        name: count - earlier.get(name, 0) for name, count in later.items() if count != earlier.get(name, 0)
    }


class Meter:
    """Marks the part of a work that is measured.

    *path* is caiafs' metrics file, or None for a peer; *pid* the daemon's, or None without one. A daemon
    that is *profiled* is told to begin and to end with that (see profiled.py).
    """

    def __init__(self, path: str | None, pid: int | None = None, profiled: bool = False) -> None:
        self._path = path
        self._pid = pid
        self._profiled = profiled
        self._ran = 0
        self._daemon: dict[str, float] = {}
        self._before: dict[str, int] = {}
        self._found: dict[str, float] = {}

    def begin(self) -> None:
        if self._path is not None:
            time.sleep(CALM)
            self._before = counts(self._path)
        if self._pid is not None:
            if self._profiled:
                os.kill(self._pid, signal.SIGUSR1)
            self._ran = processes.ran_ns(self._pid)

    def end(self, operations: int) -> None:
        """*operations* were done since begin()."""
        if self._pid is not None and operations:
            self._daemon = {"daemon_us": (processes.ran_ns(self._pid) - self._ran) / operations / 1000}
            if self._profiled:
                os.kill(self._pid, signal.SIGUSR2)
        if self._path is not None and operations:
            time.sleep(CALM)
            after = counts(self._path)
            time.sleep(CALM)
            own = difference(counts(self._path), after)
            found = difference(after, self._before)
            for name in found:
                net = found[name] - own.get(name, 0)
                if net > 0:
                    self._found[name] = round(net / operations, 3)

    def settle(self) -> float:
        """Between two steps: caiafs has committed what there is. Seconds that took."""
        if self._path is None:
            return 0.0
        begun = time.perf_counter()
        client.call(str(Path(self._path).parent.parent), "commit", timeout=300)
        return time.perf_counter() - begun

    def figures(self) -> dict[str, Any]:
        return self._daemon | ({"requests": self._found} if self._path is not None else {})
