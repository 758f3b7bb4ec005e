"""Machines for the tests of what is shipped: `make package-test`, never the default suite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.roots import FreshMachine, debian_base, fresh_machine, need_machine

_numbers = itertools.count()


@pytest.fixture(scope="session")
def debian() -> Path:
    """A minimal Debian 12, to be laid under a guest."""
    need_machine()
    return debian_base()


@pytest.fixture
def machine(debian: Path, tmp_path: Path) -> Iterator[FreshMachine]:
    """A Debian that nothing has been installed on yet."""
    with fresh_machine(debian, tmp_path / "machine") as made:
        yield made
