"""The socket that HTTP is served on, bound before anything is mounted.

So an address that cannot be had fails the mount, with its cause, and a port is ours before the
server is. Whoever runs the mount may serve; a unix socket is theirs alone (mode 600).
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from caiafs.config import HttpAddress
from caiafs.errors import MountError

BACKLOG = 1024
"""Connections that the kernel holds until the server has time. One that it drops comes again in a second."""


class Listener:
    """A bound, listening socket; *address* has the port that was really taken."""

    def __init__(self, wanted: HttpAddress) -> None:
        self.socket = _bind_unix(wanted) if wanted.path else _bind_tcp(wanted)
        self.address = wanted
        if not wanted.path:
            self.address = wanted._replace(port=self.socket.getsockname()[1])
        self._file = _identity(wanted.path) if wanted.path else None

    @property
    def url(self) -> str:
        """What a person opens: http://127.0.0.1:8080/, or unix:/run/x."""
        return str(self.address) if self.address.path else f"http://{self.address}/"

    def close(self) -> None:
        """Stop listening; a unix socket's file goes, unless it is another's by now."""
        path = self.address.path
        if self._file is not None and _identity(path) == self._file:
            os.unlink(path)  # while it still listens: nobody takes it for a dead one's meanwhile
        self._file = None
        self.socket.close()


def _bind_tcp(wanted: HttpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _failed(wanted, error) from None
    try:
        # Connections that ended keep a port for a minute; without this, a restarted mount would wait it out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(socket.getaddrinfo(wanted.host, wanted.port, family, socket.SOCK_STREAM)[0][4])
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _failed(wanted, error) from None
    return sock


def _bind_unix(wanted: HttpAddress) -> socket.socket:
    path = wanted.path
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _failed(wanted, error) from None
    else:
        if not stat.S_ISSOCK(kind):
            raise MountError(f"http={wanted}: something that is no socket is there; move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise _failed(wanted, OSError(errno.EADDRINUSE, ""))
        os.unlink(path)  # left by a process that is dead
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Before bind, fchmod sets the mode the file is created with: never a moment of others.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _failed(wanted, error) from None
    return sock


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _failed(wanted: HttpAddress, error: OSError) -> MountError:
    if error.errno == errno.EADDRINUSE:
        why = "another program, or another mount, is served there already; name another place"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this machine has no such address; 127.0.0.1 is always there"
    elif error.errno == errno.EACCES and not wanted.path:
        why = f"only root may serve ports below 1024, and {wanted.port} is one"
    elif error.errno == errno.ENOENT:
        why = f"the directory {os.path.dirname(wanted.path)} does not exist; create it"
    else:
        why = f"cannot be served there: {error.strerror or error}"
    problem = MountError(f"http={wanted}: {why}")
    problem.errno = error.errno or errno.EIO
    return problem
