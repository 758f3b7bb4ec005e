"""What is measured: which work, on which peers, how much of it in the quick form and in the full one.

A `Case` names a function of `work/`. Its figures come per peer and round; `metric` is the one that tables,
charts and goals are about. A case without peers of its own compares things that it starts itself
("contestants" in its figures): a commit by git, a mount of a million files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNITS = {
    "us": "µs", "p99_us": "µs", "max_us": "µs", "mibs": "MiB/s", "s": "s", "ms": "ms", "files_per_s": "/s",
    "mib": "MiB", "bytes": "bytes", "ratio": "×", "percent": "%",
}  # fmt: skip

OVERLAYS = ("bindfs", "mergerfs", "gocryptfs", "rclone")
BOTH = ("disk", "tmpfs")


def _on(kinds: tuple[str, ...], bases: tuple[str, ...] = BOTH) -> tuple[str, ...]:
    return tuple(f"{kind}/{base}" for kind in kinds for base in bases)


EVERYONE = (*_on(("caiafs", "plain", *OVERLAYS)), "memfs/tmpfs", "gitfs/disk")
LARGE = (*_on(("caiafs", "plain", *OVERLAYS)), "memfs/tmpfs")  # gitfs hangs on large writes
SYNCING = (*_on(("caiafs", "plain", "bindfs", "gocryptfs"), ("disk",)), "caiafs/tmpfs")
PROGRAMS = (
    *_on(("caiafs", "plain", "bindfs")), "mergerfs/disk", "gocryptfs/disk", "memfs/tmpfs", "plain+git/disk",
)  # fmt: skip
PROGRAMS_ALONE = tuple(key for key in PROGRAMS if key != "plain+git/disk")

QUICK_PEERS = frozenset(
    ("caiafs/disk", "caiafs/tmpfs", "plain/disk", "plain/tmpfs", "bindfs/disk", "bindfs/tmpfs",
     "mergerfs/tmpfs", "memfs/tmpfs", "plain+git/disk")
)  # fmt: skip
"""The others take part in the full form only."""


@dataclass(frozen=True)
class Case:
    """One row of figures."""

    key: str
    title: str
    work: str
    metric: str
    peers: tuple[str, ...]
    quick: dict[str, Any] | None
    """Arguments of the quick form; None where it leaves the case out."""
    full: dict[str, Any]
    group: str = "files"
    rounds: tuple[int, int] = (3, 5)
    """Rounds of the quick form and of the full one, at most."""
    limit: float = 60.0
    """Seconds after which a run counts as hung."""
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def more_is_better(self) -> bool:
        return self.metric in ("mibs", "files_per_s", "ratio")

    def arguments(self, quick: bool) -> dict[str, Any] | None:
        chosen = self.quick if quick else self.full
        return None if chosen is None else {**self.shared, **chosen}


def _calls(key: str, title: str, count: int = 1000, **shared: Any) -> Case:
    """A system call, or a few, many times."""
    work = shared.pop("work", key)
    return Case(
        key, title, f"files:{work}", "us", shared.pop("peers", EVERYONE),
        {"count": count // 2, "seconds": 0.15}, {"count": count * 2, "seconds": 0.35}, shared=shared,
    )  # fmt: skip


CASES: tuple[Case, ...] = (
    _calls("create", "create, write 4 KiB, close"),
    _calls("save_again", "write 4 KiB to a temporary file, rename over the old one"),
    _calls("stat_first", "first stat"),
    _calls("stat_again", "repeated stat"),
    _calls("stat_absent", "repeated stat of a name that is not there"),
    _calls("rename", "rename"),
    _calls("unlink", "unlink"),
    _calls("mkdir", "mkdir"),
    _calls("list_first", "first listing with attributes, per entry", work="listing", cold=True),
    _calls("list_again", "repeated listing with attributes, per entry", work="listing", cold=False),
    _calls("open_read_close", "open, read 4 KiB, close, cached", 2000),
    _calls("read_cached", "cached 4 KiB read of an open file", 2000, peers=LARGE),
    _calls("pwrite", "4 KiB write into an open file", 4000, peers=LARGE),
    Case("seq_write", "sequential write, 1 MiB blocks, with close", "files:sequential_write", "mibs", LARGE,
         {"mebibytes": 48, "seconds": 1.0}, {"mebibytes": 256, "seconds": 2.0}),
    Case("seq_read", "sequential read, 1 MiB blocks, not in the kernel's cache", "files:sequential_read",
         "mibs", LARGE, {"mebibytes": 48, "seconds": 1.0}, {"mebibytes": 192, "seconds": 2.0}),
    _calls("fsync_1", "new 4 KiB file with fsync, one writer", 200, work="fsync", writers=1, peers=SYNCING),
    _calls("fsync_8", "new 4 KiB file with fsync, eight writers, per file", 200, work="fsync", writers=8,
           peers=SYNCING),
)  # fmt: skip
BY_KEY = {case.key: case for case in CASES}


def choose(words: list[str]) -> list[Case]:
    """The cases that *words* name: keys, groups, or beginnings of keys; all without words."""
    if not words:
        return list(CASES)
    chosen = [
        case for case in CASES if any(case.key.startswith(word) or case.group == word for word in words)
    ]
    unknown = [
        word for word in words
        if not any(case.key.startswith(word) or case.group == word for case in CASES)
    ]  # fmt: skip
    if unknown or not chosen:
        known = ", ".join(sorted({case.group for case in CASES}) + [case.key for case in CASES])
        raise ValueError(f"no case is called {', '.join(unknown)}; there are {known}")
    return chosen
