"""Where log records go, and how they look there: one event a line, with its fields.

The package logs through the standard library; what a program may want to search for goes along as
`extra={"fields": {"commit": …}}`. This module is the other end, set up once by the command line:

    the journal     under systemd (JOURNAL_STREAM names our standard error): journald's own
                    protocol, so that `journalctl CAIAFS_MOUNT=/srv/site` finds them
    a terminal      time, level, message; tracebacks as Python shows them
    a file or pipe  the same in one line, `key=value` at its end

What programs named their files, and what git or a disk said, may be in a message: control
characters are escaped everywhere, so that nobody writes log lines of their own making. Passwords
in addresses and what looks like a token are masked. Equal messages are counted instead of
written (`Repeats`), so that a disk that fails a thousand times a second does not fill another.

Weighed: systemd-python and cysystemd. Both are compiled, for one datagram.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import math
import os
import re
import shutil
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TextIO

JOURNAL_SOCKET = "/run/systemd/journal/socket"
WINDOW = 10.0
"""Seconds for which messages of one kind are counted together."""
LIMIT = 4 << 20
"""Bytes past which a log file is begun anew."""
BURST = 10
"""Different warnings of one kind that are written within a window; the rest is counted."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_FIELD = re.compile(r"[^A-Z0-9_]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET = re.compile(
    r"(?i)\b((?:[\w-]*token|password|passphrase|secret|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)[^\s,;\"']+"
)


def to_journal(environ: Mapping[str, str], fd: int = 2) -> bool:
    """Whether descriptor *fd* leads to the journal; JOURNAL_STREAM says which file does, systemd.exec(5)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino)) and os.path.exists(JOURNAL_SOCKET)


def start(
    level: str, context: Mapping[str, str], log_file: TextIO | None, *, journal: bool
) -> Callable[[], None]:
    """Log from now on; gives the function to call once the mount serves.

    To the journal; or to standard error; or to *log_file*: then the terminal sees warnings, and
    only until the mount serves. *context* are fields that every event in the journal carries.
    """
    if journal:
        outputs: list[logging.Handler] = [JournalHandler(context)]
    else:
        outputs = [_stream(sys.stderr)]
        if log_file is not None:
            outputs[0].setLevel(logging.WARNING)
            outputs.append(LogFile(log_file))
    funnel = Funnel(outputs)
    root = logging.getLogger()
    root.addHandler(funnel)
    set_level(level)

    def serving() -> None:
        if log_file is not None and not journal:
            funnel.drop(outputs[0])

    return serving


def set_level(level: str) -> None:
    """Log what is at least as grave as *level* (debug, info, warning, error); at any time.

    That is for what caiafs says. Of the libraries, warnings are enough.
    """
    logging.getLogger("caiafs").setLevel(level.upper())
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _stream(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TerminalFormatter() if stream.isatty() else LineFormatter())
    return handler


class LogFile(logging.StreamHandler[TextIO]):
    """A log that a daemon writes for months: past LIMIT bytes, what is there becomes NAME.1.

    Copied and cut off, not renamed: standard error and others have the same file open.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        fd = self.stream.fileno()
        found = os.fstat(fd)
        if found.st_size <= LIMIT or not stat.S_ISREG(found.st_mode):
            return
        path = os.readlink(f"/proc/self/fd/{fd}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(path, "rb") as old, open(os.open(f"{path}.1", flags, 0o600), "wb") as new:
                shutil.copyfileobj(old, new)
        except OSError:
            return  # a log that stays long is better than one that is gone
        os.ftruncate(fd, 0)


# -- how an event looks ---------------------------------------------------------------------------


def one_line(text: str) -> str:
    r"""*text* without control characters (a newline becomes \n) and without secrets."""
    return _CONTROL.sub(_escape, redacted(text)).encode("utf-8", "backslashreplace").decode()


def redacted(text: str) -> str:
    """*text* without passwords in addresses, and without what is called a token or a password."""
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***", text))


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra={"fields": …}`."""
    found = getattr(record, "fields", None)
    return dict(found) if isinstance(found, Mapping) else {}


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character == "\\":
        return character
    short = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(character)
    return short or (f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}")


def _cause(record: logging.LogRecord) -> str:
    """The exception that came with the record, in a few words."""
    problem = record.exc_info[1] if record.exc_info else None
    return f": {type(problem).__name__}: {problem}" if problem is not None else ""


class LineFormatter(logging.Formatter):
    """One event, one line, whatever is in it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        line = one_line(self.formatMessage(record) + _cause(record))
        for name, value in fields_of(record).items():
            line += f" {name}={_quoted(value)}"
        if record.exc_info:
            line += f" traceback={_quoted(self.formatException(record.exc_info))}"
        return line


class TerminalFormatter(logging.Formatter):
    """For people who watch: short, and tracebacks in their usual shape."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        line = one_line(self.formatMessage(record) + _cause(record))
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "\n" + "\n".join(one_line(each) for each in trace.splitlines())
        return line


def _quoted(value: object) -> str:
    text = one_line(str(value))
    return text if re.fullmatch(r"[^\s\"=]+", text) else '"' + text.replace('"', r"\"") + '"'


class JournalHandler(logging.Handler):
    """Hands records to journald, in its native protocol; to standard error where that fails."""

    def __init__(self, context: Mapping[str, str], address: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._address = address
        self._context = dict(context)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # a journal that is stuck must not stop the mount
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                said = f"{self._lost} events before this one found the journal busy and are lost"
                self._send(journal_entry({"MESSAGE": said, "PRIORITY": "4", **self._common()}))
                self._lost = 0
            self._send(journal_entry(self._entry(record)))
        except BlockingIOError:
            self._lost += 1
        except OSError:
            print(LineFormatter().format(record), file=sys.stderr, flush=True)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _common(self) -> dict[str, str]:
        return {"SYSLOG_IDENTIFIER": "caiafs", **{_name(key): text for key, text in self._context.items()}}

    def _entry(self, record: logging.LogRecord) -> dict[str, str]:
        entry = {
            "MESSAGE": one_line(record.getMessage() + _cause(record)),
            "PRIORITY": str(next((number for level, number in _PRIORITIES if record.levelno >= level), 7)),
            **self._common(),
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            "LOGGER": record.name,
        }
        entry |= {_name(key): redacted(str(value)) for key, value in fields_of(record).items()}
        if record.exc_info:
            entry["EXCEPTION"] = redacted(logging.Formatter().formatException(record.exc_info))
        return entry

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, self._address)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_in_memory(entry)

    def _send_in_memory(self, entry: bytes) -> None:
        # More than a datagram takes: a sealed file in memory, as the protocol has it.
        fd = os.memfd_create("caiafs-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as stream:
                stream.write(entry)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._socket.sendmsg([], rights, 0, self._address)
        finally:
            os.close(fd)


def journal_entry(fields: Mapping[str, str]) -> bytes:
    """The bytes of one event: NAME=value lines; a value with newlines goes after its length."""
    entry = b""
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            entry += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return entry


def _name(key: str) -> str:
    return "CAIAFS_" + _FIELD.sub("_", key.upper())[:50]


# -- no flood -------------------------------------------------------------------------------------


class Repeats:
    """Decides which records are written. Those of one kind (one place, one level) share a window.

    The first is written; an equal one that follows is counted, and so are warnings past the burst.
    What was counted is told in one line when the window ends. Who asks for debug gets everything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    def passes(self, record: logging.LogRecord) -> bool:
        """Whether *record* is written; if not, it is counted."""
        if record.levelno < logging.INFO:
            return True
        key = (record.name, record.levelno, record.pathname, record.lineno)
        text = record.getMessage()
        kind = self._kinds.get(key)
        if kind is None:
            self._kinds[key] = _Kind(self._clock() + WINDOW, text)
            return True
        burst = BURST if record.levelno >= logging.WARNING else math.inf
        if text != kind.text and kind.written < burst:
            kind.text, kind.written = text, kind.written + 1
            return True
        kind.alike = kind.alike and text == kind.text
        kind.held, kind.last = kind.held + 1, record
        return False

    @property
    def due(self) -> float | None:
        """When the first window ends in which something was counted; None if nothing was."""
        return min((kind.until for kind in self._kinds.values() if kind.held), default=None)

    def collect(self, everything: bool = False) -> list[logging.LogRecord]:
        """What is to be told of windows that are over: one record for each in which something was counted."""
        now, told = self._clock(), []
        for key, kind in list(self._kinds.items()):
            if everything or now >= kind.until:
                del self._kinds[key]
                if kind.last is not None:
                    told.append(kind.summary())
        return told


class _Kind:
    """Messages from one place within one window."""

    def __init__(self, until: float, text: str) -> None:
        self.until = until
        self.text = text
        self.written = 1
        self.held = 0
        self.alike = True
        self.last: logging.LogRecord | None = None

    def summary(self) -> logging.LogRecord:
        last = self.last
        assert last is not None
        times = "once more" if self.held == 1 else f"{self.held} more times"
        what = f"repeated {times}" if self.alike else f"and {self.held} more like it"
        told = logging.LogRecord(
            last.name, last.levelno, last.pathname, last.lineno, "%s (%s)", (last.getMessage(), what), None,
            last.funcName,
        )  # fmt: skip
        told.fields = {**fields_of(last), "repeated": self.held}
        return told


class Funnel(logging.Handler):
    """The one handler of the root logger: counts repeats, and passes the rest on to every output."""

    def __init__(self, outputs: list[logging.Handler], repeats: Repeats | None = None) -> None:
        super().__init__()
        self._outputs = outputs
        self._repeats = repeats or Repeats()
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(self._repeats.collect())
        if self._repeats.passes(record):
            self._tell([record])
        elif self._timer is None:
            # A thread, only while something is held back: records come from threads, too.
            self._timer = threading.Timer(WINDOW, self._time_is_up)
            self._timer.daemon = True
            self._timer.start()

    def drop(self, output: logging.Handler) -> None:
        """Pass nothing on to *output* any more."""
        with self.lock or threading.Lock():
            self._outputs = [each for each in self._outputs if each is not output]

    def close(self) -> None:
        self.acquire()
        try:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._tell(self._repeats.collect(everything=True))
        finally:
            self.release()
        super().close()

    def _tell(self, records: list[logging.LogRecord]) -> None:
        for record in records:
            for output in self._outputs:
                if record.levelno >= output.level:
                    output.handle(record)

    def _time_is_up(self) -> None:
        self.acquire()
        try:
            self._timer = None
            self._tell(self._repeats.collect(everything=True))
        finally:
            self.release()
