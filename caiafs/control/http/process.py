"""The daemon's end of HTTP: binds, starts the server's process, and answers what it asks.

Made before anything is mounted: an address that is taken, a token that others can read or a library
that is missing fails the mount. While the mount runs, a server that ends is started again; files do
not depend on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import trio

from caiafs import __version__
from caiafs.config import Config, parse_http
from caiafs.control.http.channel import Channel
from caiafs.control.http.listen import Listener
from caiafs.control.http.token import load_token
from caiafs.control.mounts import is_within
from caiafs.errors import MountError

log = logging.getLogger(__name__)

_START = "from caiafs.control.http.worker import main; main()"
START_PATIENCE = 60.0
"""Seconds for the server to load its libraries."""
STOP_PATIENCE = 2.0
"""Seconds for the server to end its last answers."""
FIRST_PAUSE, LAST_PAUSE = 0.5, 60.0
"""Seconds before a server that ended is started again, doubling from the first to the last."""
STEADY = 60.0
"""Seconds after which a server counts as well, and the pauses begin anew."""
TOKEN = "http-token"
_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)


class Sources(NamedTuple):
    """What the daemon can tell, as values that can be pickled; and what clears the metrics."""

    health: Callable[[], object]
    stats: Callable[[], object]
    config: Callable[[], object]
    metrics: Callable[[], object]
    clear: Callable[[], None]


SOURCES = frozenset(Sources._fields) - {"clear"}


class ServerGone(MountError):
    """The server's process ended, or never served; the text says why, as far as it is known."""


class HttpServer:
    """HTTP for one mount, with the figures of *sources*; *git_dir* and *ref* are for the history.

    MountError if *config* asks for what cannot be had.
    """

    def __init__(self, config: Config, state_dir: str, git_dir: str, ref: bytes, sources: Sources) -> None:
        assert config.http is not None
        wanted = parse_http(config.http)
        token_file = config.http_token_file or os.path.join(state_dir, TOKEN)
        for name, path in (("http=unix:", wanted.path), ("http_token_file=", token_file)):
            if path and is_within(os.path.realpath(path), os.path.realpath(config.mountpoint)):
                raise MountError(f"{name}{path} lies in the mount itself; choose a place outside of it")
        self._sources = sources
        self._process: subprocess.Popen[bytes] | None = None
        self._start = {
            "token": load_token(token_file), "git_dir": git_dir, "ref": os.fsdecode(ref),
            "version": __version__, "level": config.log_level,
        }  # fmt: skip
        self.token_file = token_file
        self._listener = Listener(wanted)
        self.url = self._listener.url

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once the server answers; MountError if it cannot, the first time."""
        started, pause = False, FIRST_PAUSE
        while True:
            begun = trio.current_time()
            try:
                async with self._server() as channel:
                    await self._until_ready(channel)
                    if not started:
                        started = True
                        log.info("HTTP is served at %s, its token is in %s", self.url, self.token_file)
                        task_status.started()
                    await self._answer(channel)
                raise ServerGone("it ended")
            except ServerGone as error:
                if not started:
                    raise
                if trio.current_time() - begun > STEADY:
                    pause = FIRST_PAUSE
                log.warning("HTTP is not served: %s; started again in %g s", error, pause)
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Stop listening, and end the server if it still runs."""
        self._kill()
        self._listener.close()

    @contextlib.asynccontextmanager
    async def _server(self) -> Any:
        # Not trio.open_process: it forks in a thread, and the server is to die with this process,
        # not with that thread.
        ours, theirs = socket.socketpair()
        listening = self._listener.socket.fileno()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-c", _START, str(os.getpid())],
                    stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
                    pass_fds=(listening,), cwd="/",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise ServerGone(f"its process could not be started: {error.strerror}") from error
        channel = Channel(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                await channel.send(
                    {**self._start, "listening": listening, "address": str(self._listener.address)}
                )
            yield channel
        finally:
            with trio.CancelScope(shield=True):
                await channel.aclose()  # which tells it to end
                if self._process is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        await trio.to_thread.run_sync(self._process.wait, STOP_PATIENCE)
                self._kill()

    async def _until_ready(self, channel: Channel) -> None:
        with trio.move_on_after(START_PATIENCE):
            while (received := await channel.receive()) is not None:
                message, _ = received
                if "failed" in message:
                    raise ServerGone(message["failed"])
                if "ready" in message:
                    return
                self._pass_on(message)
            raise ServerGone("its process ended before it served")
        raise ServerGone(f"its process was not ready within {START_PATIENCE:g} s")

    async def _answer(self, channel: Channel) -> None:
        """Answer what the server asks, one question after the other, until it is gone."""
        with contextlib.suppress(trio.BrokenResourceError):
            while (received := await channel.receive()) is not None:
                message, _ = received
                if "id" in message:
                    answer, body = self._do(message)
                    await channel.send({"id": message["id"], **answer}, body)
                else:
                    self._pass_on(message)

    def _do(self, message: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        """Clear the metrics, or tell the values of some sources: pickled one by one, then together."""
        names = message.get("get")
        if message.get("clear") == "metrics":
            return self._clear(), None
        if not isinstance(names, list) or not {str(name) for name in names} <= SOURCES:
            return {"error": "the daemon does not know what it was asked"}, None
        values, errors = {}, {}
        for name in names:
            try:
                values[name] = pickle.dumps(getattr(self._sources, name)(), pickle.HIGHEST_PROTOCOL)
            except Exception:
                # One figure that cannot be told must not cost the others, nor the server, nor the mount.
                log.exception("HTTP could not be told of %s", name)
                errors[name] = f"{name} could not be told; the daemon's log has the details"
        return ({"errors": errors} if errors else {}), pickle.dumps(values, pickle.HIGHEST_PROTOCOL)

    def _clear(self) -> dict[str, Any]:
        try:
            self._sources.clear()
        except Exception:
            log.exception("metrics could not be cleared for HTTP")
            return {"error": "metrics could not be cleared; the daemon's log has the details"}
        return {}

    def _pass_on(self, message: dict[str, Any]) -> None:
        if "log" in message:
            level, text = message["log"]
            log.log(level if level in _LEVELS else logging.ERROR, "%s", text)
        else:
            log.error("the HTTP server said what nobody understands: %s", json.dumps(message)[:200])

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
