"""Daemons without the start of an interpreter.

A server process imports caiafs once and forks a child for each mount: the very function that
`python -m caiafs mount -f` calls, some ten times sooner. A child may be *armed* before it
begins: a function of support.drill.moments changes something in that process alone.
The server ends its children when its input ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support.mounts import SOURCE, environment, is_mounted
from support.processes import GUARD, Process

Arm = tuple[str, list[object]]


class ForkServer:
    """The server, as the test sees it. Close it."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(SOURCE), str(SOURCE / "tests")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from support.drill.forks import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(PYTHONPATH=path), cwd="/",
        )  # fmt: skip
        self.ended: dict[int, int] = {}
        self._buffer = b""

    def mount(
        self, options: Sequence[str], repository: Path, mountpoint: Path, log: Path, arm: Arm | None = None
    ) -> ForkedDaemon:
        """Begin to mount; see `ForkedDaemon.wait_serving`."""
        words = ["mount", "-f", *(["-o", ",".join(options)] if options else [])]
        request = {"argv": [*words, str(repository), str(mountpoint)], "log": str(log), "arm": arm}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            name, pid, _ = self._message()
            if name == "forked":
                GUARD.watch(pid)
                return ForkedDaemon(self, pid, mountpoint, log)

    def _message(self, timeout: float | None = None) -> tuple[str, int, int]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], timeout)[0]:
                raise TimeoutError
            part = os.read(fd, 65536)
            assert part, "the fork server ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        name, pid, status = json.loads(line)
        if name == "ended":
            self.ended[pid] = status
            GUARD.release(pid)
        return name, pid, status

    def status_of(self, pid: int, timeout: float) -> int:
        """The exit status of a daemon (negative: the signal that ended it). Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while pid not in self.ended:
            self._message(max(0.0, deadline - time.monotonic()))
        return self.ended[pid]

    def close(self) -> None:
        self._process.communicate(timeout=20)


class ForkedDaemon:
    """One daemon, from its fork to its end."""

    def __init__(self, server: ForkServer, pid: int, mountpoint: Path, log: Path) -> None:
        self._server = server
        self.pid = pid
        self.mountpoint = mountpoint
        self.log = log

    def ended(self) -> int | None:
        with contextlib.suppress(TimeoutError):
            return self._server.status_of(self.pid, 0.0)
        return None

    def wait(self, timeout: float = 30.0) -> int:
        return self._server.status_of(self.pid, timeout)

    def serves(self) -> bool:
        """Whether it answers: neither the stale mount of a daemon before nor the directory below."""
        if not is_mounted(self.mountpoint):
            return False
        try:
            return self.mountpoint.stat().st_dev != self.mountpoint.parent.stat().st_dev
        except OSError:
            return False

    def wait_serving(self, timeout: float = 60.0) -> bool:
        """True once it answers; False if it ended before."""
        deadline = time.monotonic() + timeout
        while not self.serves():
            if self.ended() is not None:
                return False
            assert time.monotonic() < deadline, f"no mount after {timeout} s\n{self.log.read_text()[-3000:]}"
            time.sleep(0.003)
        return True

    def workers(self) -> list[Process]:
        me = Process.of(self.pid)
        return me.children() if me else []

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP for it and its workers: nothing moves until `thaw`, or the end."""
        self.signal(signal.SIGSTOP)
        for worker in self.workers():
            worker.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for worker in self.workers():
            worker.signal(signal.SIGCONT)
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9; returns when it and its workers are gone. Its mount stays, dead."""
        family = self.workers()
        self.signal(signal.SIGKILL)
        self.wait()
        for process in family:
            process.signal(signal.SIGCONT)  # one that had just begun must run to see that it is not wanted
        deadline = time.monotonic() + 10
        while any(process.alive() for process in family):
            assert time.monotonic() < deadline, "a worker outlived its daemon"
            time.sleep(0.002)


# ---- the server


def serve() -> None:
    """Fork on request until the input ends."""
    for module in (
        "caiafs.mount",
        "caiafs.mount.daemonize",
        "caiafs.cli.mounting",
        "caiafs.committer.worker",
    ):
        importlib.import_module(module)
    children: dict[int, int] = {}  # pidfd -> pid
    buffer = b""
    while True:
        ready, _, _ = select.select([0, *children], [], [])
        for fd in ready:
            if fd in children:
                pid = children.pop(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                _say("ended", pid, os.waitstatus_to_exitcode(status))
                continue
            part = os.read(0, 65536)
            if not part:
                _end_all(children)
                return
            buffer += part
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become_daemon(request)
                children[os.pidfd_open(pid)] = pid
                _say("forked", pid, 0)


def _say(*message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _end_all(children: dict[int, int]) -> None:
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _become_daemon(request: dict[str, object]) -> None:
    code = 70
    try:
        log = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 64)
        arm = request["arm"]
        if arm is not None:
            name, arguments = arm  # type: ignore[misc]
            getattr(importlib.import_module("support.drill.moments"), name)(*arguments)
        from caiafs.cli import main

        code = main(request["argv"])  # type: ignore[arg-type]
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
