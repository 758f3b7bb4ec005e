"""Kills at random and at named moments, each proved against what was acknowledged.

The short form of `make crash`, by the same code: see tests/support/drill. CAIAFS_DRILL_SEED repeats
a run, CAIAFS_DRILL_KILLS lengthens it.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from support.drill.kill import Tally, drill
from support.mounts import need_fuse

SEED = int(os.environ.get("CAIAFS_DRILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = int(os.environ.get("CAIAFS_DRILL_KILLS", "5"))


@pytest.mark.timeout(max(120, 6 * KILLS))
def test_kills_lose_nothing(scratch: Path) -> None:
    """Several writers under load; the daemon, its worker or both die; every promise is looked at."""
    need_fuse()
    print(f"CAIAFS_DRILL_SEED={SEED}")  # shown if the test fails
    tally = Tally()
    with drill(Path(tempfile.mkdtemp(dir=scratch)) / "d", SEED, tally) as made:
        made.run(KILLS)
    assert tally.total >= KILLS
    assert tally.pending > 0
    assert tally.operations > 20
