"""HTTP beside a mount: the same bytes as its files, its start and its end."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.mounts import Mount, Mounts, run


def url(mount: Mount, path: str) -> str:
    found: str = mount.stats("config.json")["http"]["url"]
    return found.rstrip("/") + path


def ask(mount: Mount, path: str, method: str = "GET", token: str = "") -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url(mount, path), method=method, headers=headers), timeout=30
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def moving(text: bytes) -> Any:
    """A file of `.stats` without the figures that a look at them, or time alone, moves."""
    found = json.loads(text)
    if "storage_stats" in found:
        found["storage_stats"].pop("requests", None)
        found["storage_stats"]["commits"].pop("oldest_uncommitted_seconds")
    return found


def test_cat_is_get_and_rm_is_delete(mounts: Mounts) -> None:
    mount = mounts("http=127.0.0.1:0", "commit_quiet=1h", "commit_interval=1h")
    (mount.path / "a").write_text("1")
    mount.commit()
    (mount.path / "b").write_text("2")
    for name in ("health", "stats", "metrics", "config"):
        status, body = ask(mount, f"/api/v1/storage/{name}")
        file = (mount.path / f".stats/{name}.json").read_bytes()
        assert status == 200
        if name in ("health", "config"):
            assert body == file
        assert moving(body) == moving(file)
        assert len(body.splitlines()) == len(file.splitlines())
    before = (mount.path / ".stats/caiafs.prom").read_text().splitlines()
    scraped = ask(mount, "/metrics")[1].decode().splitlines()
    names = [line.rpartition(" ")[0] for line in scraped]
    assert [line.rpartition(" ")[0] for line in before if "fuse_request" not in line] == [
        name for name in names if "fuse_request" not in name
    ]
    token = Path(mount.stats("config.json")["http"]["token_file"]).read_text().strip()
    assert mount.stats("metrics.json")["metrics_summary"]["total_operations"] > 0
    assert ask(mount, "/api/v1/storage/metrics", "DELETE")[0] == 401
    assert ask(mount, "/api/v1/storage/metrics", "DELETE", token) == (204, b"")
    assert mount.stats("metrics.json")["metrics_summary"]["total_operations"] == 0
    commits = json.loads(ask(mount, "/api/v1/history")[1])["commits"]
    assert [(one["commit"], one["files"]) for one in commits] == [
        (mount.tip(), [{"path": "a", "change": "added"}])
    ]
    assert token not in (mount.path / ".stats/config.json").read_text() + mount.log()
    assert url(mount, "/") in mount.caiafs("status", mount.path).stdout


def test_a_port_in_use_fails_the_mount_in_one_line_and_leaves_nothing(mounts: Mounts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        mount = mounts.prepare(f"http=127.0.0.1:{port}")
        done = mount.caiafs(
            "mount", "-o", f"init,http=127.0.0.1:{port}", mount.repository, mount.path, status=32
        )
    assert f"http=127.0.0.1:{port}: another program" in done.stderr
    assert "Traceback" not in done.stderr
    assert mount.start().stats("health.json")["healthy"] is True


def test_an_unmount_does_not_wait_for_who_holds_a_connection(mounts: Mounts) -> None:
    mount = mounts("http=127.0.0.1:0")
    host, _, port = url(mount, "").removeprefix("http://").partition(":")
    with (
        socket.create_connection((host, int(port))) as idle,
        socket.create_connection((host, int(port))) as half,
    ):
        half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        begun = time.monotonic()
        mount.umount()
        assert time.monotonic() - begun < 30
        idle.settimeout(10)
        assert idle.recv(1) == b""


def test_health_is_503_while_git_is_in_trouble_and_the_page_says_why(mounts: Mounts) -> None:
    mount = mounts("http=127.0.0.1:0")
    mount.expect_log("commit failed|not committed")
    lock = mount.repository / "refs/heads/main.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    (mount.path / "a").write_text("1")
    mount.caiafs("commit", mount.path, status=1)
    status, body = ask(mount, "/api/v1/storage/health")
    assert (status, json.loads(body)["state"]) == (503, "degraded")
    reason = json.loads(body)["reasons"][0]
    page = ask(mount, "/")[1].decode()
    assert reason.split(":")[0] in page
    assert 'data-state="degraded"' in page
    lock.unlink()
    mount.commit()
    assert ask(mount, "/api/v1/storage/health")[0] == 200


def test_many_who_ask_at_once_are_all_answered_while_files_are_written(mounts: Mounts) -> None:
    mount = mounts("http=127.0.0.1:0")
    statuses: list[int] = []

    def client() -> None:
        statuses.extend(ask(mount, path)[0] for path in ("/metrics", "/api/v1/storage/stats", "/") * 5)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    for number in range(200):
        (mount.path / f"f{number}").write_text(str(number))
    for one in clients:
        one.join()
    assert statuses == [200] * 120
    assert len(list(mount.path.iterdir())) == 200


def test_a_mount_without_http_loads_nothing_of_it(mounts: Mounts) -> None:
    mount = mounts()
    loaded = Path(f"/proc/{mount.pid}/maps").read_text()
    assert "pyfuse3" in loaded
    assert [one for one in mount.family() if "http" in one.describe()] == []
    code = (
        "import sys, caiafs.mount\n"
        "foreign = {'starlette', 'hypercorn', 'prometheus_client', 'rich'}\n"
        "print([m for m in sys.modules if m.split('.')[0] in foreign or 'control.http' in m])"
    )
    assert run(sys.executable, "-c", code, env=mount.env).stdout == "[]\n"


@pytest.mark.parametrize("address", ["unix:{}/http", "[::1]:0"])
def test_other_addresses(mounts: Mounts, scratch: Path, address: str) -> None:
    if address.startswith("["):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error.strerror}")
    mount = mounts(f"http={address.format(mounts.base)}")
    told = mount.stats("config.json")["http"]["url"]
    if address.startswith("unix"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(told.removeprefix("unix:"))
            sock.sendall(b"GET /api/v1/storage/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert sock.recv(20).startswith(b"HTTP/1.1 200")
    else:
        assert told.startswith("http://[::1]:")
        assert ask(mount, "/api/v1/storage/health")[0] == 200
