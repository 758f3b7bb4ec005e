"""HTTP for real: the server's process, its sockets, and what becomes of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from support.mounts import wait_until
from support.processes import Process

from caiafs.config import Config, parse_http
from caiafs.control.http import process
from caiafs.control.http.listen import Listener
from caiafs.control.http.process import HttpServer, Sources
from caiafs.control.http.token import load_token
from caiafs.errors import MountError
from caiafs.metrics import Metrics
from caiafs.store import Store
from caiafs.virtual import render_json

POSITIVE = schemathesis.GenerationMode.POSITIVE
STATS = {
    "storage_stats": {
        "config": {"primary": "memory"},
        "memory": {"held_bytes": 5, "inode_bytes": 6, "limit_bytes": 100, "inodes": 1},
        "journal": {"bytes": 7},
        "git": {"head": None, "trouble": None},
        "commits": {"count": 0, "failures": 0, "uncommitted_changes": 0, "oldest_uncommitted_seconds": 0.0},
    }
}
HEALTH = {"healthy": True, "state": "healthy", "reasons": [], "backends": {"git": {"state": "healthy"}}}
CONFIG = {"pid": 1, "branch": "main", "settings": {}}


def sources() -> Sources:
    metrics = Metrics({"version": "1"})
    metrics.observe("git", "get", 1000)
    return Sources(lambda: HEALTH, lambda: STATS, lambda: CONFIG, metrics.snapshot, metrics.clear)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, and a state directory in which all servers here have their token."""
    path = tmp_path_factory.mktemp("server")
    Store.create(str(path / "r.git")).close()
    (path / "state").mkdir()
    return path


def make(base: Path, http: str = "127.0.0.1:0", **more: Any) -> HttpServer:
    config = Config(str(base / "r.git"), str(base / "m"), http=http, **more)
    return HttpServer(config, str(base / "state"), str(base / "r.git"), b"refs/heads/main", sources())


def serving(server: HttpServer, body: Callable[[], Any]) -> Any:
    """Runs *body* in a thread while *server* serves; nothing is left behind."""

    async def main() -> Any:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            try:
                return await trio.to_thread.run_sync(body)
            finally:
                nursery.cancel_scope.cancel()

    try:
        return trio.run(main)
    finally:
        server.close()


@contextmanager
def connection(server: HttpServer) -> Iterator[http.client.HTTPConnection]:
    address = server._listener.address
    with closing(
        http.client.HTTPConnection(address.host or "localhost", address.port or 80, timeout=30)
    ) as made:
        if address.path:
            made.sock = socket.socket(socket.AF_UNIX)
            made.sock.connect(address.path)
        yield made


def ask(server: HttpServer, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    with connection(server) as made:
        made.request(method, path, headers=headers)
        answer = made.getresponse()
        return answer.status, answer.read()


def test_requests_over_one_connection(base: Path) -> None:
    server = make(base)

    def body() -> None:
        with connection(server) as made:
            for method, path, status in (
                ("GET", "/api/v1/storage/stats", 200), ("HEAD", "/api/v1/storage/stats", 200),
                ("GET", "/nowhere", 404), ("DELETE", "/api/v1/storage/metrics", 401), ("GET", "/", 200),
                ("HEAD", "/metrics", 200), ("GET", "/api/v1/history?limit=5", 200),
            ):  # fmt: skip
                made.request(method, path)
                answer = made.getresponse()
                assert (path, answer.status) == (path, status)
                body = answer.read()
                assert len(body) == (0 if method == "HEAD" else int(answer.headers["content-length"]))
                assert answer.headers["server"] is None
        token = Path(server.token_file).read_text().strip()
        assert ask(server, "DELETE", "/api/v1/storage/metrics", Authorization=f"Bearer {token}") == (204, b"")
        assert ask(server, "GET", "/api/v1/storage/stats") == (200, render_json(STATS))

    serving(server, body)


def test_answers_are_those_of_the_description(base: Path) -> None:
    """schemathesis, with what the OpenAPI document says and what it does not."""
    server = make(base)

    def body() -> None:
        schema = schemathesis.openapi.from_dict(json.loads(ask(server, "GET", "/api/v1/openapi.json")[1]))
        token = Path(server.token_file).read_text().strip()
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 9
        for operation in operations:
            modes = (
                list(schemathesis.GenerationMode) if "parameters" in operation.definition.raw else [POSITIVE]
            )
            for mode in modes:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=6, deadline=None, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                def attempt(case: Any) -> None:
                    case.call_and_validate(base_url=server.url, headers={"Authorization": f"Bearer {token}"})

                attempt()

    serving(server, body)


def test_a_unix_socket_is_for_its_owner_and_goes_with_the_server(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "http"
    server = make(base, f"unix:{path}")

    def body() -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(server, "GET", "/api/v1/storage/health", Host="whatever") == (200, render_json(HEALTH))
        assert ask(server, "DELETE", "/api/v1/storage/metrics")[0] == 401

    serving(server, body)
    assert server.url == f"unix:{path}"
    assert not path.exists()


def test_a_server_that_is_killed_is_started_again(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.01)
    server = make(base)

    def body() -> None:
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.pid not in (None, first), what="a new server")
        assert ask(server, "GET", "/api/v1/storage/health")[0] == 200  # waits in the listening socket

    serving(server, body)
    assert "HTTP is not served: it ended; started again in 0.01 s" in caplog.text


def test_the_server_ends_with_its_daemon_and_takes_no_signal_of_others(base: Path) -> None:
    server = make(base)
    left = []

    def body() -> None:
        assert server.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(server.pid, number)
        assert ask(server, "GET", "/api/v1/storage/health")[0] == 200
        one = Process.of(server.pid)
        assert one is not None
        assert os.stat(f"/proc/{server.pid}/fd/1").st_rdev == os.stat("/dev/null").st_rdev
        assert token not in Path(f"/proc/{server.pid}/cmdline").read_text()
        assert token not in Path(f"/proc/{server.pid}/environ").read_text()
        left.append(server.pid)

    token = Path(server.token_file).read_text().strip()
    serving(server, body)
    assert not os.path.exists(f"/proc/{left[0]}")


def test_what_the_server_lacks_fails_the_mount(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", "import sys; sys.modules['starlette'] = None\n" + process._START)
    server = make(base)
    with pytest.raises(BaseExceptionGroup) as caught:
        serving(server, lambda: None)
    (problem,) = caught.value.exceptions
    assert isinstance(problem, MountError)
    assert "library is missing" in str(problem)
    assert "starlette" in str(problem)


def test_a_server_that_dies_at_its_start_fails_the_mount(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", "raise SystemExit(3)")
    with pytest.raises(BaseExceptionGroup) as caught:
        serving(make(base), lambda: None)
    assert "ended before it served" in str(caught.value.exceptions[0])


# ---- addresses


def test_a_port_in_use_is_said(base: Path) -> None:
    with closing(Listener(parse_http("127.0.0.1:0"))) as first:
        with pytest.raises(
            MountError, match=f"http=127.0.0.1:{first.address.port}: another program"
        ) as caught:
            make(base, str(first.address))
        assert caught.value.exit_code == 32


def test_an_address_of_another_machine_is_said(base: Path) -> None:
    with pytest.raises(MountError, match="no such address"):
        make(base, "192.0.2.7:8080")


def test_a_socket_that_a_dead_daemon_left_is_taken_over_and_a_living_one_is_not(
    base: Path, tmp_path: Path
) -> None:
    wanted = parse_http(f"unix:{tmp_path}/http")
    dead = Listener(wanted)
    dead.socket.close()
    living = Listener(wanted)
    with pytest.raises(MountError, match="another program"):
        Listener(wanted)
    living.close()
    assert not (tmp_path / "http").exists()


def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "http").write_text("mine")
    with pytest.raises(MountError, match="no socket"):
        Listener(parse_http(f"unix:{tmp_path}/http"))
    assert (tmp_path / "http").read_text() == "mine"
    with pytest.raises(MountError, match="does not exist; create it"):
        Listener(parse_http(f"unix:{tmp_path}/gone/http"))


@pytest.mark.parametrize("option", ["http", "http_token_file"])
def test_nothing_of_http_may_lie_in_the_mount_itself(base: Path, option: str) -> None:
    path = f"{base}/m/x"
    given = {"http": f"unix:{path}"} if option == "http" else {"http_token_file": path}
    with pytest.raises(MountError, match="in the mount itself"):
        make(base, **given)


# ---- the token


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = load_token(str(path))
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_token(str(path)) == token
    assert os.listdir(tmp_path) == ["token"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_token_that_others_can_read_is_none(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("a-token-that-is-long-enough\n")
    path.chmod(mode)
    with pytest.raises(MountError, match="chmod 600"):
        load_token(str(path))


@pytest.mark.parametrize(
    "text", ["", "short\n", "two words of a token\n", "x" * 600, "ünïcödé-is-not-for-headers"]
)
def test_a_token_that_no_header_can_carry_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(MountError, match="at least 16 characters"):
        load_token(str(path))
    assert path.read_text() == text


def test_a_token_of_ones_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("my-own.token_of~16+chars==\n")
    path.chmod(0o400)
    assert load_token(str(path)) == "my-own.token_of~16+chars=="


def test_where_no_token_can_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="http_token_file=FILE"):
        load_token(str(tmp_path / "gone" / "token"))
    with pytest.raises(MountError, match="no regular file"):
        load_token(str(tmp_path))
