"""What /proc tells of processes: CPU time, memory, bytes written, descriptors. Linux only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """*pid* and all that descend from it; empty if it is gone."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found, queue = [], [pid] if os.path.exists(f"/proc/{pid}") else []
    while queue:
        found.append(queue.pop())
        queue += parents.get(found[-1], [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these have used so far, their waited-for children included."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def ran_ns(pid: int) -> int:
    """Nanoseconds that the threads of *pid*, those that still exist, have been on a processor."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except OSError:
            continue
    return total


def written_bytes(pids: Iterable[int]) -> int:
    """Bytes that these have caused to be written to disk."""
    return sum(_field(Path(f"/proc/{pid}/io"), "write_bytes") for pid in pids)


def wakeups(pids: Iterable[int]) -> int:
    """How often these have gone to sleep and been woken: what idling costs a battery."""
    return sum(
        _field(path, "voluntary_ctxt_switches")
        for pid in pids
        for path in Path(f"/proc/{pid}/task").glob("*/status")
    )


def pss(pids: Iterable[int]) -> int:
    """Resident bytes, shared pages counted once. Walks the page tables: not for tight loops."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") * 1024 for pid in pids)


def anonymous(pids: Iterable[int]) -> int:
    """Bytes that are no file's: what counts against a budget whatever is mapped beside it."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Anonymous") * 1024 for pid in pids)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _field(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass  # it ended meanwhile
    return 0


class Watch:
    """The most memory that a process and its children have had while a block ran.

    PSS is looked at *every* seconds; `peak` and `last` are bytes.
    """

    def __init__(self, pid: int, every: float = 0.5) -> None:
        self._pid = pid
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak = 0
        self.last = 0

    def _run(self) -> None:
        while True:
            self.look()
            if self._over.wait(self._every):
                return

    def look(self) -> int:
        self.last = pss(children(self._pid))
        self.peak = max(self.peak, self.last)
        return self.last

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()


def settle(pid: int, patience: float = 5.0, calm: float = 0.02) -> float:
    """Wait until *pid* and its children use next to no processor time; seconds, *patience* at most."""
    begun = time.monotonic()
    while True:
        pids = children(pid)
        before = sum(map(ran_ns, pids))
        looked = time.monotonic()
        time.sleep(calm)
        share = (sum(map(ran_ns, pids)) - before) / 1e9 / (time.monotonic() - looked)
        waited = time.monotonic() - begun
        if share < 0.05 or waited > patience:
            return waited
