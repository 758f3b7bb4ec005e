"""`python -m bench`: run, keep, write."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import caiafs

from .cases import choose
from .results import FOLDER, Results
from .session import Session
from .text import table

LIMITS = {"quick": 170.0, "full": 25 * 60.0}


def main(arguments: list[str]) -> int:
    """Exit code: 0 once it has measured anything, 2 for wrong words."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="caiafs and its peers at the same work"
    )
    parser.add_argument("--quick", action="store_true", help="a form of less than three minutes")
    parser.add_argument(
        "--cases", default="", help="only these: keys, beginnings of keys, or groups, with commas"
    )
    parser.add_argument("--peers", default="", help="only these, such as caiafs,bindfs/tmpfs")
    parser.add_argument("--rounds", type=int, help="so many rounds of every case")
    parser.add_argument("--minutes", type=float, help="begin nothing new after this long")
    parser.add_argument("--disk", type=Path, help="where on disk to work (default: /var/tmp)")
    parser.add_argument("--json", type=Path, help="where to keep the figures (default: bench/results)")
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    words = parser.parse_args(arguments)
    try:
        cases = choose([word for word in words.cases.split(",") if word])
    except ValueError as error:
        parser.error(str(error))
    if words.list:
        for case in cases:
            print(f"{case.key:18} {case.group:10} {case.title}")
        return 0
    form = "quick" if words.quick else "full"
    only = frozenset(word for word in words.peers.split(",") if word) or None
    results = Results(caiafs.__version__, form)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    session = Session(
        cases, results, say, quick=words.quick, only=only, rounds=words.rounds,
        limit=words.minutes * 60 if words.minutes else LIMITS[form], base=words.disk,
    )  # fmt: skip
    session.run()
    results.seconds = round(time.monotonic() - begun, 1)
    partial = bool(words.cases or words.peers or words.rounds)
    path = words.json or FOLDER / f"{caiafs.__version__}{'-quick' if words.quick else ''}.json"
    if words.json or not partial:
        results.save(path)
        say(f"kept in {path}")
    print(table(results))
    return 0 if results.rounds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
