"""What every peer has: a place, a process or none, a directory to work in, and an end that always works."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench import processes

BASES = ("disk", "tmpfs")
"""What a peer's own files are on: a disk's filesystem, and tmpfs."""
START_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0
"""Seconds after an unmount: a daemon lives on while another mount namespace has a copy of its mount."""
SOURCE = Path(__file__).resolve().parents[2]

Words = list[str | os.PathLike[str]]

GIT_SETTINGS = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "A Person",
    "GIT_AUTHOR_EMAIL": "person@example.org",
    "GIT_COMMITTER_NAME": "A Person",
    "GIT_COMMITTER_EMAIL": "person@example.org",
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "init.defaultBranch",
    "GIT_CONFIG_VALUE_1": "main",
    "GIT_CONFIG_KEY_2": "gc.auto",
    "GIT_CONFIG_VALUE_2": "0",
}


def environment(**extra: str) -> dict[str, str]:
    """For every program that is run: no settings of the person who measures."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "VIRTUAL_ENV") if name in os.environ}
    return {
        **kept, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "PYTHONPATH": os.fspath(SOURCE),
        **GIT_SETTINGS, **extra,
    }  # fmt: skip


class Unavailable(Exception):
    """This peer cannot take part; the text says why, and is shown instead of figures."""


class Peer:
    """One filesystem. *place* holds all it needs; `room` is where the work goes."""

    program = ""
    """What has to be on PATH."""
    package = ""
    """Debian's name for it."""
    shows_requests = False

    def __init__(self, key: str, base: str, place: Path) -> None:
        self.key = key
        self.base = base
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.mountpoint: Path | None = None

    # For subclasses.

    def start(self) -> None:
        """Be ready to work; raises Unavailable."""
        self.place.mkdir(parents=True, exist_ok=True)

    @property
    def room(self) -> Path:
        return self.mountpoint or self.place

    @property
    def stats(self) -> Path | None:
        """caiafs' file of metrics."""
        return None

    def version(self) -> str:
        return ""

    def settle(self) -> float:
        """Wait for what it does after it has answered; seconds that took."""
        return processes.settle(self.process.pid) if self.process is not None else 0.0

    def stop(self) -> None:
        """Unmount, end, and be gone; by force where it does not go by itself."""
        if self.mountpoint is not None and is_mounted(self.mountpoint):
            unmount(self.mountpoint)
        self.end()

    # For all.

    def require(self) -> None:
        if self.program and shutil.which(self.program) is None:
            raise Unavailable(f"{self.program} is not installed (Debian's package {self.package})")

    def spawn(self, words: Sequence[str | os.PathLike[str]], mountpoint: Path) -> None:
        """Start the daemon in the foreground, and wait until something is mounted at *mountpoint*."""
        mountpoint.mkdir(parents=True, exist_ok=True)
        log = self.place / "log"
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [os.fspath(word) for word in words], stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream, env=environment(), cwd="/",
            )  # fmt: skip
        self.mountpoint = mountpoint
        deadline = time.monotonic() + START_TIMEOUT
        while not is_mounted(mountpoint):
            if self.process.poll() is not None:
                raise Unavailable(f"ended with {self.process.returncode} before it served: {_tail(log)}")
            if time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"did not mount within {START_TIMEOUT:g} s: {_tail(log)}")
            time.sleep(0.005)

    def end(self) -> None:
        """The daemon and all that it started are gone afterwards."""
        process, self.process = self.process, None
        if process is None:
            return
        family = processes.children(process.pid)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            kill(family)
            process.wait()

    def abort(self) -> None:
        """End a filesystem that hangs, so that whoever waits for it is let go."""
        if self.process is not None:
            kill(processes.children(self.process.pid))
            self.process.wait()
            self.process = None
        if self.mountpoint is not None and is_mounted(self.mountpoint):
            unmount(self.mountpoint, lazily=True)


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def mounts_below(path: Path) -> list[Path]:
    """What is mounted at or below *path*, the youngest first; touches none of it."""
    wanted = os.fsencode(path)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        where = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])
        if where == wanted or where.startswith(wanted + b"/"):
            found.append(Path(os.fsdecode(where)))
    return found[::-1]


def is_mounted(path: Path) -> bool:
    return path in mounts_below(path)


def unmount(path: Path, lazily: bool = False) -> None:
    """fusermount3 -u, again while it is busy for a moment, then lazily."""
    deadline = time.monotonic() + 10
    while not lazily:
        if subprocess.run(["fusermount3", "-u", path], capture_output=True).returncode == 0:
            return
        if not is_mounted(path):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    subprocess.run(["fusermount3", "-uz", path], capture_output=True)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return " / ".join(line.strip() for line in lines if line.strip())[-400:] or "it said nothing"
