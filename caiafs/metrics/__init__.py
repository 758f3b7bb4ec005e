"""What the mount did, and how long it took.

One `Metrics` per mount, made by mount.py and handed to whoever does the work.
The trio thread observes; any thread may render, because every figure shown is
computed from one copy of a bucket list, so a histogram never contradicts itself.

An observation costs a fraction of a microsecond: it finds a bucket, adds one, adds
the duration. Everything else (names, labels, percentiles, seconds) waits until
somebody looks. prometheus_client's own Histogram was not taken for that reason:
its labels() and observe() take two locks and several microseconds, more than the
operations they would measure. What Prometheus reads is written in exposition.py.

Gauges are not stored here at all. They are asked of their owners at the moment of
rendering (`gauge_source`), so they cannot be out of date.

docs/metrics.md describes every name for those who read them.
"""

from __future__ import annotations

import logging
import platform
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from . import exposition
from .exposition import Buckets, Family

log = logging.getLogger(__name__)

GaugeValue = float | str | Mapping[str, float]

# Renard's R20 series: twenty steps a decade, none wider than 14.3 %, and unlike powers of two it contains
# the 1, 2.5 and 5 that Prometheus' buckets are made of, so that those are exact and not estimated.
_R20: Final = (
    *(100, 112, 125, 140, 160, 180, 200, 224, 250, 280),
    *(315, 355, 400, 450, 500, 560, 630, 710, 800, 900),
)

EDGES: Final[tuple[int, ...]] = (
    *(step * 10**decade for decade in range(10) for step in _R20),
    100 * 10**10,
)
"""Upper edges, inclusive, in ns: 100 ns to 1000 s. One more bucket takes what is longer."""

_NOTHING: Final = bytes(array("Q").itemsize * (len(EDGES) + 1))
"""No counts, as the same object everywhere: pickle writes it once."""

_OPERATION_BUCKETS: Final = tuple(step * 10**decade for decade in range(3, 10) for step in (1, 2.5, 5))
_COMMIT_BUCKETS: Final = tuple(step * 10**decade for decade in range(6, 12) for step in (1, 2.5, 5))

HEALTH_STATES: Final = ("healthy", "degraded", "failed")
COMMIT_OUTCOMES: Final = ("success", "failure")
FALLBACKS: Final = (("memory", "git"), ("git", "memory"))

GAUGES: Final[dict[str, tuple[str, str | None]]] = {
    "caiafs_memory_bytes": ("Memory in use by the memory tier, by what it holds.", "kind"),
    "caiafs_memory_limit_bytes": ("The budget that caiafs_memory_bytes stays under.", None),
    "caiafs_journal_bytes": ("Size of the journal's files on disk.", None),
    "caiafs_uncommitted_changes": ("Changes that are in the journal and not yet in git.", None),
    "caiafs_oldest_uncommitted_seconds": ("Age of the oldest change not yet in git; 0 without one.", None),
    "caiafs_health_state": ("Health of the mount: 1 for the state it is in, 0 for the others.", "state"),
}
"""Every gauge that gauge_source() knows: its help text and its label."""


class Series:
    """Durations of one kind of thing, in fine buckets.

    What Prometheus sees only ever grows. clear() moves the line from which the
    summary counts, so that a person's rm does not tear a hole into a dashboard.
    """

    __slots__ = ("base_counts", "base_failures", "base_total", "counts", "failures", "high", "low", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.total = 0
        self.failures = 0
        self.clear()

    def clear(self) -> None:
        self.base_counts = array("Q", self.counts).tobytes() if any(self.counts) else _NOTHING
        self.base_total = self.total
        self.base_failures = self.failures
        self.low: int | None = None
        self.high = 0

    def add(self, ns: int) -> None:
        self.counts[bisect_left(EDGES, ns)] += 1
        self.total += ns
        if ns > self.high:
            self.high = ns
        low = self.low
        if low is None or ns < low:
            self.low = ns

    def state(self) -> tuple[Any, ...]:
        """All of it, immutable. Counts as bytes: made and pickled for a quarter of what numbers cost."""
        return (
            array("Q", self.counts).tobytes(), self.total, self.failures, self.base_counts, self.base_total,
            self.base_failures, self.low, self.high,
        )  # fmt: skip

    @classmethod
    def of(cls, state: tuple[Any, ...]) -> Self:
        """The series whose state() it was."""
        made = cls()
        counts, made.total, made.failures, made.base_counts, made.base_total, *rest = state
        made.counts = array("Q", counts).tolist()
        made.base_failures, made.low, made.high = rest
        return made

    def buckets(self, edges: tuple[float, ...]) -> Buckets:
        """Cumulative counts up to each of *edges* (ns, all of them in EDGES), as Prometheus wants them."""
        running = tuple(accumulate(tuple(self.counts)))
        bounds, places = _bounds(edges)
        return Buckets(bounds, [running[place] for place in places], self.total / 1e9)

    def summary(self) -> dict[str, int | float] | None:
        """Figures since the last clear(), or None when there are none."""
        base = array("Q", self.base_counts)
        counts = [now - then for now, then in zip(tuple(self.counts), base, strict=True)]
        count = sum(counts)
        if not count:
            return None
        low, high = self.low or 0, self.high
        total = self.total - self.base_total
        failed = self.failures - self.base_failures
        return {
            "count": count,
            "success_count": count - failed,
            "failure_count": failed,
            "success_rate": round((count - failed) / count, 6),
            "total_duration_ns": total,
            "min_duration_ns": low,
            "max_duration_ns": high,
            "avg_duration_ns": round(total / count),
            "p50_duration_ns": _percentile(counts, count, 50, low, high),
            "p99_duration_ns": _percentile(counts, count, 99, low, high),
        }


@lru_cache(maxsize=8)
def _bounds(edges: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The name that each of *edges* has as a bucket, in seconds, and its place in EDGES; at last infinity."""
    return (
        (*(repr(edge / 1e9) for edge in edges), "+Inf"),
        (*(bisect_left(EDGES, edge) for edge in edges), len(EDGES)),
    )


def _percentile(counts: Sequence[int], count: int, percent: int, low: int, high: int) -> int:
    """The duration that *percent* of *count* observations do not exceed, by nearest rank.

    It lies in the same fine bucket as the true value, so it is off by 14.3 % at most
    between 100 ns and 1000 s, and never outside [low, high].
    """
    rank = max(1, -(-count * percent // 100))
    before = 0
    for index, held in enumerate(counts):
        if before + held >= rank:
            floor = EDGES[index - 1] if index else 0
            ceiling = EDGES[index] if index < len(EDGES) else high
            floor, ceiling = max(floor, low), min(ceiling, high)
            estimate = floor + (ceiling - floor) * (rank - before) // held
            return min(max(estimate, low), high)
        before += held
    raise AssertionError("the buckets hold fewer observations than their sum")


class Snapshot(NamedTuple):
    """What a Metrics holds at one moment, in values that can be pickled."""

    build: dict[str, str]
    operations: dict[tuple[str, str], tuple[Any, ...]]
    requests: dict[str, tuple[Any, ...]]
    commit_seconds: tuple[Any, ...]
    commits: dict[str, int]
    fallbacks: dict[tuple[str, str], int]
    gauges: dict[str, GaugeValue]


def _same(value: GaugeValue) -> GaugeValue:
    return value


class Timer:
    """Times one `with` block as one storage operation; made by Metrics.timed().

    May be entered again once it was left, not before: tasks that overlap need one each.
    """

    __slots__ = ("_backend", "_metrics", "_operation", "_start")

    def __init__(self, metrics: Metrics, backend: str, operation: str) -> None:
        self._metrics = metrics
        self._backend = backend
        self._operation = operation
        self._start = 0

    def __enter__(self) -> Self:
        self._start = perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.observe(self._backend, self._operation, perf_counter_ns() - self._start, kind is None)


class Metrics:
    """Every counter and histogram of one mount, and the way to its gauges.

    *build* becomes the labels of caiafs_build_info, beside python's version:
    {"version": …, "pyfuse3": …}.
    """

    def __init__(self, build: Mapping[str, str] | None = None) -> None:
        self._build = {"python": platform.python_version(), **(build or {})}
        self._operations: dict[tuple[str, str], Series] = {}
        self._requests: dict[str, Series] = {}
        self._commit_seconds = Series()
        # Known label values start at 0: increase() does not see a counter that appears as 1.
        self._commits = dict.fromkeys(COMMIT_OUTCOMES, 0)
        self._fallbacks = dict.fromkeys(FALLBACKS, 0)
        self._sources: dict[str, Callable[[], GaugeValue]] = {}
        self._complained: set[str] = set()

    # What happened.

    def observe(self, backend: str, operation: str, ns: int, ok: bool = True) -> None:
        """One *operation* of a storage *backend* took *ns* nanoseconds."""
        series = self.series(backend, operation)
        series.add(ns)
        if not ok:
            series.failures += 1

    def series(self, backend: str, operation: str) -> Series:
        """Where observations of one operation go: `add` for those who make many, all of them successful."""
        try:
            return self._operations[backend, operation]
        except KeyError:
            series = self._operations[backend, operation] = Series()
            return series

    def timed(self, backend: str, operation: str) -> Timer:
        """`with metrics.timed("git", "get"):` observes the block; one that raises is a failure."""
        return Timer(self, backend, operation)

    def request(self, op: str, ns: int) -> None:
        """One FUSE request of kind *op* was answered after *ns* nanoseconds, whatever the answer."""
        try:
            series = self._requests[op]
        except KeyError:
            series = self._requests[op] = Series()
        series.add(ns)

    def commit(self, outcome: str, seconds: float) -> None:
        """One attempt to commit ended after *seconds*; *outcome* is one of COMMIT_OUTCOMES or a new one."""
        self._commits[outcome] = self._commits.get(outcome, 0) + 1
        self._commit_seconds.add(round(seconds * 1e9))

    def fallback(self, from_: str, to: str) -> None:
        """One change or read was taken over by tier *to* because tier *from_* failed."""
        self._fallbacks[from_, to] = self._fallbacks.get((from_, to), 0) + 1

    def gauge_source(self, name: str, source: Callable[[], GaugeValue]) -> None:
        """Ask *source* for the gauge *name* (one of GAUGES) whenever it is rendered.

        It returns a number; for caiafs_memory_bytes a number for every kind; for
        caiafs_health_state the state's name. It must not block. A second call for the
        same name replaces the first.
        """
        if name not in GAUGES:
            raise ValueError(f"no gauge is called {name}; there are {', '.join(GAUGES)}")
        self._sources[name] = source

    # What is shown.

    def summary(self) -> dict[str, Any]:
        """The storage operations since the last clear(): what metrics.json holds."""
        by_backend: dict[str, dict[str, dict[str, int | float]]] = {}
        total = 0
        for (backend, operation), series in sorted(self._operations.items()):
            figures = series.summary()
            if figures is not None:
                by_backend.setdefault(backend, {})[operation] = figures
                total += int(figures["count"])
        return {"metrics_summary": {"by_backend": by_backend, "total_operations": total}}

    def clear(self) -> None:
        """Let summary() start again from nothing. Prometheus' counters go on, as counters should."""
        for series in list(self._operations.values()):
            series.clear()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format: no timestamps, one HELP and TYPE a name.

        node_exporter's textfile collector refuses a whole file over either.
        """
        return exposition.text(self.families())

    def openmetrics(self) -> bytes:
        """The same figures in the OpenMetrics 1.0 format, for those who prefer it."""
        return exposition.openmetrics(self.families)

    def requests(self) -> dict[str, dict[str, Any]]:
        """How long requests took, by kind, for JSON: cumulative buckets as in Prometheus, and seconds."""
        return {
            op: {
                "buckets": list(zip(shown.bounds, shown.counts, strict=True)),
                "seconds": shown.seconds,
            }
            for op, series in sorted(self._requests.items())
            for shown in (series.buckets(_OPERATION_BUCKETS),)
        }

    # In another process.

    def snapshot(self) -> Snapshot:
        """All figures as plain values, in a fraction of what rendering them costs: for another process."""
        return Snapshot(
            self._build,
            {key: series.state() for key, series in sorted(self._operations.items())},
            {key: series.state() for key, series in sorted(self._requests.items())},
            self._commit_seconds.state(),
            dict(self._commits),
            dict(self._fallbacks),
            {name: value for name in GAUGES if (value := self._asked(name)) is not None},
        )

    @classmethod
    def restored(cls, snapshot: Snapshot) -> Metrics:
        """The metrics that *snapshot* was taken of: they render to the same bytes."""
        made = cls()
        made._build = snapshot.build
        made._operations = {key: Series.of(state) for key, state in snapshot.operations.items()}
        made._requests = {key: Series.of(state) for key, state in snapshot.requests.items()}
        made._commit_seconds = Series.of(snapshot.commit_seconds)
        made._commits = snapshot.commits
        made._fallbacks = snapshot.fallbacks
        for name, value in snapshot.gauges.items():
            made.gauge_source(name, partial(_same, value))
        return made

    def families(self) -> Iterator[Family]:
        """All of it, name by name, as Prometheus orders its world."""
        # sorted() and list() copy a dict in one step under the interpreter lock; a loop over it would not.
        total: list[tuple[tuple[str, ...], float | Buckets]] = []
        seconds: list[tuple[tuple[str, ...], float | Buckets]] = []
        for (backend, operation), series in sorted(self._operations.items()):
            buckets = series.buckets(_OPERATION_BUCKETS)
            failed = series.failures
            total.append(((backend, operation, "success"), buckets.counts[-1] - failed))
            total.append(((backend, operation, "failure"), failed))
            seconds.append(((backend, operation), buckets))
        yield Family(
            "caiafs_storage_operations", "counter", "Operations of the storage backends, by how they ended.",
            ("backend", "operation", "outcome"), total,
        )  # fmt: skip
        yield Family(
            "caiafs_storage_operation_seconds", "histogram", "Duration of the storage backends' operations.",
            ("backend", "operation"), seconds,
        )  # fmt: skip
        yield Family(
            "caiafs_fuse_request_seconds", "histogram", "Time to answer the kernel, by FUSE operation.",
            ("op",),
            [((op,), series.buckets(_OPERATION_BUCKETS)) for op, series in sorted(self._requests.items())],
        )  # fmt: skip
        for name, (about, label) in GAUGES.items():
            if values := list(self._gauge(name)):
                yield Family(name, "gauge", about, (label,) if label else (), values)
        yield Family(
            "caiafs_commits", "counter", "Attempts to commit, by outcome.",
            ("outcome",), [((outcome,), count) for outcome, count in list(self._commits.items())],
        )  # fmt: skip
        yield Family(
            "caiafs_commit_seconds", "histogram",
            "Duration of commits, from sealing the batch until git has it on disk.",
            (), [((), self._commit_seconds.buckets(_COMMIT_BUCKETS))],
        )  # fmt: skip
        yield Family(
            "caiafs_fallbacks", "counter", "Operations that another tier took over from a failed one.",
            ("from", "to"), [(pair, count) for pair, count in list(self._fallbacks.items())],
        )  # fmt: skip
        yield Family(
            "caiafs_build_info", "gauge", "Always 1; the labels say what is running.",
            tuple(self._build), [(tuple(self._build.values()), 1)],
        )  # fmt: skip

    def _gauge(self, name: str) -> Iterator[tuple[tuple[str, ...], float]]:
        """(label values, value) of one gauge; nothing when nobody offers it."""
        value = self._asked(name)
        if value is None:
            return
        if isinstance(value, Mapping):
            for kind, amount in value.items():
                yield (kind,), amount
        elif isinstance(value, str):
            for state in HEALTH_STATES:
                yield (state,), float(state == value)
        else:
            yield (), value

    def _asked(self, name: str) -> GaugeValue | None:
        """What the gauge *name* is now; None where nobody can tell."""
        source = self._sources.get(name)
        if source is None:
            return None
        try:
            return source()
        except Exception:
            # One broken figure must not cost the scrape all others. It is missing, and said once.
            if name not in self._complained:
                self._complained.add(name)
                log.exception("cannot tell %s; it is left out of the metrics", name)
            return None
