"""Runs every check of checks/ on tmpfs, as the control, and on a mount.

What the checks leave behind on the mount is then unmounted, mounted again and compared with how it was.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pkgutil
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import checks
import pytest
from checks.kit import CASES, Case
from support.mounts import Mount, run
from support.snapshots import assert_same, snapshot
from support.users import need_root

for module in pkgutil.iter_modules(checks.__path__):
    importlib.import_module(f"{checks.__name__}.{module.name}")


@pytest.fixture(scope="module")
def tmpfs(scratch: Path) -> Iterator[Path]:
    """The control: a small tmpfs of its own for root, /dev/shm for anybody else."""
    if os.geteuid() == 0:
        path = scratch / "tmpfs"
        path.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=512m,mode=755", "caiafs-control", path)
        yield path
        run("umount", "-l", path)
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            yield Path(name)


@pytest.fixture(scope="module", params=["tmpfs", "caiafs"])
def place(request: pytest.FixtureRequest) -> Path:
    if request.param == "tmpfs":
        path: Path = request.getfixturevalue("tmpfs")
        return path
    mount: Mount = request.getfixturevalue("shared_mount")
    return mount.path


# What the kernel decides before a FUSE daemon is asked. tmpfs shows that the checks are right.
KERNEL_LIMITS = {
    r"modes\.writing_takes_set_id_bits_away\(.*,02722\)": "set-gid without group execution stays on FUSE",
}

_numbers = itertools.count()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("::", ":;"))
def test_check(place: Path, case: Case) -> None:
    if case.root:
        need_root()
    directory = place / f"d{next(_numbers)}"
    directory.mkdir(0o755)
    try:
        case.run(directory)
    except AssertionError:
        if place.name != "tmpfs":
            for pattern, reason in KERNEL_LIMITS.items():
                if re.match(pattern, case.name):
                    pytest.xfail(f"the kernel: {reason}")
        raise


def test_everything_the_checks_left_survives_a_remount(shared_mount: Mount) -> None:
    before = snapshot(shared_mount.path)
    shared_mount.remount()
    # Times to the nanosecond are for the tests of remounts: some checks here have kernel and daemon stamp one
    # file in the same moment (a write that takes set-id bits away), and their clocks differ by a tick.
    assert_same(before, snapshot(shared_mount.path), ignore=["atime_ns", "mtime_ns", "ctime_ns"])
