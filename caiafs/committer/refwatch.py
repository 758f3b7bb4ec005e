"""Hearing that a ref moved, without a look every half second: inotify(7) on the directories that can tell.

Used by the worker while it waits. A ref's value is in its own file, or in packed-refs where there is none;
both are replaced by a rename, and directories of refs come and go, so that what is watched is settled anew
after each event. Only for filesystems of this machine: what another machine does, inotify does not hear.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x01000000
_EVENTS = (
    _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
)  # linux/inotify.h

LOCAL = frozenset((0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E))
"""ext, XFS, btrfs, tmpfs, f2fs, ZFS, bcachefs (linux/magic.h). Not overlayfs: a watch from before a directory
was copied up hears nothing."""

_libc = ctypes.CDLL(None, use_errno=True)


class RefWatch:
    """Watches one ref. `fd` is readable when something happened; -1 where this machine gives no inotify."""

    def __init__(self, git_dir: str, ref: bytes) -> None:
        self._git_dir = os.fsencode(git_dir)
        self._ref = ref
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def arm(self) -> bool:
        """Forget what was heard, and hear what comes from now on; look at the ref after that.

        False: not all that may happen would be heard, so the ref has to be looked at now and then.
        """
        if self.fd < 0:
            return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 1 << 16):
                pass
        if not _is_local(self._git_dir):
            return False
        above = self._git_dir
        for step in (b"", *self._ref.split(b"/")[:-1]):
            above = os.path.join(above, step)
            if _libc.inotify_add_watch(self.fd, above, _EVENTS) < 0:
                if not os.path.exists(above):
                    break  # it will be made in a directory that is watched
                return False  # the user's watches are used up, or it is no directory
        return not self._is_symbolic()

    def _is_symbolic(self) -> bool:
        """A ref that leads to another one: that may be anywhere."""
        try:
            with open(os.path.join(self._git_dir, self._ref), "rb") as file:
                return file.read(4) == b"ref:"
        except OSError:
            return False

    def close(self) -> None:
        """Let go of it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _is_local(path: bytes) -> bool:
    """Whether *path* is on a filesystem that only this machine writes to; see statfs(2)."""
    found = (ctypes.c_long * 64)()
    return _libc.statfs(path, found) == 0 and found[0] & 0xFFFFFFFF in LOCAL
