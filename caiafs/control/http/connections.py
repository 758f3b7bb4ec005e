"""Connections: bytes between clients and hypercorn's protocols, in as few steps as there can be.

hypercorn's own trio worker writes an answer in three pieces, each under a lock and a cancel scope of its
own; it starts a task and a queue for each request, and another task for the time between two of them. That
was more than half of a request's cost. Here an answer leaves in one piece, whoever read a request answers
it, and one deadline per connection moves on. HTTP itself, and all that is said to the application, stays
hypercorn's and h11's. What is used of hypercorn is not promised by it: pyproject.toml takes no newer release
than those that the tests were run with.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ConnectionState,
    HTTPScope,
    LifespanState,
)
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

HELD = 1 << 18
"""Bytes of an answer that wait for the rest of it."""
READ = 1 << 12
"""Bytes read at once. What they ask for is answered before other connections have their turn."""


class Answers(TaskGroup):
    """The application's work for one connection.

    hypercorn starts a task for each request, and a queue for what else the client sends. A request that says
    all in its head needs neither: it is answered by the task that read it, which reads on afterwards.
    """

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Any
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """What takes the client's messages for *app*; the last of a request answers it."""
        if scope["type"] != "http" or scope["http_version"] == "2" or announces_body(scope):
            return await super().spawn_app(app, config, scope, send)

        sends = [send]  # taken out again: it holds `put`, and both would be left to the collector

        async def put(message: ASGIReceiveEvent) -> None:
            if message["type"] == "http.request":
                send = sends.pop()
                try:
                    await app(scope, once(message), send, trio.to_thread.run_sync, trio.from_thread.run)
                except Exception:
                    await config.log.exception("Error in ASGI Framework")
                await send(None)

        return put


def announces_body(scope: HTTPScope) -> bool:
    """Whether more than a head is to come."""
    headers = dict(scope["headers"])
    return b"content-length" in headers or b"transfer-encoding" in headers


def once(message: ASGIReceiveEvent) -> ASGIReceiveCallable:
    """Gives *message*, and never another: whether the client is still there is not looked at meanwhile."""
    left = [message]

    async def receive() -> ASGIReceiveEvent:
        if not left:
            await trio.sleep_forever()
        return left.pop()

    return receive


class Connection:
    """One connection. It lasts until the client goes, a request does not come in time, or is no HTTP."""

    def __init__(
        self, app: ASGIWrapper, settings: Config, context: WorkerContext, sock: trio.socket.SocketType
    ) -> None:
        self._app, self._settings, self._context = app, settings, context
        self._socket = sock
        self._waiting = trio.CancelScope()
        self._writing = trio.Lock()
        self._held = b""

    async def run(self) -> None:
        """Answer what comes, until one of both has enough."""
        try:
            try:
                client = parse_socket_addr(self._socket.family, self._socket.getpeername())
            except OSError:
                return  # it is gone before it asked for anything
            server = parse_socket_addr(self._socket.family, self._socket.getsockname())
            async with Answers() as answers:
                self._protocol = ProtocolWrapper(
                    self._app, self._settings, self._context, answers, ConnectionState(LifespanState({})),
                    False, client, server, self._send,
                )  # fmt: skip
                self._wait(True)
                with self._waiting:
                    while data := await self._read():
                        await self._protocol.handle(RawData(data))
                    await self._protocol.handle(RawData(b""))
                await self._protocol.handle(Closed())
        finally:
            self._close()

    def end(self) -> None:
        """Wait for no further request."""
        if self._waiting.deadline < math.inf:
            self._waiting.cancel()

    def _wait(self, idle: bool) -> None:
        patience = self._settings.keep_alive_timeout if idle else math.inf
        self._waiting.deadline = trio.current_time() + patience

    async def _send(self, event: Event) -> None:
        """Do what the protocol says: send, of an answer all at its end; close; wait, or wait no longer."""
        if isinstance(event, RawData):
            data = self._held + event.data
            if self._is_amid_answer() and len(data) < HELD:
                self._held = data
                return
            self._held = b""
            try:
                await self._write(data)
            except (OSError, trio.ClosedResourceError):
                await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            self._close()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._wait(event.idle)

    def _is_amid_answer(self) -> bool:
        http = self._protocol.protocol
        return isinstance(http, H11Protocol) and http.connection.our_state is h11.SEND_BODY

    async def _read(self) -> bytes:
        """What came; nothing once the client is gone, or was let go."""
        try:
            while self._socket.fileno() >= 0:
                await trio.lowlevel.wait_readable(self._socket)
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._socket.fileno(), READ)
        except (OSError, trio.ClosedResourceError):
            pass
        return b""

    async def _write(self, data: bytes) -> None:
        left = memoryview(data)
        if not self._writing.locked():
            left = self._write_some(left)
        if left:
            async with self._writing:  # HTTP/2 answers several requests at a time
                while left := self._write_some(left):
                    await trio.lowlevel.wait_writable(self._socket)

    def _write_some(self, data: memoryview) -> memoryview:
        """What of *data* the kernel does not take now."""
        try:
            return data[os.write(self._socket.fileno(), data) :]
        except BlockingIOError:
            return data

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


async def serve(app: ASGIApp, settings: Config, listening: socket.socket, ended: trio.Event) -> None:
    """Serve *app* on *listening* until *ended*, and then the answers that are due, for a moment."""
    context = WorkerContext(None)
    wrapped = ASGIWrapper(cast(Any, app))
    serving: set[Connection] = set()

    async def connected(stream: trio.SocketStream) -> None:
        connection = Connection(wrapped, settings, context, stream.socket)
        serving.add(connection)
        try:
            await connection.run()
        finally:
            serving.discard(connection)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            accepting.start_soon(
                partial(trio.serve_listeners, connected, [listener], handler_nursery=connections)
            )
            await ended.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        for connection in serving:
            connection.end()
        connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout
