"""Making the kernel forget: names and inodes, or pages as well. Needs root."""

from __future__ import annotations

import time
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
CALM = 0.05
"""Seconds for a FUSE daemon to digest the FORGETs that follow."""


def drop_names() -> None:
    """The kernel knows no name and no inode any more, but keeps the pages of files."""
    _DROP.write_text("2\n")
    time.sleep(CALM)


def drop_everything() -> None:
    """Nothing is cached by the kernel any more."""
    _DROP.write_text("3\n")
    time.sleep(CALM)
