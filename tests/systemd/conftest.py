"""A machine for each module, booted once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.machine import Machine, need_systemd


@pytest.fixture(scope="module")
def bare_machine(scratch: Path) -> Iterator[Machine]:
    """A machine that is still off; closed, and looked at for what it left, at the end."""
    need_systemd()
    base = Path(tempfile.mkdtemp(dir=scratch, prefix="sd"))
    made = Machine(base)
    try:
        yield made
    finally:
        left = made.processes()
        made.close()
        assert not [process.describe() for process in left if process.alive()]
        assert str(base) not in Path("/proc/self/mountinfo").read_text()
        shutil.rmtree(base)
