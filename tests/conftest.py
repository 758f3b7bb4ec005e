"""Fixtures that every test may use: mounts that are verified and cleared when the test ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("support")  # before anything of it is imported

from support.mounts import Mount, Mounts, need_fuse  # noqa: E402
from support.processes import GUARD  # noqa: E402

settings.register_profile("caiafs", deadline=None)  # a busy machine is no failure
settings.load_profile("caiafs")


FOLDERS = ("model", "posix", "mount", "crash", "systemd", "docs", "packaging")
"""In this order: a long module that begins last is waited for by idle processors. The rest is short."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long; leave out what takes longest, unless -m asks for something by name."""
    here = Path(__file__).parent
    places = {here / folder: number for number, folder in enumerate(FOLDERS)}
    items.sort(key=lambda item: places.get(item.path.parent, len(FOLDERS)))
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


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
def mount(mounts: Mounts) -> Mount:
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
