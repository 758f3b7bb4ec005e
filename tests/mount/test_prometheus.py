"""Debian's Prometheus reads a mount, over HTTP and through node_exporter, and gives the figures back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.mounts import Mounts
from support.prometheus import Prometheus, free_port, need, queries, running

CONFIG = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [{rules}]
scrape_configs:
  - job_name: http
    static_configs: [{{ targets: ["{http}"] }}]
  - job_name: node
    static_configs: [{{ targets: ["127.0.0.1:{node}"] }}]
"""


@pytest.mark.slow
def test_prometheus_reads_back_what_the_mount_did(mounts: Mounts, tmp_path: Path) -> None:
    server, exporter = need("prometheus"), need("prometheus-node-exporter")
    mount = mounts("http=127.0.0.1:0", "commit_quiet=1h", "commit_interval=1h")
    for number in range(5):
        (mount.path / f"f{number}").write_text("x" * 1000)
    mount.commit()
    (mount.path / "pending").write_text("y")
    node, port = free_port(), free_port()
    target = mount.stats("config.json")["http"]["url"].removeprefix("http://").rstrip("/")
    rules = Path(__file__).parents[2] / "docs/monitoring/alerts.yml"
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(http=target, node=node, rules=rules))
    with (
        running(
            tmp_path / "node.log", exporter, f"--web.listen-address=127.0.0.1:{node}",
            "--collector.disable-defaults", "--collector.textfile",
            f"--collector.textfile.directory={mount.path}/.stats",
        ),
        running(
            tmp_path / "prometheus.log", server, f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}",
        ),
    ):  # fmt: skip
        prometheus = Prometheus(port)
        prometheus_ready(prometheus)
        for job in ("http", "node"):
            prometheus.wait(f'caiafs_build_info{{job="{job}"}}')
            ours = f'job="{job}"'
            (commits,) = prometheus.query(f'caiafs_commits_total{{{ours},outcome="success"}}')
            assert float(commits["value"][1]) == mount.stats()["storage_stats"]["commits"]["count"] == 1
            (changes,) = prometheus.query(f"caiafs_uncommitted_changes{{{ours}}}")
            assert (
                float(changes["value"][1])
                == mount.stats()["storage_stats"]["commits"]["uncommitted_changes"]
                > 0
            )
            (limit,) = prometheus.query(f"caiafs_memory_limit_bytes{{{ours}}}")
            assert float(limit["value"][1]) == 256 << 20
            (healthy,) = prometheus.query(f'caiafs_health_state{{{ours},state="healthy"}}')
            assert float(healthy["value"][1]) == 1
        (error,) = prometheus.query('node_textfile_scrape_error{job="node"}')
        assert float(error["value"][1]) == 0
        assert float(prometheus.query('up{job="http"}')[0]["value"][1]) == 1
        mount_works(prometheus, mount.path)
        answered = {}
        for where, query in queries():
            if where.startswith("variable"):
                continue
            plain = query.replace("$__rate_interval", "10s").replace("$instance", ".*")
            answered[where] = len(prometheus.query(plain))
        panels = {where: count for where, count in answered.items() if where.startswith("panel")}
        assert [where for where, count in panels.items() if not count] == []
        rules_seen = prometheus.get("/api/v1/rules")["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules_seen} == {"ok"}
    assert "duplicate" not in (tmp_path / "node.log").read_text()
    assert json.loads((mount.path / ".stats/health.json").read_text())["healthy"]


def prometheus_ready(prometheus: Prometheus) -> None:
    from support.mounts import wait_until

    wait_until(lambda: prometheus.get("/-/ready"), 60, "Prometheus")


def mount_works(prometheus: Prometheus, path: Path) -> None:
    """Some requests in the last seconds, so that rates have something to say."""
    for number in range(20):
        (path / f"more{number}").write_text("z")
    prometheus.wait("sum(rate(caiafs_fuse_request_seconds_count[10s])) > 0")
