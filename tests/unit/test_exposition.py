"""Figures for people, read back from the Prometheus text that metrics.py writes."""

from __future__ import annotations

import math

import pytest

from caiafs.control.exposition import Histogram, Samples
from caiafs.metrics import Metrics


def samples(*requests: tuple[str, int]) -> Samples:
    metrics = Metrics({"version": 'a "quoted\\ version"'})
    for op, ns in requests:
        metrics.request(op, ns)
    return Samples(metrics.exposition().decode())


def test_histograms_come_back() -> None:
    found = samples(("read", 2_000), ("read", 30_000), ("write", 30_000_000_000))
    all_, read = (
        found.histogram("caiafs_fuse_request_seconds"),
        found.histogram("caiafs_fuse_request_seconds", op="read"),
    )
    assert (all_.count, read.count) == (3, 2)
    assert read.seconds == pytest.approx(32e-6)
    assert all_.buckets[math.inf] == 3
    assert found.label_values("caiafs_fuse_request_seconds_count", "op") == ["read", "write"]
    assert found.value("caiafs_commits_total", outcome="success") == 0
    assert found.value("caiafs_nothing") == 0
    assert found.value("caiafs_build_info") == 1


def test_quantiles_are_those_of_prometheus() -> None:
    one = Histogram({0.001: 10.0, 0.01: 90.0, 0.1: 100.0, math.inf: 100.0}, 1.0)
    assert one.quantile(0.5) == pytest.approx(0.001 + 0.009 * 40 / 80)
    assert one.quantile(0.95) == pytest.approx(0.01 + 0.09 * 5 / 10)
    assert one.quantile(0.1) == pytest.approx(0.001)
    assert Histogram({0.001: 0.0, math.inf: 5.0}, 1.0).quantile(0.5) == 0.001
    assert Histogram({}, 0.0).quantile(0.5) is None


def test_what_came_since() -> None:
    before = samples(("read", 2_000)).histogram("caiafs_fuse_request_seconds")
    now = samples(("read", 2_000), ("read", 40_000_000)).histogram("caiafs_fuse_request_seconds")
    recent = now.since(before)
    assert recent.count == 1
    assert 0.025 <= (recent.quantile(0.5) or 0) <= 0.05
    assert now.since(None) == now
    assert before.since(now) == before  # another daemon: counted from its start
