"""Speaking to a service manager: the messages of sd_notify(3), and nothing else.

Written out here instead of taken from a library: it is one datagram of text. A `Notifier`
that nobody started as a service says nothing, so that callers need not ask. mount/service.py
decides what is said and when; any task of the event loop may send.

A message is sent at once or not at all: a manager that does not read must not stop the mount.
The few that it has to get (READY, STOPPING, the end of a reload) are given a moment.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a message which must arrive waits for room in the manager's queue."""
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """The way to the service manager that *environ* names; without one, every call does nothing."""

    def __init__(self, environ: Mapping[str, str], pid: int | None = None) -> None:
        self._socket = _connect(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environ, os.getpid() if pid is None else pid) if self._socket else None
        """Seconds within which the manager wants a sign of life; None if it wants none."""
        self._status = ""
        self._told_trouble = False

    @property
    def is_service(self) -> bool:
        """Whether somebody listens."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """The mount serves; also the end of a reload."""
        self._send(["READY=1", *self._new_status(status)], must=True)

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(["RELOADING=1", f"MONOTONIC_USEC={now}"], must=True)

    def stopping(self, status: str = "") -> None:
        """The end has begun."""
        self._send(["STOPPING=1", *self._new_status(status)], must=True)

    def status(self, text: str) -> bool:
        """What `systemctl status` shows; said only when it is new. False if it could not be said now."""
        fields = self._new_status(text)
        if fields and not self._send(fields):
            self._status = ""
            return False
        return True

    def failed(self, text: str, code: int) -> None:
        """Why the mount does not come up: one line, and an errno."""
        self._send([*self._new_status(text), f"ERRNO={code}"], must=True)

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send(["WATCHDOG=1"])

    def extend(self, seconds: float) -> None:
        """What is under way, a start or a stop, may take *seconds* more from now."""
        self._send([f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"])

    def close(self) -> None:
        """Say nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _new_status(self, text: str) -> list[str]:
        text = " ".join(text.split())
        if not text or text == self._status:
            return []
        self._status = text
        return [f"STATUS={text}"]

    def _send(self, fields: list[str], must: bool = False) -> bool:
        if self._socket is None:
            return False
        self._socket.settimeout(PATIENCE if must else 0)
        try:
            self._socket.send("\n".join(fields).encode("utf-8", "surrogateescape"))
        except OSError as error:
            if not self._told_trouble:  # once, until it works again
                self._told_trouble = True
                log.warning("the service manager could not be told %s: %s", fields[0], error)
            return False
        self._told_trouble = False
        return True


def take_environment(environ: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """Take out of *environ* what is meant for this process alone: its children are no services."""
    return {name: environ.pop(name) for name in _VARIABLES if name in environ}


def _connect(address: str) -> socket.socket | None:
    if not address:
        return None
    if address[0] not in "/@":
        log.warning("NOTIFY_SOCKET=%s is no address that caiafs knows: nothing is reported there", address)
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        made.close()
        log.warning("the service manager does not listen at %s: %s", address, error.strerror)
        return None
    return made


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    """sd_watchdog_enabled(3): the time that is wanted, if it is wanted of this process."""
    wanted, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if meant and meant != str(pid):
        return None
    try:
        seconds = int(wanted) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None
