"""The floors: a directory on disk or tmpfs, the same with git after each piece of work, a bare pyfuse3."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata

from .base import Peer, Unavailable


class Plain(Peer):
    """A directory of the filesystem that others sit on."""

    package = "the kernel's"


class PlainWithGit(Plain):
    """What a user does today: a directory, and `git add -A && git commit` when something is done."""


class MemFs(Peer):
    """memfs.py: what pyfuse3 and trio cost when there is nothing behind them."""

    package = "memfs.py, about a hundred lines"

    def start(self) -> None:
        super().start()
        if importlib.util.find_spec("pyfuse3") is None:
            raise Unavailable("pyfuse3 is not installed")
        self.spawn([sys.executable, "-m", "bench.peers.memfs", self.place / "m"], self.place / "m")

    def version(self) -> str:
        return metadata.version("pyfuse3")
