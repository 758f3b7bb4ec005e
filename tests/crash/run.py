"""The drills as commands: `make crash` and `make soak`.

    python tests/crash/run.py kills --kills 300 [--seed N]

Prints the seed first: the same seed gives the same choices again. What was done and what was
lost is printed at the end, and appended as a line of JSON to --record FILE.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from support.drill.kill import Tally, drill  # noqa: E402
from support.processes import GUARD  # noqa: E402

CHUNK = 50
"""Kills on one repository before a fresh one is taken."""


def kills(arguments: argparse.Namespace, base: Path) -> Tally:
    """So many kills, each verified."""
    tally = Tally()
    started = time.monotonic()
    seed = arguments.seed
    while tally.total < arguments.kills:
        left = min(CHUNK, arguments.kills - tally.total)
        with drill(base / str(seed), seed, tally) as made:
            made.run(left)
        print(f"{time.monotonic() - started:6.0f} s  seed {seed}: {line(tally)}", flush=True)
        seed += 1
    return tally


def line(tally: Tally) -> str:
    return (
        f"{tally.total} kills, {tally.operations} operations, {tally.bytes >> 20} MiB, "
        f"{tally.commits} commits, {tally.checks} checks, nothing lost"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills"])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="caiafs-drill-"))
    GUARD.arm(120)
    tally = kills(arguments, base)
    GUARD.close()
    shutil.rmtree(base)
    result = dict(vars(tally))
    print(json.dumps(result, indent=1))
    if arguments.record is not None:
        with arguments.record.open("a") as file:
            file.write(json.dumps({"what": arguments.what, "seed": arguments.seed, **result}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
