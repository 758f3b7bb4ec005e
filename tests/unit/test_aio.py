"""Several files synced at once, by the kernel or, where it does not, one by one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from caiafs import aio
from caiafs.aio import Syncer


def opened(base: Path, count: int) -> list[int]:
    return [os.open(base / str(number), os.O_RDWR | os.O_CREAT) for number in range(count)]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is synced by a call for itself."""
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_files_are_synced_by_the_kernel(tmp_path: Path, one_by_one: list[int]) -> None:
    syncer = Syncer()
    if syncer._begin(()) is None or syncer._queue is None:
        pytest.skip("this kernel has no asynchronous I/O")
    fds = opened(tmp_path, Syncer.ROOM + 2)
    for _ in range(2):
        syncer.sync(fds)
    assert one_by_one == fds[Syncer.ROOM :] * 2, "more than there is room for"
    syncer.sync(())


def test_without_the_kernel_s_help_each_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_by_one: list[int]
) -> None:
    monkeypatch.setattr(aio, "_NUMBERS", {})
    fds = opened(tmp_path, 3)
    Syncer().sync(fds)
    assert one_by_one == fds


def test_a_forked_process_syncs_them_itself(tmp_path: Path) -> None:
    """The parent's queue is not its own."""
    syncer = Syncer()
    fds = opened(tmp_path, 2)
    syncer.sync(fds)
    child = os.fork()
    if child == 0:
        try:
            syncer.sync(fds)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_what_cannot_be_synced_is_an_error(tmp_path: Path) -> None:
    syncer = Syncer()
    fds = opened(tmp_path, 2)
    inlet, outlet = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        syncer.sync([fds[0], inlet, fds[1]])
    syncer.sync(fds)
    os.close(outlet)
    os.close(fds[1])
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        syncer.sync(fds)


def test_an_error_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncer = Syncer()

    def wait(queue: object, count: int, outcomes: object) -> None:
        syncer._outcomes[1].result = -errno.EIO

    fds = opened(tmp_path, 2)
    syncer.sync(fds)
    if syncer._queue is None:
        pytest.skip("this kernel has no asynchronous I/O")
    monkeypatch.setattr(aio._Queue, "wait", wait)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        syncer.sync(fds)
