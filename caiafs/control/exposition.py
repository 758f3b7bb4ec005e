"""Reads back the Prometheus text that metrics.py writes, for those who show it to people.

The status page and `caiafs status --watch` take request rates and latencies from it: the histograms
are nowhere else. It reads what caiafs writes, not whatever the format allows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]

_LINE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-z_0-9]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations: cumulative counts up to each edge in seconds (the last is infinite), and their sum."""

    buckets: dict[float, float]
    seconds: float

    @property
    def count(self) -> float:
        """How many there were."""
        return self.buckets.get(math.inf, 0.0)

    def since(self, before: Histogram | None) -> Histogram:
        """What came after *before*. Where a counter fell, the daemon is another: all of it is new."""
        if before is None or before.count > self.count:
            return self
        return Histogram(
            {edge: count - before.buckets.get(edge, 0.0) for edge, count in self.buckets.items()},
            self.seconds - before.seconds,
        )

    def quantile(self, part: float) -> float | None:
        """The duration that *part* (0 to 1) of them did not exceed, as histogram_quantile() estimates it."""
        if not self.count:
            return None
        rank, low, below = part * self.count, 0.0, 0.0
        for edge, count in sorted(self.buckets.items()):
            if count >= rank and count > below:
                return low if math.isinf(edge) else low + (edge - low) * (rank - below) / (count - below)
            low, below = edge, count
        return low


def added(histograms: Iterable[Histogram]) -> Histogram:
    """All of them as one."""
    buckets: dict[float, float] = {}
    seconds = 0.0
    for one in histograms:
        seconds += one.seconds
        for edge, count in one.buckets.items():
            buckets[edge] = buckets.get(edge, 0.0) + count
    return Histogram(buckets, seconds)


class Samples:
    """The samples of one exposition, by name and labels."""

    def __init__(self, text: str) -> None:
        self._found: dict[str, dict[Labels, float]] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match:
                labels = tuple(_LABEL.findall(match[2] or ""))
                self._found.setdefault(match[1], {})[labels] = float(match[3])

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of *name* that have *labels*; 0 where there is none."""
        return sum(number for found, number in self.of(name) if labels.items() <= found.items())

    def of(self, name: str) -> Iterable[tuple[Mapping[str, str], float]]:
        """(labels, value) of every sample of *name*."""
        return [(dict(labels), number) for labels, number in self._found.get(name, {}).items()]

    def histogram(self, name: str, **labels: str) -> Histogram:
        """All histograms of *name* that have *labels*, added up."""
        buckets: dict[float, float] = {}
        for found, number in self.of(f"{name}_bucket"):
            if labels.items() <= found.items():
                edge = float(found["le"])
                buckets[edge] = buckets.get(edge, 0.0) + number
        return Histogram(buckets, self.value(f"{name}_sum", **labels))

    def label_values(self, name: str, label: str) -> list[str]:
        """What *label* is in the samples of *name*, sorted."""
        return sorted({found[label] for found, _ in self.of(name) if label in found})
