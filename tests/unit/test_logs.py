"""Logs: one event a line, fields for the journal, nothing secret, no flood."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caiafs.mount import logs
from caiafs.mount.logs import (
    BURST,
    WINDOW,
    Funnel,
    JournalHandler,
    LineFormatter,
    LogFile,
    Repeats,
    TerminalFormatter,
    journal_entry,
)


def record(
    message: str, *arguments: object, level: int = logging.INFO, line: int = 1, **more: object
) -> logging.LogRecord:
    made = logging.LogRecord("caiafs.x", level, "/c/x.py", line, message, arguments, None, "doing")
    for name, value in more.items():
        setattr(made, name, value)
    return made


def failing() -> logging.LogRecord:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        made = record("it broke", level=logging.ERROR)
        made.exc_info = sys.exc_info()
        return made


# -- how it looks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a\nWARNING caiafs: all is lost", "\x1b[2Jgone", "tab\there", "\x9b31m", "\u2028x", "\udc80"]
)
def test_one_event_is_one_line_whatever_a_file_is_called(name: str) -> None:
    for formatter in (LineFormatter(), TerminalFormatter()):
        line = formatter.format(record("cannot read %s", name, fields={"path": name}))
        assert len(line.splitlines()) == 1
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
        line.encode()


def test_a_line_has_its_fields_and_its_traceback() -> None:
    line = LineFormatter().format(record("committed %s", "x", fields={"commit": "4f", "subject": 'a "b"'}))
    assert re.fullmatch(r'\d{4}-.* INFO caiafs\.x: committed x commit=4f subject="a \\"b\\""', line)
    line = LineFormatter().format(failing())
    assert r"it broke: ValueError: bad\nthing traceback=" in line
    assert "test_logs.py" in line
    assert len(line.splitlines()) == 1


def test_a_terminal_shows_tracebacks_as_python_does() -> None:
    lines = TerminalFormatter().format(failing()).splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR it broke: ValueError: bad\\nthing", lines[0])
    assert lines[1] == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fetch https://ada:hunter2@example.org/x", "fetch https://***@example.org/x"),
        ("Authorization: Bearer hunter2", "Authorization: Bearer ***"),
        ("http_token=hunter2, next", "http_token=***, next"),
        ('{"password": "hunter2"}', '{"password": "***"}'),
        ("the token is in /etc/x", "the token is in /etc/x"),
        ("mail ada@example.org", "mail ada@example.org"),
    ],
)
def test_nothing_secret_is_written(text: str, shown: str) -> None:
    assert logs.redacted(text) == shown
    assert LineFormatter().format(record("%s", text)).endswith(shown)


# -- the journal ------------------------------------------------------------------------------------


def parse(entry: bytes) -> dict[str, str]:
    """The fields of an event in journald's native protocol."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", entry)
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.settimeout(10)
        yield listening


@pytest.fixture
def handler(journald: socket.socket) -> Iterator[JournalHandler]:
    made = JournalHandler({"mount": "/srv/x", "repo": "/srv/x.git"}, journald.getsockname())
    yield made
    made.close()


def test_the_journal_gets_fields(journald: socket.socket, handler: JournalHandler) -> None:
    handler.handle(record("committed %s", "4f", level=logging.WARNING, fields={"commit": "4f", "a-b": 1}))
    assert parse(journald.recv(65536)) == {
        "MESSAGE": "committed 4f",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "caiafs",
        "CAIAFS_MOUNT": "/srv/x",
        "CAIAFS_REPO": "/srv/x.git",
        "CODE_FILE": "/c/x.py",
        "CODE_LINE": "1",
        "CODE_FUNC": "doing",
        "LOGGER": "caiafs.x",
        "CAIAFS_COMMIT": "4f",
        "CAIAFS_A_B": "1",
    }
    handler.handle(failing())
    fields = parse(journald.recv(65536))
    assert fields["MESSAGE"] == r"it broke: ValueError: bad\nthing"
    assert fields["EXCEPTION"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.ERROR, "3"), (logging.CRITICAL, "2")],
)
def test_levels_are_those_of_syslog(
    level: int, priority: str, journald: socket.socket, handler: JournalHandler
) -> None:
    handler.handle(record("x", level=level))
    assert parse(journald.recv(65536))["PRIORITY"] == priority


def test_values_with_newlines_go_after_their_length() -> None:
    assert journal_entry({"A": "x", "B": "1\n2"}) == b"A=x\nB\n\x03\0\0\0\0\0\0\0001\n2\n"
    assert parse(journal_entry({"B": "1\n2\n", "A": "="})) == {"B": "1\n2\n", "A": "="}


def test_an_event_too_large_for_a_datagram_goes_as_a_file(
    journald: socket.socket, handler: JournalHandler
) -> None:
    text = "x" * 1_000_000
    handler.handle(record("large", fields={"text": text}))
    data, rights, _, _ = socket.recv_fds(journald, 65536, 1)
    assert data == b""
    with open(rights[0], "rb") as stream:
        stream.seek(0)
        assert parse(stream.read())["CAIAFS_TEXT"] == text


def test_a_journal_that_does_not_read_stops_nothing_and_hears_what_it_missed(
    journald: socket.socket, handler: JournalHandler
) -> None:
    for _ in range(5000):
        handler.handle(record("x"))
    journald.setblocking(False)
    count = 0
    while True:
        try:
            journald.recv(65536)
        except BlockingIOError:
            break
        count += 1
    assert count < 5000
    handler.handle(record("after"))
    journald.setblocking(True)
    said = parse(journald.recv(65536))["MESSAGE"]
    assert said.startswith(f"{5000 - count} events before this one")
    assert parse(journald.recv(65536))["MESSAGE"] == "after"


def test_without_a_journal_standard_error_gets_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = JournalHandler({}, str(tmp_path / "none"))
    handler.handle(record("hello"))
    assert "INFO caiafs.x: hello" in capsys.readouterr().err
    handler.close()


def test_the_journal_is_known_by_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        right = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path))
        assert logs.to_journal(right, stream.fileno())
        assert not logs.to_journal({"JOURNAL_STREAM": f"{found.st_dev}:1"}, stream.fileno())
        assert not logs.to_journal({}, stream.fileno())
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "none"))
        assert not logs.to_journal(right, stream.fileno())


# -- no flood ---------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Collecting(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written() -> Collecting:
    return Collecting()


@pytest.fixture
def funnel(clock: Clock, written: Collecting) -> Iterator[Funnel]:
    made = Funnel([written], Repeats(clock))
    yield made
    made.close()


def test_repeats_are_counted(funnel: Funnel, clock: Clock, written: Collecting) -> None:
    for _ in range(1000):
        funnel.handle(record("disk full", level=logging.ERROR))
    assert written.said == ["disk full"]
    clock.now += WINDOW
    funnel.handle(record("something else", line=2))
    assert written.said == ["disk full", "disk full (repeated 999 more times)", "something else"]
    funnel.handle(record("disk full", level=logging.ERROR))
    assert written.said[-1] == "disk full"  # a new window


def test_a_flood_of_different_warnings_is_counted_too(
    funnel: Funnel, clock: Clock, written: Collecting
) -> None:
    for number in range(500):
        funnel.handle(record("cannot read %d", number, level=logging.WARNING))
    assert written.said == [f"cannot read {number}" for number in range(BURST)]
    funnel.close()
    assert written.said[BURST:] == [f"cannot read 499 (and {500 - BURST} more like it)"]


def test_different_events_and_debugging_are_no_flood(
    funnel: Funnel, clock: Clock, written: Collecting
) -> None:
    for number in range(50):
        funnel.handle(record("committed %d", number))
        funnel.handle(record("detail", level=logging.DEBUG))
    assert len(written.said) == 100


def test_what_is_held_back_is_told_when_its_time_is_up(
    monkeypatch: pytest.MonkeyPatch, written: Collecting
) -> None:
    monkeypatch.setattr(logs, "WINDOW", 0.05)
    told = threading.Event()
    written.emit = lambda record: (written.said.append(record.getMessage()), told.set())  # type: ignore[method-assign,assignment]
    funnel = Funnel([written])
    funnel.handle(record("x"))
    told.clear()
    funnel.handle(record("x"))
    assert told.wait(10)
    assert written.said == ["x", "x (repeated once more)"]
    funnel.close()


# -- where it goes ----------------------------------------------------------------------------------


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    logger, ours = logging.getLogger(), logging.getLogger("caiafs")
    handlers, level = list(logger.handlers), (logger.level, ours.level)
    yield ours
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level[0])
    ours.setLevel(level[1])


def test_the_terminal_hears_warnings_until_the_mount_serves(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal, log = io.StringIO(), tmp_path / "log"
    monkeypatch.setattr(sys, "stderr", terminal)
    with log.open("a", buffering=1) as stream:
        serving = logs.start("info", {}, stream, journal=False)
        ours.info("one")
        ours.warning("two")
        serving()
        ours.warning("three")
    assert re.findall(r"one|two|three", terminal.getvalue()) == ["two"]
    assert re.findall(r"one|two|three", log.read_text()) == ["one", "two", "three"]


def test_a_log_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LIMIT", 1000)
    path = tmp_path / "log"
    with path.open("a", buffering=1) as stream:
        handler = LogFile(stream)
        for number in range(100):
            handler.handle(record("event %d", number))
        stream.write("from elsewhere\n")
    text = path.read_text()
    assert len(text) < 1200
    assert text.endswith("from elsewhere\n")
    before = (tmp_path / "log.1").read_text()
    assert len(before) < 1200
    numbers = [int(number) for number in re.findall(r"event (\d+)", before + text)]
    assert numbers == list(range(numbers[0], 100))


def test_the_level_changes_at_any_time(ours: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    logs.start("warning", {}, None, journal=False)
    ours.info("quiet")
    logs.set_level("debug")
    ours.debug("loud")
    logging.getLogger("dulwich").info("quiet")
    assert re.findall(r"quiet|loud", terminal.getvalue()) == ["loud"]
