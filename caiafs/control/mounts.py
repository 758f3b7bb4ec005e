"""The kernel's table of mounts, as far as caiafs needs it: /proc/self/mountinfo, see proc(5).

Reading the table never touches a mounted filesystem, so it is safe while one hangs or is dead.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

FSTYPE = "fuse.caiafs"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table. Paths may hold surrogate escapes for undecodable bytes."""

    mountpoint: str
    fstype: str
    source: str
    options: str
    device: str
    """major:minor; the minor number names the directory under /sys/fs/fuse/connections."""

    @property
    def is_caiafs(self) -> bool:
        return self.fstype == FSTYPE


def mount_table(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Every mount this process sees, oldest first: of several at one place, the last is on top."""
    with open(path, "rb") as stream:
        return [_parse(line) for line in stream.read().splitlines() if b" - " in line]


def mount_at(mountpoint: str) -> Mount | None:
    """The mount whose root is exactly *mountpoint* (absolute), or None."""
    found = [mount for mount in mount_table() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_of(path: str) -> Mount | None:
    """The mount that *path* lies in. Symbolic links are followed, save through the mountpoint itself."""
    path = os.path.abspath(path)
    if exact := mount_at(path):
        return exact
    path = os.path.realpath(path)
    holding = [mount for mount in mount_table() if is_within(path, mount.mountpoint)]
    return max(reversed(holding), key=lambda mount: len(mount.mountpoint), default=None)


def is_within(path: str, directory: str) -> bool:
    """Whether *path* is *directory* or below it; by name only."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _parse(line: bytes) -> Mount:
    # 36 35 98:0 /root /mountpoint options optional… - fstype source superoptions
    left, right = line.split(b" - ", 1)
    before, after = left.split(b" "), right.split(b" ")
    return Mount(
        mountpoint=_unescape(before[4]),
        fstype=_unescape(after[0]),
        source=_unescape(after[1]),
        options=_unescape(before[5]),
        device=os.fsdecode(before[2]),
    )


def _unescape(field: bytes) -> str:
    # The kernel writes space, tab, newline, backslash and # as \ooo.
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))
