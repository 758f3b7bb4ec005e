"""Processes a test starts, looked at through /proc and ended by pid only.

A pid alone can be reused, so a process is remembered with its start time. `Guard` is the way out
of a test that hangs in a system call: only the end of the daemon releases such a call, and the
test itself, being stuck, cannot end it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process, for as long as it is the same one."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    def alive(self) -> bool:
        fields = _stat(self.pid)
        return bool(fields) and int(fields[19]) == self.started and fields[0] not in "ZX"

    def children(self) -> list[Process]:
        """Every living descendant."""
        found: list[Process] = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            try:
                pids = task.read_text().split()
            except OSError:
                continue
            for pid in pids:
                if child := Process.of(int(pid)):
                    found += [child, *child.children()]
        return found

    def cpu_ticks(self) -> int:
        """User and system time so far, in clock ticks."""
        fields = _stat(self.pid)
        return int(fields[11]) + int(fields[12]) if fields else 0

    def peak_memory(self) -> int:
        """The most memory ever resident (VmHWM), in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def catches(self, number: int) -> bool:
        """Whether it has a handler for this signal, which would end it otherwise."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        (mask,) = (int(line.split()[1], 16) for line in text.splitlines() if line.startswith("SigCgt:"))
        return bool(mask >> (number - 1) & 1)

    def describe(self) -> str:
        try:
            words = (
                Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            words = "(gone)"
        return f"{self.pid} {words.strip()}"

    def end(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name; empty for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def wait_gone(processes: Iterable[Process], timeout: float = 5) -> list[Process]:
    """Waits for processes to end; gives back those that did not."""
    deadline = time.monotonic() + timeout
    left = list(processes)
    while left := [process for process in left if process.alive()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


class Guard:
    """A child that kills the watched daemons once no test has reported for *seconds*.

    It is told over a pipe (+PID, -PID, a number of seconds to wait from now on) and ends with it.
    """

    PROGRAM = """
import os, select, signal, sys
watched, limit, buffer = set(), None, b""
while True:
    ready, _, _ = select.select([0], [], [], limit if watched else None)
    if not ready:
        for pid in watched:
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
        watched.clear()
        continue
    data = os.read(0, 65536)
    if not data: break
    *lines, buffer = (buffer + data).split(b"\\n")
    for line in lines:
        if line[:1] == b"+": watched.add(int(line[1:]))
        elif line[:1] == b"-": watched.discard(int(line[1:]))
        else: limit = float(line)
"""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._limit = 100.0

    def _tell(self, line: str) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()

    def watch(self, pid: int) -> None:
        if self._child is None:
            self._child = subprocess.Popen([sys.executable, "-S", "-c", self.PROGRAM], stdin=subprocess.PIPE)
            self.arm(self._limit)
        self._tell(f"+{pid}")

    def release(self, pid: int) -> None:
        self._tell(f"-{pid}")

    def arm(self, seconds: float) -> None:
        self._limit = seconds
        self._tell(f"{seconds}")

    def close(self) -> None:
        if self._child is not None:
            self._child.communicate(timeout=10)
            self._child = None


GUARD = Guard()
