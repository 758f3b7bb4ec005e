"""The drills as commands: `make crash` and `make soak`.

    python tests/crash/run.py kills --kills 300 [--seed N]
    python tests/crash/run.py soak --minutes 60 [--seed N]
    python tests/crash/run.py power --writes 2000 [--seed N] [--jobs 2]

Prints the seed first: the same seed gives the same choices again. What was done is printed at the
end, and appended as a line of JSON to --record FILE. Ends with status 1, and leaves what it found
on disk, at the first promise that was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from support.drill.kill import Tally, drill  # noqa: E402
from support.drill.soak import soak, table  # noqa: E402
from support.power_drill import Loss, Outcome, Prover, Recording, at_every_write  # noqa: E402
from support.processes import GUARD  # noqa: E402

SPELL = 90.0
"""Seconds of a soak on one repository."""
CHUNK = 50
"""Kills on one repository before a fresh one is taken."""


def kills(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """So many kills of the daemon, each proved."""
    tally = Tally()
    started = time.monotonic()
    seed = arguments.seed
    GUARD.arm(120)
    while tally.total < arguments.kills:
        with drill(base / str(seed), seed, tally) as made:
            made.run(min(CHUNK, arguments.kills - tally.total))
        print(
            f"{time.monotonic() - started:6.0f} s  seed {seed}: {tally.total} kills, {tally.operations} "
            f"operations, {tally.bytes >> 20} MiB, {tally.commits} commits: nothing lost",
            flush=True,
        )
        seed += 1
    GUARD.close()
    return vars(tally)


def soaking(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Load, kills, faults and other people's git for so many minutes; a fresh repository every so often."""
    tally = Tally()
    started = time.monotonic()
    seed = arguments.seed
    GUARD.arm(180)
    while (left := arguments.minutes * 60 - (time.monotonic() - started)) > 0:
        with soak(base / str(seed), seed, tally) as made:
            made.run(1 << 30, min(left, SPELL))
        print(
            f"{time.monotonic() - started:6.0f} s  seed {seed}: {tally.total} kills, "
            f"{sum(tally.faults.values())} faults, {tally.operations} operations: nothing lost",
            flush=True,
        )
        seed += 1
    GUARD.close()
    print(table(tally, time.monotonic() - started))
    return vars(tally)


def power(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Power loss at every write of a workload of so many, and at random calls; twice at some. Then at
    every write of one of a quarter as many, into which others push."""
    alone = _power(arguments, base / "alone", arguments.writes, 0.0)
    together = _power(arguments, base / "together", arguments.writes // 4, 0.05)
    return {**alone, **{f"{name}_with_pushes": value for name, value in together.items()}}


def _power(arguments: argparse.Namespace, base: Path, writes: int, outside: float) -> dict[str, Any]:
    started = time.monotonic()
    recording = Recording(base, arguments.seed, 1, writes, outside)
    calls = Counter(call.kind for call in recording.recorder.calls)
    print(f"recorded: {dict(calls)}, {recording.commits} commits", flush=True)
    assert recording.recorder.writes >= writes
    again = 0 if outside else writes // 100
    losses = at_every_write(recording, arguments.seed, more=writes // 4, again=again)
    found = Path(tempfile.mkdtemp(prefix="caiafs-power-", dir="/dev/shm"))
    pipes = [
        _share(recording, losses[job :: arguments.jobs], found / str(job)) for job in range(arguments.jobs)
    ]
    total: Counter[str] = Counter()
    for pid, outlet in pipes:
        with os.fdopen(outlet, "rb") as answers:
            data = answers.read()
        _, status = os.waitpid(pid, 0)
        if status or not data:
            raise SystemExit(f"a promise was broken; what was found is in {found}")
        total.update(json.loads(data))
    shutil.rmtree(found)
    return {
        "writes": calls["write"],
        "calls": len(recording.recorder.calls),
        "recorded_commits": recording.commits,
        "pushes": len(recording.pushed),
        "losses": len(losses),
        **total,
        "seconds": time.monotonic() - started,
    }


def _share(recording: Recording, losses: list[Loss], place: Path) -> tuple[int, int]:
    """Prove *losses* in a child; its pid, and where its figures come out."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid:
        os.close(outlet)
        return pid, inlet
    status = 1
    try:
        outcome = Outcome()
        prover = Prover(recording, place, outcome)
        for begin in range(0, len(losses), 200):
            prover.sweep(sorted(losses)[begin : begin + 200])
            print(f"{place.name}: {outcome.states} states, no promise broken", flush=True)
        os.write(outlet, json.dumps(vars(outcome)).encode())
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "power", "soak"])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--writes", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="caiafs-drill-"))
    result = {"kills": kills, "power": power, "soak": soaking}[arguments.what](arguments, base)
    shutil.rmtree(base)
    print(json.dumps(result, indent=1))
    if arguments.record is not None:
        with arguments.record.open("a") as file:
            file.write(json.dumps({"what": arguments.what, "seed": arguments.seed, **result}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
