"""Words to the kernel about a mount that is up: hand over, forget, let go.

Every call here may wait for requests that the event loop serves, so it runs in a thread, always.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial

import pyfuse3

from ..control.mounts import mount_at, mount_table, sync_filesystem, unmount

log = logging.getLogger(__name__)

READ_AHEAD = 512
"""KiB that the kernel reads ahead of a program; more made it wait for the first of them."""


def device_of(path: str) -> str:
    """The device of the filesystem at *path*, as the table of mounts has it: major:minor."""
    found = os.stat(path).st_dev
    return f"{os.major(found)}:{os.minor(found)}"


def place_of(device: str, path: str) -> str | None:
    """Where *device* is mounted now: at *path*, or elsewhere if that was renamed; None: nowhere.

    A name alone may lead to the directory below, or to another mount, and what is done there would
    not be done to ours. Reads the table only.
    """
    usual = mount_at(path)
    if usual is not None and usual.device == device:
        return path
    return next((mount.mountpoint for mount in mount_table() if mount.device == device), None)


def read_ahead(device: str) -> None:
    """Let the kernel ask for more at once where a file is read from end to end: a third less time for the
    same bytes. Only root may; for others its own 128 KiB stay."""
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w") as setting:
            setting.write(str(READ_AHEAD))
    except OSError as error:
        log.debug("the kernel reads ahead as it usually does: %s", error)


def let_go(path: str) -> bool:
    """Unmount *path*, which hands everything over; False if programs still use it.

    Then its name is free and nothing new can be opened there, and all is handed over that they
    had written. Raises OSError where that is refused.
    """
    try:
        unmount(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    else:
        return True
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unmount(path, lazy=True)
        sync_filesystem(fd, path)
    finally:
        os.close(fd)
    return False


def forget(names: list[tuple[int, bytes]], inodes: Iterable[int] = ()) -> None:
    """Make the kernel forget these names, with the attributes of the directories they are in, and all that
    it has of *inodes*."""
    calls = []
    for parent, name in names:
        calls.append(partial(pyfuse3.invalidate_entry, pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)))
        calls.append(partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(parent), attr_only=True))
    calls += [partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(ino)) for ino in inodes]
    for invalidate in calls:
        try:
            invalidate()
        except OSError as error:
            if error.errno != errno.ENOENT:  # the kernel never knew it, or forgot it
                log.warning("the kernel could not be told that something changed: %s", error)


def prune(names: list[tuple[int, bytes]], mounted: Callable[[], bool]) -> None:
    """Make the kernel forget these files, which have not changed, so that they cost nobody memory.

    Not for directories: who works in one would find it gone from under them.
    """
    for parent, name in names:
        if not mounted():
            return
        try:
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
        except OSError as error:
            if error.errno != errno.ENOENT and mounted():
                log.warning("the kernel could not be asked to forget a name: %s", error)
                return
