"""Samples to figures: percentiles of one run, medians and spread of several. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Figures = dict[str, float]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that *share* (0 to 1) of *values* do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def latencies(samples_ns: Sequence[int], per_sample: int = 1) -> Figures:
    """Figures of single operations in µs; *per_sample* operations were timed together each time."""
    scale = 1000.0 * per_sample
    return {
        "us": quantile(samples_ns, 0.5) / scale,
        "mean_us": sum(samples_ns) / len(samples_ns) / scale,
        "p99_us": quantile(samples_ns, 0.99) / scale,
        "max_us": max(samples_ns) / scale,
        "ops": float(len(samples_ns) * per_sample),
    }


def spread(values: Sequence[float]) -> Figures:
    """Median of several rounds, and the range that the middle half of them lies in (IQR)."""
    return {
        "median": quantile(values, 0.5),
        "low": quantile(values, 0.25),
        "high": quantile(values, 0.75),
    }
