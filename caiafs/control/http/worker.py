"""The HTTP server's process: started by process.py, spoken to over its standard input and output.

It ends when the daemon closes that, or dies. It holds the listening socket, the token and a reader
of the repository; of the mount it knows what the daemon tells it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import socket
from typing import Any

import trio

from caiafs import child
from caiafs.config import parse_http
from caiafs.control.http.channel import Channel
from caiafs.control.http.figures import Figures
from caiafs.errors import CaiafsError

MAX_DESCRIPTORS = 512
"""Connections beyond these wait in the kernel's queue until others end."""

GARBAGE = 20_000
"""Objects made between two collections: some megabytes. Python's 700 are what a request or two makes."""


def main() -> None:
    """Serve for the daemon that started this process, and end with it."""
    if not child.begin():
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fewer = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, fewer), hard))
    pipe, _ = child.take_standard_streams()
    trio.run(serve, socket.socket(fileno=pipe))


async def serve(pipe: socket.socket) -> None:
    """Serve until the daemon at the other end of *pipe* is gone."""
    channel = Channel(trio.SocketStream(trio.socket.from_stdlib_socket(pipe)))
    try:
        received = await channel.receive()
        if received is None:
            return
        start, _ = received
        try:
            await _serve(channel, start)
        except (CaiafsError, ImportError) as error:
            what = f"a library is missing ({error})" if isinstance(error, ImportError) else str(error)
            with contextlib.suppress(trio.BrokenResourceError):
                await channel.send({"failed": what})
    finally:
        await channel.aclose()


async def _serve(channel: Channel, start: dict[str, Any]) -> None:
    import hypercorn.config

    from caiafs.control.http import connections
    from caiafs.control.http.app import make_app
    from caiafs.history import History

    lines = _LinesToDaemon(start["level"])
    settings = hypercorn.config.Config()
    settings.errorlog = logging.getLogger("hypercorn")
    settings.include_server_header = False
    settings.graceful_timeout = 1.0
    settings.keep_alive_timeout = 15
    figures = Figures(channel)
    history = History(start["git_dir"], os.fsencode(start["ref"]))
    listening = socket.socket(fileno=os.dup(start["listening"]))
    app = make_app(figures, history, parse_http(start["address"]), start["token"], start["version"])
    gc.freeze()  # what is loaded stays
    gc.set_threshold(GARBAGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.carry, channel)
        await nursery.start(figures.run)
        await channel.send({"ready": True})
        await connections.serve(app, settings, listening, figures.ended)
        lines.end()


class _LinesToDaemon(logging.Handler):
    """What is logged here goes to the daemon's log, as long as the daemon listens."""

    def __init__(self, level: str) -> None:
        super().__init__(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
        self._send, self._waiting = trio.open_memory_channel[dict[str, Any]](100)
        self._lost = 0
        self.addFilter(lambda record: not (record.name == "hypercorn" and record.levelno <= logging.INFO))
        logging.getLogger().setLevel(self.level)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send.send_nowait({"log": [record.levelno, self.format(record)]})
        except trio.WouldBlock:
            self._lost += 1
        except trio.BrokenResourceError:
            pass  # the daemon is gone, and this process ends

    async def carry(self, channel: Channel) -> None:
        async with self._waiting:
            async for message in self._waiting:
                lost, self._lost = self._lost, 0
                try:
                    await channel.send(message)
                    if lost:
                        await channel.send(
                            {"log": [logging.WARNING, f"{lost} lines of the HTTP server are lost"]}
                        )
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

    def end(self) -> None:
        self._send.close()
