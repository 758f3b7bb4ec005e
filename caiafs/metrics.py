"""What the mount did, and how long it took.

One `Metrics` per mount, made by mount.py and handed to whoever does the work.
The trio thread observes; any thread may render, because every figure shown is
computed from one copy of a bucket list, so a histogram never contradicts itself.

An observation costs a fraction of a microsecond: it finds a bucket, adds one, adds
the duration. Everything else (names, labels, percentiles, seconds) waits until
somebody looks. prometheus_client's own Histogram was not taken for that reason:
its labels() and observe() take two locks and several microseconds, more than the
operations they would measure. It still writes the exposition, through a collector.

Gauges are not stored here at all. They are asked of their owners at the moment of
rendering (`gauge_source`), so they cannot be out of date.

docs/metrics.md describes every name for those who read them.
"""

from __future__ import annotations

import logging
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

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
        self.base_counts = tuple(self.counts)
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
        """All of it, immutable."""
        return (
            tuple(self.counts), self.total, self.failures, self.base_counts, self.base_total,
            self.base_failures, self.low, self.high,
        )  # fmt: skip

    @classmethod
    def of(cls, state: tuple[Any, ...]) -> Self:
        """The series whose state() it was."""
        made = cls()
        counts, made.total, made.failures, made.base_counts, made.base_total, *rest = state
        made.counts = list(counts)
        made.base_failures, made.low, made.high = rest
        return made

    def buckets(self, edges: Sequence[float]) -> list[tuple[str, float]]:
        """Cumulative counts up to each of *edges* (ns, all of them in EDGES), as Prometheus wants them."""
        counts = tuple(self.counts)
        result: list[tuple[str, float]] = []
        running = begin = 0
        for edge in edges:
            end = bisect_left(EDGES, edge) + 1
            running += sum(counts[begin:end])
            begin = end
            result.append((repr(edge / 1e9), running))
        result.append(("+Inf", running + sum(counts[begin:])))
        return result

    def summary(self) -> dict[str, int | float] | None:
        """Figures since the last clear(), or None when there are none."""
        counts = [now - then for now, then in zip(tuple(self.counts), self.base_counts, strict=True)]
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
    {"version": …, "pyfuse3": …}. `registry` holds these metrics and no others, for
    whoever serves them in another of prometheus_client's formats.
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
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Exposition(self))

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
        return generate_latest(self.registry)

    def openmetrics(self) -> bytes:
        """The same figures in the OpenMetrics 1.0 format, for those who prefer it."""
        rendered: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return rendered

    def requests(self) -> dict[str, dict[str, Any]]:
        """How long requests took, by kind, for JSON: cumulative buckets as in Prometheus, and seconds."""
        return {
            op: {"buckets": series.buckets(_OPERATION_BUCKETS), "seconds": series.total / 1e9}
            for op, series in sorted(self._requests.items())
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

    def _gauge(self, name: str) -> Iterable[tuple[list[str], float]]:
        """(label values, value) of one gauge; nothing when nobody offers it."""
        value = self._asked(name)
        if value is None:
            return
        if isinstance(value, Mapping):
            for kind, amount in value.items():
                yield [kind], amount
        elif isinstance(value, str):
            for state in HEALTH_STATES:
                yield [state], float(state == value)
        else:
            yield [], value

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


class _Exposition(Collector):
    """Turns a Metrics into prometheus_client's families at the moment of a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        m = self._metrics
        # sorted() and list() copy a dict in one step under the interpreter lock; a loop over it would not.
        operations = sorted(m._operations.items())

        total = CounterMetricFamily(
            "caiafs_storage_operations",
            "Operations of the storage backends, by how they ended.",
            labels=["backend", "operation", "outcome"],
        )
        seconds = HistogramMetricFamily(
            "caiafs_storage_operation_seconds",
            "Duration of the storage backends' operations.",
            labels=["backend", "operation"],
        )
        for (backend, operation), series in operations:
            buckets = series.buckets(_OPERATION_BUCKETS)
            failed = series.failures
            total.add_metric([backend, operation, "success"], buckets[-1][1] - failed)
            total.add_metric([backend, operation, "failure"], failed)
            seconds.add_metric([backend, operation], buckets, series.total / 1e9)
        yield total
        yield seconds

        requests = HistogramMetricFamily(
            "caiafs_fuse_request_seconds", "Time to answer the kernel, by FUSE operation.", labels=["op"]
        )
        for op, series in sorted(m._requests.items()):
            requests.add_metric([op], series.buckets(_OPERATION_BUCKETS), series.total / 1e9)
        yield requests

        for name, (text, label) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=[label] if label else [])
            for values, value in m._gauge(name):
                gauge.add_metric(values, value)
            if gauge.samples:
                yield gauge

        commits = CounterMetricFamily("caiafs_commits", "Attempts to commit, by outcome.", labels=["outcome"])
        for outcome, count in list(m._commits.items()):
            commits.add_metric([outcome], count)
        yield commits
        yield HistogramMetricFamily(
            "caiafs_commit_seconds",
            "Duration of commits, from sealing the batch until git has it on disk.",
            buckets=m._commit_seconds.buckets(_COMMIT_BUCKETS),
            sum_value=m._commit_seconds.total / 1e9,
        )

        fallbacks = CounterMetricFamily(
            "caiafs_fallbacks",
            "Operations that another tier took over from a failed one.",
            labels=["from", "to"],
        )
        for pair, count in list(m._fallbacks.items()):
            fallbacks.add_metric(list(pair), count)
        yield fallbacks

        build = GaugeMetricFamily(
            "caiafs_build_info", "Always 1; the labels say what is running.", labels=list(m._build)
        )
        build.add_metric(list(m._build.values()), 1)
        yield build
