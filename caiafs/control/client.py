"""The asking side of the command socket: blocking, standard library only, one command a connection."""

from __future__ import annotations

import _thread
import contextlib
import errno
import json
import os
import pwd
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caiafs.control.mounts import mount_at, mount_of
from caiafs.errors import CaiafsError

Progress = Callable[[int, int, str], None]
"""Called with done, total and a text that says what is being done."""

SOCKET = "control"
CONTROL_XATTR = "user.caiafs.control"
"""Of a mount's root: process id and state directory of its daemon."""
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a FUSE mount answers once its daemon is gone."""


class ControlError(CaiafsError):
    """The daemon of a mount could not be asked, or answered that it failed."""

    def __init__(self, message: str, code: int = errno.EIO, exit_code: int = 1) -> None:
        super().__init__(message, code)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Location:
    """Where the daemon of a mount can be reached."""

    mountpoint: str
    state_dir: str
    pid: int


def call(
    path: str,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask the daemon whose mount *path* lies in, and return its result.

    Raises ControlError, whose message names the way out: not a caiafs mount, daemon dead
    (errno ENOTCONN), not permitted (EACCES), no answer in time (ETIMEDOUT), or what the daemon said.
    """
    return call_socket(locate(path, timeout).state_dir, command, arguments, timeout, on_progress)


def call_socket(
    state_dir: str,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Like `call`, for a known state directory.

    *timeout* counts seconds without an answer: progress that moves starts it anew, progress that
    repeats itself does not.
    """
    request = json.dumps({"command": command, "arguments": dict(arguments or {})}) + "\n"
    said = "it may be busy or stuck"

    def note(done: int, total: int, text: str) -> None:
        nonlocal said
        said = f"the last it said is: {text}"
        if on_progress is not None:
            on_progress(done, total, text)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, state_dir)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request.encode())  # who is not permitted is told so before he has spoken
            return _read_answers(sock, command, timeout, note)
        except TimeoutError:
            raise ControlError(
                f"the daemon did not answer {command!r} within {timeout:g} s; {said} "
                f"(`caiafs status` and its log tell more)",
                errno.ETIMEDOUT,
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            raise _gone(command) from None


def locate(path: str, timeout: float | None = 10.0) -> Location:
    """Find the daemon of the mount that *path* lies in; raise ControlError where there is none."""
    mount = mount_of(path)
    if mount is None or not mount.is_caiafs:
        if not os.path.lexists(path):
            raise ControlError(f"{path} does not exist", errno.ENOENT)
        raise ControlError(
            f"{path} is not in a caiafs mount; `caiafs status` lists the mounts there are", errno.EINVAL
        )
    found = _in_patience(lambda: _control(mount.mountpoint), mount.mountpoint, timeout)
    if isinstance(found, bytes):
        pid, _, state_dir = found.partition(b" ")
        return Location(mount.mountpoint, os.fsdecode(state_dir), int(pid))
    config = read_stats(mount.mountpoint, "config.json", timeout)  # it tells why not, or a way round
    directory, process = config.get("state_dir"), config.get("pid")
    if not isinstance(directory, str) or not isinstance(process, int):
        raise ControlError(f"{mount.mountpoint}/.stats/config.json names no state_dir and pid")
    return Location(mount.mountpoint, directory, process)


def _control(mountpoint: str) -> bytes:
    return os.getxattr(mountpoint, CONTROL_XATTR)


def read_stats(mountpoint: str, name: str, timeout: float | None = 10.0) -> dict[str, Any]:
    """Read and decode MOUNTPOINT/.stats/*name*; a mount that does not answer in time raises ControlError."""
    path = os.path.join(mountpoint, ".stats", name)

    def read() -> bytes:
        try:
            with open(path, "rb") as stream:
                return stream.read()
        except PermissionError:
            if os.geteuid() != 0:
                raise
            return _read_as_owner(mountpoint, path)

    found = _in_patience(read, mountpoint, timeout)
    if isinstance(found, OSError):
        raise _unreadable(mountpoint, found)
    try:
        decoded = json.loads(found)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise ControlError(f"{mountpoint}/.stats/{name} does not hold a JSON object")
    return decoded


def _in_patience(read: Callable[[], bytes], mountpoint: str, timeout: float | None) -> bytes | OSError:
    """What *read* gives or raises; a mount that does not answer in time raises ControlError."""
    outcome: list[bytes | OSError] = []
    working = threading.Lock()
    working.acquire()

    def reading() -> None:
        try:
            outcome.append(read())
        except OSError as problem:
            outcome.append(problem)
        finally:
            working.release()

    # A read from a hung mount cannot be given up, so a thread is left behind in it; it ends with us. A Thread
    # would be waited for twice: until it says that it runs, and until it ends.
    _thread.start_new_thread(reading, ())
    working.acquire(timeout=-1 if timeout is None else timeout)
    if not outcome:
        raise ControlError(
            f"the mount at {mountpoint} does not answer; its daemon is stuck or stopped", errno.ETIMEDOUT
        )
    return outcome[0]


def _read_as_owner(mountpoint: str, path: str) -> bytes:
    # Without allow_other, FUSE keeps everyone out but the user who mounted: root too.
    mount = mount_at(mountpoint)
    uid, gid = mount.owner if mount is not None else (0, 0)
    done = subprocess.run(
        ["cat", "--", path],
        user=uid,
        group=gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if done.returncode != 0:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return done.stdout


def _unreadable(mountpoint: str, problem: OSError) -> ControlError:
    if problem.errno in DEAD:
        quoted = shlex.quote(mountpoint)
        return ControlError(
            f"the daemon of {mountpoint} is dead. Clear the mount with `caiafs umount {quoted}` "
            f"(or `fusermount3 -u {quoted}`) and mount again: what was acknowledged is kept",
            errno.ENOTCONN,
        )
    if problem.errno in (errno.EACCES, errno.EPERM):
        return ControlError(
            f"no permission to look into {mountpoint}: it belongs to another user and is mounted without "
            f"allow_other; ask as that user or as root",
            errno.EACCES,
        )
    return ControlError(
        f"cannot read {mountpoint}/.stats: {problem.strerror or problem}", problem.errno or errno.EIO
    )


def _connect(sock: socket.socket, state_dir: str) -> None:
    # Through a descriptor, since an address holds 107 bytes and a path may be longer.
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
    except PermissionError:
        raise ControlError(
            f"not permitted: only {_owner(state_dir)} may command this mount", errno.EACCES
        ) from None
    except FileNotFoundError:
        raise ControlError(
            f"no daemon listens in {state_dir}: it has ended, or has not started yet", errno.ENOENT
        ) from None
    except ConnectionRefusedError:
        raise ControlError(
            f"the daemon that listened in {state_dir} is dead; mount again to go on", errno.ECONNREFUSED
        ) from None


def _owner(state_dir: str) -> str:
    try:
        uid = os.stat(state_dir).st_uid
        return "root" if uid == 0 else f"{pwd.getpwuid(uid).pw_name} and root"
    except (OSError, KeyError):
        return "root and the user who mounted it"


def _read_answers(
    sock: socket.socket, command: str, timeout: float | None, on_progress: Progress
) -> dict[str, Any]:
    buffer, last = b"", b""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            sock.settimeout(remaining)
        data = sock.recv(65536)
        if not data:
            raise _gone(command)
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if timeout is not None and line != last:
                deadline = time.monotonic() + timeout
            last = line
            answer = json.loads(line)
            if "result" in answer:
                result: dict[str, Any] = answer["result"]
                return result
            if "error" in answer:
                error = answer["error"]
                raise ControlError(
                    error.get("message", "failed"), error.get("errno", errno.EIO), error.get("exit_code", 1)
                )
            if "progress" in answer:
                step = answer["progress"]
                on_progress(step["done"], step["total"], step["text"])


def _gone(command: str) -> ControlError:
    return ControlError(
        f"the daemon ended before it answered {command!r}; what was acknowledged is kept in its journal",
        errno.ECONNRESET,
    )
