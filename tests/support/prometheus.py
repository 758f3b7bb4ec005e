"""Debian's Prometheus and node exporter, unpacked or installed, started by the tests alone."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.mounts import SOURCE, wait_until

MONITORING = SOURCE / "docs/monitoring"
TOOLS = SOURCE / ".venv/tools/usr/bin"
METRIC = re.compile(r"\bcaiafs_\w+")


def need(program: str) -> str:
    """The program; skips where it is neither installed nor unpacked."""
    found = shutil.which(program) or shutil.which(program, path=TOOLS)
    if found is None:
        pytest.skip(f"no {program}: `sh .ci/setup test` unpacks it")
    return found


def queries() -> list[tuple[str, str]]:
    """(where, expression) of every query in the alert rules and on the dashboard."""
    rules = (MONITORING / "alerts.yml").read_text()
    found = []
    for block in re.split(r"^ +- alert: ", rules, flags=re.MULTILINE)[1:]:
        match = re.search(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels):", block, re.DOTALL)
        assert match, block
        found.append((block.split("\n")[0], " ".join(match[1].split())))
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        found += [(f"panel {panel['title']}", target["expr"]) for target in panel.get("targets", [])]
    found += [
        (f"variable {one['name']}", one["definition"])
        for one in dashboard["templating"]["list"] if one["type"] == "query"
    ]  # fmt: skip
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Prometheus:
    """Answers queries at *port*."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        """What its API says; None while it does not answer, or says that it is not ready yet."""
        url = f"{self._base}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.loads(answer.read() or b"null") if path.startswith("/api") else True
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            pytest.fail(f"{url}: {error.read().decode()}")
        except OSError:
            return None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of *expression* now; a query that is not understood fails the test."""
        answer = self.get("/api/v1/query", query=expression)
        assert answer is not None
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def wait(self, expression: str, timeout: float = 60) -> list[dict[str, Any]]:
        """The samples once there are any."""
        wait_until(lambda: self.query(expression), timeout, expression)
        return self.query(expression)
