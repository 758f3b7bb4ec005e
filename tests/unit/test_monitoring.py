"""The files under docs/monitoring fit the metrics that there are, and Prometheus' own tools agree."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from support.prometheus import METRIC, MONITORING, need, queries

from caiafs.metrics import GAUGES, GaugeValue, Metrics

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())


def exposition() -> bytes:
    metrics = Metrics({"version": "1", "pyfuse3": "3"})
    metrics.request("read", 1000)
    metrics.observe("git", "get", 1000)
    for name, (_, label) in GAUGES.items():
        metrics.gauge_source(name, partial(_gauge, name, label))
    return metrics.exposition()


def _gauge(name: str, label: str | None) -> GaugeValue:
    if name == "caiafs_health_state":
        return "healthy"
    return {"data": 1.0} if label else 1.0


SAMPLES = {line.partition("{")[0].partition(" ")[0] for line in exposition().decode().splitlines()}


@pytest.mark.parametrize(("where", "query"), queries(), ids=[where for where, _ in queries()])
def test_every_query_names_metrics_that_exist(where: str, query: str) -> None:
    named = set(METRIC.findall(query))
    assert named
    assert named <= SAMPLES


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        name for where, query in queries() if not where.startswith("Caiafs") for name in METRIC.findall(query)
    }
    kinds = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in SAMPLES}
    there = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in shown}
    assert {name for name in kinds if name.startswith("caiafs")} == there


@pytest.mark.parametrize(
    ("metric", "label", "value"),
    [
        ("caiafs_health_state", "state", "degraded"), ("caiafs_health_state", "state", "failed"),
        ("caiafs_commits_total", "outcome", "failure"),
        ("caiafs_storage_operations_total", "outcome", "failure"),
    ],
)  # fmt: skip
def test_values_of_labels_that_queries_ask_for_are_real(metric: str, label: str, value: str) -> None:
    assert any(f'{label}="{value}"' in query and metric in query for _, query in queries())
    assert f"{metric}{{" in exposition().decode()
    assert f'{label}="{value}"' in exposition().decode()


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]
        assert len({target["refId"] for target in panel.get("targets", [])}) == len(panel.get("targets", []))
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_promtool_has_nothing_to_say_about_names_and_help() -> None:
    done = subprocess.run([need("promtool"), "check", "metrics"], input=exposition(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_would_have_something_to_say() -> None:
    bad = exposition().replace(b"caiafs_commits_total", b"caiafs_commits")
    assert (
        subprocess.run([need("promtool"), "check", "metrics"], input=bad, capture_output=True).returncode != 0
    )


def test_promtool_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    tool = need("promtool")
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.test.yml"), tmp_path)
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run([tool, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
