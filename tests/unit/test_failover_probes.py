"""Tiers come back: by probes, when what was damaged is mended, after pauses that grow.

Each test was seen to fail with its defence switched off; how is said where it is not plain (`off:`).
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import trio
import trio.testing
from support.stage import Stage, played, quick, refused
from test_store_support import git as run_git

from caiafs.committer.probes import Probes
from caiafs.errors import FSError, ObjectCorrupt
from caiafs.policy import Policy
from caiafs.tree import File

pytestmark = pytest.mark.usefixtures("without_threads")


def test_probes_bring_tiers_back_without_a_call(stage: Stage) -> None:
    """off: `Probes.run` doing nothing."""
    probes = Probes(stage.fs, stage.core.committer)

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probes.run)
            await trio.testing.wait_all_tasks_blocked()
            stage.fail("both")
            assert not probes.noticed.is_set()
            await refused(lambda: stage.core.put(b"one"))
            assert stage.fs.health.state == "failed"
            assert probes.noticed.is_set(), "whoever shows the health is woken"
            await trio.sleep(100)
            assert stage.fs.health.state == "failed"
            assert stage.fs.health.git.failures > 4
            asked = stage.git.asked.count("probe")
            await trio.sleep(30 * 60)
            assert stage.git.asked.count("probe") - asked <= 30 * 60 / 15 + 1, "pauses grow up to a ceiling"
            stage.heal()
            await trio.sleep(31)
            assert stage.fs.health.state == "healthy", stage.fs.health.reasons
            nursery.cancel_scope.cancel()

    played(stage, play, quick())


def test_a_damaged_object_is_named_until_it_is_mended(stage: Stage) -> None:
    """EIO for the one file; health says which object. off: `ask` without the note."""
    trio.run(stage.core.put, b"bad", os.urandom(2000))
    trio.run(stage.core.put, b"good", b"good")
    trio.run(stage.core.committer.commit)
    oid = run_git(stage.core.git_dir, "rev-parse", "main:bad").decode().strip()
    core = stage.core.crash()
    fs, blob = core.fs, core.store.blob
    damaged = True

    def read(wanted: bytes, *more: Any) -> bytes:
        if damaged and wanted.hex() == oid:
            raise ObjectCorrupt(f"object {oid} is damaged")
        return blob(wanted, *more)

    core.store.blob = read  # type: ignore[method-assign]
    probes = Probes(fs, core.committer)

    async def play() -> None:
        nonlocal damaged
        bad, good = await core.find(b"bad"), await core.find(b"good")
        assert isinstance(bad, File)
        assert isinstance(good, File)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probes.run)
            with pytest.raises(FSError) as caught:
                await fs.read(bad, 0, 10)
            assert caught.value.errno == errno.EIO
            assert await fs.read(good, 0, 10) == b"good"
            assert fs.health.state == "degraded"
            assert any(oid in reason for reason in fs.health.reasons)
            await trio.sleep(100)
            assert fs.health.state == "degraded"
            damaged = False
            await trio.sleep(40)
            assert fs.health.state == "healthy"
            assert len(await fs.read(bad, 0, 2000)) == 2000
            nursery.cancel_scope.cancel()

    trio.run(play, clock=quick())
    core.close()


def test_pauses_grow_with_jitter_up_to_the_ceiling() -> None:
    policy = Policy(retry_pause=0.2, retry_ceiling=30)
    pauses = [[policy.pause(attempt) for _ in range(200)] for attempt in range(1, 20)]
    for attempt, found in enumerate(pauses):
        longest = min(30, 0.2 * 2**attempt)
        assert longest / 2 <= min(found) < max(found) <= longest
        assert max(found) - min(found) > longest / 4, "spread out"
    assert policy.pause(50, ceiling=1) <= 1
