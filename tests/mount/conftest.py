"""What the tests of whole mounts share."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from support.mounts import Mount

_numbers = itertools.count()


@pytest.fixture
def room(shared_mount: Mount) -> Path:
    """A fresh directory in the mount that the tests of a module share."""
    path = shared_mount.path / f"room{next(_numbers)}"
    path.mkdir()
    return path


@pytest.fixture
def disk(scratch: Path) -> Path:
    """A fresh directory on plain disk, to compare with."""
    path = scratch / f"disk{next(_numbers)}"
    path.mkdir()
    path.chmod(0o755)
    return path
