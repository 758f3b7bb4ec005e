"""A directory that passes for a caiafs mount, for tests of the commands that ask one."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from caiafs import control
from caiafs.config import Config
from caiafs.control.client import Progress
from caiafs.errors import CaiafsError

HEALTH = {"healthy": True, "state": "healthy", "reasons": [], "backends": {"memory": {"state": "healthy"}}}
STATS = {
    "storage_stats": {
        "config": {},
        "memory": {"held_bytes": 11 << 20, "inode_bytes": 1 << 20, "limit_bytes": 256 << 20},
        "journal": {"bytes": 44 << 10},
        "git": {},
        "commits": {
            "uncommitted_changes": 3,
            "uncommitted_bytes": 12288,
            "oldest_uncommitted_seconds": 4.2,
            "last_commit": "4f1c" * 10,
            "last_commit_at": None,
            "last_subject": "Add a.txt",
        },
    }
}


COMMANDS = ("commit", "sync", "status", "drain", "reload", "remount", "leave")


class FakeMount:
    """A directory that passes for a caiafs mount, and a daemon behind its socket."""

    def __init__(self, base: Path) -> None:
        self.path = base / "m"
        self.state = base / "state"
        (self.path / ".stats").mkdir(parents=True)
        self.state.mkdir(mode=0o700)
        self.config = {
            "state_dir": str(self.state),
            "pid": os.getpid(),
            "branch": "main",
            "settings": Config("/srv/r.git", str(self.path)).describe(),
        }
        self.write("config", self.config)
        self.write("health", HEALTH)
        self.write("stats", STATS)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.problem: CaiafsError | None = None
        self.commit: str | None = "4f1c" * 10
        self.changes = 3
        self.mount = control.Mount(str(self.path), control.FSTYPE, "/srv/r.git", "rw", "0:9")

    def write(self, name: str, value: object) -> None:
        (self.path / ".stats" / f"{name}.json").write_text(json.dumps(value))

    async def answer(self, command: str, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        self.asked.append((command, arguments))
        if self.problem is not None:
            raise self.problem
        if command == "status":
            return {"health": HEALTH, "stats": STATS, "config": self.config}
        answers: dict[str, dict[str, Any]] = {
            "sync": {"position": 9},
            "reload": {"said": "reloaded: nothing has changed", "changed": [], "kept": []},
            "remount": {},
            "leave": {},
        }
        return answers.get(command, {"commit": self.commit, "changes": self.changes})

    def serve(self, listening: threading.Event, stop: list[Callable[[], None]]) -> None:
        async def main() -> None:
            token = trio.lowlevel.current_trio_token()
            handlers = {name: functools.partial(self.answer, name) for name in COMMANDS}
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(control.serve, str(self.state), handlers))
                stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
                listening.set()

        trio.run(main)
