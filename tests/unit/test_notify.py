"""What a service manager is told: the messages, and when they are sent."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from support.core import Core

from caiafs.mount import service
from caiafs.mount.notify import Notifier, take_environment
from caiafs.mount.report import Report
from caiafs.mount.service import feed_watchdog, patience, report_status


class Manager:
    """The listening end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The messages since the last look."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode("utf-8", "surrogateescape"))
            except BlockingIOError:
                return messages


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_messages_are_those_of_sd_notify(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    assert notifier.is_service
    notifier.extend(30)
    notifier.ready("healthy: all is in git")
    notifier.alive()
    notifier.stopping()
    notifier.failed("no such\nrepository", 2)
    assert manager.heard() == [
        "EXTEND_TIMEOUT_USEC=30000000",
        "READY=1\nSTATUS=healthy: all is in git",
        "WATCHDOG=1",
        "STOPPING=1",
        "STATUS=no such repository\nERRNO=2",
    ]
    notifier.close()


def test_reload_says_when_it_began(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    (message,) = manager.heard()
    first, stamp = message.split("\n")
    assert first == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.close()


def test_status_is_said_once(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for text in ("one", "one", "two", "one", "", "one"):
        notifier.status(text)
    assert manager.heard() == ["STATUS=one", "STATUS=two", "STATUS=one"]
    notifier.close()


def test_an_abstract_address(tmp_path: Path) -> None:
    manager = Manager(f"@caiafs-test-{os.getpid()}")
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.status("here")
    assert manager.heard() == ["STATUS=here"]
    notifier.close()
    manager.socket.close()


def test_nobody_listens(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    silent = Notifier({})
    silent.ready("x")
    assert not silent.is_service
    assert caplog.records == []
    for address, words in ((str(tmp_path / "none"), "does not listen"), ("vsock:2:1", "no address")):
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
        notifier.alive()
        assert (notifier.is_service, notifier.watchdog) == (False, None)
        assert words in caplog.text
    assert len(caplog.records) == 2


def test_a_manager_that_does_not_read_stops_nothing(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    started = time.monotonic()
    for number in range(5000):
        notifier.status(str(number))
    assert time.monotonic() - started < 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not notifier.status("4999"), "it was not said, so it is still to be said"
    manager.heard()
    assert notifier.status("4999")
    assert manager.heard() == ["STATUS=4999"]
    notifier.ready("again")
    assert manager.heard() == ["READY=1\nSTATUS=again"]
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_wanted_of_this_process(
    environment: dict[str, str], wanted: float | None, manager: Manager
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, **environment}, pid=7)
    assert notifier.watchdog == wanted
    notifier.close()


def test_children_do_not_inherit_the_service() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "PATH": "/bin"}
    taken = take_environment(environment)
    assert taken == {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2"}
    assert environment == {"PATH": "/bin"}


# -- when -------------------------------------------------------------------------------------------


def in_trio_time(main: object) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_watchdog_is_fed_three_times_in_its_time(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"})

    async def main() -> None:
        with trio.move_on_after(59):
            await feed_watchdog(notifier)

    in_trio_time(main)
    assert manager.heard() == ["WATCHDOG=1"] * 3
    notifier.close()


class Watched:
    """A mount that does nothing, is changed once, and is committed a while later."""

    def __init__(self) -> None:
        self.changes = 0
        self.event = trio.Event()
        self.looks = 0

    def status_line(self) -> str:
        self.looks += 1
        return f"{self.changes} changes"

    def is_quiet(self) -> bool:
        return not self.changes

    async def stirred(self) -> None:
        await self.event.wait()
        self.event = trio.Event()


def test_status_follows_the_changes_and_rests_with_them(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    watched = Watched()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report_status, notifier, watched)
            await trio.sleep(1000)
            assert watched.looks == 1  # nothing happened, and nobody looked
            watched.changes = 3
            watched.event.set()
            await trio.sleep(5)
            watched.changes = 0
            await trio.sleep(1000)
            assert 3 < watched.looks < 12
            nursery.cancel_scope.cancel()

    in_trio_time(main)
    assert manager.heard() == ["STATUS=0 changes", "STATUS=3 changes", "STATUS=0 changes"]
    notifier.close()


def test_a_mount_is_not_quiet_while_a_commit_is_under_way(tmp_path: Path) -> None:
    """Its changes wait no more and are not in git yet: the status line is about to change."""
    core = Core(tmp_path)
    report = Report(core.config, b"main", lambda: core.state, core.fs, core.committer, core.metrics)
    assert report.is_quiet()

    async def main() -> None:
        await core.put(b"file", b"data")
        assert not report.is_quiet()
        core.fs.freeze()
        assert not core.fs.is_dirty
        assert "not yet in git" in report.status_line()
        assert not report.is_quiet()

    core.run(main)
    core.close()


def test_more_time_is_asked_for_only_while_it_gets_on(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    values, looked = iter([1, 2, 2, 2, 3]), threading.Event()

    def progress() -> int:
        value = next(values, None)
        if value is None:
            looked.set()
            return 3
        return value

    with patience(notifier, progress, look=0.001):
        assert looked.wait(10)
    assert manager.heard() == [f"EXTEND_TIMEOUT_USEC={round(service.PATIENCE * 1e6)}"] * 3
    notifier.close()
