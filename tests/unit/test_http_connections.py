"""Connections of the HTTP server: when an answer leaves, and how long one waits for the next request."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h2.connection
import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from caiafs.control.http import connections

IDLE = 15
GRACE = 1
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def settings() -> Config:
    made = Config()
    made.keep_alive_timeout, made.graceful_timeout = IDLE, GRACE
    return made


def app(seconds: float = 0, body: bytes = b"body") -> Any:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(seconds)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


@contextlib.asynccontextmanager
async def answering(app: Any, kind: socket.SocketKind) -> AsyncIterator[trio.socket.SocketType]:
    """A client's end; the server's end is done afterwards."""
    ours, theirs = trio.socket.socketpair(type=kind)
    connection = connections.Connection(ASGIWrapper(app), settings(), WorkerContext(None), theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with ours:
            yield ours


@contextlib.asynccontextmanager
async def connected(app: Any) -> AsyncIterator[trio.SocketStream]:
    """A client's end; the server's end is done afterwards."""
    async with answering(app, socket.SOCK_STREAM) as ours:
        yield trio.SocketStream(ours)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.02))


async def received(client: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = await client.receive_some(1 << 20)
        assert more, f"closed after {data!r}"
        data += more
    return data


def test_an_answer_leaves_in_one_piece() -> None:
    async def main() -> None:
        async with answering(app(), socket.SOCK_SEQPACKET) as client:  # keeps writes apart
            for _ in range(3):
                await client.send(GET)
                answer = await client.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"\r\n\r\nbody")

    run(main)


def test_a_large_answer_is_not_held_as_a_whole() -> None:
    body = b"x" * (2 * connections.HELD)

    async def main() -> None:
        async with connected(app(body=body)) as client:
            await client.send_all(GET)
            answer = await received(client, body)
            assert answer.partition(b"\r\n\r\n")[2] == body

    run(main)


def test_who_waits_for_leave_to_go_on_has_it_before_the_answer() -> None:
    async def main() -> None:
        async with connected(app(seconds=1)) as client:
            await client.send_all(GET[:-2] + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert (await received(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await client.send_all(b"abc")
            await received(client, b"body")

    run(main)


def test_who_has_yet_to_send_a_body_is_answered_before() -> None:
    async def main() -> None:
        async with connected(app()) as client:
            await client.send_all(GET[:-2] + b"Content-Length: 3\r\n\r\n")
            await received(client, b"body")

    run(main)


def test_an_application_can_read_a_body() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        await app(body=body)(scope, receive, send)

    async def main() -> None:
        async with connected(echo) as client:
            for body in (b"", b"abc"):
                length = b"Content-Length: %d\r\n" % len(body) if body else b""
                await client.send_all(GET[:-2] + length + b"\r\n" + body)
                await received(client, b"\r\n\r\n" + body)

    run(main)


def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    async def path(scope: Any, receive: Any, send: Any) -> None:
        await app(seconds=1, body=scope["raw_path"])(scope, receive, send)

    async def main() -> None:
        async with connected(path) as client:
            await client.send_all(b"".join(GET.replace(b"/", b"/%d" % n, 1) for n in range(5)))
            answers = await received(client, b"/4")
            assert [one.rpartition(b"\r\n")[2] for one in answers.split(b"HTTP/1.1 200")] == [
                b"", b"/0", b"/1", b"/2", b"/3", b"/4",
            ]  # fmt: skip

    run(main)


def test_an_application_that_fails_costs_its_answer_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a bug")

    async def main() -> None:
        async with connected(fail) as client:
            await client.send_all(GET)
            assert (await received(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 500 ")

    run(main)
    assert "a bug" in caplog.text


def test_a_request_leaves_nothing_to_the_garbage_collector() -> None:
    async def main() -> None:
        async with connected(app()) as client:
            await client.send_all(GET)
            await received(client, b"body")
            gc.collect()
            for _ in range(50):
                await client.send_all(GET)
                await received(client, b"body")
            assert gc.collect() < 50

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


def test_a_client_that_goes_before_its_answer_costs_nothing() -> None:
    async def main() -> None:
        async with connected(app(seconds=1, body=b"x" * (1 << 22))) as client:
            await client.send_all(GET)
            await client.aclose()

    run(main)


def test_who_reads_slowly_has_all_in_the_end() -> None:
    body = b"x" * (1 << 22)  # more than the kernel holds

    async def main() -> None:
        async with connected(app(body=body)) as client:
            await client.send_all(GET)
            await trio.sleep(1)
            answer = await received(client, body)
            assert answer.partition(b"\r\n\r\n")[2] == body

    run(main)


def test_what_is_no_http_is_refused_and_let_go() -> None:
    async def main() -> None:
        async with connected(app()) as client:
            await client.send_all(b"nonsense\r\n\r\n")
            assert (await received(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
            assert await client.receive_some() == b""

    run(main)


def test_http2_is_not_held_back() -> None:
    async def main() -> None:
        async with connected(app()) as client:
            await client.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04" + b"\x00" * 5)
            assert (await client.receive_some())[3] == 4, "the server's settings"

    run(main)


def test_answers_over_http2_do_not_mix() -> None:
    size = 1 << 22  # more than the kernel holds, so that both are sent in pieces

    async def letter(scope: Any, receive: Any, send: Any) -> None:
        await app(body=scope["raw_path"][1:] * size)(scope, receive, send)

    async def main() -> None:
        http = h2.connection.H2Connection()
        http.initiate_connection()
        http.increment_flow_control_window(4 * size)
        http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2 * size})
        for stream, one in ((1, "a"), (3, "b")):
            head = {":method": "GET", ":scheme": "http", ":authority": "localhost", ":path": f"/{one}"}
            http.send_headers(stream, list(head.items()), end_stream=True)
        bodies = {1: b"", 3: b""}
        async with connected(letter) as client:
            await client.send_all(http.data_to_send())
            while len(bodies[1] + bodies[3]) < 2 * size:
                for event in http.receive_data(await client.receive_some(1 << 20)):
                    if isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] += event.data
                await client.send_all(http.data_to_send())
        assert bodies == {1: b"a" * size, 3: b"b" * size}

    run(main)


@pytest.mark.parametrize("begun", [b"", GET[:20], GET])
def test_a_connection_waits_so_long_for_a_request(begun: bytes) -> None:
    async def main() -> None:
        async with connected(app()) as client:
            await trio.sleep(IDLE - 5)
            if begun:
                await client.send_all(begun)
            since = trio.current_time()
            if begun == GET:
                await received(client, b"body")
            with contextlib.suppress(trio.BrokenResourceError):  # what was begun is thrown away
                assert await client.receive_some() == b""
            assert trio.current_time() - since == pytest.approx(IDLE if begun == GET else 5, abs=0.5)

    run(main)


def test_an_answer_may_take_longer_than_the_wait_for_a_request() -> None:
    async def main() -> None:
        async with connected(app(seconds=4 * IDLE)) as client:
            await client.send_all(GET)
            await received(client, b"body")

    run(main)


@contextlib.asynccontextmanager
async def served(app: Any, ended: trio.Event, clients: int) -> AsyncIterator[list[trio.SocketStream]]:
    """*app* until *ended*, and *clients* connections to it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as streams:
            nursery.start_soon(connections.serve, app, settings(), listening, ended)
            yield [
                await streams.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
                for _ in range(clients)
            ]


def test_at_the_end_idle_connections_go_and_answers_are_given() -> None:
    async def main() -> None:
        ended = trio.Event()
        async with served(app(GRACE / 2), ended, 2) as (idle, busy):
            await busy.send_all(GET)
            await trio.sleep(GRACE / 4)
            since = trio.current_time()
            ended.set()
            assert await idle.receive_some() == b""
            assert trio.current_time() == since
            await received(busy, b"body")
            assert await busy.receive_some() == b""
            assert trio.current_time() - since < GRACE

    run(main)


def test_at_the_end_an_answer_that_takes_long_is_not_waited_for() -> None:
    async def main() -> None:
        ended = trio.Event()
        async with served(app(10 * GRACE), ended, 1) as (busy,):
            await busy.send_all(GET)
            await trio.sleep(GRACE / 4)
            ended.set()
            since = trio.current_time()
            assert await busy.receive_some() == b""
            assert trio.current_time() - since == pytest.approx(GRACE, abs=0.1)

    run(main)
