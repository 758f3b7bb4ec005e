"""Directories and files that take longer to read than anybody waits."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from support.core import Core

from caiafs.errors import FSError
from caiafs.filesystem.loader import Listing, Place
from caiafs.tree import Content, Directory


def test_a_slow_directory_is_read_once_and_shown_at_last(tmp_path: Path) -> None:
    core = Core(tmp_path)
    core.run(core.put, b"wide/file", b"x")
    core.commit()
    core = core.crash()
    wide = core.run(core.find, b"wide")
    assert isinstance(wide, Directory)
    core.fs.config = core.fs.config.with_(operation_timeout=0.05)
    real, go, calls = core.fs._loader.directory, threading.Event(), []

    def slowly(place: Place) -> Listing:
        calls.append(place)
        assert go.wait(30)
        return real(place)

    core.fs._loader.directory = slowly  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(FSError) as caught:
            core.run(core.fs.children, wide)
        assert caught.value.errno == errno.ETIMEDOUT
    go.set()
    while core.fs._reading:
        time.sleep(0.01)
    core.fs.config = core.fs.config.with_(operation_timeout=60.0)
    assert set(core.run(core.fs.children, wide)) == {b"file"}
    assert len(calls) == 1
    core.close()


class Slow:
    """A large blob whose bytes come as the test lets them."""

    size = 3 << 20

    def __init__(self) -> None:
        self.go = threading.Event()
        self.spooled = 0
        self.looks = 0

    def read(self, offset: int, length: int) -> bytes:
        assert self.go.wait(30)
        return bytes(length)

    def close(self) -> None: ...


class Coming(Slow):
    """More of it is there with each look, until it is."""

    @property
    def spooled(self) -> int:
        self.looks += 1
        if self.looks > 20:
            self.go.set()
        return self.looks

    @spooled.setter
    def spooled(self, value: int) -> None: ...


@pytest.mark.parametrize("kind", [Slow, Coming])
def test_a_large_file_is_waited_for_while_its_bytes_come(tmp_path: Path, kind: type[Slow]) -> None:
    core = Core(tmp_path)
    reader, content = kind(), Content(Slow.size, bytes(20))
    core.fs.contents._store.open_blob = lambda oid, spool: reader  # type: ignore[method-assign]

    async def read() -> bytes:
        started = trio.current_time()
        try:
            return await core.fs.contents.read(content, 0, 4096)
        finally:
            waited = trio.current_time() - started
            assert waited >= core.fs.config.operation_timeout
            reader.go.set()

    clock = trio.testing.MockClock(autojump_threshold=0.02)
    if kind is Coming:
        assert trio.run(read, clock=clock) == bytes(4096)
    else:
        with pytest.raises(FSError) as caught:
            trio.run(read, clock=clock)
        assert caught.value.errno == errno.ETIMEDOUT
    core.close()
