"""Metrics: figures that are true, and bytes that Prometheus takes."""

from __future__ import annotations

import logging
import math
import pickle
from bisect import bisect_left
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from caiafs.metrics import EDGES, GAUGES, Metrics
from caiafs.metrics.exposition import number, registry

DESIGN_NAMES = {
    "caiafs_storage_operations_total",
    "caiafs_storage_operation_seconds",
    "caiafs_fuse_request_seconds",
    "caiafs_memory_bytes",
    "caiafs_memory_limit_bytes",
    "caiafs_journal_bytes",
    "caiafs_uncommitted_changes",
    "caiafs_oldest_uncommitted_seconds",
    "caiafs_commits_total",
    "caiafs_commit_seconds",
    "caiafs_fallbacks_total",
    "caiafs_health_state",
    "caiafs_build_info",
}

KEYS = [
    "count",
    "success_count",
    "failure_count",
    "success_rate",
    "total_duration_ns",
    "min_duration_ns",
    "max_duration_ns",
    "avg_duration_ns",
    "p50_duration_ns",
    "p99_duration_ns",
]

durations = st.one_of(
    st.integers(0, 10**13),
    st.integers(0, 10**6),
    st.sampled_from(EDGES),
    st.sampled_from(EDGES).map(lambda e: e + 1),
)


def used() -> Metrics:
    """A Metrics after what a mount does in its first seconds."""
    metrics = Metrics({"version": "1.2.3", "pyfuse3": "3.5.0"})
    metrics.observe("memory", "store", 1500)
    metrics.observe("memory", "store", 4000)
    metrics.observe("git", "get", 3_000_000, ok=False)
    metrics.request("getattr", 20_000)
    metrics.commit("success", 0.03)
    metrics.commit("failure", 2.0)
    metrics.fallback("memory", "git")
    metrics.gauge_source("caiafs_memory_bytes", lambda: {"extents": 10, "tree": 20})
    metrics.gauge_source("caiafs_memory_limit_bytes", lambda: 2**28)
    metrics.gauge_source("caiafs_journal_bytes", lambda: 77)
    metrics.gauge_source("caiafs_uncommitted_changes", lambda: 3)
    metrics.gauge_source("caiafs_oldest_uncommitted_seconds", lambda: 1.25)
    metrics.gauge_source("caiafs_health_state", lambda: "degraded")
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float:
    found = [
        s.value
        for family in families(metrics).values()
        for s in family.samples
        if s.name == sample and s.labels == labels
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def test_nothing_observed_is_an_empty_summary() -> None:
    assert Metrics().summary() == {"metrics_summary": {"by_backend": {}, "total_operations": 0}}


def test_summary_has_the_documented_keys_in_order() -> None:
    summary = used().summary()["metrics_summary"]
    assert list(summary) == ["by_backend", "total_operations"]
    assert summary["total_operations"] == 3
    assert list(summary["by_backend"]["memory"]["store"]) == KEYS
    assert summary["by_backend"]["git"] == {
        "get": {
            "count": 1,
            "success_count": 0,
            "failure_count": 1,
            "success_rate": 0.0,
            "total_duration_ns": 3_000_000,
            "min_duration_ns": 3_000_000,
            "max_duration_ns": 3_000_000,
            "avg_duration_ns": 3_000_000,
            "p50_duration_ns": 3_000_000,
            "p99_duration_ns": 3_000_000,
        }
    }


@given(st.lists(st.tuples(durations, st.booleans()), min_size=1, max_size=300))
def test_summary_agrees_with_what_was_observed(seen: list[tuple[int, bool]]) -> None:
    metrics = Metrics()
    for ns, ok in seen:
        metrics.observe("git", "get", ns, ok)
    figures = metrics.summary()["metrics_summary"]["by_backend"]["git"]["get"]
    times = sorted(ns for ns, _ in seen)
    assert figures["count"] == len(seen)
    assert figures["success_count"] == sum(ok for _, ok in seen)
    assert figures["failure_count"] == sum(not ok for _, ok in seen)
    assert figures["success_rate"] == pytest.approx(figures["success_count"] / len(seen), abs=1e-6)
    assert figures["total_duration_ns"] == sum(times)
    assert figures["min_duration_ns"] == times[0]
    assert figures["max_duration_ns"] == times[-1]
    assert times[0] <= figures["avg_duration_ns"] <= times[-1]
    assert times[0] <= figures["p50_duration_ns"] <= figures["p99_duration_ns"] <= times[-1]


@given(st.lists(st.integers(100, 10**12), min_size=1, max_size=300))
def test_percentiles_are_within_one_fine_bucket_of_the_truth(times: list[int]) -> None:
    metrics = Metrics()
    for ns in times:
        metrics.observe("git", "get", ns)
    figures = metrics.summary()["metrics_summary"]["by_backend"]["git"]["get"]
    times.sort()
    for percent in (50, 99):
        truth = times[math.ceil(len(times) * percent / 100) - 1]
        assert figures[f"p{percent}_duration_ns"] == pytest.approx(truth, rel=0.143)


def test_fine_buckets_are_as_narrow_as_promised() -> None:
    assert all(low < high <= low * 1.143 for low, high in pairwise(EDGES))


@given(st.lists(durations, max_size=300))
def test_histogram_counts_exactly_what_is_at_or_below_each_bound(times: list[int]) -> None:
    metrics = Metrics()
    metrics.request("read", 1)
    for ns in times:
        metrics.request("read", ns)
    samples = families(metrics)["caiafs_fuse_request_seconds"].samples
    buckets = [s for s in samples if s.name.endswith("_bucket")]
    assert len(buckets) > 10
    ordered = sorted([1, *times])
    for s in buckets:
        bound = float(s.labels["le"])
        below = len(ordered) if math.isinf(bound) else bisect_left(ordered, round(bound * 1e9) + 1)
        assert s.value == below
    assert value(metrics, "caiafs_fuse_request_seconds_count", op="read") == len(ordered)
    assert value(metrics, "caiafs_fuse_request_seconds_sum", op="read") == pytest.approx(sum(ordered) / 1e9)


def test_many_observations_are_all_counted() -> None:
    metrics = Metrics()
    for i in range(100_000):
        metrics.observe("memory", "get", i, ok=i % 10 != 0)
    assert (
        value(
            metrics, "caiafs_storage_operations_total", backend="memory", operation="get", outcome="success"
        )
        == 90_000
    )
    assert (
        value(
            metrics, "caiafs_storage_operations_total", backend="memory", operation="get", outcome="failure"
        )
        == 10_000
    )


def test_exposition_has_every_name_of_the_design() -> None:
    shown = {
        line.split()[2] for line in used().exposition().decode().splitlines() if line.startswith("# TYPE ")
    }
    assert shown == DESIGN_NAMES


def test_exposition_is_what_the_textfile_collector_accepts() -> None:
    text = used().exposition().decode()
    assert text.endswith("\n")
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")]
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert helps == types
    assert len(set(helps)) == len(helps)
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert samples
    assert all(s.timestamp is None for s in samples)
    assert all(family.documentation for family in text_string_to_metric_families(text))


def test_label_values_of_any_text_survive_the_exposition() -> None:
    metrics = Metrics()
    strange = 'a "b" \\ \n ü'
    metrics.fallback(strange, "git")
    assert value(metrics, "caiafs_fallbacks_total", **{"from": strange, "to": "git"}) == 1


def test_the_text_is_byte_for_byte_that_of_prometheus_client() -> None:
    metrics = used()
    strange = 'a "b" \\ \n ü 100 %s'
    metrics.request(strange, 5)
    metrics.observe(strange, "get", 10**13)
    metrics.fallback(strange, "git")
    for _ in range(3):
        metrics.commit("success", 1e6)
    metrics.series("memory", "store").counts[40] += 1_234_560_000  # where Go begins to write exponents
    for amount in (0, -1.5, 999_999, 1_000_000, 1e15, 1e300, math.inf, -math.inf, math.nan):
        metrics.gauge_source("caiafs_journal_bytes", partial(float, amount))
        assert metrics.exposition() == generate_latest(registry(metrics.families))


@given(st.floats() | st.integers(-(2**63), 2**63))
def test_numbers_are_written_as_prometheus_client_does(value: float) -> None:
    assert number(value) == floatToGoString(value)


def test_gauges_are_asked_when_they_are_rendered() -> None:
    metrics = Metrics()
    size = [1]
    metrics.gauge_source("caiafs_journal_bytes", lambda: size[0])
    assert value(metrics, "caiafs_journal_bytes") == 1
    size[0] = 2
    assert value(metrics, "caiafs_journal_bytes") == 2


def test_health_is_one_for_the_current_state_and_zero_for_the_others() -> None:
    metrics = used()
    assert {
        state: value(metrics, "caiafs_health_state", state=state)
        for state in ("healthy", "degraded", "failed")
    } == {"healthy": 0, "degraded": 1, "failed": 0}


def test_memory_is_shown_by_kind() -> None:
    assert value(used(), "caiafs_memory_bytes", kind="tree") == 20


def test_gauge_without_source_is_left_out() -> None:
    assert not set(families(Metrics())) & set(GAUGES)


def test_gauge_that_raises_costs_only_itself_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = used()
    metrics.gauge_source("caiafs_journal_bytes", lambda: 1 // 0)
    with caplog.at_level(logging.ERROR):
        names = set(families(metrics))
        metrics.exposition()
    assert "caiafs_journal_bytes" not in names
    assert "caiafs_memory_limit_bytes" in names
    assert len(caplog.records) == 1


def test_unknown_gauge_is_refused() -> None:
    with pytest.raises(ValueError, match="no gauge is called caiafs_jornal_bytes"):
        Metrics().gauge_source("caiafs_jornal_bytes", lambda: 1)


def test_known_outcomes_are_there_before_they_happen() -> None:
    metrics = Metrics()
    assert value(metrics, "caiafs_commits_total", outcome="failure") == 0
    assert value(metrics, "caiafs_fallbacks_total", **{"from": "git", "to": "memory"}) == 0
    assert value(metrics, "caiafs_commit_seconds_count") == 0


def test_commits_are_counted_by_outcome_and_timed() -> None:
    metrics = used()
    metrics.commit("success", 0.5)
    assert value(metrics, "caiafs_commits_total", outcome="success") == 2
    assert value(metrics, "caiafs_commit_seconds_sum") == pytest.approx(2.53)
    assert value(metrics, "caiafs_commit_seconds_bucket", le="0.5") == 2


def test_build_info_tells_the_versions() -> None:
    (sample,) = families(used())["caiafs_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == "1.2.3"
    assert sample.labels["pyfuse3"] == "3.5.0"
    assert sample.labels["python"].startswith("3.")


def test_clear_empties_the_summary_and_leaves_prometheus_counters_rising() -> None:
    metrics = used()
    metrics.clear()
    assert metrics.summary() == Metrics().summary()
    metrics.observe("memory", "store", 9000)
    store = metrics.summary()["metrics_summary"]["by_backend"]["memory"]["store"]
    assert store["count"] == 1
    assert store["min_duration_ns"] == store["p99_duration_ns"] == store["max_duration_ns"] == 9000
    assert "git" not in metrics.summary()["metrics_summary"]["by_backend"]
    assert (
        value(
            metrics, "caiafs_storage_operations_total", backend="memory", operation="store", outcome="success"
        )
        == 3
    )
    assert value(metrics, "caiafs_storage_operation_seconds_count", backend="memory", operation="store") == 3


def test_timed_counts_a_block_and_lets_its_exception_through() -> None:
    metrics = Metrics()
    timer = metrics.timed("git", "store")
    with timer:
        pass
    with timer:
        pass
    with pytest.raises(KeyError), metrics.timed("git", "store"):
        raise KeyError
    figures = metrics.summary()["metrics_summary"]["by_backend"]["git"]["store"]
    assert (figures["success_count"], figures["failure_count"]) == (2, 1)
    assert figures["max_duration_ns"] > 0


def test_observing_the_same_thing_again_allocates_no_new_series() -> None:
    """What an observation costs, without a clock: nothing grows with the number of observations."""
    metrics = Metrics()
    metrics.observe("memory", "get", 1)
    metrics.request("read", 1)
    lines = len(metrics.exposition().splitlines())
    for i in range(1000):
        metrics.observe("memory", "get", i * 1000)
        metrics.request("read", i * 1000)
    assert len(metrics.exposition().splitlines()) == lines


def test_two_mounts_do_not_share_figures() -> None:
    one, two = Metrics(), Metrics()
    one.observe("memory", "get", 1)
    assert two.summary()["metrics_summary"]["total_operations"] == 0


def test_a_snapshot_renders_to_the_same_bytes_in_another_process() -> None:
    metrics = Metrics({"version": "1"})
    for turn in range(100):
        metrics.observe("git", "get", 1000 * turn, ok=turn % 3 > 0)
        metrics.request("read", 10_000 * turn)
    metrics.clear()
    metrics.observe("git", "get", 5000)
    metrics.observe("memory", "get", 7000, ok=False)
    metrics.commit("success", 0.5)
    metrics.fallback("memory", "git")
    metrics.gauge_source("caiafs_memory_bytes", lambda: {"data": 5.0, "inodes": 6.0})
    metrics.gauge_source("caiafs_health_state", lambda: "degraded")
    metrics.gauge_source("caiafs_journal_bytes", lambda: 1 / 0)
    other = Metrics.restored(pickle.loads(pickle.dumps(metrics.snapshot())))
    assert other.exposition() == metrics.exposition()
    assert other.openmetrics() == metrics.openmetrics()
    assert other.summary() == metrics.summary()
    metrics.request("read", 1)
    assert other.exposition() != metrics.exposition()
