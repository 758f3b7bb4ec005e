"""What a mount says of itself: the contents of `.stats`, and what `caiafs status` renders.

Only puts together what the parts count themselves; see their `statistics()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import trio

from ..committer.schedule import Committer
from ..config import Config, format_bytes
from ..filesystem import Filesystem
from ..metrics import Metrics
from ..operations import Operations
from ..records import NO_OID
from ..virtual import VirtualFile, render_json


class Http(Protocol):
    """Where HTTP is served, and which file has its token (never the token)."""

    url: str
    token_file: str


class Unfit(NamedTuple):
    """The key of a remark: entries of the directory *ino* that cannot be shown."""

    ino: int


class Report:
    """Renders one mount's figures, true at the moment they are asked for."""

    def __init__(
        self, config: Config, branch: bytes, state_dir: Callable[[], str], fs: Filesystem,
        committer: Committer, metrics: Metrics, operations: Operations | None = None,
    ) -> None:  # fmt: skip
        self._config = config
        self._branch = branch
        self._state_dir = state_dir
        self._fs = fs
        self._committer = committer
        self._metrics = metrics
        self.operations = operations
        self.http: Http | None = None
        for name, source in (
            ("caiafs_memory_bytes", self._memory_by_kind),
            ("caiafs_memory_limit_bytes", lambda: fs.memory.limit),
            ("caiafs_journal_bytes", lambda: fs.journal.size),
            ("caiafs_uncommitted_changes", lambda: fs.statistics()["uncommitted_changes"]),
            ("caiafs_oldest_uncommitted_seconds", self.oldest_uncommitted),
            ("caiafs_health_state", self.state),
        ):
            metrics.gauge_source(name, source)

    def reconfigure(self, config: Config) -> None:
        """Show *config* as what is in force."""
        self._config = config

    def files(self) -> dict[bytes, VirtualFile]:
        """The files of `.stats`."""
        return {
            b"health.json": VirtualFile(lambda: render_json(self.health())),
            b"stats.json": VirtualFile(lambda: render_json(self.stats())),
            b"metrics.json": VirtualFile(lambda: render_json(self._metrics.summary()), self._metrics.clear),
            b"config.json": VirtualFile(lambda: render_json(self.config())),
            b"caiafs.prom": VirtualFile(self._metrics.exposition),
        }

    # ---- health

    def state(self) -> str:
        """healthy, degraded (a tier has trouble) or failed (a change would be refused)."""
        self._look()
        return self._fs.health.state

    def health(self) -> dict[str, Any]:
        """health.json."""
        self._look()
        found = self._fs.health.describe()
        found["backends"]["memory"]["over_budget_bytes"] = self._fs.memory.over
        return found

    def _look(self) -> None:
        """What can be seen at any moment is looked at when it is asked for."""
        memory, journal, git = self._fs.health.tiers
        if self._fs.memory.over:
            memory.note("over", f"{format_bytes(self._fs.memory.over)} above its budget")
        else:
            memory.forget("over")
        for path in self._fs.journal.set_aside:
            journal.note(path, f"bytes were set aside in {path}")
        for key in [key for key in git.notes if isinstance(key, Unfit) and key.ino not in self._fs.unfit]:
            git.forget(key)
        for ino, text in self._fs.unfit.items():
            git.note(Unfit(ino), text)

    def status_line(self) -> str:
        """Health and what git does not have, for the one line of a service manager."""
        changes = self._fs.statistics()["uncommitted_changes"]
        counted = f"{changes} change{'s' * (changes != 1)} not yet in git" if changes else "all is in git"
        state = self.state()
        closed = " (read-only)" if self._config.ro else ""
        reasons = "".join(f"; {reason}" for reason in self._fs.health.reasons)
        return f"{state}{closed}: {counted}{reasons}"

    def is_quiet(self) -> bool:
        """Git has everything and nothing is wrong: the status line stays until something happens.

        What a commit took is not in git yet, though no change waits any more.
        """
        return not self._fs.statistics()["uncommitted_changes"] and self.state() == "healthy"

    # ---- figures

    def stats(self) -> dict[str, Any]:
        """stats.json."""
        fs, committer = self._fs, self._committer
        counted = fs.statistics()
        uncommitted_bytes = fs.journal.size if counted["uncommitted_changes"] else 0
        return {
            "storage_stats": {
                "config": {
                    "primary": self._config.primary,
                    "enable_fallback": self._config.enable_fallback,
                    "branch": os.fsdecode(self._branch),
                    "repository": self._config.repo,
                    "mountpoint": self._config.mountpoint,
                },
                "memory": {**fs.memory.statistics(), "inodes": counted["inodes"],
                           "loaded_directories": counted["loaded_directories"]},
                "journal": {**fs.journal.statistics(), "replayed_records": counted["replayed_records"]},
                "git": {
                    "head": _hex(committer.head),
                    "branch_at": _hex(committer.landed),
                    "side": _hex(committer.side),
                    "trouble": committer.trouble,
                },
                "commits": {
                    "count": committer.commits,
                    "failures": committer.health.failures_ever,
                    "uncommitted_changes": counted["uncommitted_changes"],
                    "uncommitted_bytes": uncommitted_bytes,
                    "oldest_uncommitted_seconds": round(self.oldest_uncommitted(), 3),
                    "last_commit": _hex(committer.head),
                    "last_commit_at": committer.last_commit_at,
                    "last_subject": committer.last_subject,
                },
                **({"requests": self.operations.statistics()} if self.operations is not None else {}),
            }
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        """config.json: what is in force, and how to reach the daemon."""
        return {
            "pid": os.getpid(),
            "state_dir": self._state_dir(),
            "branch": os.fsdecode(self._branch),
            "http": None if self.http is None else {"url": self.http.url, "token_file": self.http.token_file},
            "settings": self._config.describe(),
        }

    def status(self) -> dict[str, Any]:
        """All of it, as `caiafs status` wants it."""
        return {"health": self.health(), "stats": self.stats(), "config": self.config()}

    def oldest_uncommitted(self) -> float:
        """Seconds since the first change that git does not have; 0 when git has everything."""
        since = self._committer.oldest_change
        return 0.0 if since is None else max(0.0, trio.current_time() - since)

    def _memory_by_kind(self) -> dict[str, float]:
        figures = self._fs.memory.statistics()
        return {"data": figures["held_bytes"], "inodes": figures["inode_bytes"]}


def _hex(oid: bytes | None) -> str | None:
    return None if oid is None or oid == NO_OID else oid.hex()
