"""Figures as Prometheus reads them: the text format, byte for byte as prometheus_client writes it.

`Metrics.families` says what there is; `text` writes it. The daemon does that on its event loop whenever
somebody reads `.stats/caiafs.prom`, and no file is served meanwhile. prometheus_client takes 8 ms for a
busy mount, since it escapes and sorts the labels of each line anew; here everything of a line but
its value is made once. A test holds the two to the same bytes.

The OpenMetrics format is prometheus_client's own work: only the HTTP server is asked for it, in its own
process. That is also why the library is imported there alone: it costs a mount's start a sixth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class Buckets(NamedTuple):
    """A histogram's value: how many lasted up to each of *bounds*, the last of which is infinity."""

    bounds: tuple[str, ...]
    counts: Sequence[int]
    seconds: float


class Family(NamedTuple):
    """One name, without a counter's _total; *kind* is counter, gauge or histogram.

    *samples* are pairs of label values and value, which is Buckets in a histogram.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], float | Buckets]]


def text(families: Iterable[Family]) -> bytes:
    """*families* in the text format 0.0.4: no timestamps, one HELP and TYPE a name."""
    out: list[str] = []
    for name, kind, help_, labels, samples in families:
        shown = f"{name}_total" if kind == "counter" else name
        told = help_.replace("\\", "\\\\").replace("\n", "\\n")
        out.append(f"# HELP {shown} {told}\n# TYPE {shown} {kind}\n")
        for values, value in samples:
            if isinstance(value, Buckets):
                counts = [f"{n}.0" if n < 1_000_000 else number(n) for n in value.counts]
                lines = _histogram(name, labels, values, value.bounds)
                out.append(lines % (*counts, counts[-1], number(value.seconds)))
            else:
                out.append(f"{_start(shown, labels, values)}{number(value)}\n")
    return "".join(out).encode()


def number(value: float) -> str:
    """*value* as Go writes it: an exponent from a million on."""
    shown = repr(float(value))
    dot = shown.find(".")
    if dot > 6 and value > 0:
        digits = f"{shown[0]}.{shown[1:dot]}{shown[dot + 1 :]}".rstrip("0.")
        return f"{digits}e+{dot - 1:02d}"
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(shown, shown)


@lru_cache(maxsize=1024)
def _histogram(name: str, labels: tuple[str, ...], values: tuple[str, ...], bounds: tuple[str, ...]) -> str:
    """The lines of a histogram, with %s for each value: buckets, count, sum."""
    starts = (
        *(_start(f"{name}_bucket", (*labels, "le"), (*values, bound)) for bound in bounds),
        _start(f"{name}_count", labels, values),
        _start(f"{name}_sum", labels, values),
    )
    return "".join(start.replace("%", "%%") + "%s\n" for start in starts)


@lru_cache(maxsize=1024)
def _start(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    """A line up to its value."""
    escaped = (value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for value in values)
    pairs = ",".join(f'{label}="{value}"' for label, value in sorted(zip(labels, escaped, strict=True)))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


# ---- the other formats


def openmetrics(families: Callable[[], Iterable[Family]]) -> bytes:
    """The same figures in the OpenMetrics 1.0 format."""
    from prometheus_client.openmetrics.exposition import generate_latest

    rendered: bytes = generate_latest(registry(families))  # type: ignore[no-untyped-call]
    return rendered


def registry(families: Callable[[], Iterable[Family]]) -> CollectorRegistry:
    """These metrics and no others, for whoever wants them in one of prometheus_client's formats."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class Families(Collector):
        def describe(self) -> Iterable[Metric]:
            return ()

        def collect(self) -> Iterator[Metric]:
            return map(_metric, families())

    made = CollectorRegistry(auto_describe=False)
    made.register(Families())
    return made


def _metric(family: Family) -> Metric:
    """*family* as prometheus_client has it."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    made: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if family.kind == "histogram":
        made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    elif family.kind == "counter":
        made = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        made = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for values, value in family.samples:
        if isinstance(value, Buckets):
            assert isinstance(made, HistogramMetricFamily)
            made.add_metric(values, list(zip(value.bounds, value.counts, strict=True)), value.seconds)
        else:
            assert not isinstance(made, HistogramMetricFamily)
            made.add_metric(values, value)
    return made
