"""Fixtures that every test may use: mounts that are verified and cleared when the test ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mounts import Mount, need_fuse
from support.processes import GUARD


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short path: sockets and deep trees below it need the room."""
    path = Path(tempfile.mkdtemp(prefix="caiafs-"))
    path.chmod(0o755)
    yield path
    GUARD.close()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """A daemon that stops answering is killed shortly before the test's own time is over."""
    marker = request.node.get_closest_marker("timeout")
    limit = float(marker.args[0]) if marker and marker.args else 120.0
    GUARD.arm(max(limit - 15, limit / 2))
    mask = os.umask(0o022)
    yield
    os.umask(mask)
    GUARD.arm(100)


class Mounts:
    """Makes mounts on request and verifies all of them at the end, the youngest first."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.made: list[Mount] = []

    def __call__(self, *options: str, **settings: Any) -> Mount:
        """A running mount in a folder of its own, with these -o options."""
        mount = self.prepare(*options, **settings)
        return mount.start()

    def prepare(self, *options: str, **settings: Any) -> Mount:
        """The same, not started."""
        settings.setdefault("base", self.base / str(len(self.made)))
        mount = Mount(settings.pop("base"), *options, **settings)
        self.made.append(mount)
        return mount

    def finish(self) -> None:
        try:
            while self.made:
                self.made.pop().verify()
        finally:
            for mount in self.made:
                mount.close()


def _new_base(scratch: Path) -> Path:
    base = Path(tempfile.mkdtemp(dir=scratch, prefix=""))
    base.chmod(0o755)
    return base


@pytest.fixture
def mounts(scratch: Path) -> Iterator[Mounts]:
    need_fuse()
    made = Mounts(_new_base(scratch))
    yield made
    made.finish()
    shutil.rmtree(made.base, ignore_errors=True)


@pytest.fixture
def mount(mounts: Callable[..., Mount]) -> Mount:
    """One mount with the default options."""
    return mounts()


@pytest.fixture(scope="module")
def shared_mount(scratch: Path) -> Iterator[Mount]:
    """One mount for a whole module of checks, open to every user; take a fresh directory in it."""
    need_fuse()
    made = Mounts(_new_base(scratch))
    yield made(*(["allow_other"] if os.geteuid() == 0 else []))
    made.finish()
    shutil.rmtree(made.base, ignore_errors=True)
