"""The answering side of the command socket: one trio task, and one more for each connection.

Handlers run in the daemon's event loop and must not block it. Nothing a client does (silence,
endless lines, nonsense, going away) reaches another client or the mount.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from caiafs.control.client import SOCKET
from caiafs.errors import CaiafsError, MountError, UsageError


class Caller(Protocol):
    """Who asked, as a handler sees them. For the event loop only."""

    def __call__(self, done: int, total: int, text: str) -> None:
        """Tell how far it is."""

    def answer(self, result: dict[str, Any]) -> None:
        """Tell the result now. Who is told may ask at once, so what shows of it is done in the same turn."""


Handler = Callable[[dict[str, Any], Caller], Awaitable[dict[str, Any]]]
"""Gets the arguments and the caller; returns the result."""

MAX_REQUEST = 1024 * 1024
"""Bytes: the longest word that Linux lets a command line have (128 KiB), every character of it escaped."""
REQUEST_TIMEOUT = 30.0
LINGER = 10.0
"""How long a finished command waits for a client that does not read."""

log = logging.getLogger(__name__)


async def serve(
    state_dir: str,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen in *state_dir* and answer until cancelled; MountError if that place cannot be used."""
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _listen(directory, state_dir) as sock:
            identity = _identity(directory)
            try:

                async def converse(stream: trio.SocketStream) -> None:
                    async with stream:
                        await _converse(stream, handlers)

                task_status.started()
                await trio.serve_listeners(converse, [trio.SocketListener(sock)])
            finally:
                if identity is not None and _identity(directory) == identity:
                    os.unlink(SOCKET, dir_fd=directory)
    finally:
        os.close(directory)


def _listen(directory: int, shown: str) -> trio.socket.SocketType:
    """Bind the socket, mode 0600. What a dead daemon left is replaced; anything else there is refused."""
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise MountError(
            f"{shown} must belong to the user who mounts and be closed to others: "
            f"chown it and chmod 700 it, or name another place with -o state_dir=DIR"
        )
    # An address holds 107 bytes and a path may be longer, hence the detour through the descriptor.
    address = f"/proc/self/fd/{directory}/{SOCKET}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            kind = os.stat(SOCKET, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(kind):
                raise MountError(f"{shown}/{SOCKET} is not a socket; move it away")
            probe.setblocking(False)
            if probe.connect_ex(address) != errno.ECONNREFUSED:
                raise MountError(f"another process answers at {shown}/{SOCKET}; end it first")
            os.unlink(SOCKET, dir_fd=directory)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Before bind, fchmod sets the mode the socket file is created with: never a moment of others.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(address)
        sock.listen(16)
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


def _identity(directory: int) -> tuple[int, int] | None:
    try:
        found = os.stat(SOCKET, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    try:
        command, arguments = await _request(stream)
        handler = handlers.get(command)
        if handler is None:
            raise UsageError(
                f"this mount knows no command {command!r}; it knows {', '.join(sorted(handlers))}"
            )
    except CaiafsError as problem:
        await _finish(stream, _error(problem))
        return
    except trio.BrokenResourceError:
        return
    answers = _Answers(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers.pump)
        final = await _handle(command, handler, arguments, answers)
        answers.end()
    if not answers.client_gone and not answers.is_told:
        await _finish(stream, final)


async def _request(stream: trio.SocketStream) -> tuple[str, dict[str, Any]]:
    """Read one request line; CaiafsError says what is wrong with it."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    if not _may_command(uid):
        problem = CaiafsError("not permitted: only root and the user who mounted it may command this mount")
        problem.errno = errno.EPERM
        raise problem
    line = b""
    with trio.move_on_after(REQUEST_TIMEOUT) as patience:
        while b"\n" not in line:
            data = await stream.receive_some(MAX_REQUEST)
            line += data
            if len(line) > MAX_REQUEST:
                raise UsageError(f"a request holds at most {MAX_REQUEST} bytes")
            if not data:
                raise UsageError("the request ended before its line did")
    if patience.cancelled_caught:
        raise UsageError(f"no request came within {REQUEST_TIMEOUT:g} s")
    try:
        request = json.loads(line)
        command, arguments = request["command"], request.get("arguments") or {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        command, arguments = None, None
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise UsageError('a request is one line: {"command": "…", "arguments": {…}}')
    return command, arguments


def _may_command(uid: int) -> bool:
    return uid in (0, os.geteuid())


async def _handle(
    command: str, handler: Handler, arguments: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    """Run a handler; whatever it raises (save cancellation) becomes an answer."""
    try:
        result = await handler(arguments, caller)
        json.dumps(result)
    except Exception as raised:
        problem: BaseException = raised
        while isinstance(problem, BaseExceptionGroup) and len(problem.exceptions) == 1:
            problem = problem.exceptions[0]
        if isinstance(problem, CaiafsError):
            return _error(problem)
        log.exception("the command %r failed unexpectedly", command)
        return _error(
            CaiafsError(
                f"internal error in {command!r} ({type(problem).__name__}); the daemon's log has the details"
            )
        )
    return {"result": result}


def _error(problem: CaiafsError) -> dict[str, Any]:
    return {"error": {"message": str(problem), "errno": problem.errno, "exit_code": problem.exit_code}}


async def _finish(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    with trio.move_on_after(LINGER):
        try:
            await _send(stream, answer)
        except trio.BrokenResourceError:
            pass


async def _send(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    await stream.send_all(_line(answer))


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class _Answers:
    """Carries progress to one client while its handler runs: the latest figure only, never a queue."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._latest: dict[str, Any] | None = None
        self._ended = False
        self._wake = trio.Event()
        self._patience = trio.CancelScope()
        self._is_sending = False
        self.is_told = False
        self.client_gone = False

    def answer(self, result: dict[str, Any]) -> None:
        """Send the result now if the socket takes it; else it is sent when the handler has returned."""
        if self._is_sending or self.is_told:
            return
        self._latest = None
        line = _line({"result": result})
        try:
            self.is_told = os.write(self._stream.socket.fileno(), line) == len(line)
        except OSError:
            return  # whoever sends it later finds out
        self.client_gone = not self.is_told  # half a line is out, which no socket that was empty does

    def __call__(self, done: int, total: int, text: str) -> None:
        """Note how far the command is; returns at once, whatever the client does."""
        if self.is_told:
            return
        self._latest = {"progress": {"done": done, "total": total, "text": text}}
        self._wake.set()

    def end(self) -> None:
        """The handler is done: `pump` sends what is left and returns."""
        self._ended = True
        self._patience.deadline = trio.current_time() + LINGER
        self._wake.set()

    async def pump(self) -> None:
        with self._patience:
            try:
                while self._latest is not None or not self._ended:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    latest, self._latest = self._latest, None
                    if latest is not None:
                        self._is_sending = True
                        await _send(self._stream, latest)
                        self._is_sending = False
            except trio.BrokenResourceError:
                self.client_gone = True
        if self._patience.cancelled_caught:
            self.client_gone = True  # half a line may be out: nothing may follow it
