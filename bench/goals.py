"""What has to be reached, as comparisons of two measured values. Pure; report.py shows them.

A goal is met when all of its comparisons are. One that could not be made, since a side is missing,
counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import Results

Place = tuple[str, str, str]
"""Case, peer, metric."""


@dataclass(frozen=True)
class Comparison:
    """*ours* against *theirs* (a measured value, or a number), as a ratio that has a bound.

    *faster*: the ratio counts how many times as fast we are, and has to be at least *bound*. Otherwise it
    counts how much of their time, or amount, we take, and may be at most *bound*.
    """

    name: str
    ours: Place
    theirs: Place | float
    bound: float
    faster: bool = False

    def ratio(self, results: Results) -> float | None:
        ours = results.value(*self.ours)
        theirs = self.theirs if isinstance(self.theirs, float) else results.value(*self.theirs)
        if ours is None or theirs is None:
            return None
        # A rate is better when it is larger, a time when it is smaller.
        above, below = (ours, theirs) if _is_rate(self.ours[2]) == self.faster else (theirs, ours)
        return above / below if below else (0.0 if not above else None)

    def is_met(self, results: Results) -> bool | None:
        ratio = self.ratio(results)
        if ratio is None:
            return None
        return ratio >= self.bound if self.faster else ratio <= self.bound


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals."""

    work: str
    against: str
    bound: str
    comparisons: tuple[Comparison, ...]

    def verdict(self, results: Results) -> str:
        found = [comparison.is_met(results) for comparison in self.comparisons]
        known = [met for met in found if met is not None]
        if not known:
            return "not measured"
        if all(known):
            return "met" if len(known) == len(found) else "met where measured"
        return "missed" if not any(known) else f"missed in {known.count(False)} of {len(known)}"

    def missed(self, results: Results) -> Iterator[Comparison]:
        return (comparison for comparison in self.comparisons if comparison.is_met(results) is False)


def _is_rate(metric: str) -> bool:
    return metric.endswith(("mibs", "_per_s"))


def _peer(
    case: str, peer: str, bound: float, *, metric: str = "us", faster: bool = False,
    bases: tuple[str, ...] = ("disk", "tmpfs"), name: str = "",
) -> tuple[Comparison, ...]:  # fmt: skip
    """caiafs against *peer*, both with their files on the same base."""
    return tuple(
        Comparison(
            f"{name or case} {peer} {base}", (case, f"caiafs/{base}", metric),
            (case, f"{peer}/{base}", metric), bound, faster,
        )
        for base in bases
    )  # fmt: skip


def _within(case: str, key: str, metric: str, bound: float, of: float = 1.0) -> Comparison:
    """A value of caiafs' own, counted in *of*, at most *bound*."""
    return Comparison(f"{case} {metric}", (case, key, metric), of, bound)


DISK = ("disk",)
_PROGRAMS = ("untar_s", "cp_s", "rm_s", "clone_s", "status_s", "pip_s")
_KEEPING = ("untar_s", "cp_s", "rm_s", "pip_s")

GOALS: tuple[Goal, ...] = (
    Goal("create + write 4 KiB + close", "bindfs", "at most 1.3 × its time", _peer("create", "bindfs", 1.3)),
    Goal("", "mergerfs, gocryptfs", "faster",
         _peer("create", "mergerfs", 1.0, faster=True) + _peer("create", "gocryptfs", 1.0, faster=True)),
    Goal("", "gitfs", "at least 5 × as fast", _peer("create", "gitfs", 5.0, faster=True, bases=DISK)),
    Goal("first stat", "bindfs", "at most 1.5 × its time", _peer("stat_first", "bindfs", 1.5)),
    Goal("rename", "bindfs", "at most 1.5 × its time", _peer("rename", "bindfs", 1.5)),
    Goal("unlink", "bindfs", "at most 1.5 × its time", _peer("unlink", "bindfs", 1.5)),
    Goal("mkdir", "bindfs", "at most 1.5 × its time", _peer("mkdir", "bindfs", 1.5)),
    Goal("listing with attributes", "bindfs", "faster",
         _peer("list_first", "bindfs", 1.0, faster=True)),
    Goal("repeated stat", "ext4", "at least 0.9 × its rate",
         _peer("stat_again", "plain", 0.9, faster=True, bases=DISK)),
    Goal("cached reads of open files", "ext4", "at least 0.9 × its rate",
         _peer("read_cached", "plain", 0.9, faster=True, bases=DISK)),
    Goal("open + read 4 KiB + close, cached", "bindfs", "at most 1.5 × its time",
         _peer("open_read_close", "bindfs", 1.5)),
    Goal("4 KiB writes into an open file", "ext4", "at least 0.5 × its rate",
         _peer("pwrite", "plain", 0.5, faster=True, bases=DISK)),
    Goal("sequential write, 1 MiB blocks", "bindfs", "at least as fast",
         _peer("seq_write", "bindfs", 1.0, metric="mibs", faster=True)),
    Goal("sequential uncached read, 1 MiB blocks", "bindfs", "at least as fast",
         _peer("seq_read", "bindfs", 1.0, metric="mibs", faster=True)),
    Goal("untar, cp -a, rm -rf, git clone, git status, pip install", "bindfs", "at most 1.5 × its time",
         tuple(found for metric in _PROGRAMS
               for found in _peer("programs", "bindfs", 1.5, metric=metric, bases=DISK, name=metric[:-2]))),
    Goal("untar, cp -a, rm -rf, pip install", "ext4 + git add and commit", "less",
         tuple(found for metric in _KEEPING
               for found in _peer("programs", "plain+git", 1.0, metric=metric, faster=True, bases=DISK,
                                  name=metric[:-2]))),
    Goal("one document of three files, acknowledged", "a git commit of it", "at least 50 × as fast",
         _peer("document", "plain+git", 50.0, faster=True, bases=DISK)),
    Goal("", "dulwich's porcelain", "at least 100 × as fast",
         _peer("document", "plain+dulwich", 100.0, faster=True, bases=DISK)),
    Goal("the same at the storage interface", "its git tier", "at least 1,870 × as fast",
         (Comparison("storage", ("storage", "memory tier", "us"), ("storage", "git tier", "us"), 1870.0,
                     True),)),
    Goal("10,000 new 4 KiB files, one durable commit", "git add -A && git commit", "at least 3 × as fast",
         _peer("commit_batch", "plain+git", 3.0, metric="s", faster=True, bases=DISK)),
    Goal("one changed file among 10,000, durable commit", "the same, nested", "at least 25 × as fast",
         _peer("commit_one", "plain+git", 25.0, metric="ms", faster=True, bases=DISK)),
    Goal("", "the same, flat", "at least 8 × as fast",
         _peer("commit_one_flat", "plain+git", 8.0, metric="ms", faster=True, bases=DISK)),
    Goal("a 4 KiB save while that big commit runs", "idle", "p99 at most 2 ×, none over 50 ms",
         (Comparison("p99", ("save_during", "caiafs/disk", "p99_us"),
                     ("save_during", "caiafs/disk", "idle_p99_us"), 2.0),
          Comparison("longest, in 50 ms", ("save_during", "caiafs/disk", "max_us"), 50_000.0, 1.0))),
    Goal("fsync of a 4 KiB file, one writer", "ext4", "at most 1.5 × its time",
         _peer("fsync_1", "plain", 1.5, bases=DISK)),
    Goal("fsync of 4 KiB files, eight writers", "ext4", "at most 1.5 × its time",
         _peer("fsync_8", "plain", 1.5, bases=DISK)),
    Goal("mount, first listing, first read", "1,000,000 against 1,000 files", "at most 2 ×, under 0.5 s",
         (Comparison("1,000,000 to 1,000 files", ("mounting", "caiafs, 1,000,000 files", "s"),
                     ("mounting", "caiafs, 1,000 files", "s"), 2.0),
          Comparison("seconds", ("mounting", "caiafs, 1,000,000 files", "s"), 1.0, 0.5))),
    Goal("memory: a million files walked", "the budget", "at most 100 MiB above",
         (_within("walk", "caiafs", "over_mib", 100.0),)),
    Goal("memory: gigabytes written and read", "the budget", "at most 100 MiB above",
         (_within("stream", "caiafs", "over_mib", 100.0),)),
    Goal("memory: a day's churn", "the budget", "at most 100 MiB above, flat",
         (_within("churn", "caiafs", "over_mib", 100.0), _within("churn", "caiafs", "grown_mib", 16.0))),
    Goal("repository after a day of saves", "git gc", "at most 1.5 × its size",
         (_within("churn", "caiafs", "times_gc", 1.5),)),
    Goal("recovery of a 1 GiB journal", "cat", "at most 3 × its time",
         (_within("recovery", "caiafs", "times_cat", 3.0),)),
    Goal("commit as the tree grows", "1,000,000 against 1,000 files", "at most 4 × for 1,000 × the files",
         (Comparison("time", ("growth", "caiafs, 1,000,000 files", "ms"),
                     ("growth", "caiafs, 1,000 files", "ms"), 4.0),)),
    Goal("idle", "", "no measurable processor time, nothing written",
         (_within("idle", "caiafs", "cpu_percent", 0.1), _within("idle", "caiafs", "written_bytes", 0.0))),
)  # fmt: skip
