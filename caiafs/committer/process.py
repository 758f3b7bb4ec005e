"""The daemon's end of the commit worker: start it, ask it, notice when it dies or hangs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import trio

from ..errors import StoreError
from ..policy import Policy
from .pace import Pace
from .worker import Place

log = logging.getLogger(__name__)

FRAME = struct.Struct("<I")
PIECE = 16 * 1024
"""Bytes of messages that wait for the next one, to be sent with it."""
_START = "from caiafs.committer.worker import main; main()"


class WorkerGone(StoreError):
    """The commit worker ended or hung; it is started again and the batch is done again."""


class Refused(StoreError):
    """The worker could not do what it was asked. *locked*: another process holds a ref's lock.

    *untouched*: a commit that failed had not begun to move refs, so git shows nothing of it.
    *damaged* are the files (inode numbers with reasons) that could not be written, since what their changes
    rest on does not read back; *unreadable* the directories.
    """

    def __init__(
        self, message: str, locked: bool, code: int = errno.EIO, untouched: bool = False,
        damaged: dict[int, str] | None = None, unreadable: dict[int, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.locked = locked
        self.errno = code
        self.untouched = untouched
        self.damaged = damaged or {}
        self.unreadable = unreadable or {}


class WorkerProcess:
    """At most one worker at a time, started when it is first needed.

    *on_tip* is called when the worker saw the branch move. *inherit* are descriptors that
    the worker keeps open: the branch's lock is held until it has ended too. *on_silence* is
    called with the seconds for which a working worker said nothing, beyond `operation_timeout`.
    """

    def __init__(
        self, place: Place, on_tip: Callable[[bytes | None], None], inherit: tuple[int, ...],
        policy: Policy | None = None, on_silence: Callable[[float], None] = lambda seconds: None,
        pace: Pace | None = None,
    ) -> None:  # fmt: skip
        self._place = place
        self.policy = policy or Policy()
        self._on_silence = on_silence
        self._pace = pace or Pace()
        self._ending: list[subprocess.Popen[bytes]] = []
        self._on_tip = on_tip
        self._inherit = inherit
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: trio.SocketStream | None = None
        self._answers: trio.MemorySendChannel[tuple[Any, ...]] | None = None
        self._inbox: trio.MemoryReceiveChannel[tuple[Any, ...]] | None = None
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._starting = trio.Lock()
        self.mounted: tuple[str, str] | None = None
        """The mount's device and place, once there is one: a worker that knows them ends the mount's
        connection if this process dies and cannot let go of it."""
        self._guards = False
        self._is_open = False
        self.starts = 0
        self.signs = 0
        """Messages from the worker so far: while it works on a batch, each tells that it gets on."""
        self.written = (0, 0)
        """How many names of the batch that it works on are written, and how many there are."""

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return None if self._process is None else self._process.pid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker running, to watch the branch, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    try:
                        await self._start()
                    except WorkerGone as error:
                        log.warning("%s", error)
                    else:
                        await self._ended.wait()
                    await trio.sleep(self.policy.worker_restart)
        finally:
            self.stop()
            self._nursery = None

    async def ask(self, *message: Any, ahead: Iterable[tuple[Any, ...]] = ()) -> Any:
        """Send *ahead*, which has no answers, and a request; wait for its answer. Raises Refused, WorkerGone.

        All of it reaches one worker, or it counts for nothing: a worker that was started anew in
        between never sees a request without what belongs to it. When cancelled it ends the worker: an
        answer that nobody waits for must not be taken for that of the next request.
        """
        await self._start()
        stream, inbox = self._stream, self._inbox
        assert stream is not None
        assert inbox is not None
        try:
            if self.mounted is not None and not self._guards:
                self._guards = True
                ahead = chain((("guard", *self.mounted),), ahead)
            await self._send(stream, chain(ahead, (message,)))
            return await self._answer(inbox)
        except Refused:
            if not self._is_open and self._stream is stream:
                self.stop()  # it could not open the repository, and is about to end
            raise
        except BaseException:
            if self._stream is stream:
                self.stop()
            raise

    async def _send(self, stream: trio.SocketStream, messages: Iterable[tuple[Any, ...]]) -> None:
        """Little ones go together: each that comes by itself wakes the worker, and that costs both sides."""
        held = bytearray()
        try:
            for message in messages:
                if len(held) > PIECE:
                    with trio.fail_after(self.policy.worker_timeout):
                        await stream.send_all(held)
                    held = bytearray()
                data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
                held += FRAME.pack(len(data)) + data
                await self._pace.step()
            with trio.fail_after(self.policy.worker_timeout):
                await stream.send_all(held)
        except trio.BrokenResourceError:
            pass  # it ended: the answer is what it said last, or that there is none
        except (trio.ClosedResourceError, trio.TooSlowError) as error:
            raise WorkerGone("the commit worker ended") from error

    async def _answer(self, inbox: trio.MemoryReceiveChannel[tuple[Any, ...]]) -> Any:
        silent = 0.0
        longest = self.policy.worker_timeout
        while True:
            patience = min(self.policy.operation_timeout, longest - silent)
            with trio.move_on_after(patience) as scope:
                try:
                    kind, *rest = await inbox.receive()
                except trio.EndOfChannel:
                    raise WorkerGone("the commit worker ended") from None
            if scope.cancelled_caught:
                silent += patience
                if silent >= longest:
                    raise WorkerGone(f"the commit worker gave no sign of life for {longest:g} s")
                self._on_silence(silent)
                continue
            silent = 0.0
            if kind == "done":
                return rest[0]
            if kind == "failed":
                raise Refused(*rest)

    async def _start(self) -> None:
        """See to it that a worker runs and was told where to work. Raises WorkerGone."""
        async with self._starting:  # or another task would speak before it was told
            await self._start_one()

    async def _start_one(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        if self._nursery is None:
            raise WorkerGone("the commit worker was stopped")
        if self.is_ending:
            raise WorkerGone("a commit worker that was killed hangs in the kernel, waiting for the disk")
        # Not trio.open_process: it forks in a thread, and the worker is to die with this process,
        # not with that thread.
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-P", "-c", _START, str(os.getpid())],
                    stdin=theirs.fileno(), stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,  # ours is a terminal until the mount serves
                    pass_fds=self._inherit, cwd="/",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise WorkerGone(f"the commit worker could not be started: {error}") from error
        self.starts += 1
        self._guards = self._is_open = False
        self._ended = trio.Event()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._answers, self._inbox = trio.open_memory_channel[tuple[Any, ...]](64)
        self._nursery.start_soon(self._listen, self._stream, self._answers, self._ended)
        data = pickle.dumps((self._place,))
        try:
            await self._stream.send_all(FRAME.pack(len(data)) + data)
        except trio.BrokenResourceError as error:
            self.stop()
            raise WorkerGone("the commit worker could not be started") from error

    async def _listen(
        self, stream: trio.SocketStream, answers: trio.MemorySendChannel[tuple[Any, ...]], ended: trio.Event
    ) -> None:
        buffer = bytearray()
        tip: bytes | None = None
        closed = contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError)
        with answers, _setting(ended), closed:
            while part := await stream.receive_some(1 << 18):
                buffer += part
                while len(buffer) >= FRAME.size:
                    (size,) = FRAME.unpack_from(buffer)
                    if len(buffer) < FRAME.size + size:
                        break
                    kind, *rest = pickle.loads(memoryview(buffer)[FRAME.size : FRAME.size + size])
                    del buffer[: FRAME.size + size]
                    self.signs += 1
                    if kind == "alive" and rest:
                        self.written = rest[0], rest[1]
                    if kind in ("tip", "ready"):
                        self._is_open = True
                        tip = rest[0]
                        self._on_tip(tip)
                    elif kind == "log":
                        log.error("the commit worker says: %s", rest[0])
                    else:
                        if kind == "done" and rest[1] != tip:
                            tip = rest[1]  # comes along: a message of its own would be a wake-up more
                            self._on_tip(tip)
                        await answers.send((kind, *rest))

    def stop(self) -> None:
        """End the worker, whatever it does: what it had not finished will be done again."""
        process, self._process = self._process, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.socket.close()
        if process is not None:
            process.kill()
            try:
                process.wait(self.policy.worker_ending)
            except subprocess.TimeoutExpired:  # it waits for a disk, and nothing interrupts that
                self._ending.append(process)

    @property
    def is_ending(self) -> bool:
        """True while a killed worker may still write."""
        self._ending = [process for process in self._ending if process.poll() is None]
        return bool(self._ending)


@contextlib.contextmanager
def _setting(event: trio.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()
