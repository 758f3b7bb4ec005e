"""Directories that take longer to read than anybody waits."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
from support.core import Core

from caiafs.errors import FSError
from caiafs.filesystem.loader import Listing, Place
from caiafs.tree import Directory


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
