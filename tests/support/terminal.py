"""A program on a terminal of its own, and what it wrote there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import pytest


class Terminal:
    """*words* on a terminal of *columns* by 30, ended with the block."""

    def __init__(self, *words: str, env: Mapping[str, str], columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 30, columns, 0, 0))
        self._process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**env, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}, cwd="/",
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def wait(self, words: str, timeout: float = 40) -> None:
        """Until *words* were written."""
        deadline = time.monotonic() + timeout
        while words not in self.text:
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"{words!r} was not written: {self.text[-3000:]!r}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self, timeout: float = 40) -> int:
        """Waits for its end; its exit status."""
        deadline = time.monotonic() + timeout
        while self._read():
            if time.monotonic() > deadline:
                pytest.fail(f"it did not end: {self.text[-3000:]!r}")
        return self._process.wait(10)

    def _read(self) -> bool:
        """Take what is there within a moment; False when all of it was read and it has ended."""
        ready, _, _ = select.select([self._master], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False  # EIO: nobody has the other end any more
        self.text += data.decode("utf-8", "replace")
        return bool(data)
