"""Machines for the tests of what is shipped: `make package-test`, never the default suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.roots import FreshMachine, copy_of_the_source, debian_base, fresh_machine, need_machine

BUILD_NEEDS = ("python3-dev", "gcc", "libc6-dev", "pkg-config", "libfuse3-dev")
"""What pyfuse3 needs to be built from source, which it always is."""


@pytest.fixture(scope="session")
def debian() -> Path:
    """A minimal Debian 12, to be laid under a guest."""
    need_machine()
    return debian_base()


@pytest.fixture(scope="session")
def built(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel and the Debian package, built on a Debian 12 from this tree."""
    work = tmp_path_factory.mktemp("build")
    out = work / "out"
    with fresh_machine(debian, work / "machine") as builder:
        builder.install("python3-venv", *BUILD_NEEDS, "binutils")
        builder.put(copy_of_the_source(work / "source"), "/srv/source")
        builder.run("python3 -m venv b && b/bin/pip install -q build")
        builder.run("b/bin/python -m build -o /srv/out /srv/source")
        builder.run("cd /srv/source && PYTHONPATH=.:.ci python3 -m shipping.deb /srv/out")
        builder.get("/srv/out", out)
    return out


@pytest.fixture
def machine(debian: Path, tmp_path: Path) -> Iterator[FreshMachine]:
    """A Debian that nothing has been installed on yet."""
    with fresh_machine(debian, tmp_path / "machine") as made:
        yield made
