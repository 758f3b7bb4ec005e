"""caiafs as a person would mount it, and what only it can be asked for: commits, its processes, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import caiafs
from bench import processes
from caiafs.committer.schedule import TIDY_QUIET
from caiafs.control import client
from caiafs.store import Store
from caiafs.store.repack import PACKS_BEFORE

from .base import Peer, Unavailable, Words, environment, is_mounted, unmount

COMMIT_TIMEOUT = 300.0


class Caiafs(Peer):
    """A bare repository `r.git` on the base, mounted at `m` with the default options and *options*."""

    shows_requests = True

    def __init__(
        self, key: str, base: str, place: Path, *options: str, repository: Path | None = None
    ) -> None:
        super().__init__(key, base, place)
        self.options = list(options)
        self.repository = repository or place / "r.git"
        self.profile: Path | None = None

    def start(self) -> None:
        super().start()
        options = [*self.options, *([] if self.repository.exists() else ["init"])]
        start = ["caiafs"] if self.profile is None else ["bench.profiled", os.fspath(self.profile)]
        words: Words = [
            sys.executable,
            "-m",
            *start,
            "mount",
            "-f",
            "-o",
            ",".join([*options, "log_level=warning"]),
        ]
        self.spawn([*words, self.repository, self.place / "m"], self.place / "m")
        deadline = time.monotonic() + 30
        while not self.serves():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("it mounted and does not serve: " + (self.place / "log").read_text()[-400:])
            time.sleep(0.002)

    def serves(self) -> bool:
        try:
            return os.stat(self.place / "m").st_dev != os.stat(self.place).st_dev
        except OSError:
            return False

    @property
    def stats(self) -> Path | None:
        return self.mountpoint / ".stats" / "caiafs.prom" if self.mountpoint else None

    def version(self) -> str:
        return caiafs.__version__

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def family(self) -> list[int]:
        """The daemon and its worker."""
        return processes.children(self.pid)

    def settle(self) -> float:
        """Everything so far is in git, packs are joined if there were many, and nothing runs any more."""
        begun = time.monotonic()
        if self.process is not None and self.process.poll() is None:
            self.commit()
            if self._packs() > PACKS_BEFORE:
                time.sleep(TIDY_QUIET + 0.2)
            processes.settle(self.pid, patience=20)
        return time.monotonic() - begun

    def _packs(self) -> int:
        with Store.open(os.fspath(self.repository)) as store:
            return store.pack_count()

    def commit(self) -> dict[str, Any]:
        """A durable commit of all there is, asked for over the socket as the command does."""
        assert self.mountpoint is not None
        return client.call(os.fspath(self.mountpoint), "commit", timeout=COMMIT_TIMEOUT)

    def remount(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        """A drained unmount, by the command."""
        if self.process is not None and self.process.poll() is None and self.mountpoint is not None:
            words: Words = [sys.executable, "-m", "caiafs", "umount", self.mountpoint]
            try:
                subprocess.run(words, env=environment(), cwd="/", capture_output=True, timeout=300)
            except subprocess.TimeoutExpired:
                self.abort()
        super().stop()

    def kill(self) -> None:
        """kill -9: what is in the journal stays there."""
        assert self.process is not None
        assert self.mountpoint is not None
        family = self.family()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
        if is_mounted(self.mountpoint):
            unmount(self.mountpoint, lazily=True)
        while any(os.path.exists(f"/proc/{pid}") for pid in family):
            time.sleep(0.01)
