"""What is measured: which work, on which peers, how much of it in the quick form and in the full one.

A `Case` names a function of `work/`. Its figures come per peer and round; `metric` is the one that tables,
charts and goals are about. A case without peers of its own compares things that it starts itself
("contestants" in its figures): a commit by git, a mount of a million files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_UNITS = {
    "us": "µs",
    "ms": "ms",
    "s": "s",
    "mibs": "MiB/s",
    "mib": "MiB",
    "kib": "KiB",
    "percent": "%",
    "bytes": "bytes",
}


def unit(metric: str) -> str:
    """What a metric is counted in; its name ends in it."""
    return "/s" if metric.endswith("_per_s") else _UNITS.get(metric.rpartition("_")[2], "")


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
    few: frozenset[str] = QUICK_PEERS
    """The peers of the quick form."""
    rows: dict[str, str] = field(default_factory=dict)
    """Metrics beside `metric` that tables show, and what they are."""

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
    Case("programs", "programs", "programs:programs", "untar_s", PROGRAMS,
         {"files": 500, "modules": 30}, {"files": 1500, "modules": 150}, "programs", (1, 3), 180.0,
         few=frozenset(("caiafs/disk", "plain/disk", "bindfs/disk", "bindfs/tmpfs", "plain+git/disk")),
         rows={"untar_s": "untar of an sdist", "cp_s": "cp -a", "rm_s": "rm -rf", "clone_s": "git clone",
               "status_s": "git status", "status_again_s": "git status, again",
               "pip_s": "pip install into a venv"}),
    Case("document", "a document of three files, stored and acknowledged", "commits:document", "us", (),
         {"documents": 200, "times": 6}, {"documents": 1000, "times": 12}, "commits", (2, 3), 240.0,
         shared={"dulwich": True}),
    Case("storage", "a document of three at the storage interface", "storage:storage", "us", (),
         {"documents": 2000, "commits": 10}, {"documents": 5000, "commits": 60}, "commits", (2, 3), 120.0,
         rows={"us": "storing", "again_us": "storing the same again", "get_us": "getting"}),
    Case("commit_batch", "10,000 new 4 KiB files into one durable commit", "commits:batch", "s", (),
         {"files": 10_000, "dulwich": False}, {"files": 10_000, "dulwich": True}, "commits", (1, 3), 180.0,
         rows={"s": "the commit", "store_s": "storing the files before", "whole_s": "both"}),
    Case("commit_one", "one changed file among 10,000 in folders, durable commit", "commits:one", "ms", (),
         {"times": 5, "dulwich": False}, {"times": 15, "dulwich": True}, "commits", (2, 3), 180.0,
         shared={"files": 10_000, "flat": False}),
    Case("commit_one_flat", "one changed file among 10,000 in one folder, durable commit", "commits:one",
         "ms", (), {"times": 5, "dulwich": False}, {"times": 15, "dulwich": True}, "commits", (2, 3), 180.0,
         shared={"files": 10_000, "flat": True}),
    Case("save_during", "a 4 KiB save while 10,000 files are committed", "commits:save_during", "p99_us", (),
         {"files": 10_000}, {"files": 10_000}, "commits", (1, 3), 180.0,
         rows={"us": "median", "idle_us": "median, idle", "p99_us": "p99", "idle_p99_us": "p99, idle",
               "max_us": "longest", "idle_max_us": "longest, idle"}),
    Case("growth", "one changed file, durable commit, as the tree grows", "commits:growth", "ms", (),
         {"sizes": [1_000, 10_000], "times": 5}, {"sizes": [1_000, 10_000, 100_000, 1_000_000], "times": 20},
         "commits", (1, 1), 400.0, rows={"ms": "time", "kib": "added to the repository"}),
    Case("mounting", "mount, first listing, first read", "large:mounting", "s", (),
         {"sizes": [1_000, 100_000], "times": 1}, {"sizes": [1_000, 1_000_000], "times": 3}, "large", (1, 1),
         400.0, rows={"s": "all three", "mount_s": "mount", "list_s": "listing", "read_s": "read"}),
    Case("idle", "a mount left alone", "large:idle", "cpu_percent", (), {"seconds": 5.0}, {"seconds": 30.0},
         "large", (1, 1), 120.0, rows={"cpu_percent": "processor", "written_bytes": "written to disk",
                                      "wakeups_per_s": "wakeups"}),
    Case("recovery", "mount after a crash with a full journal", "large:recovery", "s", (),
         {"mebibytes": 128}, {"mebibytes": 1024}, "large", (1, 1), 300.0),
    Case("inode", "memory for each file looked at", "large:inode", "bytes", (), {"files": 10_000},
         {"files": 100_000}, "large", (1, 1), 200.0),
    Case("walk", "every file's attributes: memory", "large:walk", "over_mib", (),
         {"files": 100_000, "budget": 16}, {"files": 1_000_000, "budget": 256}, "large", (1, 1), 500.0,
         rows={"peak_mib": "peak", "budget_mib": "budget", "over_mib": "above it", "us": "time per file"}),
    Case("stream", "far more than the budget, written and read: memory", "large:stream", "over_mib", (),
         {"mebibytes": 256, "budget": 32}, {"mebibytes": 8192, "budget": 256}, "large", (1, 1), 600.0,
         rows={"peak_mib": "peak", "budget_mib": "budget", "over_mib": "above it", "write_mibs": "writing",
               "commit_s": "committing the rest", "read_mibs": "reading from git"}),
    Case("churn", "a day of saves, each a commit", "large:churn", "over_mib", (),
         {"saves": 200, "seconds": 15.0, "budget": 32}, {"saves": 10_000, "seconds": 180.0, "budget": 256},
         "large", (1, 1), 400.0,
         rows={"saves": "saves", "ms": "time per save and commit", "peak_mib": "peak memory",
               "over_mib": "above the budget", "grown_mib": "memory grown since the first quarter",
               "size_mib": "repository", "gc_mib": "after git gc", "times_gc": "ratio", "packs": "packs"}),
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
