"""Fixtures that several modules use: a core, a stage, a repository to damage, what passes for a mount."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.core import Core
from support.fakemount import FakeMount
from support.lab import Lab
from support.stage import Stage

from caiafs import control
from caiafs.cli import asking, helpers, mounting
from caiafs.control import client, mounts


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMount]:
    fake = FakeMount(tmp_path)

    def find(path: str) -> control.Mount | None:
        return fake.mount if mounts.is_within(os.path.abspath(path), str(fake.path)) else None

    monkeypatch.setattr(client, "mount_of", find)
    monkeypatch.setattr(mounting, "mount_of", find)
    for module in (mounting, helpers):
        monkeypatch.setattr(module, "mount_at", lambda path: fake.mount if path == str(fake.path) else None)
    monkeypatch.setattr(asking, "mount_table", lambda: [fake.mount])
    monkeypatch.setattr(mounting, "mount_table", lambda: [fake.mount])
    listening, stop = threading.Event(), list[Callable[[], None]]()
    thread = threading.Thread(target=fake.serve, args=(listening, stop))
    thread.start()
    assert listening.wait(10)
    yield fake
    stop[0]()
    thread.join()


@pytest.fixture
def unmounted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    calls: list[tuple[str, bool]] = []

    def unmount(mountpoint: str, *, lazy: bool = False) -> None:
        calls.append((mountpoint, lazy))

    monkeypatch.setattr(mounting, "unmount", unmount)
    monkeypatch.setattr(helpers, "unmount", unmount)
    return calls


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    yield made
    made.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.core.close()


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the core does in threads is done at once: a clock that jumps would not wait for them."""

    async def at_once(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.end()
