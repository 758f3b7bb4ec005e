"""Going to the background: the command returns once the mount serves, or says why it does not.

`launch` forks before any thread or event loop exists. The child serves; a pipe tells the parent
how it went: ready, or an error with its exit code. Only the moment of readiness cuts the child
loose (setsid, standard streams to the log). Not earlier, for two reasons: until then its warnings
belong on the terminal, and a mount helper that calls setsid before mount(2) makes systemd's
automount wait until its timeout, since it tells the mounting process by its process group.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import pwd
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from caiafs.errors import CaiafsError

Serve = Callable[[Callable[[], None]], int]
"""Gets `ready`, to be called once when the mount answers; returns the exit code after the unmount."""

LOG_LIMIT = 4 << 20
"""A log larger than this is moved to NAME.1 before the next launch writes to it."""

_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def launch(serve: Serve, log_path: str | None) -> int:
    """Run *serve* in a child; return 0 once it is ready, else show its error and return its exit code.

    Without *log_path* the child keeps its standard error: it leads to the system's journal.

    *serve* must not depend on the working directory: the child changes to /. The child never
    returns from this call.
    """
    log_size = 0 if log_path is None else _prepare_log(log_path)
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _serve_in_child(serve, log_path, send)
    os.close(send)
    try:
        answer = _await_answer(receive, child)
    finally:
        os.close(receive)
    if answer is not None and answer.get("ready"):
        return 0
    _pid, status = os.waitpid(child, 0)
    if answer is not None:
        print(f"caiafs: {answer['error']}", file=sys.stderr)
        return int(answer["exit_code"])
    print(f"caiafs: the daemon {_fate(status)} before the mount was up", file=sys.stderr)
    if log_path is not None and (tail := _tail(log_path, log_size)):
        print(f"the end of its log {log_path}:\n{tail}", file=sys.stderr)
    return 32


def default_log_path(mountpoint: str) -> str:
    """/var/log/caiafs/NAME.log for root, $XDG_STATE_HOME/caiafs/NAME.log for others.

    NAME is the mountpoint, its slashes written as dashes.
    """
    if os.geteuid() == 0:
        directory = "/var/log/caiafs"
    else:
        home = os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
        directory = os.path.join(
            os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local/state"), "caiafs"
        )
    name = mountpoint.strip("/").replace("-", "--").replace("/", "-") or "root"
    return os.path.join(directory, f"{name[-200:]}.log")


def open_log(log_path: str) -> TextIO:
    """The log for writing, closed to others; where that cannot be, a file that goes nowhere."""
    try:
        fd = os.open(log_path, _LOG_FLAGS, 0o600)
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def forget_terminal() -> None:
    """The terminal went away: what is still said goes nowhere, and fails nobody."""
    _redirect(os.devnull, os.O_RDWR, 0, 1, 2)


def _serve_in_child(serve: Serve, log_path: str | None, send: int) -> NoReturn:
    code, told = 1, False

    def tell(**answer: object) -> None:
        nonlocal told
        if not told:
            told = True
            _write_all(send, json.dumps(answer).encode() + b"\n")
            os.close(send)

    def ready() -> None:
        if not told:
            _detach(log_path)
            tell(ready=True)

    try:
        os.chdir("/")
        _redirect(os.devnull, os.O_RDONLY, 0)
        code = serve(ready)
        tell(error="the daemon ended before the mount was up", exit_code=code or 32)
    except CaiafsError as problem:
        code = problem.exit_code
        if told:
            logging.getLogger(__name__).error("%s", problem)
        tell(error=str(problem), exit_code=code)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        tell(error="interrupted", exit_code=code)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
        tell(error="the daemon ended before the mount was up", exit_code=code or 32)
    except BaseException as problem:
        logging.getLogger(__name__).exception("the daemon failed unexpectedly")
        tell(error=f"internal error: {type(problem).__name__}: {problem}", exit_code=1)
    finally:
        # Not sys.exit: the frames above belong to the command that was forked, not to the daemon.
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _detach(log_path: str | None) -> None:
    os.setsid()
    sys.stdout.flush()
    sys.stderr.flush()
    if log_path is None:
        return
    try:
        _redirect(log_path, _LOG_FLAGS, 1, 2)
    except OSError:
        # The mount is up: a log that cannot be written is no reason to take it down.
        _redirect(os.devnull, os.O_WRONLY, 1, 2)


def _redirect(path: str, flags: int, *targets: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    for target in targets:
        os.dup2(fd, target)
    if fd not in targets:
        os.close(fd)


def _await_answer(receive: int, child: int) -> dict[str, Any] | None:
    """The child's one line, or None once it is dead without one.

    The pipe's end does not tell of its death: a grandchild may hold the other end open.
    """
    watch = os.pidfd_open(child)
    try:
        os.set_blocking(receive, False)
        poll = select.poll()
        poll.register(receive, select.POLLIN)
        poll.register(watch, select.POLLIN)
        line, open_ended = b"", True
        while True:
            dead = any(fd == watch for fd, _ in poll.poll())
            try:
                data = os.read(receive, 65536) if open_ended else b""
                if not data and open_ended:
                    # Closed without a word: only the child's end is left to wait for.
                    open_ended = False
                    poll.unregister(receive)
            except BlockingIOError:
                data = b""
            line += data
            if line.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            if dead and not data:
                return None
    finally:
        os.close(watch)


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        pass  # the command was killed while it waited: the mount lives on


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit status {os.waitstatus_to_exitcode(status)}"


def _prepare_log(log_path: str) -> int:
    """Make the log's directory, move an overlong log aside, return the size of what is there."""
    try:
        os.makedirs(os.path.dirname(log_path), mode=0o700, exist_ok=True)
        if os.path.getsize(log_path) > LOG_LIMIT:
            os.replace(log_path, log_path + ".1")
            return 0
        return os.path.getsize(log_path)
    except OSError:
        return 0


def _tail(log_path: str, start: int, lines: int = 20) -> str:
    try:
        with open(log_path, "rb") as stream:
            stream.seek(start)
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
