"""Connections of the HTTP server: when an answer leaves, and how long one waits for the next request."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

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


class Recorded:
    """A stream that remembers what was sent at once."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self.receive_some, self.send_eof, self.aclose = stream.receive_some, stream.send_eof, stream.aclose
        self.sent: list[bytes] = []
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        self.sent.append(data)
        await self._stream.send_all(data)


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
async def connected(app: Any) -> AsyncIterator[tuple[trio.SocketStream, list[bytes]]]:
    """A client's end, and what the server sends, piece by piece; the server's end is done afterwards."""
    ours, theirs = trio.socket.socketpair()
    stream: Any = Recorded(trio.SocketStream(theirs))
    connection = connections.Connection(ASGIWrapper(app), settings(), WorkerContext(None), stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        async with trio.SocketStream(ours) as client:
            yield client, stream.sent


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
        async with connected(app()) as (client, sent):
            for number in range(1, 4):
                await client.send_all(GET)
                answer = await received(client, b"body")
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert len(sent) == number

    run(main)


def test_a_large_answer_is_not_held_as_a_whole() -> None:
    body = b"x" * (2 * connections.HELD)

    async def main() -> None:
        async with connected(app(body=body)) as (client, _):
            await client.send_all(GET)
            answer = await received(client, body)
            assert answer.partition(b"\r\n\r\n")[2] == body

    run(main)


def test_who_waits_for_leave_to_go_on_has_it_before_the_answer() -> None:
    async def main() -> None:
        async with connected(app(seconds=1)) as (client, _):
            await client.send_all(GET[:-2] + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert (await received(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await client.send_all(b"abc")
            await received(client, b"body")

    run(main)


def test_what_is_no_http_is_refused_and_let_go() -> None:
    async def main() -> None:
        async with connected(app()) as (client, _):
            await client.send_all(b"nonsense\r\n\r\n")
            assert (await received(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
            assert await client.receive_some() == b""

    run(main)


def test_http2_is_not_held_back() -> None:
    async def main() -> None:
        async with connected(app()) as (client, _):
            await client.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04" + b"\x00" * 5)
            assert (await client.receive_some())[3] == 4, "the server's settings"

    run(main)


@pytest.mark.parametrize("begun", [b"", GET[:20], GET])
def test_a_connection_waits_so_long_for_a_request(begun: bytes) -> None:
    async def main() -> None:
        async with connected(app()) as (client, _):
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
        async with connected(app(seconds=4 * IDLE)) as (client, _):
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
