"""HTTP without sockets: who is let in, what is answered, and how often the daemon is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi import Answer, ask

from caiafs.config import Config, HttpAddress
from caiafs.control.http.app import make_app, wants_openmetrics
from caiafs.control.http.channel import Channel
from caiafs.control.http.figures import PATIENCE, SHARE, Figures
from caiafs.control.http.guard import Guard
from caiafs.control.http.process import HttpServer, Sources
from caiafs.history import History
from caiafs.metrics import Metrics
from caiafs.store import Store
from caiafs.virtual import render_json

TOKEN = "s3cret-token-of-a-test"
LOCAL = HttpAddress("127.0.0.1", 8080)
OUTSIDE = HttpAddress("0.0.0.0", 8080)
CONFIG = {"pid": 1, "branch": "main", "settings": {"mountpoint": {"value": "/mnt", "origin": "default"}}}
BEARER = [("authorization", f"Bearer {TOKEN}")]


class Daemon:
    """The daemon's side, which counts how often it is asked."""

    def __init__(self, base: Path, repository: Path, address: HttpAddress = LOCAL) -> None:
        self.asked: list[str] = []
        self.cleared = 0
        self.health: dict[str, Any] = {"healthy": True, "state": "healthy", "reasons": [], "backends": {}}
        self.metrics = Metrics({"version": "1"})
        self.metrics.observe("git", "get", 1000)
        self.stats: Callable[[], Any] = _stats
        self.config: dict[str, Any] = CONFIG
        sources = Sources(
            self._counted("health", lambda: self.health), self._counted("stats", lambda: self.stats()),
            self._counted("config", lambda: self.config), self._counted("metrics", self.metrics.snapshot),
            self._clear,
        )  # fmt: skip
        (base / "state").mkdir()
        config = Config(str(base / "r.git"), str(base / "m"), http="127.0.0.1:0")
        self.server = HttpServer(
            config, str(base / "state"), str(base / "r.git"), b"refs/heads/main", sources
        )
        self.history = History(str(repository), b"refs/heads/main")
        self.address = address
        self.stuck = False

    def _counted(self, name: str, source: Callable[[], object]) -> Callable[[], object]:
        def tell() -> object:
            self.asked.append(name)
            return source()

        return tell

    def files(self) -> dict[str, bytes]:
        """What is under `.stats`, as mount/report.py renders it."""
        return {
            "stats.json": render_json(self.stats()),
            "health.json": render_json(self.health),
            "config.json": render_json(CONFIG),
            "caiafs.prom": self.metrics.exposition(),
            "metrics.json": render_json(self.metrics.summary()),
        }

    def _clear(self) -> None:
        self.cleared += 1
        self.metrics.clear()

    def run(self, body: Callable[[Any], Awaitable[Any]], threshold: float = 0.01) -> Any:
        """Runs *body* with the application, on a clock that jumps where nobody has anything to do."""

        async def main() -> Any:
            ours, theirs = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:
                if not self.stuck:
                    nursery.start_soon(self.server._answer, Channel(ours))
                figures = Figures(Channel(theirs))
                await nursery.start(figures.run)
                result = await body(make_app(figures, self.history, self.address, TOKEN, "1"))
                nursery.cancel_scope.cancel()
            return result

        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=threshold))

    def ask(self, method: str, target: str, headers: Any = None, **more: Any) -> Answer:
        async def body(app: Any) -> Answer:
            return await ask(app, method, target, headers, **more)

        answer: Answer = self.run(body)
        return answer

    def close(self) -> None:
        self.server.close()
        self.history.close()


def _stats() -> dict[str, Any]:
    return {
        "storage_stats": {
            "config": {"primary": "memory", "enable_fallback": True, "branch": "main", "repository": "/r.git",
                       "mountpoint": "/mnt"},
            "memory": {"held_bytes": 5, "inode_bytes": 6, "limit_bytes": 100, "inodes": 1},
            "journal": {"bytes": 7}, "git": {"head": None, "trouble": None},
            "commits": {"count": 0, "failures": 0, "uncommitted_changes": 0, "uncommitted_bytes": 0,
                        "oldest_uncommitted_seconds": 0.0, "last_commit": None, "last_commit_at": None,
                        "last_subject": ""},
        }
    }  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one, that no test changes."""
    path = tmp_path_factory.mktemp("http") / "r.git"
    Store.create(str(path)).close()
    return path


@pytest.fixture
def daemon(tmp_path: Path, repository: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, repository)
    yield made
    made.close()


@pytest.fixture
def outside(tmp_path: Path, repository: Path) -> Iterator[Daemon]:
    """One that other machines can reach."""
    made = Daemon(tmp_path, repository, OUTSIDE)
    yield made
    made.close()


FILES = {
    "/api/v1/storage/stats": "stats.json",
    "/api/v1/storage/metrics": "metrics.json",
    "/api/v1/storage/health": "health.json",
    "/api/v1/storage/config": "config.json",
    "/metrics": "caiafs.prom",
}


# ---- what is answered


@pytest.mark.parametrize("path", FILES)
def test_a_get_is_a_cat(daemon: Daemon, path: str) -> None:
    answer = daemon.ask("GET", path)
    assert (answer.status, answer.body) == (200, daemon.files()[FILES[path]])
    kind = "text/plain; version=0.0.4; charset=utf-8" if path == "/metrics" else "application/json"
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [*FILES, "/", "/api/v1/history", "/api/v1/openapi.json"])
def test_head_has_the_headers_of_get(daemon: Daemon, path: str) -> None:
    get, head = daemon.ask("GET", path), daemon.ask("HEAD", path)
    assert (head.status, head.headers) == (get.status, get.headers)


@pytest.mark.parametrize("state", ["degraded", "failed"])
def test_whoever_is_not_well_answers_503_with_the_reasons(daemon: Daemon, state: str) -> None:
    daemon.health = {"healthy": False, "state": state, "reasons": ["git: no space"], "backends": {}}
    answer = daemon.ask("GET", "/api/v1/storage/health")
    assert (answer.status, answer.json) == (503, daemon.health)


def test_a_delete_is_an_rm(daemon: Daemon) -> None:
    assert daemon.ask("GET", "/api/v1/storage/metrics").json["metrics_summary"]["total_operations"] == 1
    answer = daemon.ask("DELETE", "/api/v1/storage/metrics", BEARER)
    assert (answer.status, answer.body, daemon.cleared) == (204, b"", 1)
    assert daemon.ask("GET", "/api/v1/storage/metrics").json["metrics_summary"]["total_operations"] == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", [*FILES, "/", "/api/v1/history", "/api/v1/openapi.json"])
def test_what_cannot_be_done_is_405_and_says_what_can(daemon: Daemon, path: str, method: str) -> None:
    allowed = {"GET", "HEAD"} | ({"DELETE"} if path == "/api/v1/storage/metrics" else set())
    answer = daemon.ask(method, path, BEARER)
    if method in allowed:
        assert answer.status == 204
        return
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert answer.json["error"]["status"] == 405
    assert daemon.cleared == 0


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/metrics/", "/api/v1/storage", "/api/v1/storage/health/x", "/.stats/stats.json", "//"],
)
def test_nothing_there_is_404_in_json(daemon: Daemon, path: str) -> None:
    answer = daemon.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert "openapi.json" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], False),
        (["*/*"], False),
        (["text/plain"], False),
        (["application/openmetrics-text"], True),
        (["application/openmetrics-text; version=1.0.0; charset=utf-8, text/plain;q=0.5, */*;q=0.1"], True),
        (["application/openmetrics-text;q=0.3", "text/plain;q=0.5"], False),
        (["application/openmetrics-text;q=x"], False),
        (["application/json"], False),
    ],
)
def test_openmetrics_is_for_those_who_prefer_it(accept: list[str], wanted: bool) -> None:
    assert wants_openmetrics(",".join(accept)) is wanted


def test_openmetrics_ends_as_its_parsers_want(daemon: Daemon) -> None:
    answer = daemon.ask("GET", "/metrics", [("accept", "application/openmetrics-text")])
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1.0", "\u0663", "9" * 5000, "1&limit=2"])
def test_a_limit_out_of_range_is_refused(daemon: Daemon, limit: str) -> None:
    answer = daemon.ask("GET", f"/api/v1/history?limit={limit}")
    assert (answer.status, "1 to 100" in answer.json["error"]["message"]) == (400, True)


def test_a_broken_renderer_costs_its_answer_only(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.stats = lambda: 1 / 0
    answer = daemon.ask("GET", "/api/v1/storage/stats")
    assert (answer.status, "log" in answer.json["error"]["message"]) == (503, True)
    assert "ZeroDivisionError" in caplog.text
    assert daemon.ask("GET", "/api/v1/storage/health").status == 200


def test_damage_in_the_repository_costs_the_history_only(tmp_path: Path) -> None:
    Store.create(str(tmp_path / "r.git")).close()
    daemon = Daemon(tmp_path, tmp_path / "r.git")
    (tmp_path / "r.git/refs/heads/main").write_text("nonsense\n")
    answer = daemon.ask("GET", "/api/v1/history")
    assert (answer.status, "refs/heads/main" in answer.json["error"]["message"]) == (503, True)
    assert daemon.ask("GET", "/").status == 200
    daemon.close()


# ---- who is let in


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("LOCALHOST:8080", True), ("localhost.", True), ("127.0.0.1:8080", True),
        ("127.0.0.1:9999", True), ("[::1]:8080", True), ("m.localhost", True), ("192.0.2.7", True),
        ("evil.example", False), ("localhost.evil.example:8080", False), ("127.0.0.1.evil.example", False),
        ("", False), ("a b", False), ("localhost:x", False), ("user@localhost", False), ("2130706433", False),
        ("127.0.0.1\xa0", False), (None, False),
    ],
)  # fmt: skip
def test_on_loopback_names_of_others_are_refused(daemon: Daemon, host: str | None, known: bool) -> None:
    answer = daemon.ask("GET", "/api/v1/storage/stats", host=host)
    assert answer.status == (200 if known else 421)
    assert (daemon.asked == ["stats"]) is known


def test_two_hosts_are_none(daemon: Daemon) -> None:
    assert daemon.ask("GET", "/metrics", [("host", "localhost")]).status == 421


@pytest.mark.parametrize("address", [OUTSIDE, HttpAddress("::", 80), HttpAddress(path="/run/x")])
def test_beyond_loopback_and_on_a_socket_names_are_what_machines_are_known_by(address: HttpAddress) -> None:
    guard = Guard(None, address, TOKEN)  # type: ignore[arg-type]
    assert guard.knows_host(["files.example.org:8080"])
    assert not guard.knows_host(["a b"])
    assert not guard.knows_host([])


GIVEN = [
    ([], False),
    ([("authorization", "Bearer wrong")], False),
    ([("authorization", f"Bearer {TOKEN}x")], False),
    ([("authorization", f"Bearer {TOKEN[:-1]}")], False),
    ([("authorization", "Bearer ")], False),
    ([("authorization", TOKEN)], False),
    ([("authorization", f"Bearer {TOKEN}\xff")], False),
    ([*BEARER, *BEARER], False),
    (BEARER, True),
    ([("authorization", f"bearer  {TOKEN}")], True),
]


@pytest.mark.parametrize(("headers", "right"), GIVEN)
@pytest.mark.parametrize("method", ["DELETE", "POST", "OPTIONS"])
def test_to_change_something_the_token_is_needed(
    daemon: Daemon, method: str, headers: Any, right: bool
) -> None:
    answer = daemon.ask(method, "/api/v1/storage/metrics", headers)
    assert (answer.status == 401) is not right
    assert daemon.cleared == (method == "DELETE" and right)
    if not right:
        assert answer.headers["www-authenticate"] == 'Bearer realm="caiafs"'


@pytest.mark.parametrize(("headers", "right"), GIVEN)
@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/api/v1/storage/health", "/nowhere", "/api/v1/openapi.json"]
)
def test_beyond_loopback_everything_needs_it(outside: Daemon, path: str, headers: Any, right: bool) -> None:
    answer = outside.ask("GET", path, headers, host="files.example.org")
    assert (answer.status == 401) is not right
    assert right or outside.asked == []


def _basic(text: str) -> list[tuple[str, str]]:
    return [("authorization", "Basic " + base64.b64encode(text.encode()).decode())]


def test_a_browser_may_send_the_token_as_a_password_to_look_and_not_to_change(outside: Daemon) -> None:
    assert outside.ask("GET", "/metrics", _basic(f"anyone:{TOKEN}")).status == 200
    assert outside.ask("GET", "/metrics", _basic("anyone:wrong")).status == 401
    assert outside.ask("GET", "/metrics", _basic(TOKEN)).status == 401
    assert outside.ask("GET", "/metrics", [("authorization", "Basic !")]).status == 401
    assert outside.ask("DELETE", "/api/v1/storage/metrics", _basic(f"anyone:{TOKEN}")).status == 401
    assert "Basic" in outside.ask("GET", "/").headers["www-authenticate"]
    assert outside.cleared == 0


@pytest.mark.parametrize("path", ["/", "/metrics", "/nowhere"])
def test_no_other_page_may_read_or_frame_an_answer(daemon: Daemon, path: str) -> None:
    headers = daemon.ask("GET", path, [("origin", "http://evil.example")]).headers
    assert "access-control-allow-origin" not in headers
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]


def test_websockets_are_refused() -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(None, LOCAL, TOKEN)  # type: ignore[arg-type]
    trio.run(guard, {"type": "websocket", "headers": []}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]


# ---- how often the daemon is asked


def test_an_answer_is_never_older_than_its_request(daemon: Daemon) -> None:
    state = {"n": 0}
    daemon.stats = lambda: state["n"]

    async def body(app: Any) -> list[tuple[int, int]]:
        seen = []

        async def one(delay: float) -> None:
            await trio.sleep(delay)
            state["n"] += 1
            before = state["n"]
            seen.append((before, json.loads((await ask(app, "GET", "/api/v1/storage/stats")).body)))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number * SHARE / 20)
        return seen

    seen = daemon.run(body, threshold=0)
    assert len(seen) == 200
    assert [pair for pair in seen if pair[1] < pair[0]] == []


def test_a_thousand_requests_a_second_are_ten_questions(daemon: Daemon) -> None:
    questions: list[object] = []
    do = daemon.server._do
    daemon.server._do = lambda message: (questions.append(message), do(message))[1]  # type: ignore[method-assign]

    async def body(app: Any) -> float:
        async with trio.open_nursery() as nursery:
            begun = trio.current_time()
            for number in range(1000):
                nursery.start_soon(ask, app, "GET", [*FILES, "/"][number % 6])
                await trio.sleep(0.001)
        return trio.current_time() - begun

    seconds = daemon.run(body, threshold=0)
    assert 0.9 < seconds < 1.2
    assert 2 <= len(questions) <= 1 / SHARE + 3
    assert len(daemon.asked) <= 4 * len(questions)


def test_many_pages_at_once_are_one_page_and_none_is_of_before(daemon: Daemon) -> None:
    async def body(app: Any) -> tuple[int, list[str], list[str]]:
        seen: list[str] = []

        async def one() -> None:
            answer = await ask(app, "GET", "/")
            seen.append("of <strong>new" if b"<strong>new" in answer.body else "old")

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
        first, seen[:] = list(seen), []
        daemon.config = {**CONFIG, "branch": "new"}
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
        return daemon.asked.count("config"), first, seen

    times, first, then = daemon.run(body)
    assert times <= 4
    assert set(first) == {"old"}
    assert set(then) == {"of <strong>new"}


def test_a_request_that_comes_alone_does_not_wait(daemon: Daemon) -> None:
    async def body(app: Any) -> float:
        await ask(app, "GET", "/api/v1/storage/stats")
        await trio.sleep(SHARE)
        begun = trio.current_time()
        await ask(app, "GET", "/api/v1/storage/stats")
        return trio.current_time() - begun

    assert daemon.run(body) == 0


def test_a_stuck_daemon_is_503_in_time_and_is_asked_once(daemon: Daemon) -> None:
    daemon.stuck = True

    async def body(app: Any) -> tuple[list[int], float]:
        statuses = []

        async def one() -> None:
            statuses.append((await ask(app, "GET", "/api/v1/storage/health")).status)

        begun = trio.current_time()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(one)
        return statuses, trio.current_time() - begun

    statuses, seconds = daemon.run(body)
    assert statuses == [503] * 150
    assert seconds == pytest.approx(3 * PATIENCE, abs=0.5)


def test_a_daemon_that_is_gone_is_said_at_once(daemon: Daemon) -> None:
    async def main() -> Answer:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            figures = Figures(Channel(theirs))
            await nursery.start(figures.run)
            await ours.aclose()
            await figures.ended.wait()
            app = make_app(figures, daemon.history, LOCAL, TOKEN, "1")
            return await ask(app, "GET", "/api/v1/storage/health")

    answer = trio.run(main)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "ending" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "message", [{"get": "stats"}, {"get": ["clear"]}, {"get": ["stats", "_fields"]}, {"clear": "all"}, {}]
)
def test_what_the_daemon_does_not_know_it_does_not_do(daemon: Daemon, message: dict[str, Any]) -> None:
    answer, body = daemon.server._do(message)
    assert "does not know" in answer["error"]
    assert body is None
    assert daemon.cleared == 0
