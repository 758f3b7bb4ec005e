"""Connections, as hypercorn serves them, for less.

hypercorn's own trio worker writes an answer in three pieces, each under a lock and a cancel scope of its
own, and starts a task for the time between two requests, to end it when the next one comes. With an
application that does nothing these were more than half of a request's cost. Here an answer leaves in one
piece, and one deadline per connection moves on. HTTP itself, and all that is said to the application,
stays hypercorn's and h11's. What is used of hypercorn is not promised by it: pyproject.toml takes no newer
release than those that the tests were run with.
"""

from __future__ import annotations

import math
import socket
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import LifespanState
from starlette.types import ASGIApp

HELD = 1 << 18
"""Bytes of an answer that wait for the rest of it."""


class Idle:
    """How long a connection may wait for its next request. Takes the place of hypercorn's idle task."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.scope = trio.CancelScope()

    async def restart(self, task_group: object, action: object) -> None:
        """The wait begins."""
        self.scope.deadline = trio.current_time() + self._seconds

    async def stop(self) -> None:
        """A request came."""
        self.scope.deadline = math.inf

    def end(self) -> None:
        """Wait no longer, if it waits now."""
        if self.scope.deadline < math.inf:
            self.scope.cancel()


class Connection(TCPServer):
    """One connection. It lasts until the client goes, a request does not come in time, or is no HTTP."""

    def __init__(
        self, app: ASGIWrapper, settings: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        super().__init__(app, settings, context, LifespanState({}), cast(Any, stream))
        self.idle = Idle(settings.keep_alive_timeout)
        self.idle_task = cast(Any, self.idle)
        self._held = b""

    async def protocol_send(self, event: Event) -> None:
        """Send what the protocol made; of an answer, all at its end."""
        if isinstance(event, RawData):
            data = self._held + event.data
            if self._is_amid_answer() and len(data) < HELD:
                self._held = data
                return
            self._held = b""
            event = RawData(data)
        await super().protocol_send(event)

    def _is_amid_answer(self) -> bool:
        http = self.protocol.protocol
        return isinstance(http, H11Protocol) and http.connection.our_state is h11.SEND_BODY

    async def _read_data(self) -> None:
        with self.idle.scope:
            await super()._read_data()
        await self.protocol.handle(Closed())


async def serve(app: ASGIApp, settings: Config, listening: socket.socket, ended: trio.Event) -> None:
    """Serve *app* on *listening* until *ended*, and then the answers that are due, for a moment."""
    context = WorkerContext(None)
    wrapped = ASGIWrapper(cast(Any, app))
    serving: set[Connection] = set()

    async def connected(stream: trio.SocketStream) -> None:
        connection = Connection(wrapped, settings, context, stream)
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
            connection.idle.end()
        connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout
