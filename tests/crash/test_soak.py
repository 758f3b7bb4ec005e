"""A miniature of `make soak`, by the same code: load, kills, faults and other people's git.

CAIAFS_SOAK_SEED repeats a run, CAIAFS_SOAK_SECONDS lengthens it.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from support.drill.kill import Tally
from support.drill.soak import soak, table
from support.mounts import need_fuse

SEED = int(os.environ.get("CAIAFS_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SECONDS = float(os.environ.get("CAIAFS_SOAK_SECONDS", "6"))


@pytest.mark.timeout(180 + 3 * SECONDS)
def test_soak(scratch: Path) -> None:
    need_fuse()
    print(f"CAIAFS_SOAK_SEED={SEED}")  # shown if the test fails
    tally = Tally()
    with soak(Path(tempfile.mkdtemp(dir=scratch)) / "d", SEED, tally) as made:
        made.run(1 << 30, SECONDS)
        while not (tally.total and tally.stops):  # by chance one kind of round only: one of the other
            made.run(1 << 30, 0.1)
    print(table(tally, SECONDS))
    assert tally.operations > 20
    assert tally.checks > 1
